"""What is measured: the recipe of a config, made of its models' architectures, with random weights and random prompts.

Of a model only config.json is read, so that a directory with nothing else in it, or the file alone, will do.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax import checks
from opd_jax import config as configs
from opd_jax.config import Config
from opd_jax.errors import InputError
from opd_jax.models import decoder, model_sharding
from opd_jax.models.decoder import DecoderConfig
from opd_jax.recipes import base as recipes
from opd_jax.recipes.base import Recipe
from opd_jax.runtime import mesh as meshes
from opd_jax.runtime.programs import StepShape
from opd_jax.training import specs as all_specs
from opd_jax.training.specs import Specs
from opd_jax.types import Batch, Params, Rollout


@dataclasses.dataclass(frozen=True)
class Case:
  """One combination of sizes.

  Attributes:
    batch: prompts of a step.
    prompt: P, tokens of each; all of them real.
    horizon: H, tokens of every response; nothing stops early.
  """

  batch: int
  prompt: int
  horizon: int

  def __str__(self) -> str:
    return f"{self.batch} x ({self.prompt} + {self.horizon})"


@dataclasses.dataclass(frozen=True)
class Subject:
  """The models of a config and the config that says how they are run."""

  specs: Specs

  @classmethod
  def load(cls, config: Config, *, smallest: bool = False, devices: Sequence[Any] | None = None) -> "Subject":
    """Reads the config's architectures; `smallest`: a tiny one in the place of those that are built in."""
    return cls(all_specs.from_architectures(config, smallest=smallest, devices=devices))

  @property
  def c(self) -> Config:
    return self.specs.config

  @property
  def names(self) -> tuple[str, ...]:
    """The models' names, student first."""
    return tuple(model.name for model in self.specs.models)

  @property
  def student(self) -> DecoderConfig:
    return self.specs.student.cfg

  @property
  def teachers(self) -> tuple[DecoderConfig, ...]:
    return tuple(model.cfg for model in self.specs.teachers)

  @property
  def mesh(self) -> jax.sharding.Mesh:
    return self.specs.mesh

  @property
  def dtype(self) -> jnp.dtype:
    return self.specs.dtype

  @property
  def vocab(self) -> int:
    """The number of ids that all models share."""
    return self.specs.sampling.vocab

  @property
  def tensor(self) -> int:
    """The number of devices that share one copy of the weights in a rollout."""
    return self.mesh.shape["tensor"]

  def config(self, case: Case) -> Config:
    """Gives the config the case's sizes; the horizon is full, since one width is one program.

    Raises:
      InputError: the sizes fit neither the models nor the mesh.
    """
    config = configs.override(self.c, {"batch": case.batch, "horizon.max": case.horizon, "horizon.kind": "full"})
    checks.check(config)
    meshes.check_rows(self.mesh, case.batch, "--batch")
    all_specs.micro_batch(config, self.mesh)
    longest = min(cfg.max_positions for cfg in (self.student, *self.teachers))
    if case.prompt + case.horizon > longest:
      raise InputError(
        f"--prompt={case.prompt} and --horizon={case.horizon} need {case.prompt + case.horizon} positions, but the "
        f"models have {longest} (max_position_embeddings); lower one of the two."
      )
    return config

  def recipe(self, case: Case) -> Recipe:
    """Makes the recipe as the trainer does, but for stop tokens: there are none."""
    return recipes.make(dataclasses.replace(self.specs, config=self.config(case)))

  def shape(self, case: Case) -> StepShape:
    """The shape of a step's programs."""
    return self.recipe(case).planned_shape(case.prompt, case.horizon)

  def params(self) -> Params:
    """Makes the student's random parameters, fp32, in the train layout; without an adapter."""
    layout = model_sharding.parameter_shardings(self.mesh, self.student)
    return jax.jit(lambda key: decoder.init(self.student, key), out_shardings=layout)(jax.random.key(0))

  def prompts(self, case: Case) -> Batch:
    """Makes prompts of random ids without padding."""
    rng = np.random.default_rng(0)
    K = len(self.teachers)
    mixed = np.full((case.batch, K), 1 / K, np.float32) if K > 1 else None
    batch = Batch(
      prompt=rng.integers(0, self.vocab, (case.batch, case.prompt), np.int32),  # pyright: ignore[reportArgumentType]
      prompt_mask=np.ones((case.batch, case.prompt), bool),  # pyright: ignore[reportArgumentType]
      teacher_weight=mixed,  # pyright: ignore[reportArgumentType]
    )
    if self.shape(case).teacher_prompt:
      batch = dataclasses.replace(batch, teacher_prompt=batch.prompt, teacher_prompt_mask=batch.prompt_mask)
    return jax.device_put(batch, meshes.rows(self.mesh))

  def responses(self, case: Case) -> Rollout:
    """Makes responses of random ids, each as long as the horizon."""
    rng = np.random.default_rng(1)
    shape = (self.rows(case), case.horizon)
    rollout = Rollout(
      response=rng.integers(0, self.vocab, shape, np.int32),  # pyright: ignore[reportArgumentType]
      mask=np.ones(shape, bool),  # pyright: ignore[reportArgumentType]
      behavior_logprob=np.full(shape, -np.log(self.vocab), np.float32),  # pyright: ignore[reportArgumentType]
      ended=np.zeros(shape[0], bool),  # pyright: ignore[reportArgumentType]
    )
    return jax.device_put(rollout, meshes.rows(self.mesh))

  def rows(self, case: Case) -> int:
    """Counts the rows of a step: prompts times rollouts of each."""
    return case.batch * self.c.rollouts_per_prompt
