"""The loss of a step, by the keys of `config.mixture`: a mean over the batch's tokens of

    divergence x (weight x importance x distance to the teacher)
    - reward   x (importance x advantage x log s(y))
    + initial  x KL(student || reference), the reference being the student before training

The last is a penalty on the prefixes that were drawn, whoever drew them, and takes no importance weight.

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

from opd_jax.errors import InputError
from opd_jax.objectives import kl_estimators
from opd_jax.objectives.divergence import Coefficients, Objective, TokenStats
from opd_jax.objectives.token_weights import BY_STATS, MASKS, TokenWeighting, mean_weights


class TokenWeights(NamedTuple):
  """The weight of every token in two means over the whole batch; computed before the batch is split."""

  trained: Float[Array, "B H"]  # in the mean over the tokens that the teacher trains
  all: Float[Array, "B H"]  # in the mean over all generated tokens


@dataclasses.dataclass(frozen=True)
class Loss:
  """The loss that `config.objective`, `config.weights`, `config.importance` and `config.mixture` describe together."""

  objective: Objective
  weights: TokenWeighting = dataclasses.field(default_factory=TokenWeighting)
  estimator: str = "k1"  # sampled support
  discount: float = 0.0  # k1
  token_clip: float = 0.0  # largest divergence of a token, or largest |log-ratio| of a drawn one; 0: off
  importance: str = "none"  # none, truncated, masked
  level: str = "token"
  cap: float = 2.0
  normaliser: str = "token"
  constant: float = 1.0
  divergence: float = 1.0
  reward: float = 0.0
  reference_kl: float = 0.0

  @property
  def sampled(self) -> bool:
    """True where the divergence is estimated from the drawn token alone."""
    return self.objective.support == "sampled"

  @property
  def needs_stats_first(self) -> bool:
    """True where the coefficients depend on the tokens' statistics, which then take a pass of their own."""
    by_stats = self.weights.kind in BY_STATS or self.sampled or self.token_clip > 0
    return self.importance != "none" or (by_stats and self.divergence != 0)

  def token_weights(self, mask: Bool[Array, "B H"], key: jax.Array) -> TokenWeights:
    """Compute the weights of the batch's tokens in its means.

    Args:
      mask: true on generated tokens.
      key: used where `config.weights` takes random tokens, and nowhere else.
    """
    trained = self.weights.choose(mask, key)
    return TokenWeights(
      mean_weights(trained, self.normaliser, self.constant), mean_weights(mask, self.normaliser, self.constant)
    )

  def coefficients(
    self,
    token_weights: TokenWeights,
    stats: TokenStats,
    behavior_logprob: Float[Array, "B H"],
    advantage: Float[Array, "B"] | None,
  ) -> Coefficients:
    """Compute what each token's statistics are multiplied by.

    Args:
      stats: may be empty where not `needs_stats_first`.
      behavior_logprob: log-probabilities of the drawn tokens when they were drawn, at the sampling temperature.
      advantage: the advantage of each row; None without a reward.

    Raises:
      ValueError: when the loss has a reward and `advantage` is None.
    """
    importance = self.importance_weights(token_weights, stats, behavior_logprob)
    divergence = logprob = reference_kl = None
    if self.divergence:
      trained = token_weights.trained > 0
      w = self.divergence * token_weights.trained * self.weights.weight(trained, stats) * importance
      if self.sampled:
        r = self.log_ratio(stats)
        logprob = w * kl_estimators.coefficient(self.estimator, r, trained, self.discount)
        if self.token_clip and self.estimator != "k1":  # these are differentiated, and a clipped value does not change
          logprob = jnp.where(jnp.abs(r) < self.token_clip, logprob, 0.0)
      else:
        divergence = jnp.where(stats["divergence"] > self.token_clip, 0.0, w) if self.token_clip else w
    if self.reward:
      if advantage is None:
        raise ValueError("a loss with a reward needs advantages")
      policy_gradient = -self.reward * token_weights.all * importance * advantage[:, None]
      logprob = policy_gradient if logprob is None else logprob + policy_gradient
    if self.reference_kl:
      reference_kl = self.reference_kl * token_weights.all
    return Coefficients(divergence, logprob, reference_kl)

  def importance_weights(
    self, token_weights: TokenWeights, stats: TokenStats, behavior_logprob: Float[Array, "B H"]
  ) -> Float[Array, "..."]:
    """Compute the importance weight of every token, [B, H]; the scalar 1 where the loss has none."""
    if self.importance == "none":
      return jnp.float32(1)
    ratio = stats["logprob"] - behavior_logprob
    return kl_estimators.importance(ratio, token_weights.all > 0, self.importance, self.level, self.cap)

  def log_ratio(self, stats: TokenStats) -> Float[Array, "B H"]:
    """Compute log s(y) - log t(y) of the drawn tokens, cut at `token_clip` on both sides if there is one."""
    r = stats["logprob"] - stats["teacher_logprob"]
    return jnp.clip(r, -self.token_clip, self.token_clip) if self.token_clip else r

  def value(
    self,
    token_weights: TokenWeights,
    stats: TokenStats,
    behavior_logprob: Float[Array, "B H"],
    advantage: Float[Array, "B"] | None,
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
    if self.sampled and self.estimator == "nll":
      distance = -stats["logprob"]
    elif self.sampled:
      distance = kl_estimators.value(self.estimator, self.log_ratio(stats))
    else:
      distance = stats["divergence"]
      distance = jnp.minimum(distance, self.token_clip) if self.token_clip else distance
    distance = jnp.where(token_weights.all > 0, distance, 0.0)
    w = self.weights.weight(token_weights.trained > 0, stats)
    counted = token_weights.trained * w * importance
    total = self.divergence * jnp.sum(jnp.where(counted != 0, counted * distance, 0.0))
    if self.reward and advantage is not None:
      total -= self.reward * jnp.sum(token_weights.all * importance * advantage[:, None])
    if self.reference_kl:
      total += self.reference_kl * jnp.sum(token_weights.all * stats["initial_kl"])
    metrics = {"loss": distance}
    if self.weights.kind not in ("uniform", *MASKS):
      metrics["weight"] = w
    if self.importance != "none":
      metrics["importance"] = importance
    return total, metrics


def check(config) -> None:
  """Refuse combinations of config.objective, weights, importance and mixture that make no sense.

  Raises:
    InputError: naming the key, and what to set instead.
  """
  o, w = config.objective, config.weights
  sampled = o.support == "sampled"

  def refuse(key, why):
    raise InputError(f"config.{key} {why}.")

  if sampled:
    fitting = kl_estimators.ESTIMATORS.get(o.kind, ())
    if o.estimator == "k1_direct":
      refuse(
        "objective.estimator",
        "is 'k1_direct', the log-ratio differentiated as it stands: its expected gradient is zero whatever the teacher "
        "says; use 'k1', which carries the log-ratio as a stop-gradient advantage, or 'k2'",
      )
    if not fitting:
      refuse(
        "objective.support",
        f"is 'sampled', which estimates reverse_kl or forward_kl, not {o.kind!r}; choose one of them, or a support "
        "with more than the drawn token",
      )
    if o.estimator not in ("auto", *fitting):
      other = next((kind for kind, names in kl_estimators.ESTIMATORS.items() if o.estimator in names), None)
      known = ", ".join(repr(e) for names in kl_estimators.ESTIMATORS.values() for e in names)
      belongs = f"its expected gradient is that of {other}, not of {o.kind}" if other else f"it can be 'auto', {known}"
      refuse(
        "objective.estimator", f"is {o.estimator!r}: {belongs}; for {o.kind} use {' or '.join(map(repr, fitting))}"
      )
    if (o.estimator == "nll") != (config.rollout.by != "student"):
      refuse(
        "objective.estimator",
        f"is {o.estimator!r} and rollout.by {config.rollout.by!r}: 'nll' learns what others have said, and has no "
        "gradient in expectation on the student's own words; the other estimators are for these",
      )
    if o.student_temperature != config.sampling.temperature:
      refuse(
        "objective.student_temperature",
        f"is {o.student_temperature} and sampling.temperature {config.sampling.temperature}: the drawn token estimates "
        "a divergence of the distribution that it was drawn from; make the two equal, or use another support",
      )
    if config.sampling.top_p < 1 or config.sampling.top_k > 0:
      refuse(
        "objective.support",
        "is 'sampled', which estimates a divergence of the distribution that tokens are drawn from, and top_p or top_k "
        "cut that one: set sampling.top_p=1 and sampling.top_k=0, or use another support",
      )
    if o.entry_clip:
      refuse("objective.entry_clip", "is for entries of the vocabulary, and a drawn token has none; use token_clip")
  elif o.estimator != "auto":
    refuse("objective.estimator", f"is {o.estimator!r}, but objective.support is {o.support!r}; it needs 'sampled'")
  elif config.rollout.by != "student":
    refuse(
      "rollout.by",
      f"is {config.rollout.by!r}, so that nothing is on-policy; set objective.support=sampled, "
      "objective.kind=forward_kl and objective.estimator=nll, which learns what is said there",
    )
  if o.discount and not (sampled and estimator(config) == "k1"):
    refuse(
      "objective.discount",
      f"is {o.discount}, which only a policy gradient has: support 'sampled' of reverse_kl with estimator 'k1'; "
      "otherwise set it to 0",
    )
  if o.kind == "jsd" and not o.normalised and o.beta in (0, 1):
    refuse(
      "objective.beta",
      f"is {o.beta}, where the JSD and its gradient are zero for every pair; set objective.normalised=True, with which "
      "it is the forward KL at 0 and the reverse KL at 1",
    )
  if o.tail == "reweight" and o.support.endswith("topk"):
    if (o.kind, o.support) != ("reverse_kl", "student_topk"):
      refuse("objective.tail", "is 'reweight', which is defined for reverse_kl over student_topk only; use 'bucket'")
    if o.entry_clip:
      refuse("objective.entry_clip", "does not go with objective.tail 'reweight'; use 'bucket' or 'renormalise'")
  if o.k < 2 and o.tail == "renormalise" and o.support in ("student_topk", "teacher_topk"):
    refuse(
      "objective.k",
      "is 1 with tail 'renormalise': both sides become certain, and nothing is left of the teacher; "
      "raise it, or use tail 'bucket'",
    )
  if o.vocab_chunk and o.support.endswith("topk"):
    refuse("objective.vocab_chunk", "does not go with a top-k support; leave it at 0 and lower objective.chunk instead")
  if w.kind in MASKS and w.tokens < 1:
    refuse("weights.tokens", f"is {w.tokens}; weights.kind {w.kind!r} needs at least 1")
  if w.kind == "segment" and w.start >= config.horizon.max:
    refuse(
      "weights.start",
      f"is {w.start}, which no response of at most horizon.max={config.horizon.max} tokens reaches; lower it",
    )
  if importance_kind(config) != "none":
    if config.sampling.top_p < 1 or config.sampling.top_k > 0:
      refuse(
        "importance.kind",
        "compares the student's distribution with the one sampled from, and top_p or top_k cut the latter: set "
        "sampling.top_p=1 and sampling.top_k=0, or importance.kind=none",
      )
    if not config.importance.cap >= 1:
      refuse("importance.cap", f"is {config.importance.cap}; it has to be at least 1")
    if config.importance.kind == "masked" and config.importance.cap == 1:
      refuse("importance.cap", "is 1, and 'masked' would drop every token whose ratio is not exactly 1; raise it")
  m = config.mixture
  if min(m.divergence, m.reward, m.initial) < 0 or not (m.divergence or m.reward):
    refuse("mixture", "needs coefficients of 0 or more, and divergence or reward above 0")
  if m.reward and config.rollouts_per_prompt < 2:
    refuse(
      "mixture.reward",
      f"is {m.reward} with one rollout per prompt: a reward is judged against the other rollouts of its prompt; set "
      "rollouts_per_prompt to 2 or more",
    )


def estimator(config) -> str:
  """Return the estimator of the sampled support; "auto" is the first that belongs to the objective's kind."""
  if config.objective.estimator != "auto":
    return config.objective.estimator
  return kl_estimators.ESTIMATORS.get(config.objective.kind, ("k1",))[0]


def importance_kind(config) -> str:
  """Return the kind of importance weights.

  "auto" is "truncated" where a rollout is used for more than one update or was begun before the last one.
  """
  if config.importance.kind == "auto":
    return "truncated" if config.updates_per_rollout > 1 or config.rollout.ahead else "none"
  return config.importance.kind


def from_config(config, vocab: int) -> Loss:
  """Build the loss of a run.

  Args:
    vocab: the number of ids that all models share.
  """
  o = config.objective
  return Loss(
    objective=Objective(
      vocab=vocab,
      kind=o.kind,
      support=o.support,
      k=o.k,
      tail=o.tail,
      beta=o.beta,
      normalised=o.normalised,
      student_temperature=o.student_temperature,
      teacher_temperature=o.teacher_temperature,
      sampling_temperature=config.sampling.temperature,
      entry_clip=o.entry_clip,
      overlap_k=0 if o.vocab_chunk else config.log.overlap_k,
      chunk=o.chunk,
      vocab_chunk=o.vocab_chunk,
    ),
    weights=TokenWeighting(
      kind=config.weights.kind,
      tokens=config.weights.tokens,
      start=config.weights.start,
      end=config.weights.end,
      gamma=config.weights.gamma,
      mean_one=config.weights.mean_one,
      horizon=config.horizon.max,
    ),
    estimator=estimator(config),
    discount=o.discount,
    token_clip=o.token_clip,
    importance=importance_kind(config),
    level=config.importance.level,
    cap=config.importance.cap,
    normaliser=o.normaliser,
    constant=o.constant or config.horizon.max,
    divergence=config.mixture.divergence,
    reward=config.mixture.reward,
    reference_kl=config.mixture.initial,
  )
