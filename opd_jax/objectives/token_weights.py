"""Token weights: masks and weights by position, by disagreement and by entropy, and the normalisers of the loss.

Masks choose tokens, and the normaliser and a discount count only those, so that a rollout of which the first N are
trained is a rollout of N. Weights multiply, and the normaliser counts every token. Those by entropy are ours:
student_entropy is the entropy over its mean in the row, up to the row's length where one token has all of it;
teacher_entropy is exp(-entropy), 1 where the teacher is certain.

Dimensions: B rows, H response positions.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

COUNTED = ("first", "last", "segment", "random")  # masks of `tokens` tokens of each row
RARE = ("rare", "common")  # masks by the probability of the drawn token
MASKS = (*COUNTED, *RARE)
SCOPES = ("row", "batch")
BY_STATS = ("gap", "student_entropy", "teacher_entropy")
KINDS = ("uniform", *MASKS, "linear", "rising", *BY_STATS)
NORMALISERS = ("token", "sequence", "constant")


@dataclasses.dataclass(frozen=True)
class TokenWeighting:
  """The tokens to train and their weights, as `config.weights` describes them."""

  kind: str = "uniform"
  tokens: int = 0  # first, last, segment, random: how many of each row
  start: int = 0  # segment: the first position, from 0
  end: float = 0.0  # linear: the weight at `horizon`
  fraction: float = 0.2  # rare, common: the share of the tokens that is rare
  scope: str = "row"  # rare, common: the tokens that are ranked together
  gamma: float = 0.5  # gap: the first token counts 1 + gamma
  mean_one: bool = False  # weights divided by their mean over the row
  horizon: int = 1  # linear: T, positions

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(f"token weights of kind {self.kind!r} are not one of {', '.join(KINDS)}")

  def choose(
    self, mask: Bool[Array, "B H"], key: jax.Array, logprob: Float[Array, "B H"] | None = None
  ) -> Bool[Array, "B H"]:
    """Choose the tokens that are trained.

    Args:
      mask: true on generated tokens.
      key: used by the kind "random" only.
      logprob: of the drawn tokens when they were drawn; used by the kinds of RARE only.
    """
    match self.kind:
      case "first":
        return segment(mask, 0, self.tokens)
      case "last":
        return last(mask, self.tokens)
      case "segment":
        return segment(mask, self.start, self.tokens)
      case "random":
        return random(mask, self.tokens, key)
      case "rare" | "common":
        if logprob is None:
          raise ValueError(f"token weights of kind {self.kind!r} need the log-probabilities of the drawn tokens")
        chosen = rare(logprob, mask, self.fraction, self.scope)
        return chosen if self.kind == "rare" else mask & ~chosen
      case kind if kind in MASKS:
        raise NotImplementedError(f"no mask is made for token weights of kind {kind!r}")
    return mask

  def weight(self, mask: Bool[Array, "B H"], stats: dict[str, Float[Array, "B H"]]) -> Float[Array, "B H"]:
    """Compute the weight of each token, 0 outside the mask.

    Args:
      stats: divergence.TokenStats, used by the kinds of BY_STATS only.
    """
    match self.kind:
      case "linear":
        w = linear(mask, self.horizon, self.end)
      case "rising":
        w = rising(mask)
      case "gap":
        w = cumulative_gap(jnp.abs(stats["logprob"] - stats["teacher_logprob"]), mask, self.gamma)
      case "student_entropy":
        w = relative(stats["student_entropy"], mask)
      case "teacher_entropy":
        w = jnp.where(mask, jnp.exp(-stats["teacher_entropy"]), 0.0)
      case kind if kind == "uniform" or kind in MASKS:
        w = mask.astype(jnp.float32)
      case kind:
        raise NotImplementedError(f"no weight is computed for token weights of kind {kind!r}")
    return relative(w, mask) if self.mean_one else w


def segment(mask: Bool[Array, "B H"], start: int, tokens: int) -> Bool[Array, "B H"]:
  """Choose up to `tokens` tokens of each row, from response position `start` on."""
  position = jnp.arange(mask.shape[1])
  return mask & (position >= start) & (position < start + tokens)


def last(mask: Bool[Array, "B H"], tokens: int) -> Bool[Array, "B H"]:
  """Choose the last `tokens` generated tokens of each row."""
  left = jnp.sum(mask, axis=1, keepdims=True, dtype=jnp.int32) - jnp.cumsum(mask, axis=1, dtype=jnp.int32)
  return mask & (left < tokens)


def random(mask: Bool[Array, "B H"], tokens: int, key: jax.Array) -> Bool[Array, "B H"]:
  """Choose up to `tokens` tokens of each row at random: the control for position at an equal count."""
  score = jnp.where(mask, jax.random.uniform(key, mask.shape), 2.0)
  rank = jnp.argsort(jnp.argsort(score, axis=1), axis=1)
  return mask & (rank < tokens)


def rare(
  logprob: Float[Array, "B H"], mask: Bool[Array, "B H"], fraction: float, scope: str = "row"
) -> Bool[Array, "B H"]:
  """Choose the least likely of the drawn tokens: this share of them, rounded up.

  Args:
    scope: "row": of each row's tokens (arXiv:2608.31046); "batch": of all rows' together, as its code does.
  """
  shape = mask.shape if scope == "row" else (1, mask.size)
  logprob, flat = jnp.where(mask, logprob, jnp.inf).reshape(shape), mask.reshape(shape)
  rank = jnp.argsort(jnp.argsort(logprob, axis=1), axis=1)
  tokens = jnp.sum(flat, axis=1, keepdims=True, dtype=jnp.int32)
  return (flat & (rank < jnp.ceil(fraction * tokens - 1e-4))).reshape(mask.shape)


def linear(mask: Bool[Array, "B H"], horizon: int, end: float) -> Float[Array, "B H"]:
  """Weigh tokens by absolute position, from 1 at the first to `end` at `horizon`, whatever the row's length."""
  fraction = jnp.arange(mask.shape[1], dtype=jnp.float32) / horizon
  return jnp.where(mask, jnp.clip(1 + (end - 1) * fraction, min(1.0, end), max(1.0, end)), 0.0)


