"""The claims of the study of Vision-OPD, decided on made-up measurements."""

import json
from typing import Any

import pytest

from opd_jax.studies.results import Results
from opd_jax.studies.verdicts import MISSING, NOT_SUPPORTED, SUPPORTED, UNDECIDED, Verdict, decide
from opd_jax.studies.vision import arms, claims, sections
from tests.helpers import synthetic_study

SEEDS = (20, 21, 22)
Level = float | tuple[float, float]  # accuracy, greedy as sampled; or both
OF = ("marked", "unmarked", "crop", "majority", "count")


@pytest.fixture
def study_of(tmp_path):
  """Write what students answer: study_of({arm: accuracy}, crop={arm: ...}, length=...) -> its results; a pair is sampled and greedy."""

  def write(levels: dict[str, Level], *, length: dict[str, float] | None = None, **of: dict[str, Level]) -> Results:
    for name, level in levels.items():
      for seed in SEEDS:
        noise = 0.001 * ((seed + len(name)) % 3)
        record: dict[str, Any] = {each: _record(of.get(each, {}).get(name, level), noise) for each in OF}
        record["marked"]["length"] = (length or {}).get(name, 6.0)
        if name in arms.CURVES:
          record["steps"] = [{"step": step, "marked": 0.4, "crop": 0.9} for step in (20, 40)]
        synthetic_study.write(tmp_path, f"asked-{name}", seed, {"of": "", **record})
    return Results(tmp_path, SEEDS)

  return write


def _record(level: Level, noise: float) -> dict[str, Any]:
  sampled, greedy = level if isinstance(level, tuple) else (level, level)
  return {"sampled": sampled + noise, "greedy": greedy + noise, "length": 6.0}


def decided(results: Results, name: str) -> Verdict:
  (verdict,) = decide([claim for claim in claims.CLAIMS if claim.name == name], results)
  return verdict


def _better(name: str, b: str, a: str = "ema") -> list[tuple[str, dict[str, Level], dict, str]]:
  return [
    (name, {a: 0.4, b: 0.3}, {}, SUPPORTED),
    (name, {a: (0.4, 0.3), b: (0.3, 0.4)}, {}, NOT_SUPPORTED),
  ]


def _as_good(name: str, a: str, b: str = "ema") -> list[tuple[str, dict[str, Level], dict, str]]:
  return [
    (name, {a: 0.397, b: 0.4}, {}, SUPPORTED),
    (name, {a: (0.45, 0.3), b: (0.4, 0.4)}, {}, NOT_SUPPORTED),
  ]


GAP = {"ema": 0.6, "untrained": 0.4}
CROPS = {"crop": {"ema": 0.9, "untrained": 0.9}}
SKILLED = {"majority": {"ema": 0.8, "untrained": 0.8, "sft": 0.7}, "count": {"ema": 0.5, "untrained": 0.5, "sft": 0.4}}
SEEN = {"ema": 0.6, "untrained": 0.4, "sft": 0.5}
CASES = [
  *_better("Vision-OPD learns", "untrained"),
  ("the region gap closes", GAP, CROPS, SUPPORTED),
  ("the region gap closes", GAP, {"crop": {"ema": 0.95, "untrained": 0.6}}, NOT_SUPPORTED),
  ("the region gap closes", {"ema": 0.3, "untrained": 0.4}, {"crop": {"ema": 0.3, "untrained": 0.9}}, NOT_SUPPORTED),
  *_better("it is the region", "other-region"),
  ("more than no teacher", {"ema": 0.4, "null": 0.4}, {}, UNDECIDED),
  *_better("more than no teacher", "null"),
  ("a current teacher collapses", {"current": 0.1, "untrained": 0.4}, {}, SUPPORTED),
  ("a current teacher collapses", {"current": 0.5, "untrained": 0.4}, {}, NOT_SUPPORTED),
  *_as_good("a frozen teacher does", "frozen"),
  *_as_good("mixed logits do", "mix"),
  *_better("JSD is better than forward KL", "forward"),
  *_better("JSD is better than reverse KL", "reverse"),
  *_better("better than SFT", "sft"),
  *_better("better than GRPO with labels", "grpo"),
  *_as_good("no expert is needed", "ema", "expert"),
  *_better("the tower has to learn", "frozen-tower"),
  ("it works without the red box", SEEN, {"unmarked": {"ema": 0.5, "untrained": 0.4}}, SUPPORTED),
  ("it works without the red box", SEEN, {"unmarked": {"ema": 0.3, "untrained": 0.4}}, NOT_SUPPORTED),
  ("nothing is forgotten", SEEN, SKILLED, SUPPORTED),
  ("nothing is forgotten", SEEN, SKILLED | {"count": {"ema": 0.4, "untrained": 0.5}}, NOT_SUPPORTED),
  ("it forgets less than SFT", SEEN, SKILLED, SUPPORTED),
  ("it forgets less than SFT", SEEN, SKILLED | {"count": {"ema": 0.4, "sft": 0.5}}, NOT_SUPPORTED),
  ("answers keep their length", SEEN, {"length": {"ema": 6.1}}, SUPPORTED),
  ("answers keep their length", SEEN, {"length": {"ema": 7.0}}, NOT_SUPPORTED),
  ("answers keep their length", SEEN, {"length": {"ema": 5.0}}, NOT_SUPPORTED),
  *_as_good("a quarter of a rollout does", "topd-25"),
  *_as_good("half of a rollout does", "topd-50"),
  *_as_good("longer and longer rollouts do", "popd"),
]


@pytest.mark.parametrize(("claim", "levels", "of", "status"), CASES)
def test_a_claim_is_decided_by_its_rule(claim, levels, of, status, study_of):
  assert decided(study_of(levels, **of), claim).status == status


def test_every_claim_is_decided_both_ways():
  for claim in claims.CLAIMS:
    found = {status for name, _, _, status in CASES if name == claim.name}
    assert {SUPPORTED, NOT_SUPPORTED} <= found, claim.name


def test_nothing_is_decided_without_runs(tmp_path):
  results = Results(tmp_path, SEEDS)
  assert {verdict.status for verdict in decide(claims.CLAIMS, results)} == {MISSING}
  for section in sections.sections(results):
    assert section.figure is None
    assert not section.rows


def test_the_page_has_a_picture_and_a_row_of_every_arm_that_was_asked(study_of, tmp_path):
  results = study_of(dict.fromkeys(sections.ASKED, 0.4), crop={"ema": 0.9, "untrained": 0.9})
  for arm in arms.ARMS:
    for seed in SEEDS:
      synthetic_study.workdir(tmp_path / "runs" / arm.name / f"seed{seed}", seed, lambda step: 0.2, steps=8, every=2)
  accuracy, gap, skills, way = sections.sections(results)
  assert all(section.figure is not None for section in (accuracy, gap, way))
  for section in (accuracy, gap, skills):
    assert [row["arm"] for row in section.rows] == list(sections.ASKED.values())
  assert gap.rows[1]["gap, greedy"].startswith("50.")
  json.dumps([row for s in (accuracy, gap, skills) for row in s.rows])
