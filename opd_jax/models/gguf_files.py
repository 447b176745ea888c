"""GGUF files of llama.cpp: what their metadata says as a config.json, and their tensors, dequantised, as parameters.

Read by the package gguf, without PyTorch. A file is mapped; one parameter (its layers stacked) is dequantised at a time.

Dimensions: N heads, h head width, D model width.
"""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from opd_jax.errors import InputError, brief, first_line, some
from opd_jax.models import hf_config, tensor_places
from opd_jax.models.decoder_config import DecoderConfig
from opd_jax.runtime.json_files import is_whole
from opd_jax.types import Params

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
KEYS = {  # of config.json, by what stands behind the architecture's name in the metadata
  "context_length": "max_position_embeddings",
  "block_count": "num_hidden_layers",
  "feed_forward_length": "intermediate_size",
  "embedding_length": "hidden_size",
  "attention.head_count": "num_attention_heads",
  "attention.head_count_kv": "num_key_value_heads",
  "attention.layer_norm_rms_epsilon": "rms_norm_eps",
  "rope.freq_base": "rope_theta",
}
TENSORS = {  # of each parameter of decoder.py; {}: the layer
  "embed": "token_embd.weight",
  "norm": "output_norm.weight",
  "head": "output.weight",
  "attn_norm": "blk.{}.attn_norm.weight",
  "mlp_norm": "blk.{}.ffn_norm.weight",
  "q": "blk.{}.attn_q.weight",
  "k": "blk.{}.attn_k.weight",
  "v": "blk.{}.attn_v.weight",
  "o": "blk.{}.attn_output.weight",
  "q_bias": "blk.{}.attn_q.bias",
  "k_bias": "blk.{}.attn_k.bias",
  "v_bias": "blk.{}.attn_v.bias",
  "o_bias": "blk.{}.attn_output.bias",
  "q_norm": "blk.{}.attn_q_norm.weight",
  "k_norm": "blk.{}.attn_k_norm.weight",
  "gate": "blk.{}.ffn_gate.weight",
  "up": "blk.{}.ffn_up.weight",
  "down": "blk.{}.ffn_down.weight",
}
ROPE_FACTORS = "rope_freqs.weight"  # what Llama-3's scaling divides each frequency by


class File:
  """A GGUF file: its metadata, and its tensors by name."""

  def __init__(self, path: pathlib.Path):
    """Open a file.

    Raises:
      InputError: there is none, it is no GGUF file, or the package gguf is missing.
    """
    self.path = path
    if not path.is_file():
      raise InputError(f"There is no file {path}; name a GGUF file on this machine.")
    try:
      import gguf
    except ImportError:
      raise InputError(f"Reading {path} needs the package gguf: pip install 'opd-jax[gguf]'.") from None
    try:
      reader = gguf.GGUFReader(path)
    except Exception as e:  # the reader checks little, so that a damaged file fails in any way
      raise InputError(f"{path} cannot be read as a GGUF file ({first_line(e)}); download it again.") from None
    self._fields = reader.fields
    self._tensors = {tensor.name: tensor for tensor in reader.tensors}
    self._dequantise = gguf.dequantize

  def get(self, key: str, default: Any = None) -> Any:
    """Look up a value of the metadata."""
    field = self._fields.get(key)
    return default if field is None else field.contents()

  def __contains__(self, tensor: str) -> bool:
    return tensor in self._tensors

  @property
  def names(self) -> list[str]:
    """The names of the tensors."""
    return list(self._tensors)

  def shape(self, name: str) -> tuple[int, ...]:
    """The shape of a tensor, outputs first, as PyTorch has it; the file writes it the other way round."""
    return tuple(int(n) for n in reversed(self._tensors[name].shape))

  def read(self, name: str) -> np.ndarray:
    """Dequantise a tensor to fp32.

    Raises:
      InputError: its type is not known to the package gguf, or it has a NaN or Inf.
    """
    tensor = self._tensors[name]
    try:
      x = self._dequantise(tensor.data, tensor.tensor_type).reshape(self.shape(name)).astype(np.float32)
    except Exception as e:
      raise InputError(f"{self.path}: tensor {name} cannot be dequantised ({first_line(e)}).") from None
    if not np.isfinite(x).all():
      raise InputError(f"{self.path}: tensor {name} has a NaN or Inf; download the file again.")
    return x


def config(file: File) -> dict[str, Any]:
  """Describe the model as the object of a config.json, without its special tokens.

  Raises:
    InputError: its architecture is not one of `ARCHITECTURES`, or something of it would not be followed exactly.
  """
  arch = file.get("general.architecture")
  if arch not in ARCHITECTURES:
    raise InputError(
      f"{file.path} is of architecture {brief(arch)}; those that can be converted are {', '.join(ARCHITECTURES)}."
    )
  value = lambda key: file.get(f"{arch}.{key}")
  raw = {key: _shortest(value(name)) for name, key in KEYS.items() if value(name) is not None}
  raw |= {"architectures": [ARCHITECTURES[arch]], "hidden_act": "silu", "torch_dtype": "bfloat16"}
  raw["vocab_size"] = file.shape(TENSORS["embed"])[0] if TENSORS["embed"] in file else value("vocab_size")
  raw["tie_word_embeddings"] = TENSORS["head"] not in file
  if arch == "llama" and TENSORS["o_bias"].format(0) in file:
    raw["attention_bias"] = True
  refuse = lambda what: InputError(f"{file.path}: {what}.")
  if value("expert_count"):
    raise refuse(f"{arch}.expert_count is {brief(value('expert_count'))}; mixtures of experts cannot be converted")
  if value("attention.sliding_window"):
    if arch != "llama":
      raise refuse(f"{arch}.attention.sliding_window is not supported")
    raw |= {"architectures": ["MistralForCausalLM"], "sliding_window": value("attention.sliding_window")}
  width = value("attention.key_length") or value("rope.dimension_count")
  if width:
    raw["head_dim"] = width
  elif arch == "qwen3":
    raw["head_dim"] = None  # its config.json has another default than the file
  if value("rope.dimension_count") not in (None, width):
    raise refuse(
      f"{arch}.rope.dimension_count is {brief(value('rope.dimension_count'))}, and the heads are {width} wide"
    )
  raw["rope_scaling"] = _scaling(file, arch, raw)
  raw["model_type"] = hf_config.ARCHITECTURES[raw["architectures"][0]].model_type
  return raw


