"""What a distillation step computes: the student's rollouts, and its update toward what the teachers predict on them.

    rollout   params, prompts, key, limit                     -> responses of at most `limit` tokens
    update    state, frozen models, prompts, rollout, credit  -> state after one optimiser update, metrics
    probe     state, frozen models, prompts, key              -> how far shorter horizons' gradients agree with the full one

Recipes compile these and decide what goes into them.

Dimensions: p prompts, n rollouts of each, B = p n rows, P prompt width, H response width, D model width.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from opd_jax.config import Config
from opd_jax.errors import InputError
from opd_jax.models import decoder, lora, rounding
from opd_jax.objectives import fused
from opd_jax.objectives import loss_config as losses
from opd_jax.objectives.divergence import FrozenInputs, HiddenAndHead, Recorded
from opd_jax.objectives.forward import Forward
from opd_jax.objectives.loss import Loss
from opd_jax.rollout import sample
from opd_jax.rollout.generate import GeneratorConfig
from opd_jax.rollout.segments import DEFAULT, Segments
from opd_jax.runtime import keys, metrics
from opd_jax.runtime import mesh as meshes
from opd_jax.training import microbatch, optim, specs
from opd_jax.training.rows import Rows, Stats, lengths, shuffled
from opd_jax.training.teacher_update import FROZEN, TeacherUpdate
from opd_jax.types import Batch, Credit, FrozenModels, Params, Rollout, RowContext, TrainState


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
  mini_batches: int = 1  # parts of the prompts, an update each
  micro_batches: int = 1  # gradient-accumulation slices of an update
  buckets: int = 1  # widths that an update is compiled for
  dtype: Any = jnp.float32  # compute type
  remat: str = "none"  # what the backward pass computes again, see decoder.REMAT
  attention: str = "xla"  # see models/kernels.py
  teacher_layout: str = "teacher:fsdp"  # see runtime/mesh.py
  segments: Segments = DEFAULT
  max_horizon: int = 0  # position bins of the metrics span [0, max_horizon)
  bins: int = 16
  seed: int = 0  # of the mask of random tokens, and of shuffled teachers
  sampler_precision: str = "compute"  # that rollouts' weights are rounded to, see models/rounding.py
  teacher_update: TeacherUpdate = FROZEN
  shuffle_teacher: bool = False  # a control: compare every token with the teacher's prediction of another one
  diagnostics: bool = False  # of the optimiser's state, see optim.diagnostics
  token_credit: bool = False  # whether every token has an advantage and a weight of its own

  def __post_init__(self):
    if self.behavior not in ("student", "teacher", "data"):
      raise ValueError(f"behavior {self.behavior!r} is not one of student, teacher, data")

  @classmethod
  def from_specs(cls, s: specs.Specs) -> "DistillationStep":
    """Makes the step that a run's specs describe."""
    c = s.config
    teacher_update = TeacherUpdate.from_config(c)
    rows, loss = c.batch // c.mini_batches * c.rollouts_per_prompt, losses.from_config(c, s.sampling.vocab)
    recorded = loss.surrogate.recorded_ids if loss.surrogate else 0
    micro_batches = rows // specs.micro_batch(c, s.mesh)
    _check_groups(loss, c, micro_batches, meshes.row_shards(s.mesh))
    return cls(
      student=s.student.cfg,
      teachers=tuple(t.cfg for t in s.teachers) if teacher_update.needs_initial else (),
      sampling=dataclasses.replace(s.sampling, recorded=min(recorded, s.sampling.vocab)),
      loss=loss,
      optimizer=optim.make(c.optimizer),
      mesh=s.mesh,
      behavior=c.rollout.by,
      n=c.rollouts_per_prompt,
      mini_batches=c.mini_batches,
      micro_batches=micro_batches,
      buckets=c.buckets,
      dtype=s.dtype,
      remat=c.remat,
      attention=s.attention,
      teacher_layout=f"teacher:{c.mesh.teacher}",
      segments=s.segments,
      max_horizon=c.horizon.max,
      bins=min(c.log.bins, c.horizon.max),
      seed=c.seed if c.weights.kind == "random" or c.objective.shuffle_teacher else 0,
      sampler_precision=c.rollout.precision,
      teacher_update=teacher_update,
      shuffle_teacher=c.objective.shuffle_teacher,
      diagnostics=c.log.optimizer,
    )

  def rollout(self, params: Params, batch: Batch, key: jax.Array, limit: jax.Array, *, response_len: int) -> Rollout:
    """Samples n responses to every prompt, of at most `limit` <= `response_len` tokens; params are `behavior_params`."""
    teacher_writes = self.behavior == "teacher"
    params = rounding.round_weights(params, self.sampler_precision)
    cfg, prompts = (self.teachers[0], batch.of_teacher.seen_by(0)) if teacher_writes else (self.student, batch)
    generator = GeneratorConfig(cfg, self.sampling, self.segments, self.attention, self.mesh, self.dtype)
    return generator.rollout(params, prompts, key, limit, response_len=response_len, n=self.n)

  def update(
    self,
    state: TrainState,
    frozen_models: FrozenModels,
    batch: Batch,
    rollout: Rollout,
    credit: Credit | None = None,
    part: jax.Array | None = None,
  ) -> tuple[TrainState, dict[str, Any]]:
    """Makes one optimiser update on the loss over the generated tokens of a batch, or of one of its mini-batches.

    What each token adds to the mean is settled for the whole batch before it is split, so the loss does not depend on
    the horizon, on padding or on the number of micro-batches. A batch without a gradient changes nothing.

    Args:
      credit: of each row's reward, where the loss has one, and its teacher's prompt, where it has one of its own.
      part: int32[], which mini-batch; None: all rows. The prompts of a mini-batch have all their rollouts in it.
    """
    if part is not None:
      batch, rollout, credit = self._mini_batch((batch, rollout, credit), part)
    frozen_models = self.with_moving_teacher(state, frozen_models)
    key, shuffle = jax.random.fold_in(self.key, state.step), None
    if self.shuffle_teacher:
      shuffle = jax.random.uniform(jax.random.fold_in(key, 1), rollout.mask.shape)
    credit = credit or Credit()
    taught = credit.context and credit.context.taught
    token_weights = self.loss.token_weights(rollout.mask, key, rollout.behavior_logprob, credit.counted, taught)
    if credit.token_weight is not None:
      weight = jnp.where(rollout.mask, credit.token_weight, 0.0)
      weight /= jnp.maximum(jnp.sum(weight), 1e-9)
      token_weights = token_weights._replace(rewarded=weight)
    rows = Rows(batch, rollout, token_weights, credit.advantage, shuffle, credit.context)

    def gradient(part: Rows):
      (_, (loss, stats)), grads = jax.value_and_grad(self.loss_of, has_aux=True)(state.params, frozen_models, part)
      return (loss, stats.sums, grads), stats.largest

    if self.buckets == 1:
      gradient_of = gradient
    else:
      gradient_of = self._at_narrowest(gradient)
    if self.micro_batches == 1:
      (loss, sums, grads), largest = gradient_of(rows)
    else:
      (loss, sums, grads), largest = microbatch.accumulate(gradient_of, self.split(rows))
    in_mean = (token_weights.trained > 0) & (self.loss.divergence > 0)
    if self.loss.reward:
      in_mean |= token_weights.rewarded > 0
    trained = jnp.sum(in_mean, dtype=jnp.int32)
    before = state
    state, norm = optim.apply(self.optimizer, before, grads, loss)
    updated = (state.skipped == 0) & (state.empty == before.empty)
    state = self.teacher_update.follow(state, updated)
    counts = {"skipped": state.skipped, "empty": state.empty, "updated": updated, "trained": trained}
    numbers = {"loss": loss, "grad_norm": norm, "sums": sums, "largest": largest}
    if self.diagnostics:
      numbers["optimizer"] = optim.diagnostics(before, state, grads)
    return state, numbers | counts | lengths(rollout)

  def loss_of(self, params: Params, frozen_models: FrozenModels, part: Rows) -> tuple[jax.Array, tuple]:
    """Computes these rows' part of the sum whose gradient is wanted; its value as a loss, and the metrics by position."""
    return self.compare(self.forward_student(params, frozen_models, part), frozen_models, part)

  def compare(self, student: HiddenAndHead, frozen_models: FrozenModels, part: Rows) -> tuple[jax.Array, tuple]:
    """Computes `loss_of` from what the student predicts there."""
    rollout = part.rollout
    compared = (self.loss.objective, student, self.frozen_inputs(frozen_models, part))
    first = self.loss.needs_stats_first
    stats = fused.token_stats(*compared, mesh=self.mesh) if first else {}
    coefficients = self.loss.coefficients(part.token_weights, stats, rollout.behavior_logprob, part.advantage)
    total, more_stats = fused.weighted_sum(*compared, coefficients, mesh=self.mesh, with_stats=not first)
    stats = stats or more_stats
    value, token_metrics = self.loss.value(part.token_weights, stats, rollout.behavior_logprob, part.advantage)
    counts = {"count": rollout.mask}
    if part.context is not None:  # a teacher without a context has read an empty prompt
      counts["compared"] = compared_tokens = rollout.mask & part.context.taught[:, None]
      stats = {
        name: jnp.where(compared_tokens, a, 0.0) if name in metrics.OF_TEACHER else a for name, a in stats.items()
      }
    sums = self.by_position(stats | token_metrics | counts)
    return total, (value, Stats.of(sums, token_metrics, rollout))

  def frozen_inputs(self, frozen_models: FrozenModels, part: Rows) -> FrozenInputs:
    """Computes what the student is compared with at these rows: what the frozen models predict there; without gradient."""
    rollout = part.rollout
    forward = functools.partial(self.forward, rollout=rollout, layout=self.teacher_layout)
    teachers = tuple(
      forward(params, cfg, part.of_teacher.seen_by(i))
      for i, (params, cfg) in enumerate(zip(frozen_models.teacher_params, self.teachers, strict=True))
    )
    if frozen_models.moving is not None:
      layout = self.trained_layout(frozen_models)
      current = self.forward(frozen_models.moving, self.student, part.of_teacher.seen_by(0), rollout, layout)
      teachers = (self.teacher_update.predict(next(iter(teachers), None), current),)
    reference = None
    if frozen_models.reference is not None:
      reference = forward(frozen_models.reference, self.student, part.batch)
    teacher_weight = microbatch.repeat(part.batch.teacher_weight, part.n)
    if part.shuffle is not None:
      teachers = tuple(shuffled(teacher, rollout.mask, part.shuffle) for teacher in teachers)
    recorded = None
    if rollout.recorded_ids is not None:
      assert rollout.recorded_logprob is not None
      recorded = Recorded(rollout.recorded_ids, rollout.recorded_logprob, rollout.behavior_logprob)
    return lax.stop_gradient(
      FrozenInputs(teachers, rollout.response, rollout.mask, teacher_weight, reference, recorded)
    )

  def probe(
    self,
    state: TrainState,
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
    params, frozen_models = state.params, self.with_moving_teacher(state, frozen_models)
    student_params = self.with_base(params, frozen_models)
    rollout = self.rollout(student_params, probe_batch, key, jnp.int32(widths[-1]), response_len=widths[-1])
    counted = rollout.mask & (jnp.arange(len(rollout.mask)) < prompts * self.n)[:, None]
    part = Rows(probe_batch, rollout, self.loss.token_weights(counted, key, rollout.behavior_logprob), None, None)
    student = lax.stop_gradient(self.forward_student(params, frozen_models, part))

    def loss_of_hidden(hidden: Float[Array, "B H D"]) -> jax.Array:
      return self.compare(student._replace(hidden=hidden), frozen_models, part)[0]

    back = jax.grad(loss_of_hidden)(student.hidden)

    def gradient_between(start: int, end: int) -> Float[Array, "D D"]:
      passed, states = back[:, start:end], student.hidden[:, start:end]
      return jnp.einsum("bhd,bhe->de", passed, states, preferred_element_type=jnp.float32)

    def inner(a: Float[Array, "W D D"], b: Float[Array, "#W D D"]) -> Float[Array, " W"]:
      return jnp.sum(a * b, axis=(1, 2))

    stretches = [gradient_between(*stretch) for stretch in itertools.pairwise((0, *widths))]
    up_to = jnp.cumsum(jnp.stack(stretches), axis=0)  # [W, D, D], the gradient of each horizon
    norm = jnp.sqrt(inner(up_to, up_to) * inner(up_to[-1:], up_to[-1:]))
    cosine = jnp.where(norm > 0, inner(up_to, up_to[-1:]) / jnp.where(norm > 0, norm, 1), 0.0)
    return {"agreement": cosine, "tokens": jnp.sum(counted, dtype=jnp.int32)}

  def score(
    self,
    state: TrainState,
    frozen_models: FrozenModels,
    batch: Batch,
    rollout: Rollout,
    context: RowContext | None = None,
    *,
    prompts: int,
  ) -> dict[str, Array]:
    """Computes the statistics of single tokens that `update` sums, of the rollouts of the first prompts; without gradient.

    A program of its own, so that the update of a run is the same whether its rollouts are written or not.

    Args:
      context: what the teacher reads before each row, where that is made of the rollouts.
      prompts: how many; as many more as the mesh needs are computed too.

    Returns:
      The statistics of divergence.token_stats [rows, H], with the rows' prompt, prompt_mask, response, mask, ended and context.
    """
    params, frozen_models = state.params, self.with_moving_teacher(state, frozen_models)
    shards = meshes.row_shards(self.mesh)
    p = min(-(-prompts // shards) * shards, batch.prompt.shape[0])  # every device has as many

    def leading(tree: Any, rows: int) -> Any:
      return jax.tree.map(lambda a: lax.with_sharding_constraint(a[:rows], meshes.rows(self.mesh)), tree)

    first, rows = leading(batch, p), leading(rollout, p * self.n)
    weights = self.loss.token_weights(rows.mask, self.key, rows.behavior_logprob)
    part = Rows(first, rows, weights, None, context=leading(context, p * self.n))
    student = lax.stop_gradient(self.forward_student(params, frozen_models, part))
    stats = fused.token_stats(self.loss.objective, student, self.frozen_inputs(frozen_models, part), mesh=self.mesh)
    seen = {"prompt": first.prompt, "prompt_mask": first.prompt_mask}
    of_rows = {"response": rows.response, "mask": rows.mask, "ended": rows.ended}
    if part.context is not None:
      of_rows |= {"teacher_prompt": part.context.prompt, "teacher_prompt_mask": part.context.prompt_mask}
    return stats | seen | of_rows

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

  def with_moving_teacher(self, state: TrainState, frozen_models: FrozenModels) -> FrozenModels:
    """Puts the teacher that follows the student, if there is one, beside the models that do not move."""
    moving = self.teacher_update.of(state)
    if moving is None:
      return frozen_models
    return dataclasses.replace(frozen_models, moving=lax.stop_gradient(self.with_base(moving, frozen_models)))

  def trained_layout(self, frozen_models: FrozenModels) -> str:
    """Returns how the student's parameters lie on the mesh: as an adapter's base does, where there is one."""
    return "train" if frozen_models.base is None else self.teacher_layout

  def behavior_params(self, params: Params, frozen_models: FrozenModels) -> Params:
    """Returns the parameters of the model that writes the rollouts."""
    return frozen_models.teacher_params[0] if self.behavior == "teacher" else self.with_base(params, frozen_models)

  def forward_student(self, params: Params, frozen_models: FrozenModels, part: Rows) -> HiddenAndHead:
    """Computes what the student predicts at each response token."""
    layout = self.trained_layout(frozen_models)
    return self.forward(self.with_base(params, frozen_models), self.student, part.batch, part.rollout, layout)

  def by_position(self, stats: dict[str, Float[Array, "B H"]]) -> dict[str, Float[Array, "bins"]]:
    """Sums per-token numbers within bins of response position."""
    return microbatch.sums_by_position(stats, self.bins, self.max_horizon)

  def split(self, rows: Rows) -> Rows:
    """Splits rows into micro-batches, prompt by prompt; with several widths those of a micro-batch are of like length."""
    shards = meshes.row_shards(self.mesh)
    copies = microbatch.prompt_copies(rows.batch.prompt.shape[0] // shards, rows.n, self.micro_batches)
    batch, n = microbatch.repeat(rows.batch, copies), rows.n // copies
    lengths = jnp.sum(rows.rollout.mask, axis=1, dtype=jnp.int32) if self.buckets > 1 else None
    of_rows = rows.rollout, rows.token_weights, rows.advantage, rows.shuffle, rows.context
    batch, of_rows = microbatch.split(batch, of_rows, self.micro_batches, self.mesh, n, lengths)
    return Rows(batch, *of_rows)

  def _mini_batch(self, rows: tuple[Batch, Rollout, Credit | None], part: jax.Array) -> Any:
    """Takes one of the U mini-batches: every U-th prompt with all its rollouts, which every device has of its own."""
    prompts = rows[0].prompt.shape[0] // self.mini_batches

    def take(a: Array) -> Array:
      groups = a.reshape(prompts, self.mini_batches, -1, *a.shape[1:])
      taken = lax.dynamic_index_in_dim(groups, part, axis=1, keepdims=False).reshape(-1, *a.shape[1:])
      return lax.with_sharding_constraint(taken, meshes.rows(self.mesh))

    return jax.tree.map(take, rows)

  def _at_narrowest(self, gradient: Callable[[Rows], Any]) -> Callable[[Rows], Any]:
    def gradient_of(part: Rows):
      mask = part.rollout.mask
      widths = microbatch.response_widths(mask.shape[1], self.buckets)
      return microbatch.at_narrowest(gradient, part, Rows.cut, mask, widths)

    return gradient_of


def _check_groups(loss: Loss, config: Config, micro_batches: int, shards: int) -> None:
  """Refuses micro-batches that split the rollouts of a prompt, where the loss compares them with each other.

  Raises:
    InputError: says how many rows a micro-batch has to have.
  """
  n, prompts = config.rollouts_per_prompt, config.batch // config.mini_batches
  if loss.standardise and microbatch.prompt_copies(prompts // shards, n, micro_batches) > 1:
    raise InputError(
      f"config.micro_batch is {config.micro_batch}, which splits the {n} rollouts of a prompt over {shards} row shards, and "
      f"objective.standardise compares them with each other; raise it to {n * shards} or more, or set it to 0."
    )
