"""How a region of an image is shown: drawn in red on all of it, or cut out and enlarged."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from opd_jax.types import Box

RED = (255, 0, 0)


def union(boxes: Sequence[Box]) -> tuple[int, int, int, int]:
  """The whole pixels of the least rectangle that holds all boxes."""
  left, top, right, bottom = zip(*boxes, strict=True)
  return math.floor(min(left)), math.floor(min(top)), math.ceil(max(right)), math.ceil(max(bottom))


def marked(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
  """Draw boxes in red, with a line of a two-hundredth of the longer side, two pixels at least."""
  image = image.copy()
  draw, line = ImageDraw.Draw(image), max(2, max(image.size) // 200)
  for left, top, right, bottom in (union([box]) for box in boxes):
    draw.rectangle((left, top, right - 1, bottom - 1), outline=RED, width=line)
  return image


def cropped(image: Image.Image, boxes: Sequence[Box], zoom: float) -> Image.Image:
  """Cut out what stands in the boxes, enlarged."""
  part = image.crop(union(boxes))
  return part.resize(zoomed(part.size, zoom), Image.Resampling.BICUBIC) if zoom != 1 else part


def zoomed(size: tuple[int, int], zoom: float) -> tuple[int, int]:
  """The size of what is enlarged, a pixel at the least."""
  return max(1, round(size[0] * zoom)), max(1, round(size[1] * zoom))
