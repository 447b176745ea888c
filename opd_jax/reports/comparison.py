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
  """Over the runs of an arm. None where it is decided by a run that never got there."""

  median: float | None
  min: float | None
  max: float | None
  runs: int


@dataclasses.dataclass(frozen=True)
class Arm:
  """Runs of one label, and how they came to the target."""

  label: str
  runs: list[Run]  # at least one
  target: float  # accuracy; 0 where there is none

  @property
  def repeated(self) -> bool:
    """Whether two runs share a seed."""
    return len({str(run.seed) for run in self.runs}) < len(self.runs)

  @property
  def finished(self) -> bool:
    return all(run.finished for run in self.runs)

  @property
  def steps(self) -> int:
    return self.runs[0].steps

  @property
  def accuracy(self) -> float:
    """Mean of the last evaluations."""
    return fmean(run.accuracy for run in self.runs)

  @property
  def interval(self) -> tuple[float, float]:
    """Of one run: its last evaluation's own. Of several: from the lowest to the highest."""
    if len(self.runs) > 1:
      return min(run.accuracy for run in self.runs), max(run.accuracy for run in self.runs)
    last = self.runs[0].evals[-1]
    return last["low"], last["high"]

  @property
  def pass_at(self) -> dict[str, float]:
    """pass@k of the last evaluations by k, for k above 1."""
    last = [run.evals[-1].get("pass") or {} for run in self.runs]
    return {k: fmean(by_k[k]["value"] for by_k in last) for k in last[0] if k != "1"}

  @property
  def reached(self) -> int:
    """How many runs got to the target."""
    return sum(hit is not None for hit in self._hits)

  @property
  def seconds_to_target(self) -> Spread:
    return self._to_target("elapsed")

  @property
  def tokens_to_target(self) -> Spread:
    return self._to_target("tokens")

  @property
  def steps_to_target(self) -> Spread:
    return self._to_target("step")

  def _to_target(self, key: str) -> Spread:
    """A run that never got there counts as later than all others: dropping it would flatter the arm."""
    values = [math.inf if hit is None else hit[key] for hit in self._hits]
    known = lambda value: value if value < math.inf else None
    return Spread(known(median(values)), known(min(values)), known(max(values)), len(values))

  @property
  def _hits(self) -> list[dict | None]:
    """Every run's first evaluation at or above the target; nothing matches a target of 0."""
    return [next((e for e in run.evals if self.target and e["accuracy"] >= self.target), None) for run in self.runs]

  @property
  def tokens(self) -> float:
    return median(run.tokens for run in self.runs)

  @property
  def train_seconds(self) -> float:
    return median(run.elapsed for run in self.runs)

  @property
  def compile_seconds(self) -> float:
    """Of all programs."""
    return median(run.compile_seconds for run in self.runs)

  @property
  def compile_wait(self) -> float:
    """What training had to wait for."""
    return median(run.seconds["compile"] for run in self.runs)

  @property
  def eval_seconds(self) -> float:
    return median(run.seconds["eval"] for run in self.runs)

  @property
  def programs(self) -> int:
    return round(median(len(run.info.get("programs", ())) for run in self.runs))


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Arms at one matched accuracy: all that a report tells."""

  runs: list[Run]  # in the order given
  arms: list[Arm]  # the baseline first, the others in the order given
  target: float  # the matched accuracy; 0 where the baseline learnt nothing
  rule: str  # where the target comes from

  @property
  def baseline(self) -> Arm:
    return self.arms[0]

  def speedup(self, arm: Arm) -> float | None:
    """The baseline's median time to the target over the arm's; None where there is none."""
    return _ratio(self.baseline.seconds_to_target, arm.seconds_to_target)

  def token_saving(self, arm: Arm) -> float | None:
    """The same of generated tokens."""
    return _ratio(self.baseline.tokens_to_target, arm.tokens_to_target)


def _ratio(a: Spread, b: Spread) -> float | None:
  return a.median / b.median if a.median and b.median else None


def compare(runs: Sequence[Run], target: float | None = None) -> Comparison:
  """Groups runs into arms and sets the accuracy to compare them at, where it is not given.

  Raises:
    InputError: the target is not an accuracy above 0.
  """
  grouped: dict[str, list[Run]] = {}
  for run in runs:
    grouped.setdefault(run.label, []).append(run)
  baseline = next((run.label for run in runs if run.config["horizon.kind"] == "full"), runs[0].label)
  grouped = {baseline: grouped[baseline]} | grouped  # the baseline first
  rule = "given"
  if target is None:
    target = MATCH * max(run.accuracy for run in grouped[baseline])
    rule = f"{MATCH:.0%} of the best final accuracy of {baseline}"
  elif not 0 < target <= 1:
    raise InputError(f"--target is {target:g}; an accuracy is above 0 and at most 1.")
  return Comparison(list(runs), [Arm(label, members, target) for label, members in grouped.items()], target, rule)
