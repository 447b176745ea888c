"""What is measured: the recipe of a config, made of its models' architectures, with random weights and random prompts.

Of a model only config.json is read, so that a directory with nothing else in it, or the file alone, will do.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax import checks
from opd_jax import config as configs
from opd_jax.config import Config
from opd_jax.errors import InputError
from opd_jax.models import decoder, model_sharding
from opd_jax.models.decoder_config import DecoderConfig
from opd_jax.objectives import loss_config
from opd_jax.recipes import base as recipes
from opd_jax.recipes.base import Recipe
from opd_jax.runtime import mesh as meshes
from opd_jax.runtime.programs import StepShape
from opd_jax.training import lowering
from opd_jax.training import specs as all_specs
from opd_jax.training.distillation import DistillationStep
from opd_jax.training.prompt_images import ImageSizes
from opd_jax.training.specs import Specs
from opd_jax.types import Batch, Credit, Images, Params, Patches, Rollout


@dataclasses.dataclass(frozen=True)
class Case:
  """One combination of sizes.

  Attributes:
    batch: prompts of a step.
    prompt: P, tokens of each; all of them real.
    horizon: H, tokens of every response; nothing stops early.
    n: rollouts of each prompt.
  """

  batch: int
  prompt: int
  horizon: int
  n: int = 1

  @property
  def rows(self) -> int:
    """The responses of a step."""
    return self.batch * self.n

  @property
  def sizes(self) -> dict[str, int]:
    """The sizes, as every record has them."""
    return {"batch": self.batch, "n": self.n, "rows": self.rows, "prompt": self.prompt, "horizon": self.horizon}

  def __str__(self) -> str:
    return label(self.sizes)


def label(sizes: Mapping[str, Any]) -> str:
  """Writes the sizes of a case or of a record: prompts, rollouts of each where they are several, tokens."""
  rollouts = f" x {sizes['n']}" if sizes["n"] > 1 else ""
  return f"{sizes['batch']}{rollouts} x ({sizes['prompt']} + {sizes['horizon']})"


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
    sizes = {"batch": case.batch, "rollouts_per_prompt": case.n, "horizon.max": case.horizon}
    config = configs.override(self.c, sizes | {"horizon.kind": "full"})
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

  def params(self, model: int = 0) -> Params:
    """Makes the random parameters of a model, fp32, in the train layout; without an adapter.

    Args:
      model: its place among the student and then the teachers.
    """
    cfg = (self.student, *self.teachers)[model]
    layout = model_sharding.parameter_shardings(self.mesh, cfg)
    return jax.jit(lambda key: decoder.init(cfg, key), out_shardings=layout)(jax.random.key(model))

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
    if self.specs.images:
      batch = dataclasses.replace(batch, **self._images(case))
    if Q := self.shape(case).teacher_prompt:
      own = rng.integers(0, self.vocab, (case.batch, Q), np.int32)
      batch = dataclasses.replace(batch, teacher_prompt=own, teacher_prompt_mask=np.ones(own.shape, bool))
    return jax.device_put(batch, meshes.rows(self.mesh))

  @property
  def most_features(self) -> int:
    """The features of a prompt's image; 0: prompts have none."""
    return self.specs.images[0].room if self.specs.images else 0

  def _images(self, case: Case) -> dict[str, Any]:
    """Makes an image of random features, or of random patches where the tower is trained, at the beginning of every prompt."""
    rng, wanted = np.random.default_rng(3), self.recipe(case).abstract_prompts(self.shape(case))

    def fill(sizes: ImageSizes, images: Images) -> Images:
      B, P = images.index.shape
      room = sizes.within(P).room

      def random(a: Any) -> Any:
        return None if a is None else rng.normal(size=a.shape).astype(a.dtype)

      patches = images.patches
      if patches is not None:
        at = np.broadcast_to(np.arange(patches.row.shape[1], dtype=np.int32), patches.row.shape)  # all in one row
        size = np.stack([np.ones_like(at), np.full_like(at, at.shape[1])], axis=-1)
        patches = Patches(random(patches.pixels), np.zeros_like(at), at, size, np.zeros_like(at))  # pyright: ignore[reportArgumentType]
      places = np.arange(P, dtype=np.int32)
      return Images(
        random(images.features),
        random(images.taps),
        np.broadcast_to(np.where(places < room, places, -1), (B, P)),  # pyright: ignore[reportArgumentType]
        np.broadcast_to(places[:, None], (B, P, 3)),  # pyright: ignore[reportArgumentType]
        np.full((B,), P, np.int32),  # pyright: ignore[reportArgumentType]
        patches,
      )

    student, *teachers = self.specs.images
    assert wanted.images is not None
    made: dict[str, Any] = {"images": fill(student, wanted.images)}
    if wanted.teacher_images is not None:
      made["teacher_images"] = tuple(map(fill, teachers, wanted.teacher_images))
    return made

  def responses(self, case: Case) -> Rollout:
    """Makes responses of random ids, each as long as the horizon."""
    rng = np.random.default_rng(1)
    shape = (case.rows, case.horizon)
    rollout = Rollout(
      response=rng.integers(0, self.vocab, shape, np.int32),  # pyright: ignore[reportArgumentType]
      mask=np.ones(shape, bool),  # pyright: ignore[reportArgumentType]
      behavior_logprob=np.full(shape, -np.log(self.vocab), np.float32),  # pyright: ignore[reportArgumentType]
      ended=np.zeros(shape[0], bool),  # pyright: ignore[reportArgumentType]
    )
    surrogate = loss_config.surrogate(self.config(case))
    if recorded := min(surrogate.recorded_ids if surrogate else 0, self.vocab):
      ids = np.broadcast_to(np.arange(recorded, dtype=np.int32), (*shape, recorded))
      rollout = rollout.replace(recorded_ids=ids, recorded_logprob=np.full(ids.shape, -np.log(self.vocab), np.float32))  # pyright: ignore[reportAttributeAccessIssue]
    return jax.device_put(rollout, meshes.rows(self.mesh))

  def credit(self, case: Case) -> Credit | None:
    """Makes the credit of each row: random advantages, and contexts of random ids; None where an update takes none."""
    rng = np.random.default_rng(2)

    def fill(a: jax.ShapeDtypeStruct) -> np.ndarray:
      if a.dtype == np.bool_:
        return np.ones(a.shape, bool)
      return (
        rng.normal(size=a.shape).astype(a.dtype)
        if a.dtype == np.float32
        else rng.integers(0, self.vocab, a.shape, np.int32)
      )

    step: DistillationStep = self.recipe(case).step  # pyright: ignore[reportAttributeAccessIssue]
    credit = jax.tree.map(fill, lowering.abstract_credit(step, case.rows, self.shape(case).context))
    return jax.device_put(credit, meshes.rows(self.mesh))
