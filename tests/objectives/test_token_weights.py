"""Masks, weights and normalisers against plain loops over a row's tokens, and the papers' hand numbers."""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.objectives import token_weights
from opd_jax.objectives.token_weights import TokenWeighting

H = 9
LENGTHS = (0, 1, 3, 6, 9)
KEY = jax.random.key(0)


def tokens_of(*lengths, width=H) -> Any:
  """Build the mask of rows of these lengths."""
  return np.arange(width) < np.array(lengths)[:, None]


MASK = tokens_of(*LENGTHS)


def on_rows(f, mask, *arrays) -> Any:
  """Apply f to each row's own tokens, as lists, and put the results where they came from; 0 elsewhere."""
  result = np.zeros(mask.shape)
  for b, row in enumerate(mask):
    at = np.flatnonzero(row)
    if len(at):
      result[b, at] = f(*([float(x) for x in a[b, at]] for a in arrays))
  return result


def random_stat(seed, low=0.0, high=3.0) -> Any:
  """Draw numbers for the tokens, and NaN outside the mask, where nothing may be used."""
  return np.where(MASK, np.random.default_rng(seed).uniform(low, high, MASK.shape), np.nan).astype(np.float32)


STATS = {
  "logprob": random_stat(1, -4),
  "teacher_logprob": random_stat(2, -4),
  "student_entropy": random_stat(3),
  "teacher_entropy": random_stat(4),
}


def linear(n, horizon, end):
  return 1 + (end - 1) * min(n, horizon) / horizon


def rising(row):
  return [0.25 + 0.75 / (1 + math.exp(-((n - 0.5) / len(row) - 0.3) / 0.1)) for n in range(1, len(row) + 1)]


def gap_weights(gaps, gamma):
  return [1 + gamma * (1 - (sum(gaps[:n]) / sum(gaps) if sum(gaps) else 0)) for n in range(len(gaps))]


def relative(values):
  mean = sum(values) / len(values)
  return [v / mean if mean else 1.0 for v in values]


@pytest.mark.parametrize("tokens", [1, 3, 6, 50])
@pytest.mark.parametrize("kind", token_weights.COUNTED)
def test_masks_take_as_many_tokens_as_asked_where_the_row_has_them(kind, tokens):
  chosen = np.asarray(TokenWeighting(kind, tokens=tokens, start=2).choose(MASK, KEY))
  assert not np.any(chosen & ~MASK)
  for row, length in zip(chosen, LENGTHS, strict=True):
    expected = {
      "first": set(range(min(tokens, length))),
      "last": set(range(max(length - tokens, 0), length)),
      "segment": set(range(2, max(2, min(2 + tokens, length)))),
    }
    if kind == "random":
      assert row.sum() == min(tokens, length)
    else:
      assert set(np.flatnonzero(row)) == expected[kind]


def test_counts_are_of_tokens_and_not_of_columns():
  """Rows whose tokens do not stand together."""
  mask: Any = jnp.array([[False, True, False, True, True, False, True, False]])
  np.testing.assert_array_equal(np.flatnonzero(token_weights.last(mask, 2)), [4, 6])
  for key in jax.random.split(KEY, 5):
    chosen = np.asarray(token_weights.random(mask, 3, key))
    assert chosen.sum() == 3
    assert not np.any(chosen & ~mask)


def test_other_kinds_train_every_token_and_masks_weigh_each_the_same():
  for kind in token_weights.KINDS:
    w = TokenWeighting(kind, tokens=2, start=1)
    if kind in token_weights.MASKS:
      chosen = w.choose(MASK, KEY, STATS["logprob"])
      np.testing.assert_array_equal(w.weight(chosen, {}), chosen)
    else:
      np.testing.assert_array_equal(w.choose(MASK, KEY), MASK)
  np.testing.assert_array_equal(TokenWeighting().weight(MASK, {}), MASK)


