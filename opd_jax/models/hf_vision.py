"""The vision tower of a Hugging Face directory: its part of config.json, and its tensors."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from opd_jax.errors import InputError, brief, some
from opd_jax.models import directory as directories
from opd_jax.models import safetensors_io, vision
from opd_jax.models.hf_values import Json, positive_int
from opd_jax.models.safetensors_io import DTYPES, Tensor
from opd_jax.models.vision import VisionConfig
from opd_jax.runtime.json_files import is_whole
from opd_jax.types import Params

PREFIXES = ("model.visual.", "visual.")


@dataclasses.dataclass(frozen=True)
class Family:
  """The traits that set the tower of one model_type apart."""

  windowed: bool = False  # windows, RMS norms, a gated feed-forward; no learned positions
  tapped: bool = False  # deepstack_visual_indexes are followed
  image: int = 0  # defaults of config.json, as the next
  patch: int = 16


FAMILIES = {
  "qwen2_5_vl": Family(windowed=True, image=151655, patch=14),
  "qwen3_vl": Family(tapped=True, image=151655),
  "qwen3_5": Family(image=248056),
}


@dataclasses.dataclass(frozen=True)
class Seeing:
  """What a directory says of how its model sees."""

  tower: VisionConfig
  image_id: int  # the token that stands for a feature of an image


def read(directory: pathlib.Path) -> Seeing | None:
  """Read the tower that config.json describes; None where the model sees nothing.

  Raises:
    InputError: config.json asks for anything that vision.py would not follow exactly.
  """
  path = pathlib.Path(directory) / "config.json"
  raw = directories.read_json(path)
  if raw.get("model_type") not in FAMILIES:
    return None
  try:
    return described(raw)
  except ValueError as e:
    raise InputError(f"{path}: {e}.") from None


def described(raw: Json) -> Seeing:
  """The tower that the object of a config.json describes.

  Raises:
    ValueError: what vision.py would not follow exactly, as a sentence without its full stop.
  """
  family, own = FAMILIES[raw["model_type"]], raw.get("vision_config")
  if not isinstance(own, dict):
    raise ValueError(f"vision_config is {brief(own)}; it has to be an object")
  activation = "silu" if family.windowed else "gelu_pytorch_tanh"
  if own.get("hidden_act", activation) != activation:
    raise ValueError(f"hidden_act of vision_config is {brief(own['hidden_act'])}; only {activation!r} is supported")
  if own.get("deepstack_visual_indexes") and not family.tapped:
    raise ValueError(f"deepstack_visual_indexes is not supported for {raw['model_type']}")
  layers = positive_int(own, "depth")
  width, heads = positive_int(own, "hidden_size"), positive_int(own, "num_heads")
  patch, merge = positive_int(own, "patch_size", family.patch), positive_int(own, "spatial_merge_size", 2)
  if width % heads or width // heads % 4:
    raise ValueError(
      f"the vision_config's hidden_size, {width}, has to be a multiple of four times its num_heads, {heads}"
    )
  image_id = raw.get("image_token_id", family.image)
  if not is_whole(image_id):
    raise ValueError(f"image_token_id is {brief(image_id)}; it has to be a token's id")
  tower = VisionConfig(
    layers=layers,
    width=width,
    heads=heads,
    ff_width=positive_int(own, "intermediate_size"),
    out_width=positive_int(own, "out_hidden_size"),
    patch=patch,
    merge=merge,
    frames=positive_int(own, "temporal_patch_size", 2),
    channels=positive_int(own, "in_channels" if "in_channels" in own else "in_chans", 3),
    gated=family.windowed,
    grid=None if family.windowed else _grid(own),
    window=positive_int(own, "window_size", 112) // merge // patch * merge if family.windowed else None,
    full=_layers(own, "fullatt_block_indexes", (7, 15, 23, 31), layers) if family.windowed else (),
    taps=_layers(own, "deepstack_visual_indexes", (8, 16, 24), layers) if family.tapped else (),
  )
  if tower.window == 0:
    raise ValueError(
      f"window_size of vision_config is {brief(own['window_size'])}, which is less than a feature's side"
    )
  return Seeing(tower, image_id)


def _grid(own: Json) -> int:
  number = positive_int(own, "num_position_embeddings", 2304)
  side = round(number**0.5)
  if side**2 != number:
    raise ValueError(f"num_position_embeddings is {number}; it has to be a square")
  return side


def _layers(own: Json, key: str, default: tuple[int, ...], layers: int) -> tuple[int, ...]:
  found = own.get(key, default)
  if not isinstance(found, list | tuple) or not all(is_whole(i) for i in found):
    raise ValueError(f"{key} is {brief(found)}; it has to be a list of layers")
  if list(found) != sorted(set(found)):
    raise ValueError(f"{key} is {brief(found)}; its numbers have to rise")
  return tuple(i for i in found if i < layers)


_NORMS = {"vision_norm": "blocks.{}.norm1", "vision_mlp_norm": "blocks.{}.norm2"}
_MATRICES = {"vision_qkv": "blocks.{}.attn.qkv", "vision_o": "blocks.{}.attn.proj"}
_GATED = {
  "vision_gate": "blocks.{}.mlp.gate_proj",
  "vision_up": "blocks.{}.mlp.up_proj",
  "vision_down": "blocks.{}.mlp.down_proj",
}
_PLAIN = {"vision_up": "blocks.{}.mlp.linear_fc1", "vision_down": "blocks.{}.mlp.linear_fc2"}
_MERGERS = {  # by whether the tower is gated
  True: {"merge_norm": "ln_q", "merge_in": "mlp.0", "merge_out": "mlp.2"},
  False: {"merge_norm": "norm", "merge_in": "linear_fc1", "merge_out": "linear_fc2"},
}


def tensor_name(cfg: VisionConfig, path: tuple[str, ...]) -> str:
  """The name, behind the prefix, of the tensor of a parameter; {} stands for the place on its stacked axis.

  Args:
    path: the parameter's in `vision.shapes`.
  """
  room, name = path[0], path[-1]
  kind = "bias" if name.endswith("_bias") else "weight"
  name = name.removesuffix("_bias")
  if room in ("patch", "patch_bias"):
    return f"patch_embed.proj.{kind}"
  if room == "position":
    return "pos_embed.weight"
  if room in ("merger", "taps"):
    where = "merger" if room == "merger" else "deepstack_merger_list.{}"
    return f"{where}.{_MERGERS[cfg.gated][name]}.{kind}"
  return f"{(_NORMS | _MATRICES | (_GATED if cfg.gated else _PLAIN))[name]}.{kind}"


def load(
  directory: pathlib.Path, cfg: VisionConfig, shardings: Params | None = None, dtype: DTypeLike = jnp.float32
) -> Params:
  """Read the tower's parameters, each into its sharding.

  Args:
    shardings: a jax.sharding.Sharding for every parameter, in the tree of `vision.shapes`; None: the default device.

  Raises:
    InputError: the tensors are not what `cfg` implies.
  """
  tensors = _find(directory)
  if unknown := sorted(tensors.keys() - set(expected(cfg))):
    raise InputError(f"{directory} has unknown tensors {some(unknown)} in its vision tower: it is of another model.")

  def read_leaf(path: Any, shape: tuple[int, ...], sharding: jax.sharding.Sharding | None = None) -> jax.Array:
    keys = tuple(key.key for key in path)
    name, stacked = tensor_name(cfg, keys), keys[0] in ("layers", "taps")
    parts = [
      _from_file(tensors, name.format(i), shape[stacked:], keys, directory) for i in range(shape[0] if stacked else 1)
    ]
    array = (np.stack(parts) if stacked else parts[0]).astype(jnp.dtype(dtype))
    return jax.block_until_ready(jax.device_put(array, sharding))

  wanted, is_shape = vision.shapes(cfg), lambda x: isinstance(x, tuple)
  rest = [] if shardings is None else [shardings]
  return jax.tree_util.tree_map_with_path(read_leaf, wanted, *rest, is_leaf=is_shape)


def expected(cfg: VisionConfig) -> list[str]:
  """The names of all tensors of a tower, behind the prefix."""
  found = []
  for path, shape in jax.tree_util.tree_leaves_with_path(vision.shapes(cfg), is_leaf=lambda x: isinstance(x, tuple)):
    keys = tuple(key.key for key in path)
    found += [tensor_name(cfg, keys).format(i) for i in range(shape[0] if keys[0] in ("layers", "taps") else 1)]
  return found


def _find(directory: pathlib.Path) -> dict[str, Tensor]:
  """The tower's tensors, by their names behind the prefix."""
  found = {}
  for name, tensor in safetensors_io.find_tensors(pathlib.Path(directory)).items():
    for prefix in PREFIXES:
      if name.startswith(prefix):
        found[name.removeprefix(prefix)] = tensor
  if not found:
    raise InputError(f"{directory} has no tensors of a vision tower (model.visual.*): download it again.")
  return found


