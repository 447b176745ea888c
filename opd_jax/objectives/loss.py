"""The loss of a step, by the keys of `config.mixture`: a mean over the batch's tokens of

    divergence x (weight x importance x distance to the teacher)
    - reward   x (importance x advantage x log s(y))
    + initial  x KL(student || reference), the reference being the student before training

The last is a penalty on the prefixes that were drawn, whoever drew them, and takes no importance weight.

With a surrogate (surrogates.py) all that is a policy gradient goes through it, and has no importance weight: the reward's
advantage, and the teacher's where the distance is a drawn token's log-ratio, as one advantage of the token.

Every term is a coefficient without gradient times one statistic of a token (divergence.Coefficients). Where a
coefficient depends on statistics, these are computed in a pass before the one that differentiates; otherwise there is
only that one.

Dimensions: B rows, H response positions.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from opd_jax.objectives import kl_estimators
from opd_jax.objectives.divergence import Coefficients, Objective, TokenStats
from opd_jax.objectives.surrogates import Surrogate
from opd_jax.objectives.token_weights import BY_STATS, MASKS, TokenWeighting, mean_weights

RARE = 0.01  # a token of a lower probability, when it was drawn, is counted as rare


Advantage = Float[Array, "B"] | Float[Array, "B H"]


class TokenWeights(NamedTuple):
  """The weight of every token in two means over the whole batch; computed before the batch is split."""

  trained: Float[Array, "B H"]  # in the mean over the tokens that the teacher trains
  all: Float[Array, "B H"]  # in the mean over all generated tokens
  rewarded: Float[Array, "B H"]  # in the mean over the tokens of the rows that count for the reward


@dataclasses.dataclass(frozen=True)
class Loss:
  """The loss that a config describes (loss_config.py)."""

  objective: Objective
  weights: TokenWeighting = dataclasses.field(default_factory=TokenWeighting)
  estimator: str = "k1"  # sampled support
  discount: float = 0.0  # k1
  future: str = "discounted"  # k1: how later tokens' costs count; or mean
  standardise: bool = False  # k1: advantages as standard scores over the tokens of a prompt's rollouts
  n: int = 1  # rollouts of a prompt, which are neighbours
  suppressing: tuple[float, float] = (-0.5, 0.0)  # suppress: the advantage, and how much of it follows the entropy
  token_clip: float = 0.0  # largest divergence of a token, or largest |log-ratio| of a drawn one; 0: off
  importance: str = "none"  # none, truncated, masked
  level: str = "token"
  cap: float = 2.0
  normaliser: str = "token"
  constant: float = 1.0
  divergence: float = 1.0
  reward: float = 0.0
  reference_kl: float = 0.0
  surrogate: Surrogate | None = None  # of what is a policy gradient; None: advantages times importance weights

  def __post_init__(self):
    if self.surrogate and self.surrogate.recorded_ids and self.surrogate.divergence != self.objective.topk_distance:
      raise ValueError(
        f"the surrogate's divergence is {self.surrogate.divergence!r}, and {self.objective.topk_distance!r} is computed"
      )

  @property
  def sampled(self) -> bool:
    """True where the divergence is estimated from the drawn token alone."""
    return self.objective.support == "sampled"

  @property
  def needs_stats_first(self) -> bool:
    """True where the coefficients depend on the tokens' statistics, which then take a pass of their own."""
    by_stats = self.weights.kind in BY_STATS or self.sampled or self.token_clip > 0
    return self.importance != "none" or self.surrogate is not None or (by_stats and self.divergence != 0)

  def token_weights(
    self,
    mask: Bool[Array, "B H"],
    key: jax.Array,
    behavior_logprob: Float[Array, "B H"] | None = None,
    counted: Bool[Array, " B"] | None = None,
    taught: Bool[Array, " B"] | None = None,
  ) -> TokenWeights:
    """Compute the weights of the batch's tokens in its means.

    Args:
      mask: true on generated tokens.
      key: used where `config.weights` takes random tokens, and nowhere else.
      behavior_logprob: used where `config.weights` takes unlikely tokens.
      counted: the rows that count for the reward; None: all.
      taught: the rows that a teacher trains; None: all.
    """

    def means_of(mask: Bool[Array, "B H"], counted: Bool[Array, " B"] | None = None) -> Float[Array, "B H"]:
      return mean_weights(mask, self.normaliser, self.constant, counted)

    with_teacher = mask if taught is None else mask & taught[:, None]
    trained, every = means_of(self.weights.choose(with_teacher, key, behavior_logprob), taught), means_of(mask)
    return TokenWeights(trained, every, every if counted is None else means_of(mask, counted))

  def coefficients(
    self,
    token_weights: TokenWeights,
    stats: TokenStats,
    behavior_logprob: Float[Array, "B H"],
    advantage: Advantage | None,
  ) -> Coefficients:
    """Compute what each token's statistics are multiplied by.

    Args:
      stats: may be empty where not `needs_stats_first`.
      behavior_logprob: log-probabilities of the drawn tokens when they were drawn, at the sampling temperature.
      advantage: the advantage of each row, or of each token; None without a reward.

    Raises:
      ValueError: when the loss has a reward and `advantage` is None.
    """
    importance = self.importance_weights(token_weights, stats, behavior_logprob)
    divergence = logprob = reference_kl = None
    if self.divergence and not self.sampled:
      w = self._distance_weights(token_weights, stats) * importance
      divergence = jnp.where(stats["divergence"] > self.token_clip, 0.0, w) if self.token_clip else w
    if self.surrogate:
      logprob = self.surrogate.coefficient(*self._surrogate_args(token_weights, stats, behavior_logprob, advantage))
    elif self.reward or (self.divergence and self.sampled):
      logprob = -importance * self.advantages(token_weights, stats, behavior_logprob, advantage)
    if self.reference_kl:
      reference_kl = self.reference_kl * token_weights.all
    return Coefficients(divergence, logprob, reference_kl)

  def advantages(
    self,
    token_weights: TokenWeights,
    stats: TokenStats,
    behavior_logprob: Float[Array, "B H"],
    advantage: Advantage | None,
  ) -> Float[Array, "B H"]:
    """Compute each token's advantage times its weight in the mean: the reward's, and the teacher's on drawn tokens.

    Arguments and errors as of `coefficients`.
    """
    total = jnp.zeros(token_weights.all.shape, jnp.float32)
    if self.divergence and self.sampled:
      trained = token_weights.trained > 0
      total -= self._distance_weights(token_weights, stats) * self._sampled_coefficient(
        trained, stats, behavior_logprob
      )
    if self.reward:
      if advantage is None:
        raise ValueError("a loss with a reward needs advantages")
      total += self.reward * token_weights.rewarded * _by_token(advantage)
    return total

  def _distance_weights(self, token_weights: TokenWeights, stats: TokenStats) -> Float[Array, "B H"]:
    trained = token_weights.trained
    return self.divergence * trained * self.weights.weight(trained > 0, stats)

  def _sampled_coefficient(
    self, trained: Bool[Array, "B H"], stats: TokenStats, behavior_logprob: Float[Array, "B H"]
  ) -> Float[Array, "B H"]:
    """Compute what grad log s(y) is multiplied by, where the distance is estimated from the drawn token."""
    if self.estimator == kl_estimators.SUPPRESS:
      return -kl_estimators.suppressing_advantage(stats["student_entropy"], trained, *self.suppressing)
    r = self.log_ratio(stats, behavior_logprob)
    if self.future == "mean":
      cost = kl_estimators.mean_to_go(r, trained)
    else:
      cost = kl_estimators.coefficient(self.estimator, r, trained, self.discount)
    if self.standardise:
      return kl_estimators.standard_scores(cost, trained, self.n)
    if self.token_clip and self.estimator != "k1":  # these are differentiated, and a clipped value does not change
      return jnp.where(jnp.abs(r) < self.token_clip, cost, 0.0)
    return cost

  def _surrogate_args(
    self,
    token_weights: TokenWeights,
    stats: TokenStats,
    behavior_logprob: Float[Array, "B H"],
    advantage: Advantage | None,
  ) -> tuple[Array, Array, Array, Array | None, Array]:
    """Returns the arguments of a surrogate's functions, whose advantages carry the tokens' weights in the mean."""
    A = self.advantages(token_weights, stats, behavior_logprob, advantage)
    unit = token_weights.rewarded if self.reward else token_weights.trained
    return stats["logprob"], behavior_logprob, A, stats.get("topk_distance"), unit

  def importance_weights(
    self, token_weights: TokenWeights, stats: TokenStats, behavior_logprob: Float[Array, "B H"]
  ) -> Float[Array, "..."]:
    """Compute the importance weight of every token, [B, H]; the scalar 1 where the loss has none."""
    if self.importance == "none":
      return jnp.float32(1)
    ratio = stats["logprob"] - behavior_logprob
    return kl_estimators.importance(ratio, token_weights.all > 0, self.importance, self.level, self.cap)

  def log_ratio(self, stats: TokenStats, behavior_logprob: Float[Array, "B H"]) -> Float[Array, "B H"]:
    """Compute log s(y) - log t(y) of the drawn tokens, cut at `token_clip` on both sides if there is one.

    With a surrogate s is the student that drew them, so that a token's advantage is the same in all updates.
    """
    r = (behavior_logprob if self.surrogate else stats["logprob"]) - stats["teacher_logprob"]
    if self.objective.kind == "proximal":
      r = kl_estimators.proximal_log_ratio(r, self.objective.beta)
    return jnp.clip(r, -self.token_clip, self.token_clip) if self.token_clip else r

  def value(
    self,
    token_weights: TokenWeights,
    stats: TokenStats,
    behavior_logprob: Float[Array, "B H"],
    advantage: Advantage | None,
  ) -> tuple[Float[Array, ""], TokenStats]:
    """Compute these rows' part of the loss as a number, and the tokens' metrics that are not statistics.

    The reward's term is the importance-weighted advantage, whose gradient is the policy gradient.

    Returns:
      The sum over these rows' tokens, and for each token, [B, H]:
      loss: its distance to the teacher, clipped but not weighted.
      weight: where `config.weights` gives tokens different ones.
      importance: where there are importance weights.
    """
    importance = self.importance_weights(token_weights, stats, behavior_logprob)
    distance = jnp.where(token_weights.all > 0, self._distance(token_weights, stats, behavior_logprob), 0.0)
    w = self.weights.weight(token_weights.trained > 0, stats)
    counted = token_weights.trained * w * (1.0 if self.sampled and self.surrogate else importance)
    total = self.divergence * jnp.sum(jnp.where(counted != 0, counted * distance, 0.0))
    metrics = {"loss": distance}
    if self.surrogate:
      args = self._surrogate_args(token_weights, stats, behavior_logprob, advantage)
      of_surrogate = jnp.sum(jnp.where(token_weights.all > 0, self.surrogate.loss(*args), 0.0))
      total = of_surrogate if self.sampled else total + of_surrogate
      metrics |= self._moves(token_weights.all > 0, args)
    elif self.reward and advantage is not None:
      total -= self.reward * jnp.sum(token_weights.rewarded * importance * _by_token(advantage))
    if self.reference_kl:
      total += self.reference_kl * jnp.sum(token_weights.all * stats["initial_kl"])
    if self.weights.kind not in ("uniform", *MASKS):
      metrics["weight"] = w
    if self.importance != "none":
      metrics["importance"] = importance
    return total, metrics

  def _distance(
    self, token_weights: TokenWeights, stats: TokenStats, behavior_logprob: Float[Array, "B H"]
  ) -> Float[Array, "B H"]:
    """Compute each token's distance to the teacher as a number, clipped; 0 where the loss has none."""
    if not self.divergence:
      return jnp.zeros(stats["logprob"].shape, jnp.float32)
    if self.estimator == kl_estimators.SUPPRESS:
      return self._sampled_coefficient(token_weights.trained > 0, stats, behavior_logprob) * stats["logprob"]
    if self.sampled and self.estimator == "nll":
      return -stats["logprob"]
    if self.sampled:
      return kl_estimators.value(self.estimator, self.log_ratio(stats, behavior_logprob))
    return jnp.minimum(stats["divergence"], self.token_clip) if self.token_clip else stats["divergence"]

  def _moves(self, mask: Bool[Array, "B H"], args: tuple[Array, Array, Array, Array | None, Array]) -> TokenStats:
    """Compute how far each token has moved since it was drawn, and what its surrogate makes of that."""
    assert self.surrogate
    logprob, anchor, A, moved, unit = args
    change = jnp.exp(anchor) * jnp.expm1(logprob - anchor)
    of_tokens = {
      "ratio": jnp.exp(logprob - anchor),
      "moved": jnp.abs(change),
      "log_moved": jnp.abs(logprob - anchor),
      "beyond": self.surrogate.beyond(logprob, anchor, A, moved),
      "gradient_weight": self.surrogate.weight(logprob, anchor, A, moved, unit),
      "rare": anchor < jnp.log(RARE),
    }
    return {name: jnp.where(mask, a, 0.0).astype(jnp.float32) for name, a in of_tokens.items()}


def _by_token(advantage: Advantage) -> Float[Array, " B #H"]:
  return advantage if advantage.ndim == 2 else advantage[:, None]
