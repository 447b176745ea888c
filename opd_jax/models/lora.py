"""Low-rank adapters: y = x W + scale (x A) B, where W stays and A and B are trained.

This is LoRA (Hu et al. 2021, arXiv:2106.09685). An adapter is a pytree of its own, {"layers": {"q_a": [L, D, r],
"q_b": [L, r, N, h], ...}}, and the only thing that an optimiser or a checkpoint sees. Joined with its base it is one
pytree of parameters that decoder.py takes: a matrix with an adapter has two neighbours. The base without it is the model before training, so a teacher that is the student before
training costs no memory. Before a rollout A and B are added into W, and the token loop knows nothing of them.

On disk it is a PEFT directory (adapter_config.json, adapter_model.safetensors), with PEFT's names and scale = alpha / r,
or alpha / sqrt(r) under rank-stabilised scaling (rsLoRA). PEFT's dropout is not applied.

Dimensions: L layers, D model width, N query heads, h head width, r rank.
"""

import dataclasses
import json
import math
import pathlib
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.config import expanded_path
from opd_jax.errors import InputError, brief, some
from opd_jax.models import directory as directories
from opd_jax.models import finite, safetensors_io, tensor_places
from opd_jax.models.decoder import shapes as shapes_of
from opd_jax.models.decoder_config import DecoderConfig
from opd_jax.runtime.json_files import is_number, is_whole
from opd_jax.types import Params

INPUTS = {  # how many of a matrix's axes a product contracts; the others are outputs
  "q": 1,
  "k": 1,
  "v": 1,
  "o": 2,
  "gate": 1,
  "up": 1,
  "down": 1,
  "delta_qkv": 1,
  "delta_gate": 1,
  "delta_rate": 1,
  "delta_decay": 1,
  "delta_out": 2,
}
PEFT = {  # a matrix's module within a layer; the last part is its name in PEFT's target_modules
  "q": "self_attn.q_proj",
  "k": "self_attn.k_proj",
  "v": "self_attn.v_proj",
  "o": "self_attn.o_proj",
  "gate": "mlp.gate_proj",
  "up": "mlp.up_proj",
  "down": "mlp.down_proj",
  "delta_qkv": "linear_attn.in_proj_qkv",
  "delta_gate": "linear_attn.in_proj_z",
  "delta_rate": "linear_attn.in_proj_b",
  "delta_decay": "linear_attn.in_proj_a",
  "delta_out": "linear_attn.out_proj",
}
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclasses.dataclass(frozen=True)
class Lora:
  """The adapter that `config.lora` or an adapter_config.json describes."""

  rank: int
  alpha: float
  targets: tuple[str, ...]  # keys of INPUTS
  rank_stabilised: bool = False

  @property
  def scale(self) -> float:
    """The factor of A B."""
    return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


def from_config(config) -> Lora | None:
  """Build the adapter that `config.lora` describes; None where all weights are trained."""
  if config.path:
    return read_config(expanded_path(config.path))
  return Lora(config.rank, config.alpha, tuple(config.targets)) if config.rank else None


def shapes(cfg: DecoderConfig, lora: Lora) -> Params:
  """The shape of every parameter of an adapter, as a pytree of tuples.

  Raises:
    InputError: a target is no matrix of the model.
  """
  layers = shapes_of(cfg)["layers"]
  adapter = {}
  if "down" in lora.targets and cfg.tensor_names == "llada":
    raise InputError(
      "config.lora.targets names 'down', which LLaDA calls ff_out, as it does its head, so that PEFT would put an adapter there too; "
      "leave it out."
    )
  for name in lora.targets:
    if name not in layers:
      reason = "its feed-forward part is a mixture of experts" if cfg.moe else "unknown"
      raise InputError(
        f"config.lora.targets names {name!r}, which this model does not have ({reason}); "
        f"it has {', '.join(n for n in INPUTS if n in layers)}."
      )
    L, *axes = layers[name]
    contracted, outputs = axes[: INPUTS[name]], axes[INPUTS[name] :]
    adapter |= {f"{name}_a": (L, *contracted, lora.rank), f"{name}_b": (L, lora.rank, *outputs)}
  return {"layers": adapter}


