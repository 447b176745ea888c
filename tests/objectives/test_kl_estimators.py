"""Estimators and importance weights by exact enumeration: every response of a tiny student, in float64.

The student is a table: for each prefix of up to two tokens the logits of three ids, of which id 0 ends the response.
The references are differences of NumPy functions of the tables, or the textbook gradients, and use no JAX.
"""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.objectives import kl_estimators

V, H, END = 3, 3, 0


def tokens_of(*lengths, width) -> Any:
  """Build the mask of rows of these lengths."""
  return np.arange(width) < np.array(lengths)[:, None]


PREFIXES = [p for n in range(H) for p in itertools.product(range(1, V), repeat=n)]
RESPONSES = [
  y
  for n in range(1, H + 1)
  for y in itertools.product(range(V), repeat=n)
  if END not in y[:-1] and (y[-1] == END or n == H)
]
MASK = tokens_of(*map(len, RESPONSES), width=H)
STATE = np.array([[PREFIXES.index(y[:n]) if n < len(y) else 0 for n in range(H)] for y in RESPONSES])
TOKEN = np.array([[y[n] if n < len(y) else 0 for n in range(H)] for y in RESPONSES])
DEPTH = np.array([len(p) for p in PREFIXES])

UNCAPPED = 1e9
STUDENT, TEACHER, OTHER_TEACHER, BEHAVIOR = np.random.default_rng(11).normal(0, 1.2, (4, len(PREFIXES), V))


def log_softmax(x):
  return x - np.log(np.sum(np.exp(x), axis=-1, keepdims=True))


def logprobs(table):
  """Compute the log-probabilities of each response's tokens [B, H], NaN behind their end."""
  return np.where(MASK, log_softmax(table)[STATE, TOKEN], np.nan)


def probability(table):
  return np.exp(np.nansum(logprobs(table), axis=1))


def reverse_kl(s, t):
  return np.sum(np.exp(s) * (s - t), axis=-1)


def gradient(f, table, step=1e-5):
  """Compute the gradient of f by central differences."""
  result = np.zeros(table.shape)
  for at in np.ndindex(table.shape):
    change = np.zeros(table.shape)
    change[at] = step
    result[at] = (f(table + change) - f(table - change)) / (2 * step)
  return result


def in_float64(f, *args) -> Any:
  """Call the library's function in float64."""
  with jax.enable_x64(True):
    result = np.asarray(f(*args))
  assert result.dtype == np.float64
  return result


def expected(coefficient, drawn_by=STUDENT):
  """Compute E[ sum_n coefficient_n grad log s(y_n) ] over responses drawn by a table."""
  s, p = np.exp(log_softmax(STUDENT)), probability(drawn_by)
  total = np.zeros(STUDENT.shape)
  for b, n in zip(*np.nonzero(MASK), strict=True):
    total[STATE[b, n]] += p[b] * coefficient[b, n] * (np.eye(V)[TOKEN[b, n]] - s[STATE[b, n]])
  return total


def over_prefixes(divergence):
  """Compute the gradient of a divergence summed over positions, with the distribution of prefixes held fixed."""
  p = probability(STUDENT)
  reached = np.array([p[[y[: len(prefix)] == prefix for y in RESPONSES]].sum() for prefix in PREFIXES])
  return gradient(lambda table: np.sum(reached * divergence(log_softmax(table))), STUDENT)


def test_the_enumeration_is_a_distribution():
  assert len(RESPONSES) == 15
  for table in (STUDENT, BEHAVIOR):
    np.testing.assert_allclose(probability(table).sum(), 1, rtol=1e-12)


def test_values_by_hand():
  r = jnp.array([[-1.0, 0.0, 2.0]])
  np.testing.assert_allclose(kl_estimators.value("k1", r), [[-1, 0, 2]])
  np.testing.assert_allclose(kl_estimators.value("k2", r), [[0.5, 0, 2]])
  np.testing.assert_allclose(kl_estimators.value("k3", r), [[math.e - 2, 0, math.exp(-2) + 1]], rtol=1e-6)
  small = jnp.float32(1e-4)
  np.testing.assert_allclose(kl_estimators.value("k3", small), 0.5e-8, rtol=1e-2)
  np.testing.assert_allclose(kl_estimators.coefficient("k3", small[None, None], tokens_of(1, width=1)), 1e-4, rtol=1e-3)


