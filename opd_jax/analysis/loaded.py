"""Models as notebooks and scripts hold them: with weights and tokenizer, and the run that they come from.

A run's are computed as its config says, also by the commands that evaluate and export it.
"""

import dataclasses
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from opd_jax import config as configs
from opd_jax import inputs
from opd_jax.config import Config
from opd_jax.data import tokenizer as tokenizers
from opd_jax.data.rendering import Rendering
from opd_jax.errors import InputError
from opd_jax.models import hf, model_sharding
from opd_jax.models.spec import ModelSpec
from opd_jax.recipes import base as recipes
from opd_jax.recipes.base import Recipe
from opd_jax.runtime import began, bucket, workdir
from opd_jax.runtime import mesh as meshes
from opd_jax.runtime.programs import ProgramCache
from opd_jax.training import specs
from opd_jax.types import Params

PROGRAMS: ProgramCache = {}  # compiled in this process, which calls share where all that is static in them is the same


@dataclasses.dataclass(frozen=True, eq=False)
class Origin:
  """The run that a model comes from.

  Attributes:
    recipe: the method; its config is the run's.
    model: what the recipe calls the model, mostly "student".
    workdir: of the run, as it was named.
    step: after which the weights are as they are.
  """

  recipe: Recipe = dataclasses.field(repr=False)
  model: str
  workdir: str
  step: int

  @property
  def config(self) -> Config:
    return self.recipe.config


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
  """A model with its weights on the devices, which nothing here changes.

  Attributes:
    spec: its directory, architecture, stop tokens and name.
    params: the weights, fp32, in the train layout of runtime/mesh.py.
    tokenizer: of transformers.
    mesh: the devices.
    dtype: the compute type.
    attention: the kernel, see models/kernels.py.
    rendering: how prompts are rendered: as the run does where the model is one's, otherwise in the chat template alone.
    origin: the run that it comes from; None: a model of its own.
  """

  spec: ModelSpec
  params: Params = dataclasses.field(repr=False)
  tokenizer: Any = dataclasses.field(repr=False)
  mesh: jax.sharding.Mesh = dataclasses.field(repr=False)
  dtype: jnp.dtype
  attention: str
  rendering: Rendering = dataclasses.field(default_factory=Rendering, repr=False)
  origin: Origin | None = None


def load_model(
  name: str | os.PathLike,
  *,
  step: int | None = None,
  mesh: jax.sharding.Mesh | None = None,
  config: Config | None = None,
) -> Model:
  """Loads a model: one that is built in, one of a Hugging Face directory, or the student of a run.

  Args:
    name: "builtin:student", "builtin:teacher" and so on, a directory of a model, or a workdir of `opd_jax.train`.
    step: of the run's checkpoint; None: the last. For a workdir only.
    mesh: the devices, as made by runtime.mesh.make; None: for a run those of its config, otherwise all, each with the
      whole model. Two models that are compared have the same.
    config: how it is computed and prompts are rendered; None: a run's own, for other models the defaults.

  Raises:
    InputError: there is no such model or checkpoint, or it cannot be read.
  """
  if is_workdir(name):
    models = load_models(name, step=step, mesh=mesh, config=config)
    if "student" not in models:
      where = bucket.MirroredDir(name).name
      raise InputError(f"The run {where} has no model 'student', only {', '.join(map(repr, models))}.")
    found = models["student"]
  elif step is not None:
    raise InputError(
      f"step is {step}, and {name} is no workdir with checkpoints; leave step out for a model directory."
    )
  else:
    found = load_directory(str(name), mesh, config)
  if found.spec.stop_note:
    warn([f"{name}: {found.spec.stop_note}"])
  return found


def is_workdir(name: str | os.PathLike) -> bool:
  """Tells whether a name is a run's directory, here or in a bucket, and no model's."""
  return (bucket.MirroredDir(name).root / "checkpoints").is_dir()


def load_directory(name: str, mesh: jax.sharding.Mesh | None = None, config: Config | None = None) -> Model:
  """Loads a model that is built in, or one of a Hugging Face directory; arguments as of `load_model`."""
  mesh = mesh or (meshes.for_reading(config.mesh) if config else meshes.make())
  rendering = Rendering.from_config(config, began.of_process()) if config else Rendering()
  config = config or configs.default()
  spec = inputs.model(name, rendering=rendering)
  return Model(
    spec=spec,
    params=hf.load(spec.path, spec.cfg, model_sharding.parameter_shardings(mesh, spec.cfg)),
    tokenizer=tokenizers.load(spec.path),
    mesh=mesh,
    dtype=specs.compute_dtype(config.precision, mesh),
    attention=specs.attention(config, mesh, [spec.cfg]),
    rendering=rendering,
  )


def load_models(
  path: str | os.PathLike,
  *,
  step: int | None = None,
  mesh: jax.sharding.Mesh | None = None,
  config: Config | None = None,
) -> dict[str, Model]:
  """Loads all models of a run from a checkpoint, by name, computed as its config says; arguments as of `load_model`."""
  directory = bucket.MirroredDir(path)
  config = config or workdir.load_config(directory.fetch())
  recipe = recipes.make(inputs.load_student(config, mesh or meshes.for_reading(config.mesh)))
  params, step = recipes.saved_models(recipe, directory.root, step)
  return of_recipe(recipe, params, directory, step)


def of_recipe(
  recipe: Recipe, params: Mapping[str, Params], directory: bucket.MirroredDir, step: int
) -> dict[str, Model]:
  """Makes models of the parameters that a recipe names.

  Args:
    params: of recipe.models, each whole.
    directory: the workdir of the run.
    step: after which the parameters are as they are.
  """
  rendering = Rendering.from_config(recipe.config, began.of_run(directory))
  return {
    name: Model(
      spec=recipe.spec(name),
      params=weights,
      tokenizer=tokenizers.load(recipe.spec(name).path),
      mesh=recipe.specs.mesh,
      dtype=recipe.specs.dtype,
      attention=recipe.specs.attention,
      rendering=rendering,
      origin=Origin(recipe, name, directory.name, step),
    )
    for name, weights in params.items()
  }


def warn(notes: Sequence[str], depth: int = 3) -> None:
  """Warns of each note, at the line that called the public function: the caller's caller, or so many frames up."""
  for note in notes:
    warnings.warn(note, stacklevel=depth)
