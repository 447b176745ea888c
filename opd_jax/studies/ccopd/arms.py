"""CCOPD and what it is compared with, on the built-in task for conversations, after arXiv:2605.30251.

Seed by seed, all arms start from the same student and read the same problems in the same order; every rollout answers
the last turn of a conversation that the student itself has had. A step has 32 rollouts in every arm.

Learning rates and the number of steps were calibrated on runs of seeds 0 and 1, which is why the study's seeds begin at
`FIRST_SEED`: 3e-5 left RAW highest for every arm that compares with a teacher's or with right answers (1e-4 and 3e-4
were tried too), 1e-4 for the reward (of 3e-5 to 1e-3), and 2e-4 for the adapter (of 1e-4 to 1e-3). The rules by which
claims are judged stand in claims.py.
"""

from typing import Any

from opd_jax.studies.arm_spec import NULL, ArmSpec
from opd_jax.tasks import relay

STEPS, LR = 60, 3e-5
FIRST_SEED = 20  # those before it were calibrated on
BASE: dict[str, Any] = {
  "lora.rank": 0,
  "steps": STEPS,
  "batch": 32,
  "optimizer.lr": LR,
  "eval.every": 30,
  "eval.prompts": 128,
  "eval.batch": 128,
  "checkpoint.every": 0,
  "log.overlap_k": 2,
  "log.samples": 0,
  "log.tensorboard": False,
}
LEARNED = {"objective.support": "sampled", "objective.kind": "forward_kl", "objective.estimator": "nll"}


def arm(name: str, label: str, changes: dict[str, Any]) -> ArmSpec:
  return ArmSpec(name, label, changes, BASE, "ccopd")


ARMS: tuple[ArmSpec, ...] = (
  arm("ccopd", "CCOPD", {}),
  arm("forward", "forward KL", {"objective.kind": "forward_kl"}),
  arm("sft-gold", "SFT on right answers", LEARNED | {"rollout.by": "data"}),
  arm("sft-teacher", "SFT on the teacher's answers", LEARNED | {"rollout.by": "teacher"}),
  arm(
    "reward",
    "reward alone, groups of 4",
    {"mixture.divergence": 0.0, "mixture.reward": 1.0, "rollouts_per_prompt": 4, "batch": 8, "optimizer.lr": 1e-4},
  ),
  arm("any-turn", "a random turn's reply", {"context.turns": "any"}),
  # A quarter of its rollouts are last turns, so this is as many of them as in CCOPD. It came after the other arms had been
  # run and seen; no rule rests on it.
  arm("any-turn-4", "a random turn's reply, four times the steps", {"context.turns": "any", "steps": 4 * STEPS}),
  arm("other-teacher", "a teacher of another seed", {"teacher": "builtin:talker-2"}),
  arm("refresh", "CCOPD, new conversations every 10 steps", {"context.refresh": 10}),
  arm("lora", "CCOPD through an adapter", {"lora.rank": 8, "lora.alpha": 16.0, "optimizer.lr": 2e-4}),
  arm("topd-50", "CCOPD, TOPD 50%", {"horizon.kind": "truncated", "horizon.ratio": 0.5}),
  arm(
    "popd",
    "CCOPD, POPD",
    {"horizon.kind": "progressive", "horizon.start": 8, "horizon.growth": 1, "horizon.quantum": 8, "horizon.every": 2},
  ),
  # Controls, after arXiv:2608.31046. The null does not read the teacher that its context asks for.
  arm("null", "CCOPD's null: rare tokens suppressed", NULL),
  arm("null-slow", "CCOPD's null, a tenth of the rate", NULL | {"optimizer.lr": LR / 10}),
  arm("shuffled", "CCOPD, teacher's readings permuted", {"objective.shuffle_teacher": True}),
)
NULLS = ("null", "null-slow")
SHORT = ("ccopd", "forward", "sft-teacher", "any-turn")
OUT_OF_DOMAIN = {"times": relay.TIMES, "long": relay.LONG}
OTHERS = {"relay": relay.RELAY, **OUT_OF_DOMAIN}  # asked of every student after training
