"""Objectives: against hand-computed numbers, NumPy in float64, exact enumeration, and fused against dense."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_jax.objectives import divergence, fused
from opd_jax.objectives.divergence import Objective

S, T = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.5, 0.3])
KINDS = [Objective("full"), Objective("student_topk", k=3), Objective("sampled")]


def kl64(p, q):
  """KL in float64, term by term."""
  return float(sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q, strict=True) if a > 0))


def test_reverse_means_student_first():
  kl = divergence.reverse_kl(jnp.log(S), jnp.log(T))
  np.testing.assert_allclose(kl, 0.5838, atol=5e-5)
  assert abs(float(kl) - kl64(T, S)) > 0.04


def test_sampled_value_estimates_the_divergence():
  values = [float(divergence.sampled_token(jnp.log(S), jnp.log(T), jnp.array(y))) for y in range(3)]
  np.testing.assert_allclose(np.dot(S, values), kl64(S, T), rtol=1e-5)


def gradient(objective, logits, teacher, token):
  loss = lambda x: divergence.per_token(objective, jax.nn.log_softmax(x), teacher, token)
  return np.asarray(jax.grad(loss)(logits))


@pytest.fixture(scope="module")
def position():
  rng = np.random.default_rng(3)
  logits = jnp.asarray(rng.normal(size=6) * 1.5)
  return logits, jax.nn.log_softmax(jnp.asarray(rng.normal(size=6) * 1.5))


def test_sampled_gradient_is_that_of_the_reverse_kl_in_expectation(position):
  logits, teacher = position
  exact = gradient(Objective("full"), logits, teacher, jnp.array(0))
  probs = np.asarray(jax.nn.softmax(logits))
  expected = sum(p * gradient(Objective("sampled"), logits, teacher, jnp.array(y)) for y, p in enumerate(probs))
  np.testing.assert_allclose(expected, exact, atol=1e-6)


def test_differentiating_the_log_ratio_itself_would_lose_the_teacher(position):
  """The trap that the stop-gradient avoids: its expected gradient is zero whatever the teacher says."""
  logits, teacher = position
  trap = lambda x, y: jax.nn.log_softmax(x)[y] - teacher[y]
  probs = np.asarray(jax.nn.softmax(logits))
  expected = sum(p * np.asarray(jax.grad(trap)(logits, y)) for y, p in enumerate(probs))
  np.testing.assert_allclose(expected, 0, atol=1e-6)
  assert abs(gradient(Objective("full"), logits, teacher, jnp.array(0))).max() > 0.05


def test_topk_with_the_whole_vocabulary_is_the_reverse_kl(position):
  logits, teacher = position
  np.testing.assert_allclose(
    gradient(Objective("student_topk", k=6), logits, teacher, jnp.array(0)),
    gradient(Objective("full"), logits, teacher, jnp.array(0)),
    atol=1e-6,
  )
  value = divergence.student_topk(jax.nn.log_softmax(logits), teacher, 6)
  np.testing.assert_allclose(value, divergence.reverse_kl(jax.nn.log_softmax(logits), teacher), rtol=1e-5)


def test_topk_below_the_vocabulary_is_biased_as_documented(position):
  """A constant shift of the teacher's log-probabilities changes its gradient, and not the full one's."""
  logits, teacher = position
  shift = lambda o: abs(
    gradient(o, logits, teacher, jnp.array(0)) - gradient(o, logits, teacher + 1.0, jnp.array(0))
  ).max()
  assert shift(Objective("full")) < 1e-6
  assert shift(Objective("student_topk", k=2)) > 1e-2


def test_entropy_and_overlap():
  np.testing.assert_allclose(divergence.entropy(jnp.log(S)), -sum(S * np.log(S)), rtol=1e-6)
  a, b = jnp.log(jnp.array([0.5, 0.3, 0.1, 0.1])), jnp.log(jnp.array([0.1, 0.5, 0.3, 0.1]))
  np.testing.assert_allclose(divergence.overlap(a, b, 2), 0.5)
  np.testing.assert_allclose(divergence.overlap(a, a, 3), 1.0)


def arrays(B, H, D, E, V, seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  lengths = rng.integers(0, H + 1, B)
  return {
    "student": draw(B, H, D),
    "student_head": draw(V, D),
    "teacher": draw(B, H, E),
    "teacher_head": draw(V, E),
    "token": jnp.asarray(rng.integers(0, V, (B, H))),
    "mask": jnp.asarray(np.arange(H) < lengths[:, None]),
  }


def dense_sum(objective, vocab, student, student_head, teacher, teacher_head, token, mask):
  """The reference: whole logits, dense objective."""
  s = jax.nn.log_softmax(jnp.einsum("bhd,vd->bhv", student, student_head)[..., :vocab])
  t = jax.nn.log_softmax(jnp.einsum("bhd,vd->bhv", teacher, teacher_head)[..., :vocab])
  return jnp.sum(jnp.where(mask, divergence.per_token(objective, s, t, token), 0.0))


def fused_sum(objective, vocab, student, student_head, teacher, teacher_head, token, mask):
  value, _ = fused.per_token(objective, student, student_head, teacher, teacher_head, token, mask, vocab=vocab)
  return jnp.sum(value)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def value_and_grads(f, objective, vocab, a):
  loss = lambda student, student_head, teacher, teacher_head: f(
    objective, vocab, student, student_head, teacher, teacher_head, a["token"], a["mask"]
  )
  return jax.value_and_grad(loss, argnums=(0, 1, 2, 3))(
    a["student"], a["student_head"], a["teacher"], a["teacher_head"]
  )


@pytest.mark.parametrize("objective", KINDS, ids=lambda o: o.support)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.sampled_from([1, 5, 8]), st.sampled_from([0, 1, 3, 8]), st.integers(0, 99))
def test_fused_is_dense_in_value_and_gradient(objective, B, H, chunk, seed):
  a = arrays(B, H, 4, 6, 11, seed)
  chunked = Objective(objective.support, objective.k, chunk)
  want, want_grads = value_and_grads(dense_sum, objective, 11, a)
  got, got_grads = value_and_grads(fused_sum, chunked, 11, a)
  np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)
  for mine, theirs in zip(got_grads[:2], want_grads[:2], strict=True):
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=2e-5)
  assert not np.any(got_grads[2])
  assert not np.any(got_grads[3]), "no gradient reaches the teacher"


def test_vocabularies_that_differ_by_padding_are_compared_over_the_shared_ids():
  a = arrays(2, 4, 4, 6, 11)
  wide = a | {"teacher_head": jnp.concatenate([a["teacher_head"], 50 + jnp.zeros((5, 6))])}
  np.testing.assert_allclose(
    value_and_grads(fused_sum, Objective("full"), 11, wide)[0],
    value_and_grads(dense_sum, Objective("full"), 11, a)[0],
    rtol=1e-5,
  )


@pytest.mark.parametrize("objective", KINDS, ids=lambda o: o.support)
def test_same_model_gives_exactly_nothing(objective):
  a = arrays(2, 6, 5, 5, 13)
  a |= {"teacher": a["student"], "teacher_head": a["student_head"]}
  for chunk in (0, 2):
    value, grads = value_and_grads(fused_sum, Objective(objective.support, objective.k, chunk), 13, a)
    assert float(value) == 0.0
    assert not any(np.any(g) for g in grads)


def test_masked_positions_give_nothing_even_where_they_are_not_finite():
  a = arrays(2, 6, 5, 5, 13)
  a["mask"] = a["mask"].at[0].set(False)
  broken = a | {"student": a["student"].at[0].set(1e30)}
  _, stats = fused.per_token(
    Objective(), *(broken[k] for k in ("student", "student_head", "teacher", "teacher_head", "token", "mask")), vocab=13
  )
  assert all(not np.any(np.asarray(s)[0]) for s in stats.values())
  value, _ = value_and_grads(fused_sum, Objective(), 13, broken)
  assert np.isfinite(value)


def test_extreme_teacher_gives_finite_numbers():
  """Log-probabilities near -1e4 on one side: no NaN, and a gradient that pushes the student away."""
  a = arrays(1, 2, 3, 3, 5)
  a = a | {"teacher": a["teacher"] * 3e3, "mask": jnp.ones((1, 2), bool)}
  value, grads = value_and_grads(fused_sum, Objective(), 5, a)
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in grads)


def test_fused_memory_does_not_grow_with_the_horizon():
  """Temporaries of value and gradient at H 512 stay near those at H 64; dense ones grow with H."""

  def temporaries(f, H):
    shapes = jax.eval_shape(lambda: arrays(2, 8, 16, 16, 2048))
    a = {
      k: jax.ShapeDtypeStruct((2, H, *v.shape[2:]) if v.shape[:2] == (2, 8) else v.shape, v.dtype)
      for k, v in shapes.items()
    }
    compiled = value_and_grads.lower(f, Objective("full", chunk=16), 2048, a).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  logits = 2 * 512 * 2048 * 4
  assert temporaries(dense_sum, 512) > 2 * logits
  assert temporaries(fused_sum, 512) < logits
