"""Sizes of public models, so that a plan needs no download: the parts of their config.json that it needs.

A name may be written with its organisation ("Qwen/Qwen3-8B"), and in any case of letters. The Qwen2.5 entries
are those of the instruction-tuned models, whose position limit is the lower one.
"""

from typing import Any

Config = dict[str, Any]

QWEN3: Config = {
  "architectures": ["Qwen3ForCausalLM"],
  "head_dim": 128,
  "hidden_act": "silu",
  "max_position_embeddings": 40960,
  "num_key_value_heads": 8,
  "rms_norm_eps": 1e-6,
  "rope_theta": 1_000_000,
  "vocab_size": 151936,
}
QWEN2: Config = {
  "architectures": ["Qwen2ForCausalLM"],
  "hidden_act": "silu",
  "max_position_embeddings": 32768,
  "rms_norm_eps": 1e-6,
  "rope_theta": 1_000_000,
  "use_sliding_window": False,
}
LLAMA3: Config = {
  "architectures": ["LlamaForCausalLM"],
  "hidden_act": "silu",
  "max_position_embeddings": 131072,
  "num_key_value_heads": 8,
  "rms_norm_eps": 1e-5,
  "rope_theta": 500_000,
  "vocab_size": 128256,
}

QWEN35: Config = {  # the decoder of released models, which see images too
  "architectures": ["Qwen3_5ForCausalLM"],
  "head_dim": 256,
  "hidden_act": "silu",
  "linear_num_key_heads": 16,
  "max_position_embeddings": 262144,
  "rms_norm_eps": 1e-6,
  "rope_theta": 10_000_000,
  "vocab_size": 248320,
}


def _sizes(d_model: int, layers: int, heads: int, feed_forward: int, tied: bool) -> Config:
  return {
    "hidden_size": d_model,
    "num_hidden_layers": layers,
    "num_attention_heads": heads,
    "intermediate_size": feed_forward,
    "tie_word_embeddings": tied,
  }


def _rope(factor: float) -> Config:
  scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
  return {"rope_scaling": scaling | {"original_max_position_embeddings": 8192}}


def _qwen35(kv_heads: int, value_heads: int, sizes: Config) -> Config:
  return QWEN35 | sizes | {"num_key_value_heads": kv_heads, "linear_num_value_heads": value_heads}


QWEN2_1B = QWEN2 | _sizes(1536, 28, 12, 8960, True) | {"num_key_value_heads": 2, "vocab_size": 151936}
R1_QWEN_1B = QWEN2_1B | {"tie_word_embeddings": False, "max_position_embeddings": 131072, "rope_theta": 10_000}

MODELS: dict[str, Config] = {
  "Qwen3-0.6B": QWEN3 | _sizes(1024, 28, 16, 3072, True),
  "Qwen3-1.7B": QWEN3 | _sizes(2048, 28, 16, 6144, True),
  "Qwen3-4B": QWEN3 | _sizes(2560, 36, 32, 9728, True),
  "Qwen3-8B": QWEN3 | _sizes(4096, 36, 32, 12288, False),
  "Qwen3-14B": QWEN3 | _sizes(5120, 40, 40, 17408, False),
  "Qwen3-32B": QWEN3 | _sizes(5120, 64, 64, 25600, False),
  "Qwen3-30B-A3B": QWEN3
  | _sizes(2048, 48, 32, 6144, False)
  | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
  },
  "Qwen3.5-0.8B": _qwen35(2, 16, _sizes(1024, 24, 8, 3584, True)),
  "Qwen3.5-4B": _qwen35(4, 32, _sizes(2560, 32, 16, 9216, True)),
  "Qwen3.5-9B": _qwen35(4, 32, _sizes(4096, 32, 16, 12288, False)),
  "Qwen3.5-27B": _qwen35(4, 48, _sizes(5120, 64, 24, 17408, False)),
  "Qwen2.5-1.5B": QWEN2_1B,
  "Qwen2.5-7B": QWEN2 | _sizes(3584, 28, 28, 18944, False) | {"num_key_value_heads": 4, "vocab_size": 152064},
  "Qwen2.5-32B": QWEN2 | _sizes(5120, 64, 40, 27648, False) | {"num_key_value_heads": 8, "vocab_size": 152064},
  "DeepSeek-R1-Distill-Qwen-1.5B": R1_QWEN_1B,
  "JustRL-DeepSeek-1.5B": R1_QWEN_1B,  # trained from the one above
  "Llama-3.1-8B": LLAMA3 | _sizes(4096, 32, 32, 14336, False) | _rope(8.0),
  "Llama-3.2-1B": LLAMA3 | _sizes(2048, 16, 32, 8192, True) | {"head_dim": 64} | _rope(32.0),
}


def config(name: str) -> Config | None:
  """Look up the config.json of a public model by its name; None where it is not in `MODELS`."""
  wanted = name.rstrip("/").rpartition("/")[2].lower().removesuffix("-instruct")
  by_lower_case = {known.lower(): model for known, model in MODELS.items()}
  return by_lower_case.get(wanted)
