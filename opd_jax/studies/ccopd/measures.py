"""What the study measures of its students: every form of every task, pollution, own guesses and the deviation.

All of it takes two and a half minutes a student, so that only the students that claims about it are made of are asked for all: the one
before training, and CCOPD's. The others are asked for the forms of the task that they were trained on, sampled and greedy.
"""

import pathlib
import statistics
from collections.abc import Callable, Iterable
from typing import Any

from opd_jax import config as configs
from opd_jax.analysis.deviation import deviation
from opd_jax.evaluation.multi_turn import MultiTurnEvaluator
from opd_jax.runtime.programs import ProgramCache
from opd_jax.studies import students
from opd_jax.studies.arm_spec import ArmSpec
from opd_jax.studies.ccopd.arms import OTHERS, OUT_OF_DOMAIN
from opd_jax.tasks import relay

ASKED_FOR_ALL = ("ccopd",)  # arms whose students are asked for all, beside the one before training
COOLER = (0.7, 0.5)  # temperatures
LONGEST = max(task.max_response for task in OTHERS.values())
ASKED = {
  "eval.prompts": 256,
  "eval.batch": 256,
  "eval.max_tokens": LONGEST,
  "context.turn_tokens": LONGEST,
}
SAMPLED, GREEDY = {"eval.k": 2}, {"eval.temperature": 0.0}


def measure_student(config: configs.Config, path: pathlib.Path | None, program_cache: ProgramCache) -> dict[str, Any]:
  """Measure one student: accuracy by task and form; on the task of training also what conversations do to it.

  Args:
    path: the run's workdir; None: the student before training.

  Returns:
    relay, times, long: accuracy by form, "full", "concat" and "raw", at temperature 1.
    pollution: accuracy behind a wrong "solution" and a wrong "hint", at temperature 1.
    greedy: all of these again, where the student says its likeliest tokens in every turn.
    cooler: accuracy by form at the temperatures `COOLER`, of the student before training alone.
    anchored, deviation: the records of `MultiTurnEvaluator` and of analysis/deviation.py.
    looks: the deviation's attention ratio, a mean over layers.
  """
  student, evaluator = _student(config, path, program_cache)

  def pollution(evaluator: MultiTurnEvaluator) -> dict[str, float]:
    return {kind: result["accuracy"] for kind, result in evaluator.pollution(student.params).items()}

  own = evaluator(relay.RELAY, SAMPLED)
  record, _ = own(student.params)
  measured: dict[str, Any] = {
    "relay": _accuracies(record),
    **{name: _accuracies(evaluator(task, {})(student.params)[0]) for name, task in OUT_OF_DOMAIN.items()},
    "pollution": pollution(own),
    "anchored": record["anchored"],
    "deviation": deviation(own, student.params),
  }
  measured["looks"] = statistics.fmean(measured["deviation"]["looks"])
  greedy = {name: evaluator(task, GREEDY) for name, task in OTHERS.items()}
  measured["greedy"] = {name: _accuracies(asked(student.params)[0]) for name, asked in greedy.items()}
  measured["greedy"]["pollution"] = pollution(greedy["relay"])
  if path is None:
    cooler = {f"{t:g}": evaluator(relay.RELAY, {"eval.temperature": t}) for t in COOLER}
    measured["cooler"] = {t: _accuracies(asked(student.params)[0]) for t, asked in cooler.items()}
  return measured


def measure_answers(config: configs.Config, path: pathlib.Path | None, program_cache: ProgramCache) -> dict[str, Any]:
  """Measure of one student what `measure_student` calls "relay", and the same of greedy conversations; arguments as there."""
  student, evaluator = _student(config, path, program_cache)
  sampled, greedy = (evaluator(relay.RELAY, changes)(student.params)[0] for changes in (SAMPLED, GREEDY))
  return {"relay": _accuracies(sampled), "anchored": sampled["anchored"], "greedy": {"relay": _accuracies(greedy)}}


def measure_all(
  arms: Iterable[ArmSpec], seeds: Iterable[int], out: pathlib.Path, changes: dict[str, Any] | None = None
) -> None:
  """Ask the students of all finished runs; arguments as of `students.ask_all`."""
  arms, seeds = list(arms), list(seeds)
  asked_for_all = [arm for arm in arms if arm.name in ASKED_FOR_ALL]
  if asked_for_all:
    students.ask_all(measure_student, asked_for_all, seeds, out, changes)
  others = [arm for arm in arms if arm.name not in ASKED_FOR_ALL]
  students.ask_all(measure_answers, others, seeds, out, changes, untrained=False)


def _student(
  config: configs.Config, path: pathlib.Path | None, program_cache: ProgramCache
) -> tuple[students.Student, Callable[[relay.Relay, dict[str, Any]], MultiTurnEvaluator]]:
  """Load a student, and return it with what makes an evaluator of a task for it."""
  student = students.load(config, path)

  def evaluator(task: relay.Relay, changes: dict[str, Any]) -> MultiTurnEvaluator:
    asked = configs.override(config, ASKED | {"eval.path": f"{configs.TASK}{task.name}"} | changes)
    return MultiTurnEvaluator(asked, student.evaluation(asked), student.params, program_cache)

  return student, evaluator


def _accuracies(record: dict[str, Any]) -> dict[str, float]:
  return {form: result["accuracy"] for form, result in record["forms"].items()}
