"""What is static in a run, whatever its method: of a config's model directories, or of architectures alone."""

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from opd_jax import config as configs
from opd_jax.config import Config
from opd_jax.data.images import ImageProcessor
from opd_jax.errors import InputError
from opd_jax.models import architectures, decoder, frozen, hf, hf_config, hf_vision, kernels, lora, model_sharding
from opd_jax.models.decoder_config import DecoderConfig
from opd_jax.models.spec import ModelSpec
from opd_jax.models.vision import VisionConfig
from opd_jax.rollout.generate import GeneratorConfig
from opd_jax.rollout.sample import Sampling
from opd_jax.rollout.segments import Segments
from opd_jax.runtime import mesh as meshes
from opd_jax.training import state
from opd_jax.training.prompt_images import ImageSizes
from opd_jax.types import Params

SMALLEST = DecoderConfig(vocab=64, d_model=32, layers=2, heads=4, kv_heads=2, head_width=8, ff_width=64, qk_norm=True)


@dataclasses.dataclass(frozen=True)
class Specs:
  """The static part of a run, whatever its method: the models' sizes, and how they are computed and sampled.

  A recipe is built of this alone, so a plan or a benchmark needs no weights and no data.
  """

  config: Config
  student: ModelSpec
  teachers: tuple[ModelSpec, ...]
  sampling: Sampling  # its `vocab` is the number of ids that all models share
  mesh: jax.sharding.Mesh
  dtype: jnp.dtype  # compute type
  attention: str  # see models/kernels.py
  segments: Segments  # of the token loop
  random_weights: bool = False  # models are initialised at random rather than read from their directories
  images: tuple[
    ImageSizes, ...
  ] = ()  # of the student's prompts, then of each teacher's that sees otherwise; (): there are none

  @property
  def models(self) -> tuple[ModelSpec, ...]:
    """The student and then its teachers."""
    return (self.student, *self.teachers)

  @property
  def scoring(self) -> tuple[DecoderConfig, ...]:
    """The architectures of the forward passes that score a rollout without a gradient: teachers, and the reference."""
    own = [self.config.teacher_update.kind == "mix", bool(self.config.mixture.initial)]
    return (*(teacher.cfg for teacher in self.teachers), *[self.student.cfg] * sum(own))

  @property
  def generator_config(self) -> GeneratorConfig:
    """The student as it generates in training."""
    return GeneratorConfig(self.student.cfg, self.sampling, self.segments, self.attention, self.mesh, self.dtype)

  def another(self, name: str) -> ModelSpec:
    """Finds a further model, of the same tokenizer as the student, by its directory's name."""
    found = configs.expanded_path(name)
    path = hf.resolve(name) if found.is_dir() or name.startswith(configs.BUILTIN) else pathlib.Path(name)
    return with_adapter(ModelSpec(path, architecture(name), self.student.stop_ids, name), self.config)

  def with_random_weights(self) -> "Specs":
    """Replaces all weights by random ones, whose shapes are known without reading anything."""
    return dataclasses.replace(self, random_weights=True)

  def student_params(self) -> Params:
    """Loads what is trained, before training: the student in fp32 in the train layout, or a new adapter to it."""
    if self.random_weights:
      shapes = jax.eval_shape(lambda: state.random_params(self.config, self.student.cfg))
      layout = meshes.shardings(self.mesh, shapes)
      return jax.jit(lambda: state.random_params(self.config, self.student.cfg), out_shardings=layout)()
    return state.untrained_params(self.config, self.student.path, self.student.cfg, self.mesh)

  def frozen_params(self, model: ModelSpec, precision: str = "compute") -> Params:
    """Loads a model that is not trained, in the compute type in the teachers' layout.

    Args:
      precision: "compute", or "int8" as in models/quantise.py.
    """
    layout = f"teacher:{self.config.mesh.teacher}"
    if not self.random_weights:
      return frozen.external(model.path, model.cfg, self.mesh, self.dtype, precision, layout)

    def make(key: jax.Array) -> Params:
      return jax.tree.map(lambda a: a.astype(self.dtype), decoder.init(model.cfg, key))

    shardings = model_sharding.parameter_shardings(self.mesh, model.cfg, layout)
    params = jax.jit(make, out_shardings=shardings)(
      jax.random.key(self.models.index(model) if model in self.models else len(self.models))
    )
    return frozen.in_precision(precision, params, self.mesh, layout)


