"""Intervals: what they are on paper, and how often they hold the truth."""

import functools
import math

import numpy as np
import pytest

from opd_jax.studies.statistics import bootstrap, geometric, interval, ratio

INF = math.inf


class TestInterval:
  def test_on_paper(self):
    # s = sqrt(2.5), t(4, 0.975) = 2.776
    assert interval([1, 2, 3, 4, 5]) == pytest.approx((3, 3 - 2.7764 * 2**-0.5, 3 + 2.7764 * 2**-0.5, 5), abs=1e-3)

  def test_level(self):
    wide, narrow = interval([1, 2, 4], 0.99), interval([1, 2, 4], 0.5)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high

  def test_one_seed_decides_nothing(self):
    assert interval([0.7]) == (0.7, -INF, INF, 1)

  def test_no_seed(self):
    mean, low, high, n = interval([])
    assert math.isnan(mean)
    assert (low, high, n) == (-INF, INF, 0)

  def test_equal_seeds(self):
    assert interval([0.5] * 5) == (0.5, 0.5, 0.5, 5)


class TestCoverage:
  def test_of_five_normal_values(self):
    draws = np.random.default_rng(0).normal(size=(600, 5))

    def held(estimate) -> float:
      return float(np.mean([e.low <= 0 <= e.high for e in map(estimate, draws)]))

    # The binomial's standard error is at most 0.016.
    assert 0.93 < held(interval) < 0.975
    assert 0.79 < held(bootstrap) < 0.885
    assert 0.79 < held(functools.partial(bootstrap, corrected=True)) < 0.9

  def test_of_the_geometric_mean_of_skewed_times(self):
    draws = np.random.default_rng(1).lognormal(3, 0.5, size=(1000, 5))
    held = np.mean([e.low <= math.exp(3) <= e.high for e in map(geometric, draws)])
    assert 0.93 < held < 0.97

  def test_of_the_median_where_the_slowest_never_arrive(self):
    draws = np.random.default_rng(2).lognormal(3, 0.5, size=(2000, 5))
    cut = np.where(draws > math.exp(3.2), INF, draws)  # a third
    estimates = [geometric(x) for x in cut if np.isinf(x).any()]
    held = np.mean([e.low <= math.exp(3) <= e.high for e in estimates])
    assert held > 0.91


class TestBootstrap:
  def test_is_the_same_at_every_call(self):
    assert bootstrap([1, 2, 4, 8]) == bootstrap([1, 2, 4, 8])

  def test_correction_follows_the_skew(self):
    plain, corrected = bootstrap([1, 2, 3, 4, 20]), bootstrap([1, 2, 3, 4, 20], corrected=True)
    assert plain.mean == corrected.mean == pytest.approx(6)
    assert corrected.low > plain.low
    assert corrected.high > plain.high

  def test_equal_values(self):
    assert bootstrap([3.0] * 5, corrected=True) == pytest.approx((3, 3, 3, 5))


class TestRatio:
  def test_pairs_by_seed(self):
    a, b = {0: 8.0, 1: 2.0, 7: 100.0}, {1: 1.0, 0: 1.0, 9: 5.0}
    assert ratio(a, b).mean == pytest.approx(4)
    assert ratio(a, b).n == 2

  def test_interval_is_of_the_logarithms(self):
    a = dict(enumerate([2.0, 4.0, 8.0, 4.0, 2.0]))
    e, logs = ratio(a, dict.fromkeys(a, 1.0)), interval(np.log(list(a.values())))
    assert e[:3] == pytest.approx(np.exp(logs[:3]))

  def test_inverse(self):
    a, b = {0: 3.0, 1: 5.0, 2: 4.0}, {0: 1.0, 1: 1.1, 2: 0.9}
    there, back = ratio(a, b), ratio(b, a)
    assert (there.low, there.high) == pytest.approx((1 / back.high, 1 / back.low))

  def test_never_reached(self):
    a = {0: INF, 1: 6.0, 2: 4.0, 3: 5.0, 4: 8.0}
    assert ratio(a, dict.fromkeys(a, 2.0)) == (pytest.approx(3), pytest.approx(2), INF, 5)
    assert ratio(dict.fromkeys(a, 2.0), a) == (pytest.approx(1 / 3), 0, pytest.approx(0.5), 5)

  def test_never_by_all(self):
    a = dict.fromkeys(range(5), INF)
    assert ratio(a, dict.fromkeys(a, 2.0)) == (INF, INF, INF, 5)

  def test_neither_reached_says_nothing(self):
    a = {0: INF, 1: 6.0, 2: 6.0, 3: 6.0, 4: 6.0}
    b = {0: INF, 1: 2.0, 2: 2.0, 3: 2.0, 4: 2.0}
    assert ratio(a, b) == (pytest.approx(3), 0, INF, 5)
    mean, low, high, _ = ratio({0: INF}, {0: INF})
    assert math.isnan(mean)
    assert (low, high) == (0, INF)

  def test_few_seeds_and_one_that_never_arrives(self):
    assert ratio({0: INF, 1: 4.0, 2: 4.0}, {0: 1.0, 1: 1.0, 2: 1.0})[1:3] == (0, INF)
