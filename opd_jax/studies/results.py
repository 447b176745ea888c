"""What a study has measured: its arms' runs by seed, and its analyses.

    OUT/runs/<arm>/seed<k>/          a workdir of opd_jax.train
    OUT/analysis/<name>/seed<k>.json measurements of another kind

Runs of one task and student are paired by seed: the same seed is the same prompts in the same order and the same
evaluation.
"""

import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from opd_jax.config import expanded_path
from opd_jax.reports.runs import Run, load
from opd_jax.runtime import json_files
from opd_jax.studies import flops

LAST = 3  # evaluations whose mean is a run's score: one alone is noisy
How = Literal["sampled", "greedy"]  # answers at the evaluation's temperature, or the likeliest tokens

T = TypeVar("T")


class Missing(Exception):
  """Raised where what was asked for has not been run."""


def workdir(out: pathlib.Path, arm: str, seed: int) -> pathlib.Path:
  """The workdir of one run of a study."""
  return out / "runs" / arm / f"seed{seed}"


def finished(path: pathlib.Path) -> Run | None:
  """Load the run of a workdir, if it has come to its last step and to the evaluation there.

  Raises:
    InputError: what is there is damaged.
  """
  records = path / "metrics.jsonl"
  if not records.is_file() or '"kind": "eval"' not in records.read_text(errors="replace"):
    return None
  run = load([path])[0]
  return run if run.finished and run.evals and run.evals[-1]["step"] >= run.steps else None


class Curve(NamedTuple):
  """Accuracy by evaluation, at the E evaluations that all seeds have."""

  x: np.ndarray  # [E], mean over seeds
  y: np.ndarray  # [E], mean over seeds
  seeds: dict[int, tuple[np.ndarray, np.ndarray]]  # by seed, x and y of every evaluation


