"""The arms of the study of students that tutor each other."""

from opd_jax import checks
from opd_jax.studies.opcod import arms, claims
from opd_jax.studies.run import digest

NAMES = [arm.name for arm in arms.ARMS]


def test_every_arm_is_a_config_of_its_own():
  seen = set()
  for arm in arms.ARMS:
    c = arm.config(3)
    checks.check(c)
    assert c.batch * c.rollouts_per_prompt == 32
    assert c.steps == (2 * arms.STEPS if arm.method == "opcod" else arms.STEPS), "as many for each student"
    assert c.steps % c.eval.every == 0, "the last evaluation is one of the others"
    seen.add(digest([c]))
  assert len(seen) == len(set(NAMES)) == len(NAMES)


def test_a_run_of_two_is_made_of_whole_rounds():
  for arm in (arm for arm in arms.ARMS if arm.method == "opcod"):
    c = arm.config(3)
    assert c.steps % (2 * c.codistillation.phase_steps) == 0
    assert (c.student, c.codistillation.peer) == tuple(arms.SPECIALISTS.values())


def test_what_claims_and_measures_name_is_there():
  assert {*arms.GATES, *arms.COMMENTED, *arms.SHORT} <= set(NAMES)
  for name in (*arms.NULLS, "gold", "grpo", "oracle", "peer-teacher"):
    assert {f"{name}-{domain}" for domain in arms.SPECIALISTS} <= set(NAMES)
  assert len({claim.name for claim in claims.CLAIMS}) == len(claims.CLAIMS)
