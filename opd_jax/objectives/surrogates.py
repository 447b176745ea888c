"""Surrogates of the policy gradient: what a drawn token with an advantage adds to the loss, by how far its probability moved.

pi = the drawn token's probability now, mu = its probability when it was drawn, by the sampler and at its temperature,
r = pi / mu, A = its advantage, delta = `threshold`. Every surrogate is a loss l per token, and its derivative

    d l / d log pi = -A r w

with a weight w that says how much of the plain importance-weighted gradient is left:

    kind        loss l                                          weight w
    is          -A r                                            1
    truncated   -A sg(min(r, cap)) log pi                       min(r, cap) / r; CISPO (arXiv:2506.13585)
    ppo_clip    max(-A r, -A clip(r, 1 - low, 1 + high))        0 where A > 0 and r > 1 + high, A < 0 and r < 1 - low, or
                at most -A dual_clip for A < 0                  A < 0 and r > dual_clip; else 1
    dppo        -A sg(M min(r, cap)) log pi                     0 where A (r - 1) > 0 and D > delta; else as truncated
    spo         -A r + |A| (r - 1)^2 / (2 delta)                1 - sign(A (r - 1)) |r - 1| / delta
    drpo        -A r + |A| mu (r - 1)^2 / (2 delta)             1 - sign(A (r - 1)) |pi - mu| / delta
    mask_drpo   the same, penalty where |pi - mu| > mask        1, drpo's where |pi - mu| > mask
    kl          -A r - |A| log r / (2 delta)                    1 + sign(A) / (2 delta r)
    k3          -A r + |A| (r - 1 - log r) / (2 delta)          1 - sign(A) (r - 1) / (2 delta r)
    tv          -A r + |A| |r - 1| / (2 delta)                  1 - sign(A (r - 1)) / (2 delta)

PPO's clip: arXiv:1707.06347, with two bounds arXiv:2503.14476, dual arXiv:1912.09729. SPO: arXiv:2401.16025. DPPO:
arXiv:2602.04879, with D the divergence of `divergence`: tv |pi - mu|, kl between (mu, 1 - mu) and (pi, 1 - pi), or over the
sampler's K most likely ids, the drawn one and all others together (topk_tv, topk_kl). DRPO: arXiv:2606.09821, and the forms of
the kl, k3 and tv penalties, of which it has the weights, are ours.

A penalty's |A| can be left out (`advantage_scale`), and then it also holds tokens whose advantage is 0. `anchor` is the log of
mu as it was recorded: it stays the same for all updates on a rollout. Log-ratios are cut at +-20.

`coefficient` is the closed form that is trained with; `loss` is what a person reads, and JAX differentiates in a test.

Dimensions: B rows, H response positions, K recorded ids.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

IMPORTANCE = "importance"  # the kind that has no surrogate: advantages times `config.importance`'s weights
DIVERGENCES = ("tv", "kl", "topk_tv", "topk_kl")
LARGEST_LOG_RATIO = 20.0
TINY = 1e-8  # least probability in DPPO's binary KL


@dataclasses.dataclass(frozen=True)
class Surrogate:
  """A surrogate with its numbers, as `config.surrogate` describes it."""

  kind: str = "is"
  threshold: float = 0.15  # delta; of spo in units of r, of all others in units of probability
  clip_low: float = 0.2
  clip_high: float = 0.2
  dual_clip: float = 0.0  # 0: off
  cap: float = 0.0  # largest ratio; 0: off
  divergence: str = "tv"
  k: int = 20
  mask_threshold: float = 0.15
  advantage_scale: bool = True

  def __post_init__(self):
    if self.kind not in SURROGATES:
      raise ValueError(f"surrogate {self.kind!r} is not one of {', '.join(SURROGATES)}")
    if self.divergence not in DIVERGENCES:
      raise ValueError(f"a surrogate's divergence {self.divergence!r} is not one of {', '.join(DIVERGENCES)}")

  @property
  def recorded_ids(self) -> int:
    """How many of the sampler's most likely ids have to be recorded with every drawn token."""
    return self.k if self.kind == "dppo" and self.divergence.startswith("topk") else 0

  def loss(
    self,
    logprob: Float[Array, "*b"],
    anchor: Float[Array, "*b"],
    advantage: Float[Array, "*b"],
    moved: Float[Array, "*b"] | None = None,
    unit: Float[Array, "*b"] | float = 1.0,
  ) -> Float[Array, "*b"]:
    """Compute the loss of each token; arguments as of `coefficient`. Gradients flow through `logprob` only."""
    token = Token.of(logprob, *lax.stop_gradient((anchor, advantage, moved)))
    kind = SURROGATES[self.kind]
    if kind.loss:
      return kind.loss(self, token)
    if kind.penalty:
      return -token.advantage * token.ratio + self._scale(token, unit) * kind.penalty(self, token)
    return -token.advantage * lax.stop_gradient(kind.kept(self, token)) * token.ratio

  def coefficient(
    self,
    logprob: Float[Array, "*b"],
    anchor: Float[Array, "*b"],
    advantage: Float[Array, "*b"],
    moved: Float[Array, "*b"] | None = None,
    unit: Float[Array, "*b"] | float = 1.0,
  ) -> Float[Array, "*b"]:
    """Compute d loss / d log pi of each token in closed form; 0 where the log-ratio is cut.

    Args:
      logprob: log pi, at the sampling temperature.
      anchor: log mu.
      moved: D between the distribution that the token was drawn from and today's, over the recorded ids (`topk_distance`);
        None: from the drawn token alone.
      unit: what stands for an advantage of 1 where advantages carry a token's weight in a mean; used without `advantage_scale`.
    """
    token, kind = Token.of(logprob, anchor, advantage, moved), SURROGATES[self.kind]
    if kind.penalty:
      by_log = token.ratio * (self._scale(token, unit) * kind.pull(self, token) - token.advantage)
    else:
      by_log = -token.advantage * token.ratio * kind.kept(self, token)
    return jnp.where(jnp.abs(logprob - anchor) < LARGEST_LOG_RATIO, by_log, 0.0)

  def weight(
    self,
    logprob: Float[Array, "*b"],
    anchor: Float[Array, "*b"],
    advantage: Float[Array, "*b"],
    moved: Float[Array, "*b"] | None = None,
    unit: Float[Array, "*b"] | float = 1.0,
  ) -> Float[Array, "*b"]:
    """Compute the weight w of each token's importance-weighted gradient; 1 where its advantage is 0."""
    token, kind = Token.of(logprob, anchor, advantage, moved), SURROGATES[self.kind]
    if kind.penalty:
      per_advantage = jnp.sign(advantage)
      if not self.advantage_scale:
        per_advantage = jnp.where(advantage == 0, 0.0, unit / jnp.where(advantage == 0, 1.0, advantage))
      return 1 - per_advantage * kind.pull(self, token)
    return jnp.where(advantage == 0, 1.0, kind.kept(self, token))

  def beyond(
    self,
    logprob: Float[Array, "*b"],
    anchor: Float[Array, "*b"],
    advantage: Float[Array, "*b"],
    moved: Float[Array, "*b"] | None = None,
  ) -> Bool[Array, "*b"]:
    """Tell which tokens have left the trust region, whatever side their advantage is on; without one, |pi - mu| > delta."""
    token = Token.of(logprob, anchor, advantage, moved)
    match self.kind:
      case "ppo_clip":
        return (token.ratio > 1 + self.clip_high) | (token.ratio < 1 - self.clip_low)
      case "spo":
        return jnp.abs(token.ratio - 1) > self.threshold
      case "dppo":
        return self._distance(token) > self.threshold
    return jnp.abs(token.change) > self.threshold

  def _scale(self, token: "Token", unit: Float[Array, "*b"] | float) -> Float[Array, "*b"]:
    return jnp.abs(token.advantage) if self.advantage_scale else unit * jnp.ones_like(token.advantage)

  def _within_cap(self, token: "Token") -> Float[Array, "*b"]:
    """What a ratio cut at `cap` is of the ratio."""
    return jnp.minimum(1.0, self.cap / token.ratio) if self.cap else jnp.ones_like(token.ratio)

  def _distance(self, token: "Token") -> Float[Array, "*b"]:
    """Computes D of dppo."""
    match self.divergence:
      case "tv":
        return jnp.abs(token.change)
      case "kl":
        return binary_kl(token.anchor, token.anchor + token.log_ratio)
    if token.moved is None:
      raise ValueError(f"a surrogate's divergence {self.divergence!r} needs the sampler's most likely ids")
    return token.moved


