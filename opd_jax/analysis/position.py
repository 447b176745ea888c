"""What changes along a response: means of a reading by position, with survivorship taken apart.

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

from opd_jax.analysis.reading import Reading, survivors

ENOUGH = 0.25  # share of the rows that has to reach an edge for survivors to be chosen by it


def by_position(reading: Reading, edges: Sequence[int], enough: float = ENOUGH) -> dict[str, Any]:
  """Means over the tokens of each bin [edges[i], edges[i + 1]), positions counted from 0.

  Returns:
    edges: as given.
    all: every row, as {"rows": how many, "any": table, "on_path": table, "off_path": table}, split by the prefix.
    survivors: the same of the rows that reach the last edge which the share `enough` of all rows reaches, up to that
      edge (`tokens`), so that every bin has the same rows.

  A table is {"count": [int], name: [mean, or None in an empty bin], "decisive": the same where something has to be
  known}, with the names of `quantities`.

  Raises:
    ValueError: edges that do not rise from 0 or above.
  """
  edges = [int(e) for e in edges]
  if len(edges) < 2 or edges[0] < 0 or any(a >= b for a, b in itertools.pairwise(edges)):
    raise ValueError(f"edges {edges} have to rise, from 0 or above, and to be two or more")
  reach = [e for e in edges if np.mean(survivors(reading, e)) >= enough]
  tokens = reach[-1] if reach else 0
  rows = survivors(reading, tokens)
  same = reading.mask & rows[:, None] & (np.arange(reading.mask.shape[1]) < tokens)
  return {
    "edges": edges,
    "all": {"rows": len(rows), **by_path(reading, reading.mask, edges)},
    "survivors": {"tokens": tokens, "rows": int(rows.sum()), **by_path(reading, same, edges)},
  }


def by_path(reading: Reading, where: Bool[np.ndarray, "N H"], edges: Sequence[int]) -> dict[str, Any]:
  """Tables of these tokens, of those behind a prefix without a mistake, and of the others."""
  parts = {"any": where, "on_path": where & ~reading.off_path, "off_path": where & reading.off_path}
  values = quantities(reading)
  return {
    name: table(values, part, edges) | {"decisive": table(values, part & reading.decisive, edges)}
    for name, part in parts.items()
  }


def quantities(reading: Reading) -> dict[str, Float[np.ndarray, "N H"]]:
  """What is averaged; NaN where a token has no such value.

  kl, forward_kl, student_entropy, teacher_entropy, overlap (where it was read): as in `Reading`.
  off_path: the share of tokens behind a mistake.
  known: the share of tokens at which the format still says what is right; the rest are means over these.
  right: the share of drawn tokens that are right.
  teacher_right, student_right: the probability of the right symbol; the teacher's is its reliability.
  teacher_majority: the share of tokens where the teacher gives the right symbol more than one half.
  """
  names = ("kl", "forward_kl", "student_entropy", "teacher_entropy", "overlap")
  found = {name: getattr(reading, name) for name in names if getattr(reading, name) is not None}
  of_known = {
    "right": reading.right,
    "teacher_right": np.exp(reading.teacher_right),
    "student_right": np.exp(reading.student_right),
    "teacher_majority": np.exp(reading.teacher_right) > 0.5,
  }
  found |= {"off_path": reading.off_path, "known": reading.known}
  return found | {name: np.where(reading.known, a, np.nan) for name, a in of_known.items()}


def table(
  values: dict[str, Float[np.ndarray, "N H"]], where: Bool[np.ndarray, "N H"], edges: Sequence[int]
) -> dict[str, list]:
  """Means by bin over these tokens."""
  bins = [(slice(None), slice(a, b)) for a, b in itertools.pairwise(edges)]
  out: dict[str, list] = {"count": [int(where[b].sum()) for b in bins]}
  for name, a in values.items():
    there = where & ~np.isnan(a)
    out[name] = [float(a[b][there[b]].mean(dtype=np.float64)) if there[b].any() else None for b in bins]
  return out
