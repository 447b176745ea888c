"""What the study measures beside its curves: what its students answer after training, and how far estimated credits are from the truth."""

import functools
import pathlib
from collections.abc import Iterable
from typing import Any

from opd_jax import config as configs
from opd_jax.config import Config
from opd_jax.evaluation import make_evaluator
from opd_jax.runtime.programs import ProgramCache
from opd_jax.studies import students
from opd_jax.studies.arm_spec import ArmSpec
from opd_jax.studies.graph import simulation
from opd_jax.studies.run import digest, measure

TRIES = 8
ASKED = {
  "eval.prompts": 512,
  "eval.batch": 256,
  "eval.k": TRIES,
  "eval.pass_at": (1, TRIES),
  "eval.temperature": 1.0,
  "eval.greedy": True,
}


def measure_all(
  arms: Iterable[ArmSpec], seeds: Iterable[int], out: pathlib.Path, changes: dict[str, Any] | None = None
) -> None:
  """Simulate, and ask the students of all finished runs; arguments as of `students.ask_all`."""
  seeds = list(seeds)
  for seed in seeds:
    measure(
      out,
      "simulation",
      seed,
      digest([], simulated()),
      functools.partial(simulation.simulate, seed, simulation.PROBLEMS),
    )
  students.ask_all(measure_student, arms, seeds, out, changes, settings=ASKED)


def simulated() -> dict[str, Any]:
  """The settings of the simulation: what was simulated with others is simulated again."""
  names = ("WIDTHS", "CHAINS", "SKILL", "PROBLEMS", "WEIGHTS", "FALSE")
  return {name: getattr(simulation, name) for name in names}


def measure_student(config: Config, path: pathlib.Path | None, program_cache: ProgramCache) -> dict[str, Any]:
  """Measure what one student answers.

  Args:
    path: the run's workdir; None: the student before training.

  Returns:
    Accuracy, "sampled" at temperature 1 as the mean of `TRIES` answers to each problem, and "greedy"; "pass", the share of the problems with a
    right one among them; and of the sampled answers the mean "length", in tokens.
  """
  student = students.load(config, path)
  asked = configs.override(student.config, ASKED)
  generator = functools.partial(student.recipe.generator, "student")
  evaluate = make_evaluator(asked, student.evaluation(asked), student.params, program_cache, generator)
  found = evaluate(student.params)[0]
  return {
    "sampled": found["accuracy"],
    "greedy": found["greedy"]["accuracy"],
    "pass": found["pass"][str(TRIES)]["value"],
    "length": found["length"]["mean"],
  }
