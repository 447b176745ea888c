"""config.json of a Hugging Face directory: read as the decoder that it describes, and written for one."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from opd_jax.errors import InputError, brief, some
from opd_jax.models import directory as directories
from opd_jax.models import hf_llada, hf_rope, mrope
from opd_jax.models.decoder_config import DecoderConfig
from opd_jax.models.delta_net import DeltaNet
from opd_jax.models.hf_layers import (
  PLAIN,
  Alternating,
  Hybrid,
  Layers,
  NoRopeInSome,
  WindowEverywhere,
  WindowWhereSwitched,
)
from opd_jax.models.hf_values import Json, number, positive_int, switch
from opd_jax.models.layer_kinds import shortest_period
from opd_jax.models.moe import MoE
from opd_jax.runtime.json_files import is_whole


@dataclasses.dataclass(frozen=True)
class Architecture:
  """The traits that set one of transformers' architectures apart, as far as decoder.py follows it."""

  model_type: str
  qk_norm: bool = False
  whole_qk_norm: bool = False  # over all heads at once
  qkv_bias: bool = False
  attention_bias: bool = False  # config.json's switch of that name is followed: biases of q, k, v and o
  norms: str = "before"  # where those of a layer stand, see decoder_config.NORMS
  gemma: bool = False  # norms about zero, a scaled embedding, query_pre_attn_scalar, and hidden_activation, a GELU
  hybrid: bool = False  # layers of the gated delta rule; attention is gated and rotated in part, norms are about zero
  moe: bool = False  # every layer has experts
  head_width: int | None = None  # where config.json has no head_dim; None: d_model / heads
  tied: bool = False  # defaults of config.json, as the next two
  theta: float = 10_000.0
  norm_eps: float = 1e-6
  layers: Layers = PLAIN
  off: tuple[str, ...] = ()  # switches of config.json that change the model in a way decoder.py does not follow
  causal: bool = True  # False: a masked diffusion model, whose own code is not in transformers
  shifted: bool = False  # of masked diffusion models, see DecoderConfig
  tensor_names: str = "transformers"  # a key of tensor_places.NAMES; "llada" has keys of config.json of its own too
  sees: tuple[int, ...] = ()  # of models that see images: how many rotary frequencies turn by time, height and width
  interleaved: bool = True  # whether these take turns, see mrope.py

  @property
  def activation(self) -> tuple[str, str]:
    """The key of config.json, and the only value."""
    return ("hidden_activation", "gelu_pytorch_tanh") if self.gemma else ("hidden_act", "silu")


ARCHITECTURES = {
  "Qwen3ForCausalLM": Architecture(
    "qwen3", qk_norm=True, attention_bias=True, head_width=128, layers=WindowWhereSwitched()
  ),
  "Qwen3MoeForCausalLM": Architecture(
    "qwen3_moe", qk_norm=True, attention_bias=True, moe=True, off=("use_sliding_window",)
  ),
  "Qwen2ForCausalLM": Architecture("qwen2", qkv_bias=True, layers=WindowWhereSwitched()),
  "LlamaForCausalLM": Architecture("llama", attention_bias=True, off=("mlp_bias",)),
  "MistralForCausalLM": Architecture("mistral", layers=WindowEverywhere()),
  "SmolLM3ForCausalLM": Architecture(
    "smollm3", attention_bias=True, tied=True, theta=2_000_000.0, layers=NoRopeInSome(), off=("mlp_bias",)
  ),
  "Olmo2ForCausalLM": Architecture(
    "olmo2", qk_norm=True, whole_qk_norm=True, attention_bias=True, norms="after", norm_eps=1e-5
  ),
  "Olmo3ForCausalLM": Architecture(
    "olmo3",
    qk_norm=True,
    whole_qk_norm=True,
    attention_bias=True,
    norms="after",
    theta=500_000.0,
    norm_eps=1e-5,
    layers=Alternating(4),
  ),
  "Gemma3ForCausalLM": Architecture(
    "gemma3_text",
    qk_norm=True,
    attention_bias=True,
    norms="both",
    gemma=True,
    head_width=256,
    tied=True,
    theta=1_000_000.0,
    layers=Alternating(6, 10_000.0),
    off=("final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention"),
  ),
  "Qwen3_5ForCausalLM": Architecture(
    "qwen3_5_text", qk_norm=True, hybrid=True, head_width=256, layers=Hybrid(), off=("attention_bias",)
  ),
  "Qwen3_5ForConditionalGeneration": Architecture(
    "qwen3_5",
    qk_norm=True,
    hybrid=True,
    head_width=256,
    layers=Hybrid(),
    off=("attention_bias",),
    tensor_names="language_model",
    sees=(11, 11, 10),
  ),
  "Qwen3VLForConditionalGeneration": Architecture(
    "qwen3_vl",
    qk_norm=True,
    attention_bias=True,
    head_width=128,
    theta=500_000.0,
    tensor_names="language_model",
    sees=(24, 20, 20),
  ),
  "Qwen2_5_VLForConditionalGeneration": Architecture(
    "qwen2_5_vl",
    qkv_bias=True,
    theta=1_000_000.0,
    norm_eps=1e-5,
    layers=WindowWhereSwitched(),
    sees=(16, 24, 24),
    interleaved=False,
  ),
  "LLaDAModelLM": Architecture("llada", norm_eps=1e-5, causal=False, tensor_names="llada"),
  "DreamModel": Architecture("Dream", qkv_bias=True, causal=False, shifted=True, off=("use_sliding_window",)),
}


