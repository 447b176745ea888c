"""Statistics of single coordinates of an update: sparsity, energy of the largest, masks, coverage, overlap.

All are counts or sums over blocks, so that a matrix need not be in memory at once. Where the largest or smallest coordinates
are asked for, magnitudes are sorted into BINS of which each is at most 1/2048 of its value wide, exact for bfloat16.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt8

ABSOLUTE = (1e-6, 1e-5, 1e-4, 1e-3)  # thresholds of |dW|; the paper's main one is 1e-5
RELATIVE = (1e-4, 1e-3, 1e-2)  # in units of RMS(W0)
LARGEST = (0.001, 0.01, 0.05)  # shares of the coordinates, of `top_energy`
SHARES = (0.01, 0.05, 0.1, 0.2)  # rho: of the principal and low-magnitude masks, and of principal subspaces
VISIBLE = (0.0, 1e-5)  # alpha: a coordinate is visible where |dW| > alpha

PART = 1 << 24  # coordinates that are counted at a time
_DROPPED = 12  # mantissa bits of fp32 that bins ignore
BINS = 1 << (31 - _DROPPED)


def bins(x: Float[Array, "..."]) -> Int[Array, "..."]:
  """The bin of each magnitude, growing with it: the leading bits of fp32 without the sign."""
  return (lax.bitcast_convert_type(jnp.abs(x), jnp.int32) >> _DROPPED).astype(jnp.int32)


def _by_parts(function: Callable[..., Any], *arrays: Array) -> Any:
  """Sum what a function counts, over parts of the rows: its temporaries are as large as what it is given.

  Of blocks that lie over several devices each has its part already.
  """
  rows, columns = arrays[0].shape
  step = rows if len(arrays[0].sharding.device_set) > 1 else max(1, PART // columns)
  found = None
  for start in range(0, rows, step):
    parts = arrays if step >= rows else [a[start : start + step] for a in arrays]
    counted = jax.block_until_ready(function(*parts))
    found = counted if found is None else jax.tree.map(jnp.add, found, counted)
  return found


def histogram(x: Float[Array, "b n"]) -> Int[Array, "bins"]:
  """Count the coordinates of a block by bin."""
  return _by_parts(_histogram, x)


@jax.jit
def _histogram(x: Array) -> Array:
  return jnp.bincount(bins(x).reshape(-1), length=BINS)


@functools.cache
def _magnitudes() -> np.ndarray:
  """The magnitude in the middle of every bin; of the first 0, which holds zero and what is too small to square."""
  edges = (np.arange(BINS + 1, dtype=np.uint64) << np.uint64(_DROPPED)).astype(np.uint32).view(np.float32)
  finite = np.where(np.isfinite(edges), edges, np.finfo(np.float32).max).astype(np.float64)
  middle = (finite[1:] + finite[:-1]) / 2
  middle[0] = 0.0
  return middle


def top_energy(counts: Int[np.ndarray, "bins"], shares: Sequence[float] = LARGEST) -> list[float] | None:
  """The share of the squared norm that the largest coordinates hold (c_p); within 5e-4 of the exact one.

  Args:
    counts: of `histogram`, over the tensor.
    shares: of the coordinates; a number of coordinates that is not whole takes a part of the last.

  Returns:
    A number for each share, or None where the update is zero.
  """
  filled = np.flatnonzero(counts)[::-1]
  number = counts[filled]
  energy = number * np.square(_magnitudes()[filled])
  total = energy.sum()
  if not total:
    return None
  above, held = np.cumsum(number), np.cumsum(energy) / total
  wanted = np.array(shares) * number.sum()
  return [float(x) for x in np.interp(wanted, np.concatenate([[0], above]), np.concatenate([[0.0], held]))]


@dataclasses.dataclass(frozen=True)
class Cut:
  """Where a mask of the largest or of the smallest coordinates ends.

  Attributes:
    edge: the bin in which it ends.
    part: the share of the coordinates in that bin which belong to the mask.
  """

  edge: int
  part: float


def cut(counts: Int[np.ndarray, "bins"], share: float, largest: bool) -> Cut:
  """Find where the mask of a share of the coordinates ends, the largest or the smallest by magnitude."""
  filled = np.flatnonzero(counts)
  filled = filled[::-1] if largest else filled
  upto = np.cumsum(counts[filled])
  wanted = share * upto[-1]
  i = min(int(np.searchsorted(upto, wanted)), len(filled) - 1)
  before = upto[i - 1] if i else 0
  return Cut(int(filled[i]), float((wanted - before) / counts[filled[i]]))


def members(
  x: Float[Array, "b n"], edge: Array | int, part: Array | float, first: Array | np.integer | int, largest: bool
) -> Bool[Array, "b n"]:
  """The mask that `cut` describes, in a block; among equals a coordinate's place decides, as if by lot.

  Args:
    first: the number of coordinates in the blocks before.
  """
  own = bins(x)
  inside = own > edge if largest else own < edge
  return inside | ((own == edge) & (_lots(x.shape, first) < part))


def _lots(shape: tuple[int, ...], first: Array | np.integer | int) -> Float[Array, "..."]:
  """A number in [0, 1) for every place: MurmurHash3's finaliser (Appleby) of its index."""
  n = int(np.prod(shape))
  h = jnp.arange(n, dtype=jnp.uint32).reshape(shape) + jnp.asarray(first, jnp.uint32)
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    h = (h ^ (h >> shift)) * jnp.uint32(factor)
  h = h ^ (h >> 16)
  return (h >> 8).astype(jnp.float32) / (1 << 24)


