"""Small models in directories, what is changed in them, and how they are refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.errors import InputError
from opd_jax.models import decoder, hf
from opd_jax.models.moe import MoE

TINY = decoder.DecoderConfig(
  vocab=13, d_model=8, layers=2, heads=2, kv_heads=1, head_width=6, ff_width=12, qk_norm=True, tied=False
)
LLAMA3 = {
  "rope_type": "llama3",
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,
}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
FAMILIES = {
  "qwen3": {"qk_norm": True},
  "qwen3-moe": {"qk_norm": True, "moe": MoE(5, 2, renormalise=True)},
  "qwen2": {"qk_norm": False, "qkv_bias": True, "rope_theta": 1e6},
  "llama": {"qk_norm": False, "rope_scaling": decoder.RopeScaling(8.0, 1.0, 4.0, 16)},
  "smollm3": {"qk_norm": False, "layer_kinds": (decoder.LayerKind(), decoder.LayerKind(rotary=False))},
  "qwen3.5": {
    "zero_centred_norms": True,
    "gated_attention": True,
    "rotary_width": 4,
    "layer_kinds": (decoder.LayerKind(mixer="delta"), decoder.LayerKind()),
    "delta": decoder.DeltaNet(key_heads=2, value_heads=4, key_width=4, value_width=6),
  },
  "olmo3": {"whole_qk_norm": True, "norms": "after", "layer_kinds": (decoder.LayerKind(5), decoder.LayerKind())},
}


def randomised(cfg: decoder.DecoderConfig, seed: int = 0):
  """Parameters in which every norm and bias is seen."""
  rng = np.random.default_rng(seed)

  def make(path, shape):
    mean = 1.0 if "norm" in path[-1].key else 0.0
    return jnp.asarray(mean + 0.3 * rng.standard_normal(shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(make, decoder.shapes(cfg), is_leaf=lambda x: isinstance(x, tuple))


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path))


def refused(directory) -> str:
  with pytest.raises(InputError) as e:
    hf.check_directory(directory)
  assert "\n" not in str(e.value)
  return str(e.value)


def edit(directory, **changes):
  path = directory / "config.json"
  raw = json.loads(path.read_text()) | changes
  path.write_text(json.dumps({k: v for k, v in raw.items() if v != "absent"}))
