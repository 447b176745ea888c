"""Models as named tensors that are read a part at a time: Hugging Face directories, workdirs, and adapters of either.

Names and shapes are those of the safetensors files, so that a run's checkpoint and a directory can be compared.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from opd_jax import inputs
from opd_jax.analysis import loaded
from opd_jax.errors import InputError, some
from opd_jax.models import directory as directories
from opd_jax.models import hf, hf_config, lora, safetensors_io, tensor_places
from opd_jax.models.decoder_config import DecoderConfig
from opd_jax.models.safetensors_io import DTYPES, Shape
from opd_jax.recipes import base as recipes
from opd_jax.runtime import bucket, workdir
from opd_jax.runtime import mesh as meshes
from opd_jax.types import Params

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
MANTISSA = {"F32": 23, "F16": 10, "BF16": 7}  # explicit mantissa bits of a stored type
BLOCKS = ("attention", "MLP", "embeddings", "norms", "other")

Read = Callable[[int, int, int], Float[np.ndarray, "..."]]


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor of a model.

  Attributes:
    shape: as in the file: a matrix is [outputs, inputs].
    mantissa: the explicit mantissa bits that it is stored with.
    read: read(start, stop, axis) returns a part along axis 0 or 1, in fp32.
    change: it is not the weight but what is added to it, of an adapter.
  """

  shape: Shape
  mantissa: int
  read: Read = dataclasses.field(repr=False)
  change: bool = False


@dataclasses.dataclass(frozen=True)
class Source:
  """A model, by the tensors that it has.

  Attributes:
    name: as it was given on the command line.
    kind: "model", "run" or "adapter".
    architecture: model_type of its config.json; None: unknown, of an adapter.
    tensors: by name; of an adapter only those that it changes.
    tied: its head is its embedding, so that only one of them counts.
    step: of a run's checkpoint.
    place: where it lies; None: it is not asked for, of an adapter.
    start: the directory of the model that a run began with; None: it is no run.
  """

  name: str
  kind: str
  architecture: str | None
  tensors: dict[str, Tensor] = dataclasses.field(repr=False)
  tied: bool = False
  step: int | None = None
  place: str | None = None
  start: str | None = None

  def began_elsewhere(self, before: "Source") -> bool:
    """Tell whether this is a run that began with another model than `before`, which may also be a checkpoint of its own."""
    return self.start is not None and before.place not in (self.start, self.place)


def block_of(name: str) -> str:
  """Tell which kind of block a tensor belongs to: one of BLOCKS."""
  if re.search(r"norm|ln_", name):
    return "norms"
  if re.search(r"embed|lm_head|wte|wpe", name):
    return "embeddings"
  if re.search(r"attn|attention", name):
    return "attention"
  return "MLP" if re.search(r"mlp|experts|feed_forward|ffn", name) else "other"


def layer_of(name: str) -> int | None:
  """Tell which layer of the language model a tensor belongs to, from 0; None: none."""
  found = re.search(r"(?<!visual\.)(?<!vision_tower\.)\b(?:layers|h)\.(\d+)\.", name)
  return int(found[1]) if found else None


def open_source(name: str, base: str | None = None, *, step: int | None = None, model: str | None = None) -> Source:
  """Open a model from its headers, or a run's from a checkpoint.

  Args:
    name: a Hugging Face directory, a PEFT directory, "builtin:NAME", or a workdir of `opd_jax.train`.
    base: the model that an adapter belongs to, named likewise; None: an adapter is refused.
    step: of a workdir's checkpoint; None: the last.
    model: of a workdir with several models; None: "student", or its only one.

  Raises:
    InputError: it is no model, an adapter without a base, or cannot be read.
  """
  if loaded.is_workdir(name):
    return _of_workdir(name, base, step, model)
  if step is not None:
    raise InputError(f"{name} is no workdir, so it has no checkpoint of step {step}: leave the step out.")
  directory = hf.resolve(name)
  if (directory / lora.CONFIG).is_file() and not (directory / "config.json").is_file():
    return _of_peft(name, directory, _base_config(base, name))
  if (directory / "run.json").is_file():
    raise InputError(f"The run {name} has no checkpoint yet: wait for its first (checkpoint.every).")
  config = directories.read_json(directory / "config.json")
  found = safetensors_io.find_tensors(directory)
  tensors = {}
  for tensor, place in found.items():
    if place.dtype in MANTISSA:
      tensors[tensor] = Tensor(place.shape, MANTISSA[place.dtype], _file_reader(place))
    elif place.dtype.startswith(("F", "BF")):
      raise InputError(
        f"{place.file}: tensor {some([tensor])} has dtype {some([place.dtype])}; supported are {', '.join(MANTISSA)}."
      )
  tensors = {n: t for n, t in tensors.items() if not n.endswith("rotary_emb.inv_freq")}
  if HEAD in tensors and EMBED not in tensors and _says_tied(config):
    tensors[EMBED] = tensors.pop(HEAD)
  if not tensors:
    raise InputError(f"{directory} has no tensors of {', '.join(MANTISSA)}: it is no model.")
  tied = _says_tied(config) or _same_rows(tensors)
  return Source(name, "model", config.get("model_type"), tensors, tied, place=str(directory.resolve()))


