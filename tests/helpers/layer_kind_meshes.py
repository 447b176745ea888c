"""A rollout and an update of a model whose layers differ, on one fake device and on eight that share its key/value heads.

Prints one JSON object; a process of its own, since a process cannot change its devices.
"""

import dataclasses
import json
import sys

import jax

from opd_jax.models import blockwise
from opd_jax.models.decoder import DeltaNet, LayerKind
from opd_jax.runtime import mesh as meshes
from tests.conftest import STUDENT
from tests.helpers.prompt_groups import run

KINDS = (LayerKind(5), LayerKind(rotary=False), LayerKind(7, theta=300.0))
MODELS = {
  "olmo3": {"whole_qk_norm": True, "norms": "after", "layer_kinds": KINDS},
  "gemma3": {
    "norms": "both",
    "zero_centred_norms": True,
    "activation": "gelu_pytorch_tanh",
    "scaled_embedding": True,
    "query_scalar": 5,
    "layer_kinds": KINDS,
    "qkv_bias": True,
    "out_bias": True,
  },
  "qwen3.5": {
    "rotary_width": 4,
    "zero_centred_norms": True,
    "gated_attention": True,
    "layer_kinds": (LayerKind(mixer="delta"), LayerKind(), LayerKind(mixer="delta")),
    "delta": DeltaNet(key_heads=4, value_heads=8, key_width=8, value_width=6),
  },
}

if __name__ == "__main__":
  blockwise.WORTHWHILE = 8  # so that windows go through the blocks of every device
  model = dataclasses.replace(STUDENT, layers=3, **MODELS[sys.argv[1]])
  eight, one = meshes.make(data=2, tensor=4), meshes.make(devices=jax.devices()[:1])
  print(json.dumps({"one": run(one, 4, model), "eight": run(eight, 4, model)}))
