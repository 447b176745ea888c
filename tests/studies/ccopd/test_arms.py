"""The arms of the study of conversations."""

from opd_jax import checks
from opd_jax.studies.ccopd import arms
from opd_jax.studies.run import digest


def test_every_arm_is_a_config_of_its_own():
  seen = set()
  for arm in arms.ARMS:
    c = arm.config(3)
    checks.check(c)
    assert c.batch * c.rollouts_per_prompt == 32
    seen.add(digest([c]))
  assert len(seen) == len(arms.ARMS)
  assert set(arms.SHORT) <= {arm.name for arm in arms.ARMS}
