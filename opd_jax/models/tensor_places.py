"""Where the parameters of decoder.py and vision.py stand in the tensors of a model directory.

Dimensions, one letter each in the tables: v vocabulary, d model width, n heads, h head width, f feed-forward width, e experts; of layers of
the delta rule c channels of a head, w the width of the convolution; of a vision tower s queries, keys and values, c channels, t frames, p and q the sides of a
patch, g positions.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np

from opd_jax.models import vision
from opd_jax.models.decoder import shapes
from opd_jax.models.decoder_config import DecoderConfig
from opd_jax.models.safetensors_io import Shape
from opd_jax.models.vision import VisionConfig

Placed = dict[str, tuple[str, tuple[str, ...], str]]  # a parameter's tensors, see `_LEAVES`

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
NAMES = {  # by DecoderConfig.tensor_names, what other names are made of these, part by part
  "transformers": {},
  "llada": {
    "model.embed_tokens.": "model.transformer.wte.",
    "model.norm.": "model.transformer.ln_f.",
    "lm_head.": "model.transformer.ff_out.",
    "model.layers.": "model.transformer.blocks.",
    ".input_layernorm.": ".attn_norm.",
    ".post_attention_layernorm.": ".ff_norm.",
    ".self_attn.o_proj.": ".attn_out.",
    ".self_attn.": ".",
    ".mlp.gate_proj.": ".ff_proj.",
    ".mlp.down_proj.": ".ff_out.",
    ".mlp.": ".",
  },
  "language_model": {"model.": "model.language_model.", "visual.": "model.visual."},  # of a model that sees images too
}

# Name in the file ({}: the layer, or the layer and the expert), the tensor's axes there ("nh": heads and head width are
# one axis), and its axes in decoder.py behind those of the layer and the expert.
_LEAVES: Placed = {
  "embed": (EMBED, ("v", "d"), "vd"),
  "norm": ("model.norm.weight", ("d",), "d"),
  "head": (HEAD, ("v", "d"), "vd"),
  "attn_norm": ("model.layers.{}.input_layernorm.weight", ("d",), "d"),
  "mlp_norm": ("model.layers.{}.post_attention_layernorm.weight", ("d",), "d"),
  "attn_out_norm": ("model.layers.{}.post_attention_layernorm.weight", ("d",), "d"),
  "mlp_out_norm": ("model.layers.{}.post_feedforward_layernorm.weight", ("d",), "d"),
  "q": ("model.layers.{}.self_attn.q_proj.weight", ("nh", "d"), "dnh"),
  "k": ("model.layers.{}.self_attn.k_proj.weight", ("nh", "d"), "dnh"),
  "v": ("model.layers.{}.self_attn.v_proj.weight", ("nh", "d"), "dnh"),
  "o": ("model.layers.{}.self_attn.o_proj.weight", ("d", "nh"), "nhd"),
  "q_bias": ("model.layers.{}.self_attn.q_proj.bias", ("nh",), "nh"),
  "k_bias": ("model.layers.{}.self_attn.k_proj.bias", ("nh",), "nh"),
  "v_bias": ("model.layers.{}.self_attn.v_proj.bias", ("nh",), "nh"),
  "o_bias": ("model.layers.{}.self_attn.o_proj.bias", ("d",), "d"),
  "q_norm": ("model.layers.{}.self_attn.q_norm.weight", ("h",), "h"),
  "k_norm": ("model.layers.{}.self_attn.k_norm.weight", ("h",), "h"),
  "delta_qkv": ("model.layers.{}.linear_attn.in_proj_qkv.weight", ("nc", "d"), "dnc"),
  "delta_gate": ("model.layers.{}.linear_attn.in_proj_z.weight", ("nh", "d"), "dnh"),
  "delta_rate": ("model.layers.{}.linear_attn.in_proj_b.weight", ("n", "d"), "dn"),
  "delta_decay": ("model.layers.{}.linear_attn.in_proj_a.weight", ("n", "d"), "dn"),
  "delta_conv": ("model.layers.{}.linear_attn.conv1d.weight", ("nc", "", "w"), "ncw"),
  "delta_log_decay": ("model.layers.{}.linear_attn.A_log", ("n",), "n"),
  "delta_bias": ("model.layers.{}.linear_attn.dt_bias", ("n",), "n"),
  "delta_norm": ("model.layers.{}.linear_attn.norm.weight", ("h",), "h"),
  "delta_out": ("model.layers.{}.linear_attn.out_proj.weight", ("d", "nh"), "nhd"),
  "gate": ("model.layers.{}.mlp.gate_proj.weight", ("f", "d"), "df"),
  "up": ("model.layers.{}.mlp.up_proj.weight", ("f", "d"), "df"),
  "down": ("model.layers.{}.mlp.down_proj.weight", ("d", "f"), "fd"),
  "router": ("model.layers.{}.mlp.gate.weight", ("e", "d"), "de"),
  "experts_gate": ("model.layers.{}.mlp.experts.{}.gate_proj.weight", ("f", "d"), "df"),
  "experts_up": ("model.layers.{}.mlp.experts.{}.up_proj.weight", ("f", "d"), "df"),
  "experts_down": ("model.layers.{}.mlp.experts.{}.down_proj.weight", ("d", "f"), "fd"),
}

_TOWER: Placed = {
  "patch": ("visual.patch_embed.proj.weight", ("d", "c", "t", "p", "q"), "ctpqd"),
  "patch_bias": ("visual.patch_embed.proj.bias", ("d",), "d"),
  "position": ("visual.pos_embed.weight", ("g", "d"), "gd"),
  "vision_norm": ("visual.blocks.{}.norm1.weight", ("d",), "d"),
  "vision_norm_bias": ("visual.blocks.{}.norm1.bias", ("d",), "d"),
  "vision_qkv": ("visual.blocks.{}.attn.qkv.weight", ("snh", "d"), "dsnh"),
  "vision_qkv_bias": ("visual.blocks.{}.attn.qkv.bias", ("snh",), "snh"),
  "vision_o": ("visual.blocks.{}.attn.proj.weight", ("d", "nh"), "nhd"),
  "vision_o_bias": ("visual.blocks.{}.attn.proj.bias", ("d",), "d"),
  "vision_mlp_norm": ("visual.blocks.{}.norm2.weight", ("d",), "d"),
  "vision_mlp_norm_bias": ("visual.blocks.{}.norm2.bias", ("d",), "d"),
  "vision_up": ("visual.blocks.{}.mlp.linear_fc1.weight", ("f", "d"), "df"),
  "vision_up_bias": ("visual.blocks.{}.mlp.linear_fc1.bias", ("f",), "f"),
  "vision_down": ("visual.blocks.{}.mlp.linear_fc2.weight", ("d", "f"), "fd"),
  "vision_down_bias": ("visual.blocks.{}.mlp.linear_fc2.bias", ("d",), "d"),
  "merge_norm": ("visual.merger.norm.weight", ("d",), "d"),
  "merge_norm_bias": ("visual.merger.norm.bias", ("d",), "d"),
  "merge_in": ("visual.merger.linear_fc1.weight", ("f", "d"), "df"),
  "merge_in_bias": ("visual.merger.linear_fc1.bias", ("f",), "f"),
  "merge_out": ("visual.merger.linear_fc2.weight", ("f", "d"), "df"),
  "merge_out_bias": ("visual.merger.linear_fc2.bias", ("f",), "f"),
}
_OF_GATED = {  # the same of a gated tower, part by part
  ".linear_fc1": ".up_proj",
  ".linear_fc2": ".down_proj",
  "visual.merger.norm": "visual.merger.ln_q",
  "visual.merger.up_proj": "visual.merger.mlp.0",
  "visual.merger.down_proj": "visual.merger.mlp.2",
}

_BETWEEN_NORMS: Placed = {"mlp_norm": ("model.layers.{}.pre_feedforward_layernorm.weight", ("d",), "d")}
_WHOLE_QK_NORM: Placed = {name: (_LEAVES[name][0], ("nh",), "nh") for name in ("q_norm", "k_norm")}


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One parameter of `decoder.shapes` and the tensors that hold it in a directory; `name` and axes as in `_LEAVES`."""

  shape: Shape  # of the parameter
  name: str
  file_axes: tuple[str, ...]
  axes: str
  layers: tuple[int, ...] = ()  # that have it, in the order in which it is stacked
  parts: tuple[
    int, ...
  ] = ()  # of a head, where a file has those of all heads together, part after part; (): heads are whole there

  @property
  def stacked(self) -> int:
    """The number of leading axes that count tensors: layers, and experts of a layer."""
    return len(self.shape) - len(self.axes)

  @property
  def _sizes(self) -> dict[str, int]:
    return dict(zip(self.axes, self.shape[-len(self.axes) :], strict=True))

  @property
  def _file_order(self) -> str:
    return "".join(self.file_axes)

  @property
  def _file_shape(self) -> Shape:
    return tuple(math.prod(self._sizes[letter] for letter in axis) for axis in self.file_axes)

  def tensor(self, position: tuple[int, ...], name: str = "") -> str:
    """The name of the tensor at a place of the stacked axes.

    Args:
      name: with {} for the layer, and the expert; "": its own.
    """
    layer, experts = position[:1], position[1:]
    return (name or self.name).format(*(self.layers[i] for i in layer), *experts)

  def tensors(self) -> dict[str, Shape]:
    """The names and shapes of its tensors in the file."""
    names = [self.tensor(position) for position in np.ndindex(*self.shape[: self.stacked])]
    return dict.fromkeys(names, self._file_shape)

  def from_file(self, x: np.ndarray) -> np.ndarray:
    """View one tensor of a file with the parameter's axes."""
    if self.parts:
      x = x[by_head(self._sizes["n"], self.parts)]
    split = x.reshape([self._sizes[letter] for letter in self._file_order])
    return split.transpose([self._file_order.index(letter) for letter in self.axes])

  def to_file(self, x: np.ndarray) -> np.ndarray:
    """Turn one layer of the parameter, or one expert, into its tensor in a file."""
    x = x.transpose([self.axes.index(letter) for letter in self._file_order]).reshape(self._file_shape)
    return x[np.argsort(by_head(self._sizes["n"], self.parts))] if self.parts else x


