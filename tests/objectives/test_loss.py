"""The loss: its coefficients against the gradient of the same loss as one scalar, and the configs that it refuses."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import stop_gradient as sg

from opd_jax.objectives.divergence import Objective
from opd_jax.objectives.loss import Loss
from opd_jax.objectives.token_weights import TokenWeighting

B, H = 4, 5
MASK = np.arange(H) < np.array([5, 3, 0, 2])[:, None]
RNG = np.random.default_rng(0)
STATS = {
  name: np.where(MASK, RNG.uniform(low, high, MASK.shape), 0).astype(np.float32)
  for name, low, high in (
    ("divergence", 0.0, 1.5),
    ("logprob", -3.0, -0.1),
    ("teacher_logprob", -3.0, -0.1),
    ("student_entropy", 0.1, 2.0),
    ("teacher_entropy", 0.1, 2.0),
    ("initial_kl", 0.0, 1.0),
  )
}
BEHAVIOR = np.where(MASK, STATS["logprob"] + RNG.normal(0, 0.8, MASK.shape), np.nan).astype(np.float32)
ADVANTAGE = np.array([0.5, -1.0, 2.0, 0.25], np.float32)
KEY = jax.random.key(3)

DENSE, SAMPLED = Objective(vocab=8), Objective(vocab=8, support="sampled")
RATIO = np.where(MASK, STATS["logprob"] - BEHAVIOR, 0)


def loss(objective=DENSE, **keys):
  return Loss(objective=objective, **keys)


def mean(x, over=MASK):
  return jnp.sum(jnp.where(over, x, 0)) / over.sum()


def sequence_mean(x):
  """Average the means of the three rows that have tokens."""
  return sum(jnp.sum(jnp.where(MASK[b], x[b], 0)) / MASK[b].sum() for b in (0, 1, 3)) / 3


def to_go(cost, discount):
  """Add to the cost of a token the discounted ones after it, backwards through the row."""
  total, later = np.zeros(cost.shape), np.zeros(B)
  for n in reversed(range(H)):
    later = total[:, n] = np.where(MASK[:, n], cost[:, n], 0) + discount * later
  return total


def gap_weights(gamma):
  gap = np.abs(STATS["logprob"] - STATS["teacher_logprob"])
  weights = np.zeros(gap.shape)
  for b, n in zip(*np.nonzero(MASK), strict=True):
    weights[b, n] = 1 + gamma * (1 - gap[b, :n].sum() / gap[b].sum())
  return weights


def policy(x):
  """Compute exp(log s(y) - sg(log s(y))), whose value is 1 and whose gradient is grad log s(y)."""
  return jnp.exp(x["logprob"] - sg(x["logprob"]))


def with_policy_gradient(value, cost, x):
  """Return `value`, with the policy gradient of an advantage of minus `cost`."""
  return value + cost * (policy(x) - 1)


def r(x):
  return x["logprob"] - STATS["teacher_logprob"]


def k3(log_ratio):
  return jnp.exp(-log_ratio) - 1 + log_ratio


RATIOS = {
  "token": RATIO,
  "prefix": np.cumsum(RATIO, axis=1),
  "sequence": np.repeat(RATIO.sum(axis=1, keepdims=True), H, axis=1),
}
TRUNCATED = {level: np.minimum(np.exp(x), 1.5) for level, x in RATIOS.items()}
DROPPED = np.where(np.abs(RATIO) <= np.log(1.5), np.exp(RATIO), 0)
FIRST, SECOND = (MASK & (np.arange(H) < 2), MASK & (np.arange(H) >= 1) & (np.arange(H) < 3))
CLIP = 0.6

# Name: the loss, and the scalar function of the statistics that has its value and its gradient.
CASES = {
  "plain": (loss(), lambda x: mean(x["divergence"])),
  "half": (loss(divergence=0.5), lambda x: 0.5 * mean(x["divergence"])),
  "sequence mean": (loss(normaliser="sequence"), lambda x: sequence_mean(x["divergence"])),
  "constant": (loss(normaliser="constant", constant=6.0), lambda x: jnp.sum(MASK * x["divergence"]) / (6 * B)),
  "first": (loss(weights=TokenWeighting("first", tokens=2)), lambda x: mean(x["divergence"], FIRST)),
  "segment, sequence mean": (
    loss(weights=TokenWeighting("segment", start=1, tokens=2), normaliser="sequence"),
    lambda x: sum(jnp.sum(x["divergence"][b] * SECOND[b]) / SECOND[b].sum() for b in (0, 1, 3)) / 3,
  ),
  "k1": (loss(SAMPLED), lambda x: mean(with_policy_gradient(sg(r(x)), sg(r(x)), x))),
  "k1, discount": (
    loss(SAMPLED, discount=0.5),
    lambda x: mean(with_policy_gradient(sg(r(x)), to_go(STATS["logprob"] - STATS["teacher_logprob"], 0.5), x)),
  ),
  "k2": (loss(SAMPLED, estimator="k2"), lambda x: mean(r(x) ** 2 / 2)),
  "k3": (loss(SAMPLED, estimator="k3"), lambda x: mean(k3(r(x)))),
  "token_clip": (loss(token_clip=CLIP), lambda x: mean(jnp.where(x["divergence"] > CLIP, CLIP, x["divergence"]))),
  "k1, token_clip": (
    loss(SAMPLED, token_clip=CLIP),
    lambda x: mean(with_policy_gradient(sg(jnp.clip(r(x), -CLIP, CLIP)), sg(jnp.clip(r(x), -CLIP, CLIP)), x)),
  ),
  "k1, first, discount": (
    loss(SAMPLED, weights=TokenWeighting("first", tokens=2), discount=1.0),
    lambda x: mean(
      with_policy_gradient(sg(r(x)), to_go(FIRST * (STATS["logprob"] - STATS["teacher_logprob"]), 1.0), x), FIRST
    ),
  ),
  "k2, token_clip": (
    loss(SAMPLED, estimator="k2", token_clip=CLIP),
    lambda x: mean(jnp.where(jnp.abs(r(x)) < CLIP, r(x) ** 2, CLIP**2) / 2),
  ),
  "k3, token_clip": (
    loss(SAMPLED, estimator="k3", token_clip=CLIP),
    lambda x: mean(k3(jnp.where(jnp.abs(r(x)) < CLIP, r(x), CLIP * jnp.sign(sg(r(x)))))),
  ),
  "reward": (
    loss(reward=0.7),
    lambda x: mean(x["divergence"]) - 0.7 * mean(ADVANTAGE[:, None] * policy(x)),
  ),
  "k1, reward": (
    loss(SAMPLED, reward=0.7),
    lambda x: mean(with_policy_gradient(sg(r(x)), sg(r(x)), x)) - 0.7 * mean(ADVANTAGE[:, None] * policy(x)),
  ),
  "first, reward": (
    loss(weights=TokenWeighting("first", tokens=2), reward=0.7),
    lambda x: mean(x["divergence"], FIRST) - 0.7 * mean(ADVANTAGE[:, None] * policy(x)),
  ),
  "reward alone": (
    loss(divergence=0.0, reward=1.0, importance="truncated", cap=1.5),
    lambda x: -mean(TRUNCATED["token"] * ADVANTAGE[:, None] * policy(x)),
  ),
  "initial": (loss(reference_kl=0.3), lambda x: mean(x["divergence"]) + 0.3 * mean(x["initial_kl"])),
  "first, initial": (
    loss(weights=TokenWeighting("first", tokens=2), reference_kl=0.3),
    lambda x: mean(x["divergence"], FIRST) + 0.3 * mean(x["initial_kl"]),
  ),
  "truncated": (
    loss(importance="truncated", cap=1.5),
    lambda x: mean(jnp.minimum(jnp.exp(sg(x["logprob"]) - np.nan_to_num(BEHAVIOR)), 1.5) * x["divergence"]),
  ),
  "masked": (loss(importance="masked", cap=1.5), lambda x: mean(DROPPED * x["divergence"])),
  "prefix ratio": (
    loss(importance="truncated", level="prefix", cap=1.5),
    lambda x: mean(TRUNCATED["prefix"] * x["divergence"]),
  ),
  "k1, sequence ratio": (
    loss(SAMPLED, importance="truncated", level="sequence", cap=1.5),
    lambda x: mean(TRUNCATED["sequence"] * with_policy_gradient(sg(r(x)), sg(r(x)), x)),
  ),
  "gap": (loss(weights=TokenWeighting("gap", gamma=0.5)), lambda x: mean(gap_weights(0.5) * x["divergence"])),
  "linear": (
    loss(weights=TokenWeighting("linear", horizon=4, end=0.2)),
    lambda x: mean(np.array([1, 0.8, 0.6, 0.4, 0.2]) * x["divergence"]),
  ),
  "everything": (
    loss(
      SAMPLED,
      weights=TokenWeighting("gap", gamma=0.5),
      discount=0.9,
      token_clip=CLIP,
      importance="truncated",
      cap=1.5,
      normaliser="sequence",
      divergence=0.5,
      reward=0.7,
      reference_kl=0.3,
    ),
    lambda x: sequence_mean(
      0.5
      * gap_weights(0.5)
      * TRUNCATED["token"]
      * with_policy_gradient(
        sg(jnp.clip(r(x), -CLIP, CLIP)), to_go(np.asarray(jnp.clip(r(STATS), -CLIP, CLIP)), 0.9), x
      )
      - 0.7 * TRUNCATED["token"] * ADVANTAGE[:, None] * policy(x)
      + 0.3 * x["initial_kl"]
    ),
  ),
}


def coefficients_of(loss, token_weights=None, stats=STATS, behavior=BEHAVIOR, advantage: Any = ADVANTAGE):
  token_weights = token_weights or loss.token_weights(MASK, KEY)
  return loss.coefficients(token_weights, stats, behavior, advantage).by_stat()


@pytest.mark.few(3)
@pytest.mark.parametrize("name", CASES)
def test_value_and_coefficients_are_those_of_the_scalar(name):
  """None means a coefficient of zero; positions behind a row's end have it too, though their behaviour is NaN."""
  loss, scalar = CASES[name]
  x = {key: jnp.asarray(STATS[key]) for key in ("divergence", "logprob", "initial_kl")}
  want, gradients = jax.value_and_grad(scalar)(x)
  for key, c in coefficients_of(loss).items():
    np.testing.assert_allclose(np.zeros(MASK.shape) if c is None else c, gradients[key], rtol=2e-5, atol=1e-7)
    assert c is None or (np.any(gradients[key]) and not np.any(np.asarray(c)[~MASK]))
  got, _ = loss.value(loss.token_weights(MASK, KEY), STATS, BEHAVIOR, ADVANTAGE)
  np.testing.assert_allclose(got, want, rtol=2e-5)


