"""The claims of the study of students that tutor each other, decided on made-up measurements."""

import json
from typing import Any

import pytest

from opd_jax.studies.opcod import arms, claims, estimates, sections
from opd_jax.studies.results import Missing, Results
from opd_jax.studies.verdicts import MISSING, NOT_SUPPORTED, SUPPORTED, Status, decide
from tests.helpers.synthetic_study import rising, workdir, write

SEEDS = (20, 21, 22, 23, 24)
SUMS, DIFFERENCES = arms.SPECIALISTS
SINGLE = sorted({a.name.removesuffix(f"-{d}") for a in arms.ARMS for d in arms.SPECIALISTS if a.method != "opcod"})
NAMES = [arm.name for arm in arms.ARMS if arm.method == "opcod"] + SINGLE


def commented(seed: int, helps: float, breaks: float) -> dict[str, Any]:
  rate = {"rate": breaks, "low": 0.0, "high": 1.0, "rows": 100}
  return {
    "comments": {"kept": 90, "foreign": 10},
    "rows": 90,
    "without": {"all": 0.5, SUMS: 0.4, DIFFERENCES: 0.4},
    "with": {"all": 0.5, SUMS: 0.4 + helps + 0.001 * (seed % 3), DIFFERENCES: 0.4 + helps},
    "broken_by_solved": {"4": rate, "2": rate},
  }


def measurement(
  seed: int,
  own: float,
  other: float,
  *,
  greedy: float = 0.0,
  cooler: float = 0.5,
  oracle: float = 0.3,
  knows: float = 0.03,
  not_knows: float = 0.09,
  lags: float = 0.0,
) -> dict[str, Any]:
  """A record of `measures.measure_students`; `greedy` is how much greedy answers are better than sampled ones, `lags` how much
  the second student is behind in its own domain."""
  noise = 0.002 * (seed % 3)

  def students(own: float, other: float) -> dict[str, Any]:
    return {
      SUMS: {SUMS: own + noise, DIFFERENCES: other},
      DIFFERENCES: {SUMS: other - noise, DIFFERENCES: own - lags},
    }

  def comments(name: str) -> dict[str, Any]:
    found = {kind: commented(seed, helps, 0.05) for kind, helps in (("oracle", oracle), ("peer", 0.1), ("own", 0.0))}
    found["shuffled"] = commented(seed, 0.0, 0.05)
    found["again"] = commented(seed, 0.0, 0.05)
    found["again"]["broken"] = {
      d: {"rate": 0.06 if d == name else 0.02, "low": 0.0, "high": 1.0, "rows": 50} for d in arms.SPECIALISTS
    }
    found["peer"]["broken"] = {
      d: {"rate": not_knows if d == name else knows, "low": 0.0, "high": 1.0, "rows": 50} for d in arms.SPECIALISTS
    }
    return found

  return {
    **students(own, other),
    "greedy": students(own + greedy, other + greedy),
    "cooler": {"0.7": students(own, cooler), "0.5": students(own, cooler)},
    "comments": {name: comments(name) for name in arms.SPECIALISTS},
  }


BEFORE = {"own": 0.8, "other": 0.3}
RIVAL = {"own": 0.8, "other": 0.5}
# Everything that is claimed is so.
AS_CLAIMED: dict[str, dict[str, float]] = dict.fromkeys(NAMES, RIVAL) | {
  "untrained": BEFORE,
  "opcod": {"own": 0.82, "other": 0.7},
  "always": {"own": 0.81, "other": 0.65},
  "oracle": {"own": 0.9, "other": 0.9},
  "late": {"own": 0.8, "other": 0.6},
}


