"""The claims of the study of updates, decided on made-up runs and measurements."""

import dataclasses
import json
from typing import Any

import pytest

from opd_jax.studies.geometry import arms, claims, measures, sections
from opd_jax.studies.results import Results, workdir
from opd_jax.studies.verdicts import MISSING, NOT_SUPPORTED, SUPPORTED, Status, decide
from tests.helpers import synthetic_study

SEEDS = (20, 21, 22, 23, 24)
COMPARED = [arm.name for arm in arms.COMPARED]


def entry(value: float, permuted: float, gaussian: float, seed: int) -> dict[str, Any]:
  nulls = {"permuted": permuted, "gaussian": gaussian}
  drawn = {name: {"draws": [null, null + 0.001, null - 0.001]} for name, null in nulls.items()}
  return {"value": value + 0.001 * (seed % 3)} | drawn


DEFAULTS = {"zero": 0.8, "low": 0.4, "principal": 0.05, "energy": 0.5, "projection": 0.005, "rank": 5.0}
PERMUTED = {"zero": 0.7, "low": 0.3, "principal": 0.1, "energy": 0.1, "projection": 0.01, "rank": 50.0}
GAUSSIAN = {"zero": 0.6, "low": 0.2, "principal": 0.15, "energy": 0.05, "projection": 0.03, "rank": 80.0}


def measurement(
  seed: int, *, reached: bool = True, permuted: dict | None = None, gaussian: dict | None = None, **numbers: float
) -> dict[str, Any]:
  """A record of `measures._update`, of statistics and of those of its nulls."""
  n = DEFAULTS | numbers
  nulls = (PERMUTED | (permuted or {}), GAUSSIAN | (gaussian or {}))
  of = {
    "zero": "zero",
    "low_coverage@10%": "low",
    "principal_coverage@10%": "principal",
    "top_energy@4": "energy",
    "projection@10%": "projection",
    "stable_rank": "rank",
  }
  statistics = {name: entry(n[short], nulls[0][short], nulls[1][short], seed) for name, short in of.items()}
  curve = [0.2, 0.3, 0.5]
  return {
    "step": 30,
    "reached": reached,
    "statistics": {claims.ROUNDED: statistics, claims.EXACT: statistics},
    "layers": {},
    "curves": {claims.EXACT: {"observed": [curve], "permuted": [curve], "gaussian": [curve]}},
  }


LIFT = {"value": 3.0, "permuted": 2.0, "gaussian": 1.0}
SCORES = {"all": 0.85, "visible": 0.85, "top": 0.85, "of-topd": 0.85, "of-grpo": 0.85}  # of others .7
UPDATES: dict[str, dict[str, Any]] = {"offline": {"rank": 20.0, "energy": 0.2}}


@pytest.fixture
def study_of(tmp_path):
  """Write a study of runs with these scores and measurements of updates."""

  def make(scores: dict[str, float], updates: dict[str, dict[str, Any]], lift: dict[str, float]) -> Results:
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
      shared = {claims.ROUNDED: {"overlap_lift": entry(**lift, seed=seed)}}
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


@pytest.mark.long
def test_what_is_as_claimed_is_supported(study_of):
  results = study_of(SCORES, UPDATES, LIFT)
  statuses = decided(results)
  assert set(statuses.values()) == {SUPPORTED}, statuses
  shown = sections.sections(results)
  assert all(section.figure is not None for section in shown)
  assert shown[0].rows[0]["steps"] == "30, 30, 30, 30, 30"
  assert len(shown[2].rows) == len(arms.TUNED)


@pytest.mark.few(3)
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
    ({"tensor": 0.9}, {}, LIFT, "better than strong controls"),
    ({"of-topd": 0.7}, {}, LIFT, "a short horizon finds them"),
    ({"stratified-topd": 0.9}, {}, LIFT, "a short horizon finds them"),
    ({"of-grpo": 0.7}, {}, LIFT, "a reward finds them"),
    ({"stratified-grpo": 0.9}, {}, LIFT, "a reward finds them"),
    ({}, {}, LIFT | {"value": 0.5}, "shared beyond the null"),
    ({"sgd": 0.9}, {}, LIFT, "AdamW beats SGD"),
  ],
)
def test_what_is_not_so_is_not_supported(scores, updates, lift, claim, study_of):
  results = study_of(SCORES | scores, UPDATES | updates, lift)
  (verdict,) = decide([c for c in claims.CLAIMS if c.name == claim], results)
  assert verdict.status == NOT_SUPPORTED


@pytest.mark.few(3)
@pytest.mark.parametrize("null", ["permuted", "gaussian"])
@pytest.mark.parametrize(
  ("claim", "statistic"),
  [
    ("sparse beyond the null", {"zero": 0.9}),
    ("small weights beyond the null", {"low": 0.5}),
    ("off the principal weights beyond the null", {"principal": 0.01}),
    ("concentrated beyond the null", {"energy": 0.6}),
    ("off the principal subspaces", {"projection": 0.001}),
    ("shared beyond the null", {}),
  ],
)
def test_what_is_beyond_one_null_alone_is_not_supported(null, claim, statistic, study_of):
  updates = {"opd": {null: statistic}} if statistic else {}
  results = study_of(SCORES, UPDATES | updates, LIFT if statistic else LIFT | {null: 4.0})
  (verdict,) = decide([c for c in claims.CLAIMS if c.name == claim], results)
  assert verdict.status == NOT_SUPPORTED


def test_spectra_of_runs_that_never_come_to_the_score_are_not_compared(study_of, tmp_path):
  (claim,) = (c for c in claims.CLAIMS if c.name == "unlike offline distillation")
  study_of(SCORES, UPDATES, LIFT)
  # Where offline distillation stays behind its update looks as OPD's does.
  for seed in SEEDS[:2]:
    behind = measurement(seed, reached=False, rank=5.0, energy=0.5)
    synthetic_study.write(tmp_path, "update-offline", seed, behind)
  (verdict,) = decide([claim], Results(tmp_path, SEEDS))
  assert verdict.status == SUPPORTED
  for seed in SEEDS:
    synthetic_study.write(tmp_path, "update-offline", seed, measurement(seed, reached=False, rank=20.0, energy=0.2))
  (verdict,) = decide([claim], Results(tmp_path, SEEDS))
  assert verdict.status == MISSING


def test_updates_are_measured_again_with_other_settings_and_with_nulls_of_the_seed(tmp_path, monkeypatch):
  made = []
  monkeypatch.setattr(measures, "done", lambda path: True)
  monkeypatch.setattr(measures, "_update", lambda path, config, options: made.append(options) or {})
  monkeypatch.setattr(measures, "_shared", lambda one, two, config, options: made.append(options) or {})
  chosen = [arm for arm in arms.COMPARED if arm.name in ("opd", "grpo")]

  def measured() -> list:
    made.clear()
    measures.measure_all(chosen, (20, 21), tmp_path)
    return list(made)

  assert sorted(options.seed for options in measured()) == [20, 20, 20, 21, 21, 21]
  assert measured() == []
  monkeypatch.setattr(measures, "TARGET", measures.TARGET / 2)
  assert len(measured()) == 6
  monkeypatch.setattr(measures, "SHARED", dataclasses.replace(measures.SHARED, draws=5))
  assert [options.draws for options in measured()] == [5, 5]


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
