"""What the study measures of its students: every form of every task, pollution, own guesses and the deviation."""

import functools
import pathlib
import statistics
from typing import Any

from opd_jax import config as configs
from opd_jax.analysis.deviation import deviation
from opd_jax.evaluation.multi_turn import MultiTurnEvaluator
from opd_jax.runtime.programs import ProgramCache
from opd_jax.studies import students
from opd_jax.studies.ccopd.arms import OTHERS, OUT_OF_DOMAIN
from opd_jax.tasks import relay

COOLER = (0.7, 0.5)  # temperatures
LONGEST = max(task.max_response for task in OTHERS.values())
ASKED = {
  "eval.prompts": 256,
  "eval.batch": 256,
  "eval.max_tokens": LONGEST,
  "context.turn_tokens": LONGEST,
}


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
  student = students.load(config, path)

  def evaluator(task: relay.Relay, changes: dict[str, Any]) -> MultiTurnEvaluator:
    asked = configs.override(config, ASKED | {"eval.path": f"{configs.TASK}{task.name}"} | changes)
    return MultiTurnEvaluator(asked, student.evaluation(asked), student.params, program_cache)

  def accuracies(evaluator: MultiTurnEvaluator) -> dict[str, float]:
    return {form: result["accuracy"] for form, result in evaluator(student.params)[0]["forms"].items()}

  def pollution(evaluator: MultiTurnEvaluator) -> dict[str, float]:
    return {kind: result["accuracy"] for kind, result in evaluator.pollution(student.params).items()}

  own = evaluator(relay.RELAY, {"eval.k": 2})
  record, _ = own(student.params)
  measured: dict[str, Any] = {
    "relay": {form: result["accuracy"] for form, result in record["forms"].items()},
    **{name: accuracies(evaluator(task, {})) for name, task in OUT_OF_DOMAIN.items()},
    "pollution": pollution(own),
    "anchored": record["anchored"],
    "deviation": deviation(own, student.params),
  }
  measured["looks"] = statistics.fmean(measured["deviation"]["looks"])
  greedy = {name: evaluator(task, {"eval.temperature": 0.0}) for name, task in OTHERS.items()}
  measured["greedy"] = {name: accuracies(asked) for name, asked in greedy.items()}
  measured["greedy"]["pollution"] = pollution(greedy["relay"])
  if path is None:
    cooler = {f"{t:g}": evaluator(relay.RELAY, {"eval.temperature": t}) for t in COOLER}
    measured["cooler"] = {temperature: accuracies(asked) for temperature, asked in cooler.items()}
  return measured


measure_all = functools.partial(students.ask_all, measure_student)