def test_the_cases_are_on_both_sides_of_every_cut():
  """Otherwise a clip or a cap that does nothing would pass."""
  for cut in (
    STATS["divergence"] > CLIP,
    np.abs(STATS["logprob"] - STATS["teacher_logprob"]) > CLIP,
    *(np.exp(x) > 1.5 for x in RATIOS.values()),
    np.exp(RATIO) < 1 / 1.5,
  ):
    assert cut[MASK].any()
    assert not cut[MASK].all()


def test_a_clipped_token_has_no_coefficient():
  c = np.asarray(coefficients_of(loss(token_clip=CLIP))["divergence"])
  clipped = STATS["divergence"] > CLIP
  assert not c[clipped].any()
  np.testing.assert_allclose(c[MASK & ~clipped], 1 / MASK.sum(), rtol=1e-6)


def test_a_reward_needs_advantages():
  with pytest.raises(ValueError, match="advantages"):
    coefficients_of(loss(reward=1.0), advantage=None)


@pytest.mark.parametrize("name", CASES)
def test_statistics_are_needed_first_exactly_where_coefficients_depend_on_them(name):
  loss, _ = CASES[name]
  if loss.needs_stats_first:
    with pytest.raises(KeyError):
      coefficients_of(loss, stats={})
  else:
    for a, b in zip(coefficients_of(loss, stats={}).values(), coefficients_of(loss).values(), strict=True):
      assert (a is None) == (b is None)
      assert a is None or np.array_equal(a, b)


