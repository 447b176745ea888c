"""The arms of the study of Vision-OPD."""

import pytest

from opd_jax import checks
from opd_jax import config as configs
from opd_jax.horizon import schedule
from opd_jax.studies.run import digest
from opd_jax.studies.vision import arms, claims, sections

NAMES = [arm.name for arm in arms.ARMS]
OF_CROPS = [arm for arm in arms.ARMS if arm.method == "vision_opd"]


@pytest.mark.parametrize("arm", arms.ARMS, ids=NAMES)
def test_every_arm_is_a_config_that_can_run(arm):
  c = arm.config(3)
  checks.check(c)
  assert c.seed == 3
  assert c.steps % c.eval.every == 0, "the last evaluation is one of the others"
  assert c.checkpoint.keep * c.checkpoint.every >= c.steps, "the gap is measured at every checkpoint"
  assert (c.data.draw_boxes, c.data.box_field) == ("all", "box"), "all students see the same"


def test_every_arm_is_another_config():
  assert len(set(NAMES)) == len(NAMES)
  assert len({digest([arm.config(3)]) for arm in arms.ARMS}) == len(NAMES)


def test_an_arm_with_crops_differs_from_vision_opd_in_what_it_is_called():
  by_name = {arm.name: arm.config(3) for arm in OF_CROPS}
  found = {name: set(configs.different(by_name["ema"], c)) for name, c in by_name.items()}
  by_data = {"rollout.by", "objective.kind", "objective.support", "objective.estimator", "teacher_update.kind"}
  truncated = {"horizon.kind", "horizon.ratio", "horizon.quantum"}
  assert found == {
    "ema": set(),
    "frozen": {"teacher_update.kind"},
    "current": {"teacher_update.kind"},
    "mix": {"teacher_update.kind"},
    "forward": {"objective.kind"},
    "reverse": {"objective.kind"},
    "frozen-tower": {"vision.train"},
    "topd-25": truncated,
    "topd-50": truncated,
    "popd": {"horizon.kind", "horizon.start", "horizon.growth", "horizon.every", "horizon.quantum"},
    "other-region": {"context.region"},
    "sft": by_data,
  }


def test_popd_speaks_whole_answers_for_the_last_quarter():
  (popd,) = (arm for arm in arms.ARMS if arm.name == "popd")
  horizon = schedule.from_config(popd.config(3).horizon)
  assert [horizon.limit(step) for step in (0, arms.STEPS // 2, arms.STEPS - 1)] == [3, 7, arms.HORIZON]


def test_what_claims_and_pages_name_is_there():
  assert {*arms.SHORT, *arms.CURVES} <= set(NAMES)
  assert len({claim.name for claim in claims.CLAIMS}) == len(claims.CLAIMS)
  assert list(sections.ASKED)[1:] == NAMES