def init(cfg: DecoderConfig, lora: Lora, key: jax.Array) -> Params:
  """Draw a new adapter, which changes nothing yet: A uniform in +-1/sqrt(inputs), as PEFT's, and B zero; fp32."""

  def draw(name: str, shape: tuple[int, ...]) -> jax.Array:
    if name.endswith("_b"):
      return jnp.zeros(shape, jnp.float32)
    bound = 1 / math.sqrt(math.prod(shape[1:-1]))
    return jax.random.uniform(jax.random.fold_in(key, zlib.crc32(name.encode())), shape, jnp.float32, -bound, bound)

  return {"layers": {name: draw(name, shape) for name, shape in shapes(cfg, lora)["layers"].items()}}


def join(base: Params, adapter: Params) -> Params:
  """Join base and adapter to one pytree without a copy; `DecoderConfig.adapter_scale` has to be the adapter's scale."""
  return base | {"layers": base["layers"] | adapter["layers"]}


def adapter_of(params: Params, cfg: DecoderConfig, lora: Lora) -> Params:
  """Take the adapter out of what `join` has joined."""
  return {"layers": {name: params["layers"][name] for name in shapes(cfg, lora)["layers"]}}


def merge_layer(layer: Params, scale: float) -> Params:
  """Add A B into W in one layer; a layer without an adapter stays as it is."""
  merged = {name: w for name, w in layer.items() if name[-2:] not in ("_a", "_b")}
  for name in INPUTS:
    if f"{name}_a" in layer:
      a, b, w = layer[f"{name}_a"], layer[f"{name}_b"], layer[name]
      r = b.shape[0]
      change = jnp.matmul(a.reshape(-1, r), b.reshape(r, -1), preferred_element_type=jnp.float32)
      merged[name] = (w + scale * change.reshape(w.shape)).astype(w.dtype)
  return merged


def merge(params: Params, scale: float) -> Params:
  """Add A B into W in all layers, which makes an ordinary model."""
  layers = params["layers"]
  own = {
    name: {n: layers[n] for n in (name, f"{name}_a", f"{name}_b") if n in layers} for name in INPUTS if name in layers
  }
  merged = {name: jax.vmap(lambda layer: merge_layer(layer, scale))(of_one)[name] for name, of_one in own.items()}
  return params | {"layers": {name: w for name, w in layers.items() if name[-2:] not in ("_a", "_b")} | merged}


def read_config(directory: pathlib.Path) -> Lora:
  """Read the adapter that adapter_config.json describes.

  Raises:
    InputError: there is no file, or it asks for anything that would not be followed exactly.
  """
  path = directory / CONFIG
  if not path.is_file():
    raise InputError(f"{directory} has no {CONFIG}; config.lora.path names a PEFT directory.")
  raw = directories.read_json(path)

  def refuse(what: str) -> InputError:
    return InputError(f"{path}: {what}.")

  if raw.get("peft_type") != "LORA":
    raise refuse(f"peft_type is {brief(raw.get('peft_type'))}; only 'LORA' is supported")
  for key in sorted(raw.keys() - FOLLOWED - WITHOUT_EFFECT):
    if raw[key] not in (None, False, "none", [], {}, ""):
      raise refuse(f"{some([key])} is {brief(raw[key])}, which is not supported")
  initial = raw.get("init_lora_weights", True)
  if initial not in (None, True, False, *_BASE_UNCHANGED):
    raise refuse(f"init_lora_weights is {brief(initial)}, which changes the base model too, or is not known")
  modules = raw.get("target_modules")
  by_module = {_module(module, names): name for names in tensor_places.NAMES for name, module in PEFT.items()}
  if not isinstance(modules, list) or not modules or any(str(module) not in by_module for module in modules):
    raise refuse(f"target_modules is {brief(modules)}; it has to be a list of some of {', '.join(by_module)}")
  rank, alpha, rank_stabilised = raw.get("r"), raw.get("lora_alpha"), raw.get("use_rslora") or False
  if not is_whole(rank, 1) or not is_number(alpha) or alpha <= 0:
    raise refuse(
      f"r and lora_alpha have to be numbers above 0, and r a whole one; they are {brief(rank)} and {brief(alpha)}"
    )
  if not isinstance(rank_stabilised, bool):
    raise refuse(f"use_rslora is {brief(rank_stabilised)}; it has to be true or false")
  targets = {by_module[module] for module in modules}
  return Lora(rank, float(alpha), tuple(n for n in INPUTS if n in targets), rank_stabilised)


