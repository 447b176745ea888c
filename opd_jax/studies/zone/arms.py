"""ZPPO, its parts, its controls and what it is compared with, on subset sums in three tiers, after arXiv:2606.18216.

Seed by seed, all arms start from the same student. A step has `PROMPTS` new prompts, the same in the same order, 8 rollouts of each, and
four updates; what is replayed or asked anew comes on top of that, as does the teacher, so that arms have steps of different cost. All
arms have as many steps as generate `TOKENS` tokens, of plain rollouts, of prompts with candidates and of the teacher together:
`COST` is what a step generates, from the parts of 30 steps of ZPPO (seed 10). The table of the page has the tokens that there really were.

The teacher is no model: `tasks.subsets.solver` finds a solution four times out of five. Its solutions have the form of the student's own
responses, and all responses to a prompt are equally long, so that the compression of the paper has nothing to do (candidates.compressor=truncate).
The student was shown candidates before, and answered with either of two as often (tasks/pretrain.py): that one is right it was never told.

Distillation needs a teacher with probabilities. "on-distill" has the built-in subset-teacher, a model of the student's size that read right
solutions and answers 20% right, and "off-distill" learns right solutions themselves, whatever a teacher says of them; both have one update for each batch of rollouts, as in the paper, and no
buffer, which the paper's have.

The rate is calibrated on runs of 450,000 tokens of seed 10, accuracy (greedy in brackets), means of the last three of five evaluations; before training .060 (.089). GRPO: .109 (.161) at 3e-5, .093
(.124) at 1e-4, .016 (.018) at 3e-4, 0 at 1e-3. ZPPO: .084 (.156) at 3e-5, .084 (.141) at 1e-4, 0 at 1e-3. On seed 11 at 1e-4: .079 (.122) and .098 (.146).
The distilled arms have a rate of their own, at which they are better: on-policy .132 (.175) at 3e-4 and .113 (.156) at 1e-4, off-policy .126 (.178) and
.116 (.174). Their larger rates were not tried. Seeds before `FIRST_SEED` are there to calibrate on. The rules by which claims are judged stand in claims.py.
"""

from typing import Any

from opd_jax.studies.arm_spec import ArmSpec

FIRST_SEED = 20  # those before it are to calibrate on
PROMPTS, RESPONSES = 32, 8
LR, DISTILLED_LR = 3e-5, 3e-4
TOKENS = 410_000  # of a run
EVALUATIONS = 4
COST = {  # tokens of a step
  "plain": 4900,
  "buffer": 6000,
  "asked": 6800,
  "zppo": 7950,
}

BASE: dict[str, Any] = {
  "data.path": "task:subset-sum",
  "student": "builtin:subset-student",
  "teacher": "",
  "horizon.max": 25,
  "batch": PROMPTS,
  "rollouts_per_prompt": RESPONSES,
  "mini_batches": 4,
  "optimizer.lr": LR,
  "zone.teacher_function": "opd_jax.tasks.subsets:solver",
  "candidates.bcq": "{prompt}{candidates}=",
  "candidates.ncq": "{prompt}{candidates}!=",
  "candidates.hint": "{prompt}/{text}=",
  "candidates.block": ":{text}",
  "candidates.blocks": 2,
  "candidates.max_tokens": 25,
  "candidates.max_prompt": 80,
  "eval.prompts": 384,
  "eval.batch": 384,
  "eval.greedy": True,
  "checkpoint.every": 0,
  "log.bins": 1,
  "log.overlap_k": 0,
  "log.samples": 0,
  "log.tensorboard": False,
}
NO_BUFFER = {"zone.replay": 0.0}
NO_CANDIDATES = {"zone.augment": 0.0}
SUPERVISED: dict[str, Any] = {
  key: value for key, value in BASE.items() if key.partition(".")[0] not in ("zone", "candidates", "mini_batches")
}


DISTILLED: dict[str, Any] = {"teacher": "builtin:subset-teacher", "optimizer.lr": DISTILLED_LR}


def steps_of(cost: str) -> dict[str, Any]:
  """The steps of an arm whose step costs so much, a multiple of its evaluations."""
  every = max(1, round(TOKENS / COST[cost] / EVALUATIONS))
  return {"steps": every * EVALUATIONS, "eval.every": every}


def zone(name: str, label: str, changes: dict[str, Any], cost: str = "zppo") -> ArmSpec:
  """An arm of the recipe zone."""
  return ArmSpec(name, label, changes | steps_of(cost), BASE, "zppo")


def distilled(name: str, label: str, changes: dict[str, Any]) -> ArmSpec:
  """An arm that learns from a teacher's probabilities or solutions."""
  return ArmSpec(name, label, changes | DISTILLED | steps_of("plain"), SUPERVISED, "opd")


ARMS: tuple[ArmSpec, ...] = (
  zone("grpo", "GRPO", NO_BUFFER | NO_CANDIDATES, "plain"),
  zone("buffer", "GRPO + buffer", NO_CANDIDATES, "buffer"),
  zone("asked", "GRPO + BCQ + NCQ, no buffer", NO_BUFFER, "asked"),
  zone("bcq", "GRPO + buffer + BCQ", {"zone.kinds": ("bcq",)}),
  zone("ncq", "GRPO + buffer + NCQ", {"zone.kinds": ("ncq",)}),
  zone("zppo", "ZPPO", {}),
  zone("hint", "GRPO + buffer + hint", {"zone.kinds": ("hint",)}),
  zone("prefix", "GRPO + buffer + prefix", {"zone.kinds": ("prefix",)}),
  zone("wrong-pair", "ZPPO, BCQ with two wrong candidates", {"candidates.wrong_pair": True}),
  zone("unshuffled", "ZPPO, the right candidate first", {"candidates.shuffle": False}),
  zone("random-graduation", "ZPPO, graduation at random", {"zone.graduation": "random"}),
  distilled(
    "on-distill",
    "on-policy distillation",
    {"objective.kind": "jsd"},
  ),
  distilled(
    "off-distill",
    "SFT on the solver's solutions",
    {
      "rollouts_per_prompt": 1,
      "batch": PROMPTS * RESPONSES,
      "rollout.by": "data",
      "objective.support": "sampled",
      "objective.kind": "forward_kl",
      "objective.estimator": "nll",
    },
  ),
)
LABELS = {arm.name: arm.label for arm in ARMS}
SHORT = ("grpo", "buffer", "asked", "zppo")
