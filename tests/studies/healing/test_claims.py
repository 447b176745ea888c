"""The claims of the study of healing, decided on made-up measurements."""

import json
from typing import Any

import numpy as np
import pytest

from opd_jax.studies.healing import arms, claims, curves, numbers, sections
from opd_jax.studies.healing.measures import EDGES
from opd_jax.studies.results import Results
from opd_jax.studies.verdicts import MISSING, NOT_SUPPORTED, SUPPORTED, UNDECIDED, Verdict, decide
from tests.helpers import synthetic_study

SEEDS = (20, 21, 22)
BINS = len(EDGES) - 1


@pytest.fixture
def study_of(tmp_path, monkeypatch):
  """Write what students are after training: study_of({arm: divergence}, by_position=..., first=..., flops=...) -> its results.

  by_position: of an arm its divergence by bin; first: the divergence at its first checkpoint; flops: of the whole run.
  """
  cost: dict[str, float] = {}
  monkeypatch.setattr(
    Results,
    "flops_at",
    lambda self, arm, seed, steps: np.array([cost.get(arm, 1.0) * step / 8 for step in steps]),
  )

  def write(
    levels: dict[str, float],
    *,
    by_position: dict[str, list[float]] | None = None,
    first: dict[str, float] | None = None,
    flops: dict[str, float] | None = None,
    **of: dict[str, float],
  ) -> Results:
    cost.update(flops or {})
    for name, level in levels.items():
      for seed in SEEDS:
        noise = 0.001 * ((seed + sum(name.encode())) % 3)
        last = _step(8, level + noise, (by_position or {}).get(name))
        last |= {key: by_arm[name] + noise for key, by_arm in of.items() if name in by_arm}
        steps = [last] if name == "untrained" else [_step(4, (first or {}).get(name, 1.0), None), last]
        record: dict[str, Any] = {"steps": steps, "word_problems": {"sampled": 0.2 + noise, "greedy": 0.3}}
        synthetic_study.write(tmp_path, f"asked-{name}", seed, {"of": "", **record})
        if name != "untrained":
          path = tmp_path / "runs" / name / f"seed{seed}"
          synthetic_study.workdir(path, seed, lambda step: 0.2, steps=8, every=8)
    return Results(tmp_path, SEEDS)

  return write


def _step(step: int, kl: float, by_position: list[float] | None) -> dict[str, Any]:
  same = {"forward_kl": 1.0, "agreement": 0.7, "length": 100.0, "ended": 0.5, "repeated": 0.1}
  of_original = {"original": {"length": 90.0, "ended": 0.5, "repeated": 0.1}}
  return (
    {"step": step, "kl": kl, "by_position": by_position or [kl] * BINS, "tokens": [100] * BINS} | same | of_original
  )


def decided(results: Results, name: str) -> Verdict:
  (verdict,) = decide([claim for claim in claims.CLAIMS if claim.name == name], results)
  return verdict


BEFORE = {"untrained": 1.0}
Case = tuple[str, dict[str, float], dict, str]


def _as_good(name: str, arm: str) -> list[Case]:
  both = {"opd": 0.5, "opd-few-rows": 0.5} | BEFORE
  unlikely = {"forward_kl": {arm: 1.5, "opd": 1.0}}
  return [
    (name, {arm: 0.5} | both, {}, SUPPORTED),
    (name, {arm: 0.6} | both, {}, NOT_SUPPORTED),
    (name, {arm: 0.5} | both | {"opd-few-rows": 0.4}, {}, NOT_SUPPORTED),
    (name, {arm: 0.5} | both, unlikely, NOT_SUPPORTED),
  ]


def _better(name: str, a: str, b: str) -> list[Case]:
  return [(name, {a: 0.5, b: 0.6} | BEFORE, {}, SUPPORTED), (name, {a: 0.6, b: 0.5} | BEFORE, {}, NOT_SUPPORTED)]