def from_architectures(
  config: Config, *, smallest: bool = False, stop_ids: tuple[int, ...] = (), devices: Sequence[Any] | None = None
) -> Specs:
  """Makes the specs of a config's models from their architectures alone; their weights are random.

  Args:
    smallest: a tiny model takes the place of those that are built in.
    stop_ids: token ids that end a response; none: every response is as long as the horizon.
    devices: of the mesh; None: those of this machine.

  Raises:
    InputError: a model that does not exist or that models/decoder.py does not follow, or a mesh that does not fit.
  """

  def spec(name: str) -> ModelSpec:
    if smallest and name.startswith(configs.BUILTIN):
      return ModelSpec(pathlib.Path(), SMALLEST, stop_ids, "smallest")
    return ModelSpec(pathlib.Path(name), architecture(name), stop_ids, name)

  mesh = meshes.from_config(config.mesh, devices)
  student = with_adapter(spec(config.student), config)
  teachers = [student if name == configs.INITIAL else spec(name) for name in configs.teacher_names(config)]
  cfgs = [model.cfg for model in (student, *teachers)]
  sampling = config.sampling
  return Specs(
    config=config,
    student=student,
    teachers=tuple(teachers),
    sampling=Sampling(
      stop_ids, 0, min(cfg.vocab for cfg in cfgs), sampling.temperature, sampling.top_p, sampling.top_k
    ),
    mesh=mesh,
    dtype=compute_dtype(config.precision, mesh),
    attention=attention(config, mesh, cfgs),
    segments=segments(config, mesh),
    random_weights=True,
    images=planned_images(config, student),
  )


def planned_images(config: Config, student: ModelSpec) -> tuple[ImageSizes, ...]:
  """Sizes the images of prompts that nobody has read: one to a prompt, of as many pixels as there may be.

  Raises:
    InputError: prompts have images, and the student sees none.
  """
  if not config.data.image_field:
    return ()
  directory = _directory(student)
  if directory is None:
    raise InputError(
      f"config.data.image_field is {config.data.image_field!r}, and of {student.name} only the sizes of its decoder are known; name its directory, or "
      "its config.json."
    )
  processor = ImageProcessor.from_directory(directory, config.data.min_pixels, config.data.max_pixels)
  tower = processor.tower
  patches = (0, 0) if student.cfg.tower is None else (tower.merged, tower.pixels)
  sizes = ImageSizes(processor.most_features, len(tower.taps), student.cfg.d_model, patches)
  return (sizes, sizes) if config.context.kind == "crop" else (sizes,)


def planned_tower(model: ModelSpec) -> VisionConfig | None:
  """Finds the vision tower of a model, by its config.json alone; None where it has none, or only its decoder is known."""
  directory = _directory(model)
  seeing = directory and hf_vision.read(directory)
  return seeing.tower if seeing else None


def _directory(model: ModelSpec) -> pathlib.Path | None:
  """Finds the directory of a model that may be named by its config.json; None: it has none."""
  directory = model.path.parent if model.path.name == "config.json" else model.path
  if not (directory / "config.json").is_file() and not model.name.startswith(configs.BUILTIN):
    return None
  return hf.resolve(str(directory))


