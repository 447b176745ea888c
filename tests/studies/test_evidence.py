"""Evidence that rules are made of: what is known of it, and means over a quarter of the positions."""

import pytest

from opd_jax.studies.evidence import known, lazily, points, quarter
from opd_jax.studies.results import Missing
from opd_jax.studies.statistics import IntervalEstimate

ESTIMATE = IntervalEstimate(0.1, 0.0, 0.2, 5)


def test_known_leaves_out_what_was_not_run():
  def estimate(arm: str, sign: int = 1) -> IntervalEstimate:
    if arm == "gone":
      raise Missing("no run of gone is finished")
    return ESTIMATE._replace(mean=sign * ESTIMATE.mean)

  evidence = known(*(lazily(points, arm, estimate, arm, sign=-1) for arm in ("a", "gone", "b")))
  assert [(e.label, e.unit, e.estimate.mean) for e in evidence] == [("a", "points", -0.1), ("b", "points", -0.1)]


def test_known_hides_no_other_error():
  def estimate() -> IntervalEstimate:
    raise KeyError("beyond")

  with pytest.raises(KeyError):
    known(lazily(points, "a", estimate))


def test_a_quarter_weighs_what_its_means_are_of():
  at = {
    "count": [1, 3, 5, 5],
    "decisive": [3, 1, 0, 0],
    "kl": [0.0, 1.0, 5.0, 5.0],
    "teacher": [0.0, 1.0, None, None],
  }
  two = {name: [*values, 0, 0, 0, 0] for name, values in at.items()}
  assert quarter(two, "kl", 0) == pytest.approx(3 / 4)
  assert quarter(two, "teacher", 0) == pytest.approx(1 / 4)
  assert quarter(two, "teacher", 1) != quarter(two, "teacher", 1), "NaN: nothing was decided there"
