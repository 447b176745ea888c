"""What the study measures of its students: every form of every task, pollution, own guesses and the deviation."""

import functools
import pathlib
import statistics
from collections.abc import Iterable
from typing import Any

from etils import epath

from opd_jax import config as configs
from opd_jax import inputs
from opd_jax.analysis.deviation import deviation
from opd_jax.data import tokenizer as tokenizers
from opd_jax.evaluation.multi_turn import MultiTurnEvaluator
from opd_jax.models import hf, model_sharding
from opd_jax.recipes import base as recipes
from opd_jax.runtime import began, bucket
from opd_jax.runtime import mesh as meshes
from opd_jax.runtime.programs import ProgramCache
from opd_jax.studies.arm_spec import ArmSpec
from opd_jax.studies.ccopd.arms import ARMS, OTHERS, UNTRAINED
from opd_jax.studies.results import workdir
from opd_jax.studies.run import digest, done, measure

LONGEST = max(task.max_response for task in OTHERS.values())
ASKED = {
  "eval.prompts": 256,
  "eval.batch": 256,
  "eval.max_tokens": LONGEST,
  "context.turn_tokens": LONGEST,
}


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
  for seed in seeds:
    config = ARMS[0].config(seed, changes)
    students: list[tuple[str, configs.Config, pathlib.Path | None]] = [(UNTRAINED, config, None)]
    for arm in arms:
      path = workdir(out, arm.name, seed)
      if done(path):
        students.append((arm.name, arm.config(seed, changes), path))
    for name, config, path in students:
      compute = functools.partial(measure_student, config, path, program_cache)
      measure(out, f"asked-{name}", seed, digest([config]), compute)


def measure_student(config: configs.Config, path: pathlib.Path | None, program_cache: ProgramCache) -> dict[str, Any]:
  """Measure one student: accuracy by task and form; on the task of training also what conversations do to it.

  Args:
    path: the run's workdir; None: the student before training.

  Returns:
    relay, times, long: accuracy by form, "full", "concat" and "raw".
    pollution: accuracy behind a wrong "solution" and a wrong "hint".
    anchored, deviation: the records of `MultiTurnEvaluator` and of analysis/deviation.py.
    looks: the deviation's attention ratio, a mean over layers.
  """
  model = inputs.learner(config)
  tokenizer, mesh = tokenizers.load(model.path), meshes.for_reading(config.mesh)
  moment = None if path is None else began.of_run(bucket.MirroredDir(path))
  if path is None:
    params = hf.load(model.path, model.cfg, model_sharding.parameter_shardings(mesh, model.cfg))
  else:
    recipe = recipes.make(inputs.load_student(config, mesh))
    params = recipes.saved_models(recipe, epath.Path(path))[0]["student"]
  measured: dict[str, Any] = {}
  for name, task in OTHERS.items():
    k = 2 if name == "relay" else 1
    changes = ASKED | {"eval.path": f"{configs.TASK}{task.name}", "eval.k": k}
    task_config = configs.override(config, changes)
    evaluation = inputs.load_evaluation(task_config, model, tokenizer, mesh, model.cfg.vocab, moment)
    evaluator = MultiTurnEvaluator(task_config, evaluation, params, program_cache)
    record, _ = evaluator(params)
    measured[name] = {form: result["accuracy"] for form, result in record["forms"].items()}
    if name == "relay":
      pollution = evaluator.pollution(params)
      measured["pollution"] = {kind: result["accuracy"] for kind, result in pollution.items()}
      measured["anchored"] = record["anchored"]
      measured["deviation"] = deviation(evaluator, params)
      measured["looks"] = statistics.fmean(measured["deviation"]["looks"])
  return measured
