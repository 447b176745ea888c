"""The claims of the study of d-OPSD, decided on made-up runs."""

import pytest

from opd_jax.studies.diffusion import arms, claims, sections
from opd_jax.studies.results import Results
from opd_jax.studies.verdicts import MISSING, NOT_SUPPORTED, SUPPORTED, UNDECIDED, Verdict, decide
from tests.helpers import synthetic_study

SEEDS = (20, 21, 22)
START = 0.3
COST = {"rollout_forwards": 640, "update_forwards": 160, "canvases": 60, "accepted": 0.7}


@pytest.fixture
def study_of(tmp_path):
  """Write a study: study_of({arm: accuracy at the end}) -> its results. All begin at START and have risen after half of the steps."""

  def write(
    levels: dict[str, float], fall: dict[str, float] | None = None, cost: dict[str, float] | None = None
  ) -> Results:
    for name, level in levels.items():
      lost = (fall or {}).get(name, 0.0)
      target = "reward" if name.endswith("reward") else "samples" if "sample" in name else "teacher"
      of_arm = {"diffusion.target": target, "diffusion.compared": "all" if target == "samples" else "teacher"}
      for seed in SEEDS:
        synthetic_study.workdir(
          tmp_path / "runs" / name / f"seed{seed}",
          seed,
          lambda step, level=level, lost=lost: (
            START + (level - START) * min(1, step / 8) - lost * max(0, step - 10) / 6
          ),
          steps=16,
          every=2,
          noise=0.002,
          metrics={**COST, "rollout_forwards": (cost or {}).get(name, 640)},
          config=of_arm,
        )
    return Results(tmp_path, SEEDS)

  return write


def decided(results: Results, name: str) -> Verdict:
  (verdict,) = decide([claim for claim in claims.CLAIMS if claim.name == name], results)
  return verdict


RIVALS = {
  "better than its own samples": "samples",
  "better than a policy gradient": "reward",
  "the step's own positions": "all-masks",
  "within the block": "canvas",
  "the teacher chooses where": "student-k",
  "reverse KL is better": "forward",
  "a teacher that stays is better": "current",
  "several tries are better": "one-try",
  "verified answers are better": "unfiltered",
  "a future on the canvas is better than one in the prompt": "prefix",
  "the paper's or its code's": "code",
}


@pytest.mark.parametrize("claim", RIVALS)
def test_d_opsd_is_above_each_rival_or_it_is_not(claim, study_of):
  arm = RIVALS[claim]
  assert decided(study_of({"d-opsd": 0.8, arm: 0.6}), claim).status == SUPPORTED


@pytest.mark.parametrize("claim", RIVALS)
def test_a_rival_that_is_above_it_decides_against_the_claim(claim, study_of):
  assert decided(study_of({"d-opsd": 0.6, RIVALS[claim]: 0.8}), claim).status == NOT_SUPPORTED


@pytest.mark.parametrize(
  ("claim", "levels", "status"),
  [
    ("d-OPSD learns", {"d-opsd": 0.8, "rho-0": 0.4}, SUPPORTED),
    ("d-OPSD learns", {"d-opsd": 0.8, "rho-0": 0.9}, NOT_SUPPORTED),
    ("d-OPSD learns", {"d-opsd": 0.2, "rho-0": 0.1}, NOT_SUPPORTED),
    ("a quarter is enough and not too much", {"d-opsd": 0.8, "rho-0": 0.3, "rho-10": 0.7, "rho-50": 0.7}, SUPPORTED),
    (
      "a quarter is enough and not too much",
      {"d-opsd": 0.8, "rho-0": 0.3, "rho-10": 0.9, "rho-50": 0.7},
      NOT_SUPPORTED,
    ),
    ("few denoising steps do", {"d-opsd": 0.7, "topd-33": 0.75}, SUPPORTED),
    ("few denoising steps do", {"d-opsd": 0.8, "topd-33": 0.6}, NOT_SUPPORTED),
  ],
)
def test_a_claim_about_scores_is_decided_by_its_rule(claim, levels, status, study_of):
  assert decided(study_of(levels), claim).status == status


