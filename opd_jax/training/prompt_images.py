"""The images of a run's prompts: encoded once for every model that reads them, and put into batches.

Dimensions: p prompts, P prompt width, M features of a prompt's images at the most.
"""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.data import pipeline
from opd_jax.data.image_refs import ImageFault, ImageRef
from opd_jax.data.images import ImageProcessor, preview
from opd_jax.data.problems import Problems
from opd_jax.errors import InputError
from opd_jax.models import image_rows, mrope
from opd_jax.models.image_encoder import ImageEncoder
from opd_jax.models.image_rows import Encoding, Picture
from opd_jax.models.spec import ModelSpec
from opd_jax.types import Batch, Images


class ImageSizes(NamedTuple):
  """What is static about the images of one model's prompts."""

  room: int  # M
  taps: int
  d_model: int
  patches: tuple[int, int] = (0, 0)  # of a feature, and the numbers of each; where the model encodes them itself

  def within(self, width: int) -> "ImageSizes":
    """The sizes in prompts of a width, which cannot have more features than tokens."""
    return self._replace(room=min(self.room, width))

  def abstract(self, prompts: int, width: int, dtype: Any, sharding: Any) -> Images:
    """The shapes of a batch's images."""

    def array(*shape: int, dtype: Any = jnp.int32) -> Any:
      return jax.ShapeDtypeStruct((prompts, *shape), dtype, sharding=sharding)

    room, (merged, numbers) = self.within(width).room, self.patches
    patches = image_rows.abstract_patches(prompts, room * merged, numbers, sharding) if merged else None
    return Images(
      features=None if merged else array(room, self.d_model, dtype=dtype),
      taps=None if merged else array(self.taps, room, self.d_model, dtype=dtype),
      index=array(width),
      positions=array(width, mrope.AXES),
      next_position=array(),
      patches=patches,
    )


def _room(counts: Sequence[Sequence[int]]) -> int:
  """The most features of a prompt, rounded up so that a changed file seldom means a new compile."""
  return max(16, math.ceil(max((sum(row) for row in counts), default=0) / 16) * 16)


def _features(row: Sequence[int], image_id: int) -> list[int]:
  """The features of each of a prompt's images: how often the token of an image stands there in a row."""
  return [sum(1 for _ in group) for here, group in itertools.groupby(token == image_id for token in row) if here]


@dataclasses.dataclass(frozen=True)
class ModelImages:
  """How one model sees the images of prompts."""

  processor: ImageProcessor
  encoder: ImageEncoder
  sizes: ImageSizes
  dtype: Any

  @classmethod
  def of(
    cls, model: ModelSpec, processor: ImageProcessor, ids: Sequence[Sequence[int]], limit: float, dtype: Any
  ) -> "ModelImages":
    """Make the encoder of a model for the images of these prompts.

    Args:
      ids: token ids of the prompts, by which the sizes of their images are known.
      limit: bytes of features that are kept.

    Raises:
      InputError: the tower's features are not as wide as the decoder.
    """
    tower = processor.tower
    if tower.out_width != model.cfg.d_model:
      raise InputError(
        f"{model.name}: the features of its vision tower have {tower.out_width} numbers, and its decoder is {model.cfg.d_model} wide; "
        "mend config.json."
      )
    counts = [_features(row, processor.image_id) for row in ids]
    features = [n for row in counts for n in row] or [1]
    widths = pipeline.rising_widths(max(features), 2.0, min(features), 1)
    encoder = ImageEncoder(model.path, tower, [n * tower.merged for n in widths], limit, dtype)
    encoder.expect(n * tower.merged for row in counts for n in row)
    patches = (0, 0) if model.cfg.tower is None else (tower.merged, tower.pixels)
    return cls(processor, encoder, ImageSizes(_room(counts), len(tower.taps), model.cfg.d_model, patches), dtype)

  def for_prompts(self, ids: Sequence[Sequence[int]]) -> "ModelImages":
    """The same model, for the images of other prompts: its encoder goes on with those too."""
    counts = [_features(row, self.processor.image_id) for row in ids]
    self.encoder.expect(n * self.encoder.cfg.merged for row in counts for n in row)
    return dataclasses.replace(self, sizes=self.sizes._replace(room=_room(counts)))

  @property
  def encoders(self) -> tuple[ImageEncoder, ...]:
    """What encodes the images beforehand: nothing where the model has its tower with it."""
    return () if self.sizes.patches[0] else (self.encoder,)

  def encode(self, rows: Sequence[Sequence[ImageRef]]) -> list[list[Encoding]]:
    """The features of every image of each row.

    Raises:
      InputError: an image cannot be read any more.
    """
    flat = [ref for row in rows for ref in row]
    try:
      keys = [ref.key for ref in flat]
    except (ImageFault, OSError) as e:
      raise _unreadable(e) from None
    found = iter(self.encoder([(key, lambda ref=ref: self._picture(ref)) for key, ref in zip(keys, flat, strict=True)]))
    return [[next(found) for _ in row] for row in rows]

  def _picture(self, ref: ImageRef) -> Picture:
    try:
      return self.processor.picture(ref)
    except (ImageFault, OSError) as e:
      raise _unreadable(e) from None

  def place(self, prompt: np.ndarray, mask: np.ndarray, rows: Sequence[Sequence[ImageRef]]) -> Images:
    """The images of prompts, int[p, P] and bool[p, P], as arrays on the host."""
    ids = [row[m] for row, m in zip(np.asarray(prompt), np.asarray(mask), strict=True)]
    width = prompt.shape[1]
    sizes = self.sizes.within(width)
    if sizes.patches[0]:
      pictures = [[self._picture(ref) for ref in row] for row in rows]
      features = [[picture.features(self.processor.tower.merge) for picture in row] for row in pictures]
      found = image_rows.places_of(ids, features, width=width, room=sizes.room, image_id=self.processor.image_id)
      patches = image_rows.patches(pictures, sizes.room * sizes.patches[0], self.processor.tower)
      return dataclasses.replace(found, patches=patches)
    return image_rows.placed(
      ids,
      self.encode(rows),
      width=width,
      room=sizes.room,
      image_id=self.processor.image_id,
      taps=sizes.taps,
      d_model=sizes.d_model,
      dtype=np.dtype(self.dtype),
    )


