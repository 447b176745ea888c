"""config.json of a Hugging Face directory: read as the decoder that it describes, and written for one."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from opd_jax.errors import InputError, brief, some
from opd_jax.models import directory as directories
from opd_jax.models.decoder import DecoderConfig, RopeScaling
from opd_jax.models.moe import MoE
from opd_jax.runtime.json_files import is_number, is_whole


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


def read(directory: pathlib.Path) -> DecoderConfig:
  """Read the model that config.json describes.

  Raises:
    InputError: config.json asks for anything that decoder.py would not follow exactly.
  """
  path = pathlib.Path(directory) / "config.json"
  raw = directories.read_json(path)

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
      f"architectures names {found}, whose model_type is {arch.model_type!r}, and model_type is {brief(raw['model_type'])}; "
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


def write(
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
  directories.write_json(directory / "config.json", config | special)
  directories.write_json(directory / "generation_config.json", {k: v for k, v in special.items() if v is not None})


def copy(like: pathlib.Path, directory: pathlib.Path, dtype: str) -> None:
  """Copy all but the weights of a model directory, with another dtype, and with what a reader may look for in vain."""
  raw = directories.read_json(like / "config.json")
  name = _architecture(raw.get("architectures") or (), raw.get("model_type"))
  raw |= {"architectures": [name], "model_type": ARCHITECTURES[name].model_type}
  for key in {"dtype", "torch_dtype"} & raw.keys() or {"torch_dtype"}:
    raw[key] = dtype
  directories.write_json(directory / "config.json", raw)
  directories.copy(like, directory, directories.COMPANIONS)
