"""DRPO: a quadratic penalty instead of DPPO's mask, so that the gradient fades out toward the boundary and turns back beyond it
(arXiv:2606.09821).

cpu    python -m opd_jax.train --config=configs/drpo.py --workdir=runs/drpo
       2 cores, 5 minutes of training beside other work, accuracy 0.18 -> 0.75, greedy 0.23 -> 0.98 (seed 0)
hf     --config=configs/drpo.py:hf      any Hugging Face directory and a JSONL file of problems with answers
paper  --config=configs/drpo.py:paper   the published hyper-parameters of Qwen3-4B, 800 steps

The published threshold is 12.5. A probability moves by at most 1, so with it every token keeps between 0.92 and 1.08 of its
gradient: no boundary is ever reached, and what is trained is close to a plain importance-weighted policy gradient
(--config.surrogate.kind=is). `paper` has it as published; the other scales have 0.15, the boundary that the method describes.
The sum over a row's tokens is divided by the horizon, and AdamW has .9 and .999 at a constant rate, as published. Ours are warm-up at
the scales cpu and hf, and of `paper` the data and the evaluation: DAPO's 17k problems and AIME24, where it took about 13k of them and
AIME25 besides.
"""

from opd_jax.config import at_scale, policy_gradient


def get_config(scale: str = "cpu"):
  c = policy_gradient(at_scale(scale, recipe="policy_gradient"), scale)
  c.advantage.kind = "group"
  c.surrogate.kind = "drpo"
  c.surrogate.threshold = 0.15
  c.objective.normaliser = "constant"
  if scale == "paper":
    c.surrogate.threshold = 12.5
  return c