# PEFT can do more than add A B to some matrices of every layer, and learns more with each version: what is in neither of
# these has to be off.
FOLLOWED = {"peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "init_lora_weights"}
_BASE_UNCHANGED = ("gaussian", "eva", "orthogonal", "mica")  # PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA subtract from it
WITHOUT_EFFECT = {  # on what a trained adapter computes
  "task_type",
  "peft_version",
  "base_model_name_or_path",
  "revision",
  "inference_mode",
  "auto_mapping",
  "lora_dropout",
  "megatron_core",
  "ensure_weight_tying",  # of modules_to_save
  "layers_pattern",  # of layers_to_transform
  "qalora_group_size",  # of use_qalora
  "loftq_config",  # of init_lora_weights, as the next three
  "eva_config",
  "corda_config",
  "lora_ga_config",
  "runtime_config",
}


def load(directory: pathlib.Path, cfg: DecoderConfig, lora: Lora) -> Params:
  """Read the adapter in a PEFT directory as fp32 host arrays.

  Raises:
    InputError: as `check`, or the adapter has a NaN or Inf.
  """
  tensors, layers = check(directory, cfg, lora), {}
  for name, shape in shapes(cfg, lora)["layers"].items():
    order, by_tensor = _outputs(cfg, name), _peft_tensors(cfg, lora)[name]
    by_layer = [tensors[tensor].map().astype(np.float32).T[:, order] for tensor in by_tensor]
    layers[name] = np.stack(by_layer).reshape(shape)
  if broken := finite.first_broken(layers):
    raise InputError(
      f"{directory / WEIGHTS} has a NaN or Inf in the adapter of {broken!r}; export it again, from an earlier checkpoint."
    )
  return {"layers": layers}


def check(directory: pathlib.Path, cfg: DecoderConfig, lora: Lora) -> dict[str, safetensors_io.Tensor]:
  """Find the tensors of a PEFT directory from their header.

  Raises:
    InputError: tensors that are missing, unknown, or of another shape than config.json and adapter_config.json imply.
  """
  file = directory / WEIGHTS
  if not file.is_file():
    if (directory / "adapter_model.bin").is_file():
      raise InputError(f"{directory} has no {WEIGHTS}, only adapter_model.bin, which is not read: convert it.")
    raise InputError(f"{directory} has no {WEIGHTS}; config.lora.path names a PEFT directory.")
  tensors = safetensors_io.read_header(file)
  wanted = {name: shape for layers in _peft_tensors(cfg, lora).values() for name, shape in layers.items()}
  for name, shape in wanted.items():
    if name not in tensors:
      raise InputError(f"{file} has no tensor {name}, which {CONFIG} implies: it belongs to another model.")
    if tensors[name].shape != shape:
      raise InputError(
        f"{file}: tensor {name} has shape {brief(list(tensors[name].shape))}, and {list(shape)} is implied by {CONFIG} and "
        "the student's config.json: they are of different models."
      )
    if tensors[name].dtype not in safetensors_io.DTYPES:
      raise InputError(
        f"{file}: tensor {name} has dtype {some([tensors[name].dtype])}; supported are {', '.join(safetensors_io.DTYPES)}."
      )
  if unknown := sorted(tensors.keys() - wanted.keys()):
    raise InputError(f"{file} has a tensor {some(unknown[:1])} that {CONFIG} does not name.")
  return tensors


def write(
  directory: pathlib.Path,
  cfg: DecoderConfig,
  lora: Lora,
  adapter: Params,
  base: str,
  like: pathlib.Path | None = None,
  card: str = "",
) -> None:
  """Write a PEFT directory.

  Args:
    adapter: host arrays.
    base: the value of base_model_name_or_path.
    like: the base's directory, whose tokenizer and licence are copied, as other trainers do; None: they are not.
    card: README.md; "" for none.

  Raises:
    InputError: a weight is NaN or Inf.
  """
  from safetensors.numpy import save_file

  if broken := finite.first_broken(adapter["layers"]):
    raise InputError(
      f"The adapter of {broken!r} has a NaN or Inf, so nothing is written to {directory}; export an earlier checkpoint."
    )
  directory.mkdir(parents=True, exist_ok=True)
  tensors = {}
  for name, by_layer in _peft_tensors(cfg, lora).items():
    layers = np.asarray(adapter["layers"][name], np.float32)
    for layer, (tensor, shape) in zip(layers, by_layer.items(), strict=True):
      in_file = np.empty(shape[::-1], np.float32)
      in_file[:, _outputs(cfg, name)] = layer.reshape(shape[::-1])
      tensors[tensor] = np.ascontiguousarray(in_file.T)
  save_file(tensors, directory / WEIGHTS, {"format": "pt"})
  adapter_config: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base,
    "r": lora.rank,
    "lora_alpha": lora.alpha,
    "lora_dropout": 0.0,
    "use_rslora": lora.rank_stabilised,
    "target_modules": [_module(PEFT[name], cfg.tensor_names) for name in lora.targets],
    "bias": "none",
    "inference_mode": True,
  }
  (directory / CONFIG).write_text(json.dumps(adapter_config, indent=2) + "\n")
  if like is not None:
    directories.copy(like, directory, (*directories.TOKENIZER, *directories.LICENCES))
  if card:
    (directory / directories.CARD).write_text(card, encoding="utf-8")


