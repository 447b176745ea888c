"""What a step of d-OPSD computes: the student's denoised rollouts, and its update toward what the teacher predicts on their canvases.

    rollout   params, prompts, key                                      -> finished answers, and when each position was committed
    update    state, frozen models, prompts, rollout, chosen, limit     -> state after one optimiser update, metrics
    score     the same                                                  -> what is compared on a few rollouts, canvas by canvas

An update goes over the canvases of the rollouts that were chosen, a few steps of all rows at a time, and adds their gradients up; hidden
states of more never exist, and logits [B, H, V] never do. The recipe compiles these and decides what goes into them.

Dimensions: p prompts, n rollouts of each, B = p n rows, b rows that are learned from, s steps of them at a time, P prompt width, H response
width, W canvases of a row, k positions that are compared on one, D model width, V vocabulary.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from opd_jax.context.self_future import SelfFuture, recorded
from opd_jax.models import decoder, lora
from opd_jax.objectives import fused
from opd_jax.objectives.divergence import Coefficients, FrozenInputs, HiddenAndHead, Objective
from opd_jax.objectives.forward import Forward
from opd_jax.rollout import sample
from opd_jax.rollout.denoise import Denoised, DenoiserConfig, canvas_at
from opd_jax.runtime import mesh as meshes
from opd_jax.training import microbatch, optim
from opd_jax.training.rows import lengths
from opd_jax.training.teacher_update import FROZEN, TeacherUpdate
from opd_jax.types import Batch, FrozenModels, Params, TrainState

TARGETS = ("teacher", "samples", "reward")
LOGITS_AT_A_TIME = 2**22  # of the teacher's confidence


@flax.struct.dataclass
class Chosen:
  """Which rollout of each prompt is learned from, or how much each rollout is."""

  number: Int[Array, " p"] | None = None  # of the prompt's n; None: all of them are
  weight: Float[Array, " b"] | None = None  # 0: not at all; with "reward" the advantage


@flax.struct.dataclass
class Canvases:
  """The rollouts that are learned from, one row each."""

  prompts: Batch
  tokens: Int[Array, "b H"]
  committed_at: Int[Array, "b H"]
  stops: Bool[Array, "b H"]
  mask: Bool[Array, "b H"]
  weight: Float[Array, " b"]


class Compared(NamedTuple):
  """What is compared on N canvases: both sides' predictions at K, where K is, and what the teacher was shown."""

  student: HiddenAndHead  # [N, k, D]
  inputs: FrozenInputs  # [N, k, ...]; the mask tells which of the k are in K
  positions: Int[Array, "N k"]
  revealed: Bool[Array, "N H"]


