"""What the study measures of its students: accuracy in both domains, and what comments do to them."""

import pathlib
from collections.abc import Iterable
from typing import Any

import jax
from etils import epath

from opd_jax import config as configs
from opd_jax import inputs
from opd_jax.context.comments import Comment, Comments, Outcome
from opd_jax.context.tutor import Tutor
from opd_jax.data import pipeline
from opd_jax.data import tokenizer as tokenizers
from opd_jax.evaluation import EvaluationInputs
from opd_jax.evaluation.commented import CommentedEvaluator, CommentOn, shuffled
from opd_jax.evaluation.single_turn import Evaluator
from opd_jax.evaluation.tutoring import by_domain
from opd_jax.models import hf, model_sharding
from opd_jax.recipes import base as recipes
from opd_jax.rollout.generate import Generator
from opd_jax.runtime import mesh as meshes
from opd_jax.runtime.programs import ProgramCache
from opd_jax.studies import students
from opd_jax.studies.arm_spec import ArmSpec
from opd_jax.studies.opcod.arms import ARMS, COMMENTED, OF_MODEL, SPECIALISTS
from opd_jax.tasks import operators
from opd_jax.types import Params

ASKED = {"eval.prompts": 256, "eval.batch": 256, "eval.k": 2}
GREEDY = {"eval.temperature": 0.0, "eval.k": 1}
COOLER = (0.7, 0.5)  # temperatures, of the specialists before training
COMMENTED_ASKED = {"eval.prompts": 128, "eval.batch": 256, "eval.k": 4}


def measure_all(
  arms: Iterable[ArmSpec], seeds: Iterable[int], out: pathlib.Path, changes: dict[str, Any] | None = None
) -> None:
  """Ask the students of all finished runs; arguments as of `students.ask_all`."""
  arms, seeds = list(arms), list(seeds)
  settings = {"asked": ASKED, "greedy": GREEDY, "cooler": COOLER, "commented": COMMENTED_ASKED}
  students.ask_all(measure_students, arms, seeds, out, changes, settings=settings)


def measure_students(config: configs.Config, path: pathlib.Path | None, program_cache: ProgramCache) -> dict[str, Any]:
  """Measure the students of one run, by specialist that each was.

  Args:
    path: the run's workdir; None: the specialists before training.

  Returns:
    Of each specialist, "sums" and "differences", accuracy by domain at temperature 1, and under "greedy" likewise of the likeliest
    tokens. Before training also "cooler", by temperature. Before training and of the arms COMMENTED also "comments": of each
    specialist the records of evaluation/commented.py, of comments by the "peer", by itself, "own", by somebody who is never wrong,
    "oracle", and by the peer on another problem's response, "shuffled".
  """
  mesh = meshes.for_reading(config.mesh)
  models = _before(config, mesh) if path is None else _after(config, path, mesh)
  problems = _Problems(config, mesh, program_cache)
  found: dict[str, Any] = {name: problems.accuracy(params, ASKED) for name, params in models.items()}
  found["greedy"] = {name: problems.accuracy(params, ASKED | GREEDY) for name, params in models.items()}
  if path is None:
    found["cooler"] = {
      f"{t:g}": {name: problems.accuracy(params, ASKED | {"eval.temperature": t}) for name, params in models.items()}
      for t in COOLER
    }
  if path is None or path.parent.name in COMMENTED:
    found["comments"] = {name: problems.comments(models, name) for name in models}
  return found


def _before(config: configs.Config, mesh: jax.sharding.Mesh) -> dict[str, Params]:
  models = {}
  for name, specialist in SPECIALISTS.items():
    model = inputs.learner(configs.override(config, {"student": specialist}))
    models[name] = hf.load(model.path, model.cfg, model_sharding.parameter_shardings(mesh, model.cfg))
  return models


def _after(config: configs.Config, path: pathlib.Path, mesh: jax.sharding.Mesh) -> dict[str, Params]:
  recipe = recipes.make(inputs.load_student(config, mesh))
  models, _ = recipes.saved_models(recipe, epath.Path(path))
  if len(models) > 1:
    return {OF_MODEL[name]: params for name, params in models.items()}
  return {name: models["student"] for name, specialist in SPECIALISTS.items() if specialist == config.student}


class _Problems:
  """The held-out problems of a seed, which every student is asked. All students are of one architecture."""

  def __init__(self, config: configs.Config, mesh: jax.sharding.Mesh, program_cache: ProgramCache):
    two = next(arm for arm in ARMS if arm.method == "opcod").config(config.seed)
    self._config = configs.override(two, {"data.verifier": "auto"})
    self._mesh, self._program_cache = mesh, program_cache
    self._model = inputs.learner(self._config)
    self._tokenizer = tokenizers.load(self._model.path)

  def _load(self, changes: dict[str, Any]) -> tuple[configs.Config, EvaluationInputs]:
    asked = configs.override(self._config, changes)
    loaded = inputs.load_evaluation(asked, self._model, self._tokenizer, self._mesh, self._model.cfg.vocab)
    return asked, loaded

  def accuracy(self, params: Params, changes: dict[str, Any]) -> dict[str, float]:
    """Measure accuracy by domain."""
    asked, loaded = self._load(changes)
    return by_domain(Evaluator(asked, loaded, params, self._program_cache)(params)[0])

  def comments(self, models: dict[str, Params], name: str) -> dict[str, dict[str, Any]]:
    """Measure what each kind of comment does to one student."""
    asked, loaded = self._load(COMMENTED_ASKED)
    peer = next(other for other in models if other != name)
    by_peer, by_itself = (self._tutor(asked, loaded, models[who]) for who in (peer, name))
    kinds: dict[str, CommentOn] = {
      "peer": by_peer,
      "own": by_itself,
      "oracle": _never_wrong,
      "shuffled": shuffled(by_peer, asked.eval.k),
    }
    return CommentedEvaluator(asked, loaded, self._program_cache)(models[name], kinds)

  def _tutor(self, asked: configs.Config, loaded: EvaluationInputs, params: Params) -> CommentOn:
    c = asked.comment
    generate = Generator(
      loaded.generator_config,
      loaded.tokenizer,
      batch=asked.eval.batch,
      prompt_lens=pipeline.rising_widths(c.max_prompt, 0.0, 0),
      max_tokens=c.max_tokens,
      name="comment",
      numbered=True,
      program_cache=self._program_cache,
    )
    tutor = Tutor(generate, Comments.from_config(asked), loaded.tokenizer, loaded.rendering)
    return lambda prompts, texts, key: tutor(params, prompts, texts, key).comments


def _never_wrong(prompts: Any, texts: Any, key: jax.Array) -> list[Comment]:
  found = [operators.comment(text).replace(operators.MARK, "") for text in texts]
  return [Comment(text, Outcome.KEPT if text else Outcome.EMPTY) for text in found]
