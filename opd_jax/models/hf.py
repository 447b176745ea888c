"""Hugging Face model directories: check, read and write them without PyTorch; safetensors_io.py does their tensors."""

import dataclasses
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.typing import DTypeLike

from opd_jax.config import BUILTIN, expanded_path
from opd_jax.errors import InputError, brief, some
from opd_jax.models import directory as directories
from opd_jax.models import finite, safetensors_io
from opd_jax.models.decoder import DecoderConfig, RopeScaling
from opd_jax.models.moe import MoE
from opd_jax.models.safetensors_io import read_json, write_json
from opd_jax.runtime.json_files import is_number, is_whole
from opd_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Architecture:
  """The traits that set one of transformers' architectures apart, as far as decoder.py follows it."""

  model_type: str
  qk_norm: bool = False
  qkv_bias: bool = False
  moe: bool = False  # every layer has experts
  head_width: int | None = None  # where config.json has no head_dim; None: d_model / heads
  off: tuple[str, ...] = ()  # switches of config.json that change the model in a way decoder.py does not follow


ARCHITECTURES = {
  "Qwen3ForCausalLM": Architecture("qwen3", qk_norm=True, head_width=128, off=("attention_bias", "use_sliding_window")),
  "Qwen3MoeForCausalLM": Architecture(
    "qwen3_moe", qk_norm=True, moe=True, off=("attention_bias", "use_sliding_window")
  ),
  "Qwen2ForCausalLM": Architecture("qwen2", qkv_bias=True, off=("use_sliding_window",)),
  "LlamaForCausalLM": Architecture("llama", off=("attention_bias", "mlp_bias")),
}


def resolve(name: str) -> pathlib.Path:
  """Find the directory of 'builtin:student', or of a model that is already on this machine.

  Raises:
    InputError: there is none; says how to get it.
  """
  if name.startswith(BUILTIN):
    assets = pathlib.Path(__file__).resolve().parent.parent / "tasks" / "assets"
    known = {p.parent.relative_to(assets).as_posix(): p.parent for p in sorted(assets.glob("**/config.json"))}
    wanted = name.removeprefix(BUILTIN)
    if wanted not in known:
      available = ", ".join(BUILTIN + k for k in known) or "none in this installation"
      raise InputError(f"There is no built-in model {name}; available: {available}.")
    return known[wanted]
  path = expanded_path(name)
  if path.is_dir():
    return path
  if path.exists():
    raise InputError(f"{path} is a file; a model is the directory that holds config.json and the safetensors files.")
  if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
    raise InputError(
      f"There is no directory {name}; if it is a model of the Hugging Face hub, download it first, "
      f"e.g. `hf download {name} --local-dir DIR`, and give DIR."
    )
  raise InputError(f"There is no model directory {path}.")


