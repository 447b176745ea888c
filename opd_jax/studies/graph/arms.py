"""GraphPO and what it is compared with, on countdowns with four numbers, after arXiv:2606.18954.

Seed by seed, all arms start from the same student and read the same prompts in the same order, 32 a step, and a step is one update, so
that no clip is ever reached. A tree of widths (4, 2, 2) has 28 steps and 16 responses. Equal generated tokens: GRPO's 9 responses of three
steps, "grpo-tokens", beside every tree and graph. Equal responses: its 16, "grpo-responses", which cost 48 steps. The table of the page
has the tokens and the responses that there really were.

States are known here: the numbers that are left (key). With these all ways to a state have equal length, one step for each pair that was
put together, so that efficiency earns nothing there; it is 0 in those arms, and lambda is asked of hidden states alone. A step has at most
9 tokens, of the longest right one: 12+34=46 and what ends it. With the 8 of configs/graphpo.py one of 14 reference solutions is cut, and a
response that is cut is wrong.

Random merges join at the rate at which states join: `RANDOM_RATE` is the share of the steps that joined a state in the first two steps of a
run (seed 0, 64 prompts each: .13 and .12); the fixed policy of the simulation, which breaks no rule, has about half. It may grow while a
student learns, so that the share that really joined stands beside it on the page. Random merges may join nodes of different layers too,
which equal numbers cannot be; their efficiency is 0 as well.

OPD has as many tokens as a tree, and a teacher that read more right solutions and reads the same tokens besides.

The rate is one for all but for "opd-fast", calibrated on seed 10 with 256 problems, one answer each (before training .164, greedy .324): at 5e-5 GRPO comes to .219 in 60
steps (greedy .301) and to .238 in 120 (.305), GraphPO to .211 in 60 (.281); at 1e-4 in 75 steps GRPO to .207 (.273), GraphPO to .215 (.250) and OPD to
.207 (.297). Whatever is trained loses greedy answers at first, most at high rates; at 3e-4 sampled ones too (16 prompts a step: GraphPO from .125 to .06).
"opd-fast" was added when the others were known, since at the
rate that suits rewards OPD gained one point. A length penalty is known to break what it is added to: of answers that are all wrong the shortest is the best, at
any weight, since advantages are divided by their spread (at .02 on seed 10 accuracy falls to 0 too). Seeds before `FIRST_SEED` are there to calibrate on. The rules by which claims are judged stand in claims.py.
"""

import math
from typing import Any

from opd_jax.studies.arm_spec import ArmSpec

STEPS, LR = 60, 5e-5
PROMPTS = 32
FIRST_SEED = 20  # those before it are to calibrate on
WIDTHS = (4, 2, 2)
RESPONSES = math.prod(WIDTHS)
STEP_TOKENS = 9  # of the longest right step, what ends it included
CHAINS = 9  # of three steps: as many as a tree has, less one
RANDOM_RATE = 0.12

BASE: dict[str, Any] = {
  "data.path": "task:countdown-4",
  "student": "builtin:countdown-4-student",
  "horizon.max": len(WIDTHS) * STEP_TOKENS,
  "surrogate.kind": "ppo_clip",
  "steps": STEPS,
  "batch": PROMPTS,
  "mini_batches": 1,
  "optimizer.lr": LR,
  "eval.every": STEPS // 3,
  "eval.prompts": 256,
  "eval.batch": 256,
  "eval.greedy": True,
  "checkpoint.every": 0,
  "log.bins": 1,
  "log.overlap_k": 0,
  "log.samples": 0,
  "log.tensorboard": False,
}
TREE: dict[str, Any] = BASE | {
  "rollouts_per_prompt": RESPONSES,
  "graph.widths": WIDTHS,
  "graph.step_tokens": STEP_TOKENS,
  "graph.delimiter": ",",
}
DISTILLED: dict[str, Any] = {
  "teacher": "builtin:countdown-4-teacher",
  "rollouts_per_prompt": CHAINS,
  "horizon.kind": "full",
  "surrogate.kind": "importance",  # there is no policy gradient
}
KEY = {"graph.state": "key", "graph.weight": 0.7, "graph.efficiency": 0.0}
HIDDEN = {"graph.state": "hidden", "graph.kappa": 0.92, "graph.weight": 0.7}


def chains(name: str, label: str, responses: int) -> ArmSpec:
  """An arm of GRPO."""
  return ArmSpec(name, label, {"rollouts_per_prompt": responses}, BASE, "grpo")


def distilled(name: str, label: str, changes: dict[str, Any]) -> ArmSpec:
  """An arm of OPD, with the teacher's probabilities and without a verifier."""
  return ArmSpec(name, label, DISTILLED | changes, BASE, "opd")


def tree(name: str, label: str, changes: dict[str, Any]) -> ArmSpec:
  """An arm whose rollouts branch, without common states."""
  return ArmSpec(name, label, changes, TREE, "treepo")


def graph(name: str, label: str, changes: dict[str, Any]) -> ArmSpec:
  """An arm whose rollouts branch, with common states."""
  return ArmSpec(name, label, changes, TREE, "graphpo")


ARMS: tuple[ArmSpec, ...] = (
  chains("grpo-tokens", "GRPO, as many tokens", CHAINS),
  chains("grpo-responses", "GRPO, as many responses", RESPONSES),
  tree("tree", "a tree", {}),
  graph("graph", "GraphPO", KEY),
  *(graph(f"graph-w{100 * w:g}", f"GraphPO, w {w:g}", KEY | {"graph.weight": w}) for w in (0.0, 0.5, 1.0)),
  graph("no-halve", "GraphPO, nobody's children saved", KEY | {"graph.halve": False}),
  graph("random", "random merges", KEY | {"graph.state": "random", "graph.rate": RANDOM_RATE}),
  graph("hidden", "GraphPO, hidden states", HIDDEN),
  graph("hidden-no-novelty", "hidden states, without the novelty gate", HIDDEN | {"graph.novelty": False}),
  graph("hidden-lambda-0", "hidden states, lambda 0", HIDDEN | {"graph.efficiency": 0.0}),
  graph("hidden-lambda-100", "hidden states, lambda 1", HIDDEN | {"graph.efficiency": 1.0}),
  tree("length", "a tree with a length penalty", {"graph.length_penalty": 0.2}),
  distilled("opd", "OPD, as many tokens", {}),
  distilled("opd-fast", "OPD, twice the rate", {"optimizer.lr": 2 * LR}),
)
LABELS = {arm.name: arm.label for arm in ARMS}
SHORT = ("grpo-tokens", "tree", "graph", "random")
