"""A masked diffusion model of a few thousand random weights, and a small run of it."""

import pathlib
from typing import Any

import jax

from opd_jax import config as configs
from opd_jax.models import decoder, hf
from opd_jax.tasks import chain

MASK = len(chain.SYMBOLS)
CFG = decoder.DecoderConfig(
  vocab=MASK + 1,
  d_model=16,
  layers=1,
  heads=2,
  kv_heads=2,
  head_width=8,
  ff_width=24,
  max_positions=256,
  tied=False,
  causal=False,
  mask_id=MASK,
  tensor_names="llada",
)


def write(path: pathlib.Path) -> str:
  """Write its directory, with the tokenizer of the task chain, which has no word for the mask."""
  hf.write(path, CFG, decoder.init(CFG, jax.random.key(0), scale=0.4), pad_id=0, eos_id=1, dtype="float32")
  chain.TOKENIZER.save(path)
  return str(path)


def small(directory: str, **changes: Any):
  """A config of d-OPSD of four steps, with canvases of 16 tokens in two blocks, two tokens a step."""
  sizes = {
    "batch": 4,
    "student": directory,
    "teacher": "initial",
    "optimizer.lr": 1e-2,
    "steps": 4,
    "horizon.kind": "full",
  }
  sizes |= {"rollouts_per_prompt": 2, "horizon.max": 8, "denoising.length": 16, "denoising.block": 8}
  sizes |= {"eval.every": 0, "checkpoint.every": 2, "log.tensorboard": False, "compile_cache": "off", "log.bins": 4}
  sizes |= {"data.path": "task:chain", "data.max_prompt": 64, "diffusion.states": "all"}
  return configs.override(configs.default("diffusion"), sizes | changes)
