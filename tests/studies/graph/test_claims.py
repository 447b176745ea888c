"""The claims of the study of GraphPO, decided on made-up measurements."""

import json
from typing import Any

import pytest

from opd_jax.studies.graph import arms, claims, sections, simulation
from opd_jax.studies.results import Results
from opd_jax.studies.verdicts import MISSING, NOT_SUPPORTED, SUPPORTED, UNDECIDED, Verdict, decide
from tests.helpers import synthetic_study

SEEDS = (20, 21, 22)
Level = float | tuple[float, float]  # accuracy, greedy as sampled; or both
TRAINED = {"step_tokens": 3000, "responses": 250, "states": 200, "joined": 0.4, "steps_sampled": 448}


@pytest.fixture
def study_of(tmp_path):
  """Write what students answer: study_of({arm: accuracy}, {arm: tokens}) -> its results; a pair is sampled and greedy."""

  def write(levels: dict[str, Level], lengths: dict[str, float] | None = None) -> Results:
    for name, level in levels.items():
      sampled, greedy = level if isinstance(level, tuple) else (level, level)
      for seed in SEEDS:
        noise = 0.001 * ((seed + len(name)) % 3)
        record = {"of": "", "sampled": sampled + noise, "greedy": greedy + noise, "pass": min(1.0, 3 * sampled)}
        record |= {"length": (lengths or {}).get(name, 17.0) + noise}
        synthetic_study.write(tmp_path, f"asked-{name}", seed, record)
    return Results(tmp_path, SEEDS)

  return write


@pytest.fixture
def simulated(tmp_path):
  """Write simulations: simulated(**changes of `simulation_record`) -> the results."""

  def write(**changes: Any) -> Results:
    for seed in SEEDS:
      synthetic_study.write(tmp_path, "simulation", seed, simulation_record(seed, **changes))
    return Results(tmp_path, SEEDS)

  return write


def simulation_record(
  seed: int,
  errors: dict[str, float] | None = None,
  correlations: dict[str, float] | None = None,
  over_lemma: float = 1.0,
  centred: tuple[float, float] = (0.5, 0.875),
) -> dict[str, Any]:
  """One seed's record, in which all is as it is claimed but for what is given."""
  less = 1e-4 * (seed % 3)
  names = {sections.method_name(w, share) for share in simulation.FALSE for w in simulation.WEIGHTS if w or not share}
  mse = {name: 0.1 if "false" in name else 0.02 for name in names} | {"tree": 0.04, "chain": 0.14} | (errors or {})
  of_truth = dict.fromkeys(names, 0.8) | {"tree": 0.7, "chain": 0.5} | (correlations or {})
  found: dict[str, Any] = {
    name: {"mse": mse[name] + less, "bias": 0.0, "correlation": of_truth[name] + less, "steps": 28} for name in mse
  }
  found["pooling"] = {k: {"measured": (over_lemma + less) / int(k), "lemma": 1 / int(k)} for k in claims.MEMBERS}
  found["centred"] = {"2": centred[0] + less, "8": centred[1]}
  return found


def decided(results: Results, name: str) -> Verdict:
  (verdict,) = decide([claim for claim in claims.CLAIMS if claim.name == name], results)
  return verdict


@pytest.mark.parametrize(
  ("claim", "changes", "status"),
  [
    ("a tree's credits are nearer to the truth", {}, SUPPORTED),
    ("a tree's credits are nearer to the truth", {"errors": {"tree": 0.2}}, NOT_SUPPORTED),
    ("a tree's credits are nearer to the truth", {"correlations": {"tree": 0.4}}, NOT_SUPPORTED),
    ("a graph's credits are nearer still", {}, SUPPORTED),
    ("a graph's credits are nearer still", {"errors": {claims.GRAPH: 0.05}}, NOT_SUPPORTED),
    ("a graph's credits are nearer still", {"correlations": {claims.GRAPH: 0.6}}, NOT_SUPPORTED),
    ("false merges undo it", {}, SUPPORTED),
    ("false merges undo it", {"errors": {claims.FALSE_GRAPH: 0.03}}, NOT_SUPPORTED),
    ("the pooling lemma holds", {}, SUPPORTED),
    ("the pooling lemma holds", {"over_lemma": 1.1}, NOT_SUPPORTED),
    ("the pooling lemma holds", {"over_lemma": 0.9}, NOT_SUPPORTED),
    ("larger groups lower the variance", {"centred": (0.9, 0.5)}, SUPPORTED),
    ("larger groups lower the variance", {}, NOT_SUPPORTED),
  ],
)
def test_a_claim_about_the_simulation_is_decided_by_its_rule(claim, changes, status, simulated):
  assert decided(simulated(**changes), claim).status == status