def _peft_tensors(cfg: DecoderConfig, lora: Lora) -> dict[str, dict[str, tuple[int, int]]]:
  """List each parameter's tensors by layer, with shapes: PEFT has A as [r, inputs] and B as [outputs, r]."""
  tensors = {}
  for name, (_, *axes) in shapes(cfg, lora)["layers"].items():
    matrix, side = name[:-2], name[-1].upper()
    tensor = tensor_places.tensor_name(
      f"base_model.model.model.layers.{{}}.{PEFT[matrix]}.lora_{side}.weight", cfg.tensor_names
    )
    shape = (lora.rank, math.prod(axes[:-1])) if side == "A" else (math.prod(axes[1:]), lora.rank)
    tensors[name] = {tensor.format(layer): shape for layer in cfg.holders(matrix)}
  return tensors


def _outputs(cfg: DecoderConfig, name: str) -> Any:
  """Where in a file the outputs of an adapter's B stand: as the matrix's own, see `tensor_places.by_head`; A has none."""
  parts = cfg.delta.parts_of(name.removesuffix("_b")) if cfg.delta else ()
  return tensor_places.by_head(cfg.delta.key_heads, parts) if cfg.delta and parts else slice(None)


def _module(module: str, names: str) -> str:
  """The last part of a module's name, as PEFT's target_modules have it, in models of these tensor names."""
  return tensor_places.tensor_name(f".{module}.", names).rpartition(".")[0].rpartition(".")[2]
