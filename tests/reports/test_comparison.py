"""Arms, the matched accuracy, speed-ups, and how they are put into words."""

import json

import pytest

from opd_jax.errors import InputError
from opd_jax.reports.comparison import compare
from opd_jax.reports.runs import load
from opd_jax.reports.words import accuracy, count, headline, seconds, spread, steps
from tests.helpers.report_runs import workdir


def compared(*paths, target=None):
  return compare(load(paths), target)


class TestComparison:
  def test_arms_and_baseline(self, study):
    comparison = compared(*study)
    assert [(arm.label, len(arm.runs)) for arm in comparison.arms] == [("OPD", 3), ("TOPD 10%", 3), ("POPD", 3)]
    assert comparison.baseline.label == "OPD"

  def test_without_a_full_horizon_the_first_arm_is_the_baseline(self, tmp_path):
    a = workdir(tmp_path / "a", [0.1, 0.9], kind="progressive")
    b = workdir(tmp_path / "b", [0.1, 0.9], kind="truncated", ratio=0.1)
    assert compared(a, b).baseline.label == "POPD"

  def test_target_comes_from_the_best_baseline_run(self, study):
    assert compared(*study).target == pytest.approx(0.95 * 0.96)

  def test_median_and_range(self, study):
    opd, topd, _ = compared(*study).arms
    # First evaluations at or above 0.912: OPD at steps 30, 20, 30; TOPD at steps 20, 10, 30, the dip afterwards ignored.
    assert opd.seconds_to_target == (120.0, 80.0, 120.0, 3)
    assert topd.seconds_to_target == (20.0, 10.0, 30.0, 3)
    assert topd.tokens_to_target == (2000, 1000, 3000, 3)
    assert topd.steps_to_target == (20, 10, 30, 3)
    assert topd.reached == 3

  def test_speedup(self, study):
    comparison = compared(*study)
    opd, topd, _ = comparison.arms
    assert (comparison.speedup(opd), comparison.token_saving(opd)) == (1.0, 1.0)
    assert comparison.speedup(topd) == pytest.approx(120 / 20)
    assert comparison.token_saving(topd) == pytest.approx(30000 / 2000)

  def test_runs_that_never_get_there_count_as_last(self, study):
    comparison = compared(*study)
    popd = comparison.arms[2]
    assert popd.reached == 1
    assert popd.seconds_to_target == (None, 20.0, None, 3)
    assert comparison.speedup(popd) is None
    assert spread(popd.seconds_to_target, seconds) == "not reached (20.0–not reached)"

  def test_final_accuracy(self, study):
    opd = compared(*study).baseline
    assert opd.accuracy == pytest.approx((0.92 + 0.96 + 0.94) / 3)
    assert opd.interval == (0.92, 0.96)

  def test_one_run_has_the_interval_of_its_evaluation(self, study):
    assert compared(study[3]).baseline.interval == (pytest.approx(0.87), pytest.approx(0.96))

  def test_costs(self, study):
    opd = compared(*study).baseline
    assert opd.train_seconds == 120.0
    assert opd.tokens == 30000
    assert (opd.compile_seconds, opd.compile_wait, opd.programs) == (4.0, 2.0, 2)
    assert opd.eval_seconds == 2.0

  def test_given_target(self, study):
    comparison = compared(*study, target=0.5)
    assert comparison.rule == "given"
    # POPD at steps 10, 20, 20
    assert [arm.seconds_to_target.median for arm in comparison.arms] == [40.0, 10.0, 40.0]

  @pytest.mark.parametrize("target", [0, -0.1, 1.5, float("nan")])
  def test_impossible_target(self, study, target):
    with pytest.raises(InputError, match="above 0 and at most 1"):
      compared(*study, target=target)

  def test_not_reached(self, tmp_path):
    opd = workdir(tmp_path / "o", [0.1, 0.8])
    comparison = compared(opd, workdir(tmp_path / "t", [0.1, 0.2], kind="truncated", length=8))
    topd = comparison.arms[1]
    assert topd.label == "TOPD 20%"
    assert (topd.reached, comparison.speedup(topd)) == (0, None)
    assert spread(topd.tokens_to_target, count) == "not reached"

  def test_nothing_learnt_matches_nothing(self, tmp_path):
    comparison = compared(workdir(tmp_path / "o", [0.0, 0.0]))
    assert (comparison.baseline.reached, comparison.speedup(comparison.baseline)) == (0, None)
    assert "--target" in headline(comparison)

  def test_reached_before_training_has_no_speedup(self, tmp_path):
    opd = workdir(tmp_path / "o", [0.5, 0.8])
    comparison = compared(opd, workdir(tmp_path / "p", [0.5, 0.8], kind="progressive"), target=0.3)
    assert [comparison.speedup(arm) for arm in comparison.arms] == [None, None]


class TestHeadline:
  def test_says_what_the_numbers_say(self, study):
    assert headline(compared(*study)) == (
      "An accuracy of 0.912 was reached after 20.0 s of training by TOPD 10% (speed-up 6.0x) and 120 s by OPD; "
      "POPD reached it in only 1 of 3 runs (medians over 3 seeds)."
    )

  def test_baseline_that_does_not_get_there(self, study):
    assert headline(compared(study[0], study[3], target=0.93)) == (
      "An accuracy of 0.93 was reached after 30.0 s of training by TOPD 10%; "
      "OPD did not reach it in 120 s of training (one run each)."
    )

  def test_nobody_gets_there(self, study):
    assert headline(compared(study[3], target=1.0)) == (
      "OPD did not reach an accuracy of 1 in 120 s of training (one run)."
    )

  def test_slower_arms_are_named(self, tmp_path):
    slow = workdir(tmp_path / "p", [0.1, 0.9], seconds=8.0, kind="progressive")
    text = headline(compared(slow, workdir(tmp_path / "o", [0.1, 0.9], seconds=4.0)))
    assert "80.0 s of training by POPD (speed-up 0.5x) and 40.0 s by OPD" in text

  def test_some_seeds_miss(self, study):
    assert "120 s of training by OPD (2 of 3 runs)" in headline(compared(*study[3:6], target=0.93))

  def test_unfinished_runs(self, tmp_path):
    paths = [workdir(tmp_path / str(seed), [0.1, 0.5], total=100, seed=seed) for seed in range(2)]
    comparison = compared(*paths, target=0.9)
    assert not comparison.baseline.finished
    assert steps(comparison.baseline) == "step 10 of 100"
    assert headline(comparison) == ("OPD has not reached an accuracy of 0.9 by step 10 of 100 (medians over 2 seeds).")


def test_the_greedy_accuracy_stands_beside_the_one_at_a_temperature_where_every_run_has_it(tmp_path):
  for seed in range(2):
    path = workdir(tmp_path / f"{seed}", [0.2, 0.5], seed=seed)
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for record in records:
      if record["kind"] == "eval" and (seed or not record["step"]):
        record["greedy"] = {"accuracy": 0.7, "low": 0.6, "high": 0.8}
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
  both, last = compared(tmp_path / "0", tmp_path / "1"), compared(tmp_path / "1")
  assert "greedy" not in accuracy(both.arms[0])
  assert accuracy(last.arms[0]).endswith("), greedy 0.700")
