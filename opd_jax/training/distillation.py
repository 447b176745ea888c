"""What a distillation step computes: the student's rollouts, and its update toward what the teachers predict on them.

    rollout   params, prompts, key, limit                     -> responses of at most `limit` tokens
    update    state, frozen models, prompts, rollout          -> state after one optimiser update, metrics
    probe     params, frozen models, prompts, key             -> how far shorter horizons' gradients agree with the full one

Recipes compile these and decide what goes into them.

Dimensions: p prompts, n rollouts of each, B = p n rows, P prompt width, H response width, D model width.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from opd_jax.models import decoder, lora
from opd_jax.objectives import fused
from opd_jax.objectives import loss as losses
from opd_jax.objectives.divergence import FrozenInputs, HiddenAndHead
from opd_jax.objectives.forward import Forward
from opd_jax.objectives.loss import Loss, TokenWeights
from opd_jax.rollout import sample
from opd_jax.rollout.generate import GeneratorConfig
from opd_jax.rollout.segments import DEFAULT, Segments
from opd_jax.runtime import keys
from opd_jax.runtime import mesh as meshes
from opd_jax.training import microbatch, optim, specs
from opd_jax.types import Batch, FrozenModels, Params, Rollout, TrainState


@dataclasses.dataclass(frozen=True)
class DistillationStep:
  """The computations of a distillation step, as pure functions of arrays; what they close over is static.

  Teachers and student read the same rows, under the same prompts or each under its own, each prompt once for its n rollouts,
  micro-batch by micro-batch, so a teacher's hidden states [b, H, D] live as long as one micro-batch and logits [b, H, V] never exist.
  """

  student: decoder.DecoderConfig
  teachers: tuple[decoder.DecoderConfig, ...]
  sampling: sample.Sampling  # its `vocab` is the number of ids that student and teachers share
  loss: Loss
  optimizer: optax.GradientTransformation
  mesh: jax.sharding.Mesh
  behavior: str = "student"  # who writes the rollouts: student, teacher (to its own prompts), data
  n: int = 1  # rollouts per prompt
  micro_batches: int = 1  # gradient-accumulation slices
  buckets: int = 1  # widths that an update is compiled for
  dtype: Any = jnp.float32  # compute type
  remat: str = "none"  # what the backward pass computes again, see decoder.REMAT
  attention: str = "xla"  # see models/kernels.py
  teacher_layout: str = "teacher:fsdp"  # see runtime/mesh.py
  segments: Segments = DEFAULT
  max_horizon: int = 0  # position bins of the metrics span [0, max_horizon)
  bins: int = 16
  seed: int = 0  # of the mask of random tokens

  def __post_init__(self):
    if self.behavior not in ("student", "teacher", "data"):
      raise ValueError(f"behavior {self.behavior!r} is not one of student, teacher, data")

  @classmethod
  def from_specs(cls, s: specs.Specs) -> "DistillationStep":
    """Makes the step that a run's specs describe."""
    c = s.config
    return cls(
      student=s.student.cfg,
      teachers=tuple(t.cfg for t in s.teachers),
      sampling=s.sampling,
      loss=losses.from_config(c, s.sampling.vocab),
      optimizer=optim.make(c.optimizer),
      mesh=s.mesh,
      behavior=c.rollout.by,
      n=c.rollouts_per_prompt,
      micro_batches=c.batch * c.rollouts_per_prompt // specs.micro_batch(c, s.mesh),
      buckets=c.buckets,
      dtype=s.dtype,
      remat=c.remat,
      attention=s.attention,
      teacher_layout=f"teacher:{c.mesh.teacher}",
      segments=s.segments,
      max_horizon=c.horizon.max,
      bins=min(c.log.bins, c.horizon.max),
      seed=c.seed if c.weights.kind == "random" else 0,
    )

  def rollout(self, params: Params, batch: Batch, key: jax.Array, limit: jax.Array, *, response_len: int) -> Rollout:
    """Samples n responses to every prompt, of at most `limit` <= `response_len` tokens; params are `behavior_params`."""
    teacher_writes = self.behavior == "teacher"
    cfg, prompts = (self.teachers[0], batch.of_teacher) if teacher_writes else (self.student, batch)
    generator = GeneratorConfig(cfg, self.sampling, self.segments, self.attention, self.mesh, self.dtype)
    return generator.rollout(params, prompts, key, limit, response_len=response_len, n=self.n)

  def update(
    self,
    state: TrainState,
    frozen_models: FrozenModels,
    batch: Batch,
    rollout: Rollout,
    advantage: Float[Array, "B"] | None = None,
  ) -> tuple[TrainState, dict[str, Array]]:
    """Makes one optimiser update on the loss over the batch's generated tokens.

    What each token adds to the mean is settled for the whole batch before it is split, so the loss does not depend on
    the horizon, on padding or on the number of micro-batches. A batch without a gradient changes nothing.

    Args:
      advantage: of each row's reward, where the loss has one.
    """
    token_weights = self.loss.token_weights(rollout.mask, jax.random.fold_in(self.key, state.step))
    rows = Rows(batch, rollout, token_weights, advantage)

    def gradient(part: Rows):
      (_, (loss, stats)), grads = jax.value_and_grad(self.loss_of, has_aux=True)(state.params, frozen_models, part)
      return loss, stats, grads

    if self.buckets == 1:
      gradient_of = gradient
    else:
      gradient_of = self._at_narrowest(gradient)
    if self.micro_batches == 1:
      loss, stats, grads = gradient_of(rows)
    else:
      loss, stats, grads = microbatch.accumulate(gradient_of, self.split(rows))
    trained = jnp.sum(token_weights.trained > 0, dtype=jnp.int32)
    empty_before = state.empty
    state, norm = optim.apply(self.optimizer, state, grads, loss)
    updated = (state.skipped == 0) & (state.empty == empty_before)
    counts = {"skipped": state.skipped, "empty": state.empty, "updated": updated, "trained": trained}
    return state, {"loss": loss, "grad_norm": norm, "sums": stats, **counts, **_lengths(rollout)}

  def loss_of(self, params: Params, frozen_models: FrozenModels, part: "Rows") -> tuple[jax.Array, tuple]:
    """Computes these rows' part of the sum whose gradient is wanted; its value as a loss, and the metrics by position."""
    return self.compare(self.forward_student(params, frozen_models, part), frozen_models, part)

  def compare(self, student: HiddenAndHead, frozen_models: FrozenModels, part: "Rows") -> tuple[jax.Array, tuple]:
    """Computes `loss_of` from what the student predicts there."""
    rollout = part.rollout
    forward = functools.partial(self.forward, rollout=rollout, layout=self.teacher_layout)
    teachers = tuple(
      forward(params, cfg, part.batch.of_teacher)
      for params, cfg in zip(frozen_models.teacher_params, self.teachers, strict=True)
    )
    reference = None
    if frozen_models.reference is not None:
      reference = forward(frozen_models.reference, self.student, part.batch)
    teacher_weight = microbatch.repeat(part.batch.teacher_weight, part.n)
    frozen = FrozenInputs(teachers, rollout.response, rollout.mask, teacher_weight, reference)
    compared = (self.loss.objective, student, lax.stop_gradient(frozen))
    first = self.loss.needs_stats_first
    stats = fused.token_stats(*compared, mesh=self.mesh) if first else {}
    coefficients = self.loss.coefficients(part.token_weights, stats, rollout.behavior_logprob, part.advantage)
    total, more_stats = fused.weighted_sum(*compared, coefficients, mesh=self.mesh, with_stats=not first)
    stats = stats or more_stats
    value, token_metrics = self.loss.value(part.token_weights, stats, rollout.behavior_logprob, part.advantage)
    return total, (value, self.by_position(stats | token_metrics | {"count": rollout.mask}))

  def probe(
    self,
    params: Params,
    frozen_models: FrozenModels,
    batch: Batch,
    key: jax.Array,
    *,
    widths: tuple[int, ...],
    prompts: int,
  ) -> dict[str, Array]:
    """Measures how far the gradient of every horizon points where that of the last of them does, on a few prompts.

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
    probe_batch = jax.tree.map(lambda a: lax.with_sharding_constraint(a[:rows], meshes.rows(self.mesh)), batch)
    student_params = self.with_base(params, frozen_models)
    rollout = self.rollout(student_params, probe_batch, key, jnp.int32(widths[-1]), response_len=widths[-1])
    counted = rollout.mask & (jnp.arange(len(rollout.mask)) < prompts * self.n)[:, None]
    part = Rows(probe_batch, rollout, self.loss.token_weights(counted, key), None)
    student = lax.stop_gradient(self.forward_student(params, frozen_models, part))

    def loss_of_hidden(hidden: Float[Array, "B H D"]) -> jax.Array:
      return self.compare(student._replace(hidden=hidden), frozen_models, part)[0]

    back = jax.grad(loss_of_hidden)(student.hidden)

    def gradient_between(start: int, end: int) -> Float[Array, "D D"]:
      passed, states = back[:, start:end], student.hidden[:, start:end]
      return jnp.einsum("bhd,bhe->de", passed, states, preferred_element_type=jnp.float32)

    def inner(a: Float[Array, "W D D"], b: Float[Array, "#W D D"]) -> Float[Array, "W"]:
      return jnp.sum(a * b, axis=(1, 2))

    stretches = [gradient_between(*stretch) for stretch in itertools.pairwise((0, *widths))]
    up_to = jnp.cumsum(jnp.stack(stretches), axis=0)  # [W, D, D], the gradient of each horizon
    norm = jnp.sqrt(inner(up_to, up_to) * inner(up_to[-1:], up_to[-1:]))
    cosine = jnp.where(norm > 0, inner(up_to, up_to[-1:]) / jnp.where(norm > 0, norm, 1), 0.0)
    return {"agreement": cosine, "tokens": jnp.sum(counted, dtype=jnp.int32)}

  @property
  def key(self) -> jax.Array:
    """The key of the mask of random tokens."""
    return keys.of_seed(self.seed, keys.Use.TOKEN_MASK)

  @property
  def forward(self) -> Forward:
    """The forward pass, as this step computes it."""
    return Forward(self.mesh, self.dtype, self.remat, self.attention)

  def with_base(self, params: Params, frozen_models: FrozenModels) -> Params:
    """Returns the student's parameters: those of an adapter with its base's beside them."""
    return params if frozen_models.base is None else lora.join(frozen_models.base, params)

  def behavior_params(self, params: Params, frozen_models: FrozenModels) -> Params:
    """Returns the parameters of the model that writes the rollouts."""
    return frozen_models.teacher_params[0] if self.behavior == "teacher" else self.with_base(params, frozen_models)

  def forward_student(self, params: Params, frozen_models: FrozenModels, part: "Rows") -> HiddenAndHead:
    """Computes what the student predicts at each response token."""
    layout = "train" if frozen_models.base is None else self.teacher_layout  # where its base lies
    return self.forward(self.with_base(params, frozen_models), self.student, part.batch, part.rollout, layout)

  def by_position(self, stats: dict[str, Float[Array, "B H"]]) -> dict[str, Float[Array, "bins"]]:
    """Sums per-token numbers within bins of response position."""
    return microbatch.sums_by_position(stats, self.bins, self.max_horizon)

  def split(self, rows: "Rows") -> "Rows":
    """Splits rows into micro-batches, prompt by prompt; with several widths those of a micro-batch are of like length."""
    shards = meshes.row_shards(self.mesh)
    copies = microbatch.prompt_copies(rows.batch.prompt.shape[0] // shards, rows.n, self.micro_batches)
    batch, n = microbatch.repeat(rows.batch, copies), rows.n // copies
    lengths = jnp.sum(rows.rollout.mask, axis=1, dtype=jnp.int32) if self.buckets > 1 else None
    of_rows = rows.rollout, rows.token_weights, rows.advantage
    batch, of_rows = microbatch.split(batch, of_rows, self.micro_batches, self.mesh, n, lengths)
    return Rows(batch, *of_rows)

  def _at_narrowest(self, gradient: Callable[["Rows"], Any]) -> Callable[["Rows"], Any]:
    def gradient_of(part: Rows):
      mask = part.rollout.mask
      widths = microbatch.response_widths(mask.shape[1], self.buckets)
      return microbatch.at_narrowest(gradient, part, Rows.cut, mask, widths)

    return gradient_of

  def lower(
    self, response_len: int, state: TrainState, frozen_models: FrozenModels, batch: Batch
  ) -> Iterator[tuple[str, jax.stages.Lowered]]:
    """Lowers the two step functions of one width for these arguments, abstract or not; the slower to compile first."""
    row, everywhere = meshes.rows(self.mesh), meshes.replicated(self.mesh)
    state, frozen_models, batch, _ = self._abstract(state, frozen_models, batch)
    behavior = self.behavior_params(state.params, frozen_models)
    rollout, responses = self.lower_rollout(response_len, behavior, batch)
    advantage = jax.ShapeDtypeStruct(responses.ended.shape, jnp.float32, sharding=row) if self.loss.reward else None
    state_shardings = jax.tree.map(lambda a: a.sharding, state)
    update = jax.jit(self.update, donate_argnums=0, out_shardings=(state_shardings, everywhere))
    yield "update", update.lower(state, frozen_models, batch, responses, advantage)
    if self.behavior != "data":
      yield "rollout", rollout()

  def lower_rollout(
    self, response_len: int, params: Params, batch: Batch
  ) -> tuple[Callable[[], jax.stages.Lowered], Rollout]:
    """Returns what lowers the rollout of one width, and the shapes of its responses.

    Args:
      params, batch: arrays or their shapes, with shardings.
    """
    row, everywhere = meshes.rows(self.mesh), meshes.replicated(self.mesh)
    key, limit = jax.eval_shape(lambda: (jax.random.key(0), jnp.int32(0)))
    args = (meshes.abstract(params), meshes.abstract(batch), *meshes.abstract((key, limit), everywhere))
    rollout = functools.partial(self.rollout, response_len=response_len)
    responses = meshes.abstract(jax.eval_shape(rollout, *args), row)
    return lambda: jax.jit(rollout, out_shardings=row).lower(*args), responses

  def lower_probe(
    self, probe: tuple[tuple[int, ...], int], state: TrainState, frozen_models: FrozenModels, batch: Batch
  ) -> tuple[str, jax.stages.Lowered]:
    """Lowers `probe` for (widths, prompts)."""
    widths, prompts = probe
    state, frozen_models, batch, key = self._abstract(state, frozen_models, batch)
    program = jax.jit(
      functools.partial(self.probe, widths=widths, prompts=prompts), out_shardings=meshes.replicated(self.mesh)
    )
    return "probe", program.lower(state.params, frozen_models, batch, key)

  def _abstract(self, state: TrainState, frozen_models: FrozenModels, batch: Batch):
    key = meshes.abstract(jax.eval_shape(lambda: jax.random.key(0)), meshes.replicated(self.mesh))
    return meshes.abstract(state), meshes.abstract(frozen_models), meshes.abstract(batch, meshes.rows(self.mesh)), key


@flax.struct.dataclass
class Rows:
  """The rows of a batch that an update computes on: n neighbours for each of its prompts."""

  batch: Batch
  rollout: Rollout
  token_weights: TokenWeights
  advantage: Float[Array, "*m B"] | None  # m micro-batches, where the rows are split into them

  @property
  def n(self) -> int:
    """The rows of a prompt."""
    return self.rollout.response.shape[-2] // self.batch.prompt.shape[-2]

  def cut(self, width: int) -> "Rows":
    """Drops the response columns from `width` on."""
    H = self.rollout.mask.shape[1]
    rollout, token_weights = microbatch.cut_columns((self.rollout, self.token_weights), width, H)
    return dataclasses.replace(self, rollout=rollout, token_weights=token_weights)


def _lengths(rollout: Rollout) -> dict[str, Array]:
  """Counts generated tokens, and the shares of rows that ended by themselves and that the horizon cut."""
  ended = jnp.mean(rollout.ended, dtype=jnp.float32)
  return {"tokens": jnp.sum(rollout.mask, dtype=jnp.int32), "ended": ended, "cut": 1 - ended}
