"""What a step minimises: a mean over the batch's tokens of

    divergence x (weight x importance x distance to the teacher)
    - reward   x (importance x advantage x log s(y))
    + initial  x KL(student || initial student)

The last is a penalty on the prefixes that were drawn, whoever drew them, and takes no importance weight.

Every term is a coefficient without gradient times one reading of a token (divergence.Coefficients). Where a coefficient
depends on readings, the tokens are read once before the pass that differentiates; otherwise that pass is the only one.

Dimensions: B rows, H response positions.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from opd_jax.errors import InputError
from opd_jax.objectives import surrogate, weights
from opd_jax.objectives.divergence import Coefficients, Objective, Readings
from opd_jax.objectives.weights import Weights


class Shares(NamedTuple):
  """What every token adds to the two means over the batch; made before the batch is split."""

  chosen: Float[Array, "B H"]  # of the tokens that the teacher trains
  all: Float[Array, "B H"]  # of all generated tokens


@dataclasses.dataclass(frozen=True)
class Loss:
  """`config.objective`, `config.weights`, `config.importance` and `config.mixture` together."""

  objective: Objective
  weights: Weights = dataclasses.field(default_factory=Weights)
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
  initial: float = 0.0

  @property
  def sampled(self) -> bool:
    return self.objective.support == "sampled"

  @property
  def reads_first(self) -> bool:
    """Coefficients depend on what the tokens' readings are."""
    by_reading = self.weights.kind in weights.BY_READING or self.sampled or self.token_clip > 0
    return self.importance != "none" or (by_reading and self.divergence != 0)

  def shares(self, mask: Bool[Array, "B H"], key: jax.Array) -> Shares:
    """`key` is used by the mask of random tokens alone."""
    share = lambda mask: weights.share(mask, self.normaliser, self.constant)
    return Shares(share(self.weights.choose(mask, key)), share(mask))

  def coefficients(
    self,
    shares: Shares,
    readings: Readings,
    behavior: Float[Array, "B H"],
    advantage: Float[Array, "B"] | None,
  ) -> Coefficients:
    """By what each token's readings are multiplied.

    Args:
      readings: empty where not `reads_first`.
      behavior: log-probabilities of the drawn tokens when they were drawn, at the sampling temperature.
      advantage: of each row's reward; None without one.
    """
    importance = self.importance_weights(shares, readings, behavior)
    distance = logprob = initial = None
    if self.divergence:
      w = self.divergence * shares.chosen * self.weights.of(shares.chosen > 0, readings) * importance
      if self.sampled:
        r = self.log_ratio(readings)
        logprob = w * surrogate.coefficient(self.estimator, r, shares.chosen > 0, self.discount)
        if self.token_clip and self.estimator != "k1":  # these are differentiated, and a clipped value does not change
          logprob = jnp.where(jnp.abs(r) < self.token_clip, logprob, 0.0)
      else:
        distance = jnp.where(readings["divergence"] > self.token_clip, 0.0, w) if self.token_clip else w
    if self.reward:
      if advantage is None:
        raise ValueError("a loss with a reward needs advantages")
      push = -self.reward * shares.all * importance * advantage[:, None]
      logprob = push if logprob is None else logprob + push
    if self.initial:
      initial = self.initial * shares.all
    return Coefficients(distance, logprob, initial)

  def importance_weights(self, shares: Shares, readings: Readings, behavior: Float[Array, "B H"]):
    if self.importance == "none":
      return jnp.float32(1)
    ratio = readings["logprob"] - behavior
    return surrogate.importance(ratio, shares.all > 0, self.importance, self.level, self.cap)

  def log_ratio(self, readings: Readings) -> Float[Array, "B H"]:
    r = readings["logprob"] - readings["teacher_logprob"]
    return jnp.clip(r, -self.token_clip, self.token_clip) if self.token_clip else r

  def value(
    self, shares: Shares, readings: Readings, behavior: Float[Array, "B H"], advantage: Float[Array, "B"] | None
  ) -> tuple[Float[Array, ""], Readings]:
    """This part's share of the loss as a number, and what is worth knowing of each token beside its readings.

    Its "loss" is what the teacher's term takes of a token, clipped but not weighted. The reward's term is the
    importance-weighted advantage, whose gradient is the policy gradient.
    """
    importance = self.importance_weights(shares, readings, behavior)
    if self.sampled and self.estimator == "nll":
      distance = -readings["logprob"]
    elif self.sampled:
      distance = surrogate.value(self.estimator, self.log_ratio(readings))
    else:
      distance = readings["divergence"]
      distance = jnp.minimum(distance, self.token_clip) if self.token_clip else distance
    distance = jnp.where(shares.all > 0, distance, 0.0)
    w = self.weights.of(shares.chosen > 0, readings)
    counted = shares.chosen * w * importance
    total = self.divergence * jnp.sum(jnp.where(counted != 0, counted * distance, 0.0))
    if self.reward and advantage is not None:
      total -= self.reward * jnp.sum(shares.all * importance * advantage[:, None])
    if self.initial:
      total += self.initial * jnp.sum(shares.all * readings["initial_kl"])
    more = {"loss": distance}
    if self.weights.kind not in ("uniform", *weights.MASKS):
      more["weight"] = w
    if self.importance != "none":
      more["importance"] = importance
    return total, more


