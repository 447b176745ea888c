"""Accuracy of a model on held-out problems, as `python -m opd_jax.evaluate` and notebooks measure it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from opd_jax import checks, inputs
from opd_jax import config as configs
from opd_jax.analysis import deviation as deviations
from opd_jax.analysis import loaded
from opd_jax.analysis.loaded import Model
from opd_jax.config import Config
from opd_jax.data.problems import Problems
from opd_jax.errors import InputError
from opd_jax.evaluation import EvaluationInputs, MultiTurnEvaluator, WithGreedy, make_evaluator
from opd_jax.recipes import base as recipes


def evaluate(model: Model, config: Config | None = None, *, deviation: bool = False) -> dict[str, Any]:
  """Measures a model's accuracy on the held-out problems of a config, always with full-length responses.

  The problems, samples per problem, temperature and seed are `config.eval` and `config.seed`; the same config draws the
  same random numbers, so that two models differ by their weights alone.

  Args:
    config: None: that of the run which the model comes from.
    deviation: of conversations: also how far they move the last reply, see analysis/deviation.py.

  Returns:
    The record of an evaluation in metrics.jsonl, see docs/metrics.md: `accuracy` (avg@k, in [0, 1]) with its 95% interval
    `low` and `high`, `pass` (pass@k), `length` (tokens), `ended`; `samples`, a few responses as text; and where there are
    any, `notes`: what is worth knowing of the problems, such as references that no response can match.

  Raises:
    InputError: a value of the config that cannot work, no held-out problems, or a model of no run without a config.
  """
  if config is None:
    if model.origin is None:
      raise InputError(f"{model.spec.name} comes from no run; give the config whose held-out problems it is to answer.")
    config = model.origin.config
  check(config, deviation=deviation)
  return measure(model, config, deviation=deviation, tell=lambda problems: loaded.warn(problems.notes, 5))


def check(config: Config, *, deviation: bool) -> None:
  """Refuses a config with which nothing can be measured, before any weights are read."""
  checks.check(config)
  if deviation and config.context.kind == "same":
    raise InputError(
      "--deviation compares a conversation with what is told at once, and config.context.kind is 'same'."
    )


def measure(model: Model, config: Config, *, deviation: bool, tell: Callable[[Problems], None]) -> dict[str, Any]:
  """Measures what `evaluate` returns.

  Args:
    tell: is given the problems before they are answered.
  """
  found = inputs.load_evaluation(
    config, model.spec, model.tokenizer, model.mesh, model.spec.cfg.vocab, model.rendering.moment
  )
  tell(found.problems)
  evaluator = _evaluator(model, config, found)
  record, samples = evaluator(model.params)
  if isinstance(evaluator, WithGreedy):
    evaluator = evaluator.sampled
  if isinstance(evaluator, MultiTurnEvaluator):
    record["pollution"] = evaluator.pollution(model.params)
    if deviation:
      record["deviation"] = deviations.deviation(evaluator, model.params)
  return record | {"samples": samples} | ({"notes": list(found.problems.notes)} if found.problems.notes else {})


def _evaluator(model: Model, config: Config, found: EvaluationInputs) -> Any:
  """Makes the evaluator: of a run's model, as its recipe does."""
  if model.origin is None and not model.spec.cfg.causal:  # how it denoises is for the config's recipe to say
    specs = inputs.load_student(configs.override(config, {"student": model.spec.name}), model.mesh)
    return recipes.make(specs).evaluator("student", model.params, found, loaded.PROGRAMS)
  if model.origin is None:
    return make_evaluator(config, found, model.params, loaded.PROGRAMS)
  recipe, name = model.origin.recipe, model.origin.model
  if config.recipe != recipe.config.recipe:  # whose problems it answers, in the way of its own
    make_generator = functools.partial(recipe.generator, name)
    return make_evaluator(config, found, model.params, loaded.PROGRAMS, make_generator)
  recipe = type(recipe)(dataclasses.replace(recipe.specs, config=config))
  return recipe.evaluator(name, model.params, found, loaded.PROGRAMS)
