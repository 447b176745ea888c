"""All statistics of one tensor: of the update that a run made, and of every draw of its nulls.

A tensor of at most `Options.whole` elements is in memory while it is measured. A larger one is read in blocks of rows, as often
as a statistic needs; updates whose spectra are asked for and masks wait in temporary files meanwhile.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from opd_jax.analysis.geometry import blocks, coordinates, masks, nulls, spectra, subspaces
from opd_jax.analysis.geometry.blocks import Matrix, Spill
from opd_jax.analysis.geometry.sources import Pair, Tensor
from opd_jax.errors import InputError

GROUPS = ("coordinates", "spectra", "subspaces", "rotation")
OBSERVED = "observed"
_SAMPLE = 1 << 20  # elements of W0 on which the Gaussian null of a rounded checkpoint is matched

Raw = dict[str, Any]  # what `summary` makes statistics of


@dataclasses.dataclass(frozen=True)
class Options:
  """How models are compared.

  Attributes:
    mantissa: explicit mantissa bits to which both checkpoints are rounded; 7 is bfloat16.
    exact: the largest shorter side of a matrix in memory whose spectrum is exact.
    draws: of each null.
    seed: of the nulls and of randomised spectra.
    groups: which of GROUPS are measured; norms and sparsity always are.
    whole: the elements of a tensor up to which it is in memory as a whole.
    block: the elements of a block of a larger one.
  """

  mantissa: int = nulls.BF16_MANTISSA
  exact: int = 4096
  draws: int = 3
  seed: int = 0
  groups: tuple[str, ...] = GROUPS
  whole: int = 1 << 26
  block: int = 1 << 24


@dataclasses.dataclass(frozen=True)
class Kind:
  """How an update is seen: its name, and the mantissa bits to which the weights before and after it are rounded."""

  name: str
  mantissa: int


def kinds(pairs: Sequence[Pair], options: Options) -> list[Kind]:
  """List how the updates are seen: as they are where any is known more finely than `options.mantissa` bits, and rounded."""
  bits = options.mantissa
  rounded = Kind("bf16" if bits == nulls.BF16_MANTISSA else f"{bits} bits", bits)
  return (
    [Kind("fp32", nulls.FULL_MANTISSA), rounded] if any(p.after and _known(p.after, bits) for p in pairs) else [rounded]
  )


def _known(after: Tensor | None, bits: int) -> bool:
  """Tell whether an update is known more finely than checkpoints of so many bits would show it.

  Where W1 is stored with no more bits it is not, however finely W0 is: W1 - W0 is mostly what rounding took from W1.
  """
  return after is None or after.change or after.mantissa > bits


class _View:
  """A tensor in the models, in blocks of rows with the longer axis first."""

  def __init__(self, pair: Pair, options: Options, mesh: Mesh | None, block: int):
    self.pair, self.options, self.mesh = pair, options, mesh
    shape = pair.shape + (1,) * (not pair.shape)
    self.matrix = len(shape) == 2 and min(shape) > 1
    rest = math.prod(shape[1:])
    self.wide = self.matrix and shape[0] < shape[1]
    self.shape = (shape[1], shape[0]) if self.wide else (shape[0], rest)
    self.spans = blocks.ranges(*self.shape, block)
    self.alone = len(self.spans) == 1
    self._kept: tuple[Array, Array] | None = None  # W0 and the update, of a tensor in memory
    self._drawn: tuple[tuple, Array] | None = None

  def weight(self, i: int) -> Float[Array, "b n"]:
    """W0, of a block."""
    return self._kept[0] if self._kept else self._read(self.pair.before, i)

  def update(self, i: int, other: bool = False) -> Float[Array, "b n"]:
    """W1 - W0, of a block; of the other run's W1."""
    if self._kept and not other:
      return self._kept[1]
    tensor, weight = self._after(other), self.weight(i)
    if tensor is None:
      return jnp.zeros_like(weight)
    return self._read(tensor, i) if tensor.change else self._read(tensor, i) - weight

  def seen(self, i: int, bits: int, other: bool = False) -> Float[Array, "b n"]:
    """What is seen of the update of a block by so many bits."""
    return self._seen(i, self.update(i, other), bits, other)

  def null_seen(self, i: int, update: Float[Array, "b n"], bits: int, other: bool = False) -> Float[Array, "b n"]:
    """What would be seen of another update of a block, added to W0 and stored as the run's W1 is."""
    tensor = self._after(other)
    if tensor is not None and not tensor.change:
      update = nulls.stored(self.weight(i), update, tensor.mantissa)
    return self._seen(i, update, bits, other)

  def _seen(self, i: int, update: Float[Array, "b n"], bits: int, other: bool) -> Float[Array, "b n"]:
    if bits >= nulls.FULL_MANTISSA:
      return update
    see = nulls.visible if _known(self._after(other), bits) else nulls.difference
    return see(self.weight(i), update, bits)

  def _after(self, other: bool) -> Tensor | None:
    return self.pair.other if other else self.pair.after

  def between_stored(self, i: int, other: bool = False) -> Float[Array, "b n"]:
    """The update of a block between checkpoints of W1's bits, without what rounding took from W1 alone."""
    tensor, update = self._after(other), self.update(i, other)
    if tensor is None or tensor.change or tensor.mantissa >= nulls.FULL_MANTISSA:
      return update
    return nulls.difference(self.weight(i), update, tensor.mantissa)

  def keep(self) -> None:
    """Keep a tensor of one block on the devices."""
    if self.alone:
      self._kept = (self.weight(0), self.update(0))

  def null(self, i: int, source: str, draw: int, std: float, other: bool = False) -> Float[Array, "b n"]:
    """A block of a null's update, before it is stored and rounded."""
    key = (source, draw, other, i, std)
    if self._drawn and self._drawn[0] == key:
      return self._drawn[1]
    self._drawn = None
    generator = nulls.rng(self.options.seed, self.pair.name, nulls.NULLS.index(source), draw, int(other), i)
    if source == "permuted":
      made = nulls.permuted(np.asarray(self.between_stored(i, other)), generator)
    else:
      start, stop = self.spans[i]
      made = nulls.gaussian((stop - start, self.shape[1]), std, generator)
    placed = blocks.place(made, self.mesh)
    if self.alone:  # it is seen in several kinds, one after the other
      self._drawn = (key, placed)
    return placed

  def _read(self, tensor: Tensor, i: int) -> Array:
    block = tensor.read(*self.spans[i], 1 if self.wide else 0)
    block = np.ascontiguousarray(block.T) if self.wide else block.reshape(-1, self.shape[1])
    return blocks.place(block, self.mesh)


