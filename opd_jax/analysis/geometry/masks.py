"""The masks of a tensor that updates are looked up in: its largest coordinates in few directions, and its smallest ones.

Principal mask: the largest share rho of the coordinates of |U_k S_k V_k'|, k = floor(rho n). Low-magnitude mask: the smallest
share rho of |W0|. Both for every rho of coordinates.SHARES, in the bits of one array: principal first.

Dimensions: m rows, n columns; b rows of a block; k vectors.
"""

import functools
from collections.abc import Callable, Sequence

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
    counts: Int[np.ndarray, "bins"],
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
    low = [coordinates.cut(counts, rho, largest=False) for rho in SHARES]
    high: list[Cut] = []
    if principal:
      for k, rho in zip(principal[1], SHARES, strict=True):
        own = np.zeros(coordinates.BINS, np.int64)
        for i in range(len(spans)):
          own += np.asarray(coordinates.histogram(self._approximation(i, k)))
        high.append(coordinates.cut(own, rho, largest=True))
    self._alone: Array | None = None
    self._spill = Spill(shape, spans, mesh, np.uint8) if len(spans) > 1 else None
    for i, (start, _) in enumerate(spans):
      first = np.uint32(start * shape[1] & 0xFFFFFFFF)
      packed = _low(weight(i), [c.edge for c in low], [c.part for c in low], first)
      for bit, (k, edge) in enumerate(zip(principal[1] if principal else (), high, strict=True)):
        packed = _with(packed, self._approximation(i, k), edge.edge, edge.part, first, bit)
      if self._spill:
        self._spill.write(packed)
      else:
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

  def _approximation(self, i: int, k: int) -> Float[Array, "b n"]:
    assert self._principal
    found = self._principal[0]
    basis, values = found.vectors[:, :k], found.values[:k]
    return subspaces.approximation(subspaces.left_vectors(self._weight(i), basis, values), values, basis)


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

