"""POPD: the horizon grows by a staircase while the student trains (arXiv:2605.31490).

cpu    python -m opd_jax.train --config=configs/popd.py --workdir=runs/popd
       2 cores, about 2 minutes, accuracy 0.19 -> 0.77 (0.75 to 0.80 over three seeds)
hf     --config=configs/popd.py:hf      any two Hugging Face directories and a JSONL file
paper  --config=configs/popd.py:paper   1152 + 9 tokens a step; AIME24 51.0 in 10.1 h on 8 H20 (paper)

The paper gives the growth (9 tokens a step) and not the start H_0; 1152 is ours, from its published hours. With it the
558 steps end at 6165 tokens, 0.40 of the maximum. The cpu scale starts at a tenth of the maximum and reaches all of it.
"""

from opd_jax.config import at_scale


def get_config(scale: str = "cpu"):
  c = at_scale(scale)
  c.horizon.kind = "progressive"
  if scale == "paper":
    c.horizon.start = 1152
    c.horizon.growth = 9
    c.horizon.quantum = 1280
  else:
    c.horizon.start = c.horizon.max // 10
    c.horizon.growth = max(1, c.horizon.max // 50)
    c.horizon.quantum = max(1, c.horizon.max // 4)
  return c
