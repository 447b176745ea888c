"""The objective of one chunk of tokens: its readings, and the gradient of their weighted sum by the logits.

What is wanted of the vocabulary is a maximum or a sum over it. So the ids may lie on several devices (`axis`) or come
block by block (`Objective.vocab_chunk`): each part adds its share.

The derivative of an entry by log s_v is known up to a multiple of s_v, which the softmax projects out. With the multiple
that makes it vanish between equals, `slopes`, a student that is its own teacher gets a gradient of exactly zero.

Dimensions: N tokens of the chunk, D width of a model, v ids on this device or in this block, k chosen ids, n entries.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from opd_jax.objectives import divergence
from opd_jax.objectives.divergence import Coefficients, Objective


class Tokens(NamedTuple):
  """One entry per token; padding has coefficients of zero."""

  student: Float[Array, "N D"]
  teachers: tuple[Float[Array, "N E"], ...]
  initial: Float[Array, "N D"] | None
  token: Int[Array, "N"]
  coefficients: Coefficients  # of [N]
  teacher_weight: Float[Array, "N K"] | None


class Heads(NamedTuple):
  """The rows of each head that this device or block has; the first of them belongs to the id `first`."""

  student: Float[Array, "v D"]
  teachers: tuple[Float[Array, "v E"], ...]
  initial: Float[Array, "v D"] | None
  first: Int[Array, ""]


class Logs(NamedTuple):
  """Logits, or log-probabilities, at the ids of `Heads`."""

  student: Float[Array, "N v"]
  sampled: Float[Array, "N v"] | None  # the student at the sampling temperature; None: the same as `student`
  teachers: tuple[Float[Array, "N v"], ...]
  initial: Float[Array, "N v"] | None


class Picked(NamedTuple):
  """What a top-k support compares, the same on every device."""

  local: Int[Array, "N k"]  # index of each chosen id among this device's, v where another has it
  student: Float[Array, "N n"]
  teacher: Float[Array, "N n"]
  rest: Float[Array, "N v"] | None  # log-probabilities of the ids in the bucket, the others -inf


@dataclasses.dataclass(frozen=True)
class Chunk:
  """What is static in the work on one chunk."""

  objective: Objective
  axis: str | None  # mesh axis over which the vocabulary lies
  readings: bool
  gradient: bool

  def __call__(self, x: Tokens, heads: Heads):
    """The weighted sum; the readings [N]; the gradients [N, D] and [v, D] of the sum, or None.

    The hidden states' gradient is this device's share of it, to be summed over the axis.
    """
    block = self.objective.vocab_chunk
    if block and block < heads.student.shape[0]:
      return self.by_block(x, heads, block)
    logs = self.logits(x, heads)
    logs = normalise(logs, self.log_sums(logs))
    found = self.over_vocab(self.sums(x, logs, heads.first))
    picked = None
    if self.objective.topk and logs.teachers:
      picked = self.support(logs.student, self.teacher(x, logs), heads.first)
      found |= self.compare(picked)
    if self.readings and self.objective.overlap_k:
      top = functools.partial(self.top, first=heads.first)
      k = min(self.objective.overlap_k, self.objective.vocab)
      found["overlap"] = divergence.overlap(logs.student, self.teacher(x, logs), k, top)
    d_hidden = d_head = None
    if self.gradient:
      d = self.derivative(x, logs, found, heads.first, picked)
      d_hidden, d_head = pull(d, x.student, heads.student)
    return self.total(x, found), self.report(found), d_hidden, d_head

  def by_block(self, x: Tokens, heads: Heads, block: int):
    """The same with no more than [N, block] logits at a time: once over the vocabulary for its log-sums, once for the
    sums, once for the gradient."""
    blocks = jax.tree.map(lambda w: split(w, block), heads._replace(first=None))
    blocks = blocks._replace(first=heads.first + block * jnp.arange(heads.student.shape[0] // block))
    one = jax.tree.map(lambda a: a[0], blocks)

    def fold(f, combine, start: float):
      """f of every block, combined."""
      nothing = jax.tree.map(lambda a: jnp.full(a.shape, start, a.dtype), jax.eval_shape(f, one))
      return lax.scan(lambda so_far, b: (jax.tree.map(combine, so_far, f(b)), None), nothing, blocks)[0]

    log_sums = fold(lambda b: jax.tree.map(local_log_sum, self.logits(x, b)), jnp.logaddexp, -jnp.inf)
    log_sums = jax.tree.map(self.log_sum_over_vocab, log_sums)
    logs = lambda b: normalise(self.logits(x, b), log_sums)
    found = self.over_vocab(fold(lambda b: self.sums(x, logs(b), b.first), jnp.add, 0.0))
    d_hidden = d_head = None
    if self.gradient:

      def back(d_hidden, b: Heads):
        d = self.derivative(x, logs(b), found, b.first, None)
        more, d_head = pull(d, x.student, b.student)
        return d_hidden + more, d_head

      d_hidden, d_head = lax.scan(back, jnp.zeros(x.student.shape, jnp.float32), blocks)
      d_head = d_head.reshape(heads.student.shape)
    return self.total(x, found), self.report(found), d_hidden, d_head

  def logits(self, x: Tokens, heads: Heads) -> Logs:
    """At the temperatures of the objective; ids beyond the vocabulary, which pad the last device's, get -inf."""
    o = self.objective
    beyond = heads.first + jnp.arange(heads.student.shape[0]) >= o.vocab

    def of(hidden, head, temperature):
      a = jnp.einsum("nd,vd->nv", hidden, head, preferred_element_type=jnp.float32)
      return jnp.where(beyond, -jnp.inf, a if temperature == 1 else a / temperature)

    s = of(x.student, heads.student, o.student_temperature)
    same = o.sampling_temperature == o.student_temperature
    sampled = None if same else s * (o.student_temperature / o.sampling_temperature)
    teachers, initial = (), None
    if self.readings or x.coefficients.divergence is not None:
      teachers = tuple(of(h, w, o.teacher_temperature) for h, w in zip(x.teachers, heads.teachers, strict=True))
    if x.initial is not None:
      initial = of(x.initial, heads.initial, o.student_temperature)
    return Logs(s, sampled, teachers, initial)

  def log_sums(self, logs: Logs) -> Logs:
    """Logarithm of the sum over the whole vocabulary, [N] each."""
    return jax.tree.map(lambda a: self.log_sum_over_vocab(local_log_sum(a)), logs)

  def log_sum_over_vocab(self, part: Float[Array, "N"]) -> Float[Array, "N"]:
    if self.axis is None:
      return part
    most = lax.pmax(part, self.axis)
    finite = jnp.where(most > -jnp.inf, most, 0.0)
    return finite + jnp.log(lax.psum(jnp.exp(part - finite), self.axis))

  def over_vocab(self, tree):
    return tree if self.axis is None else lax.psum(tree, self.axis)

  def teacher(self, x: Tokens, logs: Logs) -> Float[Array, "N v"]:
    """`divergence.mix`."""
    if x.teacher_weight is None:
      return logs.teachers[0]
    t = jnp.full_like(logs.teachers[0], -jnp.inf)
    for i, one in enumerate(logs.teachers):
      t = jnp.logaddexp(t, one + jnp.log(x.teacher_weight[:, i, None]))
    return t

  def sums(self, x: Tokens, logs: Logs, first: Int[Array, ""]) -> dict[str, Float[Array, "N"]]:
    """What is a sum over the vocabulary: this device's or block's part of it."""
    o, s = self.objective, logs.student
    sum_ = lambda a: jnp.sum(a, axis=-1, dtype=jnp.float32)
    drawn = x.token[:, None] == first + jnp.arange(s.shape[-1])
    of_token = lambda log: sum_(jnp.where(drawn, log, 0.0))
    out = {"logprob": of_token(s if logs.sampled is None else logs.sampled)}
    if logs.initial is not None:
      out["initial_kl"] = sum_(divergence.reverse_kl(s, logs.initial))
    if logs.teachers:
      t = self.teacher(x, logs)
      if self.readings:
        out["teacher_logprob"] = of_token(t)
        out["kl"] = sum_(divergence.reverse_kl(s, t))
        out["student_entropy"], out["teacher_entropy"] = (-sum_(jnp.exp(log) * finite(log)) for log in (s, t))
      if o.support == "full":
        found = divergence.entries(o, s, t)
        out["divergence"] = sum_(divergence.clip(o, found))
        if self.gradient:
          out["slope"] = sum_(slopes(o, s, t))
        if o.entry_clip:
          out["clipped"] = sum_(found > o.entry_clip) / o.vocab
    return out

  def total(self, x: Tokens, found: dict[str, Float[Array, "N"]]) -> Float[Array, ""]:
    used = ((c, found[name]) for name, c in x.coefficients._asdict().items() if c is not None)
    return sum((jnp.sum(jnp.where(c != 0, c * a, 0.0)) for c, a in used), jnp.zeros((), jnp.float32))

  def report(self, found: dict[str, Float[Array, "N"]]) -> dict[str, Float[Array, "N"]]:
    return {name: a for name, a in found.items() if name != "slope"} if self.readings else {}

  def derivative(
    self, x: Tokens, logs: Logs, found: dict[str, Float[Array, "N"]], first: Int[Array, ""], picked: Picked | None
  ) -> Float[Array, "N v"]:
    """d (weighted sum) / d logits of the student, before its temperatures."""
    o, s, c = self.objective, logs.student, x.coefficients
    d = jnp.zeros(s.shape, jnp.float32)
    if c.divergence is not None:
      if picked is None:
        by_log = slopes(o, s, self.teacher(x, logs)) - jnp.exp(s) * found["slope"][:, None]
      else:
        by_log = self.picked_derivative(s, picked)
      d += scaled(c.divergence / o.student_temperature, by_log)
    if c.initial_kl is not None and logs.initial is not None:
      by_log = divergence.reverse_kl(s, logs.initial) - jnp.exp(s) * found["initial_kl"][:, None]
      d += scaled(c.initial_kl / o.student_temperature, by_log)
    if c.logprob is not None:
      drawn = x.token[:, None] == first + jnp.arange(s.shape[-1])
      by_log = drawn - jnp.exp(s if logs.sampled is None else logs.sampled)
      d += scaled(c.logprob / o.sampling_temperature, by_log)
    return d

  def support(self, s: Float[Array, "N v"], t: Float[Array, "N v"], first: Int[Array, ""]) -> Picked:
    """`divergence.support` for ids that lie on several devices."""
    o, v = self.objective, s.shape[-1]
    ids, chosen = divergence.chosen_ids(o, s, t, functools.partial(self.top, first=first))
    local = ids - first
    local = jnp.where((local >= 0) & (local < v), local, v)

    def at(log):
      here = jnp.take_along_axis(log, jnp.minimum(local, v - 1), axis=1)
      return jnp.where(chosen, self.over_vocab(jnp.where(local < v, here, 0.0)), -jnp.inf)

    s_at, t_at = at(s), at(t)
    if o.tail == "reweight":
      return Picked(local, s_at, t_at, None)
    if o.tail == "renormalise":
      return Picked(local, jax.nn.log_softmax(s_at), jax.nn.log_softmax(t_at), None)
    row = jnp.arange(s.shape[0])[:, None]
    rest = [log.at[row, local].set(-jnp.inf, mode="drop") for log in (s, t)]
    bucket = lambda log: self.log_sum_over_vocab(local_log_sum(log))[:, None]
    s_at, t_at = (jnp.concatenate([a, bucket(r)], axis=1) for a, r in zip((s_at, t_at), rest, strict=True))
    return Picked(local, s_at, t_at, rest[0])

  def compare(self, picked: Picked) -> dict[str, Float[Array, "N"]]:
    o = self.objective
    if o.tail == "reweight":
      return {"divergence": jnp.sum(reweighted(picked), axis=-1)}
    found = divergence.entries(o, picked.student, picked.teacher)
    out = {"divergence": jnp.sum(divergence.clip(o, found), axis=-1)}
    if o.entry_clip:
      out["clipped"] = jnp.mean(found > o.entry_clip, axis=-1, dtype=jnp.float32)
    return out

  def picked_derivative(self, s: Float[Array, "N v"], picked: Picked) -> Float[Array, "N v"]:
    """From slopes by the chosen log-probabilities to the derivative by this device's logits."""
    k = picked.local.shape[1]
    if self.objective.tail == "reweight":
      at = reweighted(picked)
      d = -jnp.exp(s) * jnp.sum(at, axis=-1, keepdims=True)
    else:
      by_log = slopes(self.objective, picked.student, picked.teacher)
      total = jnp.sum(by_log, axis=-1, keepdims=True)
      at = by_log[:, :k]
      if picked.rest is None:
        d, at = jnp.zeros_like(s), at - jnp.exp(picked.student) * total
      else:
        d = by_log[:, k:] * jnp.exp(picked.rest - finite(picked.student[:, k:])) - jnp.exp(s) * total
    return d.at[jnp.arange(s.shape[0])[:, None], picked.local].add(at, mode="drop")

  def top(self, log: Float[Array, "N v"], k: int, first: Int[Array, ""]) -> Int[Array, "N k"]:
    """The k most likely ids of the whole vocabulary."""
    most, ids = lax.top_k(log, min(k, log.shape[-1]))
    ids += first
    if self.axis is not None:
      most, ids = (lax.all_gather(a, self.axis, axis=1, tiled=True) for a in (most, ids))
      ids = jnp.take_along_axis(ids, lax.top_k(most, k)[1], axis=1)
    return ids


