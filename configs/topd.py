"""TOPD: every rollout stops after 10% of the maximum (arXiv:2605.31490).

cpu    python -m opd_jax.train --config=configs/topd.py --workdir=runs/topd
       2 cores, about 1 minute of which 12 s train, accuracy 0.19 -> 0.74 (0.72 to 0.75 over three seeds)
hf     --config=configs/topd.py:hf      any two Hugging Face directories and a JSONL file
paper  --config=configs/topd.py:paper   1536 of 15360 tokens; AIME24 50.7 in 5.3 h on 8 H20 (paper)

Another length: --config.horizon.ratio=0.25, or --config.horizon.ratio=0 --config.horizon.length=100.
"""

from opd_jax.config import at_scale


def get_config(scale: str = "cpu"):
  c = at_scale(scale)
  c.horizon.kind = "truncated"
  c.horizon.ratio = 0.1
  if scale == "cpu":
    c.steps = 120  # each costs a tenth of a full one
  return c