def test_a_policy_gradient_alone_needs_one_pass():
  """No second pass for the sampled support, the clip or the weights of a divergence that has no part in the loss."""
  gap = TokenWeighting("gap")
  assert not loss(SAMPLED, divergence=0.0, reward=1.0, token_clip=1.0, weights=gap).needs_stats_first
  assert loss(SAMPLED, divergence=0.0, reward=1.0, importance="masked").needs_stats_first
  assert not loss(weights=TokenWeighting("linear")).needs_stats_first
  assert loss(weights=gap).needs_stats_first


@pytest.mark.long
@pytest.mark.parametrize("name", ["first", "k1, discount", "prefix ratio", "everything"])
def test_parts_of_a_batch_add_up_to_it(name):
  loss, _ = CASES[name]
  token_weights = loss.token_weights(MASK, KEY)
  of_batch = coefficients_of(loss, token_weights)
  total, _ = loss.value(token_weights, STATS, BEHAVIOR, ADVANTAGE)
  parts, values = [], []
  for rows in (slice(0, 1), slice(1, 3), slice(3, 4)):
    args = jax.tree.map(operator.itemgetter(rows), (token_weights, STATS, BEHAVIOR, ADVANTAGE))
    parts.append(coefficients_of(loss, *args))
    values.append(loss.value(*args)[0])
  for key, c in of_batch.items():
    if c is not None:
      np.testing.assert_allclose(np.concatenate([part[key] for part in parts]), c, rtol=1e-6)
  np.testing.assert_allclose(sum(values), total, rtol=1e-5)


