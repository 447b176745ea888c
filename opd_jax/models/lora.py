"""Low-rank adapters: y = x W + scale (x A) B, where W stays and A and B are trained (LoRA, Hu et al. 2021, arXiv:2106.09685).

An adapter is a pytree of its own, {"layers": {"q_a": [L, D, r], "q_b": [L, r, N, h], ...}}, and the only thing that an
optimiser or a checkpoint sees. Joined with its base it is one pytree of parameters that decoder.py reads: a matrix with an
adapter has two neighbours. The base without it is the model before training, so a teacher that is the student before
training costs no memory. Before a rollout A and B are added into W, and the token loop knows nothing of them.

On disk it is a PEFT directory (adapter_config.json, adapter_model.safetensors), with PEFT's names and scale = alpha / r, or
alpha / sqrt(r) under rank-stabilised scaling (rsLoRA). PEFT's dropout is not applied.

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

from opd_jax.errors import InputError
from opd_jax.models import weights
from opd_jax.models.decoder import DecoderConfig
from opd_jax.models.decoder import shapes as shapes_of
from opd_jax.types import Params

INPUTS = {
  "q": 1,
  "k": 1,
  "v": 1,
  "o": 2,
  "gate": 1,
  "up": 1,
  "down": 1,
}  # axes that a matrix contracts; the rest are outputs
PEFT = {  # names of PEFT's target_modules, and where they stand in a layer
  "q": "self_attn.q_proj",
  "k": "self_attn.k_proj",
  "v": "self_attn.v_proj",
  "o": "self_attn.o_proj",
  "gate": "mlp.gate_proj",
  "up": "mlp.up_proj",
  "down": "mlp.down_proj",
}
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclasses.dataclass(frozen=True)
class Lora:
  """`config.lora`, or what an adapter_config.json says."""

  rank: int
  alpha: float
  targets: tuple[str, ...]  # keys of INPUTS
  rank_stabilised: bool = False

  @property
  def scale(self) -> float:
    return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


def from_config(c) -> Lora | None:
  """Of `config.lora`; None where all weights are trained."""
  if c.path:
    return read_config(pathlib.Path(c.path))
  return Lora(c.rank, c.alpha, tuple(c.targets)) if c.rank else None


def shapes(cfg: DecoderConfig, lora: Lora) -> Params:
  """The shape of every parameter of an adapter, as a pytree of tuples.

  Raises:
    InputError: the model has no matrix of that name.
  """
  layers, out = shapes_of(cfg)["layers"], {}
  for name in lora.targets:
    if name not in layers:
      raise InputError(
        f"config.lora.targets names {name!r}, which this model does not have ({'its feed-forward part is a mixture of experts' if cfg.moe else 'unknown'}); "
        f"it has {', '.join(n for n in INPUTS if n in layers)}."
      )
    (L, *rest), inputs = layers[name], INPUTS[name]
    out |= {f"{name}_a": (L, *rest[:inputs], lora.rank), f"{name}_b": (L, lora.rank, *rest[inputs:])}
  return {"layers": out}


def init(cfg: DecoderConfig, lora: Lora, key: jax.Array) -> Params:
  """A new adapter, which changes nothing yet: A uniform in +-1/sqrt(inputs), as PEFT's, and B zero; fp32."""

  def make(name: str, shape: tuple[int, ...]) -> jax.Array:
    if name.endswith("_b"):
      return jnp.zeros(shape, jnp.float32)
    bound = 1 / math.sqrt(math.prod(shape[1:-1]))
    return jax.random.uniform(jax.random.fold_in(key, zlib.crc32(name.encode())), shape, jnp.float32, -bound, bound)

  return {"layers": {name: make(name, shape) for name, shape in shapes(cfg, lora)["layers"].items()}}


def join(base: Params, adapter: Params) -> Params:
  """Base and adapter as one pytree, without a copy; `DecoderConfig.adapter_scale` has to be the adapter's scale."""
  return base | {"layers": base["layers"] | adapter["layers"]}


def merged(layer: Params, scale: float) -> Params:
  """One layer with A B added into W; a layer without an adapter as it is."""
  out = {name: w for name, w in layer.items() if name[-2:] not in ("_a", "_b")}
  for name in INPUTS:
    if f"{name}_a" in layer:
      a, b, w = layer[f"{name}_a"], layer[f"{name}_b"], layer[name]
      r = b.shape[0]
      change = jnp.matmul(a.reshape(-1, r), b.reshape(r, -1), preferred_element_type=jnp.float32)
      out[name] = (w + scale * change.reshape(w.shape)).astype(w.dtype)
  return out


def merge(params: Params, scale: float) -> Params:
  """`merged` for all layers: an ordinary model."""
  return params | {"layers": jax.vmap(lambda layer: merged(layer, scale))(params["layers"])}