def test_random_tokens_follow_the_key_and_not_the_row():
  mask = tokens_of(60, 60, 60, width=60)

  def draw(key):
    return np.asarray(token_weights.random(mask, 20, key))

  a, again, other = draw(KEY), draw(jax.random.key(0)), draw(jax.random.key(1))
  np.testing.assert_array_equal(a, again)
  assert np.all(np.any(a != other, axis=1)), "another key, another choice in every row"
  assert all(np.any(a[i] != a[j]) for i, j in itertools.combinations(range(3), 2)), "rows share their choice"


def test_random_tokens_are_uniform_over_the_positions_and_over_their_pairs():
  """2 of 5 tokens in a row of 8: every position 2/5 of the time, every pair 1/10; 5 standard errors of 2000 draws."""
  mask = tokens_of(5, width=8)
  n = 2000
  draw = jax.jit(jax.vmap(lambda key: token_weights.random(mask, 2, key)[0]))
  chosen = np.asarray(draw(jax.random.split(jax.random.key(7), n)), int)
  assert not chosen[:, 5:].any()
  together = chosen.T @ chosen / n

  def assert_near(got, p):
    return np.testing.assert_allclose(got, p, atol=5 * math.sqrt(p * (1 - p) / n))

  assert_near(np.diag(together)[:5], 2 / 5)
  assert_near(together[:5, :5][~np.eye(5, dtype=bool)], 1 / 10)


@pytest.mark.parametrize(("horizon", "end"), [(9, 0.0), (9, 0.25), (4, 0.5), (4, 3.0), (20, 0.0)])
def test_linear_goes_by_absolute_position_and_stays_at_its_end(horizon, end):
  got = TokenWeighting("linear", horizon=horizon, end=end).weight(MASK, {})
  expected = np.array([linear(n, horizon, end) for n in range(H)]) * MASK
  np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.long
def test_rising_weights_are_those_of_pw_opsd():
  np.testing.assert_allclose(TokenWeighting("rising").weight(MASK, {}), on_rows(rising, MASK, MASK), rtol=1e-5)
  hand = [0.361, 0.759, 0.972, 0.998]
  for width in (4, 40):
    row = np.asarray(token_weights.rising(tokens_of(4, width=width)))[0]
    np.testing.assert_allclose(row[:4], hand, atol=6e-4)
    assert not row[4:].any(), "padding changes nothing"
  other = token_weights.rising(tokens_of(2, width=2), least=0.5, centre=0.25, width=0.05)
  np.testing.assert_allclose(other, [[0.5 + 0.5 / 2, 0.5 + 0.5 / (1 + math.exp(-10))]], rtol=1e-5)


def test_gap_weights_are_those_of_iw_opd():
  hand = token_weights.cumulative_gap(jnp.array([[0.1, 0.3, 0.0, 0.6, 7.0]]), tokens_of(4, width=5), 0.5)
  np.testing.assert_allclose(hand, [[1.5, 1.45, 1.3, 1.3, 0.0]], rtol=1e-6)
  without_gap = token_weights.cumulative_gap(jnp.zeros(MASK.shape), MASK, 0.5)
  np.testing.assert_array_equal(without_gap, 1.5 * MASK)

  gap = np.abs(STATS["logprob"] - STATS["teacher_logprob"])
  for gamma in (0.0, 0.5, 2.0):
    got = np.asarray(TokenWeighting("gap", gamma=gamma).weight(MASK, STATS))
    np.testing.assert_allclose(got, on_rows(functools.partial(gap_weights, gamma=gamma), MASK, gap), rtol=1e-5)
    np.testing.assert_allclose(got[1:, 0], 1 + gamma, rtol=1e-6)
  swapped = STATS | {"logprob": STATS["teacher_logprob"], "teacher_logprob": STATS["logprob"]}
  np.testing.assert_array_equal(TokenWeighting("gap").weight(MASK, swapped), TokenWeighting("gap").weight(MASK, STATS))


def test_entropy_weights():
  student = TokenWeighting("student_entropy").weight(MASK, STATS)
  np.testing.assert_allclose(student, on_rows(relative, MASK, STATS["student_entropy"]), rtol=1e-5)
  certain = TokenWeighting("student_entropy").weight(MASK, {"student_entropy": jnp.zeros(MASK.shape)})
  np.testing.assert_array_equal(certain, MASK)
  teacher = TokenWeighting("teacher_entropy").weight(MASK, STATS)

  def by_hand(row):
    return [math.exp(-x) for x in row]

  np.testing.assert_allclose(teacher, on_rows(by_hand, MASK, STATS["teacher_entropy"]), rtol=1e-5)


