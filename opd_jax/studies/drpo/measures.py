"""What the study measures of its students beside the curves: sampled and greedy answers to the same held-out problems."""

import functools
import pathlib

from opd_jax.config import Config
from opd_jax.runtime.programs import ProgramCache
from opd_jax.studies import students

ASKED = {"eval.prompts": 512, "eval.batch": 512, "eval.k": 1}
HOW = {"sampled": 1.0, "greedy": 0.0}  # temperature


def measure_student(config: Config, path: pathlib.Path | None, program_cache: ProgramCache) -> dict[str, float]:
  """Measure the accuracy of one student by how it answers, see `HOW`.

  Args:
    path: the run's workdir; None: the student before training.
  """
  found = students.accuracies(students.load(config, path), HOW.values(), ASKED, program_cache)
  return {how: found[temperature] for how, temperature in HOW.items()}


measure_all = functools.partial(students.ask_all, measure_student)
