"""What the study asks its students after training: every form of every task, pollution, own guesses, and the deviation."""

import pathlib
import statistics
from collections.abc import Iterable
from typing import Any

from etils import epath

from opd_jax import config as configs
from opd_jax import inputs, state
from opd_jax import mesh as meshes
from opd_jax.analysis.deviation import deviation
from opd_jax.data import tokenizer as tokenizers
from opd_jax.models import hf
from opd_jax.multiturn import MultiTurnEvaluator
from opd_jax.programs import Kept
from opd_jax.studies.arms import Arm
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
  arms: Iterable[Arm], seeds: Iterable[int], out: pathlib.Path, changes: dict[str, Any] | None = None
) -> None:
  """Of every finished run, and of the student before training; what was measured of the same runs before is kept."""
  kept: Kept = {}
  for seed in seeds:
    first = ARMS[0].config(seed, changes)
    measure(out, f"asked-{UNTRAINED}", seed, digest([first]), lambda c=first: asked(c, None, kept))
    for arm in arms:
      path = workdir(out, arm.name, seed)
      if done(path):
        c = arm.config(seed, changes)
        measure(out, f"asked-{arm.name}", seed, digest([c]), lambda c=c, path=path: asked(c, path, kept))


def asked(c: configs.Config, path: pathlib.Path | None, kept: Kept) -> dict[str, Any]:
  """Accuracy by task and form; of the task that was trained on also pollution's, own guesses, the deviation, and looks.

  Args:
    path: of the run; None: the student before training.
  """
  model = inputs.learner(c)
  tokenizer, mesh = tokenizers.load(model.path), meshes.for_reading(c.mesh)
  if path is None:
    params = hf.read(model.path, model.cfg, meshes.parameter_shardings(mesh, model.cfg))
  else:
    params, _ = state.saved_params(c, model.path, model.cfg, mesh, epath.Path(path), None)
  out: dict[str, Any] = {}
  for name, task in OTHERS.items():
    k = 2 if name == "relay" else 1
    of = configs.override(c, ASKED | {"eval.path": f"{configs.TASK}{task.name}", "eval.k": k})
    evaluation = inputs.load_evaluation(of, model, tokenizer, mesh, model.cfg.vocab)
    evaluator = MultiTurnEvaluator(of, evaluation, params, kept)
    record, _ = evaluator(params)
    out[name] = {form: found["accuracy"] for form, found in record["forms"].items()}
    if name == "relay":
      out["pollution"] = {kind: found["accuracy"] for kind, found in evaluator.pollution(params).items()}
      out["anchored"] = record["anchored"]
      out["deviation"] = deviation(evaluator, params)
      out["looks"] = statistics.fmean(out["deviation"]["looks"])
  return out