@functools.cache
def by_head(heads: int, parts: tuple[int, ...]) -> np.ndarray:
  """Where in a file the rows of heads stand that are kept part by part there, such as all queries, all keys, all values; in our order."""
  place, found = 0, []
  for width in parts:
    found.append(np.arange(place, place + heads * width).reshape(heads, width))
    place += heads * width
  return np.concatenate(found, axis=1).reshape(-1)


def parameter_leaves(cfg: DecoderConfig) -> dict[str, Any]:
  """Make a `Leaf` for every parameter, in the tree of `decoder.shapes`."""
  leaves = _LEAVES | (_BETWEEN_NORMS if cfg.norms == "both" else {}) | (_WHOLE_QK_NORM if cfg.whole_qk_norm else {})

  def make_leaf(path: Any, shape: Shape) -> Leaf:
    if cfg.tower is not None and path[0].key == "vision":
      return _of_tower(cfg.tower.gated, tuple(key.key for key in path), shape, cfg.tensor_names)
    name, file_axes, axes = leaves[path[-1].key]
    holders, parts = tuple(cfg.holders(path[-1].key)), cfg.delta.parts_of(path[-1].key) if cfg.delta else ()
    return Leaf(shape, tensor_name(name, cfg.tensor_names), file_axes, axes, holders, parts)

  return jax.tree_util.tree_map_with_path(make_leaf, shapes(cfg), is_leaf=lambda x: isinstance(x, tuple))


