"""CCOPD: the student reads a conversation, its frozen self everything at once; the last answer is compared (arXiv:2605.30251).

cpu    python -m opd_jax.train --config=configs/ccopd.py --workdir=runs/ccopd
       a character model on the built-in task relay, through an adapter: 2 cores, 65 s in all, RAW 0.17 -> 0.87 on 128 problems, and
       0.09 -> 1.00 where it says its likeliest tokens (seed 0; python -m opd_jax.study ccopd asks what that is worth)
hf     --config=configs/ccopd.py:hf      any Hugging Face directory with a chat template, and a JSONL file of problems
       (cut into conversations) or of conversations
paper  --config=configs/ccopd.py:paper   the published hyper-parameters; Qwen3-8B, GSM8K told turn by turn: 66.0 -> 82.5,
       about 132 GPU hours on RTX 4090 (paper)

Reverse KL over the whole vocabulary, a mean over each row's tokens. Not stated in the paper, and ours: AdamW's betas, no
weight decay, clipping at norm 1, a constant rate after warm-up, top-p 1 (the paper's runs: 0.95, off-policy by that
much: --config.sampling.top_p=0.95), an answer cut at the limit is trained without an end, the end-of-turn token is
trained, and whether conversations are spoken anew (--config.context.refresh=N steps; the paper keeps them).

The paper's controls: --config.objective.kind=forward_kl, --config.context.turns=any (earlier replies are trained too).
All weights instead of an adapter: --config.lora.rank=0.
"""

from opd_jax.config import at_scale


def get_config(scale: str = "cpu"):
  c = at_scale(scale, recipe="ccopd")
  c.horizon.kind = "full"
  c.teacher = "initial"
  c.objective.normaliser = "sequence"
  c.lora.rank = 16
  c.data.on_bad_line = "skip"  # some problems cannot be told turn by turn
  if scale == "cpu":
    c.student = "builtin:talker"
    c.data.path = "task:relay"
    c.data.max_prompt = 512
    c.horizon.max = 32
    c.context.turn_tokens = 32
    c.lora.rank = 8
    c.lora.alpha = 16.0
    c.steps = 60
    c.optimizer.lr = 2e-4
    c.log.bins = 8
  if scale == "hf":
    c.optimizer.lr = 3e-5
    c.data.max_prompt = 4096
  if scale == "paper":
    c.student = "Qwen3-8B"
    c.data.path = "gsm8k.jsonl"
    c.data.prompt_field = "question"
    c.data.max_prompt = 4096
    c.eval.path = "gsm8k-test.jsonl"
    c.eval.prompts = 103
    c.eval.k = 10
    c.eval.every = 500
    c.steps = 3000
    c.batch = 8
    c.rollouts_per_prompt = 1
    c.micro_batch = 8
    c.horizon.max = 4096
    c.context.turn_tokens = 512
    c.objective.support = "full"
    c.optimizer.lr = 3e-5
    c.optimizer.warmup = 90
    c.buckets = 2
  return c
