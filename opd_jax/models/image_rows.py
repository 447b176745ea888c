"""Images as arrays: patches with their places, and where their features stand in prompts.

Dimensions: I rows, S patches, c numbers of a patch; B prompts, P prompt width, M features, K taps, D model width.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from opd_jax.models import mrope
from opd_jax.models.vision import VisionConfig
from opd_jax.types import Images, Patches


class Picture(NamedTuple):
  """One image, cut into patches."""

  pixels: np.ndarray  # float32[S, c]
  rows: int  # of patches
  columns: int

  def features(self, merge: int) -> tuple[int, int]:
    """Its rows and columns of features."""
    return self.rows // merge, self.columns // merge


def places(rows: int, columns: int, merge: int) -> tuple[np.ndarray, np.ndarray]:
  """The row and the column of each patch, in the order in which they stand: the patches of a feature are neighbours."""
  grid = np.arange(rows * columns).reshape(rows // merge, merge, columns // merge, merge)
  order = grid.transpose(0, 2, 1, 3).reshape(-1)
  return np.divmod(order.astype(np.int32), columns)  # pyright: ignore[reportReturnType]


def patches(rows: Sequence[Sequence[Picture]], width: int, cfg: VisionConfig) -> Patches:
  """Put the images of each row behind each other, padded to `width` patches.

  Raises:
    ValueError: a row's images have more patches.
  """
  I = len(rows)
  pixels = np.zeros((I, width, cfg.pixels), np.float32)
  row, column, image = (np.full((I, width), fill, np.int32) for fill in (0, 0, -1))
  size = np.ones((I, width, 2), np.int32)
  for i, pictures in enumerate(rows):
    first = 0
    for number, picture in enumerate(pictures):
      span = slice(first, first + len(picture.pixels))
      if span.stop > width:
        raise ValueError(f"the images of row {i} have more than {width} patches")
      pixels[i, span] = picture.pixels
      row[i, span], column[i, span] = places(picture.rows, picture.columns, cfg.merge)
      size[i, span], image[i, span] = (picture.rows, picture.columns), number
      first = span.stop
  return Patches(pixels, row, column, size, image)  # pyright: ignore[reportArgumentType]: numpy until it is put on devices


def abstract_patches(rows: int, width: int, pixels: int, sharding: Any) -> Patches:
  """The shapes of `patches`, I rows of S = `width` with c = `pixels` numbers each."""

  def array(*size: int, dtype: Any = np.int32) -> Any:
    return jax.ShapeDtypeStruct((rows, width, *size), dtype, sharding=sharding)

  return Patches(array(pixels, dtype=np.float32), array(), array(), array(2), array())


class Encoding(NamedTuple):
  """The features of one image."""

  features: np.ndarray  # float[M, D]
  taps: np.ndarray  # float[K, M, D]
  size: tuple[int, int]  # rows and columns of features


def placed(
  ids: Sequence[Sequence[int] | np.ndarray],
  encodings: Sequence[Sequence[Encoding]],
  *,
  width: int,
  room: int,
  image_id: int,
  taps: int,
  d_model: int,
  dtype: np.dtype | type = np.float32,
) -> Images:
  """Put the features of each prompt's images where they stand.

  Args:
    encodings: of each prompt's images, in order.
    Others are those of `places_of`.
  """
  B = len(ids)
  found = places_of(
    ids, [[image.size for image in row] for row in encodings], width=width, room=room, image_id=image_id
  )
  features = np.zeros((B, room, d_model), dtype)
  tapped = np.zeros((B, taps, room, d_model), dtype)
  for i, images in enumerate(encodings):
    if images:
      n = sum(len(image.features) for image in images)
      features[i, :n] = np.concatenate([image.features for image in images])
      tapped[i, :, :n] = np.concatenate([image.taps for image in images], axis=1)
  return dataclasses.replace(found, features=features, taps=tapped)


def places_of(
  ids: Sequence[Sequence[int] | np.ndarray],
  sizes: Sequence[Sequence[tuple[int, int]]],
  *,
  width: int,
  room: int,
  image_id: int,
) -> Images:
  """Say where the features of each prompt's images stand; there are none yet.

  Args:
    ids: of prompts, which are padded on the left to `width`.
    sizes: of their images in order, rows and columns of features.
    room: features that the arrays have room for, M.

  Raises:
    ValueError: a prompt's images do not fit its places for them, or `room`.
  """
  B = len(ids)
  index = np.full((B, width), -1, np.int32)
  positions = np.zeros((B, width, mrope.AXES), np.int32)
  following = np.zeros((B,), np.int32)
  for i, (row, of_images) in enumerate(zip(ids, sizes, strict=True)):
    tokens = np.asarray(row, np.int32)
    first = width - len(tokens)
    positions[i, first:] = found = mrope.positions(tokens, image_id, of_images)
    following[i] = mrope.following(found)
    here = tokens == image_id
    if here.sum() > room:
      raise ValueError(f"prompt {i} has {here.sum()} features of images, and there is room for {room}")
    index[i, first:][here] = np.arange(here.sum())
  return Images(None, None, index, positions, following)  # pyright: ignore[reportArgumentType]: numpy until it is put on devices