def read(directory: pathlib.Path) -> DecoderConfig:
  """Read the model that config.json describes.

  Raises:
    InputError: config.json asks for anything that decoder.py would not follow exactly.
  """
  path = pathlib.Path(directory) / "config.json"
  raw = directories.read_json(path)
  try:
    return described(raw)
  except ValueError as e:
    raise InputError(f"{path}: {e}.") from None


def described(raw: Json) -> DecoderConfig:
  """The model that the object of a config.json describes.

  Raises:
    ValueError: what decoder.py would not follow exactly, as a sentence without its full stop.
  """
  found, arch = _row(raw)
  code = raw.get("auto_map")
  for key in ("AutoConfig", "AutoModel", "AutoModelForCausalLM"):
    if arch.causal and isinstance(code, dict) and code.get(key):
      raise ValueError(
        f"auto_map names code for {key} ({brief(code[key])}), which is not run; remove auto_map if transformers' own {found} "
        "computes the same"
      )
  if arch.tensor_names == "llada":
    raw = hf_llada.as_llama(raw)
  if arch.sees:
    raw = _text_part(raw)
  for key in arch.off:
    if value := raw.get(key):
      raise ValueError(f"{key} is {'true' if value is True else brief(value)}, which is not supported for {found}")
  key, activation = arch.activation
  if raw.get(key, activation) != activation:
    raise ValueError(f"{key} is {brief(raw[key])}; only {activation!r} is supported")
  if quantized := raw.get("quantization_config"):
    method = quantized.get("quant_method", "?") if isinstance(quantized, dict) else quantized
    raise ValueError(f"the weights are quantized ({some([str(method)])}); give the unquantized model")
  if arch.moe and (raw.get("mlp_only_layers") or positive_int(raw, "decoder_sparse_step", 1) > 1):
    raise ValueError("mlp_only_layers or decoder_sparse_step leave some layers without experts, which is not supported")
  biases = arch.attention_bias and switch(raw, "attention_bias")
  max_positions, layers = positive_int(raw, "max_position_embeddings"), positive_int(raw, "num_hidden_layers")
  (theta, scaling), kinds = arch.layers.read(raw, layers, max_positions, arch.theta)
  head_width = _head_width(raw, arch)
  query_scalar = positive_int(raw, "query_pre_attn_scalar", 256) if arch.gemma else head_width
  return DecoderConfig(
    vocab=positive_int(raw, "vocab_size"),
    d_model=positive_int(raw, "hidden_size"),
    layers=layers,
    heads=positive_int(raw, "num_attention_heads"),
    kv_heads=positive_int(raw, "num_key_value_heads", raw["num_attention_heads"]),
    head_width=head_width,
    ff_width=positive_int(raw, "moe_intermediate_size" if arch.moe else "intermediate_size"),
    rope_theta=theta,
    rope_scaling=scaling,
    norm_eps=number(raw, "rms_norm_eps", arch.norm_eps, least=0.0),
    qk_norm=arch.qk_norm,
    qkv_bias=arch.qkv_bias or biases,
    tied=switch(raw, "tie_word_embeddings", arch.tied),
    max_positions=max_positions,
    moe=_moe(raw) if arch.moe else None,
    out_bias=biases,
    whole_qk_norm=arch.whole_qk_norm,
    norms=arch.norms,
    zero_centred_norms=arch.gemma or arch.hybrid,
    activation=activation,
    scaled_embedding=arch.gemma,
    query_scalar=None if query_scalar == head_width else query_scalar,
    layer_kinds=shortest_period(kinds),
    causal=arch.causal,
    mask_id=None if arch.causal else _mask_id(raw),
    shifted=arch.shifted,
    rotary_width=_rotary_width(raw, head_width) if arch.hybrid else None,
    gated_attention=arch.hybrid,
    delta=_delta(raw) if any(kind.mixer == "delta" for kind in kinds) else None,
    tensor_names=arch.tensor_names,
    rope_axes=_rope_axes(raw, arch, head_width) if arch.sees else (),
  )


