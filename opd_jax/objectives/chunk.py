"""The objective of one chunk of tokens: its statistics, and the gradient of their weighted sum by the logits.

Everything is computed from maxima and sums over the vocabulary. So the ids may lie on several devices (`axis`) or come
block by block (`Objective.vocab_chunk`): each part adds its share.

The derivative of an entry by log s_v is known up to a multiple of s_v, which the softmax projects out. With the
multiple that makes it 0 where both sides are equal (`divergence.slopes`), a student that is its own teacher gets a gradient
of exactly zero.

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
from opd_jax.objectives.divergence import Coefficients, Objective, Recorded


class Tokens(NamedTuple):
  """The tokens of a chunk, one entry each; padding has coefficients of zero."""

  student: Float[Array, "N D"]
  teachers: tuple[Float[Array, "N E"], ...]
  reference: Float[Array, "N D"] | None
  token: Int[Array, " N"]
  coefficients: Coefficients  # each [N]
  teacher_weight: Float[Array, "N K"] | None
  recorded: Recorded | None


class Heads(NamedTuple):
  """The rows of each head that lie on this device or in this block, for the ids from `first_id` on."""

  student: Float[Array, "v D"]
  teachers: tuple[Float[Array, "v E"], ...]
  reference: Float[Array, "v D"] | None
  first_id: Int[Array, ""]


class Logs(NamedTuple):
  """Logits, or log-probabilities, of all models at the ids of `Heads`."""

  student: Float[Array, "N v"]
  sampled: Float[Array, "N v"] | None  # the student at the sampling temperature; None: the same as `student`
  teachers: tuple[Float[Array, "N v"], ...]
  reference: Float[Array, "N v"] | None


class TopK(NamedTuple):
  """The two distributions that a top-k support compares, the same on every device."""

  local: Int[Array, "N k"]  # index of each chosen id among this device's ids; v where another device has it
  student: Float[Array, "N n"]
  teacher: Float[Array, "N n"]
  bucket: Float[Array, "N v"] | None  # the student's log-probabilities of the ids in the bucket, -inf elsewhere


@dataclasses.dataclass(frozen=True)
class Chunk:
  """The static settings of the work on one chunk."""

  objective: Objective
  axis: str | None  # mesh axis over which the vocabulary lies
  with_stats: bool
  with_gradient: bool

  def __call__(self, x: Tokens, heads: Heads):
    """Compute the weighted sum, the statistics and the gradient of the sum.

    Returns:
      The sum; the statistics, [N] each; the gradients by hidden states [N, D] and head [v, D], or None. The hidden
      states' gradient is this device's part of it, to be summed over the axis.
    """
    block = self.objective.vocab_chunk
    if block and block < heads.student.shape[0]:
      return self.by_block(x, heads, block)
    logs = self.logits(x, heads)
    logs = normalise(logs, self.log_sums(logs))
    stats = self.psum_vocab(self.vocab_sums(x, logs, heads.first_id))
    topk = None
    if self.objective.topk and logs.teachers:
      topk = self.topk_support(logs.student, self.teacher(x, logs), heads.first_id)
      stats |= self.topk_stats(topk)
    if self.with_stats and self.objective.overlap_k and logs.teachers:
      top_fn = functools.partial(self.top_ids, first_id=heads.first_id)
      k = min(self.objective.overlap_k, self.objective.vocab)
      stats["overlap"] = divergence.overlap(logs.student, self.teacher(x, logs), k, top_fn)
    d_hidden = d_head = None
    if self.with_gradient:
      d_logits = self.derivative(x, logs, stats, heads.first_id, topk)
      d_hidden, d_head = head_vjp(d_logits, x.student, heads.student)
    return self.total(x, stats), self.report(x, stats), d_hidden, d_head

  def by_block(self, x: Tokens, heads: Heads, block: int):
    """Compute what `__call__` does with no more than [N, block] logits at a time.

    It goes over the vocabulary three times: for its log-sums, for the sums, and for the gradient.
    """
    blocks = jax.tree.map(lambda head: split(head, block), heads._replace(first_id=None))
    blocks = blocks._replace(first_id=heads.first_id + block * jnp.arange(heads.student.shape[0] // block))
    first_block = jax.tree.map(lambda a: a[0], blocks)

    def fold(f, combine, start: float):
      """Combine the results of f over all blocks."""
      start_values = jax.tree.map(lambda a: jnp.full(a.shape, start, a.dtype), jax.eval_shape(f, first_block))
      return lax.scan(lambda so_far, b: (jax.tree.map(combine, so_far, f(b)), None), start_values, blocks)[0]

    log_sums = fold(lambda b: jax.tree.map(local_log_sum, self.logits(x, b)), jnp.logaddexp, -jnp.inf)
    log_sums = jax.tree.map(self.log_sum_over_vocab, log_sums)
    logs = lambda b: normalise(self.logits(x, b), log_sums)
    stats = self.psum_vocab(fold(lambda b: self.vocab_sums(x, logs(b), b.first_id), jnp.add, 0.0))
    d_hidden = d_head = None
    if self.with_gradient:

      def backward(d_hidden, b: Heads):
        d_logits = self.derivative(x, logs(b), stats, b.first_id, None)
        d_hidden_part, d_head = head_vjp(d_logits, x.student, b.student)
        return d_hidden + d_hidden_part, d_head

      d_hidden, d_head = lax.scan(backward, jnp.zeros(x.student.shape, jnp.float32), blocks)
      d_head = d_head.reshape(heads.student.shape)
    return self.total(x, stats), self.report(x, stats), d_hidden, d_head

  def logits(self, x: Tokens, heads: Heads) -> Logs:
    """Compute logits at the temperatures of the objective.

    Ids beyond the vocabulary, which pad the last device's, get -inf.
    """
    o = self.objective
    beyond = heads.first_id + jnp.arange(heads.student.shape[0]) >= o.vocab

    def tempered(hidden, head, temperature):
      a = jnp.einsum("nd,vd->nv", hidden, head, preferred_element_type=jnp.float32)
      return jnp.where(beyond, -jnp.inf, a if temperature == 1 else a / temperature)

    s = tempered(x.student, heads.student, o.student_temperature)
    same = o.sampling_temperature == o.student_temperature
    sampled = None if same else s * (o.student_temperature / o.sampling_temperature)
    teachers, reference = (), None
    if self.with_stats or x.coefficients.divergence is not None:
      pairs = zip(x.teachers, heads.teachers, strict=True)
      teachers = tuple(tempered(hidden, head, o.teacher_temperature) for hidden, head in pairs)
    if x.reference is not None:
      reference = tempered(x.reference, heads.reference, o.student_temperature)
    return Logs(s, sampled, teachers, reference)

  def log_sums(self, logs: Logs) -> Logs:
    """Compute the logarithms of the sums over the whole vocabulary, [N] each."""
    return jax.tree.map(lambda a: self.log_sum_over_vocab(local_log_sum(a)), logs)

  def log_sum_over_vocab(self, part: Float[Array, " N"]) -> Float[Array, " N"]:
    """Combine the devices' log-sums over their own ids into that over the vocabulary."""
    if self.axis is None:
      return part
    most = lax.pmax(part, self.axis)
    shift = jnp.where(most > -jnp.inf, most, 0.0)
    return shift + jnp.log(lax.psum(jnp.exp(part - shift), self.axis))

  def psum_vocab(self, tree):
    """Sum over the devices that the vocabulary lies on."""
    return tree if self.axis is None else lax.psum(tree, self.axis)

  def teacher(self, x: Tokens, logs: Logs) -> Float[Array, "N v"]:
    """Mix the teachers into one, as `divergence.mix` does."""
    if x.teacher_weight is None:
      return logs.teachers[0]
    t = jnp.full_like(logs.teachers[0], -jnp.inf)
    for i, teacher in enumerate(logs.teachers):
      t = jnp.logaddexp(t, teacher + jnp.log(x.teacher_weight[:, i, None]))
    return t

  def vocab_sums(self, x: Tokens, logs: Logs, first_id: Int[Array, ""]) -> dict[str, Float[Array, "N ..."]]:
    """Compute this device's or block's part of the statistics that are sums over the vocabulary, [N] each.

    Beside them "clip_sums", [N, 6], are what `divergence.opposed` is made of, "slope_sum" is what `derivative` needs over the full
    support, and "recorded", [N, k], are the recorded ids' log-probabilities.
    """
    o, s = self.objective, logs.student
    sum_ids = lambda a: jnp.sum(a, axis=-1, dtype=jnp.float32)
    drawn = x.token[:, None] == first_id + jnp.arange(s.shape[-1])
    at_token = lambda log: sum_ids(jnp.where(drawn, log, 0.0))
    entropy = lambda log: -sum_ids(jnp.exp(log) * finite(log))
    stats = {"logprob": at_token(s if logs.sampled is None else logs.sampled)}
    if self.with_stats:
      stats["student_entropy"] = entropy(s)
      if x.recorded is not None:
        stats["recorded"] = self.at_recorded(x.recorded, s if logs.sampled is None else logs.sampled, first_id)
    if logs.reference is not None:
      stats["initial_kl"] = sum_ids(divergence.reverse_kl(s, logs.reference))
    if logs.teachers:
      t = self.teacher(x, logs)
      if self.with_stats:
        stats["teacher_logprob"] = at_token(t)
        stats["kl"] = sum_ids(divergence.reverse_kl(s, t))
        stats["teacher_entropy"] = entropy(t)
      if o.support == "full":
        entries = divergence.entries(o, s, t)
        stats["divergence"] = sum_ids(divergence.clip(o, entries))
        if self.with_gradient:
          stats["slope_sum"] = sum_ids(divergence.slopes(o, s, t))
        if o.entry_clip:
          stats["clipped"] = sum_ids(entries > o.entry_clip) / o.vocab
          stats["clip_sums"] = divergence.clip_sums(o, s, t)
      elif not o.topk and o.support != "sampled":
        raise NotImplementedError(f"support {o.support!r} has no entries")
    return stats

  def total(self, x: Tokens, stats: dict[str, Float[Array, "N ..."]]) -> Float[Array, ""]:
    """Sum coefficients times statistics over the tokens; a coefficient of 0 leaves a token out."""
    terms = ((c, stats[name]) for name, c in x.coefficients.by_stat().items() if c is not None)
    return sum((jnp.sum(jnp.where(c != 0, c * stat, 0.0)) for c, stat in terms), jnp.zeros((), jnp.float32))

  def at_recorded(self, recorded: Recorded, log: Float[Array, "N v"], first_id: Int[Array, ""]) -> Float[Array, "N k"]:
    """Take the recorded ids' log-probabilities, 0 for those that are elsewhere."""
    local, v = recorded.ids - first_id, log.shape[-1]
    here = jnp.take_along_axis(log, jnp.clip(local, 0, v - 1), axis=1)
    return jnp.where((local >= 0) & (local < v), here, 0.0)

  def report(self, x: Tokens, stats: dict[str, Array]) -> dict[str, Float[Array, "N ..."]]:
    """Select the statistics that the caller wants."""
    if not self.with_stats:
      return {}
    kept = {name: stat for name, stat in stats.items() if name not in ("slope_sum", "recorded", "clip_sums")}
    if "clip_sums" in stats:
      kept["opposed"] = divergence.opposed(stats["clip_sums"])
    if x.recorded is not None:
      kept["topk_distance"] = x.recorded.moved(
        self.objective.topk_distance, x.token, stats["recorded"], stats["logprob"]
      )
    return kept

  def derivative(
    self,
    x: Tokens,
    logs: Logs,
    stats: dict[str, Float[Array, "N ..."]],
    first_id: Int[Array, ""],
    topk: TopK | None,
  ) -> Float[Array, "N v"]:
    """Compute d (weighted sum) / d logits of the student, before its temperatures."""
    o, s, c = self.objective, logs.student, x.coefficients
    d_logits = jnp.zeros(s.shape, jnp.float32)
    if c.divergence is not None:
      if topk is None:
        by_log = divergence.slopes(o, s, self.teacher(x, logs)) - jnp.exp(s) * stats["slope_sum"][:, None]
      else:
        by_log = self.topk_derivative(s, topk)
      d_logits += scaled(c.divergence / o.student_temperature, by_log)
    if c.reference_kl is not None and logs.reference is not None:
      by_log = divergence.reverse_kl(s, logs.reference) - jnp.exp(s) * stats["initial_kl"][:, None]
      d_logits += scaled(c.reference_kl / o.student_temperature, by_log)
    if c.logprob is not None:
      drawn = x.token[:, None] == first_id + jnp.arange(s.shape[-1])
      by_log = drawn - jnp.exp(s if logs.sampled is None else logs.sampled)
      d_logits += scaled(c.logprob / o.sampling_temperature, by_log)
    return d_logits

  def topk_support(self, s: Float[Array, "N v"], t: Float[Array, "N v"], first_id: Int[Array, ""]) -> TopK:
    """Restrict both sides to a top-k support, as `divergence.support` does, for ids that lie on several devices."""
    o, v = self.objective, s.shape[-1]
    ids, chosen = divergence.chosen_ids(o, s, t, functools.partial(self.top_ids, first_id=first_id))
    local = ids - first_id
    local = jnp.where((local >= 0) & (local < v), local, v)

    def at_ids(log):
      here = jnp.take_along_axis(log, jnp.minimum(local, v - 1), axis=1)
      return jnp.where(chosen, self.psum_vocab(jnp.where(local < v, here, 0.0)), -jnp.inf)

    s_at, t_at = at_ids(s), at_ids(t)
    if o.tail == "reweight":
      return TopK(local, s_at, t_at, None)
    if o.tail == "renormalise":
      return TopK(local, jax.nn.log_softmax(s_at), jax.nn.log_softmax(t_at), None)
    divergence.check_tail(o, "bucket")
    row = jnp.arange(s.shape[0])[:, None]
    s_bucket, t_bucket = (log.at[row, local].set(-jnp.inf, mode="drop") for log in (s, t))

    def with_bucket(at, bucket):
      return jnp.concatenate([at, self.log_sum_over_vocab(local_log_sum(bucket))[:, None]], axis=1)

    return TopK(local, with_bucket(s_at, s_bucket), with_bucket(t_at, t_bucket), s_bucket)

  def topk_stats(self, topk: TopK) -> dict[str, Float[Array, "N ..."]]:
    """Compute the statistics that depend on a top-k support."""
    o = self.objective
    if o.tail == "reweight":
      return {"divergence": jnp.sum(reweighted(topk), axis=-1)}
    entries = divergence.entries(o, topk.student, topk.teacher)
    stats = {"divergence": jnp.sum(divergence.clip(o, entries), axis=-1)}
    if o.entry_clip:
      stats["clipped"] = jnp.mean(entries > o.entry_clip, axis=-1, dtype=jnp.float32)
      stats["clip_sums"] = divergence.clip_sums(o, topk.student, topk.teacher)
    return stats

  def topk_derivative(self, s: Float[Array, "N v"], topk: TopK) -> Float[Array, "N v"]:
    """Compute the divergence's derivative by this device's logits from the one by the chosen log-probabilities."""
    k = topk.local.shape[1]
    if self.objective.tail == "reweight":
      at_ids = reweighted(topk)
      d_logits = -jnp.exp(s) * jnp.sum(at_ids, axis=-1, keepdims=True)
    else:
      by_log = divergence.slopes(self.objective, topk.student, topk.teacher)
      total = jnp.sum(by_log, axis=-1, keepdims=True)
      at_ids = by_log[:, :k]
      if topk.bucket is None:
        d_logits, at_ids = jnp.zeros_like(s), at_ids - jnp.exp(topk.student) * total
      else:
        in_bucket = jnp.exp(topk.bucket - finite(topk.student[:, k:]))
        d_logits = by_log[:, k:] * in_bucket - jnp.exp(s) * total
    return d_logits.at[jnp.arange(s.shape[0])[:, None], topk.local].add(at_ids, mode="drop")

  def top_ids(self, log: Float[Array, "N v"], k: int, first_id: Int[Array, ""]) -> Int[Array, "N k"]:
    """Find the k most likely ids of the whole vocabulary."""
    most, ids = lax.top_k(log, min(k, log.shape[-1]))
    ids += first_id
    if self.axis is not None:
      most, ids = (lax.all_gather(a, self.axis, axis=1, tiled=True) for a in (most, ids))
      ids = jnp.take_along_axis(ids, lax.top_k(most, k)[1], axis=1)
    return ids