class Results:
  """The runs and analyses of a study, each loaded once, when it is first asked for.

  Args:
    out: the study's directory.
    seeds: of every arm.
  """

  def __init__(self, out: str | pathlib.Path, seeds: Iterable[int]):
    self.out, self._seeds = expanded_path(out), tuple(seeds)
    self._runs: dict[tuple[str, int], Run] = {}
    self._flops: dict[tuple[str, int], tuple[list[int], list[float]]] = {}

  def seeds(self, arm: str) -> tuple[int, ...]:
    """The seeds of an arm that are finished, the last evaluation included."""
    return tuple(seed for seed in self._seeds if self._finished(arm, seed))

  def present(self, arms: Mapping[str, T]) -> dict[str, T]:
    """The arms of which at least one seed is finished, in the order given."""
    return {arm: value for arm, value in arms.items() if self.seeds(arm)}

  def runs(self, arm: str) -> dict[int, Run]:
    """List finished runs by seed, at least one.

    Raises:
      Missing: there is none.
    """
    if not (seeds := self.seeds(arm)):
      raise Missing(f"no run of {arm} is finished")
    return {seed: self._runs[arm, seed] for seed in seeds}

  def common(self, *arms: str) -> list[int]:
    """Seeds that all of these arms have finished, at least one.

    Raises:
      Missing: there is none.
    """
    if not (seeds := sorted(set.intersection(*(set(self.runs(arm)) for arm in arms)))):
      raise Missing(f"{', '.join(arms[:-1])} and {arms[-1]} have no finished seed in common")
    return seeds

  def config(self, arm: str) -> dict[str, Any]:
    """Return an arm's config, with dotted keys; of its first finished seed, as seeds differ in nothing else."""
    return next(iter(self.runs(arm).values())).config

  def accuracies(self, arm: str, how: How = "sampled") -> dict[int, list[float]]:
    """The accuracy of every evaluation, by seed.

    Raises:
      Missing: no run is finished, or one was evaluated without `eval.greedy` and its greedy accuracy is asked for.
    """
    runs = self.runs(arm)
    if how == "sampled":
      return {seed: [e["accuracy"] for e in run.evals] for seed, run in runs.items()}
    if not all("greedy" in e for run in runs.values() for e in run.evals):
      raise Missing(f"{arm} was evaluated without eval.greedy")
    return {seed: [e["greedy"]["accuracy"] for e in run.evals] for seed, run in runs.items()}

  def scores(self, arm: str, how: How = "sampled") -> dict[int, float]:
    """The mean accuracy of the last `LAST` evaluations, by seed."""
    return {seed: fmean(values[-LAST:]) for seed, values in self.accuracies(arm, how).items()}

  def best(self, arm: str, how: How = "sampled") -> dict[int, float]:
    """The highest mean accuracy of `LAST` evaluations in a row, by seed; so never less than the score."""
    return {seed: max(_means(values)) for seed, values in self.accuracies(arm, how).items()}

  def untrained(self, arm: str, how: How = "sampled") -> dict[int, float]:
    """The accuracy before the first step, from one evaluation, by seed."""
    runs = self.runs(arm)
    return {s: values[0] for s, values in self.accuracies(arm, how).items() if runs[s].evals[0]["step"] == 0}

  def totals(self, arm: str, x: str = "elapsed") -> dict[int, float]:
    """Sum up what each run has cost in all, in units of `curve`, by seed."""
    return {seed: float(self._x(arm, seed, x)[-1]) for seed in self.runs(arm)}

  def flops_at(self, arm: str, seed: int, steps: Sequence[int]) -> np.ndarray:
    """Count the FLOPs of a finished run up to and including each of these steps, see flops.py; [steps]."""
    if (arm, seed) not in self._flops:
      self._flops[arm, seed] = flops.cumulative(self._runs[arm, seed])
    return np.interp(steps, *self._flops[arm, seed])

  def trained(self, arm: str) -> dict[int, float]:
    """The mean number of tokens that a logged step trained, by seed."""
    return {seed: fmean(r["trained"] for r in run.train) for seed, run in self.runs(arm).items()}

  def pairs(self, a: str, b: str, how: How = "sampled") -> np.ndarray:
    """Score of a less score of b; [seeds that both have].

    Raises:
      Missing: they have none in common.
    """
    left, right = self.scores(a, how), self.scores(b, how)
    return np.array([left[seed] - right[seed] for seed in self.common(a, b)])

  def curve(self, arm: str, x: str = "step") -> Curve:
    """Trace accuracy against "step", generated "tokens", training seconds ("elapsed") or "flops", see flops.py."""
    runs = self.runs(arm)
    common = sorted(set.intersection(*({e["step"] for e in run.evals} for run in runs.values())))
    seeds = {s: (self._x(arm, s, x), np.array([e["accuracy"] for e in run.evals])) for s, run in runs.items()}
    shared = [np.isin([e["step"] for e in run.evals], common) for run in runs.values()]

    def mean(axis: int) -> np.ndarray:
      return np.mean([axes[axis][at] for axes, at in zip(seeds.values(), shared, strict=True)], axis=0)

    return Curve(mean(0), mean(1), seeds)

  def seconds_to(self, arm: str, targets: Mapping[int, float], x: str = "elapsed") -> dict[int, float]:
    """The place on the axis x where the accuracy first comes to the seed's target, by seed; inf where it never does.

    The curve between two evaluations is a straight line. 0 where the target was met before training.
    """
    seeds = self.curve(arm, x).seeds
    return {seed: crossing(*seeds[seed], target) for seed, target in targets.items() if seed in seeds}

  def analysis(self, name: str) -> dict[int, dict[str, Any]]:
    """The measurements of an analysis by seed, at least of one.

    Raises:
      Missing: there is none.
    """
    files = {seed: self.out / "analysis" / name / f"seed{seed}.json" for seed in self._seeds}
    found = {seed: read_measurement(file) for seed, file in files.items() if file.is_file()}
    if not found:
      raise Missing(f"the analysis {name} has not been made")
    return found

  def _finished(self, arm: str, seed: int) -> bool:
    if (arm, seed) not in self._runs and (run := finished(workdir(self.out, arm, seed))):
      self._runs[arm, seed] = run
    return (arm, seed) in self._runs

  def _x(self, arm: str, seed: int, x: str) -> np.ndarray:
    """The axis x of a run at its evaluations; [evaluations]."""
    run = self._runs[arm, seed]
    if x != "flops":
      return np.array([e[x] for e in run.evals], float)
    return self.flops_at(arm, seed, [e["step"] for e in run.evals])


def read_measurement(file: pathlib.Path) -> dict[str, Any]:
  """Read the file of a measurement.

  Raises:
    InputError: it is damaged.
  """
  return json_files.load_object(file, "delete it, and the same command measures again")


def crossing(x: np.ndarray, y: np.ndarray, target: float) -> float:
  """The x where a line through points first comes up to the target; inf if it never does, 0 if it begins there."""
  above = np.flatnonzero(y >= target)
  if not len(above):
    return math.inf
  i = above[0]
  if i == 0:
    return 0.0
  return float(x[i - 1] + (x[i] - x[i - 1]) * (target - y[i - 1]) / (y[i] - y[i - 1]))


def _means(values: Sequence[float]) -> list[float]:
  """The mean of every `LAST` values in a row; of all where they are fewer."""
  return [fmean(values[i : i + LAST]) for i in range(max(1, len(values) - LAST + 1))]
