"""The programs of a distillation step: its pure functions lowered for one shape, from arrays or their shapes alone.

Recipes compile them, and so do plan, bench and study; what they compute is in distillation.py.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from opd_jax.runtime import mesh as meshes
from opd_jax.training.distillation import DistillationStep
from opd_jax.types import Batch, Credit, FrozenModels, Params, Rollout, RowContext, TrainState


def step_programs(
  step: DistillationStep,
  response_len: int,
  state: TrainState,
  frozen_models: FrozenModels,
  batch: Batch,
  context_len: int = 0,
  wanted: Sequence[str] = ("update", "rollout"),
) -> Iterator[tuple[str, jax.stages.Lowered]]:
  """Lowers the step functions of one width for these arguments, abstract or not; the slower to compile first.

  Args:
    context_len: tokens of the teacher's prompts, where each row has its own; 0: none has.
    wanted: which of the two.
  """
  everywhere = meshes.replicated(step.mesh)
  state, frozen_models, batch, _ = _abstract(step, state, frozen_models, batch)
  behavior = step.behavior_params(state.params, frozen_models)
  rollout, responses = rollout_program(step, response_len, behavior, batch)
  credit = abstract_credit(step, len(responses.ended), context_len, response_len)
  part = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere) if step.mini_batches > 1 else None
  if "update" in wanted:
    state_shardings = jax.tree.map(lambda a: a.sharding, state)
    update = jax.jit(step.update, donate_argnums=0, out_shardings=(state_shardings, everywhere))
    yield "update", update.lower(state, frozen_models, batch, responses, credit, part)
  if "rollout" in wanted and step.behavior != "data":
    yield "rollout", rollout()


def abstract_credit(step: DistillationStep, rows: int, context_len: int = 0, response_len: int = 0) -> Credit | None:
  """Returns the shapes of each row's credit; None where an update takes none."""

  def array(dtype: Any, *columns: int) -> Any:
    return jax.ShapeDtypeStruct((rows, *columns), dtype, sharding=meshes.rows(step.mesh))

  context = None
  if context_len:
    context = RowContext(array(jnp.int32, context_len), array(jnp.bool_, context_len), array(jnp.bool_))
  if step.token_credit:
    by_token = array(jnp.float32, response_len)
    return Credit(by_token, array(jnp.bool_), context, by_token)
  if step.loss.reward:
    return Credit(array(jnp.float32), array(jnp.bool_), context)
  return context and Credit(context=context)


def rollout_program(
  step: DistillationStep, response_len: int, params: Params, batch: Batch
) -> tuple[Callable[[], jax.stages.Lowered], Rollout]:
  """Returns what lowers the rollout of one width, and the shapes of its responses.

  Args:
    params, batch: arrays or their shapes, with shardings.
  """
  row, everywhere = meshes.rows(step.mesh), meshes.replicated(step.mesh)
  key, limit = jax.eval_shape(lambda: (jax.random.key(0), jnp.int32(0)))
  args = (meshes.abstract(params), meshes.abstract(batch), *meshes.abstract((key, limit), everywhere))
  rollout = functools.partial(step.rollout, response_len=response_len)
  responses = meshes.abstract(jax.eval_shape(rollout, *args), row)
  return lambda: jax.jit(rollout, out_shardings=row).lower(*args), responses


def probe_program(
  step: DistillationStep,
  probe: tuple[tuple[int, ...], int],
  state: TrainState,
  frozen_models: FrozenModels,
  batch: Batch,
) -> tuple[str, jax.stages.Lowered]:
  """Lowers the step's `probe` for (widths, prompts)."""
  widths, prompts = probe
  state, frozen_models, batch, key = _abstract(step, state, frozen_models, batch)
  program = jax.jit(
    functools.partial(step.probe, widths=widths, prompts=prompts), out_shardings=meshes.replicated(step.mesh)
  )
  return "probe", program.lower(state, frozen_models, batch, key)


def score_program(
  step: DistillationStep,
  response_len: int,
  prompts: int,
  state: TrainState,
  frozen_models: FrozenModels,
  batch: Batch,
  context_len: int = 0,
) -> tuple[str, jax.stages.Lowered]:
  """Lowers the step's `score` of so many prompts; `context_len` as of `step_programs`."""
  state, frozen_models, batch, _ = _abstract(step, state, frozen_models, batch)
  _, responses = rollout_program(step, response_len, step.behavior_params(state.params, frozen_models), batch)
  program = jax.jit(functools.partial(step.score, prompts=prompts), out_shardings=meshes.replicated(step.mesh))
  credit = abstract_credit(step, len(responses.ended), context_len)
  return "score", program.lower(state, frozen_models, batch, responses, credit and credit.context)


def _abstract(step: DistillationStep, state: TrainState, frozen_models: FrozenModels, batch: Batch):
  key = meshes.abstract(jax.eval_shape(lambda: jax.random.key(0)), meshes.replicated(step.mesh))
  return meshes.abstract(state), meshes.abstract(frozen_models), meshes.abstract(batch, meshes.rows(step.mesh)), key