def test_a_collapse_is_a_fall_from_the_best_that_the_clip_prevents(study_of):
  levels = {"long": 0.7, "long-clip": 0.7}
  assert decided(study_of(levels, {"long": 0.3}), "without the clip it collapses").status == SUPPORTED


def test_a_fall_with_the_clip_too_is_no_collapse_for_want_of_it(study_of):
  levels = {"long": 0.7, "long-clip": 0.7}
  assert decided(study_of(levels, {"long-clip": 0.3}), "without the clip it collapses").status == NOT_SUPPORTED


def test_costs_are_passes_through_a_model(study_of):
  results = study_of({"d-opsd": 0.8, "reward": 0.8}, cost={"reward": 3000})
  # Both come to half of the gain at step 4 or so; a backward pass is two.
  for arm, step in (("d-opsd", 640 + 2 * 160), ("reward", 3000 + 3 * 160)):
    for cost in claims.forwards_to(results, arm).values():
      assert 3.6 * step < cost < 4.4 * step
  assert decided(results, "cheaper than a policy gradient").status == SUPPORTED


def test_where_nothing_is_gained_there_is_nothing_to_pay_for(study_of):
  results = study_of({"d-opsd": 0.2, "reward": 0.8})
  assert decided(results, "cheaper than a policy gradient").status == MISSING


def test_an_arm_that_never_gets_there_costs_without_end(study_of):
  results = study_of({"d-opsd": 0.8, "reward": 0.3})
  assert set(claims.forwards_to(results, "reward").values()) == {float("inf")}


def check(gain: float) -> dict:
  shares = {f"{rho:g}": {"not_given": 0.8 + gain * rho, "right": 0.5 + gain * rho} for rho in arms.RHO}
  return {"answers": 100, "pass": {"1": 0.3, "8": 0.7}, "shares": shares}


@pytest.mark.parametrize(("gain", "status"), [(0.4, SUPPORTED), (-0.4, NOT_SUPPORTED)])
def test_the_teacher_check_asks_where_nothing_is_given(gain, status, tmp_path):
  for seed in SEEDS:
    synthetic_study.write(tmp_path, "teacher-check", seed, check(gain + 0.001 * seed))
  results = Results(tmp_path, SEEDS)
  assert decided(results, "the future helps").status == status
  assert sections.check_table(results)[2]["given"] == "25%"


@pytest.mark.parametrize(("after", "status"), [(0.9, SUPPORTED), (0.5, NOT_SUPPORTED)])
def test_more_is_solved_where_eight_answers_solve_more(after, status, tmp_path):
  for seed in SEEDS:
    synthetic_study.write(tmp_path, "asked-untrained", seed, {"pass": {"1": 0.3, "8": 0.7}})
    synthetic_study.write(tmp_path, "asked-d-opsd", seed, {"pass": {"1": 0.5, "8": after + 0.001 * seed}})
  results = Results(tmp_path, SEEDS)
  assert decided(results, "more problems have a right answer").status == status
  assert [row["arm"] for row in sections.several_table(results)] == ["before training", "d-OPSD"]


def test_nothing_run_is_said_and_the_page_is_drawn_from_what_there_is(study_of, tmp_path):
  assert {verdict.status for verdict in decide(claims.CLAIMS, Results(tmp_path, SEEDS))} == {MISSING}
  results = study_of({"d-opsd": 0.8, "samples": 0.8, "long": 0.8})
  assert decided(results, "better than its own samples").status == UNDECIDED
  first, sudoku, past, several = sections.sections(results)
  assert not first.rows
  assert not several.rows
  assert sudoku.figure is not None
  assert past.figure is not None
  assert [row["arm"] for row in sudoku.rows] == ["d-OPSD", "fine-tuning on the accepted answers"]
  assert sudoku.rows[0]["rollout forwards"] == "640"