@pytest.fixture
def study_of(tmp_path):
  """Write a study: study_of({arm: numbers of `measurement`}, gates closed in each run of OPCoD) -> its results."""

  def write_study(by_arm: dict[str, dict[str, float]], closed_gates: int = 2) -> Results:
    for name, numbers in by_arm.items():
      for seed in SEEDS:
        record = measurement(seed, **numbers)
        if name not in SINGLE:
          write(tmp_path, f"asked-{name}", seed, record)
          continue
        for student in arms.SPECIALISTS:
          one = {student: record[student], "greedy": {student: record["greedy"][student]}}
          write(tmp_path, f"asked-{name}-{student}", seed, one)
    for seed in SEEDS:
      path = workdir(tmp_path / "runs" / "opcod" / f"seed{seed}", seed, rising(0.9)(seed), steps=10)
      first, *rest = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
      gate = {"open": {"student": closed_gates == 0, "peer": closed_gates < 2}, "gap": {"student": 0.5, "peer": 0.1}}
      rest = [record | {"model": "student", "round": 0, "comments": {"kept": 4}} for record in rest]
      rest[0] |= {"gate": gate}
      peer = [record | {"model": "peer"} for record in [first, *rest] if record["kind"] == "eval"]  # evaluated first
      records = [*peer, first | {"model": "student"}, *rest]
      (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return Results(tmp_path, SEEDS)

  return write_study


def decided(results: Results) -> dict[str, Status]:
  return {verdict.claim: verdict.status for verdict in decide(claims.CLAIMS, results)}


def test_what_is_as_claimed_is_supported(study_of):
  results = study_of(AS_CLAIMED)
  statuses = decided(results)
  assert set(statuses.values()) == {SUPPORTED}, statuses
  first, greedy, comments, difficulty, gates = sections.sections(results)
  assert first.figure is not None
  assert greedy.figure is not None
  assert first.rows[0]["arm"] == "before training"
  assert first.rows[0]["sums student, sums"].startswith("80.2 (")
  assert comments.rows[2]["who comments"] == "the peer"
  assert comments.rows[2]["spoilt where the peer knows"] == "3.0%"
  assert comments.rows[2]["dropped"] == "foreign 100"
  assert difficulty.rows[0]["4 of 4 right"] == "5.0% of 1000"
  assert gates.rows[0]["comments kept"] == "100% of 200"


@pytest.mark.few(3)
@pytest.mark.parametrize(
  ("arm", "numbers", "claim"),
  [
    ("untrained", BEFORE | {"oracle": 0.05}, "comments are used"),
    ("opcod", {"own": 0.82, "other": 0.33}, "both students improve"),
    ("opcod", {"own": 0.7, "other": 0.9}, "both students improve"),
    ("opcod", {"own": 0.82, "other": 0.7, "lags": 0.1}, "both students improve"),
    ("untrained", BEFORE | {"greedy": 0.45}, "both students improve"),
    ("untrained", BEFORE | {"cooler": 0.9}, "OPCoD distils"),
    ("null-slow", {"own": 0.9, "other": 0.9}, "OPCoD distils"),
    ("never", {"own": 0.9, "other": 0.9}, "better than SDPO"),
    ("never", RIVAL | {"greedy": 0.3}, "better than SDPO"),
    ("grpo", {"own": 0.9, "other": 0.9}, "better than GRPO"),
    ("shuffled", {"own": 0.9, "other": 0.9}, "it is what the comment says"),
    ("other-response", {"own": 0.9, "other": 0.9}, "it is what it says of the response"),
    ("own", {"own": 0.9, "other": 0.9}, "it is the peer"),
    ("always-shuffled", {"own": 0.9, "other": 0.9}, "open gates: what the comment says"),
    ("always-other-response", {"own": 0.9, "other": 0.9}, "open gates: what it says of the response"),
    ("always-own", {"own": 0.9, "other": 0.9}, "open gates: the peer"),
    ("always", {"own": 0.9, "other": 0.9}, "the gate pays"),
    ("domain", {"own": 0.9, "other": 0.9}, "both domains"),
    ("tau-20", {"own": 0.9, "other": 0.9}, "a tau that opens"),
    ("frozen", {"own": 0.9, "other": 0.9}, "not frozen"),
    ("current", {"own": 0.9, "other": 0.9}, "not current"),
    ("peer-teacher", {"own": 0.9, "other": 0.9}, "better than the peer's probabilities"),
    ("untrained", BEFORE | {"knows": 0.1}, "those behind break more"),
    # 3 points more than where the tutor knows, and so are the fresh attempts: it is the student's own lack.
    ("untrained", BEFORE | {"knows": 0.03, "not_knows": 0.065}, "those behind break more"),
    ("oracle", RIVAL, "a tutor that is never wrong is better"),
    ("gold-topd-50", {"own": 0.7, "other": 0.5}, "short horizons do"),
    ("late", RIVAL | {"other": 0.4}, "late tokens teach more"),
  ],
)
def test_what_is_not_so_is_not_supported(arm, numbers, claim, study_of):
  results = study_of(AS_CLAIMED | {arm: numbers})
  (verdict,) = decide([c for c in claims.CLAIMS if c.name == claim], results)
  assert verdict.status == NOT_SUPPORTED


def test_arms_that_were_not_run_are_missing(study_of):
  results = study_of({name: AS_CLAIMED[name] for name in ("untrained", "opcod", "grpo")})
  statuses = decided(results)
  assert statuses["better than GRPO"] == SUPPORTED
  assert statuses["better than SDPO"] == MISSING
  with pytest.raises(Missing):
    estimates.accuracies(results, "gold")


@pytest.mark.parametrize(("closed_gates", "status"), [(0, MISSING), (1, SUPPORTED)])
def test_a_gate_that_was_never_closed_has_no_verdict(closed_gates, status, study_of):
  results = study_of(AS_CLAIMED, closed_gates)
  (verdict,) = decide([c for c in claims.CLAIMS if c.name == "the gate pays"], results)
  assert verdict.status == status
  assert not closed_gates or "gates were closed 5 times" in verdict.because


def test_four_cells_and_their_parts():
  found = {SUMS: {SUMS: 0.9, DIFFERENCES: 0.3}, DIFFERENCES: {SUMS: 0.5, DIFFERENCES: 0.7}}
  assert estimates.all_four(found) == pytest.approx(0.6)
  assert estimates.own(found) == pytest.approx(0.8)
  assert estimates.other(found) == pytest.approx(0.4)
