"""The numbers of the study by seed, from its runs and from measures.py: areas, tuned areas, logged metrics, collapses."""

import functools
from collections.abc import Sequence
from statistics import fmean

import numpy as np

from opd_jax.studies.evidence import less, logged
from opd_jax.studies.results import Missing, Results
from opd_jax.studies.statistics import IntervalEstimate

COLLAPSE = 0.1  # of accuracy


def area(results: Results, arm: str) -> dict[int, float]:
  """The mean height of the accuracy's curve over the steps, by seed; straight lines between evaluations."""
  areas = {}
  for seed, run in results.runs(arm).items():
    steps, heights = [e["step"] for e in run.evals], [e["accuracy"] for e in run.evals]
    areas[seed] = float(np.trapezoid(heights, steps) / (steps[-1] - steps[0]))
  return areas


def best_of(results: Results, arms: Sequence[str]) -> dict[int, float]:
  """The area of a tuned method by seed, each at the arm that is best on the other seeds.

  Raises:
    Missing: fewer than two seeds have finished all of the arms.
  """
  return {seed: area(results, arm)[seed] for seed, arm in chosen(results, arms).items()}


def chosen(results: Results, arms: Sequence[str]) -> dict[int, str]:
  """Which of the arms has the highest mean area over the other seeds, by seed; the first of equal ones.

  Raises:
    Missing: fewer than two seeds have finished all of the arms.
  """
  areas = {arm: area(results, arm) for arm in arms}
  seeds = results.common(*arms)
  if len(seeds) < 2:
    raise Missing(f"tuning {arms[0]} and its kind needs two seeds of all of them")

  def elsewhere(seed: int, arm: str) -> float:
    return fmean(areas[arm][s] for s in seeds if s != seed)

  return {seed: max(arms, key=functools.partial(elsewhere, seed)) for seed in seeds}


def difference(results: Results, a: str, b: str) -> IntervalEstimate:
  """Estimate the area of arm a less that of arm b."""
  return less(area(results, a), area(results, b))


def largest_weight(results: Results, arm: str) -> dict[int, float]:
  """The largest |w| that any token of any update had, by seed."""
  most, least = (logged(results, arm, f"gradient_weight_{end}", pick) for end, pick in (("max", max), ("min", min)))
  return {seed: max(abs(most[seed]), abs(least[seed])) for seed in most}


def collapsed(results: Results, arm: str) -> dict[int, float]:
  """1 for each seed whose run ends far below its own best or below the student before training, else 0."""
  best, before, last = results.best(arm), results.untrained(arm), results.scores(arm)
  return {seed: float(max(best[seed], before[seed]) - last[seed] > COLLAPSE) for seed in best}


def accuracy(results: Results, arm: str, how: str) -> dict[int, float]:
  """Accuracy after training, from measures.py, by seed: "sampled" at temperature 1, or "greedy"."""
  return {seed: record[how] for seed, record in results.analysis(f"asked-{arm}").items()}
