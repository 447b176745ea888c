"""What changes along a response: means of measurements by position, with survivorship taken apart.

Three things differ between an early and a late position: which rows still have it (survivors), whether a mistake stands
before it (the path), and what is asked there (separators are trivially right; result digits and letters are not). The
tables hold each of them fixed.

Dimensions: N rows, H response positions.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from opd_jax.analysis.measurements import Measurements, survivors

ENOUGH = 0.25  # share of the rows that has to reach an edge for survivors to be chosen by it


def by_position(measured: Measurements, edges: Sequence[int], enough: float = ENOUGH) -> dict[str, Any]:
  """Average over the tokens of each bin [edges[i], edges[i + 1]), positions counted from 0.

  Args:
    enough: share of the rows that has to reach an edge for survivors to be chosen by it.

  Returns:
    edges: as given.
    all: every row, as {"rows": how many, "any": table, "on_path": table, "off_path": table}, split by the prefix.
    survivors: such tables of the rows that reach the last edge which the share `enough` of all rows reaches, up to that
      edge (`tokens`), so that every bin has the same rows.

  A table is {"count": [int], name: [mean, or None in an empty bin], "decisive": such a table of the tokens where
  something has to be known}, with the names of `quantities`.

  Raises:
    ValueError: edges that do not rise from 0 or above.
  """
  edges = [int(e) for e in edges]
  if len(edges) < 2 or edges[0] < 0 or any(a >= b for a, b in itertools.pairwise(edges)):
    raise ValueError(f"edges {edges} have to rise, from 0 or above, and to be two or more")
  reach = [e for e in edges if np.mean(survivors(measured, e)) >= enough]
  tokens = reach[-1] if reach else 0
  rows = survivors(measured, tokens)
  same = measured.mask & rows[:, None] & (np.arange(measured.mask.shape[1]) < tokens)
  return {
    "edges": edges,
    "all": {"rows": len(rows), **by_path(measured, measured.mask, edges)},
    "survivors": {"tokens": tokens, "rows": int(rows.sum()), **by_path(measured, same, edges)},
  }


def by_path(measured: Measurements, where: Bool[np.ndarray, "N H"], edges: Sequence[int]) -> dict[str, Any]:
  """Average over the tokens `where`: over all of them, over those behind a prefix without a mistake, and the others."""
  parts = {"any": where, "on_path": where & ~measured.off_path, "off_path": where & measured.off_path}
  values = quantities(measured)
  return {
    name: table(values, part, edges) | {"decisive": table(values, part & measured.decisive, edges)}
    for name, part in parts.items()
  }


def quantities(measured: Measurements) -> dict[str, Float[np.ndarray, "N H"]]:
  """The quantities to average, by name; NaN where a token has no such value.

  kl, forward_kl, student_entropy, teacher_entropy, overlap (where it was measured): as in `Measurements`.
  off_path: the share of tokens behind a mistake.
  known: the share of tokens at which the format still says what is right; the others below are means over these.
  right: the share of drawn tokens that are right.
  teacher_right, student_right: the probability of the right symbol; the teacher's is its reliability.
  teacher_majority: the share of tokens where the teacher gives the right symbol more than one half.
  """
  names = ("kl", "forward_kl", "student_entropy", "teacher_entropy", "overlap")
  found = {name: getattr(measured, name) for name in names if getattr(measured, name) is not None}
  of_known = {
    "right": measured.right,
    "teacher_right": np.exp(measured.teacher_right),
    "student_right": np.exp(measured.student_right),
    "teacher_majority": np.exp(measured.teacher_right) > 0.5,
  }
  found |= {"off_path": measured.off_path, "known": measured.known}
  return found | {name: np.where(measured.known, a, np.nan) for name, a in of_known.items()}


def table(
  values: dict[str, Float[np.ndarray, "N H"]], where: Bool[np.ndarray, "N H"], edges: Sequence[int]
) -> dict[str, list]:
  """Average by bin over the tokens `where`."""
  bins = [(slice(None), slice(a, b)) for a, b in itertools.pairwise(edges)]
  averages: dict[str, list] = {"count": [int(where[b].sum()) for b in bins]}
  for name, a in values.items():
    known = where & ~np.isnan(a)
    averages[name] = [float(a[b][known[b]].mean(dtype=np.float64)) if known[b].any() else None for b in bins]
  return averages
