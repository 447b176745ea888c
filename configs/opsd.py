"""OPSD: the student learns from itself, once it has been shown the reference solution (arXiv:2601.18734).

cpu    python -m opd_jax.train --config=configs/opsd.py --workdir=runs/opsd
       the built-in short-pupil, who repeats a solution that it is shown: 2 cores, 3 minutes of training on a busy machine, accuracy
       0.21 -> 0.93, greedy 0.20 -> 0.98 (seed 0, without the clip; with --config.objective.entry_clip=0.05 it falls to 0.09)
hf     --config=configs/opsd.py:hf      any Hugging Face directory and a JSONL file of problems with solutions: name their field with
       --config.data.solution_field
paper  --config=configs/opsd.py:paper   the published hyper-parameters, through an adapter of rank 64

Forward KL of the student from its frozen initial self, each entry cut at 0.05 nats at the scales hf and paper; a mean over each row's
tokens. What the clip does to the gradient's direction is logged as `opposed`: an entry at the clip has no gradient, and what is left can
raise an id that the student overrates already. At the scale cpu that undoes the method, and there is no clip.
Published rollouts are drawn at temperature 1.1 with top-p .95 and top-k 20, and so are not on-policy; only `paper` has that. The
wording of the teacher's prompt was not at hand, and is ours, and so are betas and clipping.
"""

from opd_jax.config import at_scale, shown_to_pupil


def get_config(scale: str = "cpu"):
  c = at_scale(scale, recipe="self_distillation")
  c.teacher = "initial"
  c.horizon.kind = "full"
  c.objective.kind = "forward_kl"
  c.objective.normaliser = "sequence"
  if scale == "cpu":
    return shown_to_pupil(c)
  c.objective.entry_clip = 0.05
  c.lora.rank = 64
  c.lora.alpha = 128.0
  c.optimizer.lr = 5e-6
  if scale == "paper":
    c.student = "Qwen3-1.7B"  # a local copy of the hub directory
    c.data.path = "openthoughts-math.jsonl"
    c.data.solution_field = "solution"
    c.data.max_prompt = 2048
    c.context.max_tokens = 8192
    c.steps = 100
    c.batch = 32
    c.rollouts_per_prompt = 1
    c.horizon.max = 1024
    c.objective.support = "full"
    c.objective.tail = "bucket"
    c.sampling.temperature = 1.1
    c.sampling.top_p = 0.95
    c.sampling.top_k = 20
  return c
