"""What runs against what is read: fused = dense, in chunks, in blocks, in bf16; its memory; what gets no gradient."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_jax.objectives import divergence, fused
from opd_jax.objectives.divergence import Coefficients, Objective, Readout
from tests.objectives import reference
from tests.objectives.cases import OBJECTIVES, B, H, V, arrays, coefficients, name

SAMPLED = Objective(V, support="sampled", chunk=3)
FUSED = [*(dataclasses.replace(o, chunk=3) for o in OBJECTIVES), SAMPLED]  # ten tokens in chunks of three
EVERY = pytest.mark.parametrize("objective", FUSED, ids=name)
BLOCKED = [dataclasses.replace(o, vocab_chunk=4) for o in FUSED if not o.topk]  # nine ids: the last block is not full


@functools.partial(jax.jit, static_argnums=(0, 1))
def graded(weighted, objective, seen, c, more):
  """((sum, readings), gradient by the student's readout)."""
  student, *rest = seen
  return jax.value_and_grad(lambda s: weighted(objective, s, *rest, c, **more), has_aux=True)(student)


def agree(objective, got, want, tolerance=2e-5, of_largest=0.0):
  ((value, readings), gradient), ((expected, dense), dense_gradient) = got, want
  np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance)
  assert readings.keys() == dense.keys()
  for key, a in readings.items():
    np.testing.assert_allclose(a, dense[key], rtol=tolerance, atol=tolerance, err_msg=key)
  for a, b in zip(gradient, dense_gradient, strict=True):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=max(tolerance, of_largest * np.abs(b).max()))


def inputs(objective, seed=0):
  return arrays(seed=seed), coefficients(seed=seed, divergence=objective.support != "sampled")


@pytest.mark.parametrize("objective", FUSED + BLOCKED, ids=name)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_fused_is_dense_in_value_readings_and_gradient(objective, seed):
  seen, c = inputs(objective, seed)
  dense = dataclasses.replace(objective, chunk=0, vocab_chunk=0)
  agree(objective, graded(fused.weighted, objective, seen, c, {}), graded(divergence.weighted, dense, seen, c, {}))


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
  *(st.integers(1, n) for n in (3, 7, 6, 6)),
  st.integers(2, 12),
  st.integers(0, 8),
  st.integers(0, 5),
  st.booleans(),
  st.sampled_from([jnp.float32, jnp.bfloat16]),
)
def test_fused_is_dense_for_any_shape(B, H, D, E, ids, chunk, vocab_chunk, topk, dtype):
  o = Objective(ids, support="both_topk" if topk else "full", k=3, overlap_k=0 if vocab_chunk and not topk else 2)
  seen, c = arrays(B, H, D, E, ids, seed=B + 7 * H, dtype=dtype), coefficients(B, H)
  chunked = dataclasses.replace(o, chunk=chunk, vocab_chunk=0 if topk else vocab_chunk)
  got, want = graded(fused.weighted, chunked, seen, c, {}), graded(divergence.weighted, o, seen, c, {})
  agree(o, got, want, of_largest=0.02 if dtype == jnp.bfloat16 else 0.0)


@pytest.mark.parametrize("vocab_chunk", [0, 4])
def test_two_teachers_and_the_initial_student(vocab_chunk):
  """Twelve tokens in chunks of five: the padding of the last one has no teacher at all."""
  o = Objective(V, chunk=5, vocab_chunk=vocab_chunk, student_temperature=1.3)
  seen, c = arrays(3, 4, seed=8, teachers=2), coefficients(3, 4, initial=True)
  more = {"teacher_weight": jnp.array([[0.3, 0.7], [1.0, 0.0], [0.0, 1.0]]), "initial": arrays(3, 4, seed=9)[0]}
  agree(o, graded(fused.weighted, o, seen, c, more), graded(divergence.weighted, o, seen, c, more))


@pytest.mark.parametrize("vocab_chunk", [0, 4])
def test_token_that_does_not_count_may_be_infinitely_far(vocab_chunk):
  """Its teacher rules out what the student says; a token mask, or a clip, has taken it out of the sum."""
  (student, (teacher,), token, _), c = arrays(), coefficients()
  hidden = teacher.hidden.at[0, 1].set(jnp.array([3e38, 0, 0, 0]))
  c = jax.tree.map(lambda a: a.at[0, 1].set(0.0), c)
  o = Objective(V, chunk=3, vocab_chunk=vocab_chunk)
  seen = (student, (Readout(hidden, teacher.head * 1e3),), token, jnp.ones((B, H), bool))
  (value, readings), gradient = graded(fused.weighted, o, seen, c, {})
  assert not np.isfinite(readings["kl"][0, 1])
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in gradient)
  assert not np.any(gradient.hidden[0, 1])


