"""A frozen vision tower at work: images in, features out, each image once.

Features are kept in host memory up to a limit, the latest used. Programs are one per width of patches, and compiled ahead for the
images that are expected.

Dimensions: I images, S patches, M features, K taps, D width of the decoder.
"""

import functools
import pathlib
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.models import hf_vision, image_rows, vision
from opd_jax.models.image_rows import Encoding, Picture
from opd_jax.models.vision import VisionConfig
from opd_jax.runtime import mesh as meshes
from opd_jax.runtime.programs import ProgramCache, StepShape, record
from opd_jax.types import Params, Patches

PROGRAM = "encode"  # its name in run.json
PATCHES = 16_384  # of one call, padding included


class ImageEncoder:
  """The tower of a model directory on this process's own devices.

  Args:
    widths: rising, patches; an image takes the first that holds it.
    limit: bytes of features that are kept.
    dtype: the compute type, which features are kept in.

  Attributes:
    widths: those that expected images take, rising: each has a program.
    compiled: one programs.record per program.
    encoded: how many images the tower has seen.
  """

  def __init__(self, directory: pathlib.Path, cfg: VisionConfig, widths: Sequence[int], limit: float, dtype: Any):
    self.cfg = cfg
    self.widths: tuple[int, ...] = ()
    self.compiled: list[dict] = []
    self.encoded = 0
    self._widths, self._limit, self._dtype = tuple(widths), limit, jnp.dtype(dtype)
    self._mesh = meshes.make(devices=jax.local_devices())
    self._directory = directory
    self._kept: OrderedDict[Hashable, Encoding] = OrderedDict()
    self._bytes = 0
    self._programs: dict[int, jax.stages.Compiled] = {}  # by width

  @functools.cached_property
  def _params(self) -> Params:
    shardings = jax.tree.map(lambda a: a.sharding, self.abstract_params)
    return hf_vision.load(self._directory, self.cfg, shardings, self._dtype)

  @property
  def abstract_params(self) -> Params:
    """The shapes and shardings of the tower's weights, which every device holds in full."""
    return abstract_params(self.cfg, self._mesh, self._dtype)

  def expect(self, patches: Iterable[int]) -> None:
    """Know that images of so many patches will come; a width is added where none holds the largest."""
    patches = set(patches)
    if patches and max(patches) > self._widths[-1]:
      self._widths += (max(patches),)
    self.widths = tuple(sorted({*self.widths, *map(self._width, patches)}))

  def _width(self, patches: int) -> int:
    return next(width for width in self._widths if width >= patches)

  def prepare(self, program_cache: ProgramCache | None = None) -> None:
    """Compile the programs of all `widths`, or take them from `program_cache`."""
    for width in self.widths:
      self._program(width, program_cache)

  def _program(self, width: int, program_cache: ProgramCache | None = None) -> jax.stages.Compiled:
    if width not in self._programs:
      began, cache = time.perf_counter(), {} if program_cache is None else program_cache
      key = (PROGRAM, self.cfg, self._mesh, width, self._dtype)
      if key not in cache:
        cache[key] = lower(self.cfg, self._mesh, width, self._dtype).compile()
      self._programs[width] = cache[key]
      self.compiled.append(record(PROGRAM, StepShape(0, width), time.perf_counter() - began, cache[key]))
    return self._programs[width]

  def __call__(self, images: Sequence[tuple[Hashable, Callable[[], Picture]]]) -> list[Encoding]:
    """Encode images, those that are not kept.

    Args:
      images: of each a key, and what cuts it into patches when it is needed.
    """
    found = {key: self._kept[key] for key, _ in images if key in self._kept}
    missing = {key: cut() for key, cut in dict(images).items() if key not in found}
    by_width: dict[int, list[Hashable]] = {}
    for key, picture in missing.items():
      by_width.setdefault(self._width(len(picture.pixels)), []).append(key)
    for width, keys in sorted(by_width.items()):
      rows = rows_of(self._mesh, width)
      for first in range(0, len(keys), rows):
        part = keys[first : first + rows]
        found |= zip(part, self._encode([missing[key] for key in part], width, rows), strict=True)
    for key, encoding in found.items():
      self._keep(key, encoding)
    return [found[key] for key, _ in images]

  def _encode(self, pictures: Sequence[Picture], width: int, rows: int) -> list[Encoding]:
    padded = [[picture] for picture in pictures] + [[]] * (rows - len(pictures))
    patches = jax.device_put(image_rows.patches(padded, width, self.cfg), meshes.rows(self._mesh))
    features, taps = jax.device_get(self._program(width)(self._params, patches))
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


def rows_of(mesh: jax.sharding.Mesh, width: int) -> int:
  """I, how many images of a width go through at a time."""
  shards = meshes.row_shards(mesh)
  return max(1, PATCHES // (width * shards)) * shards


def abstract_params(cfg: VisionConfig, mesh: jax.sharding.Mesh, dtype: Any) -> Params:
  """The shapes and shardings of a tower's weights on a mesh, of which every device holds them in full."""
  whole = meshes.replicated(mesh)
  return jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=whole),
    vision.shapes(cfg),
    is_leaf=lambda x: isinstance(x, tuple),
  )


def lower(cfg: VisionConfig, mesh: jax.sharding.Mesh, width: int, dtype: Any) -> jax.stages.Lowered:
  """Lower the program that encodes images of at most `width` patches, one image to a row."""
  rows = meshes.rows(mesh)

  def encode(params: Params, patches: Patches) -> vision.Encoded:
    return vision.encode(params, cfg, patches, dtype=dtype)

  patches = image_rows.abstract_patches(rows_of(mesh, width), width, cfg.pixels, rows)
  return jax.jit(encode, out_shardings=rows).lower(abstract_params(cfg, mesh, dtype), patches)
