"""DPPO: a policy gradient masked where a token's probability has moved too far, instead of its ratio (arXiv:2602.04879).

cpu    python -m opd_jax.train --config=configs/dppo.py --workdir=runs/dppo
       2 cores, 7 minutes of training beside other work, accuracy 0.18 -> 0.75, greedy 0.23 -> 0.98 (seed 0)
hf     --config=configs/dppo.py:hf      any Hugging Face directory and a JSONL file of problems with answers
paper  --config=configs/dppo.py:paper   the published threshold and batch (256 prompts x 16, 8 mini-batches); the model, lengths, steps and
       weight decay are DRPO's, for comparison

|pi - mu| > 0.15 on the way out is masked (--config.surrogate.divergence=kl --config.surrogate.threshold=0.05, or topk_tv, topk_kl
over the sampler's 20 most likely tokens). Advantages are rewards less the group's mean, not divided. Not stated in the paper,
and ours: a mean over tokens, betas, warm-up. Ratios are cut at 20, as in the paper's code.
"""

from opd_jax.config import at_scale, policy_gradient


def get_config(scale: str = "cpu"):
  c = policy_gradient(at_scale(scale, recipe="policy_gradient"), scale)
  c.advantage.kind = "group"
  c.surrogate.kind = "dppo"
  c.surrogate.threshold = 0.15
  c.surrogate.cap = 20.0
  if scale == "paper":
    c.batch = 256
    c.mini_batches = 8
    c.rollouts_per_prompt = 16
  return c