def test_read_is_what_weighted_reads():
  seen, c = arrays(), coefficients()
  o = Objective(V, chunk=3, overlap_k=2)
  readings = jax.jit(lambda seen: fused.read(o, *seen))(seen)
  jax.tree.map(np.testing.assert_array_equal, readings, graded(fused.weighted, o, seen, c, {})[0][1])


def test_what_the_sum_does_not_need_can_be_left_out():
  seen, c = arrays(), coefficients(divergence=False)
  student, teachers, *rest = seen
  broken = (student, (Readout(teachers[0].hidden * jnp.nan, teachers[0].head),), *rest)
  got = graded(lambda *a, **k: fused.weighted(*a, readings=False, **k), SAMPLED, broken, c, {})
  (value, readings), gradient = got
  assert not readings
  (want, _), want_gradient = graded(fused.weighted, SAMPLED, seen, c, {})
  np.testing.assert_allclose(value, want, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient, want_gradient)


@pytest.mark.parametrize("module", [divergence, fused])
def test_only_the_student_gets_a_gradient(module):
  seen, c = arrays(), coefficients(initial=True)
  initial = arrays(seed=9)[0]

  def total(student, teachers, initial, c):
    return module.weighted(Objective(V), student, teachers, *seen[2:], c, initial=initial)[0]

  student, *others = jax.grad(total, argnums=(0, 1, 2, 3))(seen[0], seen[1], initial, c)
  assert all(np.any(g) for g in student)
  assert not any(np.any(g) for g in jax.tree.leaves(others))


@pytest.mark.parametrize("objective", FUSED + BLOCKED[:3], ids=name)
def test_same_model_gives_exactly_nothing(objective):
  """Not 1e-8: a student that is its own teacher does not move at all."""
  same = dataclasses.replace(objective, teacher_temperature=objective.student_temperature)
  (student, _, *rest), c = inputs(objective)
  c = c._replace(logprob=jnp.zeros((B, H)))
  ((value, readings), gradient) = graded(fused.weighted, same, (student, (student,), *rest), c, {})
  assert float(value) == 0
  assert not np.any(readings["kl"])
  assert not any(np.any(g) for g in gradient)


@pytest.mark.parametrize("objective", FUSED + BLOCKED[:1], ids=name)
def test_masked_tokens_give_nothing_even_where_they_are_not_finite(objective):
  (student, teachers, token, _), c = inputs(objective)
  mask = jnp.array([[False] * 5, [True] * 3 + [False] * 2])
  want = graded(fused.weighted, objective, (student, teachers, token, mask), c, {})
  wild = lambda a: jnp.where(mask[..., None], a, jnp.nan)
  broken = (student._replace(hidden=wild(student.hidden)), (Readout(wild(teachers[0].hidden), teachers[0].head),))
  c = jax.tree.map(lambda a: jnp.where(mask, a, jnp.inf), c)
  (value, readings), gradient = graded(fused.weighted, objective, (*broken, jnp.where(mask, token, 7), mask), c, {})
  np.testing.assert_allclose(value, want[0][0], rtol=1e-6)
  assert all(not np.any(np.asarray(a)[~np.asarray(mask)]) for a in readings.values())
  assert not np.any(np.asarray(gradient.hidden)[~np.asarray(mask)])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient, want[1])


@EVERY
def test_batch_without_a_token(objective):
  (student, teachers, token, mask), c = inputs(objective)
  (value, _), gradient = graded(fused.weighted, objective, (student, teachers, token, mask & False), c, {})
  assert float(value) == 0
  assert not any(np.any(g) for g in gradient)


@pytest.mark.parametrize("module", [divergence, fused])
@pytest.mark.parametrize("objective", [Objective(V), Objective(V, support="both_topk", k=3)], ids=name)
def test_vocabularies_that_differ_by_padding_are_compared_over_the_shared_ids(module, objective):
  """151936 against 152064 ids of one family: neither softmax sees what only one of them has."""
  seen, c = arrays(), coefficients()
  (student, (teacher,), *rest) = seen
  loud = lambda r, n: r._replace(head=jnp.concatenate([r.head, 50 + jnp.zeros((n, r.head.shape[1]))]))
  (value, _), gradient = graded(module.weighted, objective, (loud(student, 2), (loud(teacher, 5),), *rest), c, {})
  (want, _), want_gradient = graded(module.weighted, objective, seen, c, {})
  np.testing.assert_allclose(value, want, rtol=1e-5)
  assert gradient.head.shape == (V + 2, 4)
  assert not np.any(gradient.head[V:])
  np.testing.assert_allclose(gradient.head[:V], want_gradient.head, atol=1e-6)


