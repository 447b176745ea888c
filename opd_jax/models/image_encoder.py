"""A frozen vision tower at work: images in, features out, each image once.

Features are kept in host memory up to a limit, the latest used; programs are one per width of patches.

Dimensions: S patches, M features, K taps, D width of the decoder.
"""

import functools
import pathlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.models import hf_vision, image_rows, vision
from opd_jax.models.image_rows import Encoding, Picture
from opd_jax.models.vision import VisionConfig
from opd_jax.runtime import mesh as meshes

PATCHES = 16_384  # of one call, padding included


class ImageEncoder:
  """The tower of a model directory on this process's own devices.

  Args:
    widths: rising, patches; an image takes the first that holds it.
    limit: bytes of features that are kept.
    dtype: the compute type, which features are kept in.

  Attributes:
    encoded: how many images the tower has seen.
  """

  def __init__(self, directory: pathlib.Path, cfg: VisionConfig, widths: Sequence[int], limit: float, dtype: Any):
    self.cfg = cfg
    self.encoded = 0
    self._widths, self._limit, self._dtype = tuple(widths), limit, jnp.dtype(dtype)
    self._mesh = meshes.make(devices=jax.local_devices())
    self._directory = directory
    self._kept: OrderedDict[Hashable, Encoding] = OrderedDict()
    self._bytes = 0
    encode = functools.partial(vision.encode, cfg=cfg, dtype=self._dtype)
    rows = meshes.rows(self._mesh)
    self._program = jax.jit(lambda params, patches: encode(params, patches=patches), out_shardings=rows)

  @functools.cached_property
  def _params(self) -> Any:
    whole = meshes.replicated(self._mesh)
    shapes = vision.shapes(self.cfg)
    shardings = jax.tree.map(lambda _: whole, shapes, is_leaf=lambda x: isinstance(x, tuple))
    return hf_vision.load(self._directory, self.cfg, shardings, self._dtype)

  def widen(self, patches: int) -> None:
    """Add a width for images of so many patches, where none holds them."""
    if patches > self._widths[-1]:
      self._widths += (patches,)

  def rows(self, width: int) -> int:
    """How many images of a width go through at a time."""
    shards = meshes.row_shards(self._mesh)
    return max(1, PATCHES // (width * shards)) * shards

  def __call__(self, images: Sequence[tuple[Hashable, Callable[[], Picture]]]) -> list[Encoding]:
    """Encode images, those that are not kept.

    Args:
      images: of each a key, and what cuts it into patches when it is needed.
    """
    found = {key: self._kept[key] for key, _ in images if key in self._kept}
    missing = {key: cut() for key, cut in dict(images).items() if key not in found}
    by_width: dict[int, list[Hashable]] = {}
    for key, picture in missing.items():
      width = next(width for width in self._widths if width >= len(picture.pixels))
      by_width.setdefault(width, []).append(key)
    for width, keys in sorted(by_width.items()):
      rows = self.rows(width)
      for first in range(0, len(keys), rows):
        part = keys[first : first + rows]
        found |= zip(part, self._encode([missing[key] for key in part], width, rows), strict=True)
    for key, encoding in found.items():
      self._keep(key, encoding)
    return [found[key] for key, _ in images]

  def _encode(self, pictures: Sequence[Picture], width: int, rows: int) -> list[Encoding]:
    padded = [[picture] for picture in pictures] + [[]] * (rows - len(pictures))
    patches = jax.device_put(image_rows.patches(padded, width, self.cfg), meshes.rows(self._mesh))
    features, taps = jax.device_get(self._program(self._params, patches))
    self.encoded += len(pictures)
    out = []
    for picture, own, tapped in zip(pictures, features, taps, strict=False):
      size = picture.features(self.cfg.merge)
      M = size[0] * size[1]
      out.append(Encoding(np.array(own[:M]), np.array(tapped[:, :M]), size))
    return out

  def _keep(self, key: Hashable, encoding: Encoding) -> None:
    if key not in self._kept:
      self._bytes += encoding.features.nbytes + encoding.taps.nbytes
    self._kept[key] = encoding
    self._kept.move_to_end(key)
    while self._bytes > self._limit and len(self._kept) > 1:
      _, old = self._kept.popitem(last=False)
      self._bytes -= old.features.nbytes + old.taps.nbytes
