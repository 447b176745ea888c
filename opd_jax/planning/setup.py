"""The run that is planned: the config on one target, checked as the trainer would, and notes on what is changed."""

import dataclasses
import re

import jax
import jax.numpy as jnp

from opd_jax import checks
from opd_jax import config as configs
from opd_jax.config import Config
from opd_jax.errors import InputError
from opd_jax.horizon import schedule as horizon
from opd_jax.horizon.schedule import Horizon, Schedule, Stage
from opd_jax.models import model_sharding
from opd_jax.models.decoder_config import DecoderConfig
from opd_jax.planning.topology import Target
from opd_jax.recipes import base as recipes
from opd_jax.recipes.base import Recipe
from opd_jax.runtime import mesh as meshes
from opd_jax.training import specs

STOP = (1,)  # a stop token, of whichever number, so that the loops can end early as they do in training
METHODS = {"opd": "full", "topd": "truncated", "popd": "progressive"}  # config file -> its horizon.kind


@dataclasses.dataclass(frozen=True)
class Setup:
  """The recipe, mesh and sizes that are compiled and counted for one target.

  Attributes:
    prompt: P, tokens; every prompt is as long.
    notes: what differs from the config, and what is worth knowing.
  """

  target: Target
  recipe: Recipe
  schedule: Horizon
  prompt: int
  notes: tuple[str, ...]

  @property
  def c(self) -> Config:
    return self.recipe.config

  @property
  def mesh(self) -> jax.sharding.Mesh:
    return self.recipe.specs.mesh

  @property
  def names(self) -> tuple[str, ...]:
    """The models' names, student first."""
    return tuple(model.name for model in self.recipe.specs.models)

  @property
  def student(self) -> DecoderConfig:
    return self.recipe.specs.student.cfg

  @property
  def teachers(self) -> tuple[DecoderConfig, ...]:
    return tuple(model.cfg for model in self.recipe.specs.teachers)

  @property
  def dtype(self) -> jnp.dtype:
    return self.recipe.specs.dtype

  @property
  def vocab(self) -> int:
    """The number of ids that all models share."""
    return self.recipe.specs.sampling.vocab

  @property
  def stages(self) -> list[Stage]:
    return self.schedule.stages(self.c.steps)

  @property
  def rows(self) -> int:
    return self.c.batch * self.c.rollouts_per_prompt

  def generated(self, limit: int) -> int:
    """The tokens of a step's rollouts at a horizon: a canvas is filled whole, however many denoising steps are learned from."""
    return self.rows * (configs.response_len(self.c) if "denoising" in self.c else limit)

  def update_width(self, width: int, limit: int) -> int:
    """The response width at which an update compiled for `width` reads rows of `limit` tokens: the least of its buckets."""
    buckets = [-(-width * (i + 1) // self.c.buckets) for i in range(self.c.buckets)]
    return next(w for w in buckets if w >= limit)


def make(config: Config, target: Target, prompt: int | None, weak: float = 1.0) -> Setup:
  """Checks the config on a target.

  Args:
    prompt: tokens; None: config.data.max_prompt.
    weak: by how much the batch grows with the devices.

  Raises:
    InputError: what the trainer would refuse.
  """
  notes = []
  if weak != 1:
    grown = {"batch": round(config.batch * weak)} | (
      {"micro_batch": round(config.micro_batch * weak)} if config.micro_batch else {}
    )
    config = configs.override(config, grown)
    notes.append("weak scaling: " + ", ".join(f"config.{key}={value}" for key, value in grown.items()))
  checks.check(config)
  schedule = horizon.from_config(config.horizon)
  mesh = _mesh(config, target)
  meshes.check_rows(mesh, config.batch, "config.batch")
  config, note = _rounded(config, mesh)
  recipe = recipes.make(specs.from_architectures(config, stop_ids=STOP, devices=target.devices))
  P = prompt or int(config.data.max_prompt)
  longest = min(cfg.max_positions for cfg in (model.cfg for model in recipe.specs.models))
  if P + (length := configs.response_len(config)) > longest:
    raise InputError(
      f"Prompts of {P} tokens and responses of {length} need {P + length} positions, "
      f"but the models have {longest} (max_position_embeddings); lower one of the two."
    )
  for model in recipe.specs.teachers if recipe.specs.images else ():
    if specs.planned_tower(model) is None:
      notes.append(f"of {model.name} only the sizes of its decoder are known: its vision tower is not counted")
  for model in recipe.specs.models:
    notes += model_sharding.uneven(mesh, model.name, model.cfg)
  return Setup(target, recipe, schedule, P, tuple(notes + ([note] if note else [])))


def _mesh(config: Config, target: Target) -> jax.sharding.Mesh:
  try:
    return meshes.from_config(config.mesh, target.devices)
  except NotImplementedError:  # of jax.make_mesh: an axis would have to be cut out of a side of the slice
    sides = target.name.partition(":")[2].partition(" ")[0]
    sizes = ", ".join(f"{axis}={config.mesh[axis]}" for axis in meshes.AXES)
    raise InputError(
      f"config.mesh ({sizes}) does not lie on a slice of {sides}: each axis has to be the product of some of its sides."
    ) from None


def _rounded(config: Config, mesh: jax.sharding.Mesh) -> tuple[Config, str]:
  """The config with a micro-batch that the row shards divide, and what was changed."""
  rows = specs.micro_batch(config, mesh)
  if not config.micro_batch or rows == config.micro_batch:
    return config, ""
  note = f"config.micro_batch is {config.micro_batch}; the mesh's {meshes.row_shards(mesh)} row shards take {rows} rows"
  return configs.override(config, {"micro_batch": rows}), note


def mesh_overrides(text: str) -> dict[str, int]:
  """Parse --mesh=fsdp=8,tensor=2 into config.mesh.*: axes that are not named have size 1, and data takes what is left.

  Raises:
    InputError: for what is not written so, and for an axis that does not exist.
  """
  named: dict[str, int] = {}
  for part in text.split(","):
    found = re.fullmatch(r"\s*(\w+)\s*=\s*(-?\d+)\s*", part)
    if not found or found[1] not in meshes.AXES or found[1] in named:
      raise InputError(
        f"--mesh={text} is not written as --mesh=fsdp=8,tensor=2; its axes are {', '.join(meshes.AXES)}."
      )
    named[found[1]] = int(found[2])
  free = {} if -1 in named.values() else {"data": -1}
  return {f"mesh.{axis}": size for axis, size in (dict.fromkeys(meshes.AXES, 1) | free | named).items()}


def method_schedule(config: Config, method: str, scale: str) -> Schedule:
  """Make a method's schedule at this config's scale and longest rollout; the config's own where it is that method's."""
  if config.horizon.kind == METHODS[method]:
    return _fixed(horizon.from_config(config.horizon))
  theirs = configs.load(f"{method}:{scale}" if scale else method)
  longest = config.horizon.max
  changes = {"horizon.max": longest, "horizon.start": min(theirs.horizon.start, longest)}
  return _fixed(horizon.from_config(configs.override(theirs, changes).horizon))


def _fixed(schedule: Horizon) -> Schedule:
  assert isinstance(schedule, Schedule)  # of METHODS, none is chosen in training
  return schedule


def select_stages(stages: list[Stage], which: str) -> list[Stage]:
  """The stages of --stages=all, or of "first,last" or of their numbers; one of each width.

  Raises:
    InputError: for a stage that there is not.
  """
  by_width = list({s.width: s for s in reversed(stages)}.values())[::-1]
  if which == "all":
    return by_width
  named = {"first": 0, "last": len(by_width) - 1}
  picked = []
  for part in which.split(","):
    at = named.get(part.strip(), int(part) if part.strip().isdecimal() else -1)
    if not 0 <= at < len(by_width):
      raise InputError(
        f"--stages={which} names {part!r}; it can be all, first, last, or numbers from 0 to {len(by_width) - 1}."
      )
    picked.append(at)
  return [by_width[at] for at in sorted(set(picked))]
