"""Are full rollouts necessary? The arms that ask it, after arXiv:2605.31490 and its rivals, on the short built-in tasks.

Seed by seed, arms of one task start from the same student and read the same prompts in the same order, a batch of them
at a time. Arms called phase-* have a task of their own, and in reverse-* student and teacher change places. Lengths are
shares of T = 140 tokens.

Learning rates, numbers of steps and the constants of the adaptive rules were calibrated on runs of seeds 0, 1 and 10,
which is why the study's seeds begin at `FIRST_SEED`. The rules by which claims are judged stand in claims.py.

Three arms of each task are controls, after arXiv:2608.31046. OPD's null has no teacher and lowers the probability of the rarest
fifth of a response's tokens; the third compares every token with the teacher's prediction of another one. After 60 steps on seeds
0 and 1 the null's accuracy was what it had been before training at a tenth and a third of the study's rate (.21 to .22 of .20),
and .07 and .09 at the rate itself.
"""

from typing import Any

from opd_jax.studies.arm_spec import NULL, ArmSpec

T, STEPS, LR = 140, 60, 1e-4
TENTH = T // 10
PHASE_LR, PHASE_STEPS = 3e-4, 60
FIRST_SEED = 20  # those before it were calibrated on
CHAIN: dict[str, Any] = {
  "data.path": "task:chain-short",
  "student": "builtin:short-student",
  "teacher": "builtin:short-teacher",
  "horizon.max": T,
  "steps": STEPS,
  "optimizer.lr": LR,
  "eval.every": 10,
  "eval.prompts": 256,
  "eval.batch": 256,
  "eval.greedy": True,
  "checkpoint.every": 0,
  "log.bins": 20,  # of seven tokens
  "log.overlap_k": 2,  # of 36 symbols
  "log.samples": 0,
  "log.tensorboard": False,
}
PHASE = {"data.path": "task:phase-short", "optimizer.lr": PHASE_LR, "steps": PHASE_STEPS}
EXACT = {"teacher": "builtin:short-exact-teacher"}
# Three times the rate: at LR, 60 steps took one to seven points from the strong model in a first look at one seed.
REVERSED = {"student": "builtin:short-teacher", "teacher": "builtin:short-student", "optimizer.lr": 3 * LR}