def _shortest(value: Any) -> Any:
  """The number that was written as an fp32: 1e-5 for 9.999999747378752e-06."""
  return float(str(np.float32(value))) if isinstance(value, float) else value


def _scaling(file: File, arch: str, raw: dict[str, Any]) -> dict[str, Any] | None:
  """Read how the rotary embedding is scaled: by name, or for Llama-3 by the factors of its frequencies."""
  kind = file.get(f"{arch}.rope.scaling.type", "none")
  if kind in ("linear", "yarn"):
    scaling = {"rope_type": kind, "factor": _shortest(file.get(f"{arch}.rope.scaling.factor"))}
    original = file.get(f"{arch}.rope.scaling.original_context_length")
    return scaling | ({"original_max_position_embeddings": original} if original else {})
  if kind != "none":
    raise InputError(f"{file.path}: {arch}.rope.scaling.type is {brief(kind)}; only 'linear' and 'yarn' are supported.")
  if ROPE_FACTORS not in file:
    return None
  factors = file.read(ROPE_FACTORS)
  scaling = {"rope_type": "llama3", "factor": float(factors.max()), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
  scaling |= {"original_max_position_embeddings": 8192}
  freq = raw.get("rope_theta", 10_000.0) ** (-np.arange(len(factors)) / len(factors))
  smooth = np.clip((8192 * freq / (2 * np.pi) - 1.0) / 3.0, 0, 1)
  if not np.allclose(factors, 1 / ((1 - smooth) / scaling["factor"] + smooth), rtol=1e-3):
    raise InputError(f"{file.path}: {ROPE_FACTORS} are not those of Llama-3's scaling, which is not supported.")
  return scaling


def described(file: File) -> DecoderConfig:
  """The model that the metadata describes.

  Raises:
    InputError: as `config`, or a value is missing or wrong.
  """
  try:
    return hf_config.described(config(file))
  except InputError:
    raise
  except ValueError as e:
    raise InputError(f"{file.path}, as a config.json: {e}.") from None


@dataclasses.dataclass(frozen=True)
class Parameter:
  """One parameter of a file, which is dequantised when its type is asked for."""

  file: File
  name: str  # of its tensors; {}: the layer
  leaf: tensor_places.Leaf
  interleaved: bool  # the rotary pairs of a head are neighbours

  @property
  def shape(self) -> tuple[int, ...]:
    return self.leaf.shape

  def astype(self, dtype: np.dtype) -> np.ndarray:
    """Read the parameter, its layers stacked."""
    out = np.empty(self.shape, dtype)
    for position in np.ndindex(*self.shape[: self.leaf.stacked]):
      x = self.file.read(self.leaf.tensor(position, self.name))
      out[position] = self.leaf.from_file(_halves(x, self.leaf.shape[-1]) if self.interleaved else x).astype(dtype)
    return out


def _halves(x: np.ndarray, h: int) -> np.ndarray:
  """Reorder the rows of every head from pairs of neighbours, as llama.cpp rotates them, to first and second halves."""
  return x.reshape(-1, h // 2, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def parameters(file: File, cfg: DecoderConfig) -> Params:
  """List every parameter, unread.

  Raises:
    InputError: tensors are missing, unknown, or of another shape than the metadata implies.
  """
  used = {ROPE_FACTORS}

  def parameter(path, leaf: tensor_places.Leaf) -> Parameter:
    name = path[-1].key
    tensors = list(_names(TENSORS[name], leaf))
    if missing := [tensor for tensor in tensors if tensor not in file]:
      raise InputError(f"{file.path} has no tensor {some(missing)}, which its metadata implies; download it again.")
    wanted = next(iter(leaf.tensors().values()))
    if wrong := [tensor for tensor in tensors if file.shape(tensor) != wanted]:
      raise InputError(
        f"{file.path}: tensor {wrong[0]} has shape {brief(list(file.shape(wrong[0])))}, but its metadata implies "
        f"{list(wanted)}; download it again."
      )
    used.update(tensors)
    # llama.cpp rotates neighbours in files of this architecture alone, so converters reorder queries and keys.
    interleaved = file.get("general.architecture") == "llama" and name in ("q", "k", "q_bias", "k_bias")
    return Parameter(file, TENSORS[name], leaf, interleaved)

  tree = jax.tree_util.tree_map_with_path(parameter, tensor_places.parameter_leaves(cfg))
  if unknown := [name for name in file.names if name not in used]:
    raise InputError(f"{file.path} has tensors {some(unknown)}, which are not followed.")
  return tree


def _names(name: str, leaf: tensor_places.Leaf) -> Iterator[str]:
  yield from (leaf.tensor(position, name) for position in np.ndindex(*leaf.shape[: leaf.stacked]))


def token_id(file: File, key: str) -> int | None:
  """Look up the id of a special token; None where there is none.

  Raises:
    InputError: it is no token's id.
  """
  value = file.get(key)
  if value is not None and not is_whole(value):
    raise InputError(f"{file.path}: {key} is {brief(value)}; it has to be a token's id.")
  return value
