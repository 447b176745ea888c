"""Every claim decided on synthetic results: where it comes out supported, where not, and what it does without."""

import json

import pytest

from opd_jax.studies.evidence import difference
from opd_jax.studies.horizon.adaptive_claims import ADAPTIVE, ONE_OF_FOUR, best_fixed
from opd_jax.studies.horizon.claims import CLAIMS
from opd_jax.studies.horizon.sections import sections
from opd_jax.studies.results import Results
from opd_jax.studies.verdicts import MISSING, NOT_SUPPORTED, SUPPORTED, Status, Verdict, decide
from tests.helpers.synthetic_study import START, analyses, rising, study_of_claims, write

Y, N, M = SUPPORTED, NOT_SUPPORTED, MISSING
NAMED = {claim.name: claim for claim in CLAIMS}
LOW, HIGH = rising(0.6), rising(0.95)
NOTHING = rising(START)
SLOW, QUICK = rising(0.9, 25), rising(0.95, 1)
NEVER = rising(0.5)


def decided(name: str, results: Results) -> Verdict:
  (verdict,) = decide([NAMED[name]], results)
  return verdict


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Results:
  return study_of_claims(tmp_path_factory.mktemp("study"))


class TestWithEverything:
  @pytest.mark.parametrize("name", NAMED)
  def test_every_claim_is_decided(self, everything, name):
    verdict = decided(name, everything)
    assert verdict.status != MISSING
    assert verdict.evidence
    assert all(e.estimate.n == 5 for e in verdict.evidence)
    assert all("unknown" not in e.text for e in verdict.evidence if e.unit != "times")

  def test_every_section_has_its_picture(self, everything):
    assert [s.title for s in sections(everything) if s.figure is None] == []

  @pytest.mark.parametrize("name", ["the gain is in the weights", "late is less reliable", "cubic variance"])
  def test_analyses_that_are_as_claimed(self, everything, name):
    assert decided(name, everything).status == Y

  @pytest.mark.parametrize(
    ("name", "analysis", "changed"),
    [
      ("the gain is in the weights", "continuation", {"topd-10": {"0": 0.3, "0.1": 0.5, "0.25": 0.8}}),
      ("late is less reliable", "reliability", {"last": analyses(0)["reliability"]["0"]}),
      ("cubic variance", "advantage", {"linear_variance": 0.95}),
    ],
  )
  def test_analyses_that_say_the_contrary(self, tmp_path, name, analysis, changed):
    for seed in range(5):
      write(tmp_path, analysis, seed, analyses(1)[analysis] | changed)
    assert decided(name, Results(tmp_path, range(5))).status == N


