"""The arms of the study of trust regions."""

import pytest

from opd_jax import checks, tasks
from opd_jax.studies.drpo import arms, claims, estimates
from opd_jax.studies.run import digest

NAMES = [arm.name for arm in arms.ARMS]


@pytest.mark.parametrize("arm", arms.ARMS, ids=NAMES)
def test_every_arm_is_a_config_that_can_run(arm):
  c = arm.config(3)
  checks.check(c)
  assert c.seed == 3
  assert c.steps % c.eval.every == 0, "the last evaluation is one of the others"
  assert c.horizon.max >= tasks.generator("synonyms").max_response


def test_every_arm_is_another_config():
  assert len(set(NAMES)) == len(NAMES)
  assert len({digest([arm.config(3)]) for arm in arms.ARMS}) == len(NAMES)


def test_equal_steps_are_equal_numbers_of_sampled_responses():
  shape = {(c.batch, c.rollouts_per_prompt, c.steps) for c in (arm.config(3) for arm in arms.ARMS)}
  assert shape == {(arms.PROMPTS, arms.GROUP, arms.STEPS)}


def test_nobody_but_the_distilled_has_a_teacher():
  taught = {arm.name for arm in arms.ARMS if arm.config(3).teacher}
  assert taught == {"opd", "opd-reward"}


def test_what_claims_name_is_there():
  assert {*claims.DPPO_ARMS, *claims.DRPO_ARMS, *claims.PENALISED, *arms.SHORT} <= set(NAMES)
  assert len(claims.DPPO_ARMS) == len(claims.DRPO_ARMS), "both are tuned over as many settings"
  assert len({claim.name for claim in claims.CLAIMS}) == len(claims.CLAIMS)
  assert estimates.COLLAPSE == 0.1, "as the rules say"
