"""What the study measures of its students beside the curves: sampled and greedy answers to the same held-out problems."""

import functools
import pathlib
from collections.abc import Iterable
from typing import Any

from opd_jax.config import Config
from opd_jax.runtime.programs import ProgramCache
from opd_jax.studies import students
from opd_jax.studies.arm_spec import ArmSpec
from opd_jax.studies.drpo.arms import UNTRAINED
from opd_jax.studies.results import workdir
from opd_jax.studies.run import digest, done, measure

ASKED = {"eval.prompts": 512, "eval.batch": 512, "eval.k": 1}
HOW = {"sampled": 1.0, "greedy": 0.0}  # temperature


def measure_all(
  arms: Iterable[ArmSpec], seeds: Iterable[int], out: pathlib.Path, changes: dict[str, Any] | None = None
) -> None:
  """Measure every finished run, and the student before training.

  What was measured of the same runs before is not measured again.

  Args:
    out: the study's directory.
    changes: to the config of every arm.
  """
  program_cache: ProgramCache = {}
  arms = list(arms)
  for seed in seeds:
    asked: list[tuple[str, Config, pathlib.Path | None]] = [(UNTRAINED, arms[0].config(seed, changes), None)]
    for arm in arms:
      path = workdir(out, arm.name, seed)
      if done(path):
        asked.append((arm.name, arm.config(seed, changes), path))
    for name, config, path in asked:
      compute = functools.partial(measure_student, config, path, program_cache)
      measure(out, f"asked-{name}", seed, digest([config]), compute)


def measure_student(config: Config, path: pathlib.Path | None, program_cache: ProgramCache) -> dict[str, float]:
  """Measure the accuracy of one student by how it answers, see `HOW`.

  Args:
    path: the run's workdir; None: the student before training.
  """
  found = students.accuracies(students.load(config, path), HOW.values(), ASKED, program_cache)
  return {how: found[temperature] for how, temperature in HOW.items()}