def _from_file(
  tensors: dict[str, Tensor], name: str, shape: tuple[int, ...], keys: tuple[str, ...], directory: pathlib.Path
) -> np.ndarray:
  """Read a tensor as our parameter: matrices stand as [out, in] in a file, and the table of positions as it is."""
  if name not in tensors:
    raise InputError(f"{directory} has no tensor {some([name])} of its vision tower: it is not complete.")
  tensor = tensors[name]
  if tensor.dtype not in DTYPES or int(np.prod(tensor.shape)) != int(np.prod(shape)):
    raise InputError(
      f"{tensor.file}: tensor {some([name])} has shape {brief(list(tensor.shape))}, which config.json does not imply."
    )
  found = np.asarray(tensor.map(), np.float32)
  if len(shape) > 1 and keys[-1] != "position" and not keys[-1].endswith("bias"):
    found = found.reshape(found.shape[0], -1).T
  return found.reshape(shape)


def to_file(array: np.ndarray, keys: tuple[str, ...], cfg: VisionConfig) -> np.ndarray:
  """Undo what `load` does with one tensor; of `array` without its stacked axis."""
  if array.ndim == 1 or keys[-1] == "position":
    return array
  if keys[-1].endswith("bias"):
    return array.reshape(-1)
  if keys[-1] == "patch":
    return array.T.reshape(cfg.width, cfg.channels, cfg.frames, cfg.patch, cfg.patch)
  inner = array.shape[0] if keys[-1] != "vision_o" else array.shape[0] * array.shape[1]
  return np.ascontiguousarray(array.reshape(inner, -1).T)
