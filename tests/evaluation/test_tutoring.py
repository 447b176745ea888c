"""Gates, Pareto improvements and break rates on tables made by hand."""

import pytest

from opd_jax.evaluation.tutoring import Gate, break_rate, break_rate_by, is_pareto_improvement, shortfall


def of(*values: float) -> dict[str, float]:
  return dict(zip("ab", values, strict=True))


@pytest.mark.parametrize(
  ("first", "second", "gaps"),
  [
    ((1.0, 0.7), (0.7, 1.0), (0.3, 0.3)),  # the paper's example: both silent at .2
    ((0.8, 0.6), (0.76, 0.66), (0.0909, 0.05)),
    ((0.65, 0.48), (0.52, 0.60), (0.2, 0.2)),
    ((0.5, 0.5), (0.5, 0.5), (0.0, 0.0)),
    ((0.0, 0.5), (0.0, 0.25), (0.0, 0.5)),  # a domain that neither can do is left out
  ],
)
def test_a_shortfall_is_relative_and_summed(first, second, gaps):
  found = shortfall(of(*first), of(*second)), shortfall(of(*second), of(*first))
  assert found == pytest.approx(gaps, abs=1e-4)


def test_both_gates_are_closed_in_the_papers_worked_example_and_a_tie_opens():
  gate = Gate("gap", 0.2)
  assert not gate.is_open(of(1.0, 0.7), of(0.7, 1.0))
  assert not gate.is_open(of(0.7, 1.0), of(1.0, 0.7))
  assert gate.is_open(of(0.65, 0.48), of(0.52, 0.60))
  assert gate.is_open(of(0.52, 0.60), of(0.65, 0.48))


def test_other_gates():
  first, second = of(1.0, 0.7), of(0.7, 1.0)
  assert Gate("always", 0.0).is_open(second, first)
  assert not Gate("never", 9.0).is_open(first, first)
  by_domain = Gate("domain", 0.0)
  assert by_domain.is_open(first, second)
  assert not by_domain.is_open(of(0.5, 0.5), first)
  assert [by_domain.admits(first, second, d) for d in "ab"] == [True, False]
  assert Gate("gap", 0.2).admits(second, first, "a")
  assert by_domain.admits({"": 0.5}, {"": 0.4}, "sums"), "one domain, whatever its name"


def test_pareto_improvements():
  assert is_pareto_improvement(of(0.5, 0.5), of(0.5, 0.6))
  assert not is_pareto_improvement(of(0.5, 0.5), of(0.5, 0.5))
  assert not is_pareto_improvement(of(0.5, 0.5), of(0.4, 0.9))
  assert is_pareto_improvement(of(0.5, 0.5), of(0.49, 0.6), noise=0.02)
  assert not is_pareto_improvement(of(0.5, 0.5), of(0.5, 0.51), noise=0.02)


def test_break_rates_count_rows_that_were_right():
  without, with_comment = [True, True, False, True, False], [True, False, True, True, False]
  found = break_rate(without, with_comment)
  assert (found.rate, found.rows) == (pytest.approx(1 / 3), 3)
  assert found.low is not None
  assert found.high is not None
  assert 0 < found.low < 1 / 3 < found.high < 1
  assert break_rate([False], [True]) == (None, None, None, 0)
  by = break_rate_by(["easy", "hard", "hard", "easy", "hard"], without, with_comment)
  assert {name: r.rate for name, r in by.items()} == {"easy": 0.0, "hard": 1.0}