class Token(NamedTuple):
  """What a surrogate knows of each token."""

  log_ratio: Float[Array, "*b"]  # log pi - log mu, cut
  anchor: Float[Array, "*b"]  # log mu
  advantage: Float[Array, "*b"]
  moved: Float[Array, "*b"] | None

  @classmethod
  def of(cls, logprob: Array, anchor: Array, advantage: Array, moved: Array | None) -> "Token":
    """Cuts the log-ratio."""
    return cls(jnp.clip(logprob - anchor, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO), anchor, advantage, moved)

  @property
  def ratio(self) -> Float[Array, "*b"]:
    """pi / mu."""
    return jnp.exp(self.log_ratio)

  @property
  def change(self) -> Float[Array, "*b"]:
    """pi - mu, without the rounding of their difference."""
    return jnp.exp(self.anchor) * jnp.expm1(self.log_ratio)


class Kind(NamedTuple):
  """What a surrogate is: a factor that keeps or drops the gradient, or a penalty beside it.

  Attributes:
    kept: (surrogate, token) -> w.
    penalty: (surrogate, token) -> what is added to -A r, before |A|.
    pull: (surrogate, token) -> d penalty / d log pi, divided by r: how strongly the penalty pulls a token back.
    loss: (surrogate, token) -> the loss, where its value is not that of the kept part.
    parameters: the fields of `Surrogate` that it depends on.
  """

  kept: Callable[[Surrogate, Token], Array] = lambda s, x: jnp.ones_like(x.ratio)
  penalty: Callable[[Surrogate, Token], Array] | None = None
  pull: Callable[[Surrogate, Token], Array] = lambda s, x: jnp.zeros_like(x.ratio)
  loss: Callable[[Surrogate, Token], Array] | None = None
  parameters: tuple[str, ...] = ()