@pytest.mark.parametrize(
  ("claim", "levels", "status"),
  [
    ("GraphPO learns", {"graph": 0.3, "untrained": 0.15}, SUPPORTED),
    ("GraphPO learns", {"graph": (0.3, 0.15), "untrained": (0.15, 0.2)}, NOT_SUPPORTED),
    ("a tree is better than chains", {"tree": 0.3, "grpo-tokens": 0.2}, SUPPORTED),
    ("a tree is better than chains", {"tree": 0.2, "grpo-tokens": 0.3}, NOT_SUPPORTED),
    ("a graph is better than a tree", {"graph": 0.3, "tree": 0.2}, SUPPORTED),
    ("a graph is better than a tree", {"graph": (0.3, 0.2), "tree": (0.2, 0.3)}, NOT_SUPPORTED),
    ("a graph is better than a tree", {"graph": 0.3, "tree": 0.3}, UNDECIDED),
    ("better than GRPO at equal tokens", {"graph": 0.3, "grpo-tokens": 0.2}, SUPPORTED),
    ("better than GRPO at equal tokens", {"graph": 0.2, "grpo-tokens": 0.3}, NOT_SUPPORTED),
    ("better than GRPO at equal responses", {"graph": 0.3, "grpo-responses": 0.2}, SUPPORTED),
    ("better than GRPO at equal responses", {"graph": 0.2, "grpo-responses": 0.3}, NOT_SUPPORTED),
    ("it is the states", {"graph": 0.3, "random": 0.2}, SUPPORTED),
    ("it is the states", {"graph": 0.3, "random": 0.31}, NOT_SUPPORTED),
    ("pooling pays", {"graph": 0.3, "graph-w0": 0.2}, SUPPORTED),
    ("pooling pays", {"graph": 0.2, "graph-w0": 0.3}, NOT_SUPPORTED),
    ("the published w", {"graph": 0.3, "graph-w50": 0.305, "graph-w100": 0.2}, SUPPORTED),
    ("the published w", {"graph": 0.3, "graph-w50": 0.2, "graph-w100": 0.35}, NOT_SUPPORTED),
    ("the published w", {"graph": 0.3, "graph-w50": 0.35, "graph-w100": 0.2}, NOT_SUPPORTED),
    ("saved children pay", {"graph": 0.3, "no-halve": 0.2}, SUPPORTED),
    ("saved children pay", {"graph": 0.2, "no-halve": 0.3}, NOT_SUPPORTED),
    ("hidden states do", {"hidden": 0.297, "graph": 0.3}, SUPPORTED),
    ("hidden states do", {"hidden": 0.25, "graph": 0.3}, NOT_SUPPORTED),
    ("the novelty gate pays", {"hidden": 0.3, "hidden-no-novelty": 0.2}, SUPPORTED),
    ("the novelty gate pays", {"hidden": 0.2, "hidden-no-novelty": 0.3}, NOT_SUPPORTED),
    ("a graph is worth a teacher", {"graph": 0.297, "opd": 0.3, "opd-fast": 0.2}, SUPPORTED),
    ("a graph is worth a teacher", {"graph": (0.3, 0.25), "opd": 0.2, "opd-fast": 0.3}, NOT_SUPPORTED),
  ],
)
def test_a_claim_about_accuracies_is_decided_by_its_rule(claim, levels, status, study_of):
  assert decided(study_of(levels), claim).status == status


