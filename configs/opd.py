"""OPD: on-policy distillation with full rollouts, the baseline (arXiv:2605.31490).

cpu    python -m opd_jax.train --config=configs/opd.py --workdir=runs/opd
       2 cores, about 2 minutes, accuracy 0.19 -> 0.78 (0.75 to 0.84 over three seeds)
hf     --config=configs/opd.py:hf      any two Hugging Face directories and a JSONL file
paper  --config=configs/opd.py:paper   the published hyper-parameters; AIME24 49.3 in 29.7 h on 8 H20 (paper)
"""

from opd_jax.config import at_scale


def get_config(scale: str = "cpu"):
  c = at_scale(scale)
  c.horizon.kind = "full"
  return c
