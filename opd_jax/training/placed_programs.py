"""The compiled programs of steps with places (places.py): rollouts of both kinds of prompts, what joins them, and the update of all.

Prompts of the first kind have one width P. Those of the second have one of a few, W, which is then that of all prompts of the update.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from opd_jax.runtime import mesh as meshes
from opd_jax.runtime.programs import StepShape
from opd_jax.training import lowering
from opd_jax.training.distillation import DistillationStep
from opd_jax.training.places import Places, joined
from opd_jax.types import Batch, FrozenModels, TrainState


@dataclasses.dataclass(frozen=True)
class PlacedPrograms:
  """Their shapes, and how they are lowered.

  Attributes:
    step: the computations of an update of all places.
    response_len: H.
    scored: prompts whose responses are scored for a log; 0: none.
  """

  step: DistillationStep
  places: Places
  response_len: int
  scored: int = 0

  def plain(self, prompt: int) -> StepShape:
    """Rollouts of prompts of the first kind."""
    return StepShape(prompt, self.response_len)

  def asked(self, wide: int) -> StepShape:
    """Rollouts of prompts of the second kind."""
    return StepShape(wide, self.response_len, kind="asked")

  def join(self, prompt: int, wide: int) -> StepShape:
    """What makes one batch of both."""
    return StepShape(prompt, self.response_len, kind="join", context=wide)

  def update(self, wide: int) -> StepShape:
    """The update of that batch."""
    return StepShape(wide, self.response_len, kind="update", context=wide)

  def shapes(self, prompt: int, widths: Sequence[int]) -> list[StepShape]:
    """All shapes of a run, by first use.

    Args:
      prompt: P.
      widths: those of W.
    """
    found = [self.plain(prompt)]
    for wide in widths:
      found += [self.asked(wide)] if self.places.asked else []
      found += [self.join(prompt, wide), self.update(wide)]
      found += [self.update(wide)._replace(kind="score", context=0)] if self.scored else []
    return found

  def lower(
    self, shape: StepShape, state: TrainState, frozen_models: FrozenModels
  ) -> Iterator[tuple[str, jax.stages.Lowered]]:
    """Lower what a step of this shape runs; state and models are arrays or their shapes."""
    if shape.kind in ("step", "asked"):
      places = self.places.plain if shape.kind == "step" else self.places.asked
      params, batch = self.step.behavior_params(state.params, frozen_models), self._prompts(places, shape.prompt)
      yield "rollout", lowering.rollout_program(self.step, shape.width, params, batch)[0]()
    elif shape.kind == "join":
      yield "join", self._lower_join(shape, state, frozen_models)
    elif shape.kind == "update":
      batch = self._prompts(self.places.update, shape.prompt)
      yield from lowering.step_programs(self.step, shape.width, state, frozen_models, batch, wanted=("update",))
    else:
      batch = self._prompts(self.places.update, shape.prompt)
      yield lowering.score_program(self.step, shape.width, self.scored, state, frozen_models, batch)

  def _lower_join(self, shape: StepShape, state: TrainState, frozen_models: FrozenModels) -> jax.stages.Lowered:
    rows, params = meshes.rows(self.step.mesh), self.step.behavior_params(state.params, frozen_models)
    sizes = [(self.places.plain, shape.prompt), *([(self.places.asked, shape.context)] if self.places.asked else [])]
    batches = [self._prompts(*size) for size in sizes]
    parts = [(batch, lowering.rollout_program(self.step, shape.width, params, batch)[1]) for batch in batches]
    order = jax.ShapeDtypeStruct((self.places.update,), jnp.int32, sharding=rows)
    live = jax.ShapeDtypeStruct((self.places.update,), jnp.bool_, sharding=rows)
    program = functools.partial(joined, width=shape.context, pad_id=self.step.sampling.pad_id)
    return jax.jit(program, out_shardings=rows).lower(parts, order, live)

  def _prompts(self, places: int, width: int) -> Batch:
    array = functools.partial(jax.ShapeDtypeStruct, (places, width), sharding=meshes.rows(self.step.mesh))
    return Batch(array(dtype=jnp.int32), array(dtype=jnp.bool_))  # pyright: ignore[reportArgumentType]
