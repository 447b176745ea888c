"""The vision tower of a Hugging Face directory: its part of config.json."""

import dataclasses
import pathlib

import jax.numpy as jnp
from jax.typing import DTypeLike

from opd_jax.errors import InputError, brief
from opd_jax.models import directory as directories
from opd_jax.models import weights
from opd_jax.models.hf_values import Json, positive_int
from opd_jax.models.vision import VisionConfig
from opd_jax.runtime.json_files import is_whole
from opd_jax.types import Params


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


def load(
  directory: pathlib.Path, cfg: VisionConfig, shardings: Params | None = None, dtype: DTypeLike = jnp.float32
) -> Params:
  """Read the tower's parameters, in the tree of `vision.shapes`; arguments and errors as of `weights.read`."""
  return weights.read_tower(pathlib.Path(directory), cfg, shardings, dtype)