def measure(
  pair: Pair, options: Options, seen_as: Sequence[Kind], mesh: Mesh | None = None
) -> dict[str, dict[str, list[Raw]]]:
  """Measure one tensor.

  Args:
    seen_as: of `kinds`.
    mesh: the devices, of `blocks.device_mesh`; None: the default device.

  Returns:
    By kind and by source ("observed" and the nulls) one record for each draw, for `summary.summarise`.

  Raises:
    InputError: a weight is NaN or Inf.
  """
  view = _View(pair, options, mesh, pair.size if pair.size <= options.whole else options.block)
  view.keep()
  totals = _totals(view)
  std = _gaussian_std(view, totals, pair.after)
  context = _Context(view, totals)
  try:
    out = {kind.name: {OBSERVED: [context.measure(lambda i, k=kind: view.seen(i, k.mantissa))]} for kind in seen_as}
    for source in nulls.NULLS:
      for draw in range(options.draws):
        for kind in seen_as:
          raw = out[kind.name][OBSERVED][0]
          if totals.update:

            def made(i: int, source=source, draw=draw, kind=kind) -> Array:
              return view.null_seen(i, view.null(i, source, draw, std), kind.mantissa)

            raw = context.measure(made)
          out[kind.name].setdefault(source, []).append(raw)
  finally:
    context.close()
  return out