def pack(masks: Iterable[Bool[Array, "b n"]]) -> UInt8[Array, "b n"]:
  """Put up to eight masks into the bits of one array, the first into the lowest."""
  packed = None
  for i, mask in enumerate(masks):
    bit = mask.astype(jnp.uint8) << i
    packed = bit if packed is None else packed | bit
  assert packed is not None
  return packed


@jax.jit
def squares(x: Float[Array, "..."]) -> Float[Array, ""]:
  """The sum of squares of a block, along rows first, so that fp32 loses little of it."""
  return jnp.sum(jnp.sum(jnp.square(x), axis=-1))


def count(update: Float[Array, "b n"], thresholds: Float[Array, " t"], masks: UInt8[Array, "b n"]) -> dict[str, Array]:
  """Count the coordinates of a block of an update.

  Args:
    thresholds: of |dW|.
    masks: of `pack`; zeros where there are none.

  Returns:
    "zero", int32[]: that are exactly 0. "within", int32[t]: at most a threshold. "masks", int32[a, 256]: above each of VISIBLE,
    by the bits of `masks`. "square", float32[]: the sum of squares.
  """
  return _by_parts(functools.partial(_count, thresholds), update, masks)


@jax.jit
def _count(thresholds: Array, update: Array, masks: Array) -> dict[str, Array]:
  size = jnp.abs(update)
  above = sum((size > alpha).astype(jnp.int32) for alpha in VISIBLE)  # how many of VISIBLE, which grow
  found = jnp.bincount((masks + 256 * above).reshape(-1), length=256 * (len(VISIBLE) + 1))
  return {
    "zero": jnp.sum(size == 0),
    "within": lax.map(lambda t: jnp.sum(size <= t), thresholds),  # a loop compiles sooner than so many sums
    "masks": jnp.cumsum(found.reshape(-1, 256)[::-1], axis=0)[-2::-1],
    "square": squares(update),
  }


def hits(found: Float[np.ndarray, "a 256"]) -> tuple[list[float], list[list[float]]]:
  """Count the visible coordinates, and those in each mask, for each of VISIBLE, from `count`'s "masks"."""
  inside = [found[:, (np.arange(256) >> i) & 1 == 1].sum(axis=1) for i in range(8)]
  return found.sum(axis=1).tolist(), np.stack(inside, axis=1).tolist()


@jax.jit
def shared(one: Float[Array, "b n"], other: Float[Array, "b n"]) -> dict[str, Array]:
  """Count the visible coordinates of two runs' updates, "visible" and "other", and of "both", for each of VISIBLE: int32[a]."""
  pairs = [(jnp.abs(one) > alpha, jnp.abs(other) > alpha) for alpha in VISIBLE]
  return {
    "visible": jnp.stack([jnp.sum(a) for a, _ in pairs]),
    "other": jnp.stack([jnp.sum(b) for _, b in pairs]),
    "both": jnp.stack([jnp.sum(a & b) for a, b in pairs]),
  }


def overlap(first: float, second: float, both: float, size: float) -> dict[str, float | None]:
  """The overlap of two masks, from the numbers of coordinates in each, in both, and in all.

  Returns:
    "of_first": the share of the first mask inside the second (o1), whose chance level is the density of the second;
    "of_second" likewise; "lift": both over chance, the same number for either. None where a mask is empty.
  """
  return {
    "of_first": both / first if first else None,
    "of_second": both / second if second else None,
    "lift": both * size / (first * second) if first and second else None,
  }