def test_metrics_of_each_token():
  """`loss` is clipped and not weighted; weights and importance only where there are some."""

  def report(loss):
    return loss.value(loss.token_weights(MASK, KEY), STATS, BEHAVIOR, ADVANTAGE)[1]

  plain = report(loss(weights=TokenWeighting("first", tokens=2), token_clip=CLIP))
  assert plain.keys() == {"loss"}
  np.testing.assert_allclose(plain["loss"], np.minimum(STATS["divergence"], CLIP))
  weighted = report(loss(SAMPLED, weights=TokenWeighting("gap"), importance="masked", cap=1.5))
  assert weighted.keys() == {"loss", "weight", "importance"}
  np.testing.assert_allclose(weighted["loss"], STATS["logprob"] - STATS["teacher_logprob"], rtol=1e-6)
  np.testing.assert_allclose(weighted["weight"], gap_weights(0.5), rtol=1e-5)
  np.testing.assert_allclose(weighted["importance"], np.where(MASK, DROPPED, 0), rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_batch_without_tokens_gives_zeros(name):
  """Everything is 0, and nothing is infinite or NaN."""
  loss, _ = CASES[name]
  token_weights = loss.token_weights(jnp.zeros(MASK.shape, bool), KEY)
  stats = {key: np.zeros(MASK.shape, np.float32) for key in STATS}
  behavior = np.full(MASK.shape, np.nan, np.float32)
  for c in coefficients_of(loss, token_weights, stats, behavior).values():
    assert c is None or not np.any(c)
  value, metrics = loss.value(token_weights, stats, behavior, ADVANTAGE)
  assert value == 0
  assert not any(np.any(a) for a in metrics.values())


def test_random_tokens_come_with_the_key_and_leave_the_other_means_alone():
  random_two = loss(weights=TokenWeighting("random", tokens=2))
  a, again, b = (random_two.token_weights(jnp.asarray(MASK), jax.random.key(k)) for k in (0, 0, 1))
  np.testing.assert_array_equal(a.trained, again.trained)
  assert np.any(a.trained != b.trained)
  np.testing.assert_allclose(np.unique(a.trained), [0, 1 / 6], rtol=1e-6)
  np.testing.assert_allclose(a.all, MASK / 10, rtol=1e-6)
