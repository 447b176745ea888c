"""The masks of a tensor that updates are looked up in: its largest coordinates in few directions, and its smallest ones.

Principal mask: the largest share rho of the coordinates of |U_k S_k V_k'|, k = floor(rho n). Low-magnitude mask: the smallest
share rho of |W0|. Both for every rho of coordinates.SHARES, in the bits of one array: principal first.

Dimensions: m rows, n columns; b rows of a block; k vectors.
"""

import functools
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt8

from opd_jax.analysis.geometry import coordinates, subspaces
from opd_jax.analysis.geometry.blocks import Spill
from opd_jax.analysis.geometry.coordinates import SHARES, Cut
from opd_jax.analysis.geometry.subspaces import Principal


class Masks:
  """The masks of a tensor, block by block; of several blocks they wait in a temporary file."""

  def __init__(
    self,
    weight: Callable[[int], Float[Array, "b n"]],
    spans: Sequence[tuple[int, int]],
    shape: tuple[int, int],
    counts: Int[np.ndarray, " bins"],
    principal: tuple[Principal, Sequence[int]] | None,
    mesh: Mesh | None = None,
  ):
    """Find where the masks end, and make them.

    Args:
      weight: W0 of a block, by its number.
      counts: of |W0| by bin.
      principal: the first singular vectors of W0, and a k for each of SHARES; None: there are no principal masks.
    """
    self._weight, self._principal = weight, principal
    self._low = [coordinates.cut(counts, rho, largest=False) for rho in SHARES]
    self._width = shape[1]
    ks = principal[1] if principal else ()
    self._spill = Spill(shape, spans, mesh, np.uint8) if len(spans) > 1 else None
    self._alone: Array | None = None
    if self._spill:
      high = [
        self._cut((self._approximation(i, k) for i in range(len(spans))), rho)
        for k, rho in zip(ks, SHARES, strict=False)
      ]
      for i, (start, _) in enumerate(spans):
        packed = self._lowest(i, start)
        for bit, (k, cut) in enumerate(zip(ks, high, strict=True)):
          packed = _with(packed, self._approximation(i, k), cut.edge, cut.part, self._first(start), bit)
        self._spill.write(packed)
    else:
      packed = self._lowest(0, 0)
      for bit, (k, rho) in enumerate(zip(ks, SHARES, strict=False)):
        approximation = self._approximation(0, k)
        cut = self._cut([approximation], rho)
        packed = _with(packed, approximation, cut.edge, cut.part, self._first(0), bit)
      self._alone = packed

  def packed(self, i: int) -> UInt8[Array, "b n"]:
    """The masks of a block: bits 0 to 3 are principal, 4 to 7 of low magnitude, in the order of SHARES."""
    if self._spill:
      return self._spill.read(i)
    assert self._alone is not None
    return self._alone

  def close(self) -> None:
    """Remove the temporary file."""
    if self._spill:
      self._spill.close()

  def _first(self, row: int) -> np.uint32:
    """The number of coordinates before a row, for `coordinates.members`."""
    return np.uint32(row * self._width & 0xFFFFFFFF)

  def _lowest(self, i: int, row: int) -> UInt8[Array, "b n"]:
    return _low(self._weight(i), [c.edge for c in self._low], [c.part for c in self._low], self._first(row))

  def _cut(self, approximations: Iterable[Float[Array, "b n"]], rho: float) -> Cut:
    """Find where the principal mask of a share ends."""
    counts = np.zeros(coordinates.BINS, np.int64)
    for block in approximations:
      counts += np.asarray(coordinates.histogram(block))
    return coordinates.cut(counts, rho, largest=True)

  def _approximation(self, i: int, k: int) -> Float[Array, "b n"]:
    assert self._principal
    found = self._principal[0]
    return subspaces.approximation(self._weight(i), found.vectors, found.values, k)


@jax.jit
def _low(w: Array, edges: Sequence[int], parts: Sequence[float], first: np.uint32) -> Array:
  inside: list[Bool[Array, "b n"]] = [
    coordinates.members(w, edge, part, first, largest=False) for edge, part in zip(edges, parts, strict=True)
  ]
  return coordinates.pack(inside) << len(SHARES)


@functools.partial(jax.jit, static_argnums=5)
def _with(packed: Array, approximation: Array, edge: int, part: float, first: np.uint32, bit: int) -> Array:
  mask = coordinates.members(approximation, edge, part, first, largest=True)
  return packed | (mask.astype(jnp.uint8) << bit)
