"""Divergences between student and teacher at each position, written densely: the reference for fused.py.

s = student, t = teacher, at one position, over the V ids of the vocabulary:

    reverse_kl   KL(s || t) = sum_v s_v (log s_v - log t_v)                   seeks the teacher's modes
    forward_kl   KL(t || s) = sum_v t_v (log t_v - log s_v)                   covers all the teacher does
    jsd          beta KL(t || m) + (1 - beta) KL(s || m),  m = beta t + (1 - beta) s
                 normalised: divided by beta (1 - beta), and then the forward KL at beta 0 and the reverse KL at beta 1
    proximal     KL(s || p),  p = beta t + (1 - beta) sg(s), a teacher that is near by (TOP-D)
    mixture      beta KL(s || t) + (1 - beta) KL(t || s)

Each is a sum of one entry per id, so each can be taken over fewer of them (`support`): the k most likely ids of the
student, of the teacher, or of either, and the other ids (`tail`) put into one more entry on each side ("bucket"), or
taken out of both distributions ("renormalise"). "reweight" is the estimator of the runs of arXiv:2605.31490: weights
renormalised over the student's k, log-probabilities not; its gradient is that of the reverse KL where k = V and is
biased below.

A divergence is never negative, with two exceptions: `entry_clip` takes the upper part of single entries away (d-OPSD,
PW-OPSD), and "reweight" compares log-probabilities that do not sum to one. Neither is clamped.

Where the teacher gives probability 0 to an id that the student can produce, the reverse KL is infinite; where the
student gives 0 to an id that the teacher can produce, the forward KL is. An id with probability 0 on both sides adds 0.

`weighted_sum` and `token_stats` have the same interface here and in fused.py. Those here make [B, H, V] logits and let
JAX differentiate them.

Dimensions: B rows, H response positions, D width of a model, V vocabulary, K teachers, n entries that are compared.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import log_softmax
from jaxtyping import Array, Bool, Float, Int

from opd_jax.objectives import surrogates
from opd_jax.objectives.entries import DIVERGENCES, expectation, reverse_kl
from opd_jax.objectives.kl_estimators import ESTIMATORS

SUPPORTS = ("full", "student_topk", "teacher_topk", "both_topk", "sampled")
TAILS = ("bucket", "renormalise", "reweight")


@dataclasses.dataclass(frozen=True)
class Objective:
  """The part of `config.objective` that concerns single positions, with temperatures and chunk sizes."""

  vocab: int  # both softmaxes are over the first `vocab` ids; what a model has beyond them is padding
  kind: str = "reverse_kl"
  support: str = "full"  # "sampled": only the drawn token's log-probabilities, see kl_estimators.py
  k: int = 16
  tail: str = "bucket"
  beta: float = 0.5
  normalised: bool = False
  student_temperature: float = 1.0
  teacher_temperature: float = 1.0
  sampling_temperature: float = 1.0  # the rollout's: the drawn token's log-probability is taken at it
  entry_clip: float = 0.0  # largest entry; 0: off
  overlap_k: int = 0  # statistics: top-k overlap of student and teacher; 0: off
  chunk: int = 0  # fused.py: tokens per chunk; 0: chosen there
  vocab_chunk: int = 0  # fused.py: ids per block of the vocabulary; 0: all at once

  topk_distance: str = "topk_tv"  # statistics: the distance to the recorded distribution, see surrogates.topk_distance

  def __post_init__(self):
    kinds = ESTIMATORS if self.support == "sampled" else DIVERGENCES
    if self.kind not in kinds:
      raise ValueError(f"objective kind {self.kind!r} is not one of {', '.join(kinds)}")
    if self.support not in SUPPORTS:
      raise ValueError(f"objective support {self.support!r} is not one of {', '.join(SUPPORTS)}")
    if self.tail not in TAILS:
      raise ValueError(f"objective tail {self.tail!r} is not one of {', '.join(TAILS)}")
    if self.topk and self.vocab_chunk:
      raise ValueError("the most likely ids are looked for in the whole vocabulary at once; leave vocab_chunk at 0")

  @property
  def topk(self) -> bool:
    """True where the support is made of the most likely ids of one side or both."""
    return self.support.endswith("topk")


class HiddenAndHead(NamedTuple):
  """A model's hidden states that predict each response token, and the head that turns them into logits."""

  hidden: Float[Array, "B H D"]
  head: Float[Array, "V D"]


class Recorded(NamedTuple):
  """The most likely ids when a token was drawn, and the log-probabilities at the sampling temperature."""

  ids: Int[Array, "*b k"]
  logprob: Float[Array, "*b k"]
  drawn: Float[Array, "*b"]  # of the drawn token

  def moved(
    self, kind: str, token: Int[Array, "*b"], now: Float[Array, "*b k"], drawn_now: Float[Array, "*b"]
  ) -> Float[Array, "*b"]:
    """Compute how far the distribution has moved, see surrogates.topk_distance; `now` is of the ids."""
    seen = jnp.any(self.ids == token[..., None], axis=-1)
    return surrogates.topk_distance(kind, self.logprob, now, self.drawn, drawn_now, seen)


