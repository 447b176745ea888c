"""The arms of the study of updates."""

from opd_jax import checks
from opd_jax.studies.geometry import arms
from opd_jax.studies.results import workdir
from opd_jax.studies.run import config_of, digest

NAMES = [arm.name for arm in arms.ARMS]


def test_every_arm_is_a_config_of_its_own(tmp_path):
  seen = set()
  for arm in arms.ARMS:
    c = config_of(arm, 3, tmp_path)
    checks.check(c)
    assert c.steps % c.eval.every == 0 == c.eval.every % c.checkpoint.every, "a checkpoint stands at every evaluation"
    seen.add(digest([c]))
  assert len(seen) == len(set(NAMES)) == len(NAMES)


def test_masks_come_from_a_run_of_the_same_seed_that_is_trained_before(tmp_path):
  sources = {arm.name: arm.mask_from for arm in arms.ARMS if arm.mask_from}
  assert sources.keys() == {arm.name for group in arms.MASKS.values() for arm in group}
  for name, source in sources.items():
    assert NAMES.index(source) < NAMES.index(name)
    arm = next(arm for arm in arms.ARMS if arm.name == name)
    assert config_of(arm, 3, tmp_path).subnetwork.mask_from == str(workdir(tmp_path, source, 3).resolve())


def test_what_another_method_moved_has_a_control_of_as_many():
  by_name = {arm.name: arm for arm in arms.ARMS}
  for mask in ("topd", "grpo"):
    for own, control in zip(arms.TUNED[f"of-{mask}"], arms.TUNED[f"stratified-{mask}"], strict=True):
      assert by_name[own].mask_from == by_name[control].mask_from != "opd"
      assert by_name[control].changes == by_name[own].changes | {"subnetwork.mask": "stratified"}


def test_what_is_compared_is_tuned_over_as_many_rates():
  sizes = {name: len(group) for name, group in arms.TUNED.items() if name != "sgd"}
  assert set(sizes.values()) == {len(arms.RATES)}
  assert set(NAMES) >= {name for group in arms.TUNED.values() for name in group}
  assert {*arms.STRONG, *arms.RANDOM} <= arms.TUNED.keys()
  assert set(arms.SHORT) <= set(NAMES)
