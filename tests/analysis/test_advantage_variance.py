"""Variances of advantages: against brute force, and against what was put in."""

import json

import numpy as np
import pytest

from opd_jax.analysis.advantage_variance import proposition_1, to_go, variances
from opd_jax.objectives.kl_estimators import cost_to_go
from tests.helpers.measurements import by_hand

pytestmark = pytest.mark.long


def drawn(sigma, rows: int, seed: int = 0) -> np.ndarray:
  """Independent r with these standard deviations, and means that are not zero."""
  return np.random.default_rng(seed).normal(size=(rows, len(sigma))) * sigma - 0.3


def variances_of(r, lengths=None, **options):
  """The variances where r is the log-ratio of rows of these lengths."""
  rows, H = r.shape
  measured = by_hand(lengths or [H] * rows, H, teacher_logprob=r - 2.0, logprob=np.full(r.shape, -2.0))
  return variances(measured, **options)


def test_proposition_1_on_paper():
  assert proposition_1(4, 1.0).tolist() == [30, 29, 25, 16]
  assert proposition_1(4, 0.5).tolist() == [7.5, 7.25, 6.25, 4]


def test_proposition_1_is_what_a_simulation_gives():
  found = variances_of(drawn(np.arange(1, 5.0), 40_000))
  assert found["levels"]["sequence"]["measured"] == pytest.approx([30, 29, 25, 16], rel=0.03)
  assert found["levels"]["token"]["measured"] == pytest.approx([1, 4, 9, 16], rel=0.03)


def test_variances_are_those_of_the_rows_that_have_the_position():
  lengths, discount = [5, 3, 5, 2, 4, 5], 0.7
  r = drawn(np.ones(6), 6)
  found = variances_of(r, lengths, discount=discount)
  assert found["position"] == [1, 2, 3, 4, 5], "nobody has the sixth"
  assert found["count"] == [6, 6, 5, 4, 3]
  for name, gamma in (("token", 0.0), ("discounted", discount), ("sequence", 1.0)):
    level = found["levels"][name]
    assert level["discount"] == gamma
    for n in range(5):
      rows = [i for i, length in enumerate(lengths) if length > n]
      advantage = [sum(gamma ** (k - n) * r[i, k] for k in range(n, lengths[i])) for i in rows]
      assert level["measured"][n] == pytest.approx(np.var(advantage, ddof=1))
      alone = [np.var([r[i, k] for i in rows if lengths[i] > k], ddof=1) for k in range(n, 5)]
      have = [sum(length > k for length in lengths) / len(rows) for k in range(n, 5)]
      assert level["independent"][n] == pytest.approx(
        sum(gamma ** (2 * j) * h * v for j, (h, v) in enumerate(zip(have, alone, strict=True)))
      )


def test_tokens_keep_the_same_rows_everywhere():
  r = drawn(np.ones(6), 5)
  found = variances_of(r, [6, 2, 4, 5, 3], tokens=4)
  assert found["count"] == [3, 3, 3, 3]
  long_rows = r[[0, 2, 3], :4]
  assert found["levels"]["sequence"]["measured"] == pytest.approx(
    [np.var(long_rows[:, n:].sum(axis=1), ddof=1) for n in range(4)]
  )


def test_independence_is_a_prediction_that_can_fail():
  sigma = np.linspace(1, 2, 12)
  level = variances_of(drawn(sigma, 20_000))["levels"]
  for name in level:
    assert level[name]["measured"] == pytest.approx(level[name]["independent"], rel=0.06)
  shared = drawn(sigma, 2000) + np.random.default_rng(1).normal(size=(2000, 1))
  level = variances_of(shared)["levels"]["sequence"]
  assert level["measured"][0] > 3 * level["independent"][0]


def test_each_law_fits_its_own_noise():
  k = np.arange(1, 41)
  rising, flat = variances_of(drawn(0.2 * k, 20_000)), variances_of(drawn(np.full(40, 0.2), 20_000))
  assert rising["laws"]["linear"]["delta"] == pytest.approx(0.2, rel=0.02)
  assert rising["laws"]["linear"]["r2"] > 0.995 > 0.9 > rising["laws"]["constant"]["r2"]
  assert rising["exponent"] == pytest.approx(1, abs=0.03)
  assert flat["laws"]["constant"]["sigma"] == pytest.approx(0.2, rel=0.02)
  assert flat["laws"]["constant"]["r2"] > 0.995 > 0.9 > flat["laws"]["linear"]["r2"]
  assert flat["exponent"] == pytest.approx(0, abs=0.03)


def test_the_exponent_does_not_see_separators():
  sigma = np.where(np.arange(40) % 4 == 3, 0.2, 1e-6) * np.arange(1, 41) ** 0.5
  assert variances_of(drawn(sigma, 20_000))["exponent"] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("discount", [0.0, 0.8, 1.0])
def test_to_go_is_the_cost_to_go_of_training(discount):
  r = drawn(np.ones(9), 3)
  np.testing.assert_allclose(to_go(r, discount), cost_to_go(r.astype(np.float32), discount), rtol=1e-5, atol=1e-6)  # pyright: ignore[reportArgumentType]


def test_one_row_has_no_variance():
  with pytest.raises(ValueError, match="two rows"):
    variances_of(drawn(np.ones(4), 3), [4, 2, 2], tokens=3)


def test_measurements_become_plain_json(measured):
  found = variances(measured)
  assert json.loads(json.dumps(found, allow_nan=False)) == found
  r = (measured.teacher_logprob - measured.logprob)[:, 0]
  assert found["sigma"][0] == pytest.approx(np.std(r, ddof=1))
