"""The loss: its coefficients against the gradient of the same loss as one scalar, and the configs that it refuses."""

import dataclasses
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import stop_gradient as sg

from opd_jax import checks, config
from opd_jax.errors import InputError
from opd_jax.objectives import loss as losses
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


OPD = config.load("opd")
SAMPLE = {"objective.support": "sampled"}
FORWARD = SAMPLE | {"objective.kind": "forward_kl"}
REUSE = {"updates_per_rollout": 2}

# Name: the wrong overrides, the key that the message names, and pieces of the message with the remedy that each gives.
REFUSED = {
  "k1_direct": (
    SAMPLE | {"objective.estimator": "k1_direct"},
    "objective.estimator",
    {
      "expected gradient is zero whatever the teacher says; use 'k1'": {"objective.estimator": "k1"},
      "or 'k2'": {"objective.estimator": "k2"},
    },
  ),
  "k3 for reverse_kl": (
    SAMPLE | {"objective.estimator": "k3"},
    "objective.estimator",
    {
      "use 'k1'": {"objective.estimator": "k1"},
      "or 'k2'": {"objective.estimator": "k2"},
      "is that of forward_kl": {"objective.kind": "forward_kl"},
    },
  ),
  "k1 for forward_kl": (
    FORWARD | {"objective.estimator": "k1"},
    "objective.estimator",
    {"use 'k3'": {"objective.estimator": "k3"}, "is that of reverse_kl": {"objective.kind": "reverse_kl"}},
  ),
  "k2 for forward_kl": (
    FORWARD | {"objective.estimator": "k2"},
    "objective.estimator",
    {"use 'k3'": {"objective.estimator": "k3"}, "is that of reverse_kl": {"objective.kind": "reverse_kl"}},
  ),
  "unknown estimator": (
    SAMPLE | {"objective.estimator": "k4"},
    "objective.estimator",
    {"'auto'": {"objective.estimator": "auto"}, "'k1'": {"objective.estimator": "k1"}},
  ),
  "sampled jsd": (
    SAMPLE | {"objective.kind": "jsd"},
    "objective.support",
    {
      "reverse_kl": {"objective.kind": "reverse_kl"},
      "or forward_kl": {"objective.kind": "forward_kl"},
      "more than the drawn token": {"objective.support": "student_topk"},
    },
  ),
  "sampled mixture": (
    SAMPLE | {"objective.kind": "mixture"},
    "objective.support",
    {"more than the drawn token": {"objective.support": "full"}},
  ),
  "two temperatures": (
    SAMPLE | {"sampling.temperature": 0.7},
    "objective.student_temperature",
    {
      "sampling.temperature 0.7": {"objective.student_temperature": 0.7},
      "make the two equal": {"sampling.temperature": 1.0},
      "another support": {"objective.support": "full"},
    },
  ),
  "sampled entry_clip": (
    SAMPLE | {"objective.entry_clip": 0.05},
    "objective.entry_clip",
    {"use token_clip": {"objective.entry_clip": 0.0, "objective.token_clip": 0.05}},
  ),
  "estimator without sampled": (
    {"objective.estimator": "k1"},
    "objective.estimator",
    {"needs 'sampled'": {"objective.support": "sampled"}},
  ),
  "sampled, top_p": (
    SAMPLE | {"sampling.top_p": 0.9},
    "objective.support",
    {"sampling.top_p=1": {"sampling.top_p": 1.0}},
  ),
  "certain on both sides": (
    {"objective.support": "teacher_topk", "objective.tail": "renormalise", "objective.k": 1},
    "objective.k",
    {"raise it": {"objective.k": 2}, "tail 'bucket'": {"objective.tail": "bucket"}},
  ),
  "segment beyond the horizon": (
    {"weights.kind": "segment", "weights.tokens": 5, "weights.start": OPD.horizon.max},
    "weights.start",
    {"lower it": {"weights.start": OPD.horizon.max - 5}},
  ),
  "masked at one": (
    REUSE | {"importance.kind": "masked", "importance.cap": 1.0},
    "importance.cap",
    {"raise it": {"importance.cap": 2.0}},
  ),
  "cap that is no number": (REUSE | {"importance.cap": float("nan")}, "importance.cap", {}),
  "discount without sampled": (
    {"objective.discount": 0.5},
    "objective.discount",
    {"support 'sampled' of reverse_kl with estimator 'k1'": SAMPLE | {"objective.estimator": "k1"}},
  ),
  "discount with k2": (
    SAMPLE | {"objective.discount": 0.5, "objective.estimator": "k2"},
    "objective.discount",
    {"estimator 'k1'": {"objective.estimator": "k1"}},
  ),
  "discount with the forward KL": (FORWARD | {"objective.discount": 0.5}, "objective.discount", {}),
  "jsd beta 0": (
    {"objective.kind": "jsd", "objective.beta": 0.0},
    "objective.beta",
    {"set objective.normalised=True": {"objective.normalised": True}},
  ),
  "jsd beta 1": (
    {"objective.kind": "jsd", "objective.beta": 1.0},
    "objective.beta",
    {"set objective.normalised=True": {"objective.normalised": True}},
  ),
  "reweight teacher_topk": (
    {"objective.tail": "reweight", "objective.support": "teacher_topk"},
    "objective.tail",
    {"use 'bucket'": {"objective.tail": "bucket"}, "over student_topk": {"objective.support": "student_topk"}},
  ),
  "reweight forward_kl": (
    {"objective.tail": "reweight", "objective.support": "student_topk", "objective.kind": "forward_kl"},
    "objective.tail",
    {"use 'bucket'": {"objective.tail": "bucket"}, "for reverse_kl": {"objective.kind": "reverse_kl"}},
  ),
  "reweight entry_clip": (
    {"objective.tail": "reweight", "objective.support": "student_topk", "objective.entry_clip": 0.05},
    "objective.entry_clip",
    {
      "use 'bucket'": {"objective.tail": "bucket"},
      "or 'renormalise'": {"objective.tail": "renormalise"},
    },
  ),
  **{
    f"vocab_chunk {support}": (
      {"objective.support": support, "objective.vocab_chunk": 64},
      "objective.vocab_chunk",
      {"leave it at 0": {"objective.vocab_chunk": 0}},
    )
    for support in ("student_topk", "teacher_topk", "both_topk")
  },
  **{
    f"{kind} without tokens": (
      {"weights.kind": kind},
      "weights.tokens",
      {"at least 1": {"weights.tokens": 1}},
    )
    for kind in ("first", "last", "segment", "random")
  },
  "reused, top_p": (
    REUSE | {"sampling.top_p": 0.9},
    "importance.kind",
    {"sampling.top_p=1": {"sampling.top_p": 1.0}, "importance.kind=none": {"importance.kind": "none"}},
  ),
  "masked, top_k": (
    {"importance.kind": "masked", "sampling.top_k": 20},
    "importance.kind",
    {"sampling.top_k=0": {"sampling.top_k": 0}, "importance.kind=none": {"importance.kind": "none"}},
  ),
  "cap": (REUSE | {"importance.cap": 0.5}, "importance.cap", {"at least 1": {"importance.cap": 1.0}}),
  "nothing in the mixture": (
    {"mixture.divergence": 0.0, "mixture.initial": 1.0},
    "mixture",
    {
      "divergence or reward above 0": {"mixture.divergence": 0.1},
      "reward above 0": {"mixture.reward": 1.0, "rollouts_per_prompt": 2},
    },
  ),
  "all zero": ({"mixture.divergence": 0.0}, "mixture", {"above 0": {"mixture.divergence": 1.0}}),
  "a negative coefficient": ({"mixture.initial": -0.1}, "mixture", {"0 or more": {"mixture.initial": 0.0}}),
  "reward with one rollout": (
    {"mixture.reward": 1.0},
    "mixture.reward",
    {"rollouts_per_prompt to 2": {"rollouts_per_prompt": 2}},
  ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_key_and_a_remedy_that_works(name):
  wrong, key, remedies = REFUSED[name]
  c = config.override(OPD, wrong)
  with pytest.raises(InputError, match=rf"^config\.{key.replace('.', '[.]')} .*\.$") as refusal:
    losses.check(c)
  for piece, remedy in remedies.items():
    assert piece in str(refusal.value)
    checks.check(config.override(c, remedy))


@pytest.mark.parametrize(
  "allowed",
  [
    {},
    SAMPLE,
    FORWARD | {"objective.estimator": "k3"},
    SAMPLE | {"objective.estimator": "k2"},
    SAMPLE | {"objective.discount": 1.0, "sampling.temperature": 0.7, "objective.student_temperature": 0.7},
    {"sampling.temperature": 0.7},
    {"objective.kind": "jsd"},
    {"objective.kind": "mixture", "objective.beta": 0.0},
    {"objective.tail": "reweight", "objective.support": "student_topk"},
    {"objective.vocab_chunk": 64},
    {"sampling.top_p": 0.9},
    REUSE | {"sampling.top_p": 0.9, "importance.kind": "none"},
    {"importance.cap": 0.5},
    {"weights.kind": "linear"},
    {"mixture.divergence": 0.0, "mixture.reward": 1.0, "rollouts_per_prompt": 2},
  ],
  ids=str,
)
def test_sensible_combinations_are_not_refused(allowed):
  checks.check(config.override(OPD, allowed))


def test_every_key_reaches_the_loss():
  """One key changed, one field changed; nothing else in the loss moves."""

  def flat(c):
    loss = losses.from_config(c, vocab=50)
    parts = {"": loss, "objective.": loss.objective, "weights.": loss.weights}
    return {
      prefix + field.name: getattr(part, field.name)
      for prefix, part in parts.items()
      for field in dataclasses.fields(part)
      if prefix + field.name not in ("objective", "weights")
    }

  default = flat(OPD)
  assert default["objective.vocab"] == 50
  for key, value, changed in (
    ("objective.kind", "jsd", {"objective.kind": "jsd"}),
    ("objective.kind", "forward_kl", {"objective.kind": "forward_kl", "estimator": "k3"}),
    ("objective.support", "sampled", {"objective.support": "sampled"}),
    ("objective.k", 3, {"objective.k": 3}),
    ("objective.tail", "renormalise", {"objective.tail": "renormalise"}),
    ("objective.beta", 0.25, {"objective.beta": 0.25}),
    ("objective.normalised", True, {"objective.normalised": True}),
    ("objective.student_temperature", 0.6, {"objective.student_temperature": 0.6}),
    ("objective.teacher_temperature", 0.7, {"objective.teacher_temperature": 0.7}),
    ("sampling.temperature", 0.8, {"objective.sampling_temperature": 0.8}),
    ("objective.entry_clip", 0.05, {"objective.entry_clip": 0.05}),
    ("objective.token_clip", 5.0, {"token_clip": 5.0}),
    ("objective.estimator", "k2", {"estimator": "k2"}),
    ("objective.discount", 0.9, {"discount": 0.9}),
    ("objective.normaliser", "constant", {"normaliser": "constant"}),
    ("objective.constant", 7, {"constant": 7}),
    ("objective.chunk", 32, {"objective.chunk": 32}),
    ("objective.vocab_chunk", 64, {"objective.vocab_chunk": 64, "objective.overlap_k": 0}),
    ("log.overlap_k", 3, {"objective.overlap_k": 3}),
    ("horizon.max", 99, {"constant": 99, "weights.horizon": 99}),
    ("weights.kind", "segment", {"weights.kind": "segment"}),
    ("weights.tokens", 4, {"weights.tokens": 4}),
    ("weights.start", 2, {"weights.start": 2}),
    ("weights.end", 0.5, {"weights.end": 0.5}),
    ("weights.gamma", 0.75, {"weights.gamma": 0.75}),
    ("weights.mean_one", True, {"weights.mean_one": True}),
    ("importance.kind", "masked", {"importance": "masked"}),
    ("updates_per_rollout", 2, {"importance": "truncated"}),
    ("importance.level", "prefix", {"level": "prefix"}),
    ("importance.cap", 3.0, {"cap": 3.0}),
    ("mixture.divergence", 0.5, {"divergence": 0.5}),
    ("mixture.reward", 0.5, {"reward": 0.5}),
    ("mixture.initial", 0.5, {"reference_kl": 0.5}),
  ):
    now = flat(config.override(OPD, {key: value}))
    assert {name for name in now if now[name] != default[name]} == changed.keys(), key
    assert {name: now[name] for name in changed} == changed, key


def test_importance_is_automatic_where_a_rollout_is_used_twice():
  def kind(**keys):
    return losses.importance_kind(config.override(OPD, keys))

  assert kind() == "none"
  assert kind(**REUSE) == "truncated"
  assert kind(**REUSE, **{"importance.kind": "none"}) == "none"
  assert kind(**{"importance.kind": "masked"}) == "masked"


def test_the_estimator_follows_the_objective():
  def estimator(keys):
    return losses.estimator(config.override(OPD, keys))

  assert estimator(SAMPLE) == "k1"
  assert estimator(SAMPLE | {"objective.estimator": "k2"}) == "k2"
  assert estimator(FORWARD) == "k3"
