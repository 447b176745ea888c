"""The claims of the study of trust regions, decided on made-up runs."""

import re

import pytest

from opd_jax.studies.drpo import arms, claims, estimates, sections
from opd_jax.studies.results import Missing, Results
from opd_jax.studies.verdicts import MISSING, NOT_SUPPORTED, SUPPORTED, UNDECIDED, Verdict, decide
from tests.helpers import synthetic_study

SEEDS = (20, 21, 22)
START = 0.4
METRICS = {"moved": 0.02, "beyond": 0.01, "gradient_weight_min": 0.5, "gradient_weight_max": 1.05, "rare": 0.17}


@pytest.fixture
def study_of(tmp_path):
  """Write a study: study_of({arm: accuracy at the end}, {arm: metrics}) -> its results. All begin at START."""

  def write(levels: dict[str, float], metrics: dict[str, dict[str, float]] | None = None, seeds=SEEDS) -> Results:
    for name, level in levels.items():
      for seed in seeds:
        synthetic_study.workdir(
          tmp_path / "runs" / name / f"seed{seed}",
          seed,
          lambda step, level=level: START + (level - START) * step / 8,
          steps=8,
          every=2,
          noise=0.002,
          metrics=METRICS | (metrics or {}).get(name, {}),
        )
    return Results(tmp_path, seeds)

  return write


def decided(results: Results, name: str) -> Verdict:
  (verdict,) = decide([claim for claim in claims.CLAIMS if claim.name == name], results)
  return verdict


def tuned(dppo: float, drpo: float) -> dict[str, float]:
  return {arm: dppo - 0.05 * i for i, arm in enumerate(claims.DPPO_ARMS)} | {
    arm: drpo - 0.05 * i for i, arm in enumerate(claims.DRPO_ARMS)
  }


@pytest.mark.parametrize(
  ("claim", "levels", "status"),
  [
    ("stale rollouts need a trust region", {"dppo-0.15": 0.8, "is": 0.6}, SUPPORTED),
    ("stale rollouts need a trust region", {"dppo-0.15": 0.6, "is": 0.8}, NOT_SUPPORTED),
    ("12.5 is no threshold", {"drpo-12.5": 0.7, "is": 0.706}, SUPPORTED),
    ("12.5 is no threshold", {"drpo-12.5": 0.5, "is": 0.7}, NOT_SUPPORTED),
    ("12.5 is no threshold", {"drpo-12.5": 0.72, "is": 0.7}, NOT_SUPPORTED),
    ("better than a tuned DPPO", tuned(dppo=0.7, drpo=0.8), SUPPORTED),
    ("better than a tuned DPPO", tuned(dppo=0.8, drpo=0.7), NOT_SUPPORTED),
    ("better than a tuned DPPO", tuned(dppo=0.8, drpo=0.8), UNDECIDED),
    ("a threshold that can be reached is better", tuned(0.7, 0.8) | {"drpo-12.5": 0.6}, SUPPORTED),
    ("a threshold that can be reached is better", tuned(0.7, 0.8) | {"drpo-12.5": 0.9}, NOT_SUPPORTED),
    ("|A| belongs to the penalty", {"drpo-0.15": 0.8, "drpo-unscaled": 0.6}, SUPPORTED),
    ("|A| belongs to the penalty", {"drpo-0.15": 0.6, "drpo-unscaled": 0.8}, NOT_SUPPORTED),
    ("correction beyond the boundary helps", {"mask-drpo": 0.8, "dppo-0.15": 0.6}, SUPPORTED),
    ("correction beyond the boundary helps", {"mask-drpo": 0.6, "dppo-0.15": 0.8}, NOT_SUPPORTED),
    ("a coarse sampler costs nothing", {"int8-drpo-0.15": 0.8, "drpo-0.15": 0.8}, SUPPORTED),
    ("a coarse sampler costs nothing", {"int8-drpo-0.15": 0.6, "drpo-0.15": 0.8}, NOT_SUPPORTED),
    ("more updates a rollout pay", {"drpo-0.15": 0.8, "u1-drpo-0.15": 0.6}, SUPPORTED),
    ("more updates a rollout pay", {"drpo-0.15": 0.6, "u1-drpo-0.15": 0.8}, NOT_SUPPORTED),
    ("a teacher teaches more than its null", {"opd": 0.9, "opd-null": 0.45}, SUPPORTED),
    ("a teacher teaches more than its null", {"opd": 0.9, "opd-null": 0.95}, NOT_SUPPORTED),
    ("a teacher teaches more than its null", {"opd": 0.9, "opd-null": 0.8}, NOT_SUPPORTED),
    ("a teacher teaches more than a reward", tuned(0.7, 0.8) | {"opd": 0.9}, SUPPORTED),
    ("a teacher teaches more than a reward", tuned(0.7, 0.8) | {"opd": 0.7}, NOT_SUPPORTED),
    ("a reward on top of a teacher helps", {"opd": 0.8, "opd-reward": 0.9}, SUPPORTED),
    ("a reward on top of a teacher helps", {"opd": 0.9, "opd-reward": 0.8}, NOT_SUPPORTED),
  ],
)
def test_a_claim_about_areas_is_decided_by_its_rule(claim, levels, status, study_of):
  assert decided(study_of(levels), claim).status == status


