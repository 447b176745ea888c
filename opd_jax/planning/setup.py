"""The run that is planned: the config on one target, checked as the trainer would, with what had to be changed said."""

import dataclasses
import re

import jax

from opd_jax import checks, horizon, inputs
from opd_jax import config as configs
from opd_jax import mesh as meshes
from opd_jax.benchmarks.subject import Case, Subject
from opd_jax.config import Config
from opd_jax.errors import InputError
from opd_jax.horizon import Horizon, Schedule, Stage
from opd_jax.planning.topology import Target

METHODS = {"opd": "full", "topd": "truncated", "popd": "progressive"}  # config file -> its horizon.kind


@dataclasses.dataclass(frozen=True)
class Setup:
  """What is compiled and counted for one target.

  Attributes:
    prompt: P, tokens; every prompt is as long.
    notes: what differs from the config, and what is worth knowing.
  """

  target: Target
  subject: Subject
  schedule: Horizon
  prompt: int
  notes: tuple[str, ...]

  @property
  def c(self) -> Config:
    return self.subject.c

  @property
  def mesh(self) -> jax.sharding.Mesh:
    return self.subject.mesh

  @property
  def stages(self) -> list[Stage]:
    return self.schedule.stages(self.c.steps)

  @property
  def rows(self) -> int:
    return self.c.batch * self.c.rollouts_per_prompt

  def case(self, width: int) -> Case:
    return Case(self.c.batch, self.prompt, width)

  def read_at(self, width: int, limit: int) -> int:
    """The response width at which an update compiled for `width` reads rows of `limit` tokens: the least of its buckets."""
    buckets = [-(-width * (i + 1) // self.c.buckets) for i in range(self.c.buckets)]
    return next(w for w in buckets if w >= limit)


def make(c: Config, target: Target, prompt: int | None, weak: float = 1.0) -> Setup:
  """Checks the config on a target.

  Args:
    prompt: tokens; None: config.data.max_prompt.
    weak: by how much the batch grows with the devices.

  Raises:
    InputError: what the trainer would refuse.
  """
  notes = []
  if weak != 1:
    grown = {"batch": round(c.batch * weak)} | ({"micro_batch": round(c.micro_batch * weak)} if c.micro_batch else {})
    c = configs.override(c, grown)
    notes.append("weak scaling: " + ", ".join(f"config.{key}={value}" for key, value in grown.items()))
  schedule = horizon.from_config(c.horizon)
  mesh = _mesh(c, target)
  checks.check(c)
  meshes.check_rows(mesh, c.batch, "config.batch")
  c, note = _rounded(c, mesh)
  subject = Subject.load(c, devices=target.devices)
  P = prompt or int(c.data.max_prompt)
  longest = min(cfg.max_positions for cfg in (subject.student, *subject.teachers))
  if P + c.horizon.max > longest:
    raise InputError(
      f"Prompts of {P} tokens and config.horizon.max of {c.horizon.max} need {P + c.horizon.max} positions, "
      f"but the models have {longest} (max_position_embeddings); lower one of the two."
    )
  for name, cfg in zip(subject.names, (subject.student, *subject.teachers), strict=True):
    notes += meshes.uneven(mesh, name, cfg)
  return Setup(target, subject, schedule, P, tuple(notes + ([note] if note else [])))


def _mesh(c: Config, target: Target) -> jax.sharding.Mesh:
  try:
    return meshes.from_config(c.mesh, target.devices)
  except NotImplementedError:  # of jax.make_mesh: an axis would have to be cut out of a side of the slice
    sides = target.name.partition(":")[2].partition(" ")[0]
    raise InputError(
      f"config.mesh ({', '.join(f'{axis}={c.mesh[axis]}' for axis in meshes.AXES)}) does not lie on a slice of {sides}: "
      "each axis has to be the product of some of its sides."
    ) from None


def _rounded(c: Config, mesh: jax.sharding.Mesh) -> tuple[Config, str]:
  """The config with a micro-batch that the row shards divide, and what was changed."""
  rows = inputs.micro_batch(c, mesh)
  if not c.micro_batch or rows == c.micro_batch:
    return c, ""
  said = f"config.micro_batch is {c.micro_batch}; the mesh's {meshes.row_shards(mesh)} row shards take {rows} rows"
  return configs.override(c, {"micro_batch": rows}), said


def mesh_overrides(text: str) -> dict[str, int]:
  """config.mesh.* of --mesh=fsdp=8,tensor=2: axes that are not named have size 1, and data takes what is left.

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


def of_method(c: Config, method: str, scale: str) -> Schedule:
  """A method's schedule at this config's scale and longest rollout; the config's own where it is that method's."""
  if c.horizon.kind == METHODS[method]:
    return _fixed(horizon.from_config(c.horizon))
  theirs = configs.load(f"{method}:{scale}" if scale else method)
  return _fixed(horizon.from_config(configs.override(theirs, {"horizon.max": c.horizon.max}).horizon))


def _fixed(schedule: Horizon) -> Schedule:
  assert isinstance(schedule, Schedule)  # of METHODS, none is chosen in training
  return schedule


def chosen(stages: list[Stage], which: str) -> list[Stage]:
  """The stages of --stages=all, or of "first,last" or of their numbers; one of each width.

  Raises:
    InputError: for a stage that there is not.
  """
  by_width = list({s.width: s for s in reversed(stages)}.values())[::-1]
  if which == "all":
    return by_width
  places = {"first": 0, "last": len(by_width) - 1}
  picked = []
  for part in which.split(","):
    at = places.get(part.strip(), int(part) if part.strip().isdecimal() else -1)
    if not 0 <= at < len(by_width):
      raise InputError(
        f"--stages={which} names {part!r}; it can be all, first, last, or numbers from 0 to {len(by_width) - 1}."
      )
    picked.append(at)
  return [by_width[at] for at in sorted(set(picked))]
