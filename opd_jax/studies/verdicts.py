"""Claims, the rules by which they are decided, and what came of it.

A rule asks where an interval lies, never where a mean lies: "at least 0.9" is supported
where the whole interval is at 0.9 or above, not supported where all of it is below, and undecided else.
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from opd_jax.studies.results import Missing, Results
from opd_jax.studies.statistics import IntervalEstimate


class Status(enum.StrEnum):
  SUPPORTED = "supported"
  NOT_SUPPORTED = "not supported"
  UNDECIDED = "undecided"
  MISSING = "not run"  # arms or analyses that the claim needs are not there


SUPPORTED, NOT_SUPPORTED, UNDECIDED, MISSING = Status

Unit = Literal["number", "points", "score", "times", "seconds"]


@dataclasses.dataclass(frozen=True)
class Evidence:
  """A number that the verdict rests on.

  Attributes:
    unit: how it is printed. "points": a difference of scores, in percentage points; "score": in percent; "times": a
      ratio.
  """

  label: str
  estimate: IntervalEstimate
  unit: Unit = "number"

  @property
  def text(self) -> str:
    """The number as it is printed, '+1.2 points (-0.3 to +2.7, n=5)', of n seeds.

    Infinite seconds are 'never', and so is a ratio of 0: the second of its two never got there.
    """
    mean, low, high, n = self.estimate
    if math.isnan(mean):
      return f"unknown (n={n})"
    bounds = "" if n < 2 or low == high else f"{self._number(low)} to {self._number(high)}, "
    if self.unit == "times" and mean == 0:
      return f"never ({bounds}n={n})"
    unit = _UNITS[self.unit] if math.isfinite(mean) else ""
    return f"{self._number(mean)}{unit} ({bounds}n={n})"

  def _number(self, value: float) -> str:
    if value == math.inf:
      return "never" if self.unit == "seconds" else "∞"
    if value == -math.inf:
      return "-∞"
    if self.unit == "points":
      return f"{round(100 * value, 1) + 0:+.1f}"  # no -0.0
    if self.unit == "score":
      return f"{100 * value:.1f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


_UNITS = {"number": "", "points": " points", "score": "%", "times": "x", "seconds": " s"}


@dataclasses.dataclass(frozen=True)
class Verdict:
  """The outcome of one claim: a line of the study's page.

  Attributes:
    claim: the claim's name; `decide` writes name, statement and rule.
    because: one sentence.
  """

  claim: str
  status: Status
  because: str
  evidence: Sequence[Evidence] = ()
  statement: str = ""
  rule: str = ""


@dataclasses.dataclass(frozen=True)
class Claim:
  """A claim, and the rule by which it will be decided.

  Attributes:
    rule: the sentence that is printed beside the verdict.
    decide: the rule as code. `Missing`, which `Results` raises where it has no runs of an arm, may pass through it.
  """

  name: str
  statement: str
  rule: str
  decide: Callable[[Results], Verdict]


def decide(claims: Iterable[Claim], results: Results) -> list[Verdict]:
  """Decide every claim; those whose arms were not run are MISSING."""
  verdicts = []
  for claim in claims:
    try:
      verdict = claim.decide(results)
    except Missing as e:
      verdict = Verdict(claim.name, MISSING, str(e))
    verdicts.append(dataclasses.replace(verdict, claim=claim.name, statement=claim.statement, rule=claim.rule))
  return verdicts


def at_least(estimate: IntervalEstimate, bound: float) -> Status:
  """Decide "at least": supported where the interval is at the bound or above, not supported where it is below."""
  return _lies(estimate.low >= bound, estimate.high < bound)


def at_most(estimate: IntervalEstimate, bound: float) -> Status:
  """Decide "at most": supported where the interval is at the bound or below, not supported where it is above."""
  return _lies(estimate.high <= bound, estimate.low > bound)


def above(estimate: IntervalEstimate, bound: float) -> Status:
  """Decide "above": supported where the whole interval is above the bound, not supported where none of it is."""
  return _lies(estimate.low > bound, estimate.high <= bound)


def below(estimate: IntervalEstimate, bound: float) -> Status:
  """Decide "below": supported where the whole interval is below the bound, not supported where none of it is."""
  return _lies(estimate.high < bound, estimate.low >= bound)


def _lies(inside: bool, outside: bool) -> Status:
  if inside:
    return SUPPORTED
  return NOT_SUPPORTED if outside else UNDECIDED


def all_of(*parts: Status) -> Status:
  """Combine by Kleene's conjunction: one part that is not supported decides; of nothing at all, MISSING."""
  return _first(parts, NOT_SUPPORTED, SUPPORTED)


def any_of(*parts: Status) -> Status:
  """Combine by Kleene's disjunction: one part that is supported decides; of nothing at all, MISSING."""
  return _first(parts, SUPPORTED, NOT_SUPPORTED)


def _first(parts: Sequence[Status], decisive: Status, otherwise: Status) -> Status:
  """The first status that decides; what was not run hides more than what is undecided, so it comes before it."""
  for status in (decisive, MISSING, UNDECIDED, otherwise):
    if status in parts:
      return status
  return MISSING
