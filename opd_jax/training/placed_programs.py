"""The compiled programs of steps with places (places.py): rollouts of both kinds of prompts, what joins them, and the update of all.

Prompts of the first kind have one width P. Those of the second have one of a few, W, which is then that of all prompts of the update.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from opd_jax.data import pipeline
from opd_jax.data.image_refs import ImageRef
from opd_jax.models import roofline
from opd_jax.models.roofline import Cost
from opd_jax.runtime import hosts
from opd_jax.runtime import mesh as meshes
from opd_jax.runtime.programs import StepShape
from opd_jax.training import lowering
from opd_jax.training.distillation import DistillationStep
from opd_jax.training.places import Places, joined
from opd_jax.training.prompt_images import ImageSizes, ModelImages
from opd_jax.types import Batch, FrozenModels, Rollout, TrainState


@dataclasses.dataclass(frozen=True)
class PlacedPrograms:
  """Their shapes, and how they are lowered.

  Attributes:
    step: the computations of an update of all places.
    response_len: H.
    wide_ratio: of the widths W, see pipeline.rising_widths.
    longest: W of all, tokens; 0: there are no prompts of the second kind.
    scored: prompts whose responses are scored for a log; 0: none.
    images: the sizes of prompts' images; None: they have none.
  """

  step: DistillationStep
  places: Places
  response_len: int
  longest: int
  wide_ratio: float
  scored: int = 0
  images: ImageSizes | None = None

  def wide_widths(self, prompt: int) -> tuple[int, ...]:
    """The widths W that all prompts of an update are padded to, rising; P alone without prompts of the second kind."""
    return pipeline.rising_widths(max(self.longest, prompt), self.wide_ratio, prompt) if self.longest else (prompt,)

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

  def shapes(self, prompt: int) -> list[StepShape]:
    """All shapes of a run whose prompts of the first kind have width P, by first use."""
    found = [self.plain(prompt)]
    for wide in self.wide_widths(prompt):
      found += [self.asked(wide)] if self.places.asked else []
      found += [self.join(prompt, wide), self.update(wide)]
      found += [self.update(wide)._replace(kind="score", context=0)] if self.scored else []
    return found

  def prompts(
    self,
    shape: StepShape,
    ids: Sequence[Sequence[int]],
    seen: ModelImages | None = None,
    refs: Sequence[tuple[ImageRef, ...]] = (),
  ) -> Batch:
    """Lays out prompts of a kind on the devices, which every process has all of; the places behind them repeat the first.

    Args:
      seen: how the model sees images; None: the prompts have none.
      refs: those of each prompt.
    """
    places = self.places.asked if shape.kind == "asked" else self.places.plain
    rows = [*ids, *[ids[0] if ids else [0]] * (places - len(ids))]
    batch = pipeline.pad(rows, shape.prompt, self.step.sampling.pad_id)
    if seen is not None:
      of_rows = [*refs, *[refs[0] if refs else ()] * (places - len(ids))]
      batch = dataclasses.replace(batch, images=seen.place(batch.prompt, batch.prompt_mask, of_rows))  # pyright: ignore[reportArgumentType]: numpy
    return self.to_devices(batch)

  def no_rollout(self, shape: StepShape) -> Rollout:
    """Makes the rollout of a kind without a prompt: no row has a token."""
    rows = [[0]] * ((self.places.asked if shape.kind == "asked" else self.places.plain) * self.step.n)
    return self.to_devices(pipeline.rollout_from_data(rows, shape.width, 0, self.step.sampling.pad_id))

  def to_devices(self, tree: Any) -> Any:
    """Makes global arrays of rows that every process has all of."""
    return hosts.to_global(tree, meshes.rows(self.step.mesh))

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

  def roofline_costs(self, name: str, n: int, prompt: int, response: int) -> list[Cost]:
    """Counts what all places of a step cost, as if both kinds of prompts had one length.

    Args:
      name: "rollout" or "update".
      n: rollouts of each prompt.
      prompt, response: lengths, tokens.
    """
    step, places = self.step, self.places
    features = self.images.within(prompt).room if self.images else 0
    sizes: dict[str, Any] = {"vocab": step.sampling.vocab, "itemsize": step.dtype.itemsize, "features": features}
    if name == "update":
      return [roofline.update(step.student, (), places.update, n, prompt, response, remat=step.remat, **sizes)]
    parts = [part for part in (places.plain, places.asked) if part]
    return [cost for part in parts for cost in roofline.rollout(step.student, part, n, prompt, response, **sizes)]

  def _lower_join(self, shape: StepShape, state: TrainState, frozen_models: FrozenModels) -> jax.stages.Lowered:
    rows, params = meshes.rows(self.step.mesh), self.step.behavior_params(state.params, frozen_models)
    sizes = [(self.places.plain, shape.prompt), *([(self.places.asked, shape.context)] if self.places.asked else [])]
    batches = [self._prompts(*size) for size in sizes]
    parts = [(batch, lowering.rollout_program(self.step, shape.width, params, batch)[1]) for batch in batches]
    order = jax.ShapeDtypeStruct((self.places.update,), jnp.int32, sharding=rows)
    live = jax.ShapeDtypeStruct((self.places.update,), jnp.bool_, sharding=rows)
    features = 0
    if self.images is not None:
      sizes_there = self.images.within(shape.context)
      features = sizes_there.room * max(1, sizes_there.patches[0])
    program = functools.partial(joined, width=shape.context, pad_id=self.step.sampling.pad_id, features=features)
    return jax.jit(program, out_shardings=rows).lower(parts, order, live)

  def _prompts(self, places: int, width: int) -> Batch:
    array = functools.partial(jax.ShapeDtypeStruct, (places, width), sharding=meshes.rows(self.step.mesh))
    images = self.images and self.images.abstract(places, width, self.step.dtype, meshes.rows(self.step.mesh))
    return Batch(array(dtype=jnp.int32), array(dtype=jnp.bool_), images=images)  # pyright: ignore[reportArgumentType]
