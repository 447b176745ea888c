"""What claims are judged by: estimates over seeds from the study's runs and analyses, and evidence in its units."""

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

from opd_jax.studies.results import Missing, Results, crossing
from opd_jax.studies.statistics import Estimate, interval, ratio
from opd_jax.studies.verdicts import Evidence, Status, Verdict

POINT = 0.01  # of accuracy


def difference(r: Results, a: str, b: str, level: float = 0.95) -> Estimate:
  """Score of a less score of b."""
  return interval(r.pairs(a, b), level)


def gain(r: Results, arm: str) -> Estimate:
  """Score less the accuracy before training."""
  start = r.untrained(arm)
  return interval(score - start[seed] for seed, score in r.scores(arm).items())


def speedup(r: Results, arm: str, than: str = "opd", less: float = POINT, level: float = 0.95) -> Estimate:
  """How many times sooner than another arm to OPD's score, less so much."""
  scores = r.scores("opd")
  targets = {seed: scores[seed] - less for seed in r.common("opd", than, arm)}
  return ratio(r.seconds_to(than, targets), r.seconds_to(arm, targets), level)


def up(r: Results, arm: str, than: str) -> Estimate:
  """How many times sooner to half of what the other arm gains."""
  start = r.untrained(than)
  targets = {seed: (start[seed] + score) / 2 for seed, score in r.scores(than).items()}
  return ratio(r.seconds_to(than, targets), r.seconds_to(arm, targets))


def time_down_to(r: Results, arm: str, targets: Mapping[int, float]) -> dict[int, float]:
  """By seed, training seconds until the accuracy first falls to the target, straight lines between evaluations."""
  seeds = r.curve(arm, "elapsed").seeds
  return {s: crossing(seeds[s][0], -seeds[s][1], -target) for s, target in targets.items() if s in seeds}


def by_seed(r: Results, analysis: str, value: Callable[[dict[str, Any]], float]) -> Estimate:
  return interval(value(found) for found in r.analysis(analysis).values())


def points(label: str, estimate: Estimate) -> Evidence:
  return Evidence(label, estimate, "points")


def times(label: str, estimate: Estimate) -> Evidence:
  return Evidence(label, estimate, "times")


def known(*evidence: Callable[[], Evidence]) -> list[Evidence]:
  """Of evidence that no rule needs, what has been run."""
  found = []
  for make in evidence:
    with contextlib.suppress(Missing):
      found.append(make())
  return found


def verdict(status: Status, because: str, *evidence: Evidence) -> Verdict:
  return Verdict("", status, because, evidence)


def quarter(at_step: Mapping[str, Any], metric: str, which: int) -> float:
  """Mean over the tokens of a quarter of the bins that the metric is a mean of; NaN without any."""
  weight = at_step["decisive" if metric in ("teacher", "student") else "count"]
  n = len(weight)
  part = slice(which * n // 4, (which + 1) * n // 4)
  there = [(v, c) for v, c in zip(at_step[metric][part], weight[part], strict=True) if c and v is not None]
  return sum(v * c for v, c in there) / sum(c for _, c in there) if there else math.nan