@dataclasses.dataclass(frozen=True)
class _Totals:
  """Sums over a tensor: of squares of W0, of the update and of that between stored checkpoints; bins of |W0|; a sample of W0."""

  weight: float
  update: float
  stored: float
  bins: np.ndarray
  sample: np.ndarray


def _totals(view: _View, other: bool = False) -> _Totals:
  weight = update = stored = 0.0
  counts, rows = np.zeros(coordinates.BINS, np.int64), []
  stride = max(1, math.ceil(math.prod(view.shape) / _SAMPLE))
  for i, (start, _) in enumerate(view.spans):
    w = view.weight(i)
    weight += float(coordinates.squares(w))
    update += float(coordinates.squares(view.update(i, other)))
    stored += float(coordinates.squares(view.between_stored(i, other)))
    if "coordinates" in view.options.groups and view.matrix and not other:
      counts += np.asarray(coordinates.histogram(w))
    rows.append(np.asarray(w)[-start % stride :: stride].copy())  # a view would keep the block
  if not math.isfinite(weight + update):
    raise InputError(
      f"Tensor {view.pair.name} has a NaN or Inf, or values whose squares are none, so that nothing can be said of it; "
      "download the model again, or export it from an earlier checkpoint."
    )
  return _Totals(weight, update, stored, counts, np.concatenate(rows))


def _gaussian_std(view: _View, totals: _Totals, after: Tensor | None) -> float:
  """The standard deviation of the Gaussian null: its norm is the update's, once it is stored as W1 is."""
  mean_square = totals.stored / math.prod(view.shape)
  if not mean_square:
    return 0.0
  if after is None or after.change or after.mantissa >= nulls.FULL_MANTISSA:
    return math.sqrt(mean_square)
  return nulls.matching_std(jnp.asarray(totals.sample), mean_square, after.mantissa, view.options.seed)