FIXED = {"topd-6": 0.7, "topd-10": 0.6, "topd-25": 0.5, "topd-50": 0.6} | BEFORE
EVEN, EARLY = [0.5] * BINS, [0.4, 0.4, 0.4, 0.9, 0.9, 0.9]
LATE = ("what is learned early holds late", {"topd-10": 0.5, "opd": 0.5} | BEFORE)
SOONER = ("POPD is sooner", {"popd": 0.4, "opd": 0.6, "topd-10": 0.5, "topd-25": 0.5} | BEFORE)
GROWS = ("the best horizon grows with the budget", {"topd-10": 0.6, "opd-few-rows": 0.5} | BEFORE)
SPEAKS = ("it speaks again", {"opd": 0.5} | BEFORE)  # the original repeats .1 of its tokens and ends .5 of its answers
GOES_ON = ("short rollouts go on teaching", {"topd-25-long": 0.5} | BEFORE)
CASES: list[Case] = [
  ("OPD heals", {"opd": 0.5} | BEFORE, {}, SUPPORTED),
  ("OPD heals", {"opd": 1.5} | BEFORE, {}, NOT_SUPPORTED),
  *(case for name in arms.RATIOS.values() for case in _as_good(f"{name}% of a rollout does", f"topd-{name}")),
  *_as_good("a horizon that grows does", "popd"),
  *_as_good("and so does one that grows to less", "popd-half"),
  *_better("it is not the number of updates", "topd-10", "opd-few-rows"),
  (*LATE, {"by_position": {"topd-10": EVEN, "opd": EVEN}}, SUPPORTED),
  (*LATE, {"by_position": {"topd-10": EARLY, "opd": EVEN}}, NOT_SUPPORTED),
  (LATE[0], LATE[1] | {"topd-10": 1.2, "opd": 1.2}, {}, NOT_SUPPORTED),  # as OPD, and above what it was before
  (*SOONER, {"first": {"popd": 0.5}}, SUPPORTED),
  (*SOONER, {"first": {"popd": 0.9}}, NOT_SUPPORTED),
  (*SOONER, {"first": {"popd": 0.5, "topd-10": 0.3}}, NOT_SUPPORTED),  # TOPD is sooner still
  ("POPD is sooner", SOONER[1] | {"popd": 0.8}, {}, NOT_SUPPORTED),  # never, and so not with half of the FLOPs
  ("look chooses well", {"look": 0.51} | FIXED, {}, SUPPORTED),
  ("look chooses well", {"look": 0.6} | FIXED, {}, NOT_SUPPORTED),
  ("look chooses well", {"look": 0.6} | FIXED, {"flops": {"look": 2.0}, "first": {"look": 0.5}}, SUPPORTED),  # at half
  (*GROWS, {"first": {"topd-10": 0.6, "opd-few-rows": 0.8}}, SUPPORTED),
  (*GROWS, {"first": {"topd-10": 0.9, "opd-few-rows": 0.8}}, NOT_SUPPORTED),
  (GROWS[0], GROWS[1] | {"topd-10": 0.4}, {"first": {"topd-10": 0.6, "opd-few-rows": 0.8}}, NOT_SUPPORTED),
  *_better("own words are better than the teacher's", "opd", "sft"),
  *_better("reverse KL is better on own words", "opd", "forward"),
  *_better("more than no teacher", "opd", "null"),
  ("own words are better than the teacher's", {"opd": 0.5, "sft": 0.5} | BEFORE, {}, UNDECIDED),
  (*GOES_ON, {"first": {"topd-25-long": 0.7}}, SUPPORTED),
  (*GOES_ON, {"first": {"topd-25-long": 0.4}}, NOT_SUPPORTED),
  (*SPEAKS, {"repeated": {"opd": 0.15, "untrained": 0.3}, "ended": {"opd": 0.4, "untrained": 0.2}}, SUPPORTED),
  (*SPEAKS, {"repeated": {"opd": 0.15, "untrained": 0.3}, "ended": {"opd": 0.9, "untrained": 0.3}}, NOT_SUPPORTED),
]


@pytest.mark.parametrize(("claim", "levels", "of", "status"), CASES)
def test_a_claim_is_decided_by_its_rule(claim, levels, of, status, study_of):
  assert decided(study_of(levels, **of), claim).status == status


def test_every_claim_is_decided_both_ways():
  for claim in claims.CLAIMS:
    found = {status for name, _, _, status in CASES if name == claim.name}
    assert {SUPPORTED, NOT_SUPPORTED} <= found, claim.name


def _noise(arm: str, seed: int) -> float:
  return 0.001 * ((seed + sum(arm.encode())) % 3)


