"""Chooses coordinates of a model: exactly so many of each group, by threshold, without a sort and without joining tensors.

A score is a uint32 for every coordinate, and of a group the largest are chosen. The threshold is found bit by bit, from 32
counts of the coordinates at or above it, so that arrays stay where they lie on the mesh and the devices send counts alone;
the same coordinates are chosen on any mesh. Of equal scores the next kind of score decides, and in the end the place.

A group is made of cells: a tensor of one layer, or what of it is in one stratum of magnitude. Layers are stacked on the first
axis of the arrays under "layers" (models/decoder.py); other parameters are one cell each.

Dimensions: L layers of a stack, or 1; S strata; C cells of all tensors; G groups.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt8, UInt32

from opd_jax.runtime import hosts

STRATA = 64  # quarters of an octave of magnitude, from a tensor's largest on; the last has all that is smaller
Scores = Callable[[], list[UInt32[Array, "..."]]]  # of each tensor; made when they are needed


@dataclasses.dataclass(frozen=True)
class Tensors:
  """The tensors that are chosen from, in one order.

  Attributes:
    arrays: fp32 weights.
    stacked: of each, whether its first axis is that of the layers.
    strata: of each, the stratum of every coordinate; None: there is one.
  """

  arrays: list[Float[Array, "..."]]
  stacked: tuple[bool, ...]
  strata: list[UInt8[Array, "..."]] | None = None

  @property
  def cells(self) -> list[tuple[int, int]]:
    """The cells [L, S] of each tensor."""
    S = 1 if self.strata is None else STRATA
    return [(a.shape[0] if stacked else 1, S) for a, stacked in zip(self.arrays, self.stacked, strict=True)]

  def by_magnitude(self) -> "Tensors":
    """Puts every coordinate in its stratum of |w|."""
    return dataclasses.replace(self, strata=_made(_strata, self.arrays))

  def sizes(self) -> Int[np.ndarray, " C"]:
    """Counts the coordinates of every cell."""
    return self.count([jnp.ones_like(a, bool) for a in self.arrays])

  def count(self, marks: list[Bool[Array, "..."]]) -> Int[np.ndarray, " C"]:
    """Counts the marked coordinates of every cell."""
    return _on_host(_count(marks, self.strata, self.stacked))

  def spread(self, values: Int[np.ndarray, " C"]) -> list[UInt32[np.ndarray, "_ S"]]:
    """Takes numbers of cells apart, by tensor."""
    ends = np.cumsum([L * S for L, S in self.cells])[:-1]
    return [
      part.astype(np.uint32).reshape(cells) for part, cells in zip(np.split(values, ends), self.cells, strict=True)
    ]


def largest(
  tensors: Tensors, scores: Sequence[Scores], groups: Int[np.ndarray, " C"], quota: Int[np.ndarray, " G"]
) -> list[Bool[Array, "..."]]:
  """Marks `quota[g]` coordinates of each group g: those of the largest scores.

  Args:
    scores: the first decides, the next one among equals; of equals in all of them the first in a tensor, and the first tensors.
    groups: of every cell, its group.
    quota: no more than the group's coordinates.
  """
  taken = [jnp.zeros_like(a, bool) for a in tensors.arrays]
  open_ = [jnp.ones_like(a, bool) for a in tensors.arrays]  # neither taken nor passed over yet
  quota = np.asarray(quota, np.int64)
  for score in scores:
    taken, open_, quota = _take_above(tensors, score(), taken, open_, groups, quota)
    if np.array_equal(_grouped(tensors.count(open_), groups, len(quota)), quota):
      return [a | b for a, b in zip(taken, open_, strict=True)]
  quota = _by_cell(tensors.count(open_), groups, quota)
  places = _made(_places, tensors.arrays, static=[(stacked,) for stacked in tensors.stacked])
  taken, open_, _ = _take_above(tensors, places, taken, open_, np.arange(len(quota)), quota)
  # No two places of a cell are equal: one is left where another one is wanted.
  wanted = tensors.spread(np.minimum(quota, 1))
  return [a | b for a, b in zip(taken, _where_cell(open_, wanted, tensors.strata, tensors.stacked), strict=True)]


def _take_above(
  tensors: Tensors,
  scores: list[UInt32[Array, "..."]],
  taken: list[Bool[Array, "..."]],
  open_: list[Bool[Array, "..."]],
  groups: Int[np.ndarray, " C"],
  quota: Int[np.ndarray, " G"],
) -> tuple[list[Array], list[Array], Int[np.ndarray, " G"]]:
  """Takes what is above the least score that is taken; returns that, what has this score, and how many of it are wanted."""
  threshold = np.zeros(len(quota), np.int64)
  for bit in reversed(range(32)):
    candidate = threshold | (1 << bit)
    counts = _count_at_least(open_, scores, tensors.spread(candidate[groups]), tensors.strata, tensors.stacked)
    threshold = np.where(_grouped(_on_host(counts), groups, len(quota)) >= quota, candidate, threshold)
  cells = tensors.spread(threshold[groups])
  above, equal = _above_and_equal(scores, open_, cells, tensors.strata, tensors.stacked)
  quota = quota - _grouped(tensors.count(above), groups, len(quota))
  return [a | b for a, b in zip(taken, above, strict=True)], equal, quota


def _grouped(cells: Int[np.ndarray, " C"], groups: Int[np.ndarray, " C"], n: int) -> Int[np.ndarray, " G"]:
  found = np.zeros(n, np.int64)
  np.add.at(found, groups, cells)
  return found


def _by_cell(
  counts: Int[np.ndarray, " C"], groups: Int[np.ndarray, " C"], quota: Int[np.ndarray, " G"]
) -> Int[np.ndarray, " C"]:
  """Divides what is wanted of each group over its cells: of the first as much as it has, then of the next."""
  left, found = quota.copy(), np.zeros_like(counts)
  for cell, group in enumerate(groups):
    found[cell] = min(counts[cell], left[group])
    left[group] -= found[cell]
  return found


def apportion(weights: Int[np.ndarray, " G"], sizes: Int[np.ndarray, " G"], total: int) -> Int[np.ndarray, " G"]:
  """Divides `total` in proportion to the weights, no part above its size: largest remainders, the first of equal ones.

  Where the parts of a weight above 0 are full, the others get what is left in proportion to their sizes.

  Args:
    weights: where they sum to the total, and none is above its size, they are returned.
    total: no more than the sum of the sizes.
  """
  weights, sizes = np.asarray(weights, np.float64), np.asarray(sizes, np.int64)
  if total >= (most := int(sizes[weights > 0].sum())):
    full = np.where(weights > 0, sizes, 0)
    rest = sizes - full
    return full if total == most else full + apportion(rest, rest, total - most)
  capped = np.zeros(len(sizes), bool)
  while True:
    free = weights * ~capped
    share = np.where(capped, sizes, free * ((total - sizes[capped].sum()) / max(free.sum(), 1e-300)))
    if not (over := share > sizes).any():
      break
    capped |= over
  found = np.floor(share + 1e-9).astype(np.int64)
  remainder = np.where(found < sizes, share - found, -1.0)
  found[np.argsort(-remainder, kind="stable")[: total - found.sum()]] += 1
  return found


def bits(a: Float[Array, "..."]) -> UInt32[Array, "..."]:
  """Returns numbers that rise with |a|, of finite fp32."""
  return lax.bitcast_convert_type(jnp.abs(a).astype(jnp.float32), jnp.uint32)


def by_distance(before: list[Float[Array, "..."]], after: list[Float[Array, "..."]]) -> Scores:
  """Scores coordinates by how far they moved, in fp32."""
  return lambda: _made(_distance, before, after)


def by_smallness(arrays: list[Float[Array, "..."]]) -> Scores:
  """Scores coordinates the higher, the smaller their magnitude."""
  return lambda: _made(_smallness, arrays)


def at_random(arrays: list[Float[Array, "..."]], key: jax.Array) -> Scores:
  """Scores coordinates at random, each tensor by a key of its own; the same on any mesh."""
  return lambda: _made(_draw, arrays, [jax.random.fold_in(key, n) for n in range(len(arrays))])


def moved_visibly(
  before: list[Float[Array, "..."]], after: list[Float[Array, "..."]], threshold: float, mantissa: int
) -> list[Bool[Array, "..."]]:
  """Marks the coordinates that moved by more than the threshold as checkpoints of so many bits of mantissa show it.

  7 are bfloat16's, as checkpoints are stored, of which arXiv:2606.13657 takes its masks; to even, where two are as near. The update
  is added to weights that are rounded: those of a model that was read from such a checkpoint, and of others as if it had been, so that
  it does not matter where a weight lies between two that can be stored.
  """
  return _made(_moved, before, after, static=[(threshold, mantissa)] * len(before))


def _distance(a: Array, b: Array) -> Array:
  return bits(b - a)


def _smallness(a: Array) -> Array:
  return ~bits(a)


def _draw(a: Array, key: Array) -> Array:
  return jax.random.bits(key, a.shape, jnp.uint32)


def _moved(a: Array, b: Array, threshold: float, mantissa: int) -> Array:
  before = lax.reduce_precision(a, exponent_bits=8, mantissa_bits=mantissa)
  after = lax.reduce_precision(before + (b - a), exponent_bits=8, mantissa_bits=mantissa)
  return jnp.abs(after - before) > threshold


def _strata(a: Array) -> Array:
  octave = bits(a) >> 21  # exponent and two bits of mantissa
  return jnp.minimum(jnp.max(octave) - octave, STRATA - 1).astype(jnp.uint8)


def _places(a: Array, stacked: bool) -> Array:
  """Numbers the coordinates of each layer, the first one with the largest number."""
  place, stride = jnp.zeros(a.shape, jnp.uint32), 1
  for axis in reversed(range(int(stacked), a.ndim)):
    place += lax.broadcasted_iota(jnp.uint32, a.shape, axis) * jnp.uint32(stride)
    stride *= a.shape[axis]
  return ~place


def _made(
  make: Callable[..., Array], arrays: list[Array], *others: list[Array], static: Sequence[tuple] | None = None
) -> list[Array]:
  """Makes an array of each of the arrays, which lies on the mesh as it does.

  Args:
    make: a function of this module, of an array of each list and of what is static.
  """
  static = static or [()] * len(arrays)
  return [
    _program(make, settings, a.sharding)(a, *more) for settings, a, *more in zip(static, arrays, *others, strict=True)
  ]


@functools.lru_cache(maxsize=1024)
def _program(make: Callable[..., Array], static: tuple, sharding: jax.sharding.Sharding) -> Callable[..., Array]:
  """Compiles once for tensors of one shape: random bits take a second."""
  return jax.jit(lambda *arrays: make(*arrays, *static), out_shardings=sharding)


def _of_cells(values: Array, stratum: Array | None, stacked: bool, ndim: int) -> Array:
  """Gives every coordinate what [L, S] has for its cell."""
  if stratum is None:
    return values[:, 0].reshape((-1,) + (1,) * (ndim - 1)) if stacked else values[0, 0]

  def take(row: Array, where: Array) -> Array:
    return row[where.astype(jnp.int32)]

  return jax.vmap(take)(values, stratum) if stacked else take(values[0], stratum)


def _each(f: Callable[..., Any], strata: list | None, stacked: tuple[bool, ...], *lists: list) -> list:
  strata = strata or [None] * len(stacked)
  return [f(s, of_layers, *each) for s, of_layers, *each in zip(strata, stacked, *lists, strict=True)]


def _on_host(counts: list[UInt32[Array, "_ S"]]) -> Int[np.ndarray, " C"]:
  return np.concatenate([np.asarray(c, np.int64).reshape(-1) for c in hosts.all_gather_to_host(counts)])


@functools.partial(jax.jit, static_argnums=2)
def _count(marks: list, strata: list | None, stacked: tuple[bool, ...]) -> list[UInt32[Array, "_ S"]]:
  def count(stratum: Array | None, of_layers: bool, mark: Array) -> Array:
    return _by_stratum(lambda s: mark, stratum, of_layers, mark.ndim)

  return _each(count, strata, stacked, marks)


@functools.partial(jax.jit, static_argnums=4)
def _count_at_least(
  open_: list, scores: list, thresholds: list, strata: list | None, stacked: tuple[bool, ...]
) -> list[UInt32[Array, "_ S"]]:
  """Counts by cell what is open and has at least the cell's score."""

  def count(stratum: Array | None, of_layers: bool, there: Array, score: Array, threshold: Array) -> Array:
    def mark(s: Array) -> Array:
      return there & (score >= _of_cells(threshold[:, s][:, None], None, of_layers, score.ndim))

    return _by_stratum(mark, stratum, of_layers, score.ndim)

  return _each(count, strata, stacked, open_, scores, thresholds)