RULES = ADAPTIVE
PHASE_RULES = [f"phase-{arm}" for arm in RULES]
CASES: list[tuple[str, list[str], dict, Status]] = [
  ("TOPD is as good", ["opd", "topd-10"], {"topd-10": HIGH}, Y),
  ("TOPD is as good", ["opd", "topd-10"], {"topd-10": LOW}, N),
  ("TOPD is fast", ["opd", "topd-10-long"], {"opd": SLOW, "topd-10-long": QUICK}, Y),
  ("TOPD is fast", ["opd", "topd-10-long"], {"topd-10-long": NEVER}, N),
  ("POPD in a third", ["opd", "popd"], {"opd": SLOW, "popd": QUICK}, Y),
  ("POPD in a third", ["opd", "popd"], {"popd": rising(0.93, 20)}, N),
  ("early segments teach", ["topd-10-thin", "segment-80"], {"segment-80": NOTHING}, Y),
  ("early segments teach", ["topd-10-thin", "segment-80"], {"segment-80": HIGH}, N),
  ("tokens beat sequences", ["credit-0", "credit-1", "exact-0", "exact-1"], {"credit-1": LOW}, Y),
  ("tokens beat sequences", ["credit-0", "credit-1", "exact-0", "exact-1"], {"credit-1": HIGH}, N),
  ("TOPD fails late", ["phase-opd", "phase-topd-10"], {"phase-topd-10": NOTHING}, Y),
  ("TOPD fails late", ["phase-opd", "phase-topd-10"], {}, N),
  ("TOPD drifts", ["lr4-topd-10", "lr4-opd"], {"lr4-topd-10": rising(0.9, collapse=0.4)}, Y),
  ("TOPD drifts", ["lr4-topd-10", "lr4-opd"], {}, N),
  ("adaptive is fastest", ["opd", "popd", *RULES], {"opd": SLOW, "popd": NEVER, "look": QUICK}, Y),
  ("adaptive is fastest", ["opd", *RULES], dict.fromkeys(RULES, rising(0.9, 60)), N),
  ("adaptive is safe", ["phase-opd", *PHASE_RULES], dict.fromkeys(PHASE_RULES, LOW) | {"phase-drift": HIGH}, Y),
  ("adaptive is safe", ["phase-opd", *PHASE_RULES], dict.fromkeys(PHASE_RULES, LOW), N),
  ("falling weights help", ["opd", "gap"], {"gap": HIGH}, Y),
  ("falling weights help", ["opd", "gap"], {"gap": LOW}, N),
]
GREEDY_ALIKE = [  # rules that are met at temperature 1, and by greedy answers not
  ("TOPD is as good", ["opd", "topd-10"], "topd-10", {"topd-10": HIGH}),
  ("falling weights help", ["opd", "gap"], "gap", {"gap": HIGH}),
  (
    "adaptive is safe",
    ["phase-opd", *PHASE_RULES],
    "phase-drift",
    dict.fromkeys(PHASE_RULES, LOW) | {"phase-drift": HIGH},
  ),
]


@pytest.mark.parametrize(("name", "arms", "own", "status"), CASES)
def test_with_the_arms_of_its_rule_alone(tmp_path, name, arms, own, status):
  verdict = decided(name, study_of_claims(tmp_path, own, arms))
  assert verdict.status == status, verdict.evidence
  assert verdict.evidence


@pytest.mark.parametrize(("name", "arms", "sharper", "own"), GREEDY_ALIKE)
def test_what_greedy_answers_do_not_show_is_not_supported(tmp_path, name, arms, sharper, own):
  results = study_of_claims(tmp_path, own, arms)
  assert decided(name, results).status == Y
  for file in (tmp_path / "runs" / sharper).glob("*/metrics.jsonl"):
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record in records:
      if "greedy" in record:
        record["greedy"]["accuracy"] = START
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
  assert decided(name, Results(tmp_path, range(5))).status == N


class TestControls:
  """OPD's gain, beside what its controls gain."""

  ARMS = ("opd", "topd-10", "null", "null-slow", "shuffled")

  def study(self, out, own, **untrained):
    results = study_of_claims(out, own, self.ARMS)
    for seed in range(5):
      found = analyses(seed)["untrained"]
      write(out, "untrained", seed, {task: found[task] | untrained for task in found})
    return results

  def test_a_gain_above_all_of_them_is_distilled(self, tmp_path):
    results = self.study(tmp_path, dict.fromkeys(("null", "null-slow", "shuffled"), NOTHING))
    assert decided("OPD distils", results).status == Y
    assert decided("TOPD distils", results).status == Y

  @pytest.mark.parametrize("control", ["null-slow", "shuffled"])
  def test_a_gain_that_one_of_them_has_is_not(self, tmp_path, control):
    own = dict.fromkeys(("null", "null-slow", "shuffled"), NOTHING) | {control: rising(0.99, 4, collapse=0.1)}
    assert decided("OPD distils", self.study(tmp_path, own)).status == N

  def test_nor_one_that_a_lower_temperature_has(self, tmp_path):
    own = dict.fromkeys(("null", "null-slow", "shuffled"), NOTHING)
    assert decided("OPD distils", self.study(tmp_path, own, **{"0.5": 0.97})).status == N

  @pytest.mark.parametrize(("level", "status"), [(START, Y), (0.8, N)])
  def test_the_phase_task_needs_a_teacher_where_no_control_learns_it(self, tmp_path, level, status):
    controls = ("phase-null", "phase-null-slow", "phase-shuffled")
    results = study_of_claims(tmp_path, dict.fromkeys(controls, rising(level)), controls)
    for seed in range(5):
      write(tmp_path, "untrained", seed, analyses(seed)["untrained"])
    assert decided("phase needs a teacher", results).status == status


