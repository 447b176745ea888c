"""The trained students of a study, loaded from their workdirs, and what they are asked after training."""

import datetime
import functools
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
from etils import epath

from opd_jax import config as configs
from opd_jax import inputs
from opd_jax.config import Config
from opd_jax.data import tokenizer as tokenizers
from opd_jax.evaluation import EvaluationInputs
from opd_jax.evaluation.single_turn import Evaluator
from opd_jax.models import hf, model_sharding
from opd_jax.models.spec import ModelSpec
from opd_jax.recipes import base as recipes
from opd_jax.runtime import began, bucket
from opd_jax.runtime import mesh as meshes
from opd_jax.runtime.programs import ProgramCache
from opd_jax.studies.arm_spec import UNTRAINED, ArmSpec
from opd_jax.studies.results import workdir
from opd_jax.studies.run import config_of, digest, done, measure
from opd_jax.types import Params


class Student(NamedTuple):
  """A student that can be asked.

  Attributes:
    config: of its run.
    recipe: of the config, made of the student alone.
    moment: when the run began; None: the student before training.
  """

  config: Config
  recipe: recipes.Recipe
  params: Params
  model: ModelSpec
  tokenizer: Any
  mesh: jax.sharding.Mesh
  moment: datetime.datetime | None

  def evaluation(self, config: Config) -> EvaluationInputs:
    """Load the problems of `eval.path` for this student."""
    return inputs.load_evaluation(config, self.model, self.tokenizer, self.mesh, self.model.cfg.vocab, self.moment)


def load(config: Config, path: pathlib.Path | None) -> Student:
  """Load the student of a finished run.

  Args:
    path: the run's workdir; None: the student before training.
  """
  model, mesh = inputs.learner(config), meshes.for_reading(config.mesh)
  tokenizer = tokenizers.load(model.path)
  recipe = recipes.make(inputs.load_student(config, mesh))
  if path is None:
    params = hf.load(model.path, model.cfg, model_sharding.parameter_shardings(mesh, model.cfg))
    return Student(config, recipe, params, model, tokenizer, mesh, None)
  params = recipes.saved_models(recipe, epath.Path(path))[0]["student"]
  return Student(config, recipe, params, model, tokenizer, mesh, began.of_run(bucket.MirroredDir(path)))


Ask = Callable[[Config, pathlib.Path | None, ProgramCache], dict[str, Any]]  # of a run's config and workdir


def ask_all(
  ask: Ask,
  arms: Iterable[ArmSpec],
  seeds: Iterable[int],
  out: pathlib.Path,
  changes: dict[str, Any] | None = None,
  *,
  untrained: bool = True,
  settings: Any = None,
) -> None:
  """Ask the student of every finished run, and the student before training, and write OUT/analysis/asked-<arm>.

  What was measured of the same runs before is not measured again.

  Args:
    ask: returns what it measured; its workdir is None for the student before training.
    out: the study's directory.
    changes: to the config of every arm.
    untrained: ask the student before training too.
    settings: of `ask`: what was measured with others is measured again; see `digest`.
  """
  program_cache: ProgramCache = {}
  arms = list(arms)
  for seed in seeds:
    asked: list[tuple[str, Config, pathlib.Path | None]] = []
    if untrained:
      asked.append((UNTRAINED, config_of(arms[0], seed, out, changes), None))
    for arm in arms:
      if done(path := workdir(out, arm.name, seed)):
        asked.append((arm.name, config_of(arm, seed, out, changes), path))
    for name, config, path in asked:
      compute = functools.partial(ask, config, path, program_cache)
      measure(out, f"asked-{name}", seed, digest([config], settings), compute)


def accuracies(
  student: Student, temperatures: Iterable[float], changes: dict[str, Any], program_cache: ProgramCache
) -> dict[float, float]:
  """Measure a student's accuracy by temperature, 0 for greedy answers.

  Args:
    changes: to the run's config, such as `eval.prompts`.
  """
  measured = {}
  for temperature in temperatures:
    asked = configs.override(student.config, changes | {"eval.temperature": temperature, "eval.greedy": False})
    generator = functools.partial(student.recipe.generator, "student")
    evaluator = Evaluator(asked, student.evaluation(asked), student.params, program_cache, generator)
    measured[temperature] = evaluator(student.params)[0]["accuracy"]
  return measured