def _says_tied(config: dict) -> bool:
  own = config.get("text_config")
  return config.get("tie_word_embeddings", isinstance(own, dict) and own.get("tie_word_embeddings")) is True


def _same_rows(tensors: dict[str, Tensor]) -> bool:
  """Tell by a sample of 64 rows whether a head holds what the embedding holds."""
  embed, head = tensors.get(EMBED), tensors.get(HEAD)
  if embed is None or head is None:
    return False
  if embed.shape != head.shape:
    return False
  rows = np.linspace(0, embed.shape[0] - 1, 64).astype(int)
  return all(np.array_equal(embed.read(r, r + 1, 0), head.read(r, r + 1, 0)) for r in rows)


def _file_reader(place: safetensors_io.Tensor) -> Read:
  """Make what reads a part of a tensor by file access: pages of a map would count as memory of the process."""
  dtype = DTYPES[place.dtype]

  def read(start: int, stop: int, axis: int) -> np.ndarray:
    shape = place.shape + (1,) * (not place.shape)
    if axis == 0:
      row = math.prod(shape[1:]) * dtype.itemsize
      with place.file.open("rb") as f:
        f.seek(place.offset + start * row)
        data = f.read((stop - start) * row)
      return np.frombuffer(data, dtype).reshape((stop - start, *shape[1:])).astype(np.float32)
    out = np.empty((shape[0], stop - start), np.float32)
    with place.file.open("rb") as f:
      for i in range(shape[0]):
        f.seek(place.offset + (i * shape[1] + start) * dtype.itemsize)
        out[i] = np.frombuffer(f.read((stop - start) * dtype.itemsize), dtype)
    return out

  return read


def _array_reader(get: Callable[[], np.ndarray]) -> Read:
  """Make what reads a part of an array in memory, which is made when it is asked for."""
  return lambda start, stop, axis: np.asarray(get()[(slice(None),) * axis + (slice(start, stop),)], np.float32)


def _of_workdir(name: str, base: str | None, step: int | None, model: str | None) -> Source:
  """Load a checkpoint; its weights stay where the checkpoint puts them, and one tensor at a time becomes a host array."""
  directory = bucket.MirroredDir(name)
  config = workdir.load_config(directory.fetch())
  recipe = recipes.make(inputs.load_student(config, meshes.for_reading(config.mesh)))
  state, step = recipes.saved_state(recipe, directory.root, step)
  models = recipe.models(state)
  model = model or ("student" if "student" in models else next(iter(models)) if len(models) == 1 else None)
  if model not in models:
    raise InputError(f"The run {name} has the models {', '.join(models)}: name one of them with --model=NAME.")
  spec, adapter = recipe.spec(model), lora.from_config(config.lora)
  architecture = directories.read_json(spec.path / "config.json").get("model_type")
  place, start = _place(directory), str(spec.path.resolve())
  if adapter:
    if base is None:
      raise InputError(_needs_base(name))
    return Source(
      name, "adapter", architecture, _adapter_tensors(spec.cfg, adapter, models[model]), False, step, place, start
    )
  return Source(
    name, "run", architecture, _parameter_tensors(spec.cfg, models[model]), spec.cfg.tied, step, place, start
  )


def _place(directory: bucket.MirroredDir) -> str:
  """Say where a workdir lies, on this machine or in a bucket: the same of every way to write it."""
  root = str(directory.root)
  return root if "://" in root else str(pathlib.Path(root).resolve())


