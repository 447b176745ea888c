"""Statistics of one tensor or of many, from the records of measure.py.

Sums over coordinates (norms, sparsity, overlap) are taken over all tensors, so that each counts by its elements. What belongs
to a matrix (energies, ranks, projections, coverage, rotation) is the median over the matrices whose update is not zero. What
has no value is None: a median over none, a share of nothing.
"""

from collections.abc import Callable, Sequence

import numpy as np

from opd_jax.analysis.geometry.coordinates import ABSOLUTE, LARGEST, RELATIVE, SHARES, VISIBLE, overlap
from opd_jax.analysis.geometry.measure import Raw

Statistics = dict[str, float | None]
TOLD = (1, 2, 4, 8, 16, 32, 64)  # k of the top energies that tables have; the curve has all


def percent(share: float) -> str:
  """Write a share as the names of statistics have it."""
  return f"{100 * share:g}%"


def summarise(records: Sequence[Raw]) -> Statistics:
  """Make the statistics of some tensors, by name.

  relative_norm, zero, sparsity@eps, relative_sparsity@tau; coordinate_energy@p, top_energy@k, stable_rank, numerical_rank,
  entropy_rank; projection@rho, projection_left@rho, projection_right@rho, rotation@rho; principal_coverage@rho,
  low_coverage@rho of all visible coordinates, and with ">1e-05" of those above that.
  """
  size, square = _sum(records, "size"), _sum(records, "square")
  weight = _sum(records, "weight_square")
  out: Statistics = {
    "relative_norm": (square / weight) ** 0.5 if weight else None,
    "zero": _sum(records, "zero") / size if size else None,
  }
  names = [f"sparsity@{eps:g}" for eps in ABSOLUTE] + [f"relative_sparsity@{tau:g}" for tau in RELATIVE]
  for i, name in enumerate(names):
    out[name] = sum(r["within"][i] for r in records) / size if size else None
  matrices = [r for r in records if r["matrix"] and r["square"]]
  for i, p in enumerate(LARGEST):
    out[f"coordinate_energy@{percent(p)}"] = _median(matrices, "top_energy", lambda x, i=i: x[i])
  for k in TOLD:
    out[f"top_energy@{k}"] = _median(matrices, "spectrum", lambda s, k=k: s.energy[min(k, len(s.energy)) - 1])
  for name in ("stable_rank", "numerical_rank", "entropy_rank"):
    out[name] = _median(matrices, "spectrum", lambda s, name=name: getattr(s, name))
  for i, rho in enumerate(SHARES):
    out[f"projection@{percent(rho)}"] = _median(matrices, "projection", lambda x, i=i: x[i][0])
  # The left vectors are those of the outputs; a matrix that is wide was measured transposed.
  for side in (0, 1):
    for i, rho in enumerate(SHARES):
      values = [r["projection"][i][2 - (side ^ r["wide"] ^ 1)] for r in matrices if r["projection"] is not None]
      out[f"projection_{('left', 'right')[side]}@{percent(rho)}"] = _middle(values)
  for i, rho in enumerate(SHARES):
    out[f"rotation@{percent(rho)}"] = _median(matrices, "rotation", lambda x, i=i: x[i])
  for a, alpha in enumerate(VISIBLE):
    for name, first in (("principal_coverage", 0), ("low_coverage", len(SHARES))):
      for i, rho in enumerate(SHARES):
        covered = [
          r["hits"][a][first + i] / r["visible"][a]
          for r in matrices
          if r["hits"] and r["visible"][a] and (first or r["principal_masks"])
        ]
        out[f"{name}@{percent(rho)}" + (f">{alpha:g}" if alpha else "")] = _middle(covered)
  return out


def summarise_overlap(records: Sequence[Raw]) -> Statistics:
  """Make the statistics of two runs' masks, over all coordinates of some tensors, from records of measure.overlap.

  density, density_other: shares of the coordinates that are visible; overlap (o1): the share of the first run's inside the
  other's, whose chance level is density_other; overlap_other (o2) likewise; overlap_lift: either over chance. With ">1e-05" of
  the coordinates above that.
  """
  size, out = _sum(records, "size"), {}
  for a, alpha in enumerate(VISIBLE):
    first, second, both = (sum(r[name][a] for r in records) for name in ("visible", "other", "both"))
    found = overlap(first, second, both, size)
    named: Statistics = {
      "density": first / size if size else None,
      "density_other": second / size if size else None,
      "overlap": found["of_first"],
      "overlap_other": found["of_second"],
      "overlap_lift": found["lift"],
    }
    out |= {name + (f">{alpha:g}" if alpha else ""): value for name, value in named.items()}
  return out


def energy_curve(records: Sequence[Raw]) -> list[float] | None:
  """The median energy of the k largest singular values over the matrices, for k = 1 ... 64; None where there is none."""
  curves = [r["spectrum"].energy for r in records if r["spectrum"] is not None]
  if not curves:
    return None
  longest = max(map(len, curves))
  return [float(np.median([c[min(k, len(c) - 1)] for c in curves])) for k in range(longest)]


def _sum(records: Sequence[Raw], name: str) -> float:
  return float(sum(r[name] for r in records))


def _median(records: Sequence[Raw], name: str, of: Callable) -> float | None:
  return _middle([of(r[name]) for r in records if r[name] is not None])


def _middle(values: Sequence[float]) -> float | None:
  return float(np.median(values)) if values else None
