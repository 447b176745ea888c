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
from opd_jax.types import Box


def whole(images: Sequence[ImageRef], *, drawn: bool) -> tuple[ImageRef, ...]:
  """What the student sees of a prompt's images.

  Args:
    drawn: whether the boxes are.
  """
  return tuple(image._replace(view="marked") if drawn and image.boxes else image for image in images)


def crops(images: Sequence[ImageRef], zoom: float) -> tuple[ImageRef, ...]:
  """What the teacher sees of them: of an image with boxes the least rectangle that holds these, and others whole."""
  return tuple(image._replace(view="crop", zoom=zoom) if image.boxes else image for image in images)


def of_others(rows: Sequence[Sequence[ImageRef]]) -> list[tuple[ImageRef, ...]]:
  """Give each problem's first image the boxes of the next problem that has others: the control of `context.region`."""
  boxes = [row[0].boxes if row else () for row in rows]

  def another(i: int) -> tuple[Box, ...]:
    behind = (boxes[(i + j) % len(boxes)] for j in range(1, len(boxes)))
    return next((found for found in behind if found and found != boxes[i]), boxes[i])

  return [(row[0]._replace(boxes=another(i)), *row[1:]) if boxes[i] else tuple(row) for i, row in enumerate(rows)]


def with_views(
  found: Problems, config: Config, tokenizer: Any, rendering: Rendering, images: ImagePrompts, *, held_out: bool
) -> Problems:
  """Draw boxes where `data.draw_boxes` says so; with crops, give problems to train on the prompts of a teacher that sees these.

  Held-out questions show the whole image, or its crop where `context.eval_view` says so.

  Raises:
    InputError: a crop cannot be used, or makes a prompt of more than `context.max_tokens`, unless `data.on_bad_line` is skip.
  """
  context = config.context
  where = config.data.draw_boxes
  drawn = where == "all" or (where == "training" and not held_out)
  seen = dataclasses.replace(found, images=tuple(whole(row, drawn=drawn) for row in found.images))
  if context.kind != "crop" or (held_out and context.eval_view == "whole"):
    return seen
  rows = found.images if held_out or context.region == "question" else of_others(found.images)
  refs = tuple(crops(row, context.zoom) for row in rows)
  ids, fits = _rendered(found, refs, config, tokenizer, rendering if held_out else rendering.for_teacher(), images)
  if held_out:
    return dataclasses.replace(found, images=refs, ids=ids).select(fits)
  kept = dataclasses.replace(seen, teacher_images=refs).select(fits)
  return dataclasses.replace(kept, teacher_ids=tuple(row for row, fit in zip(ids, fits, strict=True) if fit))


def _rendered(
  found: Problems,
  refs: Sequence[tuple[ImageRef, ...]],
  config: Config,
  tokenizer: Any,
  rendering: Rendering,
  images: ImagePrompts,
) -> tuple[list[list[int]], list[bool]]:
  """Tokenise prompts with their crops, and tell which can be used."""
  rows, faults = images.render_each(list(zip(found.prompts, refs, strict=True)), tokenizer, rendering)
  longest = config.context.max_tokens
  for i, row in enumerate(rows):
    if row is not None and len(row) > longest:
      rows[i] = None
      faults[i] = f"the teacher's prompt has {len(row)} tokens, more than context.max_tokens={longest}"
  fits = [row is not None for row in rows]
  if not all(fits) and (config.data.on_bad_line != "skip" or not any(fits)):
    first = fits.index(False)
    raise InputError(
      f"{len(fits) - sum(fits)} of {len(fits)} crops cannot be used; of problem {first + 1}: {faults[first]}."
    )
  return [row or [] for row in rows], fits