@dataclasses.dataclass(frozen=True)
class DiffusionStep:
  """The computations of a step, as pure functions of arrays; what they close over is static."""

  denoiser: DenoiserConfig  # the student as it generates
  length: int  # positions of a canvas, H
  teachers: tuple[decoder.DecoderConfig, ...]
  future: SelfFuture
  objective: Objective
  optimizer: optax.GradientTransformation
  target: str = "teacher"  # or samples: the student's own tokens at K; or reward: a policy gradient of all tokens on the canvas of masks
  states: str = "unended"  # or all, see self_future.recorded
  mean: bool = True  # over K; False: its sum
  prompt_masking: float = 0.0  # reward: the share of the prompt's tokens that is masked
  n: int = 1  # rollouts of a prompt
  parts: int = 1  # updates on one rollout, each on as many canvases
  rows_at_a_time: int = 0  # 0: all canvases at once
  remat: str = "none"
  teacher_layout: str = "teacher:fsdp"
  bins: int = 16  # of denoising steps, in the metrics
  teacher_update: TeacherUpdate = FROZEN

  @property
  def student(self) -> decoder.DecoderConfig:
    """The student's architecture."""
    return self.denoiser.cfg

  @property
  def asks_teacher(self) -> bool:
    """Whether a teacher reads the canvases: to be compared with, or to say where."""
    return self.target == "teacher" or (self.target == "samples" and self.future.compared == "teacher")

  @property
  def total(self) -> int:
    """The denoising steps of a rollout."""
    return self.denoiser.denoising.total(self.length)

  @property
  def last_block(self) -> int:
    """The denoising steps of the last block, which "unended" leaves out; a schedule without blocks has none."""
    denoising = self.denoiser.denoising
    return denoising.steps if denoising.schedule == "even" else 0

  def rollout(self, params: Params, batch: Batch, key: jax.Array) -> Denoised:
    """Samples n answers to every prompt; params are `with_base`'s."""
    return self.denoiser.rollout(params, batch, key, response_len=self.length, n=self.n)

  def update(
    self,
    state: TrainState,
    frozen_models: FrozenModels,
    batch: Batch,
    rollout: Denoised,
    chosen: Chosen,
    limit: Int[Array, ""],
    part: Int[Array, ""],
    key: jax.Array,
    *,
    width: int,
  ) -> tuple[TrainState, dict[str, Any]]:
    """Makes one optimiser update on the canvases of a rollout, or of one of its parts.

    The loss is a mean over the rollouts that were chosen, of each over its canvases, and of each over K. A batch without a gradient
    changes nothing.

    Args:
      limit: only the canvases of the first so many steps are learned from.
      part: which of `parts`.
      key: of what is revealed.
      width: static; at least `limit`, and what the program is compiled for.
    """
    frozen_models = self.with_moving_teacher(state, frozen_models)
    rows = self.rows(batch, rollout, chosen)
    if self.target == "reward":
      width, limit = 1, jnp.minimum(limit, 1)  # the canvas of masks
    s = self.steps_at_a_time(len(rows.tokens), width)
    first = part * (width // self.parts)
    end = jnp.minimum(limit, first + width // self.parts)
    weight = self.weights(rows, jnp.arange(width), first, end)

    def gradient(pass_: Int[Array, ""]):
      """The part of the loss, the sums of metrics and the gradient of s steps."""
      t = first + pass_ * s + jnp.arange(s)
      of_steps = lax.dynamic_slice_in_dim(weight, t[0], s, axis=1)
      loss_of = functools.partial(self.loss_of, frozen_models=frozen_models, rows=rows, weight=of_steps, t=t, key=key)
      (_, (loss, sums)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
      return loss, sums, grads

    nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(gradient, jnp.int32(0)))
    # As many passes as the limit needs, of a program that is compiled for the width.
    passes = jnp.maximum(0, -(-(end - first) // s))
    loss, sums, grads = lax.fori_loop(0, passes, lambda i, total: jax.tree.map(jnp.add, total, gradient(i)), nothing)
    before = state
    state, norm = optim.apply(self.optimizer, before, grads, loss)
    updated = (state.skipped == 0) & (state.empty == before.empty)
    state = self.teacher_update.follow(state, updated)
    compared = jnp.sum(sums["count"]).astype(jnp.int32)
    counts = {"skipped": state.skipped, "empty": state.empty, "updated": updated, "trained": compared}
    of_canvases = {"canvases": jnp.sum(weight != 0, dtype=jnp.int32), "passes": passes * s * len(rows.tokens)}
    return state, {"loss": loss, "grad_norm": norm, "sums": sums, "largest": {}} | counts | of_canvases | lengths(
      rollout
    )

  def loss_of(
    self,
    params: Params,
    frozen_models: FrozenModels,
    rows: Canvases,
    weight: Float[Array, "b s"],
    t: Int[Array, " s"],
    key: jax.Array,
  ) -> tuple[jax.Array, tuple]:
    """Computes these canvases' part of the sum whose gradient is wanted; its value as a loss, and the metrics by step."""
    if self.target == "reward":
      return self._policy_gradient(params, frozen_models, rows, weight, key)
    found = self.compare(params, frozen_models, rows, weight, t, key)
    compared = found.inputs.mask
    number = jnp.maximum(jnp.sum(compared, axis=1, keepdims=True), 1) if self.mean else 1
    coefficient = jnp.where(compared, weight.reshape(-1, 1) / number, 0.0)
    return self._sum(found.student, found.inputs, coefficient, jnp.tile(t, len(rows.tokens)))

  def compare(
    self,
    params: Params,
    frozen_models: FrozenModels,
    rows: Canvases,
    weight: Float[Array, "b s"],
    t: Int[Array, " s"],
    key: jax.Array,
  ) -> Compared:
    """Computes what student and teacher predict at K of the canvases before steps t; of those of no weight K is empty."""
    (b, H), s = rows.tokens.shape, len(t)

    def each(a: Array) -> Array:
      """A row for every canvas; those of a rollout are neighbours."""
      return jnp.repeat(a, s, axis=0)

    prompts = Batch(prompt=each(rows.prompts.prompt), prompt_mask=each(rows.prompts.prompt_mask))
    tokens, committed_at, step = each(rows.tokens), each(rows.committed_at), jnp.tile(t, b)
    mask_id = self.student.mask_id
    assert mask_id is not None
    canvas = canvas_at(tokens, committed_at, step[:, None], mask_id)
    block = step // self.denoiser.denoising.steps
    first_stop = jnp.where(jnp.any(rows.stops, axis=1), jnp.argmax(rows.stops, axis=1), H)
    random = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (b, H + 1)), out_axes=1)(t)
    order, rounding = random[..., :H].reshape(b * s, H), random[..., H].reshape(b * s)
    revealed, teacher = jnp.zeros((b * s, H), bool), None
    if self.asks_teacher:
      revealed = self.future.revealed(committed_at, step, block, each(first_stop), order, rounding)
      shown = jnp.where(revealed, tokens, canvas)
      read = self._with_answer(prompts, tokens, each(rows.mask)) if self.future.reveal == "prefix" else prompts
      teacher = lax.stop_gradient(self.teacher(frozen_models, read, shown))
    confidence = jnp.zeros((b * s, H), jnp.float32)
    if teacher is not None and self.future.compared == "teacher":
      confidence = confidence_of(teacher, self.objective)
    candidates = self.future.candidates(committed_at, step, block, revealed)
    positions, compared = self.future.choose(candidates, committed_at, step, confidence, self.denoiser.denoising.tokens)
    compared &= (weight.reshape(-1) != 0)[:, None]

    def hidden_at(model: HiddenAndHead) -> HiddenAndHead:
      return model._replace(hidden=jnp.take_along_axis(model.hidden, positions[..., None], axis=1))

    student = hidden_at(self.forward_student(params, frozen_models, prompts, canvas))
    teachers = (hidden_at(teacher),) if teacher is not None and self.target == "teacher" else ()
    inputs = FrozenInputs(teachers, jnp.take_along_axis(tokens, positions, axis=1), compared)
    return Compared(student, inputs, positions, revealed)

  def _sum(
    self, student: HiddenAndHead, inputs: FrozenInputs, coefficient: Float[Array, "N k"], step: Int[Array, " N"]
  ) -> tuple[jax.Array, tuple]:
    """Sums coefficients times divergences, or times the negative log-probabilities of the student's own tokens."""
    coefficients = Coefficients(divergence=coefficient) if inputs.teachers else Coefficients(logprob=-coefficient)
    total, stats = fused.weighted_sum(self.objective, student, inputs, coefficients, mesh=self.denoiser.mesh)
    value = jnp.sum(coefficient * (stats["divergence"] if inputs.teachers else -stats["logprob"]))
    bin_of = step * self.bins // self.total

    def by_step(a: Array) -> Float[Array, " bins"]:
      return jax.ops.segment_sum(jnp.sum(a, axis=1, dtype=jnp.float32), bin_of, self.bins)

    sums = {name: by_step(lax.stop_gradient(a)) for name, a in (stats | {"count": inputs.mask}).items()}
    return total, (lax.stop_gradient(value), sums)

  def _policy_gradient(
    self,
    params: Params,
    frozen_models: FrozenModels,
    rows: Canvases,
    weight: Float[Array, "b 1"],
    key: jax.Array,
  ) -> tuple[jax.Array, tuple]:
    """Computes the loss of diffu-GRPO (arXiv:2504.12216): log-probabilities of an answer's tokens on the canvas of masks alone.

    A share of the prompt's tokens is masked too. Of one update on a rollout the ratio is 1.
    """
    mask_id, prompts = self.student.mask_id, rows.prompts
    assert mask_id is not None
    canvas = jnp.full(rows.tokens.shape, mask_id, jnp.int32)
    hidden = jax.random.uniform(key, prompts.prompt.shape) < self.prompt_masking
    prompts = dataclasses.replace(prompts, prompt=jnp.where(hidden & prompts.prompt_mask, mask_id, prompts.prompt))
    student = self.forward_student(params, frozen_models, prompts, canvas)
    coefficient = jnp.where(rows.mask, weight / jnp.maximum(jnp.sum(rows.mask, axis=1, keepdims=True), 1), 0.0)
    return self._sum(student, FrozenInputs((), rows.tokens, rows.mask), coefficient, jnp.zeros(len(canvas), jnp.int32))

  def _with_answer(self, prompts: Batch, tokens: Int[Array, "N H"], mask: Bool[Array, "N H"]) -> Batch:
    """Puts the finished answer, to its stop token, behind the prompt, and all padding in front of both."""
    both = jnp.concatenate([prompts.prompt, tokens], axis=1), jnp.concatenate([prompts.prompt_mask, mask], axis=1)
    order = jnp.argsort(both[1], axis=1, stable=True)
    prompt, prompt_mask = (jnp.take_along_axis(a, order, axis=1) for a in both)
    return Batch(prompt, prompt_mask)

  def score(
    self,
    state: TrainState,
    frozen_models: FrozenModels,
    batch: Batch,
    rollout: Denoised,
    chosen: Chosen,
    limit: Int[Array, ""],
    key: jax.Array,
    *,
    prompts: int,
    width: int,
  ) -> dict[str, Array]:
    """Computes what the first update on a rollout learns from, canvas by canvas, without gradient; a program of its own.

    Args:
      limit, key: as of `update`.
      prompts: the rollouts of how many are wanted; of as many more as the mesh needs are computed too.
      width: canvases of each, W.

    Returns:
      divergence f32[W, b, H], NaN where nothing is compared; revealed bool[W, b, H]; counted bool[W, b], whether a canvas is learned
      from; and the rows' prompt, prompt_mask, tokens, committed_at and weight.
    """
    frozen_models = self.with_moving_teacher(state, frozen_models)
    shards = meshes.row_shards(self.denoiser.mesh)
    b = min(-(-prompts // shards) * shards, len(batch.prompt))
    rows = self.rows(batch, rollout, chosen)
    weight = self.weights(rows, jnp.arange(width), jnp.int32(0), limit)
    leading = (jax.tree.map(lambda a: a[:b], rows), weight[:b])
    rows, weight = jax.tree.map(lambda a: lax.with_sharding_constraint(a, meshes.rows(self.denoiser.mesh)), leading)

    def at(t: Int[Array, ""]) -> tuple[Array, Array]:
      found = self.compare(state.params, frozen_models, rows, jnp.ones((b, 1)), t[None], key)
      stats = fused.token_stats(self.objective, lax.stop_gradient(found.student), found.inputs, mesh=self.denoiser.mesh)
      value = stats["divergence"] if "divergence" in stats else -stats["logprob"]
      nowhere = jnp.full(rows.tokens.shape, jnp.nan, jnp.float32)
      value = jnp.where(found.inputs.mask, value, jnp.nan)
      return jax.vmap(lambda a, i, x: a.at[i].set(x))(nowhere, found.positions, value), found.revealed

    divergence, revealed = lax.map(at, jnp.arange(width))
    of_rows = {"tokens": rows.tokens, "committed_at": rows.committed_at, "weight": rows.weight}
    read = {"prompt": rows.prompts.prompt, "prompt_mask": rows.prompts.prompt_mask}
    return {"divergence": divergence, "revealed": revealed, "counted": weight.T != 0} | of_rows | read

  def rows(self, batch: Batch, rollout: Denoised, chosen: Chosen) -> Canvases:
    """Takes the rollouts that are learned from."""
    assert rollout.committed_at is not None
    assert chosen.weight is not None
    stops = sample.is_stop(rollout.response, self.denoiser.sampling.stop_ids)
    of_rows = rollout.response, rollout.committed_at, stops, rollout.mask
    if chosen.number is None:
      return Canvases(microbatch.repeat(batch, self.n), *of_rows, weight=chosen.weight)
    number = chosen.number

    def take(a: Array) -> Array:
      groups = a.reshape(-1, self.n, *a.shape[1:])
      taken = jnp.take_along_axis(groups, number.reshape(-1, *[1] * (groups.ndim - 1)), axis=1)[:, 0]
      return lax.with_sharding_constraint(taken, meshes.rows(self.denoiser.mesh))

    return Canvases(batch, *map(take, of_rows), weight=chosen.weight)

  def weights(
    self, rows: Canvases, step: Int[Array, " W"], first: Int[Array, ""], end: Int[Array, ""]
  ) -> Float[Array, "b W"]:
    """Computes the weight of every canvas in the loss."""
    if self.target == "reward":
      return jnp.where(step == 0, rows.weight[:, None], 0.0) / len(rows.weight)
    counted = recorded(rows.committed_at, rows.stops, step, self.last_block, self.total, self.states)
    counted &= (step >= first) & (step < end) & (rows.weight != 0)[:, None]
    of_row = jnp.sum(counted, axis=1, keepdims=True)
    return jnp.where(counted, rows.weight[:, None] / jnp.maximum(of_row, 1), 0.0) / jnp.maximum(jnp.sum(of_row > 0), 1)

  def steps_at_a_time(self, rows: int, width: int) -> int:
    """Chooses of how many steps the canvases go through at once: as many as divide those of a part and make no more rows than asked."""
    of_part = width // self.parts
    fits = [
      s
      for s in range(1, of_part + 1)
      if of_part % s == 0 and (s * rows <= self.rows_at_a_time or not self.rows_at_a_time)
    ]
    return max(fits, default=1)

  # The models.

  @property
  def forward(self) -> Forward:
    """The forward pass, as this step computes it."""
    return Forward(self.denoiser.mesh, self.denoiser.dtype, self.remat)

  def with_base(self, params: Params, frozen_models: FrozenModels) -> Params:
    """Returns the student's parameters: those of an adapter with its base's beside them."""
    return params if frozen_models.base is None else lora.join(frozen_models.base, params)

  def with_moving_teacher(self, state: TrainState, frozen_models: FrozenModels) -> FrozenModels:
    """Puts the teacher that follows the student, if there is one, beside the models that do not move."""
    moving = self.teacher_update.of(state)
    if moving is None:
      return frozen_models
    return dataclasses.replace(frozen_models, moving=lax.stop_gradient(self.with_base(moving, frozen_models)))

  def teacher(self, frozen_models: FrozenModels, prompts: Batch, canvas: Int[Array, "N H"]) -> HiddenAndHead:
    """Computes what the teacher predicts at each position of a canvas."""
    initial, current = None, None
    if self.teachers:
      (params,), (cfg,) = frozen_models.teacher_params, self.teachers
      initial = self.forward.canvas(params, cfg, prompts, canvas, self.teacher_layout)
    if frozen_models.moving is not None:
      layout = "train" if frozen_models.base is None else self.teacher_layout
      current = self.forward.canvas(frozen_models.moving, self.student, prompts, canvas, layout)
    if current is None:
      assert initial is not None
      return initial
    return self.teacher_update.predict(initial, current)

  def forward_student(
    self, params: Params, frozen_models: FrozenModels, prompts: Batch, canvas: Int[Array, "N H"]
  ) -> HiddenAndHead:
    """Computes what the student predicts at each position of a canvas."""
    layout = "train" if frozen_models.base is None else self.teacher_layout
    return self.forward.canvas(self.with_base(params, frozen_models), self.student, prompts, canvas, layout)


def confidence_of(model: HiddenAndHead, objective: Objective) -> Float[Array, "N H"]:
  """Compute a model's largest probability at each position, some positions at a time."""
  V = min(objective.vocab, model.head.shape[0])
  head = model.head[:V].astype(model.hidden.dtype)

  def of_positions(hidden: Float[Array, "N h D"]) -> Float[Array, "N h"]:
    logits = jnp.einsum("nhd,vd->nhv", hidden, head, preferred_element_type=jnp.float32) / objective.teacher_temperature
    return jnp.exp(jnp.max(logits, axis=-1) - jax.nn.logsumexp(logits, axis=-1))

  N, H, D = model.hidden.shape
  chunks = next(c for c in range(1, H + 1) if H % c == 0 and (N * H // c * V <= LOGITS_AT_A_TIME or c == H))
  if chunks == 1:
    return of_positions(model.hidden)
  by_chunk = lax.map(of_positions, model.hidden.reshape(N, chunks, H // chunks, D).swapaxes(0, 1))
  return by_chunk.swapaxes(0, 1).reshape(N, H)
