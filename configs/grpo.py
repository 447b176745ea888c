"""GRPO: rollouts are compared with the others of their prompt by a verifier, and no teacher is asked (arXiv:2402.03300).

cpu    python -m opd_jax.train --config=configs/grpo.py --workdir=runs/grpo
       2 cores, 4 minutes of training on a busy machine, accuracy 0.18 -> 0.76, greedy 0.23 -> 0.98 (seed 0)
hf     --config=configs/grpo.py:hf      any Hugging Face directory and a JSONL file of problems with answers

PPO's clip with the two bounds of DAPO (arXiv:2503.14476), advantages divided by the group's standard deviation, a mean over
tokens. Others are keys: --config.advantage.kind=group with --config.objective.normaliser=constant is Dr. GRPO, leave_one_out is
RLOO, reinforce_pp is REINFORCE++ with the group's mean as baseline; --config.mixture.initial=0.04 adds the published KL to the initial
student, which DAPO leaves out; --config.groups.equal=resample is DAPO's dynamic sampling, --config.reward.overlong=soft its
punishment of long responses.
"""

from opd_jax.config import at_scale, policy_gradient


def get_config(scale: str = "cpu"):
  c = policy_gradient(at_scale(scale, recipe="policy_gradient"), scale)
  c.advantage.kind = "group_std"
  c.surrogate.kind = "ppo_clip"
  c.surrogate.clip_low = 0.2
  c.surrogate.clip_high = 0.28
  return c
