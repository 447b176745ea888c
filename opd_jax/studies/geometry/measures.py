"""What the study measures of updates: their geometry beside its nulls, and which coordinates two runs share.

A run's update is that of the first checkpoint whose accuracy, sampled, is at least `TARGET`, so that runs are compared at one score; of
a run that never comes there it is the last.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable
from typing import Any

from opd_jax.analysis.geometry import sources
from opd_jax.analysis.geometry.compare import compare
from opd_jax.analysis.geometry.measure import Options
from opd_jax.config import Config
from opd_jax.models import hf
from opd_jax.studies.arm_spec import ArmSpec
from opd_jax.studies.geometry.arms import COMPARED, MANTISSA, TARGET
from opd_jax.studies.results import finished, workdir
from opd_jax.studies.run import config_of, digest, done, measure

# The nulls' seed is the study's.
OPTIONS = Options(mantissa=MANTISSA, draws=3)
SHARED = Options(mantissa=MANTISSA, draws=3, groups=("coordinates",))


def measure_all(
  arms: Iterable[ArmSpec], seeds: Iterable[int], out: pathlib.Path, changes: dict[str, Any] | None = None
) -> None:
  """Measure the update of every finished run of COMPARED, and what each shares with OPD's.

  Args:
    out: the study's directory.
    changes: to the config of every arm.
  """
  settings = {"target": TARGET, "mantissa": MANTISSA}
  by_name = {arm.name: arm for arm in arms}
  compared = [by_name[arm.name] for arm in COMPARED if arm.name in by_name]
  for seed in seeds:
    paths = {arm.name: workdir(out, arm.name, seed) for arm in compared}
    configs = {arm.name: config_of(arm, seed, out, changes) for arm in compared}
    whole, coordinates = (dataclasses.replace(options, seed=seed) for options in (OPTIONS, SHARED))
    for name in (name for name, path in paths.items() if done(path)):
      own = functools.partial(_update, paths[name], configs[name], whole)
      of_settings = settings | {"options": dataclasses.asdict(whole)}
      measure(out, f"update-{name}", seed, digest([configs[name]], of_settings), own)
      if name != "opd" and done(paths["opd"]):
        shared = functools.partial(_shared, paths["opd"], paths[name], configs["opd"], coordinates)
        of_settings = settings | {"options": dataclasses.asdict(coordinates)}
        measure(out, f"shared-{name}", seed, digest([configs["opd"], configs[name]], of_settings), shared)


def step_at_target(path: pathlib.Path) -> tuple[int, bool]:
  """Find the step of the update that is compared, and whether the run came to `TARGET`."""
  run = finished(path)
  assert run
  reached = [e["step"] for e in run.evals if e["accuracy"] >= TARGET and e["step"] > 0]
  return (reached[0], True) if reached else (run.steps, False)


def _update(path: pathlib.Path, config: Config, options: Options) -> dict[str, Any]:
  """Measure one run's update.

  Returns:
    step, reached: see `step_at_target`; statistics, layers: of the whole model and by layer, see compare.py; curves.
  """
  step, reached = step_at_target(path)
  found = compare(_start(config), sources.open_source(str(path), step=step), options=options)
  return {"step": step, "reached": reached} | {
    name: found[key] for name, key in (("statistics", "whole"), ("layers", "layers"), ("curves", "curves"))
  }


def _shared(of_opd: pathlib.Path, of_other: pathlib.Path, config: Config, options: Options) -> dict[str, Any]:
  """Measure how OPD's moved coordinates lie to those of another run."""
  after, other = (sources.open_source(str(path), step=step_at_target(path)[0]) for path in (of_opd, of_other))
  found = compare(_start(config), after, other, options)
  return {
    "statistics": {
      kind: {key: value for key, value in statistics.items() if key.startswith(("density", "overlap"))}
      for kind, statistics in found["whole"].items()
    }
  }


def _start(config: Config) -> sources.Source:
  return sources.open_source(str(hf.resolve(config.student)))