EQUAL = {"hidden-lambda-100": 0.3, "hidden-lambda-0": 0.3, "length": 0.3}
SHORTER = {"hidden-lambda-100": 15.0, "hidden-lambda-0": 17.0, "length": 16.0}


@pytest.mark.parametrize(
  ("levels", "lengths", "status"),
  [
    (EQUAL, SHORTER, SUPPORTED),
    (EQUAL, SHORTER | {"length": 14.0}, NOT_SUPPORTED),
    (EQUAL, SHORTER | {"hidden-lambda-0": 14.0}, NOT_SUPPORTED),
    (EQUAL | {"hidden-lambda-100": 0.25}, SHORTER, NOT_SUPPORTED),
    (EQUAL | {"hidden-lambda-100": (0.3, 0.25)}, SHORTER, NOT_SUPPORTED),
  ],
)
def test_shorter_answers_are_worth_something_where_nothing_is_lost(levels, lengths, status, study_of):
  assert decided(study_of(levels, lengths), "efficiency shortens more than a penalty").status == status


def test_every_claim_is_decided_both_ways():
  cases = [("efficiency shortens more than a penalty", status) for status in (SUPPORTED, NOT_SUPPORTED)]
  for test in (
    test_a_claim_about_the_simulation_is_decided_by_its_rule,
    test_a_claim_about_accuracies_is_decided_by_its_rule,
  ):
    cases += [(case[0], case[2]) for mark in test.pytestmark for case in mark.args[1]]
  for claim in claims.CLAIMS:
    assert {SUPPORTED, NOT_SUPPORTED} <= {status for name, status in cases if name == claim.name}, claim.name


def test_nothing_is_decided_without_runs(tmp_path):
  results = Results(tmp_path, SEEDS)
  assert {verdict.status for verdict in decide(claims.CLAIMS, results)} == {MISSING}
  for section in sections.sections(results):
    assert section.figure is None
    assert not section.rows


def test_the_page_has_a_picture_and_a_row_of_every_arm_that_was_run(study_of, simulated, tmp_path):
  simulated()
  study_of(dict.fromkeys(sections.ASKED, 0.3) | {"untrained": 0.15})
  for arm in arms.ARMS:
    c = arm.config(0)
    path = tmp_path / "runs" / arm.name / "seed20"
    logged = TRAINED if arm.method != "grpo" else {"step_tokens": 2000, "response_length": 17.0}
    sizes = {"batch": c.batch, "rollouts_per_prompt": c.rollouts_per_prompt}
    synthetic_study.workdir(path, 20, lambda step: 0.2, steps=8, every=2, config=sizes, metrics=logged)
  results = Results(tmp_path, SEEDS)
  credit, accuracy, way, samples = sections.sections(results)
  assert [s.title for s in (credit, accuracy, way) if s.figure is None] == []
  assert [row["method"] for row in credit.rows[:2]] == ["chains", "a tree"]
  assert len(credit.rows) == 2 + len(simulation.WEIGHTS) + 3 * (len(simulation.WEIGHTS) - 1)
  assert [row["arm"] for row in accuracy.rows] == list(sections.ASKED.values())
  assert accuracy.rows[1]["gained, greedy"].startswith("15.")
  by_arm = {row["arm"]: row for row in samples.rows}
  assert list(by_arm) == list(arms.LABELS.values())
  assert by_arm["GraphPO"]["joined"] == "40.0%"
  assert by_arm["GraphPO"]["responses a step"] == "250"
  assert by_arm["GRPO, as many tokens"]["responses a step"] == str(arms.PROMPTS * arms.CHAINS)
  assert by_arm["GRPO, as many tokens"]["joined"] == "–"
  shown = decided(results, "it is the states").evidence
  assert {e.label: round(e.estimate.mean, 2) for e in shown if e.label.startswith("joined")} == {
    "joined, GraphPO": 0.4,
    "joined, random merges": 0.4,
  }
  json.dumps([row for s in (credit, accuracy, samples) for row in s.rows])