@pytest.mark.parametrize("kind", token_weights.KINDS)
def test_mean_one_divides_by_the_mean_over_the_rows_tokens(kind):
  raw = TokenWeighting(kind, tokens=4, start=1, end=0.1, horizon=H)
  mask: Any = np.asarray(raw.choose(MASK, KEY, STATS["logprob"]))
  before = np.asarray(raw.weight(mask, STATS))
  after = np.asarray(TokenWeighting(kind, tokens=4, start=1, end=0.1, horizon=H, mean_one=True).weight(mask, STATS))
  has = mask.any(axis=1)
  np.testing.assert_allclose(after[has].sum(axis=1) / mask[has].sum(axis=1), 1, rtol=1e-6)
  np.testing.assert_allclose(after, on_rows(relative, mask, before), rtol=1e-5)
  assert after.dtype == before.dtype == np.float32


def test_relative_leaves_a_row_without_any_weight_at_one():
  w = jnp.array([[1.0, 3.0, np.nan], [0.0, 0.0, np.nan], [np.nan] * 3])
  mask = tokens_of(2, 2, 0, width=3)
  np.testing.assert_allclose(token_weights.relative(w, mask), [[0.5, 1.5, 0], [1, 1, 0], [0, 0, 0]])


@pytest.mark.few(3)
@pytest.mark.parametrize("mean_one", [False, True])
@pytest.mark.parametrize("kind", token_weights.KINDS)
def test_rows_without_tokens_give_zeros_and_no_nan(kind, mean_one):
  """An empty row beside others, and a batch of empty rows, with NaN in every statistic."""
  w = TokenWeighting(kind, tokens=2, start=1, end=0.1, horizon=H, mean_one=mean_one)
  empty = tokens_of(0, 0)
  broken = {name: jnp.full(empty.shape, np.nan) for name in STATS}
  assert not np.any(w.choose(empty, KEY, broken["logprob"]))
  np.testing.assert_array_equal(w.weight(empty, broken), 0)
  weights = np.asarray(w.weight(MASK, STATS))
  assert np.isfinite(weights).all()
  assert not weights[~MASK].any()


def mean_by_hand(values, mask, normaliser, constant):
  """Compute the three means from their definitions in words."""
  rows = [[float(v) for v, m in zip(*pair, strict=True) if m] for pair in zip(values, mask, strict=True)]
  if normaliser == "token":
    values = [v for row in rows for v in row]
    return sum(values) / len(values)
  if normaliser == "sequence":
    means = [sum(row) / len(row) for row in rows if row]
    return sum(means) / len(means)
  return sum(sum(row) for row in rows) / (constant * len(rows))


@pytest.mark.parametrize("normaliser", token_weights.NORMALISERS)
def test_mean_weights_make_the_mean_by_hand_however_the_batch_is_split(normaliser):
  values = np.random.default_rng(5).normal(1, 1, MASK.shape).astype(np.float32)
  weights = np.asarray(token_weights.mean_weights(MASK, normaliser, 4.0))
  assert weights.dtype == np.float32
  assert not weights[~MASK].any()
  expected = mean_by_hand(values, MASK, normaliser, 4.0)
  for cuts in ([], [1], [3], [1, 2, 4]):
    parts = zip(np.split(weights, cuts), np.split(values, cuts), strict=True)
    np.testing.assert_allclose(sum(float((w * v).sum()) for w, v in parts), expected, rtol=1e-5)


def test_mean_weights_by_hand():
  mask = tokens_of(3, 1, 0, width=3)
  np.testing.assert_allclose(token_weights.mean_weights(mask, "token", 8.0), mask / 4, rtol=1e-6)
  np.testing.assert_allclose(
    token_weights.mean_weights(mask, "sequence", 8.0), mask * [[1 / 6], [1 / 2], [0]], rtol=1e-6
  )
  np.testing.assert_allclose(token_weights.mean_weights(mask, "constant", 8.0), mask / 24, rtol=1e-6)
  some = token_weights.mean_weights(mask, "constant", 8.0, jnp.array([True, False, True]))
  np.testing.assert_allclose(some, mask * [[1 / 16], [0], [0]], rtol=1e-6)
  with pytest.raises(ValueError, match=r"'tokens'.*token, sequence, constant"):
    token_weights.mean_weights(mask, "tokens", 8.0)