def slopes(o: Objective, s: Float[Array, "N n"], t: Float[Array, "N n"]) -> Float[Array, "N n"]:
  """Derivative of `divergence.entries`, clipped, by log s, plus a multiple of s that makes it 0 where s = t."""
  p = jnp.exp(s)
  kind = o.kind
  if kind == "jsd" and o.normalised and o.beta in (0, 1):
    kind = "forward_kl" if o.beta == 0 else "reverse_kl"
  if kind == "reverse_kl":
    out, added = divergence.reverse_kl(s, t), -1.0
  elif kind == "forward_kl":
    out, added = p - jnp.exp(t), 1.0
  elif kind == "mixture":
    out = o.beta * divergence.reverse_kl(s, t) + (1 - o.beta) * (p - jnp.exp(t))
    added = 1 - 2 * o.beta
  else:
    out, added = (1 - o.beta) * p * divergence.log_ratios_to_mean(s, t, o.beta)[0], 0.0
    out = out / (o.beta * (1 - o.beta)) if o.normalised else out
  if o.entry_clip:
    out = jnp.where(divergence.entries(o, s, t) > o.entry_clip, added * p, out)
  return out


def reweighted(picked: Picked) -> Float[Array, "N k"]:
  """Terms of `divergence.reweighted_topk`, which are also their derivatives."""
  return jax.nn.softmax(picked.student, axis=-1) * (picked.student - picked.teacher)


