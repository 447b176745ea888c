"""The claims of the study of ZPPO, decided on made-up measurements."""

import json
from typing import Any

import pytest

from opd_jax.studies.results import Results
from opd_jax.studies.verdicts import MISSING, NOT_SUPPORTED, SUPPORTED, UNDECIDED, Verdict, decide
from opd_jax.studies.zone import arms, claims, sections
from opd_jax.tasks.subsets import OTHER_TIERS, TIERS
from tests.helpers import synthetic_study

SEEDS = (20, 21, 22)
Level = float | tuple[float, float]  # accuracy, greedy as sampled; or both
HISTORY = {"entered": [200, 50], "graduated": [60, 40], "evicted": [0, 0], "visits": [400, 60]}
AUDIT = {
  "reward_bcq": 0.6,
  "bcq_repeats_right": 0.5,
  "bcq_repeats_wrong": 0.3,
  "reward_ncq": 0.1,
  "ncq_repeats_wrong": 0.2,
}


@pytest.fixture
def study_of(tmp_path):
  """Write what students answer: study_of({arm: accuracy}, others=..., hard=...) -> its results; a pair is sampled and greedy."""

  def write(
    levels: dict[str, Level], others: dict[str, Level] | None = None, hard: dict[str, Level] | None = None
  ) -> Results:
    for name, level in levels.items():
      for seed in SEEDS:
        noise = 0.001 * ((seed + len(name)) % 3)
        trained = _record(level, noise, [tier.name for tier in TIERS])
        trained["tiers"]["hard"] = _record((hard or {}).get(name, level), noise, [])
        trained["tiers"]["hard"].pop("tiers")
        of_others = _record((others or {}).get(name, level), noise, [tier.name for tier in OTHER_TIERS])
        synthetic_study.write(tmp_path, f"asked-{name}", seed, {"of": "", "trained": trained, "others": of_others})
    return Results(tmp_path, SEEDS)

  return write


def _record(level: Level, noise: float, tiers: list[str]) -> dict[str, Any]:
  sampled, greedy = level if isinstance(level, tuple) else (level, level)
  both = {"sampled": sampled + noise, "greedy": greedy + noise}
  return both | {"pass": min(1.0, 2 * sampled), "tiers": {tier: dict(both) for tier in tiers}}


@pytest.fixture
def runs_of(tmp_path):
  """Write runs: runs_of(arm, **numbers of every training record)."""

  def write(arm: str, **logged: Any) -> None:
    for seed in SEEDS:
      path = tmp_path / "runs" / arm / f"seed{seed}"
      numbers = {
        key: value + 0.001 * (seed % 3) if isinstance(value, float) else value for key, value in logged.items()
      }
      synthetic_study.workdir(path, seed, lambda step: 0.2, steps=8, every=2, metrics=numbers)

  return write


def decided(results: Results, name: str) -> Verdict:
  (verdict,) = decide([claim for claim in claims.CLAIMS if claim.name == name], results)
  return verdict


def _two_ways(name: str, b: str, a: str = "zppo") -> list[tuple[str, dict[str, Level], str]]:
  return [
    (name, {a: 0.4, b: 0.3}, SUPPORTED),
    (name, {a: (0.4, 0.3), b: (0.3, 0.4)}, NOT_SUPPORTED),
  ]


SUM = {"grpo": 0.2, "buffer": 0.25, "asked": 0.25}
PARTS = {"buffer": 0.25, "asked": 0.25, "bcq": 0.3, "ncq": 0.25}
BY_ACCURACY = [
  ("ZPPO learns", {"zppo": 0.3, "untrained": 0.2}, SUPPORTED),
  ("ZPPO learns", {"zppo": (0.3, 0.2), "untrained": (0.2, 0.3)}, NOT_SUPPORTED),
  *_two_ways("better than GRPO", "grpo"),
  *_two_ways("the buffer pays", "grpo", "buffer"),
  ("the buffer pays", {"buffer": 0.3, "grpo": 0.3}, UNDECIDED),
  *_two_ways("the reformulations pay", "grpo", "asked"),
  ("more than the sum", SUM | {"zppo": 0.35}, SUPPORTED),
  ("more than the sum", SUM | {"zppo": 0.28}, NOT_SUPPORTED),
  ("more than the sum", SUM | {"zppo": (0.35, 0.28)}, NOT_SUPPORTED),
  ("better than every part", PARTS | {"zppo": 0.4}, SUPPORTED),
  ("better than every part", PARTS | {"zppo": 0.28}, NOT_SUPPORTED),
  *_two_ways("it is the right candidate", "wrong-pair"),
  *_two_ways("order matters", "unshuffled"),
  *_two_ways("mastered ones graduate", "random-graduation"),
  *_two_ways("better than a hint", "hint"),
  *_two_ways("better than a prefix", "prefix"),
  *_two_ways("better than the teacher's probabilities", "on-distill"),
  *_two_ways("better than the teacher's solutions", "off-distill"),
]


