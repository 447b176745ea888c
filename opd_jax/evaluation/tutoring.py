"""Two students and several domains: who tutors whom, and what became of both (arXiv:2606.14368, sections 3 and 4).

Accuracies are shares by domain, {domain: accuracy}, of the same domains for both students.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from opd_jax.evaluation.single_turn import interval

Accuracies = Mapping[str, float]
SAME = 1e-9  # differences up to this one are rounding


def shortfall(own: Accuracies, other: Accuracies) -> float:
  """Computes how far a student is behind the better of the two, relative and summed over domains: sum_d (best_d - a_d) / best_d.

  A domain that neither can do is left out, which is a choice of ours.
  """
  best = {domain: max(own[domain], other[domain]) for domain in own}
  return sum((best[domain] - own[domain]) / best[domain] for domain in own if best[domain] > 0)


@dataclasses.dataclass(frozen=True)
class Gate:
  """When a student comments on the rollouts of another one.

  Attributes:
    kind: gap, where its shortfall is at most tau; always; never; domain, on the domains in which it is at least as good.
    tau: see above.
  """

  kind: str
  tau: float

  def is_open(self, own: Accuracies, other: Accuracies) -> bool:
    """Tells whether the student with the accuracies `own` comments at all."""
    if self.kind == "gap":
      return shortfall(own, other) <= self.tau + SAME
    return self.kind == "always" or (self.kind == "domain" and any(own[d] >= other[d] for d in own))

  def admits(self, own: Accuracies, other: Accuracies, domain: str) -> bool:
    """Tells whether an open gate lets it comment on a problem of this domain."""
    if self.kind != "domain":
      return True
    if set(own) == {""}:  # there is one domain, whatever its name
      domain = ""
    return own[domain] >= other[domain]


def by_domain(record: Mapping[str, Any]) -> dict[str, float]:
  """Takes the accuracies out of an evaluation's record, by domain; by "" where there are not several."""
  return {domain: r["accuracy"] for domain, r in (record.get("domains") or {"": record}).items()}


def is_pareto_improvement(before: Accuracies, after: Accuracies, noise: float = SAME) -> bool:
  """Tells whether no domain became worse and at least one better, each by more than `noise`."""
  gains = [after[domain] - before[domain] for domain in before]
  return min(gains) >= -noise and max(gains) > noise


class BreakRate(NamedTuple):
  """How often a comment spoils a right answer.

  Attributes:
    rate: share of the rows that were wrong with the comment, among those that were right without; None: none were.
    low, high: its 95% interval.
    rows: that were right without.
  """

  rate: float | None
  low: float | None
  high: float | None
  rows: int


def break_rate(right_without: Sequence[bool], right_with: Sequence[bool]) -> BreakRate:
  """Measures how often answers that are right without a comment are wrong with it; both of the same rows."""
  broken = [not after for before, after in zip(right_without, right_with, strict=True) if before]
  if not broken:
    return BreakRate(None, None, None, 0)
  low, high = interval(np.array(broken, float))
  return BreakRate(sum(broken) / len(broken), low, high, len(broken))


def break_rate_by(
  groups: Sequence[str], right_without: Sequence[bool], right_with: Sequence[bool]
) -> dict[str, BreakRate]:
  """Measures `break_rate` in groups of rows: by difficulty, by domain, or by whether the tutor's gate is open."""
  found = {}
  for group in sorted(set(groups)):
    rows = [i for i, g in enumerate(groups) if g == group]
    found[group] = break_rate([right_without[i] for i in rows], [right_with[i] for i in rows])
  return found
