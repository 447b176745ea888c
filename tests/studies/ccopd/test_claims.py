"""The claims of the study of conversations, decided on made-up measurements."""

from typing import Any

import pytest

from opd_jax.studies.ccopd import arms, claims, measures, sections
from opd_jax.studies.results import Results
from opd_jax.studies.verdicts import MISSING, NOT_SUPPORTED, SUPPORTED, Status, decide
from tests.helpers.synthetic_study import write

SEEDS = (20, 21, 22, 23, 24)
NAMES = [arm.name for arm in arms.ARMS]


def measurement(raw: float, seed: int, full: float = 0.95, **more: float) -> dict[str, Any]:
  """A record of `measures.measure_student`."""
  noise = 0.002 * (seed % 3)

  def by_form(raw: float) -> dict[str, float]:
    return {"full": full + noise, "concat": 0.9 + noise, "raw": raw + noise}

  def asked(raw: float) -> dict[str, Any]:
    pollution = {"solution": more.get("solution", 0.5) + noise, "hint": 0.8 + noise}
    tasks = {"relay": by_form(raw), "times": by_form(raw - 0.05), "long": by_form(raw - 0.1)}
    return tasks | {"pollution": pollution}

  return {
    **asked(raw),
    "greedy": asked(more.get("greedy", raw)),
    "cooler": {"0.7": by_form(more.get("cooler", raw)), "0.5": by_form(raw)},
    "anchored": {"wrong": 0.6, "kept": 0.4 + noise},
    "deviation": {"psi": more.get("psi", 0.4) + noise, "own_turn": more.get("own", 0.2)},
    "looks": -0.5 + noise,
  }


# Everything that is claimed is so.
AS_CLAIMED = {
  "untrained": {"raw": 0.7, "solution": 0.3},
  "ccopd": {"raw": 0.93, "solution": 0.9, "psi": 0.05, "own": 0.01},
  "refresh": {"raw": 0.96},
  "topd-50": {"raw": 0.935},
  "any-turn": {"raw": 0.6},
}


@pytest.fixture
def study_of(tmp_path):
  """Write a study: study_of({arm: numbers of `measurement`}) -> its results."""

  def write_study(by_arm: dict[str, dict[str, float]]) -> Results:
    for name, numbers in by_arm.items():
      for seed in SEEDS:
        write(tmp_path, f"asked-{name}", seed, measurement(seed=seed, **numbers))
    return Results(tmp_path, SEEDS)

  return write_study


def test_what_only_two_students_are_asked_for_is_needed_of_no_other(study_of, tmp_path):
  """The other arms are asked for the task that they were trained on; every claim is decided as it is with all of it."""
  results = study_of({name: {"raw": 0.85} for name in ("untrained", *NAMES)} | AS_CLAIMED)
  for name in (name for name in NAMES if name not in measures.ASKED_FOR_ALL):
    for seed in SEEDS:
      whole = measurement(seed=seed, **({"raw": 0.85} | AS_CLAIMED.get(name, {})))
      few = {"relay": whole["relay"], "anchored": whole["anchored"], "greedy": {"relay": whole["greedy"]["relay"]}}
      write(tmp_path, f"asked-{name}", seed, few)
  assert decided(Results(tmp_path, SEEDS)) == decided(results)
  assert all(s.figure is not None for s in sections.sections(Results(tmp_path, SEEDS)))


@pytest.mark.parametrize("whole", [True, False])
def test_who_is_asked_for_what(whole, monkeypatch, tmp_path):
  asked = []
  monkeypatch.setattr(
    measures.students,
    "ask_all",
    lambda ask, arms, *_, untrained=True: asked.append((ask, [a.name for a in arms], untrained)),
  )
  chosen = [arm for arm in arms.ARMS if whole or arm.name not in measures.ASKED_FOR_ALL]
  measures.measure_all(chosen, SEEDS, tmp_path)
  of_all = [(measures.measure_student, list(measures.ASKED_FOR_ALL), True)] if whole else []
  assert asked == [*of_all, (measures.measure_answers, [n for n in NAMES if n not in measures.ASKED_FOR_ALL], False)]


def decided(results: Results) -> dict[str, Status]:
  return {verdict.claim: verdict.status for verdict in decide(claims.CLAIMS, results)}


def test_what_is_as_claimed_is_supported(study_of):
  results = study_of({name: {"raw": 0.85} for name in ("untrained", *NAMES)} | AS_CLAIMED)
  statuses = decided(results)
  assert set(statuses.values()) == {SUPPORTED}, statuses
  assert all(s.figure is not None for s in sections.sections(results))


@pytest.mark.parametrize(
  ("arm", "numbers", "claim"),
  [
    ("untrained", {"raw": 0.94}, "drift is there"),
    ("untrained", {"raw": 0.7, "greedy": 0.94}, "drift is there"),
    ("untrained", {"raw": 0.7, "own": -0.1}, "drift is there"),
    ("ccopd", {"raw": 0.75}, "RAW rises"),
    ("ccopd", {"raw": 0.93, "full": 0.9}, "RAW rises"),
    ("ccopd", {"raw": 0.93, "greedy": 0.75}, "RAW rises"),
    ("ccopd", {"raw": 0.71}, "out of domain"),
    ("untrained", {"raw": 0.7, "greedy": 0.95}, "CCOPD distils"),
    ("untrained", {"raw": 0.7, "cooler": 0.95}, "CCOPD distils"),
    ("null-slow", {"raw": 0.95}, "CCOPD distils"),
    ("shuffled", {"raw": 0.7, "greedy": 0.95}, "CCOPD distils"),
    ("forward", {"raw": 0.95}, "better than the forward KL"),
    ("sft-teacher", {"raw": 0.95}, "better than SFT on the teacher's answers"),
    ("sft-gold", {"raw": 0.95}, "better than SFT on right answers"),
    ("reward", {"raw": 0.95}, "better than a reward alone"),
    ("other-teacher", {"raw": 0.95}, "better than a teacher of another seed"),
    ("any-turn", {"raw": 0.95}, "intermediate turns hurt"),
    ("ccopd", {"raw": 0.93, "solution": 0.35}, "unpolluted"),
    ("ccopd", {"raw": 0.93, "psi": 0.3}, "the deviation falls"),
    ("refresh", {"raw": 0.9}, "new conversations help"),
    ("topd-50", {"raw": 0.85}, "shorter answers do"),
  ],
)
def test_what_is_not_so_is_not_supported(arm, numbers, claim, study_of):
  rivals = {name: {"raw": 0.85} for name in ("untrained", *NAMES)}
  results = study_of(rivals | AS_CLAIMED | {arm: numbers})
  (verdict,) = decide([c for c in claims.CLAIMS if c.name == claim], results)
  assert verdict.status == NOT_SUPPORTED


def test_arms_that_were_not_run_are_missing(study_of):
  statuses = decided(study_of({name: AS_CLAIMED[name] for name in ("untrained", "ccopd")}))
  assert statuses["RAW rises"] == SUPPORTED
  assert statuses["better than the forward KL"] == MISSING