@pytest.mark.parametrize("normaliser", token_weights.NORMALISERS)
def test_mean_weights_of_a_batch_without_tokens_are_zero(normaliser):
  np.testing.assert_array_equal(token_weights.mean_weights(tokens_of(0, 0, 0), normaliser, 4.0), np.zeros((3, H)))


@pytest.mark.long
@pytest.mark.parametrize("length", [257, 2049, 4097])
def test_counts_are_exact_where_half_precision_is_not(length):
  """bfloat16 cannot count past 256, nor float16 past 2048: 257 becomes 256, 0.4 % off."""
  mask = tokens_of(length, width=4200)
  for normaliser, n in (("token", length), ("sequence", length), ("constant", 1000)):
    weights = token_weights.mean_weights(mask, normaliser, 1000.0)
    assert weights[0, 0] == np.float32(1 / n)
    assert (weights * jnp.ones(mask.shape, jnp.bfloat16)).dtype == jnp.float32
  for kind in token_weights.COUNTED:
    assert np.sum(TokenWeighting(kind, tokens=length - 1).choose(mask, KEY)) == length - 1, kind
  last = np.flatnonzero(token_weights.last(mask, length - 1))
  np.testing.assert_array_equal(last, np.arange(1, length))
  np.testing.assert_allclose(token_weights.rising(mask), on_rows(rising, mask, mask), rtol=1e-5)
  np.testing.assert_allclose(token_weights.relative(np.float32(0.5) * mask, mask), mask, rtol=1e-6)


def test_a_kind_that_is_named_and_not_made_is_no_uniform_weight(monkeypatch):
  with pytest.raises(ValueError, match="are not one of"):
    token_weights.TokenWeighting(kind="middle")
  monkeypatch.setattr(token_weights, "KINDS", (*token_weights.KINDS, "middle"))
  monkeypatch.setattr(token_weights, "MASKS", (*token_weights.MASKS, "centre"))
  mask = jnp.ones((1, 2), bool)
  with pytest.raises(NotImplementedError):
    token_weights.TokenWeighting(kind="middle").weight(mask, {})
  monkeypatch.setattr(token_weights, "KINDS", (*token_weights.KINDS, "centre"))
  with pytest.raises(NotImplementedError):
    token_weights.TokenWeighting(kind="centre").choose(mask, jax.random.key(0))


LOGPROB = jnp.array([[-0.1, -3.0, -0.2, -1.0, -0.5], [-0.1, -0.2, -0.05, -9.0, -9.0]])
THERE = jnp.array([[True] * 5, [True, True, True, False, False]])


def test_the_rare_tokens_are_the_least_likely_fifth_of_each_row():
  np.testing.assert_array_equal(token_weights.rare(LOGPROB, THERE, 0.2), [[0, 1, 0, 0, 0], [0, 1, 0, 0, 0]])
  np.testing.assert_array_equal(token_weights.rare(LOGPROB, THERE, 0.4), [[0, 1, 0, 1, 0], [1, 1, 0, 0, 0]])


def test_the_rare_tokens_of_a_batch_may_all_stand_in_one_row():
  np.testing.assert_array_equal(token_weights.rare(LOGPROB, THERE, 0.25, "batch"), [[0, 1, 0, 1, 0], [0] * 5])


def test_common_tokens_are_all_the_others():
  key = jax.random.key(0)
  rare, common = (token_weights.TokenWeighting(kind=kind).choose(THERE, key, LOGPROB) for kind in ("rare", "common"))
  np.testing.assert_array_equal(rare ^ common, THERE)
  with pytest.raises(ValueError, match="log-probabilities"):
    token_weights.TokenWeighting(kind="rare").choose(THERE, key)