def test_extreme_logits_stay_finite():
  """Log-probabilities near -1e4 on one side."""
  student, (teacher,), token, mask = arrays()
  wild = Readout(teacher.hidden * 3e3, teacher.head)
  for kind in ("reverse_kl", "jsd", "mixture"):
    out = graded(fused.weighted, Objective(V, kind=kind), (student, (wild,), token, mask | True), coefficients(), {})
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(out))


def float64(objective, seen):
  """Value and logits' gradient of the mean divergence, from the inputs as they are, in plain Python."""
  student, (teacher,), _, mask = seen
  x, y = (
    np.asarray(r.hidden, np.float64) @ np.asarray(r.head.astype(r.hidden.dtype), np.float64).T
    for r in (student, teacher)
  )
  at = np.argwhere(np.asarray(mask))
  value = np.mean([reference.divergence(objective, x[b, n].tolist(), y[b, n].tolist()) for b, n in at])
  d = np.zeros_like(x)
  for b, n in at:
    d[b, n] = reference.gradient(objective, x[b, n].tolist(), y[b, n].tolist())
  d /= len(at)
  hidden, head = (
    np.asarray(student.hidden, np.float64),
    np.asarray(student.head.astype(student.hidden.dtype), np.float64),
  )
  return value, d @ head, np.einsum("bnv,bnd->vd", d, hidden)


@pytest.mark.parametrize(
  "objective", [Objective(V), Objective(V, kind="jsd"), Objective(V, support="student_topk", k=3)], ids=name
)
@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)], ids=["fp32", "bf16"])
def test_error_against_float64(objective, dtype, error):
  """bf16 hidden states and heads: the value to 1e-5, since logits are summed in fp32; gradients to 1% of the largest,
  since they go through bf16 matrix products."""
  seen = arrays(2, 6, 8, 8, V, 3, dtype=dtype)
  mask = seen[3]
  c = Coefficients(jnp.where(mask, 1.0 / jnp.sum(mask), 0.0))
  (value, _), gradient = graded(fused.weighted, dataclasses.replace(objective, chunk=5), seen, c, {})
  want, *want_gradient = float64(objective, seen)
  np.testing.assert_allclose(value, want, rtol=2e-5)
  assert gradient.head.dtype == jnp.float32
  for a, b in zip(gradient, want_gradient, strict=True):
    assert np.abs(np.asarray(a, np.float64) - b).max() <= error * np.abs(b).max()


def temporaries(weighted, objective, B, T, D, ids) -> float:
  """MiB of temporary memory of value and gradient, beside inputs and outputs, as compiled."""
  spec: Any = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
  seen = (
    Readout(spec(B, T, D), spec(ids, D)),
    (Readout(spec(B, T, D), spec(ids, D)),),
    spec(B, T, dtype=jnp.int32),
    spec(B, T, dtype=jnp.bool_),
  )
  compiled = graded.lower(weighted, objective, seen, Coefficients(spec(B, T)), {}).compile()
  return compiled.memory_analysis().temp_size_in_bytes / 2**20


@pytest.mark.parametrize(
  "objective",
  [Objective(32768), Objective(32768, kind="jsd"), Objective(32768, support="both_topk", k=16)],
  ids=name,
)
def test_memory_is_an_eighth_of_dense(objective):
  size = (4, 512, 256, 32768)
  assert 8 * temporaries(fused.weighted, objective, *size) <= temporaries(divergence.weighted, objective, *size)


def test_a_qwen_vocabulary_over_16384_tokens_fits():
  """Dense would need 9.3 GiB for one array of logits. 512 MiB are 64 tokens of both models' logits, their derivatives
  and the head's fp32 gradient twice."""
  assert temporaries(fused.weighted, Objective(151936), 1, 16384, 128, 151936) < 512


def test_memory_does_not_grow_with_the_horizon():
  o = Objective(2048, chunk=16)
  at = {T: temporaries(fused.weighted, o, 2, T, 16, 2048) for T in (64, 512)}
  assert at[512] < at[64] + 2 * 2 * 512 * 16 * 4 / 2**20 + 0.1, "hidden states and their gradient may grow; logits not"
