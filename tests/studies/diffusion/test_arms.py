"""The arms of the study of d-OPSD."""

from opd_jax import checks, inputs
from opd_jax.recipes import base
from opd_jax.runtime import mesh
from opd_jax.studies.diffusion import arms, claims
from opd_jax.studies.run import digest

NAMES = [arm.name for arm in arms.ARMS]


def test_every_arm_is_a_config_of_its_own_and_samples_as_many_answers():
  seen = set()
  for arm in arms.ARMS:
    c = arm.config(3)
    checks.check(c)
    base.make(inputs.load_student(c, mesh.for_reading(c.mesh)))  # what the recipe refuses by itself
    assert c.batch * c.rollouts_per_prompt == (arms.PROMPTS if arm.name == "one-try" else arms.ROLLOUTS)
    assert c.steps % c.eval.every == 0, "the last evaluation is one of the others"
    assert c.denoising.length % c.denoising.block == 0
    seen.add(digest([c]))
  assert len(seen) == len(set(NAMES)) == len(NAMES)


def test_what_claims_and_pages_name_is_there():
  named = {"rho-0", "rho-10", "rho-50", "topd-17", "topd-33", "topd-50", "popd", "long", "long-clip"}
  assert named | set(arms.SHORT) <= set(NAMES)
  assert len({claim.name for claim in claims.CLAIMS}) == len(claims.CLAIMS)
