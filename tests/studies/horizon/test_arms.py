"""The arms of the study of horizons."""

import json

from opd_jax import tasks
from opd_jax.horizon import schedule as horizons
from opd_jax.studies.horizon import adaptive_claims, claims, measures
from opd_jax.studies.horizon import arms as horizon

NAMES = [arm.name for arm in horizon.ARMS]


def test_every_arm_is_a_config_of_its_own():
  assert len(set(NAMES)) == len(NAMES)
  seen = {}
  for arm in horizon.ARMS:
    c = arm.config(seed=3)
    assert c.seed == 3
    assert isinstance(horizons.from_config(c.horizon), horizons.Horizon)
    text = json.dumps(json.loads(c.to_json_best_effort()), sort_keys=True)
    assert text not in seen, f"{arm.name} is {seen.get(text)}"
    seen[text] = arm.name
    assert c.steps % c.eval.every == 0, "the last evaluation is one of the others"


def test_lengths_are_shares_of_the_longest_response():
  limits = {arm.name: horizons.from_config(arm.config(0).horizon) for arm in horizon.ARMS}

  def at(name: str, step: int) -> int:
    return limits[name].limit(step)

  assert [at(f"topd-{n}", 0) for n in ("50", "25", "10", "5", "2.5")] == [70, 35, 14, 7, 4]
  assert (at("popd", 0), at("popd", 41), at("popd", 42)) == (14, 137, 140)
  assert at("popd-paper", 0) == 11
  assert 0.36 * horizon.T < at("popd-paper", horizon.STEPS - 1) < 0.4 * horizon.T
  assert (at("popd-geometric", 0), at("popd-geometric", 46)) == (14, 140)
  assert limits["look"].widths == (14, 28, 56, 112, 140)
  assert max(tasks.generator(name).max_response for name in ("chain-short", "phase-short")) <= horizon.T


def test_what_claims_name_is_there():
  assert {*adaptive_claims.FIXED, *adaptive_claims.ADAPTIVE, *horizon.SHORT, *measures.DRIFTING} <= {
    *NAMES,
    "untrained",
  }
  assert len({claim.name for claim in claims.CLAIMS}) == len(claims.CLAIMS)


def test_arms_that_are_compared_make_as_many_steps():
  steps = {arm.name: (arm.config(0).steps, arm.config(0).eval.every) for arm in horizon.ARMS}
  assert {steps[name] for name in NAMES if not name.endswith("-long")} == {(horizon.STEPS, 10)}
