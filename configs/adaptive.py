"""Adaptive: the horizon is chosen while training, among a few compiled widths; rules in opd_jax/horizon/adaptive.py.

cpu    python -m opd_jax.train --config=configs/adaptive.py --workdir=runs/adaptive
       2 cores, about 1 minute, accuracy 0.19 -> 0.73 (0.71 to 0.75 over three seeds) with half of OPD's tokens (0.78)
hf     --config=configs/adaptive.py:hf      any two Hugging Face directories and a JSONL file
paper  --config=configs/adaptive.py:paper   the published hyper-parameters of arXiv:2605.31490, with this horizon

Every tenth step speaks to the end and is learned from like any other; the steps between stop at the shortest width beyond
which a token has no more than 1.5 times the divergence of one within (`horizon.threshold`). The other rules:

  --config.horizon.kind=agreement    the shortest whose gradient points where the full one does (ADWIN, arXiv:2605.28396)
  --config.horizon.kind=saturation   longer when the divergence within has stopped falling
  --config.horizon.kind=drift        as far as student and teacher agree (Prune-OPD's cap, arXiv:2605.07804)
"""

from opd_jax.config import at_scale


def get_config(scale: str = "cpu"):
  c = at_scale(scale)
  c.horizon.kind = "look"
  c.horizon.start = c.horizon.max // c.log.bins  # widths have to be edges of the bins by position
  c.horizon.every = 10
  return c
