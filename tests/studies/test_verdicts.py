"""Rules on intervals, three-valued logic, and claims whose arms were not run."""

import math

import pytest

from opd_jax.studies.results import Missing, Results
from opd_jax.studies.statistics import UNKNOWN, IntervalEstimate, interval
from opd_jax.studies.verdicts import (
  MISSING,
  NOT_SUPPORTED,
  SUPPORTED,
  UNDECIDED,
  Claim,
  Evidence,
  Verdict,
  above,
  all_of,
  any_of,
  at_least,
  at_most,
  decide,
)

INF = math.inf
Y, N, U, M = SUPPORTED, NOT_SUPPORTED, UNDECIDED, MISSING


def estimate(low: float, high: float) -> IntervalEstimate:
  return IntervalEstimate((low + high) / 2, low, high, 5)


class TestRules:
  @pytest.mark.parametrize(
    ("low", "high", "least", "over", "most"),
    [
      (1.1, 2.0, Y, Y, N),
      (1.0, 2.0, Y, U, U),
      (0.9, 1.1, U, U, U),
      (0.5, 1.0, U, N, Y),
      (0.5, 0.9, N, N, Y),
      (1.0, 1.0, Y, N, Y),
      (3.0, INF, Y, Y, N),
      (INF, INF, Y, Y, N),
      (0.0, INF, U, U, U),
      (-INF, INF, U, U, U),
    ],
  )
  def test_against_one(self, low, high, least, over, most):
    e = estimate(low, high)
    assert (at_least(e, 1), above(e, 1), at_most(e, 1)) == (least, over, most)

  def test_nothing_known(self):
    assert {rule(UNKNOWN, 0) for rule in (at_least, above, at_most)} == {U}

  def test_one_seed(self):
    assert at_least(interval([0.9]), 0.1) == U


class TestLogic:
  def test_all_of(self):
    assert all_of(Y, Y) == Y
    assert all_of(Y, U) == U
    assert all_of(Y, U, M) == M
    assert all_of(M, U, N) == N
    assert all_of() == M

  def test_any_of(self):
    assert any_of(N, N) == N
    assert any_of(N, U) == U
    assert any_of(M, U, N) == M
    assert any_of(M, U, Y) == Y
    assert any_of() == M


class TestDecide:
  def test_writes_claim_and_rule(self):
    claim = Claim("c", "It holds.", "Supported if it does.", lambda _: Verdict("", Y, "it does"))
    (verdict,) = decide([claim], Results("nowhere", []))
    assert (verdict.claim, verdict.statement, verdict.rule) == ("c", "It holds.", "Supported if it does.")
    assert (verdict.status, verdict.because) == (Y, "it does")

  def test_arms_not_run(self):
    def rule(results: Results) -> Verdict:
      return Verdict("", at_least(interval(results.pairs("a", "b")), 0), "")

    (verdict,) = decide([Claim("c", "", "", rule)], Results("nowhere", range(5)))
    assert verdict.status == M
    assert "a" in verdict.because

  def test_other_errors_are_not_hidden(self):
    def rule(_: Results) -> Verdict:
      raise KeyError("edges")

    with pytest.raises(KeyError):
      decide([Claim("c", "", "", rule)], Results("nowhere", []))
    assert not issubclass(Missing, KeyError)


class TestEvidence:
  @pytest.mark.parametrize(
    ("numbers", "unit", "text"),
    [
      (IntervalEstimate(0.0123, -0.003, 0.02, 5), "points", "+1.2 points (-0.3 to +2.0, n=5)"),
      (IntervalEstimate(0.934, 0.9, 0.96, 5), "score", "93.4% (90.0 to 96.0, n=5)"),
      (IntervalEstimate(3.14, 2, INF, 5), "times", "3.14x (2 to ∞, n=5)"),
      (IntervalEstimate(-0.0003, -0.0103, 0.01, 5), "points", "+0.0 points (-1.0 to +1.0, n=5)"),
      (IntervalEstimate(0, 0, 1.8, 5), "times", "never (0 to 1.8, n=5)"),
      (IntervalEstimate(0.5, -INF, INF, 1), "number", "0.5 (n=1)"),
      (IntervalEstimate(12345.6, 9000, INF, 5), "seconds", "12,346 s (9,000 to never, n=5)"),
      (IntervalEstimate(INF, INF, INF, 5), "seconds", "never (n=5)"),
      (IntervalEstimate(math.nan, 0, INF, 2), "times", "unknown (n=2)"),
    ],
  )
  def test_text_by_unit(self, numbers, unit, text):
    assert Evidence("", numbers, unit).text == text
