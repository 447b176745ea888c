"""What is measured: the models of a config with random weights, and the recipe that the trainer would run on them.

Of a model only config.json is read, so that a directory with nothing else in it, or the file alone, will do.
"""

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax import checks, inputs, state, teacher, trainer
from opd_jax import config as configs
from opd_jax import mesh as meshes
from opd_jax.config import Config
from opd_jax.errors import InputError
from opd_jax.models import decoder, hf, lora, quantise
from opd_jax.models.decoder import DecoderConfig
from opd_jax.planning import architectures
from opd_jax.recipes.distill import Distill
from opd_jax.rollout.sample import Sampling
from opd_jax.types import Batch, Judges, Params, Rollout, TrainState

SMALLEST = DecoderConfig(vocab=64, width=32, layers=2, heads=4, kv_heads=2, head_width=8, ff_width=64, qk_norm=True)


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
  """Models, and the config that says how they are run.

  Attributes:
    names: of the models, student first.
  """

  c: Config
  names: tuple[str, ...]
  student: DecoderConfig
  teachers: tuple[DecoderConfig, ...]
  mesh: jax.sharding.Mesh
  dtype: jnp.dtype

  @classmethod
  def load(cls, c: Config, *, smallest: bool = False, devices: Sequence[Any] | None = None) -> "Subject":
    """Reads the config's models; `smallest`: a tiny one in the place of those that are built in.

    Args:
      devices: of the mesh; None: those of this machine.
    """
    own = lambda name: "smallest" if smallest and name.startswith(configs.BUILTIN) else name
    named = (c.student, *(tuple(c.teachers) or (c.teacher,)))
    names = tuple(own(c.student if name == configs.INITIAL else name) for name in named)
    student, *teachers = (SMALLEST if name == "smallest" else architecture(name) for name in names)
    mesh = meshes.from_config(c.mesh, devices)
    return cls(c, names, student, tuple(teachers), mesh, inputs.compute_dtype(c.precision, mesh))

  @property
  def vocab(self) -> int:
    """Ids that all models share."""
    return min(cfg.vocab for cfg in (self.student, *self.teachers))

  def config(self, case: Case) -> Config:
    """The config with the case's sizes; the horizon is full, since one width is one program.

    Raises:
      InputError: where the sizes fit neither the models nor the mesh.
    """
    c = configs.override(self.c, {"batch": case.batch, "horizon.max": case.horizon, "horizon.kind": "full"})
    checks.check(c)
    meshes.check_rows(self.mesh, case.batch, "--batch")
    inputs.micro_batch(c, self.mesh)
    longest = min(cfg.max_positions for cfg in (self.student, *self.teachers))
    if case.prompt + case.horizon > longest:
      raise InputError(
        f"--prompt={case.prompt} and --horizon={case.horizon} need {case.prompt + case.horizon} positions, but the "
        f"models have {longest} (max_position_embeddings); lower one of the two."
      )
    return c

  def recipe(self, case: Case) -> Distill:
    """As the trainer makes it, but for stop tokens: there are none."""
    return self.recipe_of(self.config(case))

  def recipe_of(self, c: Config, stop_ids: tuple[int, ...] = ()) -> Distill:
    """As the trainer makes it of a config with these models and this mesh."""
    s = c.sampling
    sampling = Sampling(stop_ids, 0, self.vocab, s.temperature, s.top_p, s.top_k)
    model = lambda cfg: SimpleNamespace(cfg=cfg, stop_ids=stop_ids)
    part: Any = SimpleNamespace(  # of inputs.Inputs: what a recipe asks of it
      student=model(self.student),
      teachers=tuple(map(model, self.teachers)),
      sampling=sampling,
      mesh=self.mesh,
      attention=inputs.attention(c, self.mesh, [self.student, *self.teachers]),
      dtype=self.dtype,
    )
    return trainer.recipe(c, part)

  def params(self) -> Params:
    """The student's, fp32, in the train layout."""
    layout = meshes.parameter_shardings(self.mesh, self.student)
    return jax.jit(lambda key: decoder.init(self.student, key), out_shardings=layout)(jax.random.key(0))

  def state(self, params: Params) -> TrainState:
    """With a new optimiser; `params` are given up, where they are what is trained."""
    layout = jax.tree.map(lambda a: a.sharding, state.abstract(self.c, self.student, self.mesh))
    if lora.from_config(self.c.lora):
      return jax.jit(lambda: state.init(self.c, state.random(self.c, self.student)), out_shardings=layout)()
    return jax.jit(lambda p: state.init(self.c, p), out_shardings=layout, donate_argnums=0)(params)

  def judges(self) -> Judges:
    """Frozen models as the trainer keeps them."""

    def frozen(cfg: DecoderConfig, seed: int) -> Params:
      cast = lambda key: jax.tree.map(lambda a: a.astype(self.dtype), decoder.init(cfg, key))
      layout = meshes.parameter_shardings(self.mesh, cfg, f"teacher:{self.c.mesh.teacher}")
      return jax.jit(cast, out_shardings=layout)(jax.random.key(seed))

    base = frozen(self.student, 0) if lora.from_config(self.c.lora) else None
    teachers: tuple[Params | None, ...] = (None,)
    if not self._base_teaches:
      teachers = tuple(frozen(cfg, i) for i, cfg in enumerate(self.teachers, 1))
      if self.c.teacher_precision == "int8":
        teachers = tuple(teacher.quantised(params, self.mesh) for params in teachers)
    return Judges(teachers, frozen(self.student, 0) if self.c.mixture.initial else None, base)

  @property
  def _base_teaches(self) -> bool:
    """The teacher is the student's model without its adapter."""
    return bool(lora.from_config(self.c.lora)) and self.c.teacher == configs.INITIAL

  def abstract_state(self) -> TrainState:
    """Shapes and shardings; nothing is allocated."""
    return state.abstract(self.c, self.student, self.mesh)

  def abstract_judges(self) -> Judges:
    """Shapes and shardings of what the trainer keeps."""
    layout = f"teacher:{self.c.mesh.teacher}"

    def frozen(cfg: DecoderConfig, int8: bool) -> Params:
      dense = lambda: jax.tree.map(lambda a: a.astype(self.dtype), decoder.init(cfg, jax.random.key(0)))
      arrays = jax.eval_shape(lambda: quantise.quantise(dense()) if int8 else dense())
      placed = lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
      return jax.tree.map(placed, arrays, meshes.shardings(self.mesh, arrays, layout))

    base = frozen(self.student, False) if lora.from_config(self.c.lora) else None
    teachers: tuple[Any, ...] = (None,)
    if not self._base_teaches:
      teachers = tuple(frozen(cfg, self.c.teacher_precision == "int8") for cfg in self.teachers)
    return Judges(teachers, frozen(self.student, False) if self.c.mixture.initial else None, base)

  def abstract_batch(self, case: Case) -> Batch:
    """Shapes of a step's prompts."""
    array = lambda width, dtype: jax.ShapeDtypeStruct((case.batch, width), dtype)
    own = self.c.context.kind != "same"  # as long as the student's, which is the most that it is
    return Batch(
      prompt=array(case.prompt, jnp.int32),  # pyright: ignore[reportArgumentType]
      prompt_mask=array(case.prompt, jnp.bool_),  # pyright: ignore[reportArgumentType]
      teacher_weight=array(len(self.teachers), jnp.float32) if self.teachers[1:] else None,  # pyright: ignore[reportArgumentType]
      teacher_prompt=array(case.prompt, jnp.int32) if own else None,  # pyright: ignore[reportArgumentType]
      teacher_prompt_mask=array(case.prompt, jnp.bool_) if own else None,  # pyright: ignore[reportArgumentType]
    )

  def prompts(self, case: Case) -> Batch:
    """Random ids without padding."""
    rng = np.random.default_rng(0)
    K = len(self.teachers)
    mixed = np.full((case.batch, K), 1 / K, np.float32) if K > 1 else None
    batch = Batch(
      prompt=rng.integers(0, self.vocab, (case.batch, case.prompt), np.int32),  # pyright: ignore[reportArgumentType]
      prompt_mask=np.ones((case.batch, case.prompt), bool),  # pyright: ignore[reportArgumentType]
      teacher_weight=mixed,  # pyright: ignore[reportArgumentType]
    )
    if self.c.context.kind != "same":
      batch = dataclasses.replace(batch, teacher_prompt=batch.prompt, teacher_prompt_mask=batch.prompt_mask)
    return jax.device_put(batch, meshes.rows(self.mesh))

  def said(self, case: Case) -> Rollout:
    """Responses of random ids, each as long as the horizon."""
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
    return case.batch * self.c.rollouts_per_prompt

  @property
  def tensor(self) -> int:
    """Devices that share one copy of the weights in a rollout."""
    return self.mesh.shape["tensor"]


def architecture(name: str) -> DecoderConfig:
  """Of a model directory, a built-in model, a config.json of any name, or a public model by name.

  Raises:
    InputError: where there is none, or where it describes a model that decoder.py does not follow.
  """
  path = pathlib.Path(name).expanduser()
  known = None if path.exists() else architectures.config(name)
  if known is None and not path.is_file():
    return hf.read_config(hf.resolve(name))
  with tempfile.TemporaryDirectory() as there:  # hf.py reads directories
    copy = pathlib.Path(there) / "config.json"
    copy.write_text(json.dumps(known) if known else path.read_text(encoding="utf-8"), encoding="utf-8")
    try:
      return hf.read_config(copy.parent)
    except InputError as e:
      raise InputError(str(e).replace(str(copy), name)) from None