def tower_leaves(tower: VisionConfig, names: str) -> dict[str, Any]:
  """Make a `Leaf` for every parameter of a tower, in the tree of `vision.shapes`.

  Args:
    names: a key of NAMES.
  """

  def make_leaf(path: Any, shape: Shape) -> Leaf:
    return _of_tower(tower.gated, tuple(key.key for key in path), shape, names)

  is_shape = lambda x: isinstance(x, tuple)
  return jax.tree_util.tree_map_with_path(make_leaf, vision.shapes(tower), is_leaf=is_shape)


def _of_tower(gated: bool, path: tuple[str, ...], shape: Shape, names: str) -> Leaf:
  key = path[-1]
  name, file_axes, axes = _TOWER[
    "vision_up" if key == "vision_gate" else "vision_up_bias" if key == "vision_gate_bias" else key
  ]
  if "taps" in path:
    name = name.replace(".merger.", ".deepstack_merger_list.{}.")
  if gated:
    for part, other in _OF_GATED.items():
      name = name.replace(part, other)
    name = name.replace("up_proj", "gate_proj") if key.startswith("vision_gate") else name
  stacked = len(shape) > len(axes)
  return Leaf(shape, tensor_name(name, names), file_axes, axes, tuple(range(shape[0])) if stacked else ())


def tensor_name(name: str, names: str) -> str:
  """Say what is the tensor that transformers' decoders call `name`, by a key of NAMES."""
  for part, other in NAMES[names].items():
    name = name.replace(part, other)
  return name


def expected(cfg: DecoderConfig) -> dict[str, Shape]:
  """The shape of every tensor by name, in the order in which jax flattens the parameters."""
  return {name: shape for leaf in jax.tree.leaves(parameter_leaves(cfg)) for name, shape in leaf.tensors().items()}