def read_config(directory: pathlib.Path) -> DecoderConfig:
  """Read the model that config.json describes.

  Raises:
    InputError: config.json asks for anything that decoder.py would not follow exactly.
  """
  path = pathlib.Path(directory) / "config.json"
  raw = read_json(path)

  def refuse(what: str) -> InputError:
    return InputError(f"{path}: {what}.")

  def positive_int(key: str, default: int | None = None) -> int:
    value = raw.get(key) if raw.get(key) is not None else default
    if not is_whole(value, 1):
      raise refuse(f"{key} is {brief(value)}; it has to be a whole number above 0, and below 2**31")
    return value

  def switch(key: str) -> bool:
    value = raw.get(key)
    if value not in (None, True, False) or isinstance(value, float):
      raise refuse(f"{key} is {brief(value)}; it has to be true or false")
    return bool(value)

  names = raw.get("architectures") or []
  if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
    raise refuse(f"architectures is {brief(names)}; it has to be a list of names")
  found = _architecture(names, raw.get("model_type"))
  if found not in ARCHITECTURES:
    raise refuse(f"{some([found])} is not supported; the supported architectures are {', '.join(ARCHITECTURES)}")
  arch = ARCHITECTURES[found]
  if raw.get("model_type") not in (None, arch.model_type):
    raise refuse(
      f"architectures names {found}, whose model_type is {arch.model_type!r}, and model_type is {raw['model_type']!r}; "
      "mend the one that is wrong"
    )
  code = raw.get("auto_map")
  for key in ("AutoConfig", "AutoModel", "AutoModelForCausalLM"):
    if isinstance(code, dict) and code.get(key):
      raise refuse(
        f"auto_map names code for {key} ({brief(code[key])}), which is not run; remove auto_map if transformers' own {found} "
        "computes the same"
      )
  for key in arch.off:
    if raw.get(key):
      raise refuse(f"{key} is true, which is not supported for {found}")
  if raw.get("hidden_act", "silu") != "silu":
    raise refuse(f"hidden_act is {brief(raw['hidden_act'])}; only 'silu' is supported")
  layer_types = raw.get("layer_types") or []
  if not isinstance(layer_types, list):
    raise refuse(f"layer_types is {brief(layer_types)}; it has to be a list")
  if sliding := [kind for kind in layer_types if kind != "full_attention"]:
    raise refuse(f"layer_types has {brief(sliding[0])}; only 'full_attention' is supported")
  if quantized := raw.get("quantization_config"):
    method = quantized.get("quant_method", "?") if isinstance(quantized, dict) else quantized
    raise refuse(f"the weights are quantized ({some([str(method)])}); give the unquantized model")

  d_model, heads = positive_int("hidden_size"), positive_int("num_attention_heads")
  if "head_dim" not in raw and arch.head_width:
    head_width = arch.head_width
  elif raw.get("head_dim") is None and d_model % heads:
    raise refuse(f"hidden_size {d_model} is not a multiple of num_attention_heads {heads}, and there is no head_dim")
  else:
    head_width = positive_int("head_dim", d_model // heads)
  if head_width % 2:
    raise refuse(f"the heads are {head_width} wide, and the rotary embedding needs an even width")
  max_positions = positive_int("max_position_embeddings")
  if arch.moe and (raw.get("mlp_only_layers") or positive_int("decoder_sparse_step", 1) > 1):
    raise refuse("mlp_only_layers or decoder_sparse_step leave some layers without experts, which is not supported")
  try:
    theta, scaling = _rope(raw, max_positions)
    return DecoderConfig(
      vocab=positive_int("vocab_size"),
      d_model=d_model,
      layers=positive_int("num_hidden_layers"),
      heads=heads,
      kv_heads=positive_int("num_key_value_heads", heads),
      head_width=head_width,
      ff_width=positive_int("moe_intermediate_size" if arch.moe else "intermediate_size"),
      rope_theta=theta,
      rope_scaling=scaling,
      norm_eps=_number(raw, "rms_norm_eps", 1e-6, least=0.0),
      qk_norm=arch.qk_norm,
      qkv_bias=arch.qkv_bias,
      tied=switch("tie_word_embeddings"),  # false is the default of all architectures
      max_positions=max_positions,
      moe=_moe(positive_int, switch, "num_local_experts" in raw) if arch.moe else None,
    )
  except InputError:
    raise
  except ValueError as e:
    raise refuse(str(e)) from None


def _architecture(names: Sequence[str], model_type: Any) -> str:
  """Name the architecture of a config; that of its model_type, as transformers does, where it names none."""
  if names:
    return ", ".join(names)
  of_type = [name for name, arch in ARCHITECTURES.items() if arch.model_type == model_type]
  return of_type[0] if of_type else f"model_type {brief(model_type)}" if model_type else "no architecture"


def _moe(positive_int: Callable[[str], int], switch: Callable[[str], bool], local: bool) -> MoE:
  """Read the sizes of a mixture of experts; transformers 5 calls their number num_local_experts, and 4 num_experts."""
  experts = positive_int("num_local_experts" if local else "num_experts")
  return MoE(experts, positive_int("num_experts_per_tok"), renormalise=switch("norm_topk_prob"))


def _number(raw: dict[str, Any], key: str, default: float | None = None, least: float = 1e-30) -> float:
  """Read a finite number of at least `least`; null is the default too.

  Raises:
    ValueError: it is none, or missing without a default.
  """
  value = default if raw.get(key) is None else raw[key]
  if value is None:
    raise ValueError(f"the rope scaling has no {key}")
  if not is_number(value) or value < least:
    raise ValueError(f"{key} is {brief(value)}; it has to be a number {'above' if least else 'of at least'} 0")
  return float(value)


def _rope(raw: dict[str, Any], max_positions: int) -> tuple[float, RopeScaling | None]:
  """Read base and scaling of the rotary embedding, from transformers 4's rope_scaling or 5's rope_parameters."""
  rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
  if not isinstance(rope, dict):
    raise ValueError(f"the rope scaling is {brief(rope)}; it has to be an object")
  theta = _number({"rope_theta": rope.get("rope_theta") or raw.get("rope_theta")}, "rope_theta", 10_000.0)
  kind = rope.get("rope_type") or rope.get("type") or "default"
  partial = rope.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0
  if partial != 1.0:
    raise ValueError(f"partial_rotary_factor is {brief(partial)}; only 1 is supported")
  if kind == "default":
    return theta, None
  if kind != "llama3":
    raise ValueError(f"rope type {brief(kind)} is not supported; 'default' and 'llama3' are")
  key = "original_max_position_embeddings"
  original = raw.get(key) or rope.get(key) or max_positions
  if not is_whole(original, 1):
    raise ValueError(f"{key} is {brief(original)}; it has to be a whole number above 0")
  low, high = _number(rope, "low_freq_factor"), _number(rope, "high_freq_factor")
  if not low < high:
    raise ValueError(f"low_freq_factor is {low} and high_freq_factor {high}; it has to be the larger")
  return theta, RopeScaling(_number(rope, "factor"), low, high, original)


def check_directory(directory: pathlib.Path) -> None:
  """Check from the headers of its files, in milliseconds, that a directory can be read to the end.

  Raises:
    InputError: it cannot.
  """
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    raise InputError(f"There is no model directory {directory}.")
  if (directory / "adapter_config.json").is_file() and not (directory / "config.json").is_file():
    raise InputError(
      f"{directory} is a PEFT adapter and not a model: name the model that it belongs to, and give the adapter as "
      "config.lora.path."
    )
  cache = directory / ".cache" / "huggingface"
  for leftover in sorted([*directory.glob("*.incomplete"), *cache.glob("**/*.incomplete")]):
    raise InputError(f"{leftover} is left from a download that did not end; run the download again, or delete it.")
  safetensors_io.check(directory, read_config(directory))
  if not directories.find(directory, directories.VOCABULARIES):
    others = " nor ".join(directories.VOCABULARIES[1:])
    raise InputError(f"{directory} has no tokenizer.json (nor {others}): copy the tokenizer there.")


def stop_ids(directory: pathlib.Path) -> tuple[int, ...]:
  """Read every token that a model's files say ends a response: eos_token_id of both configs, sorted.

  Raises:
    InputError: a file is not JSON, or a value is neither an id nor a list of ids.
  """
  ids: set[int] = set()
  for name in ("generation_config.json", "config.json"):
    path = pathlib.Path(directory) / name
    if path.is_file():
      eos = read_json(path).get("eos_token_id")
      values = [] if eos is None else eos if isinstance(eos, list) else [eos]
      if not all(map(is_whole, values)):
        raise InputError(f"{path}: eos_token_id is {brief(eos)}; it has to be a token's id, or a list of ids.")
      ids |= set(values)
  return tuple(sorted(ids))


def load(
  directory: pathlib.Path,
  cfg: DecoderConfig | None = None,
  shardings: Params | None = None,
  dtype: DTypeLike = jnp.float32,
) -> Params:
  """Read the parameters of decoder.py, each into its sharding, and convert them on the way.

  Args:
    cfg: what `read_config` returns for the directory; None: it is called.
    shardings: a jax.sharding.Sharding for every parameter, in the same tree; None: the default device.

  Raises:
    InputError: a weight is NaN or Inf, beside what `safetensors_io.read` raises.
  """
  directory = pathlib.Path(directory)
  params = safetensors_io.read(directory, cfg or read_config(directory), shardings, dtype)
  if broken := finite.first_broken(params):
    raise InputError(
      f"The weights of {directory} have a NaN or Inf in {broken!r}, so the model cannot answer; download it again, or "
      "export it from an earlier checkpoint."
    )
  return params


def write(
  directory: pathlib.Path,
  cfg: DecoderConfig,
  params: Params,
  *,
  like: pathlib.Path | None = None,
  pad_id: int | None = None,
  eos_id: int | Sequence[int] | None = None,
  dtype: str = "bfloat16",
  max_shard_bytes: float = 5e9,
) -> None:
  """Write a directory that transformers loads. It appears whole or not at all.

  In a multi-process run every process calls this, and the first one writes.

  Args:
    like: the directory the model comes from, whose config, tokenizer and licence are copied
      (`directory.COMPANIONS`); None: a model that comes from no directory, which gets a config of its own with
      `pad_id` and `eos_id`, and no tokenizer.
    dtype: "bfloat16" or "float32".
    max_shard_bytes: a file larger than this is split between tensors.

  Raises:
    InputError: the directory has something in it already, or a weight is NaN or Inf.
  """
  directory = pathlib.Path(directory).absolute()
  kinds = {"bfloat16": "BF16", "float32": "F32"}
  if dtype not in kinds:
    raise InputError(f"dtype is {dtype!r}; weights are written as {' or '.join(kinds)}.")
  check_new(directory)
  if broken := finite.first_broken(params):
    raise InputError(
      f"The weights of {broken!r} have a NaN or Inf, so nothing is written to {directory}; export an earlier checkpoint."
    )
  if like is not None and read_config(like) != cfg:
    raise ValueError(f"{like} does not describe the model that is to be written")
  part = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
  first = jax.process_index() == 0
  try:
    if first:
      shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
      part.mkdir(parents=True)
      if like is None:
        write_config(part, cfg, pad_id=pad_id, eos_id=eos_id, dtype=dtype)
      else:
        _copy_config(pathlib.Path(like), part, dtype)
    safetensors_io.write(part if first else None, cfg, params, kinds[dtype], max_shard_bytes)
    if first:
      os.rename(part, directory)
  except BaseException:
    if first:
      shutil.rmtree(part, ignore_errors=True)
    raise
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"wrote {directory}")


