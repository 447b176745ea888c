"""The teacher of a run that writes and scores nothing: `config.teacher`, on the devices of the run, or an endpoint or a function in its place.

How it is asked are the keys teacher_url, teacher_function, teacher_prompt and so on of a recipe's group, which are passed as `options`.
"""

from collections.abc import Callable, Sequence
from typing import Any

from opd_jax import config as configs
from opd_jax.config import Config
from opd_jax.data.image_prompts import ImagePrompts
from opd_jax.errors import InputError
from opd_jax.rollout import function_sampler
from opd_jax.rollout.endpoint import EndpointOptions, EndpointSampler
from opd_jax.rollout.function_sampler import FunctionSampler
from opd_jax.rollout.teacher_sampler import MeshTeacher, teacher_generators
from opd_jax.runtime.run import Run
from opd_jax.tasks import own
from opd_jax.training.specs import Specs
from opd_jax.types import Params

ANSWERS = "teacher_answers"  # of a workdir, where the answers of an endpoint are kept


def check(specs: Specs, group: str, needs: Sequence[str], longest: int) -> None:
  """Refuses one teacher beside another, none where one is needed, a function that is not there, and responses that are too long.

  Args:
    group: of the keys that say how it is asked.
    needs: what needs a teacher, in words of the config.
    longest: what it is to write, tokens; 0: nothing.

  Raises:
    InputError: says which key is wrong, also of an endpoint's options.
  """
  config, options = specs.config, specs.config[group]
  teachers = configs.teacher_names(config)
  elsewhere = [key for key in ("teacher_url", "teacher_function") if options[key]]
  if options.teacher_url:
    EndpointOptions.from_config(options, options.teacher_cache)
  if options.teacher_function:
    _function(options)
  if len(elsewhere) > 1:
    raise InputError(
      f"config.{group}.teacher_url and config.{group}.teacher_function name two teachers; leave one of them empty."
    )
  if elsewhere and teachers:
    raise InputError(
      f"config.teacher is {teachers[0]!r}, and config.{group}.{elsewhere[0]} names another one; set config.teacher='', or leave the key empty."
    )
  if len(teachers) > 1:
    raise InputError(
      f"config.teachers names several, and the recipe {config.recipe!r} asks one; name it in config.teacher."
    )
  if elsewhere and config.data.image_field:
    raise InputError(
      f"config.{group}.{elsewhere[0]} names a teacher that is asked in words alone, and prompts have images (config.data.image_field); name a "
      "directory in config.teacher."
    )
  if needs and not teachers and not elsewhere:
    raise InputError(
      f"config.teacher is '', and {needs[0]} needs one that writes; name it, or an endpoint in config.{group}.teacher_url, or a function in "
      f"config.{group}.teacher_function, or set config.{group}.kinds=('ncq',) and config.candidates.compressor=truncate."
    )
  if specs.teachers and longest >= specs.teachers[0].cfg.max_positions:
    raise InputError(
      f"The teacher is to write {longest} tokens (the most of {group}.teacher_tokens or horizon.max, and candidates.max_tokens), and has "
      f"{specs.teachers[0].cfg.max_positions} positions with the prompt's (max_position_embeddings); lower the keys."
    )


def make(
  run: Run, specs: Specs, options: Config, params: Callable[[], Params], batch: int
) -> EndpointSampler | FunctionSampler | MeshTeacher:
  """Makes the teacher, which is not asked yet.

  Args:
    options: a config's group with the keys of how it is asked.
    params: returns the parameters of a teacher on the devices.
    batch: prompts that such a one answers at once.
  """
  if options.teacher_url:
    cache = options.teacher_cache or str(run.workdir.path / ANSWERS)
    return EndpointSampler(EndpointOptions.from_config(options, cache))
  if options.teacher_function:
    return FunctionSampler(options.teacher_function, _function(options), run.inputs.tokenizer)
  (model,), inputs = specs.teachers, run.inputs
  seen = inputs.prompt_images and (*inputs.prompt_images.teachers, inputs.prompt_images.student)[0]
  shown = seen and ImagePrompts.from_config(specs.config, model.path, inputs.tokenizer)
  generators = teacher_generators(
    model,
    specs.generator_config,
    inputs.tokenizer,
    batch=batch,
    longest=options.teacher_prompt,
    shortest=inputs.prompt_widths[-1],
    program_cache=run.program_cache,
    on_new=run.count_programs_of,
    images=seen,
  )
  return MeshTeacher(generators, params, inputs.tokenizer, inputs.rendering.for_teacher().without_suffix(), shown)


def _function(options: Config) -> Callable[..., Any]:
  """Imports the function that answers as the teacher.

  Raises:
    InputError: there is none.
  """
  return own.function(options.teacher_function, "teacher", function_sampler.WANTED, function_sampler.EXAMPLE)
