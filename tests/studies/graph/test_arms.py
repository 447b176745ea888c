"""The arms of the study of GraphPO."""

import math

import pytest

from opd_jax import checks, tasks
from opd_jax.data import tokenizer as tokenizers
from opd_jax.inputs import learner
from opd_jax.studies.graph import arms, claims, sections
from opd_jax.studies.run import digest
from opd_jax.tasks.puzzles import COUNTDOWN_4

NAMES = [arm.name for arm in arms.ARMS]
CHAINS = ("grpo-tokens", "grpo-responses")


@pytest.mark.parametrize("arm", arms.ARMS, ids=NAMES)
def test_every_arm_is_a_config_that_can_run(arm):
  c = arm.config(3)
  checks.check(c)
  assert c.seed == 3
  assert c.steps % c.eval.every == 0, "the last evaluation is one of the others"
  assert c.horizon.max >= tasks.generator("countdown-4").max_response
  assert c.eval.greedy


def test_every_arm_is_another_config():
  assert len(set(NAMES)) == len(NAMES)
  assert len({digest([arm.config(3)]) for arm in arms.ARMS}) == len(NAMES)


def test_all_arms_differ_in_how_they_sample_and_credit_alone():
  shared = [key for key in arms.BASE if key != "rollouts_per_prompt"]
  configs = [arm.config(3).to_dict() for arm in arms.ARMS]
  for key in (key for key in shared if "." not in key):
    assert len({str(c[key]) for c in configs}) == 1, key
  rates = {arm.name: c["optimizer"]["lr"] for arm, c in zip(arms.ARMS, configs, strict=True)}
  assert rates == dict.fromkeys(NAMES, arms.LR) | {"opd-fast": 2 * arms.LR}
  assert {c["mini_batches"] for c in configs} == {1}, "one update a step, so that no clip is reached"


def test_equal_tokens_are_equal_numbers_of_steps_and_equal_responses_those_of_a_tree():
  steps = sum(math.prod(arms.WIDTHS[: i + 1]) for i in range(len(arms.WIDTHS)))
  assert steps == 28
  responses = {arm.name: arm.config(3).rollouts_per_prompt for arm in arms.ARMS}
  assert abs(len(arms.WIDTHS) * responses["grpo-tokens"] - steps) <= 1
  assert {n for name, n in responses.items() if name not in ("grpo-tokens", "opd", "opd-fast")} == {16}
  assert responses["opd"] == responses["grpo-tokens"]


def test_the_longest_right_step_and_what_ends_it_fit_a_step():
  model = learner(arms.ARMS[0].config(3))
  tokenizer = tokenizers.load(model.path)
  steps = [step for problem in COUNTDOWN_4.problems(500, 0) for step in problem.solution.split(",")]
  longest = max(len(tokenizer.encode(step, add_special_tokens=False)) for step in steps) + 1
  assert longest == arms.STEP_TOKENS


def test_an_arm_differs_from_what_it_is_compared_with_in_one_thing():
  by_name = {arm.name: arm.config(3) for arm in arms.ARMS}

  def differing(a: str, b: str) -> set[str]:
    one, other = (by_name[name].graph.to_dict() for name in (a, b))
    return {key for key in one if one[key] != other[key]}

  for name in ("graph-w0", "graph-w50", "graph-w100"):
    assert differing("graph", name) == {"weight"}
  assert differing("graph", "no-halve") == {"halve"}
  assert differing("graph", "random") == {"state", "rate"}
  assert differing("graph", "tree") == {"state", "novelty"}, "novelty needs hidden states"
  assert differing("hidden", "hidden-no-novelty") == {"novelty"}
  assert differing("hidden", "hidden-lambda-0") == differing("hidden", "hidden-lambda-100") == {"efficiency"}
  assert differing("tree", "length") == {"length_penalty"}


def test_nobody_but_opd_has_a_teacher():
  assert [arm.name for arm in arms.ARMS if arm.config(3).teacher] == ["opd", "opd-fast"]


def test_what_claims_and_pages_name_is_there():
  assert {*CHAINS, *arms.SHORT, "length", "hidden-lambda-0", "hidden-lambda-100"} <= set(NAMES)
  assert len({claim.name for claim in claims.CLAIMS}) == len(claims.CLAIMS)
  assert list(sections.ASKED)[1:] == NAMES
