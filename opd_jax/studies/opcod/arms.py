"""OPCoD and what it is compared with, on the built-in task operators, after arXiv:2606.14368.

Two specialists begin: one knows sums, the other differences (tasks/operators.py). Arms of two students train both in one run, in
turn; every other arm is trained once from each specialist, as NAME-sums and NAME-differences. A student has the same number of
steps in every arm, of 32 rollouts each.

Seeds before `FIRST_SEED` are there to calibrate on. On seed 0 at this rate `STEPS` steps of each student are where arms differ most: before
training (.81, .59), after them .84 and .77 by gates that never open, .91 and .94 by gates that always do, and all above .94 after
twice as many. The rules by which claims are judged stand in claims.py.
"""

from typing import Any

from opd_jax.studies.arm_spec import NULL, ArmSpec
from opd_jax.tasks import operators

STEPS, LR = 20, 1e-4  # of each student
FIRST_SEED = 20  # those before it are to calibrate on
SPECIALISTS = {domain: f"builtin:{domain}-specialist" for domain in operators.DOMAINS}
SUMS, DIFFERENCES = SPECIALISTS
OF_MODEL = {"student": SUMS, "peer": DIFFERENCES}  # which specialist the models of a run of two are
BASE: dict[str, Any] = {
  "data.path": f"task:{operators.OPERATORS.name}",
  "horizon.max": operators.OPERATORS.max_response,
  "steps": STEPS,
  "batch": 4,
  "rollouts_per_prompt": 8,
  "optimizer.lr": LR,
  "eval.every": STEPS // 2,
  "eval.prompts": 128,
  "eval.batch": 128,
  "checkpoint.every": 0,
  "log.samples": 0,
  "log.tensorboard": False,
}
TAU = 0.4  # the specialists begin about .5 behind each other, and so with closed gates
TWO: dict[str, Any] = BASE | {
  "steps": 2 * STEPS,
  "codistillation.phase_steps": STEPS // 4,
  "codistillation.tau": TAU,
  "codistillation.validation_prompts": 128,
  "codistillation.validation_k": 2,
}
SHOWN: dict[str, Any] = {  # how a teacher is shown more, as in configs/opcod.py
  "context.template": "{prompt}{solution}{feedback}=",
  "context.solution_template": ":{text}",
  "context.feedback_template": ">{text}",
  "context.max_tokens": 48,
}
GOLD = SHOWN | {"batch": 32, "rollouts_per_prompt": 1, "objective.kind": "jsd", "objective.normaliser": "token"}


def gate(kind: str) -> dict[str, Any]:
  return {"codistillation.gate": kind}


def share(kind: str) -> dict[str, Any]:
  """Train a quarter of each response, its first or its last tokens."""
  return {"weights.kind": kind, "weights.tokens": operators.OPERATORS.max_response // 4}


def both(name: str, label: str, changes: dict[str, Any]) -> ArmSpec:
  """An arm of two students in one run."""
  return ArmSpec(name, label, changes, TWO, "opcod")


def each(name: str, label: str, changes: dict[str, Any], method: str) -> tuple[ArmSpec, ...]:
  """An arm that is trained from each of the two specialists."""
  return tuple(
    ArmSpec(f"{name}-{domain}", f"{label}, of {domain}", {"student": student} | changes, BASE, method)
    for domain, student in SPECIALISTS.items()
  )


def from_peer(domain: str) -> ArmSpec:
  other = DIFFERENCES if domain == SUMS else SUMS
  changes = {"student": SPECIALISTS[domain], "teacher": SPECIALISTS[other], "horizon.kind": "full"}
  return ArmSpec(f"peer-teacher-{domain}", f"OPD from the other specialist, of {domain}", changes, BASE, "opd")


ARMS: tuple[ArmSpec, ...] = (
  both("opcod", "OPCoD", {}),
  both("tau-60", "OPCoD, tau .6", {"codistillation.tau": 0.6}),
  both("tau-20", "OPCoD, tau .2", {"codistillation.tau": 0.2}),
  both("always", "OPCoD, the gate always open", gate("always")),
  both("never", "SDPO: the gate never opens", gate("never")),
  both("domain", "OPCoD, own domain alone", gate("domain")),
  both("frozen", "OPCoD, frozen teacher", {"teacher_update.kind": "frozen"}),
  both("current", "OPCoD, current teacher", {"teacher_update.kind": "current"}),
  # Controls: comments on responses to other prompts, on others to the same one, and by a copy of the student itself.
  both("shuffled", "OPCoD, shuffled comments", {"codistillation.shuffle": True}),
  both("other-response", "OPCoD, comments on other responses to the prompt", {"codistillation.shuffle_within": True}),
  both("own", "OPCoD, own comments", {"codistillation.tutor": "self"}),
  # The same controls where every rollout has a comment; added when the others were known, since at `TAU` gates open in the last round.
  both("always-shuffled", "OPCoD, always open, shuffled comments", gate("always") | {"codistillation.shuffle": True}),
  both(
    "always-other-response",
    "OPCoD, always open, comments on other responses to the prompt",
    gate("always") | {"codistillation.shuffle_within": True},
  ),
  both("always-own", "OPCoD, always open, own comments", gate("always") | {"codistillation.tutor": "self"}),
  both("early", "SDPO, the first quarter trained", gate("never") | share("first")),
  both("late", "SDPO, the last quarter trained", gate("never") | share("last")),
  *each(
    "oracle",
    "SDPO with a tutor that is never wrong",
    SHOWN | {"data.verifier": "opd_jax.tasks.operators:explain", "context.feedback": "always", "context.own": True},
    "sdpo",
  ),
  *each("gold", "OPSD with right solutions", GOLD, "opsd"),
  *each("gold-topd-50", "OPSD, TOPD 50%", GOLD | {"horizon.kind": "truncated", "horizon.ratio": 0.5}, "opsd"),
  *each("gold-topd-25", "OPSD, TOPD 25%", GOLD | {"horizon.kind": "truncated", "horizon.ratio": 0.25}, "opsd"),
  *each(
    "gold-popd",
    "OPSD, POPD",
    GOLD
    | {
      "horizon.kind": "progressive",
      "horizon.start": 10,
      "horizon.growth": 1,
      "horizon.every": 2,
      "horizon.quantum": 10,
    },
    "opsd",
  ),
  *each("grpo", "GRPO", {"mini_batches": 1}, "grpo"),
  *(from_peer(domain) for domain in SPECIALISTS),
  # Controls, after arXiv:2608.31046.
  *each("null", "the null: rare tokens suppressed", NULL | {"teacher": "", "horizon.kind": "full"}, "opd"),
  *each(
    "null-slow",
    "the null, a tenth of the rate",
    NULL | {"teacher": "", "horizon.kind": "full", "optimizer.lr": LR / 10},
    "opd",
  ),
)
GATES = ("always", "never", "domain")
NULLS = ("null", "null-slow")
COMMENTED = ("opcod", "always")  # whose students are asked what comments do to them
SHORT = ("opcod", "never", "shuffled", "always")