def _unreadable(fault: Exception) -> InputError:
  return InputError(f"An image cannot be read: {fault}.")


@dataclasses.dataclass(frozen=True)
class PromptImages:
  """The images of the prompts that are trained on, for the student and its teachers.

  Attributes:
    student: how the student sees them.
    teachers: how each teacher does; () where all see as the student does, and read what it reads.
  """

  student: ModelImages
  teachers: tuple[ModelImages, ...] = ()

  @property
  def sizes(self) -> tuple[ImageSizes, ...]:
    """The student's sizes, and then each teacher's."""
    return (self.student.sizes, *(teacher.sizes for teacher in self.teachers))

  @property
  def encoders(self) -> tuple[ImageEncoder, ...]:
    """What encodes images beforehand, for one model or several, each once."""
    return tuple(dict.fromkeys(encoder for seen in (self.student, *self.teachers) for encoder in seen.encoders))

  def attach(self, batch: Batch, index: np.ndarray, train: Problems) -> Batch:
    """Put the images of prompts beside them, on the host.

    Args:
      index: which of the problems the prompts are.
    """
    of_student = [train.images[i] for i in index]
    images = self.student.place(batch.prompt, batch.prompt_mask, of_student)  # pyright: ignore[reportArgumentType]: numpy
    if not self.teachers:
      return dataclasses.replace(batch, images=images)
    prompt, mask, rows = batch.prompt, batch.prompt_mask, of_student
    if batch.teacher_prompt is not None:
      prompt, mask = batch.teacher_prompt, batch.teacher_prompt_mask
      rows = [train.teacher_images[i] for i in index]
    of_teachers = tuple(teacher.place(prompt, mask, rows) for teacher in self.teachers)  # pyright: ignore[reportArgumentType]: numpy
    return dataclasses.replace(batch, images=images, teacher_images=of_teachers)


def previews(problems: Problems, number: int) -> tuple[list[str], list[str]]:
  """Small copies of what the student sees of a problem's images, and of what its teacher sees, where that is something else."""
  teacher = problems.teacher_images[number] if problems.teacher_images else ()
  return previews_of(problems.images[number]), previews_of(teacher)


def previews_of(refs: Sequence[ImageRef]) -> list[str]:
  """Small copies of images, as data: addresses; one that cannot be read any more is left out."""
  found = []
  for ref in refs:
    with contextlib.suppress(ImageFault, OSError):
      found.append(preview(ref))
  return found