def pull(d: Float[Array, "N v"], hidden: Float[Array, "N D"], head: Float[Array, "v D"]):
  """Gradients of hidden states and head, accumulated in fp32."""
  d = d.astype(hidden.dtype)
  d_hidden = jnp.einsum("nv,vd->nd", d, head, preferred_element_type=jnp.float32)
  return d_hidden, jnp.einsum("nv,nd->vd", d, hidden, preferred_element_type=jnp.float32)


def scaled(c: Float[Array, "N"], by_log: Float[Array, "N v"]) -> Float[Array, "N v"]:
  """Nothing where the coefficient is 0, whatever stands there: padding, or a divergence that is infinite."""
  return jnp.where((c != 0)[:, None], c[:, None] * by_log, 0.0)


def normalise(logs: Logs, log_sums: Logs) -> Logs:
  return jax.tree.map(lambda a, z: a - finite(z)[:, None], logs, log_sums)


def local_log_sum(a: Float[Array, "N v"]) -> Float[Array, "N"]:
  """logsumexp, and -inf where there is nothing."""
  most = jnp.max(a, axis=-1)
  return finite(most) + jnp.log(jnp.sum(jnp.exp(a - finite(most)[:, None]), axis=-1))


def finite(log: Float[Array, "*b"]) -> Float[Array, "*b"]:
  """-inf as 0, where a probability of 0 stands before it."""
  return jnp.where(log > -jnp.inf, log, 0.0)


def split(a: Array, size: int) -> Array:
  """[n, ...] -> [parts, size, ...], padded with zeros at the end."""
  a = jnp.pad(a, ((0, -a.shape[0] % size), *((0, 0),) * (a.ndim - 1)))
  return a.reshape(-1, size, *a.shape[1:])