def test_k1_and_k3_are_the_reverse_kl_in_expectation():
  s, t = log_softmax(STUDENT[0]), log_softmax(TEACHER[0])

  def mean(name):
    return np.sum(np.exp(s) * in_float64(kl_estimators.value, name, s - t))

  np.testing.assert_allclose(mean("k1"), reverse_kl(s, t), rtol=1e-12)
  np.testing.assert_allclose(mean("k3"), reverse_kl(s, t), rtol=1e-12)
  assert np.all(in_float64(kl_estimators.value, "k3", s - t) > 0)


@pytest.mark.parametrize("vocab", [3, 6])
def test_expected_gradients_at_one_position(vocab):
  """Against the closed forms: s (log s - log t - KL) for the reverse KL and s - t for the forward one."""
  logits, teacher = np.random.default_rng(vocab).normal(0, 1.5, (2, vocab))
  s, t = log_softmax(logits), log_softmax(teacher)
  reverse = np.exp(s) * (s - t - reverse_kl(s, t))
  forward = np.exp(s) - np.exp(t)
  np.testing.assert_allclose(gradient(lambda x: reverse_kl(log_softmax(x), t), logits), reverse, atol=1e-9)
  np.testing.assert_allclose(gradient(lambda x: reverse_kl(t, log_softmax(x)), logits), forward, atol=1e-9)
  assert abs(reverse - forward).max() > 0.05

  expectation = {}
  for name in ("k1", "k2", "k3"):
    c = in_float64(kl_estimators.coefficient, name, (s - t)[:, None], tokens_of(*[1] * vocab, width=1))
    expectation[name] = (np.exp(s) * c[:, 0]) @ (np.eye(vocab) - np.exp(s))
  np.testing.assert_allclose(expectation["k1"], reverse, atol=1e-12)
  np.testing.assert_allclose(expectation["k2"], reverse, atol=1e-12)
  np.testing.assert_allclose(expectation["k3"], forward, atol=1e-12)


@pytest.mark.parametrize("teacher", [TEACHER, OTHER_TEACHER], ids=["one", "another"])
def test_differentiating_k1_itself_would_lose_the_teacher(teacher):
  """Its coefficient is 1 for every token, and the mean of grad log s is zero; with k2 and k3 nothing is lost."""
  r = np.where(MASK, logprobs(STUDENT) - logprobs(teacher), 0.0)

  def direct(name):
    return in_float64(jax.grad(lambda r: jnp.sum(kl_estimators.value(name, r))), r)

  np.testing.assert_allclose(expected(direct("k1")), 0, atol=1e-12)
  assert abs(expected(in_float64(kl_estimators.coefficient, "k1", r, MASK))).max() > 0.02
  for name in ("k2", "k3"):
    np.testing.assert_allclose(direct(name), in_float64(kl_estimators.coefficient, name, r, MASK), atol=1e-12)


def test_two_teachers_give_different_gradients():
  """Differentiating k1 itself could not tell them apart."""
  for name in ("k1", "k2", "k3"):
    a, b = (
      expected(in_float64(kl_estimators.coefficient, name, logprobs(STUDENT) - logprobs(t), MASK))
      for t in (TEACHER, OTHER_TEACHER)
    )
    assert abs(a - b).max() > 0.02


def test_without_a_discount_prefixes_stay_as_they_are():
  r = logprobs(STUDENT) - logprobs(TEACHER)

  def s_to_t(s):
    return reverse_kl(s, log_softmax(TEACHER))

  def t_to_s(s):
    return reverse_kl(log_softmax(TEACHER), s)

  for name in ("k1", "k2"):
    got = expected(in_float64(kl_estimators.coefficient, name, r, MASK))
    np.testing.assert_allclose(got, over_prefixes(s_to_t), atol=1e-9)
  np.testing.assert_allclose(
    expected(in_float64(kl_estimators.coefficient, "k3", r, MASK)), over_prefixes(t_to_s), atol=1e-9
  )


def sequence_kl(table):
  """Compute the KL between the distributions of whole responses."""
  p, q = probability(table), probability(TEACHER)
  return np.sum(p * (np.log(p) - np.log(q)))