def _text_part(raw: Json) -> Json:
  """Take the decoder out of the config of a model that sees images; whether its head is its embedding is said outside of it."""
  text = raw.get("text_config")
  if text is None and raw.get("model_type") == "qwen2_5_vl":  # before transformers 5 its keys stood outside
    text = raw
  if not isinstance(text, dict):
    raise ValueError(f"text_config is {brief(text)}; it has to be an object")
  tied = raw.get("tie_word_embeddings")
  if not tied and raw.get("model_type") == "qwen2_5_vl":
    tied = text.get("tie_word_embeddings")
  found = text | {"tie_word_embeddings": tied}
  for key in ("rope_scaling", "rope_parameters"):  # that there are three positions is no scaling
    rope = found.get(key)
    if isinstance(rope, dict) and "mrope" in (rope.get("rope_type"), rope.get("type")):
      found[key] = rope | {"rope_type": "default", "type": "default"}
  return found


def _rope_axes(raw: Json, arch: Architecture, head_width: int) -> tuple[int, ...]:
  """Read which of a token's three positions each rotary frequency turns by."""
  rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
  sections = rope.get("mrope_section") or arch.sees
  pairs = ((_rotary_width(raw, head_width) if arch.hybrid else None) or head_width) // 2
  whole = isinstance(sections, list | tuple) and len(sections) == mrope.AXES and all(is_whole(n) for n in sections)
  if not whole:
    raise ValueError(f"mrope_section is {brief(sections)}; it has to be three whole numbers")
  interleaved = switch(rope, "mrope_interleaved", arch.interleaved)
  if interleaved != arch.interleaved:
    raise ValueError(f"mrope_interleaved is {brief(interleaved)}, which is not supported for {arch.model_type}")
  return mrope.axes(sections, interleaved, pairs)


def _rotary_width(raw: Json, head_width: int) -> int | None:
  width = hf_rope.rotary_width(raw, head_width, 0.25)
  return None if width == head_width else width


def _delta(raw: Json) -> DeltaNet:
  """Read the sizes of the layers of the gated delta rule."""
  key_heads = positive_int(raw, "linear_num_key_heads", 16)
  value_heads = positive_int(raw, "linear_num_value_heads", 32)
  if value_heads % key_heads:
    raise ValueError(
      f"linear_num_value_heads is {value_heads}, which is no multiple of linear_num_key_heads, {key_heads}; mend the one that is wrong"
    )
  return DeltaNet(
    key_heads,
    value_heads,
    key_width=positive_int(raw, "linear_key_head_dim", 128),
    value_width=positive_int(raw, "linear_value_head_dim", 128),
    conv=positive_int(raw, "linear_conv_kernel_dim", 4),
  )


def _mask_id(raw: Json) -> int:
  """Read the id of the mask, whose embedding stands where there is no token yet."""
  found, vocab = raw.get("mask_token_id"), positive_int(raw, "vocab_size")
  if not is_whole(found) or not 0 <= found < vocab:
    raise ValueError(f"mask_token_id is {brief(found)}; it has to be the id of the mask token, below {vocab}")
  return found


def _row(raw: Json) -> tuple[str, Architecture]:
  """Find the row of ARCHITECTURES that a config belongs to, and its name."""
  names = raw.get("architectures") or []
  if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
    raise ValueError(f"architectures is {brief(names)}; it has to be a list of names")
  found = _architecture(names, raw.get("model_type"))
  if found not in ARCHITECTURES:
    raise ValueError(f"{some([found])} is not supported; the supported architectures are {', '.join(ARCHITECTURES)}")
  arch = ARCHITECTURES[found]
  if raw.get("model_type") not in (None, arch.model_type):
    raise ValueError(
      f"architectures names {found}, whose model_type is {arch.model_type!r}, and model_type is {brief(raw['model_type'])}; "
      "mend the one that is wrong"
    )
  return found, arch