def check_new(directory: pathlib.Path) -> None:
  """Refuse to write where something is.

  Raises:
    InputError: the path is a file, or a directory with something in it.
  """
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise InputError(f"{directory} exists already: remove it, or choose another place.")


def write_config(
  directory: pathlib.Path,
  cfg: DecoderConfig,
  *,
  pad_id: int | None,
  eos_id: int | Sequence[int] | None,
  dtype: str = "float32",
) -> None:
  """Write config.json and generation_config.json of a model that comes from no directory.

  Raises:
    ValueError: none of `ARCHITECTURES` has the model's norms, biases and experts.
  """
  parts = (cfg.qk_norm, cfg.qkv_bias, cfg.moe is not None)
  fitting = [name for name, arch in ARCHITECTURES.items() if (arch.qk_norm, arch.qkv_bias, arch.moe) == parts]
  if not fitting:
    raise ValueError("no architecture has these norms and biases of queries and keys, with or without experts")
  scaling = None
  if s := cfg.rope_scaling:
    scaling = {
      "rope_type": "llama3",
      "factor": s.factor,
      "low_freq_factor": s.low_freq_factor,
      "high_freq_factor": s.high_freq_factor,
      "original_max_position_embeddings": s.original_max_positions,
    }
  special = {
    "bos_token_id": None,
    "eos_token_id": list(eos_id) if isinstance(eos_id, Sequence) else eos_id,
    "pad_token_id": pad_id,
  }
  config = {
    "architectures": fitting,
    "model_type": ARCHITECTURES[fitting[0]].model_type,
    "vocab_size": cfg.vocab,
    "hidden_size": cfg.d_model,
    "num_hidden_layers": cfg.layers,
    "num_attention_heads": cfg.heads,
    "num_key_value_heads": cfg.kv_heads,
    "head_dim": cfg.head_width,
    "intermediate_size": cfg.ff_width,
    "hidden_act": "silu",
    # The two rope keys as transformers 4 writes them, which transformers 5 also reads.
    "rope_theta": cfg.rope_theta,
    "rope_scaling": scaling,
    "rms_norm_eps": cfg.norm_eps,
    "tie_word_embeddings": cfg.tied,
    "max_position_embeddings": cfg.max_positions,
    "torch_dtype": dtype,
  }
  if cfg.moe:
    config |= {
      "moe_intermediate_size": cfg.ff_width,
      "num_experts": cfg.moe.experts,
      "num_experts_per_tok": cfg.moe.per_token,
      "norm_topk_prob": cfg.moe.renormalise,
      "decoder_sparse_step": 1,
      "mlp_only_layers": [],
    }
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  write_json(directory / "config.json", config | special)
  write_json(directory / "generation_config.json", {k: v for k, v in special.items() if v is not None})


def _copy_config(like: pathlib.Path, directory: pathlib.Path, dtype: str) -> None:
  """Copy all but the weights of a model directory, with another dtype, and with what a reader may look for in vain."""
  raw = read_json(like / "config.json")
  name = _architecture(raw.get("architectures") or (), raw.get("model_type"))
  raw |= {"architectures": [name], "model_type": ARCHITECTURES[name].model_type}
  for key in {"dtype", "torch_dtype"} & raw.keys() or {"torch_dtype"}:
    raw[key] = dtype
  write_json(directory / "config.json", raw)
  directories.copy(like, directory, directories.COMPANIONS)
