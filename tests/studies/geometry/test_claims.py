"""The claims of the study of updates, decided on made-up runs and measurements."""

import json
from typing import Any

import pytest

from opd_jax.studies.geometry import arms, claims, measures, sections
from opd_jax.studies.results import Results, workdir
from opd_jax.studies.verdicts import MISSING, NOT_SUPPORTED, SUPPORTED, Status, decide
from tests.helpers import synthetic_study

SEEDS = (20, 21, 22, 23, 24)
COMPARED = [arm.name for arm in arms.COMPARED]


def entry(value: float, null: float, seed: int) -> dict[str, Any]:
  drawn = {"draws": [null, null + 0.001, null - 0.001]}
  return {"value": value + 0.001 * (seed % 3), "permuted": drawn, "gaussian": drawn}


def measurement(seed: int, **numbers: float) -> dict[str, Any]:
  """A record of `measures._update`; a number is the statistic, and of one with "_null" its nulls'."""
  defaults = {"zero": 0.8, "low": 0.4, "principal": 0.05, "energy": 0.5, "projection": 0.005, "rank": 5.0}
  nulls = {"zero": 0.7, "low": 0.3, "principal": 0.1, "energy": 0.1, "projection": 0.01, "rank": 50.0}
  n = defaults | numbers
  of = {
    "zero": "zero",
    "low_coverage@10%": "low",
    "principal_coverage@10%": "principal",
    "top_energy@4": "energy",
    "projection@10%": "projection",
    "stable_rank": "rank",
  }
  statistics = {name: entry(n[short], nulls[short], seed) for name, short in of.items()}
  curve = [0.2, 0.3, 0.5]
  return {
    "step": 30,
    "reached": True,
    "statistics": {claims.ROUNDED: statistics, claims.EXACT: statistics},
    "layers": {},
    "curves": {claims.EXACT: {"observed": [curve], "permuted": [curve], "gaussian": [curve]}},
  }


LIFT = {"value": 3.0, "null": 2.0}
SCORES = {"all": 0.85, "visible": 0.85, "top": 0.85, "of-topd": 0.85, "of-grpo": 0.85}  # of others .7
UPDATES: dict[str, dict[str, float]] = {"offline": {"rank": 20.0, "energy": 0.2}}


@pytest.fixture
def study_of(tmp_path):
  """Write a study of runs with these scores and measurements of updates."""

  def make(scores: dict[str, float], updates: dict[str, dict[str, float]], lift: dict[str, float]) -> Results:
    of_arm = {arm: scores.get(name, 0.7) for name, group in arms.TUNED.items() for arm in group}
    for arm, score in of_arm.items():
      for seed in SEEDS:
        path = workdir(tmp_path, arm, seed)
        synthetic_study.workdir(path, seed, lambda step, score=score: score, steps=30, every=10, noise=0.001)
        _add_greedy(path, score)
    for name in COMPARED:
      for seed in SEEDS:
        synthetic_study.write(tmp_path, f"update-{name}", seed, measurement(seed, **updates.get(name, {})))
    for seed in SEEDS:
      shared = {claims.ROUNDED: {"overlap_lift": entry(lift["value"], lift["null"], seed)}}
      synthetic_study.write(tmp_path, "shared-grpo", seed, {"statistics": shared})
    return Results(tmp_path, SEEDS)

  return make


def _add_greedy(path, score: float) -> None:
  file = path / "metrics.jsonl"
  records = [json.loads(line) for line in file.read_text().splitlines()]
  for record in records:
    if record["kind"] == "eval":
      record["greedy"] = {"accuracy": record["accuracy"]}
  file.write_text("".join(json.dumps(record) + "\n" for record in records))


def decided(results: Results) -> dict[str, Status]:
  return {verdict.claim: verdict.status for verdict in decide(claims.CLAIMS, results)}


def test_what_is_as_claimed_is_supported(study_of):
  results = study_of(SCORES, UPDATES, LIFT)
  statuses = decided(results)
  assert set(statuses.values()) == {SUPPORTED}, statuses
  shown = sections.sections(results)
  assert all(section.figure is not None for section in shown)
  assert shown[0].rows[0]["steps"] == "30, 30, 30, 30, 30"
  assert len(shown[2].rows) == len(arms.TUNED)


@pytest.mark.parametrize(
  ("scores", "updates", "lift", "claim"),
  [
    ({}, {"opd": {"zero": 0.6}}, LIFT, "sparse beyond the null"),
    ({}, {"opd": {"low": 0.2}}, LIFT, "small weights beyond the null"),
    ({}, {"opd": {"principal": 0.2}}, LIFT, "off the principal weights beyond the null"),
    ({}, {"opd": {"energy": 0.05}}, LIFT, "concentrated beyond the null"),
    ({}, {"opd": {"projection": 0.02}}, LIFT, "off the principal subspaces"),
    ({}, {"offline": {"rank": 5.0, "energy": 0.5}}, LIFT, "unlike offline distillation"),
    ({"visible": 0.75}, {}, LIFT, "the visible subnetwork suffices"),
    ({"global": 0.9}, {}, LIFT, "better than random coordinates"),
    ({"lowest": 0.9}, {}, LIFT, "better than strong controls"),
    ({"top": 0.9}, {}, LIFT, "visible is enough of a ranking"),
    ({"of-topd": 0.7}, {}, LIFT, "a short horizon finds them"),
    ({"of-grpo": 0.7}, {}, LIFT, "a reward finds them"),
    ({}, {}, {"value": 1.5, "null": 2.0}, "shared beyond the null"),
    ({"sgd": 0.9}, {}, LIFT, "AdamW beats SGD"),
  ],
)
def test_what_is_not_so_is_not_supported(scores, updates, lift, claim, study_of):
  results = study_of(SCORES | scores, UPDATES | updates, lift)
  (verdict,) = decide([c for c in claims.CLAIMS if c.name == claim], results)
  assert verdict.status == NOT_SUPPORTED


def test_what_was_not_run_is_missing(tmp_path):
  assert set(decided(Results(tmp_path, SEEDS)).values()) == {MISSING}


def test_updates_are_compared_at_one_score(tmp_path):
  for name, accuracy, expected in (
    ("early", lambda step: 0.02 * step, (30, True)),
    ("never", lambda step: 0.3, (50, False)),
  ):
    path = tmp_path / name / "seed0"
    synthetic_study.workdir(path, 0, accuracy, steps=50, every=10, noise=0.0)
    assert measures.step_at_target(path) == expected