def _clipped_loss(s: Surrogate, x: Token) -> Array:
  clipped = jnp.clip(x.ratio, 1 - s.clip_low, 1 + s.clip_high)
  loss = jnp.maximum(-x.advantage * x.ratio, -x.advantage * clipped)
  return jnp.where(x.advantage < 0, jnp.minimum(loss, -x.advantage * s.dual_clip), loss) if s.dual_clip else loss


def _inside_clip(s: Surrogate, x: Token) -> Array:
  gone_up = (x.advantage > 0) & (x.ratio > 1 + s.clip_high)
  gone_down = (x.advantage < 0) & (x.ratio < 1 - s.clip_low)
  too_likely = (x.advantage < 0) & (x.ratio > s.dual_clip) if s.dual_clip else jnp.zeros_like(gone_up)
  return jnp.where(gone_up | gone_down | too_likely, 0.0, 1.0)


def _inside_divergence(s: Surrogate, x: Token) -> Array:
  going_on = x.advantage * x.log_ratio > 0
  return jnp.where(going_on & (s._distance(x) > s.threshold), 0.0, s._within_cap(x))


def _outside_mask(s: Surrogate, x: Token) -> Array:
  return jnp.where(jnp.abs(x.change) > s.mask_threshold, 1.0, 0.0)


def _drpo_penalty(s: Surrogate, x: Token) -> Array:
  return x.change * jnp.expm1(x.log_ratio) / (2 * s.threshold)


def _drpo_pull(s: Surrogate, x: Token) -> Array:
  return x.change / s.threshold