class FrozenInputs(NamedTuple):
  """The teachers (perhaps none), tokens and mask that the objective compares the student by; without gradient."""

  teachers: tuple[HiddenAndHead, ...]
  token: Int[Array, "B H"]  # the drawn ids
  mask: Bool[Array, "B H"]  # true on generated tokens
  teacher_weight: Float[Array, "B K"] | None = None  # with several teachers, their weights in each row; rows sum to 1
  reference: HiddenAndHead | None = None  # the student before training, for the statistic `initial_kl`
  recorded: Recorded | None = None  # what tokens were drawn from, for the statistic `topk_distance`


class Coefficients(NamedTuple):
  """The derivative of a loss by three statistics of every token; None where the loss does not use the statistic."""

  divergence: Float[Array, "B H"] | None = None
  logprob: Float[Array, "B H"] | None = None
  reference_kl: Float[Array, "B H"] | None = None

  def by_stat(self) -> dict[str, Float[Array, "*b"] | None]:
    """The coefficients under the keys that `token_stats` uses."""
    return {"divergence": self.divergence, "logprob": self.logprob, "initial_kl": self.reference_kl}


TokenStats = dict[str, Float[Array, "B H"]]
TopFn = Callable[[Array, int], Array]  # log-probabilities [*b, V] and k -> the k most likely ids [*b, k]


def weighted_sum(
  objective: Objective, student: HiddenAndHead, inputs: FrozenInputs, coefficients: Coefficients
) -> tuple[Float[Array, ""], TokenStats]:
  """Sum coefficients times statistics over the tokens.

  Gradients flow through `student` only: not through coefficients, teachers or the reference model.

  Returns:
    The sum, and the statistics of `token_stats`, without gradient.
  """
  stats = token_stats(objective, student, inputs)
  total = jnp.zeros(())
  for name, coefficient in coefficients.by_stat().items():
    if coefficient is not None:
      counts = inputs.mask & (coefficient != 0)
      stat = jnp.where(counts, stats[name], 0.0)
      total += jnp.sum(jnp.where(counts, lax.stop_gradient(coefficient) * stat, 0.0))
  return total, lax.stop_gradient(stats)


def token_stats(objective: Objective, student: HiddenAndHead, inputs: FrozenInputs) -> TokenStats:
  """Compute the statistics of every token, each [B, H] in fp32 and 0 outside the mask.

  Returns:
    divergence: the objective, in nats (absent for the sampled support, and without a teacher).
    clipped: the fraction of its entries that were clipped (only with `entry_clip`).
    opposed: 1 where the gradient of the clipped divergence points against that of the whole one (likewise).
    logprob, teacher_logprob: of the drawn token, at the sampling temperature and at the teacher's.
    kl: the full reverse KL, whatever the objective.
    student_entropy, teacher_entropy: in nats. What compares with a teacher is absent where there is none.
    topk_distance: to the distribution that the token was drawn from (only with `recorded`).
    overlap: see `overlap` (only with `overlap_k`).
    initial_kl: KL(student || reference) over the full vocabulary (only with a reference model).
  """
  mask = inputs.mask

  def logits_of(model: HiddenAndHead):
    return logits(model._replace(hidden=jnp.where(mask[..., None], model.hidden, 0.0)), objective.vocab)

  def at_token(log):
    return jnp.take_along_axis(log, inputs.token[..., None], axis=-1)[..., 0]

  frozen_logits = lambda model: lax.stop_gradient(logits_of(model))
  x = logits_of(student)
  s = log_softmax(x / objective.student_temperature)
  teachers = [log_softmax(frozen_logits(teacher) / objective.teacher_temperature) for teacher in inputs.teachers]
  sampled = log_softmax(x / objective.sampling_temperature)
  stats = {"logprob": at_token(sampled), "student_entropy": entropy(s)}
  if teachers:
    t = mix(teachers, inputs.teacher_weight)
    stats |= {
      "teacher_logprob": at_token(t),
      "kl": jnp.sum(reverse_kl(s, t), axis=-1),
      "teacher_entropy": entropy(t),
    }
    if objective.support != "sampled":
      stats["divergence"] = divergence(objective, s, t)
      if objective.entry_clip:
        compared = support(objective, s, t)
        stats["clipped"] = clipped_fraction(objective, *compared)
        stats["opposed"] = opposed(clip_sums(objective, *compared))
    if objective.overlap_k:
      stats["overlap"] = overlap(s, t, objective.overlap_k)
  if inputs.recorded is not None:
    now = jnp.take_along_axis(sampled, inputs.recorded.ids, axis=-1)
    stats["topk_distance"] = inputs.recorded.moved(objective.topk_distance, inputs.token, now, stats["logprob"])
  if inputs.reference is not None:
    reference = log_softmax(frozen_logits(inputs.reference) / objective.student_temperature)
    stats["initial_kl"] = jnp.sum(reverse_kl(s, reference), axis=-1)
  return {name: jnp.where(mask, stat, 0.0) for name, stat in stats.items()}


