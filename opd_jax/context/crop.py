"""Vision-OPD's context (arXiv:2605.18740): the student looks at the whole image, the teacher at the region that the question is about.

The region is a record's box (data.box_field). The teacher's image is what stands in it, enlarged; the student's has the box drawn in red,
so that the question can name it. All words are the same on both sides, and what is learned is aligned by the response's tokens, whose
prompts have other numbers of image tokens.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from opd_jax.config import Config
from opd_jax.data.image_prompts import ImagePrompts
from opd_jax.data.image_refs import ImageRef
from opd_jax.data.problems import Problems
from opd_jax.data.rendering import Rendering
from opd_jax.errors import InputError


def whole(images: Sequence[ImageRef], *, drawn: bool) -> tuple[ImageRef, ...]:
  """What the student sees of a prompt's images.

  Args:
    drawn: whether the boxes are.
  """
  return tuple(image._replace(view="marked") if drawn and image.boxes else image for image in images)


def crops(images: Sequence[ImageRef], zoom: float) -> tuple[ImageRef, ...]:
  """What the teacher sees of them: of an image with boxes the least rectangle that holds these, and others whole."""
  return tuple(image._replace(view="crop", zoom=zoom) if image.boxes else image for image in images)


def with_crops(
  found: Problems, config: Config, tokenizer: Any, rendering: Rendering, images: ImagePrompts, *, held_out: bool
) -> Problems:
  """Draw boxes where `context.marks` says so, and give problems to train on the prompts of a teacher that sees the crops.

  Raises:
    InputError: a crop cannot be used, or makes a prompt of more than `context.max_tokens`, unless `data.on_bad_line` is skip.
  """
  context = config.context
  drawn = context.marks == "all" or (context.marks == "training" and not held_out)
  seen = dataclasses.replace(found, images=tuple(whole(row, drawn=drawn) for row in found.images))
  if held_out or context.kind != "crop":
    return seen
  refs = tuple(crops(row, context.zoom) for row in found.images)
  prompts = list(zip(found.prompts, refs, strict=True))
  rows, faults = images.render_each(prompts, tokenizer, rendering.for_teacher())
  for i, row in enumerate(rows):
    if row is not None and len(row) > context.max_tokens:
      rows[i], faults[i] = (
        None,
        f"the teacher's prompt has {len(row)} tokens, more than context.max_tokens={context.max_tokens}",
      )
  fits = [row is not None for row in rows]
  if not all(fits) and (config.data.on_bad_line != "skip" or not any(fits)):
    first = fits.index(False)
    raise InputError(
      f"{len(fits) - sum(fits)} of {len(fits)} crops cannot be used; of problem {first + 1}: {faults[first]}."
    )
  kept = dataclasses.replace(seen, teacher_images=refs).select(fits)
  return dataclasses.replace(kept, teacher_ids=tuple(row for row in rows if row is not None))