def reweighted(topk: TopK) -> Float[Array, "N k"]:
  """Compute the terms of `divergence.reweighted_topk`, which are also their derivatives."""
  return jax.nn.softmax(topk.student, axis=-1) * (topk.student - topk.teacher)


def head_vjp(
  d_logits: Float[Array, "N v"], hidden: Float[Array, "N D"], head: Float[Array, "v D"]
) -> tuple[Float[Array, "N D"], Float[Array, "v D"]]:
  """Compute the gradients by hidden states and head, accumulated in fp32."""
  d_logits = d_logits.astype(hidden.dtype)
  d_hidden = jnp.einsum("nv,vd->nd", d_logits, head, preferred_element_type=jnp.float32)
  return d_hidden, jnp.einsum("nv,nd->vd", d_logits, hidden, preferred_element_type=jnp.float32)


def scaled(c: Float[Array, " N"], by_log: Float[Array, "N v"]) -> Float[Array, "N v"]:
  """Multiply by the tokens' coefficients: c * by_log, with 0 * inf = 0.

  A coefficient of 0 marks padding, or a token whose divergence may be infinite and does not count.
  """
  return jnp.where((c != 0)[:, None], c[:, None] * by_log, 0.0)


def normalise(logs: Logs, log_sums: Logs) -> Logs:
  """Turn logits into log-probabilities, given their log-sums over the vocabulary."""
  return jax.tree.map(lambda a, log_sum: a - finite(log_sum)[:, None], logs, log_sums)


def local_log_sum(a: Float[Array, "N v"]) -> Float[Array, " N"]:
  """Compute the logsumexp over the ids here; -inf where all of them are -inf."""
  most = jnp.max(a, axis=-1)
  return finite(most) + jnp.log(jnp.sum(jnp.exp(a - finite(most)[:, None]), axis=-1))


def finite(log: Float[Array, "*b"]) -> Float[Array, "*b"]:
  """Replace -inf by 0, for products with a probability that is 0 there."""
  return jnp.where(log > -jnp.inf, log, 0.0)


def split(a: Array, size: int) -> Array:
  """Split [n, ...] into [parts, size, ...], padded with zeros at the end."""
  a = jnp.pad(a, ((0, -a.shape[0] % size), *((0, 0),) * (a.ndim - 1)))
  return a.reshape(-1, size, *a.shape[1:])
