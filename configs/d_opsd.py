"""d-OPSD: a masked diffusion model learns from itself, once it has been shown part of its own finished answer (arXiv:2606.18195).

cpu    python -m opd_jax.train --config=configs/d_opsd.py --workdir=runs/d_opsd
       the built-in model of 4 x 4 sudokus, the arm "d-OPSD" of the study `diffusion`: 80 to 90 s on one core; accuracy 0.348 [0.287, 0.413] ->
       0.383 [0.319, 0.451], greedy 0.422 -> 0.438, pass@4 0.594 -> 0.586 (seed 0; five seeds are on the study's page)
hf     --config=configs/d_opsd.py:hf      any directory of LLaDA or Dream, and a JSONL file of problems with answers
paper  --config=configs/d_opsd.py:paper   the published hyper-parameters for GSM8K, through an adapter

Reverse KL of the student from its frozen initial self, at the masks of which the teacher is surest, each entry cut at 0.05 nats beyond the
scale cpu, where the cut makes the student forget its task; without the cut the paper's student collapses. A quarter of the masks is revealed. Paper and
released code differ: the code reveals from the next block on (--config.context.reveal=ahead), sums over positions
(--config.diffusion.reduction=sum), restricts both sides to the teacher's 20 likeliest tokens (--config.objective.support=teacher_topk
--config.objective.k=20 --config.objective.tail=renormalise) and makes four updates of a rollout (--config.diffusion.parts=4). The defaults are the paper's, but for three
that only the code has: the cut, the canvases that are recorded, and that masks are compared within the block that is being filled. Of the whole canvas, as the paper
says (--config.diffusion.in_block=False), the teacher is surest of what stands in the prompt and behind the answer's end, and teaches nothing (docs/diffusion.md).
The scale paper makes the code's four updates of a rollout. It trains q, k, v and up of its seven targets, since LLaDA has no other of these names.
"""

from opd_jax.config import at_scale


def get_config(scale: str = "cpu"):
  c = at_scale(scale, recipe="diffusion")
  c.teacher = "initial"
  c.horizon.kind = "full"
  c.objective.entry_clip = 0.05
  c.diffusion.in_block = True
  c.rollouts_per_prompt = 8
  c.batch = 8
  if scale == "cpu":
    c.objective.entry_clip = 0.0
    c.student = "builtin:sudoku-student"
    c.data.path = "task:sudoku"
    c.data.max_prompt = 17  # tokens of a sudoku
    c.denoising.length = 20
    c.denoising.block = 10
    c.horizon.max = 6  # three or four tokens a step
    c.sampling.temperature = 0.9
    c.diffusion.states = "all"
    c.batch = 32
    c.rollouts_per_prompt = 4
    c.optimizer.lr = 5e-5
    c.steps = 80
    c.eval.every = 40
    c.eval.greedy = True
    c.eval.k = 4
    c.eval.pass_at = (1, 4)
    return c
  c.lora.rank = 128
  c.lora.alpha = 64.0
  c.lora.targets = ("q", "k", "v", "up")
  c.optimizer.lr = 5e-6
  c.optimizer.b2 = 0.99
  c.optimizer.weight_decay = 0.1
  c.optimizer.clip = 0.2
  c.sampling.temperature = 0.9
  c.horizon.max = 128
  c.diffusion.rows = 16
  if scale == "paper":
    c.student = "LLaDA-8B-Instruct"  # a local copy of the hub directory
    c.data.path = "gsm8k-train.jsonl"
    c.data.max_prompt = 512
    c.steps = 106  # of four updates each, the 425 that are published
    c.diffusion.parts = 4
    c.batch = 4
    c.eval.every = 25
    c.eval.path = "gsm8k-test.jsonl"
    c.eval.k = 1
    c.eval.pass_at = (1,)
    c.eval.temperature = 0.0
    c.mesh.fsdp = -1
    c.mesh.data = 1
    c.objective.support = "full"
    c.objective.tail = "bucket"
  return c