def test_discount_one_is_the_reverse_kl_between_whole_responses():
  r = logprobs(STUDENT) - logprobs(TEACHER)
  whole = gradient(sequence_kl, STUDENT)
  np.testing.assert_allclose(expected(in_float64(kl_estimators.coefficient, "k1", r, MASK, 1.0)), whole, atol=1e-9)
  assert abs(expected(in_float64(kl_estimators.coefficient, "k1", r, MASK, 0.0)) - whole).max() > 0.02


@pytest.mark.parametrize("discount", [0.0, 0.3, 0.9, 1.0])
def test_a_discount_weighs_what_a_token_does_to_the_cost_of_later_ones(discount):
  """The logits at depth n get discount^(k - n) times the gradient of the mean cost at depth k, for every k >= n."""

  def mean_cost(table, k):
    return np.nansum(probability(table) * (logprobs(table) - logprobs(TEACHER))[:, k])

  gradients = [gradient(functools.partial(mean_cost, k=k), STUDENT) for k in range(H)]
  want = np.zeros(STUDENT.shape)
  for at, n in enumerate(DEPTH):
    for k in range(n, H):
      want[at] += discount ** (k - n) * gradients[k][at]
  r = logprobs(STUDENT) - logprobs(TEACHER)
  np.testing.assert_allclose(expected(in_float64(kl_estimators.coefficient, "k1", r, MASK, discount)), want, atol=1e-9)


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.99, 1.0])
def test_cost_to_go_is_the_double_sum(discount):
  cost = np.random.default_rng(2).normal(size=(3, 13))
  want = np.zeros(cost.shape)
  for n in range(13):
    for k in range(n, 13):
      want[:, n] += discount ** (k - n) * cost[:, k]
  np.testing.assert_allclose(in_float64(kl_estimators.cost_to_go, cost, discount), want, atol=1e-12)
  np.testing.assert_allclose(in_float64(kl_estimators.cost_to_go, cost[:, :1], discount), cost[:, :1])


def test_cost_to_go_by_hand():
  """l = log t - log s is minus the cost, and A minus the cost to go."""
  l = jnp.array([[-0.2, 0.1, -0.4]])
  np.testing.assert_allclose(-kl_estimators.cost_to_go(-l, 0.5), [[-0.25, -0.1, -0.4]], rtol=1e-6)


def test_tokens_behind_the_end_cost_nothing():
  r = jnp.array([[1.0, 2.0, np.nan, np.inf], [1.0, 2.0, 3.0, -np.inf], [np.nan] * 4])
  mask = tokens_of(2, 3, 0, width=4)
  want = [[2, 2, 0, 0], [1 + 1 + 0.75, 3.5, 3, 0], [0] * 4]
  np.testing.assert_allclose(kl_estimators.coefficient("k1", r, mask, 0.5), want)
  for name in ("k1", "k2"):
    np.testing.assert_allclose(kl_estimators.coefficient(name, r, mask), [[1, 2, 0, 0], [1, 2, 3, 0], [0] * 4])
  k3 = np.where(mask, 1 - np.exp(-np.where(mask, r, 0)), 0)
  np.testing.assert_allclose(kl_estimators.coefficient("k3", r, mask), k3, rtol=1e-6)


def test_noise_adds_up_over_the_future():
  """Proposition 1 of arXiv:2605.31490 with T = 4 and sigma_k = k: mean square errors of 30, 29, 25 and 16."""
  noise = jnp.asarray(np.random.default_rng(0).normal(size=(200_000, 4)) * np.arange(1, 5))

  def error(discount):
    return np.mean(np.square(kl_estimators.cost_to_go(noise, discount)), axis=0)

  np.testing.assert_allclose(error(1.0), [30, 29, 25, 16], rtol=0.02)
  np.testing.assert_allclose(error(0.0), [1, 4, 9, 16], rtol=0.02)
  np.testing.assert_allclose(error(0.5), [1 + 1 + 9 / 16 + 1 / 4, 4 + 9 / 4 + 1, 9 + 4, 16], rtol=0.02)


def reweighted(level, coefficient):
  """Compute the importance-weighted expected gradient from responses drawn by BEHAVIOR."""
  ratio = logprobs(STUDENT) - logprobs(BEHAVIOR)
  w = in_float64(kl_estimators.importance, ratio, MASK, "truncated", level, UNCAPPED)
  return expected(w * coefficient, BEHAVIOR)