def read_config(directory: pathlib.Path) -> Lora:
  """What adapter_config.json describes; anything that would not be followed exactly is refused."""
  path = directory / CONFIG
  if not path.is_file():
    raise InputError(f"{directory} has no {CONFIG}; config.lora.path names a PEFT directory.")
  raw = weights.read_json(path)

  def refuse(what: str) -> InputError:
    return InputError(f"{path}: {what}.")

  if raw.get("peft_type") != "LORA":
    raise refuse(f"peft_type is {raw.get('peft_type')!r}; only 'LORA' is supported")
  for key in _OFF:
    if raw.get(key) not in (None, False, "none", [], {}, ""):
      raise refuse(f"{key} is {raw[key]!r}, which is not supported")
  started = raw.get("init_lora_weights", True)
  if isinstance(started, str) and started.split("_")[0] in ("pissa", "olora", "corda", "loftq"):
    raise refuse(f"init_lora_weights is {started!r}, which has changed the base model too")
  modules = raw.get("target_modules")
  ours = {place.rpartition(".")[2]: name for name, place in PEFT.items()}
  if not isinstance(modules, list) or not modules or set(modules) - ours.keys():
    raise refuse(f"target_modules is {modules!r}; it has to be a list of some of {', '.join(ours)}")
  try:
    rank, alpha = int(raw["r"]), float(raw["lora_alpha"])
  except (KeyError, TypeError, ValueError):
    raise refuse("r and lora_alpha have to be numbers") from None
  targets = {ours[module] for module in modules}
  return Lora(rank, alpha, tuple(n for n in INPUTS if n in targets), bool(raw.get("use_rslora", False)))


# What PEFT can do beside adding A B to some matrices of every layer.
_OFF = (
  "use_dora",
  "bias",
  "lora_bias",
  "rank_pattern",
  "alpha_pattern",
  "modules_to_save",
  "layers_to_transform",
  "layer_replication",
  "fan_in_fan_out",
  "exclude_modules",
  "target_parameters",
  "trainable_token_indices",
  "use_qalora",
  "alora_invocation_tokens",
)


def read(directory: pathlib.Path, cfg: DecoderConfig, lora: Lora) -> Params:
  """The adapter in a PEFT directory, fp32, as host arrays.

  Raises:
    InputError: tensors that are missing, unknown, or of another shape than config.json and adapter_config.json imply.
  """
  file = directory / WEIGHTS
  if not file.is_file():
    raise InputError(f"{directory} has no {WEIGHTS}; config.lora.path names a PEFT directory.")
  there = weights.read_header(file)
  wanted = {name: shape for stored in _stored(cfg, lora).values() for name, shape in stored.items()}
  for name, shape in wanted.items():
    if name not in there:
      raise InputError(f"{file} has no tensor {name}, which {CONFIG} implies: it belongs to another model.")
    if there[name].shape != shape:
      raise InputError(
        f"{file}: tensor {name} has shape {list(there[name].shape)}, and {list(shape)} is implied by {CONFIG} and the "
        "student's config.json: they are of different models."
      )
    if there[name].dtype not in weights.DTYPES:
      raise InputError(
        f"{file}: tensor {name} has dtype {there[name].dtype}; supported are {', '.join(weights.DTYPES)}."
      )
  if unknown := sorted(there.keys() - wanted.keys()):
    raise InputError(f"{file} has a tensor {unknown[0]} that {CONFIG} does not name.")
  layers = {}
  for name, shape in shapes(cfg, lora)["layers"].items():
    each = [there[stored].map().astype(np.float32).T for stored in _stored(cfg, lora)[name]]
    layers[name] = np.stack(each).reshape(shape)
  return {"layers": layers}


def write(directory: pathlib.Path, cfg: DecoderConfig, lora: Lora, adapter: Params, base: str) -> None:
  """A PEFT directory.

  Args:
    adapter: host arrays.
    base: what base_model_name_or_path says.
  """
  from safetensors.numpy import save_file

  directory.mkdir(parents=True, exist_ok=True)
  tensors = {}
  for name, stored in _stored(cfg, lora).items():
    for layer, (there, shape) in zip(np.asarray(adapter["layers"][name], np.float32), stored.items(), strict=True):
      tensors[there] = np.ascontiguousarray(layer.reshape(shape[::-1]).T)
  save_file(tensors, directory / WEIGHTS, {"format": "pt"})
  said: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base,
    "r": lora.rank,
    "lora_alpha": lora.alpha,
    "lora_dropout": 0.0,
    "use_rslora": lora.rank_stabilised,
    "target_modules": [PEFT[name].rpartition(".")[2] for name in lora.targets],
    "bias": "none",
    "inference_mode": True,
  }
  (directory / CONFIG).write_text(json.dumps(said, indent=2) + "\n")


def _stored(cfg: DecoderConfig, lora: Lora) -> dict[str, dict[str, tuple[int, int]]]:
  """For each of ours the tensors of its layers, with their shapes: A is stored as [r, inputs] and B as [outputs, r]."""
  out = {}
  for name, (L, *rest) in shapes(cfg, lora)["layers"].items():
    matrix, end = name[:-2], name[-1].upper()
    place = f"base_model.model.model.layers.{{}}.{PEFT[matrix]}.lora_{end}.weight"
    shape = (lora.rank, math.prod(rest[:-1])) if end == "A" else (math.prod(rest[1:]), lora.rank)
    out[name] = {place.format(layer): shape for layer in range(L)}
  return out
