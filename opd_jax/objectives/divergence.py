"""What is compared at each position: the dense reference that people read.

s = student, t = teacher, at one position, over the V ids of the vocabulary:

    reverse_kl   KL(s || t) = sum_v s_v (log s_v - log t_v)                   seeks the teacher's modes
    forward_kl   KL(t || s) = sum_v t_v (log t_v - log s_v)                   covers all the teacher does
    jsd          beta KL(t || m) + (1 - beta) KL(s || m),  m = beta t + (1 - beta) s
                 normalised: divided by beta (1 - beta), and then the forward KL at beta 0 and the reverse KL at beta 1
    mixture      beta KL(s || t) + (1 - beta) KL(t || s)

Each is a sum of one entry per id, so each can be taken over fewer of them (`support`): the k most likely ids of the
student, of the teacher, or of either, and the rest (`tail`) put into one more entry on each side ("bucket"), or taken
out of both distributions ("renormalise"). "reweight" is the estimator of the runs of arXiv:2605.31490: weights
renormalised over the student's k, log-probabilities not; its gradient is that of the reverse KL where k = V and is
biased below.

A divergence is never negative, with two exceptions: `entry_clip` takes the upper part of single entries away (d-OPSD,
PW-OPSD), and "reweight" compares log-probabilities that do not sum to one. Neither is clamped.

Where the teacher gives nothing to an id that the student can say, the reverse KL is infinite, and where the student
cannot say what the teacher does, the forward KL is; an id that neither can say adds nothing.

`weighted` here and in fused.py are one interface: this one makes [B, H, V] and lets JAX differentiate it.

Dimensions: B rows, H response positions, D width of a model, V vocabulary, K teachers, n entries that are compared.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import log_softmax
from jaxtyping import Array, Bool, Float, Int

KINDS = ("reverse_kl", "forward_kl", "jsd", "mixture")
SUPPORTS = ("full", "student_topk", "teacher_topk", "both_topk", "sampled")
TAILS = ("bucket", "renormalise", "reweight")
TINY = 1e-38


@dataclasses.dataclass(frozen=True)
class Objective:
  """`config.objective`, as far as it concerns single positions, and what reading them needs to know."""

  vocab: int  # both softmaxes are over the first `vocab` ids; what a model has beyond them is padding
  kind: str = "reverse_kl"
  support: str = "full"  # "sampled": only the drawn token's log-probabilities, see surrogate.py
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

  def __post_init__(self):
    if self.topk and self.vocab_chunk:
      raise ValueError("the most likely ids are looked for in the whole vocabulary at once; leave vocab_chunk at 0")

  @property
  def topk(self) -> bool:
    return self.support.endswith("topk")


class Readout(NamedTuple):
  """What a model thinks before every response token: hidden states, and the head that turns them into logits."""

  hidden: Float[Array, "B H D"]
  head: Float[Array, "V D"]


class Coefficients(NamedTuple):
  """What a loss is made of: its derivative by three readings of every token (None: not part of it)."""

  divergence: Float[Array, "B H"] | None = None
  logprob: Float[Array, "B H"] | None = None
  initial_kl: Float[Array, "B H"] | None = None


Readings = dict[str, Float[Array, "B H"]]
Top = Callable[[Array, int], Array]  # log-probabilities [*b, V] and k -> the k most likely ids [*b, k]


def weighted(
  objective: Objective,
  student: Readout,
  teachers: tuple[Readout, ...],
  token: Int[Array, "B H"],
  mask: Bool[Array, "B H"],
  coefficients: Coefficients,
  *,
  teacher_weight: Float[Array, "B K"] | None = None,
  initial: Readout | None = None,
) -> tuple[Float[Array, ""], Readings]:
  """The sum over tokens of coefficients times readings, and the readings (without gradient, 0 outside the mask).

  Gradients flow through `student` only: not through coefficients, teachers or the initial student.

  Args:
    teacher_weight: with several teachers, the weight of each for each row; rows sum to 1.
    initial: the student before training, for `initial_kl`.
  """
  found = read(objective, student, teachers, token, mask, teacher_weight=teacher_weight, initial=initial)
  total = jnp.zeros(())
  for name, c in coefficients._asdict().items():
    if c is not None:
      counts = mask & (c != 0)
      total += jnp.sum(jnp.where(counts, lax.stop_gradient(c) * jnp.where(counts, found[name], 0.0), 0.0))
  return total, lax.stop_gradient(found)


def read(
  objective: Objective,
  student: Readout,
  teachers: tuple[Readout, ...],
  token: Int[Array, "B H"],
  mask: Bool[Array, "B H"],
  *,
  teacher_weight: Float[Array, "B K"] | None = None,
  initial: Readout | None = None,
) -> Readings:
  """Per token and 0 outside the mask:

  divergence: the objective (absent for the sampled support); clipped: the share of its entries that were clipped.
  logprob, teacher_logprob: of the drawn token, at the sampling temperature and at the teacher's.
  kl: the full reverse KL whatever the objective; student_entropy, teacher_entropy; overlap.
  initial_kl: KL(student || initial student) over the full vocabulary.
  """
  real = lambda r: logits(r._replace(hidden=jnp.where(mask[..., None], r.hidden, 0.0)), objective.vocab)
  frozen = lambda r: lax.stop_gradient(real(r))
  x = real(student)
  s = log_softmax(x / objective.student_temperature)
  t = mix([log_softmax(frozen(r) / objective.teacher_temperature) for r in teachers], teacher_weight)
  of = lambda log: jnp.take_along_axis(log, token[..., None], axis=-1)[..., 0]
  out = {
    "logprob": of(log_softmax(x / objective.sampling_temperature)),
    "teacher_logprob": of(t),
    "kl": jnp.sum(reverse_kl(s, t), axis=-1),
    "student_entropy": entropy(s),
    "teacher_entropy": entropy(t),
  }
  if objective.support != "sampled":
    out["divergence"] = divergence(objective, s, t)
    if objective.entry_clip:
      out["clipped"] = clipped(objective, *support(objective, s, t))
  if objective.overlap_k:
    out["overlap"] = overlap(s, t, objective.overlap_k)
  if initial is not None:
    out["initial_kl"] = jnp.sum(reverse_kl(s, log_softmax(frozen(initial) / objective.student_temperature)), axis=-1)
  return {name: jnp.where(mask, a, 0.0) for name, a in out.items()}


def divergence(objective: Objective, s: Float[Array, "*b V"], t: Float[Array, "*b V"]) -> Float[Array, "*b"]:
  """The configured divergence of normalised log-probabilities over the whole vocabulary, in nats."""
  if objective.tail == "reweight" and objective.topk:
    return reweighted_topk(s, t, objective.k)
  return jnp.sum(clip(objective, entries(objective, *support(objective, s, t))), axis=-1)


def entries(objective: Objective, s: Float[Array, "*b n"], t: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
  """What each id adds to the divergence. Some entries are negative; their sum is not."""
  match objective.kind:
    case "reverse_kl":
      return reverse_kl(s, t)
    case "forward_kl":
      return forward_kl(s, t)
    case "jsd":
      return jsd(s, t, objective.beta, objective.normalised)
    case "mixture":
      return objective.beta * reverse_kl(s, t) + (1 - objective.beta) * forward_kl(s, t)
  raise ValueError(f"objective kind {objective.kind!r} is not one of {', '.join(KINDS)}")


def reverse_kl(s: Float[Array, "*b n"], t: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
  """Entries of KL(student || teacher)."""
  return _expectation(s, s, t)


def forward_kl(s: Float[Array, "*b n"], t: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
  """Entries of KL(teacher || student)."""
  return _expectation(t, t, s)


def jsd(s: Float[Array, "*b n"], t: Float[Array, "*b n"], beta: float, normalised: bool) -> Float[Array, "*b n"]:
  """Entries of beta KL(t || m) + (1 - beta) KL(s || m), m = beta t + (1 - beta) s (arXiv:2306.13649).

  As published it is 0 for everything at beta 0 and 1, and at most log 2. Normalised it meets the two KLs there.
  """
  if normalised and beta in (0, 1):
    return forward_kl(s, t) if beta == 0 else reverse_kl(s, t)
  to_student, to_teacher = log_ratios_to_mean(s, t, beta)
  nothing = jnp.zeros_like(s)
  both = beta * _expectation(t, to_teacher, nothing) + (1 - beta) * _expectation(s, to_student, nothing)
  return both / (beta * (1 - beta)) if normalised else both


def log_ratios_to_mean(
  s: Float[Array, "*b n"], t: Float[Array, "*b n"], beta: float
) -> tuple[Float[Array, "*b n"], Float[Array, "*b n"]]:
  """log s - log m and log t - log m, m = beta t + (1 - beta) s: that of the side which m is near by its exact form."""
  if beta <= 0.5:
    near = log_ratio_to_mean(s, t, beta)
    return near, jnp.where(s > -jnp.inf, near + (t - s), -math.log(max(beta, TINY)))
  near = log_ratio_to_mean(t, s, 1 - beta)
  return jnp.where(t > -jnp.inf, near + (s - t), -math.log(max(1 - beta, TINY))), near


def log_ratio_to_mean(a: Float[Array, "*b n"], b: Float[Array, "*b n"], weight: float) -> Float[Array, "*b n"]:
  """a - log(weight exp(b) + (1 - weight) exp(a)): exactly 0 between equals, and exact for small weights too.

  Means nothing where exp(a) is 0, and is finite there.
  """
  gap = jnp.where(a > -jnp.inf, b - jnp.where(a > -jnp.inf, a, 0.0), 0.0)
  far = gap > 30  # then seen from the larger one, before the exponential overflows
  near = jnp.log1p(weight * jnp.expm1(jnp.where(far, 0.0, gap)))
  beyond = gap + jnp.log1p((1 - weight) * jnp.expm1(jnp.where(far, -gap, 0.0)))
  return -jnp.where(far, beyond, near)


def _expectation(p: Float[Array, "*b n"], a: Float[Array, "*b n"], b: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
  """exp(p) (a - b), and 0 where the probability is 0, in value and gradient."""
  there = p > -jnp.inf
  safe = lambda x: jnp.where(there, x, 0.0)
  return safe(jnp.exp(safe(p)) * (safe(a) - safe(b)))


def support(
  objective: Objective, s: Float[Array, "*b V"], t: Float[Array, "*b V"]
) -> tuple[Float[Array, "*b n"], Float[Array, "*b n"]]:
  """The two distributions that are compared: over all ids, or over the chosen ones and perhaps the bucket.

  An id that both sides choose takes part once; its second entry has probability 0 on both sides.
  """
  if not objective.topk:
    return s, t
  ids, chosen = chosen_ids(objective, s, t)
  member = jnp.put_along_axis(jnp.zeros(s.shape, bool), ids, True, axis=-1, inplace=False)

  def of(log):
    at = jnp.where(chosen, jnp.take_along_axis(log, ids, axis=-1), -jnp.inf)
    if objective.tail == "renormalise":
      return log_softmax(at)
    return jnp.concatenate([at, log_sum(jnp.where(member, -jnp.inf, log))[..., None]], axis=-1)

  return of(s), of(t)


def chosen_ids(
  objective: Objective, s: Float[Array, "*b V"], t: Float[Array, "*b V"], top: Top | None = None
) -> tuple[Int[Array, "*b n"], Bool[Array, "*b n"]]:
  """The ids of the support, and which of them do not repeat an earlier one.

  Args:
    top: finds the most likely ids; where the vocabulary lies on several devices, chunk.py knows how.
  """
  top = top or most_likely
  k = min(objective.k, objective.vocab)
  if objective.support == "both_topk":
    mine, other = top(s, k), top(t, k)
    again = among(other, mine)
    return jnp.concatenate([mine, other], axis=-1), jnp.concatenate([jnp.ones_like(again), ~again], axis=-1)
  ids = top(s if objective.support == "student_topk" else t, k)
  return ids, jnp.ones(ids.shape, bool)


def most_likely(log: Float[Array, "*b V"], k: int) -> Int[Array, "*b k"]:
  return lax.top_k(lax.stop_gradient(log), min(k, log.shape[-1]))[1]


def among(ids: Int[Array, "*b k"], others: Int[Array, "*b n"]) -> Bool[Array, "*b k"]:
  """Which of the ids stand among the others."""
  return jnp.any(ids[..., :, None] == others[..., None, :], axis=-1)


def reweighted_topk(s: Float[Array, "*b V"], t: Float[Array, "*b V"], k: int) -> Float[Array, "*b"]:
  """sum_j sg(w_j (log s_j - log t_j)) s_j / sg(s_j) over the student's k, w = softmax over the k of log s."""
  s, ids = lax.top_k(s, min(k, s.shape[-1]))
  cost = lax.stop_gradient(jax.nn.softmax(s, axis=-1) * (s - jnp.take_along_axis(t, ids, axis=-1)))
  return jnp.sum(cost * jnp.exp(s - lax.stop_gradient(s)), axis=-1)


