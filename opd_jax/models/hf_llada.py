"""config.json of LLaDA (arXiv:2502.09992), whose keys are its own: read as the Llama that it is without a causal mask, and written."""

from opd_jax.errors import brief
from opd_jax.models.decoder_config import DecoderConfig
from opd_jax.models.hf_values import Json, positive_int, switch

LLAMA_OF = {  # the key of a Llama's config.json by LLaDA's
  "d_model": "hidden_size",
  "n_layers": "num_hidden_layers",
  "n_heads": "num_attention_heads",
  "n_kv_heads": "num_key_value_heads",
  "mlp_hidden_size": "intermediate_size",
  "max_sequence_length": "max_position_embeddings",
}
SAME = ("rms_norm_eps", "rope_theta", "mask_token_id", "quantization_config")  # keys that both have
ONLY = {  # the values with which LLaDA computes what decoder.py does
  "rope": True,
  "rope_full_precision": True,
  "alibi": False,
  "include_bias": False,
  "include_qkv_bias": False,
  "layer_norm_type": "rms",
  "block_type": "llama",
  "activation_type": "silu",
  "attention_layer_norm": False,
  "input_emb_norm": False,
  "scale_logits": False,
  "block_group_size": 1,  # tensors of larger groups have other names
}
NEEDED = (
  "rope",
  "layer_norm_type",
  "block_type",
  "activation_type",
)  # of these LLaDA's own code has other values where config.json has none
DEFAULTS = {"rms_norm_eps": 1e-5, "rope_theta": 10_000.0}  # of LLaDA's own code, where config.json has none


def as_llama(raw: Json) -> Json:
  """Turn the object of a config.json of LLaDA into that of a Llama.

  Raises:
    ValueError: a switch is missing or has a value that decoder.py would not follow, as a sentence without its full stop.
  """
  if missing := [key for key in NEEDED if key not in raw]:
    raise ValueError(
      f"there is no {missing[0]}, and without it LLaDA is another model; only {brief(ONLY[missing[0]])} is supported"
    )
  for key, only in ONLY.items():
    value = raw.get(key, only)
    if value != only or isinstance(value, bool) != isinstance(only, bool):
      raise ValueError(f"{key} is {brief(value)}; only {brief(only)} is supported")
  positive_int(raw, "n_heads")
  named = {theirs: raw[ours] for ours, theirs in LLAMA_OF.items() if raw.get(ours) is not None}
  named |= DEFAULTS | {key: raw[key] for key in SAME if raw.get(key) is not None}
  if raw.get("mlp_hidden_size") is None:
    named["intermediate_size"] = positive_int(raw, "mlp_ratio", 4) * positive_int(raw, "d_model")
  rows = raw.get("embedding_size") or raw.get("vocab_size")
  return named | {"vocab_size": rows, "tie_word_embeddings": switch(raw, "weight_tying", True)}


def as_llada(cfg: DecoderConfig) -> Json:
  """Write the keys of a config.json of LLaDA that says what the model is, if it can."""
  sizes = (cfg.d_model, cfg.layers, cfg.heads, cfg.kv_heads, cfg.ff_width, cfg.max_positions)
  return {
    **dict(zip(LLAMA_OF, sizes, strict=True)),
    "vocab_size": cfg.vocab,
    "embedding_size": cfg.vocab,
    "rms_norm_eps": cfg.norm_eps,
    "rope_theta": cfg.rope_theta,
    "weight_tying": cfg.tied,
    "mask_token_id": cfg.mask_id,
    **ONLY,
  }
