"""What the study measures beside its curves: what its students answer after training, by tier, and on tiers that they were not trained on."""

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
from opd_jax.tasks.subsets import OTHER_SUBSETS, SUBSETS

TRIES = 4
ASKED = {
  "eval.prompts": 768,  # 256 of each tier
  "eval.batch": 384,
  "eval.k": TRIES,
  "eval.pass_at": (1, TRIES),
  "eval.temperature": 1.0,
  "eval.greedy": True,
}
PROBLEMS = {"trained": SUBSETS, "others": OTHER_SUBSETS}


def measure_all(
  arms: Iterable[ArmSpec], seeds: Iterable[int], out: pathlib.Path, changes: dict[str, Any] | None = None
) -> None:
  """Ask the students of all finished runs; arguments as of `students.ask_all`."""
  students.ask_all(measure_student, arms, seeds, out, changes, settings=ASKED)


def measure_student(config: Config, path: pathlib.Path | None, program_cache: ProgramCache) -> dict[str, Any]:
  """Measure what one student answers to held-out problems without candidates.

  Args:
    path: the run's workdir; None: the student before training.

  Returns:
    By PROBLEMS, the tiers of training and the other ones: accuracy, "sampled" at temperature 1 as the mean of `TRIES` answers to each problem, and
    "greedy"; "pass", the share of the problems with a right one among these answers; and "tiers", the two accuracies of each.
  """
  student = students.load(config, path)
  found = {}
  for name, task in PROBLEMS.items():
    asked = configs.override(
      student.config, ASKED | {"data.path": f"task:{task.name}", "horizon.max": task.max_response}
    )
    generator = functools.partial(student.recipe.generator, "student")
    evaluate = make_evaluator(asked, student.evaluation(asked), student.params, program_cache, generator)
    record = evaluate(student.params)[0]
    greedy = record["greedy"]
    found[name] = {
      "sampled": record["accuracy"],
      "greedy": greedy["accuracy"],
      "pass": record["pass"][str(TRIES)]["value"],
      "tiers": {
        tier.name: {
          "sampled": record["domains"][tier.name]["accuracy"],
          "greedy": greedy["domains"][tier.name]["accuracy"],
        }
        for tier in task.tiers
      },
    }
  return found