@pytest.mark.parametrize(
  ("claim", "metrics", "status"),
  [
    ("the same boundary, no overshoot", {"drpo-0.15": {"beyond": 0.01}, "dppo-0.15": {"beyond": 0.02}}, SUPPORTED),
    ("the same boundary, no overshoot", {"drpo-0.15": {"beyond": 0.03}, "dppo-0.15": {"beyond": 0.02}}, NOT_SUPPORTED),
    (
      "SPO's weights explode",
      {"spo-0.2": {"gradient_weight_min": -40.0}, "drpo-0.15": {"gradient_weight_max": 6.0}},
      SUPPORTED,
    ),
    (
      "SPO's weights explode",
      {"spo-0.2": {"gradient_weight_max": 7.0}, "drpo-0.15": {"gradient_weight_max": 6.0}},
      NOT_SUPPORTED,
    ),
    (
      "SPO's weights explode",
      {"spo-0.2": {"gradient_weight_max": 40.0}, "drpo-0.15": {"gradient_weight_max": 9.0}},
      NOT_SUPPORTED,
    ),
  ],
)
def test_a_claim_about_weights_is_decided_by_its_rule(claim, metrics, status, study_of):
  assert decided(study_of(dict.fromkeys(metrics, 0.7), metrics), claim).status == status


def test_every_claim_is_decided_both_ways():
  marks = [
    *test_a_claim_about_areas_is_decided_by_its_rule.pytestmark,
    *test_a_claim_about_weights_is_decided_by_its_rule.pytestmark,
  ]
  cases = [(case[0], case[2]) for mark in marks for case in mark.args[1]]
  for claim in claims.CLAIMS:
    assert {SUPPORTED, NOT_SUPPORTED} <= {status for name, status in cases if name == claim.name}, claim.name


@pytest.mark.long
def test_nothing_is_decided_without_runs(study_of):
  results = study_of({})
  assert {verdict.status for verdict in decide(claims.CLAIMS, results)} == {MISSING}
  shown = sections.sections(results)
  assert [s.title for s in shown if s.figure is not None] == ["One token", "What a token's gradient weighs"]


def test_a_method_is_tuned_on_the_other_seeds(tmp_path):
  """A setting that one seed alone shines with is not what that seed is judged at."""
  levels = {"drpo-0.1": (0.9, 0.5, 0.5), "drpo-0.15": (0.6, 0.62, 0.61)}
  for name, by_seed in levels.items():
    for seed, level in zip(SEEDS, by_seed, strict=True):
      path = tmp_path / "runs" / name / f"seed{seed}"
      synthetic_study.workdir(path, seed, lambda step, level=level: level, steps=8, every=2, noise=0.0)
  results = Results(tmp_path, SEEDS)
  assert estimates.chosen(results, list(levels)) == {20: "drpo-0.15", 21: "drpo-0.1", 22: "drpo-0.1"}
  assert estimates.best_of(results, list(levels)) == pytest.approx({20: 0.6, 21: 0.5, 22: 0.5})
  with pytest.raises(Missing, match="two seeds"):
    estimates.best_of(Results(tmp_path, SEEDS[:1]), list(levels))


def test_a_run_that_loses_what_it_had_has_collapsed(tmp_path):
  def at(step: int, before: float, after: float) -> float:
    return START if step == 0 else before if step < 8 else after

  for name, levels in {"is": (0.8, 0.3), "drpo-0.15": (0.8, 0.78), "clip-higher": (0.1, 0.1)}.items():
    path = tmp_path / "runs" / name / "seed20"
    synthetic_study.workdir(path, 20, lambda step, levels=levels: at(step, *levels), steps=14, every=2, noise=0.0)
  results = Results(tmp_path, (20,))
  assert estimates.collapsed(results, "is") == {20: 1.0}
  assert estimates.collapsed(results, "drpo-0.15") == {20: 0.0}
  assert estimates.collapsed(results, "clip-higher") == {20: 1.0}, "it was lost before the first evaluation"


def test_the_area_is_the_mean_height_of_the_curve(study_of):
  found = estimates.area(study_of({"is": 0.8}), "is")
  assert found == pytest.approx(dict.fromkeys(SEEDS, 0.6), abs=0.01)


@pytest.mark.long
def test_the_page_has_a_picture_and_a_row_of_every_arm_that_was_run(study_of):
  levels = {arm.name: 0.6 for arm in arms.ARMS}
  results = study_of(levels, seeds=(20, 21))
  for name in levels:
    for seed in (20, 21):
      synthetic_study.write(results.out, f"asked-{name}", seed, {"of": "", "sampled": 0.6, "greedy": 0.7})
  shown = sections.sections(results)
  assert all(s.figure is not None for s in shown)
  (table,) = [s.rows for s in shown if s.rows and "arm" in s.rows[0]]
  assert len(table) == len(arms.ARMS)
  assert all(re.match(r"0\.700 ", row["greedy"]) for row in table)