def dense(level):
  """Compute it for the full divergence of each position, whose gradient needs no drawn token."""
  s, t = log_softmax(STUDENT), log_softmax(TEACHER)
  per_state = np.exp(s) * (s - t - reverse_kl(s, t)[:, None])
  ratio = logprobs(STUDENT) - logprobs(BEHAVIOR)
  w = in_float64(kl_estimators.importance, ratio, MASK, "truncated", level, UNCAPPED) * probability(BEHAVIOR)[:, None]
  total = np.zeros(STUDENT.shape)
  for b, n in zip(*np.nonzero(MASK), strict=True):
    total[STATE[b, n]] += w[b, n] * per_state[STATE[b, n]]
  return total


def test_prefix_weights_make_another_policys_responses_good_for_everything_without_a_discount():
  on_policy = over_prefixes(lambda s: reverse_kl(s, log_softmax(TEACHER)))
  r = np.where(MASK, logprobs(STUDENT) - logprobs(TEACHER), 0.0)
  for level in ("prefix", "sequence"):
    np.testing.assert_allclose(dense(level), on_policy, atol=1e-9)
    for name in ("k1", "k2"):
      c = in_float64(kl_estimators.coefficient, name, r, MASK)
      np.testing.assert_allclose(reweighted(level, c), on_policy, atol=1e-9)
  assert abs(expected(r, BEHAVIOR) - on_policy).max() > 0.02, "without weights it would be biased"


def test_sequence_weights_are_exact_with_a_discount_too():
  whole = gradient(sequence_kl, STUDENT)
  r = logprobs(STUDENT) - logprobs(TEACHER)
  to_go = in_float64(kl_estimators.coefficient, "k1", r, MASK, 1.0)
  np.testing.assert_allclose(reweighted("sequence", to_go), whole, atol=1e-9)
  assert abs(reweighted("prefix", to_go) - whole).max() > 0.02, "what follows the prefix was drawn by another"


def test_a_reward_of_whole_responses_needs_sequence_weights():
  reward = np.random.default_rng(8).normal(size=len(RESPONSES))
  on_policy = gradient(lambda table: np.sum(probability(table) * reward), STUDENT)
  everywhere = np.broadcast_to(reward[:, None], MASK.shape)
  np.testing.assert_allclose(reweighted("sequence", everywhere), on_policy, atol=1e-9)
  assert abs(reweighted("prefix", everywhere) - on_policy).max() > 0.02


def test_token_weights_are_exact_for_the_first_token_only():
  on_policy = over_prefixes(lambda s: reverse_kl(s, log_softmax(TEACHER)))
  c = np.where(MASK, logprobs(STUDENT) - logprobs(TEACHER), 0.0)
  weighted = reweighted("token", c)
  np.testing.assert_allclose(weighted[DEPTH == 0], on_policy[DEPTH == 0], atol=1e-9)
  assert abs(weighted - on_policy)[DEPTH == 1].max() > 0.005
  np.testing.assert_allclose(dense("token")[DEPTH == 0], on_policy[DEPTH == 0], atol=1e-9)
  assert abs(dense("token") - on_policy)[DEPTH == 1].max() > 0.005


def test_levels_by_loops():
  ratio = np.random.default_rng(4).normal(0, 0.5, (4, 5))
  lengths = (5, 3, 1, 0)
  mask = tokens_of(*lengths, width=5)
  for level in kl_estimators.LEVELS:
    want = np.zeros(ratio.shape)
    for b, length in enumerate(lengths):
      for n in range(length):
        ratios = {"token": ratio[b, n : n + 1], "prefix": ratio[b, : n + 1], "sequence": ratio[b, :length]}
        want[b, n] = math.prod(math.exp(x) for x in ratios[level])
    got = in_float64(kl_estimators.importance, ratio, mask, "truncated", level, UNCAPPED)
    np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("level", kl_estimators.LEVELS)
@pytest.mark.parametrize("cap", [1.0, 1.5, 2.0])
def test_truncated_and_masked_differ_beyond_the_cap_only(cap, level):
  ratio = jnp.asarray(np.random.default_rng(6).normal(0, 0.6, (24, 4)))
  mask = tokens_of(*np.arange(24) % 5, width=4)

  def weight(kind, cap):
    return np.asarray(kl_estimators.importance(ratio, mask, kind, level, cap))

  free, truncated, masked = weight("truncated", 1e30), weight("truncated", cap), weight("masked", cap)
  np.testing.assert_allclose(truncated, np.minimum(free, cap), rtol=1e-6)
  inside = (free <= cap) & (free >= 1 / cap)
  np.testing.assert_allclose(masked, np.where(inside, free, 0), rtol=1e-6)
  assert (free > cap).any()
  assert ((free < 1 / cap) & mask).any()
  assert inside.any() == (cap > 1)