class _Context:
  """What all updates of a tensor are measured against: the principal subspaces and the masks of W0."""

  def __init__(self, view: _View, totals: _Totals):
    self._view, self._totals, self._options = view, totals, view.options
    groups, matrix = self._options.groups, view.matrix and totals.update > 0
    n = view.shape[1]
    self._ks = subspaces.widths(n)
    self._weights = Matrix(view.shape, lambda: map(view.weight, range(len(view.spans))))
    needed = matrix and ("subspaces" in groups or "rotation" in groups)
    self._principal = subspaces.principal(self._weights, self._ks[-1], self._options.seed) if needed else None
    self._projects = matrix and "subspaces" in groups
    self._left: Array | None = None
    self._masks = None
    if matrix and "coordinates" in groups:
      of_subspaces = (self._principal, self._ks) if self._projects and self._principal else None
      self._masks = masks.Masks(view.weight, view.spans, view.shape, totals.bins, of_subspaces, view.mesh)

  def close(self) -> None:
    """Remove temporary files."""
    if self._masks:
      self._masks.close()

  def measure(self, update: Callable[[int], Float[Array, "b n"]]) -> Raw:
    """Measure an update, which is made block by block."""
    view, options, groups = self._view, self._options, self._options.groups
    size = math.prod(view.shape)
    rms = math.sqrt(self._totals.weight / size)
    thresholds = jnp.array([*coordinates.ABSOLUTE, *(tau * rms for tau in coordinates.RELATIVE)], jnp.float32)
    sums: dict[str, np.ndarray] = {}
    counts = np.zeros(coordinates.BINS, np.int64)
    spectral = view.matrix and ("spectra" in groups or "rotation" in groups)
    spill = Spill(view.shape, view.spans, view.mesh) if spectral and not view.alone else None
    projection = subspaces.Projection(self._principal, self._ks) if self._projects and self._principal else None
    block = None
    try:
      for i in range(len(view.spans)):
        block = update(i)
        for name, value in coordinates.count(block, thresholds, self._bits(i, block)).items():
          sums[name] = sums.get(name, 0) + np.asarray(value, np.float64)
        if view.matrix and "coordinates" in groups:
          counts += np.asarray(coordinates.histogram(block))
        if projection and self._principal:
          projection.add(self._left_vectors(i), block)
        if spill:
          spill.write(block)
      square = float(sums["square"])
      visible, hits = coordinates.hits(sums["masks"])
      raw: Raw = {
        "size": size,
        "matrix": view.matrix,
        "weight_square": self._totals.weight,
        "square": square,
        "zero": float(sums["zero"]),
        "within": sums["within"].tolist(),
        "visible": visible,
        "hits": hits if self._masks and square else None,
        "principal_masks": self._projects,
        "top_energy": coordinates.top_energy(counts) if view.matrix and "coordinates" in groups else None,
        "projection": projection.shares(square) if projection else None,
        "wide": view.wide,
        "spectrum": None,
        "rotation": None,
      }
      if spectral and square:
        assert block is not None
        matrix = spill.matrix() if spill else blocks.of_array(block)
        if "spectra" in groups:
          raw["spectrum"] = spectra.spectrum(matrix, options.exact, options.seed, stored=not view.alone)
        if "rotation" in groups and self._principal:
          raw["rotation"] = self._rotation(matrix)
      return raw
    finally:
      if spill:
        spill.close()

  def _bits(self, i: int, block: Array) -> UInt8[Array, "b n"]:
    return self._masks.packed(i) if self._masks else jnp.zeros(block.shape, jnp.uint8)

  def _left_vectors(self, i: int) -> Float[Array, "b k"]:
    """The rows of U_k of a block; of a tensor in memory they are computed once."""
    assert self._principal is not None
    if self._left is not None:
      return self._left
    left = subspaces.left_vectors(self._view.weight(i), self._principal.vectors, self._principal.values)
    self._left = left if self._view.alone else None
    return left

  def _rotation(self, update: Matrix) -> list[float]:
    assert self._principal is not None

    def after() -> Iterator[Array]:
      for w, d in zip(self._weights.blocks(), update.blocks(), strict=True):
        yield w + d

    turned = subspaces.principal(Matrix(update.shape, after), self._ks[-1], self._options.seed)
    return subspaces.rotation(self._principal, turned, self._ks)


def overlap(pair: Pair, options: Options, seen_as: Sequence[Kind]) -> dict[str, dict[str, list[Raw]]]:
  """Count the coordinates that two runs have moved, and that draws of their nulls have, independent of each other.

  Large tensors are permuted within blocks of `options.block` elements. Returns records as `measure` does, with "size" and, for
  each of coordinates.VISIBLE, "visible", "other" and "both".
  """
  view = _View(pair, options, None, options.block)
  totals = [_totals(view, other) for other in (False, True)]
  stds = [_gaussian_std(view, own, tensor) for own, tensor in zip(totals, (pair.after, pair.other), strict=True)]
  out: dict[str, dict[str, list[Raw]]] = {}
  sources = [(OBSERVED, 0), *((source, draw) for source in nulls.NULLS for draw in range(options.draws))]
  for source, draw in sources:
    for kind in seen_as:
      sums = {name: np.zeros(len(coordinates.VISIBLE)) for name in ("visible", "other", "both")}
      for i in range(len(view.spans)):
        one, two = (
          view.seen(i, kind.mantissa, other)
          if source == OBSERVED
          else view.null_seen(i, view.null(i, source, draw, stds[other], other), kind.mantissa, other)
          for other in (False, True)
        )
        for name, value in coordinates.shared(one, two).items():
          sums[name] += np.asarray(value, np.float64)
      raw = {"size": math.prod(view.shape)} | {name: value.tolist() for name, value in sums.items()}
      out.setdefault(kind.name, {}).setdefault(source, []).append(raw)
  return out