def _parameter_tensors(cfg: DecoderConfig, params: Params) -> dict[str, Tensor]:
  """Name the tensors of parameters of decoder.py as a directory has them."""
  import jax

  tensors = {}
  leaves, treedef = jax.tree.flatten(tensor_places.parameter_leaves(cfg))
  for leaf, array in zip(leaves, treedef.flatten_up_to(params), strict=True):
    for (name, shape), position in zip(leaf.tensors().items(), np.ndindex(*array.shape[: leaf.stacked]), strict=True):

      def get(leaf=leaf, array=array, position=position) -> np.ndarray:
        return leaf.to_file(np.asarray(array[position]))

      tensors[name] = Tensor(shape, MANTISSA["F32"], _array_reader(get))
  return tensors


def _base_config(base: str | None, adapter: str) -> DecoderConfig:
  """Read the architecture of the model that an adapter belongs to."""
  if base is None:
    raise InputError(_needs_base(adapter))
  if not loaded.is_workdir(base):
    return hf_config.read(hf.resolve(base))
  config = workdir.load_config(bucket.MirroredDir(base).fetch())
  return hf_config.read(hf.resolve(config.student))


def _needs_base(adapter: str) -> str:
  return (
    f"{adapter} is an adapter and not a model: give the model that it belongs to as BEFORE, and the adapter as AFTER."
  )


def _of_peft(name: str, directory: pathlib.Path, cfg: DecoderConfig) -> Source:
  adapter = lora.read_config(directory)
  return Source(name, "adapter", None, _adapter_tensors(cfg, adapter, lora.load(directory, cfg, adapter)))


def _adapter_tensors(cfg: DecoderConfig, adapter: lora.Lora, params: Params) -> dict[str, Tensor]:
  """Make the changes scale A B of the matrices that an adapter has, as tensors of their names."""
  leaves, tensors = tensor_places.parameter_leaves(cfg)["layers"], {}
  for matrix in adapter.targets:
    leaf = leaves[matrix]
    a, b = (params["layers"][f"{matrix}_{side}"] for side in "ab")
    for layer, (name, shape) in enumerate(leaf.tensors().items()):

      def change(a=a, b=b, layer=layer, leaf=leaf) -> np.ndarray:
        left, right = np.asarray(a[layer], np.float32), np.asarray(b[layer], np.float32)
        product = left.reshape(-1, adapter.rank) @ right.reshape(adapter.rank, -1)
        return leaf.to_file(np.float32(adapter.scale) * product.reshape(leaf.shape[1:]))

      tensors[name] = Tensor(shape, MANTISSA["F32"], _array_reader(change), change=True)
  return tensors


@dataclasses.dataclass(frozen=True)
class Pair:
  """One tensor in the models that are compared.

  Attributes:
    before: the weight before training.
    after: the weight after it, or what an adapter adds; None: an adapter leaves it alone.
    other: likewise of the run that is compared against; None also where there is no such run.
  """

  name: str
  before: Tensor
  after: Tensor | None
  other: Tensor | None = None

  @property
  def shape(self) -> Shape:
    return self.before.shape

  @property
  def size(self) -> int:
    return math.prod(self.shape)


def match(before: Source, after: Source, other: Source | None = None) -> list[Pair]:
  """Match the tensors of models of one architecture by name; a head that is the embedding in all of them counts once.

  Raises:
    InputError: they are not of one architecture: another model_type, names or shapes.
  """
  models = [m for m in (before, after, other) if m is not None]
  whole = [m for m in models if m.kind != "adapter"]
  for model in models[1:]:
    if model.architecture and before.architecture and model.architecture != before.architecture:
      raise InputError(
        f"{before.name} is a {before.architecture} and {model.name} a {model.architecture}: only models of one "
        "architecture can be compared."
      )
  tied = all(model.tied or HEAD not in model.tensors for model in whole)
  own = [  # by position: two checkpoints of a run have one name
    {n: t for n, t in m.tensors.items() if not (tied and n == HEAD and EMBED in m.tensors)} for m in models
  ]
  names = own[0]
  for model, tensors in zip(models[1:], own[1:], strict=True):
    if model.kind != "adapter" and (missing := [n for n in names if n not in tensors]):
      raise InputError(f"{model.name} has no tensor {some(missing)}, which {before.name} has: they are of two models.")
    if unknown := [n for n in tensors if n not in names]:
      raise InputError(f"{before.name} has no tensor {some(unknown)}, which {model.name} has: they are of two models.")
    for name, tensor in tensors.items():
      if tensor.shape != names[name].shape:
        raise InputError(
          f"Tensor {name} is {list(names[name].shape)} in {before.name} and {list(tensor.shape)} in {model.name}: only models "
          "of one shape can be compared."
        )
  others = own[2] if other else {}
  return [Pair(n, t, own[1].get(n), others.get(n)) for n, t in names.items()]