@pytest.mark.parametrize("arm", ["opd", "topd-10"])
def test_without_an_arm_of_its_rule(tmp_path, arm):
  verdict = decided("TOPD is as good", study_of_claims(tmp_path, arms=[arm]))
  assert verdict.status == M


class TestAdaptive:
  @pytest.mark.parametrize(("look", "status"), [(QUICK, Y), (NEVER, M)])
  def test_a_rule_that_was_not_run_may_be_the_one(self, tmp_path, look, status):
    verdict = decided("adaptive is fastest", study_of_claims(tmp_path, {"opd": SLOW, "look": look}, ["opd", "look"]))
    assert verdict.status == status
    phase = study_of_claims(tmp_path / "phase", {"phase-look": look}, ["phase-opd", "phase-look"])
    verdict = decided("adaptive is safe", phase)
    assert verdict.status == status

  def test_no_rule(self, tmp_path):
    verdict = decided("adaptive is fastest", study_of_claims(tmp_path, arms=["opd", "popd"]))
    assert verdict.status == M
    assert "agreement" in verdict.because

  def test_best_is_opd_where_no_other_arrives(self, tmp_path):
    results = study_of_claims(tmp_path, {"popd": NEVER, "topd-10": NEVER}, ["opd", "popd", "topd-10"])
    assert best_fixed(results) == ("opd", (1, 1, 1, 5))

  def test_best_where_nothing_is_known(self, tmp_path):
    """OPD's score lies below where all of them began: every ratio is 0 over 0."""
    worse = rising(START - 0.1)
    results = study_of_claims(tmp_path, {"opd": worse, "popd": worse}, ["opd", "popd"])
    assert best_fixed(results)[0] == "opd"

  def test_best_is_the_soonest(self, tmp_path):
    results = study_of_claims(tmp_path, {"opd": SLOW, "popd": QUICK}, ["opd", "popd", "topd-50"])
    assert best_fixed(results)[0] == "popd"

  def test_intervals_are_wider_for_four_rules(self, everything):
    verdict = decided("adaptive is safe", everything)
    plain = difference(everything, "phase-look", "phase-opd")
    (wide,) = (e.estimate for e in verdict.evidence if e.label == "look less OPD")
    assert wide.mean == plain.mean
    assert (wide.high - wide.low) / (plain.high - plain.low) == pytest.approx(4.3147 / 2.7764, abs=1e-2)
    assert all("98.75%" in NAMED[name].rule for name in ("adaptive is fastest", "adaptive is safe"))
    assert ONE_OF_FOUR == 0.9875


def test_the_gap_of_credit_is_paired_by_seed(tmp_path):
  """Seed 1 of one arm is missing; the others' accuracies differ by seed alone."""
  arms = ["credit-0", "credit-1", "exact-0", "exact-1"]

  def flat(level: float):
    return lambda seed: lambda step: level + 0.1 * seed

  results = study_of_claims(tmp_path, {arm: flat(0.3 if arm == "credit-0" else 0.2) for arm in arms}, arms)
  (tmp_path / "runs" / "exact-0" / "seed1" / "metrics.jsonl").unlink()
  (gap,) = (
    e.estimate for e in decided("tokens beat sequences", results).evidence if e.label == "difference of the two"
  )
  assert gap.n == 4
  assert gap.mean == pytest.approx(0.1, abs=0.01)


def test_flat_runs_do_not_drift(tmp_path):
  """Single evaluations would: the best of seven lies above the last by more than two deviations."""
  results = study_of_claims(tmp_path, arms=["lr4-topd-10", "lr4-opd"])
  drifted = decided("TOPD drifts", results).evidence[0].estimate
  assert 0 <= drifted.mean < 0.002