def _by_stratum(
  mark: Callable[[Array], Bool[Array, "..."]], stratum: Array | None, stacked: bool, ndim: int
) -> UInt32[Array, "L S"]:
  """Counts the marks of each stratum s that are in it, by layer; no tensor of a layer has 2^32 coordinates."""

  def within(s: Array) -> Array:
    marks = mark(s) if stratum is None else mark(s) & (stratum == s)
    return jnp.sum(marks, axis=tuple(range(int(stacked), ndim)), dtype=jnp.uint32).reshape(-1)

  return lax.map(within, jnp.arange(1 if stratum is None else STRATA)).T


@functools.partial(jax.jit, static_argnums=4)
def _above_and_equal(
  scores: list, open_: list, thresholds: list, strata: list | None, stacked: tuple[bool, ...]
) -> tuple[list, list]:
  def mark(stratum: Array | None, of_layers: bool, score: Array, there: Array, threshold: Array) -> tuple[Array, Array]:
    t = _of_cells(threshold, stratum, of_layers, score.ndim)
    return there & (score > t), there & (score == t)

  above, equal = zip(*_each(mark, strata, stacked, scores, open_, thresholds), strict=True)
  return list(above), list(equal)


@functools.partial(jax.jit, static_argnums=3)
def _where_cell(marks: list, cells: list, strata: list | None, stacked: tuple[bool, ...]) -> list:
  def mark(stratum: Array | None, of_layers: bool, there: Array, cell: Array) -> Array:
    return there & (_of_cells(cell, stratum, of_layers, there.ndim) > 0)

  return _each(mark, strata, stacked, marks, cells)