def test_weights_of_extreme_ratios_are_finite():
  ratio = jnp.array([[1e4, -1e4, np.inf, -np.inf, 0.6, -0.8]])
  mask = tokens_of(6, width=6)
  got = kl_estimators.importance(ratio, mask, "truncated", "token", 2.0)
  np.testing.assert_allclose(got, [[2, 0, 2, 0, math.exp(0.6), math.exp(-0.8)]], rtol=1e-6)
  got = kl_estimators.importance(ratio, mask, "masked", "token", 2.0)
  np.testing.assert_allclose(got, [[0, 0, 0, 0, math.exp(0.6), 0]], rtol=1e-6)


@pytest.mark.parametrize("level", kl_estimators.LEVELS)
@pytest.mark.parametrize("kind", ["truncated", "masked"])
def test_the_policy_itself_weighs_exactly_one_whatever_lies_behind_the_end(kind, level):
  mask = tokens_of(4, 2, 0, width=4)
  for cap in (1.0, 2.0):
    for junk in (np.nan, np.inf, -np.inf):
      got = kl_estimators.importance(jnp.where(mask, 0.0, junk), mask, kind, level, cap)
      np.testing.assert_array_equal(got, mask)


def test_what_does_not_exist_is_no_other_estimator_or_weight():
  r, mask = jnp.zeros((1, 2)), jnp.ones((1, 2), bool)
  for call in (
    lambda: kl_estimators.value("k4", r),
    lambda: kl_estimators.coefficient("k4", r, mask),
    lambda: kl_estimators.importance(r, mask, "clipped", "token", 2.0),
    lambda: kl_estimators.importance(r, mask, "masked", "turn", 2.0),
  ):
    with pytest.raises(ValueError):  # noqa: PT011
      call()


def test_a_proximal_teachers_log_ratio_has_a_floor():
  rho = jnp.array([0.0, 0.5, 1.0, 2.0, 10.0])
  reward = -kl_estimators.proximal_log_ratio(-jnp.log(rho), 0.1)
  np.testing.assert_allclose(reward, [-0.1054, -0.0513, 0, 0.0953, 0.6419], atol=1e-4)
  r = jnp.array([0.3, -1.0])
  np.testing.assert_array_equal(kl_estimators.proximal_log_ratio(r, 1.0), r)
  np.testing.assert_array_equal(kl_estimators.proximal_log_ratio(r, 0.0), 0)


def test_the_future_counts_by_its_mean_and_advantages_are_standard_scores():
  reward, mask = jnp.array([[-0.1, 0.2, -0.3, 9.0]]), jnp.array([[True, True, True, False]])
  returns = kl_estimators.mean_to_go(reward, mask)
  np.testing.assert_allclose(returns, [[-0.15, -0.1, -0.3, 0]], atol=1e-6)
  np.testing.assert_allclose(kl_estimators.standard_scores(returns, mask, 1), [[0.32, 0.80, -1.12, 0]], atol=5e-3)


def test_standard_scores_are_over_the_rollouts_of_a_prompt():
  value = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
  got = kl_estimators.standard_scores(value, jnp.ones((4, 3), bool), 2)
  for group in (got[:2], got[2:]):
    assert float(jnp.mean(group)) == pytest.approx(0, abs=1e-6)
    assert float(jnp.std(group, ddof=1)) == pytest.approx(1, abs=1e-5)


def test_the_null_is_a_constant_and_opsa_follows_the_entropy_of_the_chosen_tokens():
  entropy, mask = jnp.array([[9.0, 0.2, 1.0, 0.6], [0.5, 0.5, 0.5, 0.5]]), jnp.array([[False, True, True, True]] * 2)
  null = kl_estimators.suppressing_advantage(entropy, mask, -0.5, 0.0)
  np.testing.assert_array_equal(null, [[0, -0.5, -0.5, -0.5]] * 2)
  opsa = kl_estimators.suppressing_advantage(entropy, mask, -0.5, -0.5)
  np.testing.assert_allclose(opsa, [[0, -0.5, -1, -0.75], [0, -0.5, -0.5, -0.5]], atol=1e-6)
