"""The arms of the study of ZPPO."""

import pytest

from opd_jax import checks, tasks
from opd_jax.studies.run import digest
from opd_jax.studies.zone import arms, claims, sections
from opd_jax.tasks.subsets import SUBSETS

NAMES = [arm.name for arm in arms.ARMS]
OF_ZONE = [arm for arm in arms.ARMS if arm.method == "zppo"]


@pytest.mark.parametrize("arm", arms.ARMS, ids=NAMES)
def test_every_arm_is_a_config_that_can_run(arm):
  c = arm.config(3)
  checks.check(c)
  assert c.seed == 3
  assert c.steps % c.eval.every == 0, "the last evaluation is one of the others"
  assert c.horizon.max >= tasks.generator("subset-sum").max_response
  assert c.eval.greedy


def test_every_arm_is_another_config():
  assert len(set(NAMES)) == len(NAMES)
  assert len({digest([arm.config(3)]) for arm in arms.ARMS}) == len(NAMES)


def test_an_arm_of_the_recipe_differs_from_zppo_in_what_it_is_called():
  by_name = {arm.name: arm.config(3) for arm in OF_ZONE}

  def differing(name: str) -> set[str]:
    found = set()
    for group in ("zone", "candidates"):
      one, other = by_name["zppo"][group].to_dict(), by_name[name][group].to_dict()
      found |= {f"{group}.{key}" for key in one if one[key] != other[key]}
    return found

  assert {name: differing(name) for name in by_name} == {
    "grpo": {"zone.replay", "zone.augment"},
    "buffer": {"zone.augment"},
    "asked": {"zone.replay"},
    "bcq": {"zone.kinds"},
    "ncq": {"zone.kinds"},
    "zppo": set(),
    "hint": {"zone.kinds"},
    "prefix": {"zone.kinds"},
    "wrong-pair": {"candidates.wrong_pair"},
    "unshuffled": {"candidates.shuffle"},
    "random-graduation": {"zone.graduation"},
  }
  assert {(c.batch, c.rollouts_per_prompt, c.mini_batches, c.optimizer.lr) for c in by_name.values()} == {
    (arms.PROMPTS, arms.RESPONSES, 4, arms.LR)
  }


def test_a_step_costs_no_arm_more_tokens_than_another():
  assert all(arm.config(3).steps == arms.EVALUATIONS * arm.config(3).eval.every for arm in arms.ARMS)
  spent = {name: arms.steps_of(name)["steps"] * cost for name, cost in arms.COST.items()}
  assert all(abs(tokens / arms.TOKENS - 1) < 0.04 for tokens in spent.values()), spent


def test_the_longest_prompt_with_candidates_fits():
  task = SUBSETS
  longest = task.max_prompt + 2 * task.max_response + len("!=")
  assert longest <= arms.BASE["candidates.max_prompt"]


def test_what_claims_and_pages_name_is_there():
  assert {*arms.SHORT, *claims.PARTS, "on-distill", "off-distill"} <= set(NAMES)
  assert len({claim.name for claim in claims.CLAIMS}) == len(claims.CLAIMS)
  assert list(sections.ASKED)[1:] == NAMES