def with_adapter(model: ModelSpec, config: Config) -> ModelSpec:
  """Gives a model the scale of the adapter that `config.lora` trains it through, where there is one."""
  if config.vision.train:
    return with_tower(model, config)
  adapter = lora.from_config(config.lora)
  if not adapter:
    return model
  lora.shapes(model.cfg, adapter)
  if config.lora.path:
    lora.check(pathlib.Path(config.lora.path), model.cfg, adapter)
  return dataclasses.replace(model, cfg=dataclasses.replace(model.cfg, adapter_scale=adapter.scale))


def with_tower(model: ModelSpec, config: Config) -> ModelSpec:
  """Gives a model its vision tower, to be trained with it.

  Raises:
    InputError: it has none, or not all of the model is trained.
  """
  if lora.from_config(config.lora) or config.subnetwork.mask != "none":
    raise InputError(
      "config.vision.train is True, and config.lora or config.subnetwork trains a part of the weights; set it to False, or train all."
    )
  seeing = hf_vision.read(model.path) if (model.path / "config.json").is_file() else None
  if seeing is None:
    raise InputError(
      f"config.vision.train is True, and {model.name} is no directory of a model that sees images; set it to False."
    )
  return dataclasses.replace(model, cfg=dataclasses.replace(model.cfg, tower=seeing.tower))


def architecture(name: str) -> DecoderConfig:
  """Finds the architecture of a model directory, a built-in model, a config.json of any name, or a public model.

  Raises:
    InputError: where there is none, or where it describes a model that decoder.py does not follow.
  """
  path = configs.expanded_path(name)
  known = None if path.exists() else architectures.config(name)
  if known is None and not path.is_file():
    return hf_config.read(hf.resolve(name))
  with tempfile.TemporaryDirectory() as there:  # hf.py reads directories
    copy = pathlib.Path(there) / "config.json"
    copy.write_text(json.dumps(known) if known else path.read_text(encoding="utf-8"), encoding="utf-8")
    try:
      return hf_config.read(copy.parent)
    except InputError as e:
      raise InputError(str(e).replace(str(copy), name)) from None


def micro_batch(config: Config, mesh: jax.sharding.Mesh) -> int:
  """Rounds `config.micro_batch`, the rows of a gradient-accumulation slice, up to what the row shards divide.

  With 0 a slice has all rows of an update.

  Raises:
    InputError: none that divides the rows of a step can be split over the row shards.
  """
  rows, shards = config.batch // config.mini_batches * config.rollouts_per_prompt, meshes.row_shards(mesh)
  fits = [n for n in range(shards, rows + 1, shards) if rows % n == 0 and n >= config.micro_batch]
  if not config.micro_batch:
    return rows
  if not fits:
    raise InputError(
      f"config.micro_batch is {config.micro_batch}, and no number from there to the {rows} rows of an update divides "
      f"them and is a multiple of the mesh's {shards} row shards; set config.micro_batch=0, or change config.batch."
    )
  return fits[0]


def attention(config: Config, mesh: jax.sharding.Mesh, models: Sequence[decoder.DecoderConfig]) -> str:
  """Chooses the attention that all of these models can run, as `config.attention` asks for."""
  platform, dtype = mesh.devices.flat[0].platform, compute_dtype(config.precision, mesh)
  chosen = {kernels.choose(config.attention, platform, dtype, m.head_width) for m in models}
  return chosen.pop() if len(chosen) == 1 else "xla"


def segments(config: Config, mesh: jax.sharding.Mesh) -> Segments:
  """Returns where the token loop is cut, as `config.rollout` says."""
  shrink = tuple(config.rollout.shrink)
  return Segments(config.rollout.segment, config.rollout.segments, shrink, meshes.row_shards(mesh))


def compute_dtype(precision: str, mesh: jax.sharding.Mesh) -> jnp.dtype:
  """Returns the compute type; "auto" is float32 on CPU, where bfloat16 is slower, and bfloat16 on accelerators."""
  if precision == "auto":
    precision = "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"
  return jnp.dtype(precision)