def _head_width(raw: Json, arch: Architecture) -> int:
  d_model, heads = positive_int(raw, "hidden_size"), positive_int(raw, "num_attention_heads")
  if "head_dim" not in raw and arch.head_width:
    head_width = arch.head_width
  elif raw.get("head_dim") is None and d_model % heads:
    raise ValueError(
      f"hidden_size {d_model} is not a multiple of num_attention_heads {heads}, and there is no head_dim"
    )
  else:
    head_width = positive_int(raw, "head_dim", d_model // heads)
  if head_width % 2:
    raise ValueError(f"the heads are {head_width} wide, and the rotary embedding needs an even width")
  return head_width


def _architecture(names: Sequence[str], model_type: Any) -> str:
  """Name the architecture of a config; that of its model_type, as transformers does, where it names none."""
  if names:
    return ", ".join(names)
  of_type = [name for name, arch in ARCHITECTURES.items() if arch.model_type == model_type]
  return of_type[0] if of_type else f"model_type {brief(model_type)}" if model_type else "no architecture"


def _moe(raw: Json) -> MoE:
  """Read the sizes of a mixture of experts; transformers 5 calls their number num_local_experts, and 4 num_experts."""
  experts = positive_int(raw, "num_local_experts" if "num_local_experts" in raw else "num_experts")
  return MoE(experts, positive_int(raw, "num_experts_per_tok"), renormalise=switch(raw, "norm_topk_prob"))


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
  special = {
    "bos_token_id": None,
    "eos_token_id": list(eos_id) if isinstance(eos_id, Sequence) else eos_id,
    "pad_token_id": pad_id,
  }
  name = _name(cfg)
  config = {"architectures": [name]} | _keys(cfg, ARCHITECTURES[name]) | {"torch_dtype": dtype}
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  directories.write_json(directory / "config.json", config | special)
  directories.write_json(directory / "generation_config.json", {k: v for k, v in special.items() if v is not None})


def _name(cfg: DecoderConfig) -> str:
  """The first architecture whose config.json can say what the model is."""

  def says(name: str, arch: Architecture) -> bool:
    try:
      return described({"architectures": [name]} | _keys(cfg, arch)) == dataclasses.replace(cfg, adapter_scale=1.0)
    except ValueError:
      return False

  for name, arch in ARCHITECTURES.items():
    if says(name, arch):
      return name
  raise ValueError("no architecture has these norms and biases of queries and keys, with or without experts")


def _keys(cfg: DecoderConfig, arch: Architecture) -> Json:
  """The keys of a config.json of this architecture that says what the model is, if it can."""
  if arch.tensor_names == "llada":
    return {"model_type": arch.model_type} | hf_llada.as_llada(cfg)
  if arch.sees:
    raise ValueError("a model that sees images is written like the directory that it comes from alone")
  key, activation = arch.activation
  config = {
    "model_type": arch.model_type,
    "vocab_size": cfg.vocab,
    "hidden_size": cfg.d_model,
    "num_hidden_layers": cfg.layers,
    "num_attention_heads": cfg.heads,
    "num_key_value_heads": cfg.kv_heads,
    "head_dim": cfg.head_width,
    "intermediate_size": cfg.ff_width,
    key: activation,
    **arch.layers.write(cfg),
    "rms_norm_eps": cfg.norm_eps,
    "tie_word_embeddings": cfg.tied,
    "max_position_embeddings": cfg.max_positions,
  }
  if arch.attention_bias and cfg.out_bias:
    config["attention_bias"] = True
  if not arch.causal:
    config["mask_token_id"] = cfg.mask_id
  if arch.gemma:
    config["query_pre_attn_scalar"] = cfg.query_scalar or cfg.head_width
  if cfg.moe:
    config |= {
      "moe_intermediate_size": cfg.ff_width,
      "num_experts": cfg.moe.experts,
      "num_experts_per_tok": cfg.moe.per_token,
      "norm_topk_prob": cfg.moe.renormalise,
      "decoder_sparse_step": 1,
      "mlp_only_layers": [],
    }
  return config


def copy(like: pathlib.Path, directory: pathlib.Path, dtype: str) -> None:
  """Copy all but the weights of a model directory, with another dtype, and with what a reader may look for in vain."""
  raw = directories.read_json(like / "config.json")
  name = _architecture(raw.get("architectures") or (), raw.get("model_type"))
  raw |= {"architectures": [name], "model_type": ARCHITECTURES[name].model_type}
  for key in {"dtype", "torch_dtype"} & raw.keys() or {"torch_dtype"}:
    raw[key] = dtype
  directories.write_json(directory / "config.json", raw)
  directories.copy(like, directory, directories.COMPANIONS)