FULL = {"horizon.kind": "full"}
NO_TEACHER = NULL | {"teacher": ""}
SHUFFLED = {"objective.shuffle_teacher": True}
STAIRCASE = {"horizon.kind": "progressive", "horizon.start": TENTH, "horizon.growth": 3, "horizon.quantum": T // 4}
PAPER = {
  "horizon.kind": "progressive",
  "horizon.start": 11,
  "horizon.growth": 3,
  "horizon.every": 4,
  "horizon.quantum": 28,
}
GEOMETRIC = {"horizon.kind": "geometric", "horizon.start": TENTH, "horizon.factor": 1.0525, "horizon.quantum": T // 4}
WIDTHS = {"horizon.start": TENTH}  # 14, 28, 56, 112, 140
ADAPTIVE = {
  "agreement": {"horizon.kind": "agreement", "horizon.every": 5, "horizon.probes": 8} | WIDTHS,
  "drift": {"horizon.kind": "drift", "horizon.measure": "gap", "horizon.threshold": 2.0} | WIDTHS,
  "saturation": {"horizon.kind": "saturation"} | WIDTHS,
  "look": {"horizon.kind": "look", "horizon.every": 10} | WIDTHS,
}


def truncated(ratio: float) -> dict[str, Any]:
  return {"horizon.kind": "truncated", "horizon.ratio": ratio}


def segment(start: float) -> dict[str, Any]:
  """Train a tenth of T, from this share on; what comes after it is not generated, since nothing depends on it."""
  first = round(start * T)
  changes = {"horizon.kind": "truncated", "horizon.length": first + TENTH}
  return changes | {"weights.kind": "segment", "weights.start": first, "weights.tokens": TENTH}


def credit(discount: float) -> dict[str, Any]:
  return FULL | {"objective.support": "sampled", "objective.discount": discount}


def arm(name: str, label: str, changes: dict[str, Any]) -> ArmSpec:
  return ArmSpec(name, label, changes, CHAIN)


RATIOS = {0.5: "50", 0.25: "25", 0.1: "10", 0.05: "5", 0.025: "2.5"}
ARMS: tuple[ArmSpec, ...] = (
  arm("opd", "OPD", FULL | {"checkpoint.every": STEPS // 2, "checkpoint.keep": 3}),
  *(arm(f"topd-{name}", f"TOPD {name}%", truncated(ratio)) for ratio, name in RATIOS.items()),
  arm("topd-10-long", "TOPD 10%, 4x the steps", truncated(0.1) | {"steps": 4 * STEPS, "eval.every": 20}),
  arm("topd-25-long", "TOPD 25%, 2x the steps", truncated(0.25) | {"steps": 2 * STEPS, "eval.every": 20}),
  arm("popd", "POPD to T", STAIRCASE),
  arm("popd-paper", "POPD to 0.4 T", PAPER),
  arm("popd-geometric", "POPD, geometric", GEOMETRIC),
  *(arm(name, f"adaptive: {name}", changes) for name, changes in ADAPTIVE.items()),
  arm("phase-opd", "OPD", FULL | PHASE),
  arm("phase-topd-10", "TOPD 10%", truncated(0.1) | PHASE),
  arm("phase-topd-25", "TOPD 25%", truncated(0.25) | PHASE),
  arm("phase-topd-50", "TOPD 50%", truncated(0.5) | PHASE),
  arm("phase-popd", "POPD to T", STAIRCASE | PHASE),
  *(arm(f"phase-{name}", f"adaptive: {name}", changes | PHASE) for name, changes in ADAPTIVE.items()),
  *(
    arm(f"lr4-{name}", f"{label}, 4x the rate", changes | {"optimizer.lr": 4 * LR})
    for name, label, changes in (
      ("topd-10", "TOPD 10%", truncated(0.1)),
      ("topd-25", "TOPD 25%", truncated(0.25)),
      ("opd", "OPD", FULL),
    )
  ),
  arm(
    "lr4-topd-10-initial",
    "TOPD 10%, 4x the rate, KL to the initial student",
    truncated(0.1) | {"optimizer.lr": 4 * LR, "mixture.initial": 0.1},
  ),
  arm("lr4-look", "adaptive: look, 4x the rate", ADAPTIVE["look"] | {"optimizer.lr": 4 * LR}),
  *(
    arm(f"segment-{round(100 * s)}", f"{round(100 * s)}-{round(100 * s) + 10}%", segment(s))
    for s in (0.2, 0.4, 0.6, 0.8)
  ),
  # Only five-round problems come so far as 80%, a third of the rows: as many tokens a step as segment-80 has.
  arm("topd-10-thin", "TOPD 10%, batches of 11", truncated(0.1) | {"batch": 11}),
  arm("last", "the last 10% of T of each row", FULL | {"weights.kind": "last", "weights.tokens": TENTH}),
  arm("random", "random 10% of T of each row", FULL | {"weights.kind": "random", "weights.tokens": TENTH}),
  arm("reverse-opd", "OPD", FULL | REVERSED),
  arm("reverse-topd-25", "TOPD 25%", truncated(0.25) | REVERSED),
  arm("reverse-topd-10", "TOPD 10%", truncated(0.1) | REVERSED),
  *(arm(f"credit-{d:g}", f"discount {d:g}", credit(d)) for d in (0.0, 1.0)),
  *(arm(f"exact-{d:g}", f"discount {d:g}, exact teacher", credit(d) | EXACT) for d in (0.0, 1.0)),
  arm("gap", "IW-OPD's falling weights", FULL | {"weights.kind": "gap", "weights.mean_one": True}),
  arm("rising", "PW-OPSD's rising weights", FULL | {"weights.kind": "rising", "weights.mean_one": True}),
  arm("null", "OPD's null", FULL | NO_TEACHER),
  arm("null-slow", "OPD's null, a tenth of the rate", FULL | NO_TEACHER | {"optimizer.lr": LR / 10}),
  arm("shuffled", "OPD, teacher's readings permuted", FULL | SHUFFLED),
  arm("phase-null", "OPD's null", FULL | PHASE | NO_TEACHER),
  arm(
    "phase-null-slow", "OPD's null, a tenth of the rate", FULL | PHASE | NO_TEACHER | {"optimizer.lr": PHASE_LR / 10}
  ),
  arm("phase-shuffled", "OPD, teacher's readings permuted", FULL | PHASE | SHUFFLED),
)
SHORT = ("opd", "topd-25", "topd-10", "popd", "look", "phase-opd", "phase-topd-10")
