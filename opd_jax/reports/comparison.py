"""Arms compared at a matched accuracy.

Runs that differ only in the seed are one *arm*. The baseline is the first arm with the full horizon, or the first of
all. It defines the matched accuracy, so that no other arm can be flattered by the choice.
"""

import dataclasses
import math
from collections.abc import Sequence
from statistics import fmean, median
from typing import NamedTuple

from opd_jax.errors import InputError
from opd_jax.reports.runs import Run

MATCH = 0.95  # of the baseline's best final accuracy, where no target is given


class Spread(NamedTuple):
  """The spread of a number over the runs of an arm; None where it is decided by a run that never got there."""

  median: float | None
  min: float | None
  max: float | None
  runs: int


@dataclasses.dataclass(frozen=True)
class Arm:
  """The runs of one label, which differ in the seed alone, and how they came to the target."""

  label: str
  runs: list[Run]  # at least one
  target: float  # accuracy; 0 where there is none

  @property
  def repeated(self) -> bool:
    """True where two runs share a seed."""
    return len({str(run.seed) for run in self.runs}) < len(self.runs)

  @property
  def finished(self) -> bool:
    """True where every run made all its steps."""
    return all(run.finished for run in self.runs)

  @property
  def steps(self) -> int:
    """The steps that the config asks for."""
    return self.runs[0].steps

  @property
  def evaluated(self) -> list[Run]:
    """The runs that have an evaluation."""
    return [run for run in self.runs if run.evals]

  @property
  def accuracy(self) -> float:
    """The mean accuracy of the runs' last evaluations, of which there is at least one."""
    return fmean(run.accuracy for run in self.evaluated)

  @property
  def interval(self) -> tuple[float, float]:
    """The interval of `accuracy`: of one run its last evaluation's own, of several from the lowest to the highest."""
    runs = self.evaluated
    if len(runs) > 1:
      return min(run.accuracy for run in runs), max(run.accuracy for run in runs)
    last = runs[0].evals[-1]
    return last["low"], last["high"]

  @property
  def pass_at(self) -> dict[str, float]:
    """Average pass@k over the last evaluations, by k, for k above 1."""
    last = [run.evals[-1].get("pass") or {} for run in self.evaluated]
    common = [k for k in (last[0] if last else ()) if k != "1" and all(k in by_k for by_k in last)]
    return {k: fmean(by_k[k]["value"] for by_k in last) for k in common}

  @property
  def reached(self) -> int:
    """The number of runs that got to the target."""
    return sum(hit is not None for hit in self._hits)

  @property
  def seconds_to_target(self) -> Spread:
    """Training seconds until the target was reached."""
    return self._to_target("elapsed")

  @property
  def tokens_to_target(self) -> Spread:
    """Generated tokens until the target was reached."""
    return self._to_target("tokens")

  @property
  def steps_to_target(self) -> Spread:
    """Steps until the target was reached."""
    return self._to_target("step")

  def _to_target(self, key: str) -> Spread:
    """The spread of a record's field at the first evaluation that reached the target.

    A run that never got there counts as later than all others: dropping it would flatter the arm.
    """
    values = [math.inf if hit is None else hit[key] for hit in self._hits]
    middle, low, high = (v if v < math.inf else None for v in (median(values), min(values), max(values)))
    return Spread(middle, low, high, len(values))

  @property
  def _hits(self) -> list[dict | None]:
    """The first evaluation of every run at or above the target; nothing matches a target of 0."""
    return [next((e for e in run.evals if self.target and e["accuracy"] >= self.target), None) for run in self.runs]

  @property
  def tokens(self) -> float:
    """The median number of generated tokens."""
    return median(run.tokens for run in self.runs)

  @property
  def train_seconds(self) -> float:
    """The median of the training seconds."""
    return median(run.elapsed for run in self.runs)

  @property
  def compile_seconds(self) -> float:
    """The median of the seconds that all programs took to compile."""
    return median(run.compile_seconds for run in self.runs)

  @property
  def compile_wait(self) -> float:
    """The median of the seconds that training had to wait for compiling."""
    return median(run.seconds["compile"] for run in self.runs)

  @property
  def eval_seconds(self) -> float:
    """The median of the seconds of evaluation."""
    return median(run.seconds["eval"] for run in self.runs)

  @property
  def programs(self) -> int:
    """The median number of compiled programs."""
    return round(median(len(run.info.get("programs", ())) for run in self.runs))


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Arms at one matched accuracy: all that a report shows."""

  runs: list[Run]  # in the order given
  arms: list[Arm]  # the baseline first, the others in the order given
  target: float  # the matched accuracy; 0 where the baseline learnt nothing
  rule: str  # where the target comes from

  @property
  def baseline(self) -> Arm:
    """The arm that defines the target, and that the others are compared with."""
    return self.arms[0]

  def speedup(self, arm: Arm) -> float | None:
    """The baseline's median time to the target over the arm's; None where there is none."""
    return _ratio(self.baseline.seconds_to_target, arm.seconds_to_target)

  def token_saving(self, arm: Arm) -> float | None:
    """The baseline's median of generated tokens to the target over the arm's; None where there is none."""
    return _ratio(self.baseline.tokens_to_target, arm.tokens_to_target)


def _ratio(a: Spread, b: Spread) -> float | None:
  return a.median / b.median if a.median and b.median else None


def compare(runs: Sequence[Run], target: float | None = None) -> Comparison:
  """Group runs into arms and set the accuracy to compare them at, where it is not given.

  Raises:
    InputError: the target is not an accuracy above 0.
  """
  grouped: dict[str, list[Run]] = {}
  for run in runs:
    grouped.setdefault(run.label, []).append(run)
  known = [run for run in runs if run.evals] or runs  # what is not evaluated is no measure for others
  baseline = next((run.label for run in known if run.config["horizon.kind"] == "full"), known[0].label)
  grouped = {baseline: grouped[baseline]} | grouped  # the baseline first
  rule = "given"
  if target is None and not any(run.evals for run in runs):
    target, rule = 0.0, "no run is evaluated"
  elif target is None:
    target = MATCH * max(run.accuracy for run in grouped[baseline] if run.evals)
    rule = f"{MATCH:.0%} of the best final accuracy of {baseline}"
  elif not 0 < target <= 1:
    raise InputError(f"--target is {target:g}; an accuracy is above 0 and at most 1.")
  return Comparison(list(runs), [Arm(label, members, target) for label, members in grouped.items()], target, rule)