def divergence(objective: Objective, s: Float[Array, "*b V"], t: Float[Array, "*b V"]) -> Float[Array, "*b"]:
  """Compute the configured divergence, in nats, of log-probabilities normalised over the whole vocabulary."""
  if objective.tail == "reweight" and objective.topk:
    return reweighted_topk(s, t, objective.k)
  return jnp.sum(clip(objective, entries(objective, *support(objective, s, t))), axis=-1)


def entries(objective: Objective, s: Float[Array, "*b n"], t: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
  """Compute what each id adds to the divergence. Some entries are negative; their sum is not."""
  return DIVERGENCES[objective.kind].entries(objective, s, t)


def slopes(objective: Objective, s: Float[Array, "*b n"], t: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
  """Compute d (clipped entry) / d log s of each id, plus a multiple of s, which the softmax projects out again."""
  kind = DIVERGENCES[objective.kind]
  if kind.slopes is None:
    of_student = lambda log: entries(objective, log, t)
    slope, multiple = jax.jvp(of_student, (s,), (jnp.ones_like(s),))[1], 0.0
  else:
    slope, multiple = kind.slopes(objective, s, t), kind.multiple(objective)
  if objective.entry_clip:
    slope = jnp.where(entries(objective, s, t) > objective.entry_clip, multiple * jnp.exp(s), slope)
  return slope


def support(
  objective: Objective, s: Float[Array, "*b V"], t: Float[Array, "*b V"]
) -> tuple[Float[Array, "*b n"], Float[Array, "*b n"]]:
  """Restrict both distributions to the objective's support: all ids, or the chosen ones and perhaps the bucket.

  An id that both sides choose takes part once; its second entry has probability 0 on both sides.
  """
  if not objective.topk:
    if objective.support != "full":
      raise NotImplementedError(f"support {objective.support!r} has no entries")
    return s, t
  check_tail(objective, "bucket", "renormalise")
  ids, chosen = chosen_ids(objective, s, t)
  member = jnp.put_along_axis(jnp.zeros(s.shape, bool), ids, True, axis=-1, inplace=False)

  def restrict(log):
    at_ids = jnp.where(chosen, jnp.take_along_axis(log, ids, axis=-1), -jnp.inf)
    if objective.tail == "renormalise":
      return log_softmax(at_ids)
    bucket = log_sum(jnp.where(member, -jnp.inf, log))
    return jnp.concatenate([at_ids, bucket[..., None]], axis=-1)

  return restrict(s), restrict(t)


def check_tail(objective: Objective, *made: str) -> None:
  """Refuse a tail that the caller does not make, rather than to take it for another one."""
  if objective.tail not in made:
    raise NotImplementedError(f"tail {objective.tail!r} has no entries here")


def chosen_ids(
  objective: Objective, s: Float[Array, "*b V"], t: Float[Array, "*b V"], top_fn: TopFn | None = None
) -> tuple[Int[Array, "*b n"], Bool[Array, "*b n"]]:
  """Find the ids of a top-k support, and mark those that do not repeat an earlier one.

  Args:
    top_fn: finds the most likely ids; chunk.py passes its own where the vocabulary is split over devices. None:
      `most_likely`.
  """
  top_fn = top_fn or most_likely
  k = min(objective.k, objective.vocab)
  if objective.support == "both_topk":
    student_ids, teacher_ids = top_fn(s, k), top_fn(t, k)
    repeated = among(teacher_ids, student_ids)
    ids = jnp.concatenate([student_ids, teacher_ids], axis=-1)
    return ids, jnp.concatenate([jnp.ones_like(repeated), ~repeated], axis=-1)
  if objective.support not in ("student_topk", "teacher_topk"):
    raise NotImplementedError(f"support {objective.support!r} chooses no ids")
  ids = top_fn(s if objective.support == "student_topk" else t, k)
  return ids, jnp.ones(ids.shape, bool)


def most_likely(log: Float[Array, "*b V"], k: int) -> Int[Array, "*b k"]:
  """Find the k ids of the largest log-probabilities, the largest first."""
  return lax.top_k(lax.stop_gradient(log), min(k, log.shape[-1]))[1]


def among(ids: Int[Array, "*b k"], others: Int[Array, "*b n"]) -> Bool[Array, "*b k"]:
  """Test which of the ids occur among the others."""
  return jnp.any(ids[..., :, None] == others[..., None, :], axis=-1)


def reweighted_topk(s: Float[Array, "*b V"], t: Float[Array, "*b V"], k: int) -> Float[Array, "*b"]:
  """Compute the "reweight" estimator: sum_j sg(w_j (log s_j - log t_j)) s_j / sg(s_j) over the student's k most likely.

  w is the softmax of log s over these k, and sg stops the gradient.
  """
  s, ids = lax.top_k(s, min(k, s.shape[-1]))
  cost = lax.stop_gradient(jax.nn.softmax(s, axis=-1) * (s - jnp.take_along_axis(t, ids, axis=-1)))
  return jnp.sum(cost * jnp.exp(s - lax.stop_gradient(s)), axis=-1)


def clip(objective: Objective, entry: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
  """Cut entries of the divergence at the objective's `entry_clip`, if it has one."""
  return jnp.minimum(entry, objective.entry_clip) if objective.entry_clip else entry


def clipped_fraction(objective: Objective, s: Float[Array, "*b n"], t: Float[Array, "*b n"]) -> Float[Array, "*b"]:
  """Compute the fraction of entries above the clip."""
  return jnp.mean(entries(objective, s, t) > objective.entry_clip, axis=-1, dtype=jnp.float32)


def clip_sums(objective: Objective, s: Float[Array, "*b n"], t: Float[Array, "*b n"]) -> Float[Array, "*b 6"]:
  """Compute the sums over entries that `opposed` is made of; those of parts of the vocabulary add up."""
  cut, whole = slopes(objective, s, t), slopes(dataclasses.replace(objective, entry_clip=0.0), s, t)
  p = jnp.exp(s)
  parts = (cut, whole, cut * whole, cut * p, whole * p, p * p)
  return jnp.stack([jnp.sum(part, axis=-1, dtype=jnp.float32) for part in parts], axis=-1)


def opposed(sums: Float[Array, "*b 6"]) -> Float[Array, "*b"]:
  """Tell, 1 or 0, whether a step down the clipped divergence goes up the whole one: their gradients by the logits point apart.

  An entry at the clip has no gradient, so that what is left may raise ids that the student overrates already. By logit v the two
  gradients are c_v - s_v sum(c) and w_v - s_v sum(w), c and w being the slopes; this is the sign of their product. Of a top-k support
  with a tail the bucket counts as one id.
  """
  c, w, cw, cs, ws, ss = jnp.moveaxis(sums, -1, 0)
  return (cw - cs * w - ws * c + ss * c * w < 0).astype(jnp.float32)


def entropy(log: Float[Array, "*b V"]) -> Float[Array, "*b"]:
  """Compute the entropy, in nats, of log-probabilities."""
  return -jnp.sum(expectation(log, log, jnp.zeros_like(log)), axis=-1)


def overlap(
  s: Float[Array, "*b V"], t: Float[Array, "*b V"], k: int, top_fn: TopFn | None = None
) -> Float[Array, "*b"]:
  """Compute the fraction of the student's k most likely ids that are among the teacher's k most likely.

  Args:
    top_fn: see `chosen_ids`.
  """
  top_fn = top_fn or most_likely
  return jnp.mean(among(top_fn(s, k), top_fn(t, k)), axis=-1, dtype=jnp.float32)


def mix(teachers: list[Float[Array, "B H V"]], teacher_weight: Float[Array, "B K"] | None) -> Float[Array, "B H V"]:
  """Mix teachers into one: t = sum_i weight_i t_i. A weight of 1 among zeros selects one teacher exactly."""
  if teacher_weight is None:
    return teachers[0]
  weighted = [t + jnp.log(teacher_weight[:, i, None, None]) for i, t in enumerate(teachers)]
  return log_sum(jnp.stack(weighted, axis=-1))


def log_sum(log: Float[Array, "*b n"]) -> Float[Array, "*b"]:
  """Compute the log of a sum of probabilities; -inf, with zero gradient, where all of them are 0."""
  possible = jnp.any(log > -jnp.inf, axis=-1)
  return jnp.where(possible, jax.nn.logsumexp(jnp.where(possible[..., None], log, 0.0), axis=-1), -jnp.inf)


def logits(model: HiddenAndHead, vocab: int) -> Float[Array, "B H V"]:
  """Compute logits over the first `vocab` ids, in fp32 (in float64 where the hidden states are)."""
  hidden = model.hidden
  dtype = jnp.promote_types(jnp.float32, hidden.dtype)
  return jnp.einsum("bhd,vd->bhv", hidden, model.head[:vocab].astype(hidden.dtype), preferred_element_type=dtype)
