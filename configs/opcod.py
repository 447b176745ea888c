"""OPCoD: two students tutor each other by comments on their rollouts (arXiv:2606.14368).

cpu    python -m opd_jax.train --config=configs/opcod.py --workdir=runs/opcod
       the built-in specialists, one of sums and one of differences: 2 cores, 70 s of training beside other work, accuracy over both domains
       0.81 -> 0.98 and 0.59 -> 0.98, greedy 0.81 -> 1.00 and 0.59 -> 1.00 (seed 0). With gates that never open, SDPO alone, it is 0.91 and
       0.95 after half the steps (--config.codistillation.gate=never --config.steps=40 --config.codistillation.phase_steps=10)
hf     --config=configs/opcod.py:hf      any two Hugging Face directories of one tokenizer, and a JSONL file of problems with answers and
       their domains (--config.data.domain_field)
paper  --config=configs/opcod.py:paper   the published hyper-parameters

The student of each phase learns from its own moving average, which is shown the group's first right response and the other student's
comment on the row. A tutor that is too far behind does not comment (--config.codistillation.gate, --config.codistillation.tau). JSD at
1/2 over the student's top 100 and a tail, importance weights cut at 2. A row's teacher may be shown the row's own response, where that is
the first right one (context.own=True, of which the paper says nothing; SDPO's code has a switch against it). The wording of prompts was not
at hand, and is ours.
"""

from opd_jax.config import at_scale, taught_by_feedback, tutored_by_specialist


def get_config(scale: str = "cpu"):
  c = taught_by_feedback(at_scale(scale, recipe="codistillation"))
  c.context.own = True
  c.context.feedback = "always"
  if scale == "cpu":
    c.batch = 8
    c.objective.support = "full"  # of 31 symbols
    c = tutored_by_specialist(c)
    c.steps = 80
    c.codistillation.phase_steps = 20
    c.codistillation.tau = 0.8  # they begin about .7 behind each other
    c.codistillation.validation_prompts = 64
    c.codistillation.validation_k = 1
    return c
  c.optimizer.lr = 1e-5
  c.codistillation.peer = "PEER_DIR"  # to be overridden
  if scale == "paper":
    c.student = "Qwen3-8B-physics"  # local specialists, each trained on solutions of its own domain
    c.codistillation.peer = "Qwen3-8B-materials"
    c.data.path = "sciknoweval.jsonl"
    c.data.domain_field = "domain"
    c.data.max_prompt = 2048
    c.context.max_tokens = 10240
    c.comment.max_prompt = 10240
    c.codistillation.validation_k = 16
    c.steps = 200
    c.batch = 32
    c.horizon.max = 4096
    c.objective.tail = "bucket"
    c.optimizer.warmup = 5
    c.optimizer.weight_decay = 0.01
  return c