def rising(
  mask: Bool[Array, "B H"], least: float = 0.25, centre: float = 0.30, width: float = 0.10
) -> Float[Array, "B H"]:
  """Compute PW-OPSD's weights, for a privileged self-teacher that is reliable on late tokens (arXiv:2605.21606).

  They are least + (1 - least) sigmoid((f - centre) / width), f = (n - 1/2) / length for the n-th token of the row.
  """
  length = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True, dtype=jnp.int32), 1)
  f = (jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 0.5) / length
  return jnp.where(mask, least + (1 - least) * jax.nn.sigmoid((f - centre) / width), 0.0)


def cumulative_gap(gap: Float[Array, "B H"], mask: Bool[Array, "B H"], gamma: float) -> Float[Array, "B H"]:
  """Compute IW-OPD's weights 1 + gamma (1 - F), F = the share of the row's gap before the token (arXiv:2606.22600).

  The first token counts 1 + gamma, and so do all tokens of a row without any gap. The mean is above 1, see
  `TokenWeighting.mean_one`.

  Args:
    gap: |log t - log s| of the drawn tokens, nats.
  """
  gap = jnp.where(mask, gap, 0.0)
  total = jnp.sum(gap, axis=1, keepdims=True)
  before = jnp.cumsum(gap, axis=1) - gap
  return jnp.where(mask, 1 + gamma * (1 - before / jnp.where(total > 0, total, 1.0)), 0.0)


def relative(w: Float[Array, "B H"], mask: Bool[Array, "B H"]) -> Float[Array, "B H"]:
  """Divide weights by their mean over the row's tokens; a row whose weights are all 0 gets 1 everywhere."""
  w = jnp.where(mask, w, 0.0)
  mean = jnp.sum(w, axis=1, keepdims=True) / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True, dtype=jnp.int32), 1)
  return jnp.where(mask, jnp.where(mean > 0, w / jnp.where(mean > 0, mean, 1.0), 1.0), 0.0)


def mean_weights(
  mask: Bool[Array, "B H"], normaliser: str, constant: float, counted: Bool[Array, " B"] | None = None
) -> Float[Array, "B H"]:
  """Compute the weight of each token in the mean over the whole batch, 0 outside the mask.

  A sum with these weights is the mean, so parts of a batch add up to it however it is split. For a batch without tokens
  they are 0.

  Args:
    normaliser: "token": 1 / tokens of the batch. "sequence": 1 / tokens of the row / rows that have any. "constant":
      1 / constant / rows.
    counted: rows that are in the mean at all; None: all. Rows that are, and have no token, count in "constant" alone.

  Raises:
    ValueError: when `normaliser` is not one of NORMALISERS.
  """
  mask = mask if counted is None else mask & counted[:, None]
  tokens = jnp.sum(mask, axis=1, keepdims=True, dtype=jnp.int32)
  match normaliser:
    case "token":
      weight = 1 / jnp.maximum(jnp.sum(tokens), 1).astype(jnp.float32)
    case "sequence":
      rows = jnp.maximum(jnp.sum(tokens > 0, dtype=jnp.int32), 1).astype(jnp.float32)
      weight = 1 / jnp.maximum(tokens, 1).astype(jnp.float32) / rows
    case "constant":
      rows = mask.shape[0] if counted is None else jnp.maximum(jnp.sum(counted, dtype=jnp.int32), 1)
      weight = jnp.float32(1 / constant) / rows
    case _:
      raise ValueError(f"normaliser {normaliser!r} is not one of {', '.join(NORMALISERS)}")
  return jnp.where(mask, weight, 0.0)