def check(c) -> None:
  """Refuses combinations of config.objective, weights, importance and mixture that cannot be meant.

  Raises:
    InputError: naming the key and the mend.
  """
  o, w = c.objective, c.weights
  sampled = o.support == "sampled"

  def refuse(key, why):
    raise InputError(f"config.{key} {why}.")

  if sampled:
    fitting = surrogate.ESTIMATORS.get(o.kind, ())
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
      other = next((kind for kind, names in surrogate.ESTIMATORS.items() if o.estimator in names), None)
      known = ", ".join(repr(e) for names in surrogate.ESTIMATORS.values() for e in names)
      belongs = f"its expected gradient is that of {other}, not of {o.kind}" if other else f"it can be 'auto', {known}"
      refuse(
        "objective.estimator", f"is {o.estimator!r}: {belongs}; for {o.kind} use {' or '.join(map(repr, fitting))}"
      )
    if (o.estimator == "nll") != (c.rollout.by != "student"):
      refuse(
        "objective.estimator",
        f"is {o.estimator!r} and rollout.by {c.rollout.by!r}: 'nll' learns what others have said, and has no gradient in "
        "expectation on the student's own words; the other estimators are for these",
      )
    if o.student_temperature != c.sampling.temperature:
      refuse(
        "objective.student_temperature",
        f"is {o.student_temperature} and sampling.temperature {c.sampling.temperature}: the drawn token estimates a "
        "divergence of the distribution that it was drawn from; make the two equal, or use another support",
      )
    if c.sampling.top_p < 1 or c.sampling.top_k > 0:
      refuse(
        "objective.support",
        "is 'sampled', which estimates a divergence of the distribution that tokens are drawn from, and top_p or top_k "
        "cut that one: set sampling.top_p=1 and sampling.top_k=0, or use another support",
      )
    if o.entry_clip:
      refuse("objective.entry_clip", "is for entries of the vocabulary, and a drawn token has none; use token_clip")
  elif o.estimator != "auto":
    refuse("objective.estimator", f"is {o.estimator!r}, but objective.support is {o.support!r}; it needs 'sampled'")
  elif c.rollout.by != "student":
    refuse(
      "rollout.by",
      f"is {c.rollout.by!r}, so that nothing is on-policy; set objective.support=sampled, objective.kind=forward_kl and "
      "objective.estimator=nll, which learns what is said there",
    )
  if o.discount and not (sampled and estimator(c) == "k1"):
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
  if w.kind in weights.MASKS and w.tokens < 1:
    refuse("weights.tokens", f"is {w.tokens}; weights.kind {w.kind!r} needs at least 1")
  if w.kind == "segment" and w.start >= c.horizon.max:
    refuse(
      "weights.start",
      f"is {w.start}, which no response of at most horizon.max={c.horizon.max} tokens reaches; lower it",
    )
  if chosen_importance(c) != "none":
    if c.sampling.top_p < 1 or c.sampling.top_k > 0:
      refuse(
        "importance.kind",
        "compares the student's distribution with the one sampled from, and top_p or top_k cut the latter: set "
        "sampling.top_p=1 and sampling.top_k=0, or importance.kind=none",
      )
    if not c.importance.cap >= 1:
      refuse("importance.cap", f"is {c.importance.cap}; it has to be at least 1")
    if c.importance.kind == "masked" and c.importance.cap == 1:
      refuse("importance.cap", "is 1, and 'masked' would drop every token whose ratio is not exactly 1; raise it")
  m = c.mixture
  if min(m.divergence, m.reward, m.initial) < 0 or not (m.divergence or m.reward):
    refuse("mixture", "needs coefficients of 0 or more, and divergence or reward above 0")
  if m.reward and c.rollouts_per_prompt < 2:
    refuse(
      "mixture.reward",
      f"is {m.reward} with one rollout per prompt: a reward is judged against the other rollouts of its prompt; set "
      "rollouts_per_prompt to 2 or more",
    )


def estimator(c) -> str:
  """auto: the first that belongs to the kind."""
  if c.objective.estimator != "auto":
    return c.objective.estimator
  return surrogate.ESTIMATORS.get(c.objective.kind, ("k1",))[0]


def chosen_importance(c) -> str:
  """auto: truncated where a rollout is used for more than one update, or was begun before the last one."""
  if c.importance.kind == "auto":
    return "truncated" if c.updates_per_rollout > 1 or c.rollout.ahead else "none"
  return c.importance.kind


def from_config(c, vocab: int) -> Loss:
  """The static loss of a run. `vocab`: ids that all models share."""
  o = c.objective
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
      sampling_temperature=c.sampling.temperature,
      entry_clip=o.entry_clip,
      overlap_k=0 if o.vocab_chunk else c.log.overlap_k,
      chunk=o.chunk,
      vocab_chunk=o.vocab_chunk,
    ),
    weights=Weights(
      kind=c.weights.kind,
      tokens=c.weights.tokens,
      start=c.weights.start,
      end=c.weights.end,
      gamma=c.weights.gamma,
      mean_one=c.weights.mean_one,
      horizon=c.horizon.max,
    ),
    estimator=estimator(c),
    discount=o.discount,
    token_clip=o.token_clip,
    importance=chosen_importance(c),
    level=c.importance.level,
    cap=c.importance.cap,
    normaliser=o.normaliser,
    constant=o.constant or c.horizon.max,
    divergence=c.mixture.divergence,
    reward=c.mixture.reward,
    initial=c.mixture.initial,
  )
