"""The estimates over seeds that claims are decided by, from a study's runs and analyses, and evidence in its units."""

import contextlib
import math
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any, NamedTuple

from opd_jax.studies.results import How, Missing, Results, crossing
from opd_jax.studies.statistics import IntervalEstimate, interval, ratio
from opd_jax.studies.verdicts import Evidence, Status, Verdict, all_of

POINT = 0.01  # of accuracy


def difference(results: Results, a: str, b: str, level: float = 0.95, how: How = "sampled") -> IntervalEstimate:
  """Estimate the score of arm a less the score of arm b, paired by seed."""
  return interval(results.pairs(a, b, how), level)


def gain(results: Results, arm: str, how: How = "sampled") -> IntervalEstimate:
  """Estimate an arm's score less its accuracy before training."""
  start = results.untrained(arm, how)
  return interval(score - start[seed] for seed, score in results.scores(arm, how).items())


class SampledAndGreedy(NamedTuple):
  """One quantity of sampled answers and of greedy ones: a gain of the first alone may be mere sharpening."""

  sampled: IntervalEstimate
  greedy: IntervalEstimate

  def decided(self, rule: Callable[[IntervalEstimate, float], Status], bound: float) -> Status:
    """Decide a rule that both have to meet."""
    return all_of(rule(self.sampled, bound), rule(self.greedy, bound))

  def points(self, label: str) -> tuple[Evidence, Evidence]:
    """Make evidence of both."""
    return points(label, self.sampled), points(f"{label}, greedy", self.greedy)


def both(estimate: Callable[..., IntervalEstimate], *args: Any, **options: Any) -> SampledAndGreedy:
  """Estimate something, `difference` or `gain` or their like, of sampled and of greedy answers."""
  return SampledAndGreedy(estimate(*args, **options, how="sampled"), estimate(*args, **options, how="greedy"))


def speedup(
  results: Results, arm: str, than: str = "opd", less: float = POINT, level: float = 0.95
) -> IntervalEstimate:
  """Estimate how many times sooner than the arm `than` an arm comes to OPD's score less `less`."""
  scores = results.scores("opd")
  targets = {seed: scores[seed] - less for seed in results.common("opd", than, arm)}
  return ratio(results.seconds_to(than, targets), results.seconds_to(arm, targets), level)


def speedup_halfway(results: Results, arm: str, than: str) -> IntervalEstimate:
  """Estimate how many times sooner than the arm `than` an arm comes to half of what `than` gains."""
  start = results.untrained(than)
  targets = {seed: (start[seed] + score) / 2 for seed, score in results.scores(than).items()}
  return ratio(results.seconds_to(than, targets), results.seconds_to(arm, targets))


def seconds_down_to(results: Results, arm: str, targets: Mapping[int, float]) -> dict[int, float]:
  """Find the training seconds by seed until accuracy first falls to the target, interpolated between evaluations."""
  seeds = results.curve(arm, "elapsed").seeds
  return {s: crossing(seeds[s][0], -seeds[s][1], -target) for s, target in targets.items() if s in seeds}


def by_seed(results: Results, analysis: str, value: Callable[[dict[str, Any]], float]) -> IntervalEstimate:
  """Estimate one number of an analysis, computed from the record of each seed."""
  return interval(value(record) for record in results.analysis(analysis).values())


def less(a: Mapping[int, float], b: Mapping[int, float]) -> IntervalEstimate:
  """Estimate a less b, paired by seed.

  Raises:
    Missing: they have no seed in common.
  """
  if not (seeds := sorted(a.keys() & b.keys())):
    raise Missing("what is compared has no seed in common")
  return interval(a[seed] - b[seed] for seed in seeds)


def logged(results: Results, arm: str, key: str, over: Callable[[list[float]], float] = fmean) -> dict[int, float]:
  """A number of the training records by seed, over the steps that have it: by default their mean.

  Raises:
    Missing: no step has it.
  """
  found = {}
  for seed, run in results.runs(arm).items():
    if values := [record[key] for record in run.train if record.get(key) is not None]:
      found[seed] = over(values)
  if not found:
    raise Missing(f"no step of {arm} has logged {key}")
  return found


def points(label: str, estimate: IntervalEstimate) -> Evidence:
  """Make evidence that is a difference of accuracies."""
  return Evidence(label, estimate, "points")


def times(label: str, estimate: IntervalEstimate) -> Evidence:
  """Make evidence that is a ratio of times."""
  return Evidence(label, estimate, "times")


LazyEvidence = Callable[[], Evidence]


def lazily(
  unit: Callable[[str, IntervalEstimate], Evidence],
  label: str,
  estimate: Callable[..., IntervalEstimate],
  *args: Any,
  **options: Any,
) -> LazyEvidence:
  """Postpone `unit(label, estimate(*args, **options))`, which may be `Missing`, until `known` asks for it.

  Args:
    unit: `points`, `times` or `Evidence`.
  """

  def evidence() -> Evidence:
    return unit(label, estimate(*args, **options))

  return evidence


def lazily_both(label: str, estimate: Callable[..., IntervalEstimate], *args: Any) -> tuple[LazyEvidence, LazyEvidence]:
  """Postpone `both(estimate, *args).points(label)`, each of the two by itself."""
  sampled = lazily(points, label, estimate, *args)
  return sampled, lazily(points, f"{label}, greedy", estimate, *args, how="greedy")


def known(*evidence: LazyEvidence) -> list[Evidence]:
  """Collect the evidence whose runs are there; for evidence that no rule needs."""
  found = []
  for make in evidence:
    with contextlib.suppress(Missing):
      found.append(make())
  return found


def verdict(status: Status, because: str, *evidence: Evidence) -> Verdict:
  """Make a verdict whose claim is not filled in yet; `verdicts.decide` does that."""
  return Verdict("", status, because, evidence)


def quarter(at_step: Mapping[str, Any], metric: str, which: int) -> float:
  """Compute the mean over the tokens of a quarter of the bins that the metric is a mean of; NaN without any.

  Args:
    at_step: one step's lists by bin, from `horizon.measures.reliability`.
    which: 0, 1, 2 or 3.
  """
  weights = at_step["decisive" if metric in ("teacher", "student") else "count"]
  n = len(weights)
  part = slice(which * n // 4, (which + 1) * n // 4)
  values = [(v, w) for v, w in zip(at_step[metric][part], weights[part], strict=True) if w and v is not None]
  if not values:
    return math.nan
  return sum(v * w for v, w in values) / sum(w for _, w in values)
