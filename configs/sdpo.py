"""SDPO: the student learns from itself, once it has been shown what others of its group found, or why it was wrong (arXiv:2601.20802).

cpu    python -m opd_jax.train --config=configs/sdpo.py --workdir=runs/sdpo
       the built-in short-pupil, who repeats a solution that it is shown: 2 cores, 2 minutes of training, accuracy 0.21 -> 0.91 after 40
       steps (greedy 0.20 -> 1.00) and 0.59 after 60 (seed 0): nothing holds a teacher that follows its student
hf     --config=configs/sdpo.py:hf      any Hugging Face directory and a JSONL file of problems with answers
paper  --config=configs/sdpo.py:paper   the published hyper-parameters of the regime without feedback

Each row's teacher reads the first right response of the other rollouts of its prompt, or, where none is right, what the verifier says
of the row's own (--config.context.feedback: none, without_demonstration, always); a row without a context is not trained.
The teacher is the student's moving average (--config.teacher_update.kind: frozen, ema, current, mix). JSD at 1/2 over the student's top
100 and a tail, importance weights cut at 2. The regime with feedback has reverse KL, top 20 and rate .01:
--config.objective.kind=reverse_kl --config.objective.k=20 --config.teacher_update.rate=0.01 --config.optimizer.lr=1e-6. The wording of
the teacher's prompt was not at hand, and is ours.
"""

from opd_jax.config import at_scale, shown_to_pupil, taught_by_feedback


def get_config(scale: str = "cpu"):
  c = taught_by_feedback(at_scale(scale, recipe="self_distillation"))
  if scale == "cpu":
    c.batch = 8
    c.objective.support = "full"  # of 31 symbols
    return shown_to_pupil(c)
  c.optimizer.lr = 1e-5
  if scale == "paper":
    c.student = "Qwen3-8B"  # a local copy of the hub directory
    c.data.path = "sciknoweval.jsonl"
    c.data.max_prompt = 2048
    c.context.max_tokens = 10240
    c.batch = 32
    c.horizon.max = 4096
    c.objective.tail = "bucket"
    c.optimizer.warmup = 5
    c.optimizer.weight_decay = 0.01
  return c