@pytest.mark.parametrize(("claim", "levels", "status"), BY_ACCURACY)
def test_a_claim_about_accuracies_is_decided_by_its_rule(claim, levels, status, study_of):
  assert decided(study_of(levels), claim).status == status


EQUAL = {"zppo": 0.3, "buffer": 0.3, "on-distill": 0.3, "untrained": 0.3}
HARD = [({"zppo": 0.2, "buffer": 0.1}, SUPPORTED), ({"zppo": 0.1, "buffer": 0.2}, NOT_SUPPORTED)]
ELSEWHERE = [
  ({"zppo": 0.3, "on-distill": 0.1, "untrained": 0.2}, SUPPORTED),
  ({"zppo": 0.3, "on-distill": 0.25, "untrained": 0.2}, NOT_SUPPORTED),
  ({"zppo": 0.05, "on-distill": 0.1, "untrained": 0.2}, NOT_SUPPORTED),
]


@pytest.mark.parametrize(("hard", "status"), HARD)
def test_the_hard_tier_decides_what_is_said_of_it(hard, status, study_of):
  assert decided(study_of(EQUAL, hard=hard), "hard questions are learned").status == status


@pytest.mark.parametrize(("others", "status"), ELSEWHERE)
def test_other_tiers_decide_what_is_said_of_them(others, status, study_of):
  assert decided(study_of(EQUAL, others=others), "distillation loses elsewhere").status == status


GRADUATED = [(60, SUPPORTED), (4, NOT_SUPPORTED)]


@pytest.mark.parametrize(("of_zppo", "status"), GRADUATED)
def test_questions_without_a_right_rollout_decide_who_graduates_them(of_zppo, status, runs_of, tmp_path):
  runs_of("zppo", buffer_history=HISTORY | {"graduated": [of_zppo, 0]})
  runs_of("buffer", buffer_history=HISTORY | {"graduated": [8, 40]})
  verdict = decided(Results(tmp_path, SEEDS), "what nobody solved graduates")
  # all seeds of a made-up run have the same history: the interval is a point
  assert verdict.status == status
  shown = {e.label: e.estimate.mean for e in verdict.evidence}
  assert shown["ZPPO less GRPO + buffer"] == pytest.approx((of_zppo - 8) / 200)
  assert shown["GRPO + buffer, of all"] == pytest.approx(48 / 250)


COPIES = [({}, 0.4, SUPPORTED), ({"bcq_repeats_right": 0.1}, 0.4, NOT_SUPPORTED), ({}, 0.2, NOT_SUPPORTED)]


@pytest.mark.parametrize(("changes", "after", "status"), COPIES)
def test_copies_are_counted_among_right_answers(changes, after, status, study_of, runs_of):
  runs_of("zppo", **AUDIT | changes)
  results = study_of({"zppo": after, "untrained": 0.3})
  assert decided(results, "copied, and learned all the same").status == status


def test_every_claim_is_decided_both_ways():
  cases = [(case[0], case[2]) for case in BY_ACCURACY]
  for name, of in (
    ("hard questions are learned", HARD),
    ("distillation loses elsewhere", ELSEWHERE),
    ("what nobody solved graduates", GRADUATED),
    ("copied, and learned all the same", COPIES),
  ):
    cases += [(name, case[-1]) for case in of]
  for claim in claims.CLAIMS:
    assert {SUPPORTED, NOT_SUPPORTED} <= {status for name, status in cases if name == claim.name}, claim.name


def test_nothing_is_decided_without_runs(tmp_path):
  results = Results(tmp_path, SEEDS)
  assert {verdict.status for verdict in decide(claims.CLAIMS, results)} == {MISSING}
  for section in sections.sections(results):
    assert section.figure is None
    assert not section.rows


def test_the_page_has_a_picture_and_a_row_of_every_arm_that_was_run(study_of, runs_of, tmp_path):
  results = study_of(dict.fromkeys(sections.ASKED, 0.3) | {"untrained": 0.15})
  for arm in arms.ARMS:
    more = AUDIT | {"buffer_history": HISTORY, "plain_tokens": 5000} if arm.method == "zppo" else {}
    runs_of(arm.name, **more)
  accuracy, tiers, way, audits, buffers, tokens = sections.sections(results)
  assert accuracy.figure is not None
  assert way.figure is not None
  assert [row["arm"] for row in accuracy.rows] == [row["arm"] for row in tiers.rows] == list(sections.ASKED.values())
  assert tiers.rows[0]["hard"].startswith("15.")
  of_zone = [arm.label for arm in arms.ARMS if arm.method == "zppo"]
  assert [row["arm"] for row in audits.rows] == [row["arm"] for row in buffers.rows] == of_zone
  assert buffers.rows[0]["of those without a right one"].startswith("30.0")
  assert audits.rows[0]["repeat the right one"].startswith("50.")
  assert [row["arm"] for row in tokens.rows] == list(arms.LABELS.values())
  assert tokens.rows[0]["plain rollouts, a step"] == "5,000"
  json.dumps([row for s in (accuracy, tiers, audits, buffers, tokens) for row in s.rows])
