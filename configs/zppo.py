"""ZPPO: a teacher stands in the prompt and never in the gradient, and hard questions are visited until they are mastered (arXiv:2606.18216).

cpu    python -m opd_jax.train --config=configs/zppo.py --workdir=runs/zppo
       the built-in task subset-sum: 2 cores, 60 s of training, accuracy 0.060 [0.040, 0.088] -> 0.096 [0.071, 0.130], greedy 0.089 -> 0.182 (seed 0, 384 problems).
       GRPO of as many tokens learns as much there (opd_jax/studies/zone)
hf     --config=configs/zppo.py:hf      any two Hugging Face directories and a JSONL file of problems with answers
paper  --config=configs/zppo.py:paper   the published hyper-parameters for Qwen3.5-0.8B with a teacher of 27B; its language data are ours

At the scale cpu the teacher is a function that solves four problems out of five, and candidates are cut instead of written anew: all responses to a
prompt are equally long. The student was shown candidates before, and never told which is right. It is the arm "ZPPO" of the study `zone`, two steps shorter.
Controls and variants are keys: --config.zone.kinds="('ncq',)", hint or prefix; --config.zone.augment=0 is GRPO with a buffer,
--config.zone.replay=0 without it; --config.candidates.wrong_pair, --noconfig.candidates.shuffle, --config.zone.graduation=random.
The published mini-batch is 96 prompts of 384; here a mini-batch is a quarter of a step, with the step's other prompts dealt out.
"""

from opd_jax.config import at_scale, policy_gradient


def get_config(scale: str = "cpu"):
  c = policy_gradient(at_scale(scale, recipe="zone"), scale)
  c.teacher = "DIR"
  c.advantage.kind = "reinforce_pp_nontrivial"
  c.surrogate.kind = "ppo_clip"
  c.surrogate.clip_low = 0.2
  c.surrogate.clip_high = 0.28
  c.surrogate.dual_clip = 10.0
  c.mini_batches = 4
  if scale == "cpu":
    c.student, c.teacher = "builtin:subset-student", ""
    c.data.path = "task:subset-sum"
    c.zone.teacher_function = "opd_jax.tasks.subsets:solver"
    c.batch = 32
    c.steps = 50
    c.horizon.max = 25
    c.optimizer.lr = 3e-5
    c.candidates.compressor = "truncate"
    c.candidates.bcq = "{prompt}{candidates}="
    c.candidates.ncq = "{prompt}{candidates}!="
    c.candidates.hint = "{prompt}/{text}="
    c.candidates.block = ":{text}"
    c.candidates.blocks = 2
    c.candidates.max_tokens = 25
    c.candidates.max_prompt = 80
    c.eval.every = 25
    c.eval.prompts = 384
    c.eval.batch = 384
    c.eval.greedy = True
  if scale == "paper":
    c.student, c.teacher = "Qwen3.5-0.8B", "Qwen3.5-27B"  # local copies of the hub directories
    c.data.max_prompt = 4096
    c.steps = 200
    c.batch = 384
    c.micro_batch = 64
    c.horizon.max = 12288
    c.optimizer.lr = 1e-6
    c.optimizer.warmup = 0
    c.optimizer.weight_decay = 0.1
    c.optimizer.clip = 1.0
    c.candidates.max_prompt = 12288
    c.zone.teacher_prompt = 17408  # a question, a response to it, and the words around both
  return c