def clip(objective: Objective, found: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
  """Entries no larger than the clip."""
  return jnp.minimum(found, objective.entry_clip) if objective.entry_clip else found


def clipped(objective: Objective, s: Float[Array, "*b n"], t: Float[Array, "*b n"]) -> Float[Array, "*b"]:
  """The share of entries above the clip."""
  return jnp.mean(entries(objective, s, t) > objective.entry_clip, axis=-1, dtype=jnp.float32)


def entropy(log: Float[Array, "*b V"]) -> Float[Array, "*b"]:
  return -jnp.sum(_expectation(log, log, jnp.zeros_like(log)), axis=-1)


def overlap(s: Float[Array, "*b V"], t: Float[Array, "*b V"], k: int, top: Top | None = None) -> Float[Array, "*b"]:
  """|top-k of the student and top-k of the teacher| / k."""
  top = top or most_likely
  return jnp.mean(among(top(s, k), top(t, k)), axis=-1, dtype=jnp.float32)


def mix(teachers: list[Float[Array, "B H V"]], teacher_weight: Float[Array, "B K"] | None) -> Float[Array, "B H V"]:
  """Several teachers as one: t = sum_i weight_i t_i. A weight of 1 and zeros choose one of them exactly."""
  if teacher_weight is None:
    return teachers[0]
  return log_sum(jnp.stack([t + jnp.log(teacher_weight[:, i, None, None]) for i, t in enumerate(teachers)], axis=-1))


def log_sum(log: Float[Array, "*b n"]) -> Float[Array, "*b"]:
  """Log of a sum of probabilities; -inf, with zero gradient, where there is none."""
  there = jnp.any(log > -jnp.inf, axis=-1)
  return jnp.where(there, jax.nn.logsumexp(jnp.where(there[..., None], log, 0.0), axis=-1), -jnp.inf)


def logits(r: Readout, vocab: int) -> Float[Array, "B H V"]:
  """Over the shared ids, in fp32 (float64 where the hidden states are)."""
  dtype = jnp.promote_types(jnp.float32, r.hidden.dtype)
  return jnp.einsum("bhd,vd->bhv", r.hidden, r.head[:vocab].astype(r.hidden.dtype), preferred_element_type=dtype)
