"""On-policy distillation: OPD, TOPD and POPD are this one file under three horizons (arXiv:2605.31490).

    for every step:
      rollout  the student answers the prompts, at most H tokens long
      update   the teachers read what the student wrote, and the student moves toward them, token by token

Both are pure functions of arrays; what they close over is static. Teachers and student read the same rows, under the same
prompts or each under its own, micro-batch by micro-batch, so a teacher's hidden states [b, H, E] live as long as one
micro-batch and logits [b, H, V] never exist.

Dimensions: p prompts, n rollouts of each, B = p n rows, P prompt width, H horizon, D and E model widths.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from opd_jax import mesh as meshes
from opd_jax import optim
from opd_jax.models import decoder, kernels, lookup, lora, moe
from opd_jax.objectives import fused
from opd_jax.objectives.divergence import Readout
from opd_jax.objectives.loss import Loss, Shares
from opd_jax.rollout import cache, sample
from opd_jax.rollout.segments import DEFAULT, Segments
from opd_jax.types import Batch, Judges, Params, Rollout, TrainState


@dataclasses.dataclass(frozen=True)
class Distill:
  """What is static in a distillation run."""

  student: decoder.DecoderConfig
  teachers: tuple[decoder.DecoderConfig, ...]
  sampling: sample.Sampling  # its `vocab` is the number of ids that student and teachers share
  loss: Loss
  optimizer: optax.GradientTransformation
  mesh: jax.sharding.Mesh
  speaker: str = "student"  # or the teacher, to its own prompts
  n: int = 1  # rollouts per prompt
  micro_batches: int = 1  # gradient-accumulation slices
  buckets: int = 1  # widths that an update is compiled for
  dtype: Any = jnp.float32  # compute type
  remat: str = "none"  # what the backward pass computes again, see decoder.REMAT
  attention: str = "xla"  # see models/kernels.py
  teacher_layout: str = "teacher:fsdp"  # see mesh.py
  segments: Segments = DEFAULT
  max_horizon: int = 0  # position bins of the metrics span [0, max_horizon)
  bins: int = 16
  seed: int = 0  # of the mask of random tokens

  def rollout(self, params: Params, batch: Batch, key: jax.Array, limit: jax.Array, *, horizon: int) -> Rollout:
    """n responses to every prompt, cut at `limit` <= `horizon` tokens.

    Args:
      params: of `self.speaks`.
    """

    def lay_out(params, cfg, dtype):
      return meshes.constrain(self.mesh, cache.lay_out(params, cfg, dtype), "rollout")

    cfg = meshes.for_rollout(self.mesh, self.student if self.speaker != "teacher" else self.teachers[0])
    batch = batch.of_teacher if self.speaker == "teacher" else batch
    how = {"cfg": cfg, "sampling": self.sampling, "horizon": horizon, "n": self.n, "dtype": self.dtype}
    how["experts"] = self.experts
    how["drawn"] = sample.draw_on(self.mesh, meshes.ROWS, "tensor")
    return sample.rollout(params, batch, key, limit, lay_out=lay_out, segments=self.segments, attend=self.attend, **how)

  def update(
    self, state: TrainState, judges: Judges, batch: Batch, said: Rollout, advantage: Float[Array, "B"] | None = None
  ) -> tuple[TrainState, dict[str, Array]]:
    """One optimiser update on the loss over the batch's generated tokens.

    What each token adds to the mean is settled for the whole batch before it is split, so the loss does not depend on
    the horizon, on padding or on the number of micro-batches. A batch without a gradient changes nothing.

    Args:
      advantage: of each row's reward, where the loss has one.
    """
    shares = self.loss.shares(said.mask, jax.random.fold_in(self.key, state.step))
    rows = Rows(repeat(batch, self.n), said, shares, advantage)

    def gradient(part: Rows):
      (_, (loss, stats)), grads = jax.value_and_grad(self.loss_of, has_aux=True)(state.params, judges, part)
      return loss, stats, grads

    def in_bucket(part: Rows):
      """The gradient at the least of the compiled widths that holds the longest response."""
      H = part.said.mask.shape[1]
      widths = [-(-H * (i + 1) // self.buckets) for i in range(self.buckets)]
      longest = jnp.max(jnp.sum(part.said.mask, axis=1, dtype=jnp.int32))
      narrow = [lambda part, w=w: gradient(part.cut(w)) for w in widths]
      return lax.switch(jnp.sum(longest > jnp.array(widths[:-1], jnp.int32)), narrow, part)

    of_part = gradient if self.buckets == 1 else in_bucket
    loss, stats, grads = of_part(rows) if self.micro_batches == 1 else accumulate(of_part, self.split(rows))
    trained = jnp.sum(shares.chosen > 0, dtype=jnp.int32)
    state, norm = optim.apply(self.optimizer, state, grads, loss)
    counts = {"skipped": state.skipped, "empty": state.empty, "trained": trained}
    return state, {"loss": loss, "grad_norm": norm, "sums": stats, **counts, **self.lengths(said)}

  def loss_of(self, params: Params, judges: Judges, part: "Rows") -> tuple[jax.Array, tuple]:
    """These rows' part of the sum whose gradient is wanted; its value as a loss, and the metrics by position."""
    return self.compare(self.read_student(params, judges, part), judges, part)

  def compare(self, student: Readout, judges: Judges, part: "Rows") -> tuple[jax.Array, tuple]:
    """`loss_of` what the student predicts there."""
    said = part.said
    frozen = functools.partial(self.read, said=said, layout=self.teacher_layout)
    theirs = functools.partial(frozen, prompt=part.batch.of_teacher)
    teachers = tuple(theirs(p, cfg) for p, cfg in zip(judges.teaching, self.teachers, strict=True))
    initial = None if judges.initial is None else frozen(judges.initial, self.student, prompt=part.batch)
    seen = (self.loss.objective, student, lax.stop_gradient(teachers), said.response, said.mask)
    how = {"teacher_weight": part.batch.teacher_weight, "initial": lax.stop_gradient(initial), "mesh": self.mesh}
    extra = (said.behavior_logprob, part.advantage)
    first = self.loss.reads_first
    readings = fused.read(*seen, **how) if first else {}
    coefficients = self.loss.coefficients(part.shares, readings, *extra)
    total, found = fused.weighted(*seen, coefficients, **how, readings=not first)
    value, more = self.loss.value(part.shares, readings or found, *extra)
    return total, (value, self.by_position((readings or found) | more | {"count": said.mask}))

  def probe(
    self, params: Params, judges: Judges, batch: Batch, key: jax.Array, *, widths: tuple[int, ...], prompts: int
  ) -> dict[str, Array]:
    """How far the gradient of every horizon points where that of the last of them does, on a few prompts.

    A proxy of the gradient stands for the whole, and plain distance for a metric (both ours): that of a linear map, the
    identity, between the last hidden states and the head. It is the sum over tokens of what the loss passes back to a
    hidden state times that state, so no layer is differentiated. The loss has to be a mean over tokens that do not depend
    on later ones, which checks.py sees to.

    Args:
      widths: rising.
      prompts: the first so many of the batch; as many more as the mesh needs are answered and not counted.

    Returns:
      agreement: f32[widths], cosines; the last is 1.
      tokens: int32[], generated.
    """
    shards = meshes.row_shards(self.mesh)
    rows = min(-(-prompts // shards) * shards, batch.prompt.shape[0])  # every device has as many
    few = jax.tree.map(lambda a: lax.with_sharding_constraint(a[:rows], meshes.rows(self.mesh)), batch)
    said = self.rollout(self.whole(params, judges), few, key, jnp.int32(widths[-1]), horizon=widths[-1])
    counted = said.mask & (jnp.arange(len(said.mask)) < prompts * self.n)[:, None]
    part = Rows(repeat(few, self.n), said, self.loss.shares(counted, key), None)
    student = lax.stop_gradient(self.read_student(params, judges, part))
    back = jax.grad(lambda hidden: self.compare(student._replace(hidden=hidden), judges, part)[0])(student.hidden)
    outer = lambda a, b: jnp.einsum(
      "bhd,bhe->de", back[:, a:b], student.hidden[:, a:b], preferred_element_type=jnp.float32
    )
    upto = jnp.cumsum(jnp.stack([outer(*stretch) for stretch in itertools.pairwise((0, *widths))]), axis=0)  # [W, D, D]
    inner = lambda a, b: jnp.sum(a * b, axis=(1, 2))
    norm = jnp.sqrt(inner(upto, upto) * inner(upto[-1:], upto[-1:]))
    cosine = jnp.where(norm > 0, inner(upto, upto[-1:]) / jnp.where(norm > 0, norm, 1), 0.0)
    return {"agreement": cosine, "tokens": jnp.sum(counted, dtype=jnp.int32)}

  @property
  def key(self) -> jax.Array:
    """Of the mask of random tokens, apart from the keys of rollouts and evaluations."""
    return jax.random.fold_in(jax.random.key(self.seed), 2**21)

  def whole(self, params: Params, judges: Judges) -> Params:
    """The student's parameters: with an adapter its base's beside them."""
    return params if judges.base is None else lora.join(judges.base, params)

  def speaks(self, params: Params, judges: Judges) -> Params:
    """The parameters of whoever speaks."""
    return judges.teaching[0] if self.speaker == "teacher" else self.whole(params, judges)

  def read_student(self, params: Params, judges: Judges, part: "Rows") -> Readout:
    layout = "train" if judges.base is None else self.teacher_layout  # where its base lies
    return self.read(self.whole(params, judges), self.student, part.batch, part.said, layout)

  def read(
    self, params: Params, cfg: decoder.DecoderConfig, prompt: Batch, said: Rollout, layout: str = "train"
  ) -> Readout:
    """What predicts each response token, under these prompts."""
    how = {"dtype": self.dtype, "remat": self.remat, "attend": self.attend, "experts": self.experts}
    how["look_up"] = functools.partial(lookup.embed, self.mesh, layout)
    seen = (prompt.prompt, prompt.prompt_mask, said.response, said.mask)
    return Readout(decoder.response_hidden(params, cfg, *seen, **how), decoder.head(params))

  @property
  def attend(self):
    """Attention over whole sequences."""
    return functools.partial(kernels.attend, self.attention, self.mesh)

  @property
  def experts(self):
    """The feed-forward part of a mixture of experts."""
    return functools.partial(moe.feed_forward, self.mesh)

  def by_position(self, stats: dict[str, Float[Array, "B H"]]) -> dict[str, Float[Array, "bins"]]:
    """Sums over rows within bins of response position; fp32."""
    H = stats["count"].shape[1]
    bin_of = jnp.arange(H) * self.bins // self.max_horizon
    # Not a matrix product: on a TPU that would round its inputs to bfloat16, and counts with them.
    by_bin = lambda a: jax.ops.segment_sum(jnp.sum(a, axis=0, dtype=jnp.float32), bin_of, self.bins)
    return {name: by_bin(lax.stop_gradient(a)) for name, a in stats.items()}

  def lengths(self, said: Rollout) -> dict[str, Array]:
    """Generated tokens, and the shares of rows that ended by themselves and that the horizon cut."""
    ended = jnp.mean(said.ended, dtype=jnp.float32)
    return {"tokens": jnp.sum(said.mask, dtype=jnp.int32), "ended": ended, "cut": 1 - ended}

  def split(self, rows: "Rows") -> "Rows":
    """[B, ...] -> [micro-batches, B / micro-batches, ...]; every device keeps its own rows.

    With several widths the rows of a micro-batch are of like length.
    """
    shards = Segments(shards=meshes.row_shards(self.mesh))
    if self.buckets > 1:
      length = jnp.sum(rows.said.mask, axis=1, dtype=jnp.int32).reshape(shards.shards, -1)
      rows = shards.gather(rows, jnp.argsort(length, axis=1))
    part = lambda a: a.reshape(shards.shards, self.micro_batches, -1, *a.shape[1:]).swapaxes(0, 1)
    return jax.tree.map(lambda a: part(a).reshape(self.micro_batches, -1, *a.shape[1:]), rows)

  def programs(
    self, horizon: int, state: TrainState, judges: Judges, batch: Batch
  ) -> Iterator[tuple[str, jax.stages.Lowered]]:
    """The two step functions of one stage, lowered for these (abstract) arguments; the slower to compile first."""
    row, everywhere = meshes.rows(self.mesh), meshes.replicated(self.mesh)
    state, judges, batch, key = self.abstract(state, judges, batch)
    limit = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)

    rollout = functools.partial(self.rollout, horizon=horizon)
    speaker = self.speaks(state.params, judges)
    said = _placed(jax.eval_shape(rollout, speaker, batch, key, limit), row)
    advantage = jax.ShapeDtypeStruct(said.ended.shape, jnp.float32, sharding=row) if self.loss.reward else None
    kept = jax.tree.map(lambda a: a.sharding, state)
    update = jax.jit(self.update, donate_argnums=0, out_shardings=(kept, everywhere))
    yield "update", update.lower(state, judges, batch, said, advantage)
    if self.speaker != "data":
      yield "rollout", jax.jit(rollout, out_shardings=row).lower(speaker, batch, key, limit)

  def probe_program(
    self, widths: tuple[int, ...], prompts: int, state: TrainState, judges: Judges, batch: Batch
  ) -> Iterator[tuple[str, jax.stages.Lowered]]:
    """`probe`, lowered."""
    state, judges, batch, key = self.abstract(state, judges, batch)
    probe = functools.partial(self.probe, widths=widths, prompts=prompts)
    yield (
      "probe",
      jax.jit(probe, out_shardings=meshes.replicated(self.mesh)).lower(state.params, judges, batch, key),
    )

  def abstract(self, state: TrainState, judges: Judges, batch: Batch):
    """What programs are lowered for: shapes and shardings of these, and of a key."""
    own = lambda tree: jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), tree)
    key = _placed(jax.eval_shape(lambda: jax.random.key(0)), meshes.replicated(self.mesh))
    return own(state), own(judges), _placed(batch, meshes.rows(self.mesh)), key


@flax.struct.dataclass
class Rows:
  """What an update reads, row by row."""

  batch: Batch  # a prompt for every row
  said: Rollout
  shares: Shares
  advantage: Float[Array, "B"] | None

  def cut(self, width: int) -> "Rows":
    """Without the response columns from `width` on."""
    H = self.said.mask.shape[1]
    narrow = lambda a: a[:, :width] if a.ndim == 2 and a.shape[1] == H else a
    said, shares = jax.tree.map(narrow, (self.said, self.shares))
    return dataclasses.replace(self, said=said, shares=shares)


def _placed(tree, sharding):
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)


def accumulate(f, parts):
  """The sum of f over the leading axis of `parts`, one slice at a time."""
  first = jax.tree.map(lambda a: a[0], parts)
  zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(f, first))
  total, _ = lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, f(part)), None), zero, parts)
  return total


def repeat(batch: Batch, n: int) -> Batch:
  """Every prompt n times in a row, to stand beside its rollouts."""
  return batch if n == 1 else jax.tree.map(lambda a: jnp.repeat(a, n, axis=0), batch)
