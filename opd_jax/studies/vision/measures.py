"""What the study measures beside its curves: what its students see after training, of whole pictures, of crops, and of what was not trained."""

import functools
import pathlib
from collections.abc import Iterable
from typing import Any

from etils import epath

from opd_jax import config as configs
from opd_jax.config import Config
from opd_jax.evaluation import make_evaluator
from opd_jax.recipes import base as recipes
from opd_jax.runtime.programs import ProgramCache
from opd_jax.studies import students
from opd_jax.studies.arm_spec import ArmSpec
from opd_jax.studies.students import Student
from opd_jax.studies.vision.arms import ARMS, CURVES, EVERY
from opd_jax.tasks.scenes import COUNT, MAJORITY
from opd_jax.types import Params

ASKED: dict[str, Any] = {
  "eval.prompts": 512,
  "eval.batch": 512,
  "eval.k": 2,
  "eval.temperature": 1.0,
  "eval.greedy": True,
}
BRIEFLY: dict[str, Any] = {"eval.prompts": 256, "eval.batch": 256, "eval.k": 1, "eval.greedy": False}
# How a question is shown: the whole picture with its box in red, without, and the crop.
VIEWS: dict[str, dict[str, Any]] = {
  "marked": {"data.draw_boxes": "all"},
  "unmarked": {"data.draw_boxes": "none"},
  "crop": {"context.eval_view": "crop"},
}
SKILLS = {task.name.removeprefix("scenes-"): task for task in (MAJORITY, COUNT)}  # of whole pictures, never trained


def measure_all(
  arms: Iterable[ArmSpec], seeds: Iterable[int], out: pathlib.Path, changes: dict[str, Any] | None = None
) -> None:
  """Ask the students of all finished runs; arguments as of `students.ask_all`."""
  students.ask_all(measure_student, arms, seeds, out, changes, settings=[ASKED, BRIEFLY, CURVES])


def measure_student(config: Config, path: pathlib.Path | None, program_cache: ProgramCache) -> dict[str, Any]:
  """Measure what one student answers to held-out questions.

  Args:
    path: the run's workdir; None: the student before training.

  Returns:
    By VIEWS and by SKILLS accuracy, "sampled" at temperature 1 and "greedy", and the mean "length" of the sampled answers in tokens.
    Of the arms CURVES also "steps": of every checkpoint the step and the sampled accuracy of a part of the questions, "marked" and "crop".
  """
  student = students.load(config, path)
  found: dict[str, Any] = {name: _answers(student, view, program_cache) for name, view in VIEWS.items()}
  found |= {
    name: _answers(
      student, {"data.path": f"task:{task.name}", "data.box_field": "", "context.kind": "same"}, program_cache
    )
    for name, task in SKILLS.items()
  }
  if path is not None and path.parent.name in CURVES:
    found["steps"] = [_at(student, path, step, program_cache) for step in range(EVERY, config.steps + 1, EVERY)]
  return found


def _at(student: Student, path: pathlib.Path, step: int, program_cache: ProgramCache) -> dict[str, Any]:
  params = recipes.saved_models(student.recipe, epath.Path(path), step)[0]["student"]
  views = {name: VIEWS[name] | BRIEFLY for name in ("marked", "crop")}
  asked = {name: _asked(student, view, program_cache, params)["accuracy"] for name, view in views.items()}
  return {"step": step} | asked


def _answers(student: Student, changes: dict[str, Any], program_cache: ProgramCache) -> dict[str, float]:
  record = _asked(student, changes, program_cache, student.params)
  return {
    "sampled": record["accuracy"],
    "greedy": record["greedy"]["accuracy"],
    "length": record["length"]["mean"],
  }


def _asked(student: Student, changes: dict[str, Any], program_cache: ProgramCache, params: Params) -> dict[str, Any]:
  """Ask by the config of Vision-OPD, whatever trained the student: only that has crops."""
  of_run = {"vision.train": student.config.vision.train}
  config = configs.override(ARMS[0].config(student.config.seed), of_run | ASKED | changes)
  generator = functools.partial(student.recipe.generator, "student")
  evaluate = make_evaluator(config, student.evaluation(config), params, program_cache, generator)
  return evaluate(params)[0]