SURROGATES: dict[str, Kind] = {
  "is": Kind(),
  "truncated": Kind(kept=lambda s, x: s._within_cap(x), parameters=("cap",)),
  "ppo_clip": Kind(kept=_inside_clip, loss=_clipped_loss, parameters=("clip_low", "clip_high", "dual_clip")),
  "dppo": Kind(kept=_inside_divergence, parameters=("threshold", "divergence", "k", "cap")),
  "spo": Kind(
    penalty=lambda s, x: jnp.expm1(x.log_ratio) ** 2 / (2 * s.threshold),
    pull=lambda s, x: jnp.expm1(x.log_ratio) / s.threshold,
    parameters=("threshold", "advantage_scale"),
  ),
  "drpo": Kind(penalty=_drpo_penalty, pull=_drpo_pull, parameters=("threshold", "advantage_scale")),
  "mask_drpo": Kind(
    penalty=lambda s, x: lax.stop_gradient(_outside_mask(s, x)) * _drpo_penalty(s, x),
    pull=lambda s, x: _outside_mask(s, x) * _drpo_pull(s, x),
    parameters=("threshold", "mask_threshold", "advantage_scale"),
  ),
  "kl": Kind(
    penalty=lambda s, x: -x.log_ratio / (2 * s.threshold),
    pull=lambda s, x: -1 / (2 * s.threshold * x.ratio),
    parameters=("threshold", "advantage_scale"),
  ),
  "k3": Kind(
    penalty=lambda s, x: (jnp.expm1(x.log_ratio) - x.log_ratio) / (2 * s.threshold),
    pull=lambda s, x: -jnp.expm1(-x.log_ratio) / (2 * s.threshold),
    parameters=("threshold", "advantage_scale"),
  ),
  "tv": Kind(
    penalty=lambda s, x: jnp.abs(jnp.expm1(x.log_ratio)) / (2 * s.threshold),
    pull=lambda s, x: jnp.sign(x.log_ratio) / (2 * s.threshold),
    parameters=("threshold", "advantage_scale"),
  ),
}


def binary_kl(mu: Float[Array, "*b"], pi: Float[Array, "*b"]) -> Float[Array, "*b"]:
  """Compute KL((mu, 1 - mu) || (pi, 1 - pi)) in nats from log mu and log pi, with probabilities of at least 1e-8."""

  def log_other(log: Array) -> Array:
    return jnp.log(jnp.maximum(-jnp.expm1(jnp.minimum(log, 0.0)), TINY))

  mu, pi = (jnp.maximum(log, jnp.log(TINY)) for log in (mu, pi))
  return jnp.exp(mu) * (mu - pi) + jnp.exp(log_other(mu)) * (log_other(mu) - log_other(pi))


def topk_distance(
  kind: str,
  recorded: Float[Array, "*b K"],
  now: Float[Array, "*b K"],
  drawn: Float[Array, "*b"],
  drawn_now: Float[Array, "*b"],
  among: Bool[Array, "*b"],
) -> Float[Array, "*b"]:
  """Compute how far a distribution moved, over K recorded ids, the drawn one, and all others as one entry.

  Args:
    kind: "topk_tv", half the sum of differences, or "topk_kl", KL(then || now) in nats. Both are at most what they are over
      the whole vocabulary, and the same where K + 1 covers it.
    recorded, now: log-probabilities of the recorded ids, when the token was drawn and now.
    drawn, drawn_now: of the drawn id.
    among: the drawn id is among the recorded ones, and is not counted again.
  """

  def with_other(ids: Array, one: Array) -> Array:
    one = jnp.where(among, 0.0, jnp.exp(one))[..., None]
    p = jnp.concatenate([jnp.exp(ids), one], axis=-1)
    return jnp.concatenate([p, jnp.maximum(1 - jnp.sum(p, axis=-1, keepdims=True), 0.0)], axis=-1)

  then, today = with_other(recorded, drawn), with_other(now, drawn_now)
  if kind == "topk_tv":
    return jnp.sum(jnp.abs(then - today), axis=-1) / 2
  return jnp.sum(jnp.where(then > 0, then * (jnp.log(then + TINY) - jnp.log(today + TINY)), 0.0), axis=-1)