def test_flops_to_a_divergence_are_interpolated_between_checkpoints(study_of):
  results = study_of({"popd": 0.4, "opd": 0.6} | BEFORE, first={"popd": 0.8}, flops={"popd": 2.0})
  for seed, at in curves.flops_to(results, "popd", dict.fromkeys(SEEDS, 0.6)).items():
    assert at == pytest.approx(1.0 + (0.8 - 0.6) / (0.4 - _noise("popd", seed)))
  assert set(curves.flops_to(results, "popd", dict.fromkeys(SEEDS, 0.1)).values()) == {2.0}, "never: all that it spent"


def test_arms_are_compared_where_both_have_spent_as_much(study_of):
  """An arm that spent twice as much is read at half of its run, whatever it came to then."""
  results = study_of({"topd-6": 0.2, "opd": 0.6} | BEFORE, first={"topd-6": 0.8}, flops={"topd-6": 2.0})
  expected = [0.8 / (0.6 + _noise("opd", seed)) for seed in SEEDS]
  assert curves.over(results, "topd-6").mean == pytest.approx(float(np.exp(np.mean(np.log(expected)))))


def test_positions_that_few_answers_reach_may_count_alike():
  step = {"by_position": [1.0] * (BINS - 1) + [3.0], "tokens": [10] * (BINS - 1) + [2]}
  assert curves.from_position(step) == pytest.approx((10 * (BINS - 1) + 6) / (10 * (BINS - 1) + 2))
  assert curves.from_position(step, weights="positions") == pytest.approx(
    (EDGES[-2] + 3 * (EDGES[-1] - EDGES[-2])) / EDGES[-1]
  )
  assert curves.from_position({"by_position": [None] * BINS, "tokens": [0] * BINS}, weights="positions") is None


def test_nothing_is_decided_without_runs(tmp_path):
  results = Results(tmp_path, SEEDS)
  assert {verdict.status for verdict in decide(claims.CLAIMS, results)} == {MISSING}
  for section in sections.sections(results):
    assert section.figure is None
    assert not section.rows


def test_one_seed_decides_nothing_that_needs_an_interval(study_of, tmp_path):
  study_of({"opd": 0.5} | BEFORE)
  assert decided(Results(tmp_path, SEEDS[:1]), "OPD heals").status == UNDECIDED


def test_the_page_has_a_picture_and_a_row_of_every_arm(study_of):
  results = study_of(dict.fromkeys(sections.ASKED, 0.5) | BEFORE)
  by_cost, position, by_flops, by_tokens, spent = sections.sections(results)
  assert by_cost.figure is not None
  assert position.figure is not None
  for section in (by_cost, position):
    assert [row["arm"] for row in section.rows] == list(sections.ASKED.values())
  assert [row["arm"] for row in spent.rows] == list(arms.LABELS.values())
  for section in (by_flops, by_tokens):
    assert [row["share"] for row in section.rows] == ["50%", "100%"]
    assert all(row["lowest"] in arms.LABELS.values() for row in section.rows)
  json.dumps([row for s in (by_cost, position, by_flops, by_tokens, spent) for row in s.rows])


def test_all_that_was_measured_is_one_object(study_of):
  results = study_of({"opd": 0.4} | BEFORE, first={"opd": 0.9})
  found = numbers.collect(results)
  assert {arm: list(of) for arm, of in found.items()} == {arm: ["20", "21", "22"] for arm in ("untrained", "opd")}
  run = found["opd"]["21"]
  assert [step["kl"] for step in run["steps"]] == pytest.approx([0.9, 0.4 + _noise("opd", 21)], abs=1e-4)
  assert run["flops"] == [0.5, 1.0]
  by_step = {record["step"]: record["tokens"] for record in results.runs("opd")[21].train}
  assert run["generated_tokens"] == [by_step[4], by_step[8]]
  assert json.loads(numbers.text(found)) == found


def test_the_lowest_divergence_of_a_budget_is_named(study_of):
  results = study_of({"opd": 0.4, "topd-10": 0.5} | BEFORE, first={"opd": 0.9, "topd-10": 0.6}, flops={"topd-10": 0.8})
  rows = sections.budget_table(results, "flops")
  assert [row["lowest"] for row in rows] == ["TOPD 10%", "OPD"]
  assert [row["TOPD 10%"] for row in rows][-1] == "–", "it spent less"
