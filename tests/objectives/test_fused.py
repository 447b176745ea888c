"""The fused objective against the dense one, in chunks, blocks and bf16; its memory; what gets no gradient."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_jax.objectives import divergence, entries, fused
from opd_jax.objectives.divergence import Coefficients, FrozenInputs, HiddenAndHead, Objective
from tests.objectives import reference
from tests.objectives.cases import OBJECTIVES, B, H, V, name, random_coefficients, random_inputs

SAMPLED = Objective(V, support="sampled", chunk=3)
FUSED = [*(dataclasses.replace(o, chunk=3) for o in OBJECTIVES), SAMPLED]  # ten tokens in chunks of three
EVERY = pytest.mark.parametrize("objective", FUSED, ids=name)
BLOCKED = [dataclasses.replace(o, vocab_chunk=4) for o in FUSED if not o.topk]  # nine ids: the last block is not full

BLOCKED_LONG = [pytest.param(o, marks=pytest.mark.long) for i, o in enumerate(BLOCKED) if i % 3]


@functools.partial(jax.jit, static_argnums=(0, 1))
def graded(weighted_sum, objective, student, inputs, coefficients):
  """((sum, statistics), gradient by the student)."""
  return jax.value_and_grad(functools.partial(weighted_sum, objective), has_aux=True)(student, inputs, coefficients)


def agree(got, want, tolerance=2e-5, of_largest=0.0):
  (value, stats), gradient = got
  (dense_value, dense_stats), dense_gradient = want
  np.testing.assert_allclose(value, dense_value, rtol=tolerance, atol=tolerance)
  assert stats.keys() == dense_stats.keys()
  for key, stat in stats.items():
    np.testing.assert_allclose(stat, dense_stats[key], rtol=tolerance, atol=tolerance, err_msg=key)
  for a, b in zip(gradient, dense_gradient, strict=True):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=max(tolerance, of_largest * np.abs(b).max()))


def arguments(objective, seed=0):
  """A student, frozen inputs and coefficients for the objective."""
  coefficients = random_coefficients(seed=seed, divergence=objective.support != "sampled")
  return *random_inputs(seed=seed), coefficients


@pytest.mark.few(3)
@pytest.mark.parametrize("objective", [*FUSED, *BLOCKED[::3], *BLOCKED_LONG], ids=name)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_fused_is_dense_in_value_statistics_and_gradient(objective, seed):
  args = arguments(objective, seed)
  dense = dataclasses.replace(objective, chunk=0, vocab_chunk=0)
  agree(graded(fused.weighted_sum, objective, *args), graded(divergence.weighted_sum, dense, *args))


def alpha_divergence(o: entries.Parameters, s, t):
  """Amari's, sum (s - s^a t^(1 - a)) / (a (1 - a)); its derivative is nowhere written down."""
  return (jnp.exp(s) - jnp.exp(o.beta * s + (1 - o.beta) * t)) / (o.beta * (1 - o.beta))


@pytest.mark.long
@pytest.mark.parametrize(
  "changes",
  [{}, {"vocab_chunk": 4}, {"entry_clip": 0.05}, {"support": "both_topk", "k": 3}, {"student_temperature": 1.3}],
  ids=str,
)
def test_a_new_divergence_is_declared_once_and_gets_its_own_gradient(changes, monkeypatch):
  monkeypatch.setitem(divergence.DIVERGENCES, "alpha", entries.Divergence(alpha_divergence))
  objective = Objective(V, kind="alpha", beta=0.3, chunk=3, **changes)
  args = arguments(objective)
  dense = dataclasses.replace(objective, chunk=0, vocab_chunk=0)
  got, want = graded(fused.weighted_sum, objective, *args), graded(divergence.weighted_sum, dense, *args)
  agree(got, want)
  jsd = graded(fused.weighted_sum, dataclasses.replace(objective, kind="jsd"), *args)
  assert not np.allclose(jsd[1].hidden, got[1].hidden, atol=1e-4), "the gradient is of no other kind"


@pytest.mark.long
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
  args = (*random_inputs(B, H, D, E, ids, seed=B + 7 * H, dtype=dtype), random_coefficients(B, H))
  chunked = dataclasses.replace(o, chunk=chunk, vocab_chunk=0 if topk else vocab_chunk)
  got, want = graded(fused.weighted_sum, chunked, *args), graded(divergence.weighted_sum, o, *args)
  agree(got, want, of_largest=0.02 if dtype == jnp.bfloat16 else 0.0)


@pytest.mark.parametrize("vocab_chunk", [0, 4])
def test_two_teachers_and_the_reference_model(vocab_chunk):
  """Twelve tokens in chunks of five: the padding of the last one has no teacher at all."""
  o = Objective(V, chunk=5, vocab_chunk=vocab_chunk, student_temperature=1.3)
  student, inputs = random_inputs(3, 4, seed=8, teachers=2)
  reference, _ = random_inputs(3, 4, seed=9)
  teacher_weight = jnp.array([[0.3, 0.7], [1.0, 0.0], [0.0, 1.0]])
  inputs = inputs._replace(teacher_weight=teacher_weight, reference=reference)
  args = (student, inputs, random_coefficients(3, 4, reference_kl=True))
  agree(graded(fused.weighted_sum, o, *args), graded(divergence.weighted_sum, o, *args))


@pytest.mark.parametrize("vocab_chunk", [0, 4])
def test_token_that_does_not_count_may_be_infinitely_far(vocab_chunk):
  """Its teacher rules out the student's token; a token mask, or a clip, has taken it out of the sum."""
  student, inputs = random_inputs()
  (teacher,) = inputs.teachers
  hidden = teacher.hidden.at[0, 1].set(jnp.array([3e38, 0, 0, 0]))
  inputs = inputs._replace(teachers=(HiddenAndHead(hidden, teacher.head * 1e3),), mask=jnp.ones((B, H), bool))
  coefficients = jax.tree.map(lambda a: a.at[0, 1].set(0.0), random_coefficients())
  o = Objective(V, chunk=3, vocab_chunk=vocab_chunk)
  (value, stats), gradient = graded(fused.weighted_sum, o, student, inputs, coefficients)
  assert not np.isfinite(stats["kl"][0, 1])
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in gradient)
  assert not np.any(gradient.hidden[0, 1])


def test_token_stats_are_those_of_the_weighted_sum():
  student, inputs = random_inputs()
  o = Objective(V, chunk=3, overlap_k=2)
  stats = jax.jit(functools.partial(fused.token_stats, o))(student, inputs)
  (_, of_the_sum), _ = graded(fused.weighted_sum, o, student, inputs, random_coefficients())
  jax.tree.map(np.testing.assert_array_equal, stats, of_the_sum)


def test_what_the_sum_does_not_need_can_be_left_out():
  student, inputs = random_inputs()
  coefficients = random_coefficients(divergence=False)
  (teacher,) = inputs.teachers
  broken = inputs._replace(teachers=(HiddenAndHead(teacher.hidden * jnp.nan, teacher.head),))
  without_stats = functools.partial(fused.weighted_sum, with_stats=False)
  (value, stats), gradient = graded(without_stats, SAMPLED, student, broken, coefficients)
  assert not stats
  (want, _), want_gradient = graded(fused.weighted_sum, SAMPLED, student, inputs, coefficients)
  np.testing.assert_allclose(value, want, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient, want_gradient)


@pytest.mark.parametrize("module", [divergence, fused])
def test_only_the_student_gets_a_gradient(module):
  student, inputs = random_inputs()
  reference, _ = random_inputs(seed=9)

  def total(student, teachers, reference, coefficients):
    frozen = inputs._replace(teachers=teachers, reference=reference)
    return module.weighted_sum(Objective(V), student, frozen, coefficients)[0]

  coefficients = random_coefficients(reference_kl=True)
  gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))(student, inputs.teachers, reference, coefficients)
  assert all(np.any(g) for g in gradients[0])
  assert not any(np.any(g) for g in jax.tree.leaves(gradients[1:]))


@pytest.mark.few(3)
@pytest.mark.parametrize("objective", FUSED + BLOCKED[:3], ids=name)
def test_same_model_gives_exactly_nothing(objective):
  """Not 1e-8: a student that is its own teacher does not move at all."""
  same = dataclasses.replace(objective, teacher_temperature=objective.student_temperature)
  student, inputs, coefficients = arguments(objective)
  inputs = inputs._replace(teachers=(student,))
  coefficients = coefficients._replace(logprob=jnp.zeros((B, H)))
  (value, stats), gradient = graded(fused.weighted_sum, same, student, inputs, coefficients)
  assert float(value) == 0
  assert not np.any(stats["kl"])
  assert not any(np.any(g) for g in gradient)


@pytest.mark.few(3)
@pytest.mark.parametrize("objective", FUSED + BLOCKED[:1], ids=name)
def test_masked_tokens_give_nothing_even_where_they_are_not_finite(objective):
  student, inputs, coefficients = arguments(objective)
  mask = jnp.array([[False] * 5, [True] * 3 + [False] * 2])
  inputs = inputs._replace(mask=mask)
  (want, _), want_gradient = graded(fused.weighted_sum, objective, student, inputs, coefficients)

  def break_model(model):
    return model._replace(hidden=jnp.where(mask[..., None], model.hidden, jnp.nan))

  broken = inputs._replace(teachers=tuple(map(break_model, inputs.teachers)), token=jnp.where(mask, inputs.token, 7))
  infinite = jax.tree.map(lambda a: jnp.where(mask, a, jnp.inf), coefficients)
  (value, stats), gradient = graded(fused.weighted_sum, objective, break_model(student), broken, infinite)
  np.testing.assert_allclose(value, want, rtol=1e-6)
  assert all(not np.any(np.asarray(a)[~np.asarray(mask)]) for a in stats.values())
  assert not np.any(np.asarray(gradient.hidden)[~np.asarray(mask)])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient, want_gradient)


@EVERY
def test_batch_without_a_token(objective):
  student, inputs, coefficients = arguments(objective)
  empty = inputs._replace(mask=inputs.mask & False)
  (value, _), gradient = graded(fused.weighted_sum, objective, student, empty, coefficients)
  assert float(value) == 0
  assert not any(np.any(g) for g in gradient)


@pytest.mark.parametrize("module", [divergence, fused])
@pytest.mark.parametrize("objective", [Objective(V), Objective(V, support="both_topk", k=3)], ids=name)
def test_vocabularies_that_differ_by_padding_are_compared_over_the_shared_ids(module, objective):
  """151936 against 152064 ids of one family: neither softmax sees what only one of them has."""
  student, inputs = random_inputs()
  coefficients = random_coefficients()

  def with_more_ids(model, n):
    """Add n ids with large logits."""
    return model._replace(head=jnp.concatenate([model.head, 50 + jnp.zeros((n, model.head.shape[1]))]))

  padded = inputs._replace(teachers=tuple(with_more_ids(teacher, 5) for teacher in inputs.teachers))
  run = functools.partial(graded, module.weighted_sum, objective)
  (value, _), gradient = run(with_more_ids(student, 2), padded, coefficients)
  (want, _), want_gradient = run(student, inputs, coefficients)
  np.testing.assert_allclose(value, want, rtol=1e-5)
  assert gradient.head.shape == (V + 2, 4)
  assert not np.any(gradient.head[V:])
  np.testing.assert_allclose(gradient.head[:V], want_gradient.head, atol=1e-6)


def test_extreme_logits_stay_finite():
  """Log-probabilities near -1e4 on one side."""
  student, inputs = random_inputs()
  (teacher,) = inputs.teachers
  extreme = HiddenAndHead(teacher.hidden * 3e3, teacher.head)
  inputs = inputs._replace(teachers=(extreme,), mask=inputs.mask | True)
  for kind in ("reverse_kl", "jsd", "mixture"):
    results = graded(fused.weighted_sum, Objective(V, kind=kind), student, inputs, random_coefficients())
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(results))


def float64(objective, student, inputs):
  """Compute the mean divergence in plain Python, with its gradients by the student's hidden states and head."""
  (teacher,) = inputs.teachers

  def double(model):
    head = model.head.astype(model.hidden.dtype)
    return np.asarray(model.hidden, np.float64), np.asarray(head, np.float64)

  (hidden, head), (teacher_hidden, teacher_head) = double(student), double(teacher)
  x, y = hidden @ head.T, teacher_hidden @ teacher_head.T
  at = np.argwhere(np.asarray(inputs.mask))
  value = np.mean([reference.divergence(objective, x[b, n].tolist(), y[b, n].tolist()) for b, n in at])
  d_logits = np.zeros_like(x)
  for b, n in at:
    d_logits[b, n] = reference.gradient(objective, x[b, n].tolist(), y[b, n].tolist())
  d_logits /= len(at)
  return value, d_logits @ head, np.einsum("bnv,bnd->vd", d_logits, hidden)


@pytest.mark.parametrize(
  "objective", [Objective(V), Objective(V, kind="jsd"), Objective(V, support="student_topk", k=3)], ids=name
)
@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)], ids=["fp32", "bf16"])
def test_error_against_float64(objective, dtype, error):
  """bf16 hidden states and heads: the value to 1e-5, since logits are summed in fp32; gradients to 1% of the largest,
  since they go through bf16 matrix products."""
  student, inputs = random_inputs(2, 6, 8, 8, V, 3, dtype=dtype)
  mean = Coefficients(jnp.where(inputs.mask, 1.0 / jnp.sum(inputs.mask), 0.0))
  chunked = dataclasses.replace(objective, chunk=5)
  (value, _), gradient = graded(fused.weighted_sum, chunked, student, inputs, mean)
  want, *want_gradient = float64(objective, student, inputs)
  np.testing.assert_allclose(value, want, rtol=2e-5)
  assert gradient.head.dtype == jnp.float32
  for a, b in zip(gradient, want_gradient, strict=True):
    assert np.abs(np.asarray(a, np.float64) - b).max() <= error * np.abs(b).max()


def temporaries(weighted_sum, objective, B, T, D, ids) -> float:
  """Measure the MiB of temporary memory of value and gradient, beside inputs and outputs, as compiled."""

  def spec(*shape, dtype: Any = jnp.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)

  model = HiddenAndHead(spec(B, T, D), spec(ids, D))
  inputs = FrozenInputs((model,), spec(B, T, dtype=jnp.int32), spec(B, T, dtype=jnp.bool_))
  compiled = graded.lower(weighted_sum, objective, model, inputs, Coefficients(spec(B, T))).compile()
  return compiled.memory_analysis().temp_size_in_bytes / 2**20


@pytest.mark.parametrize(
  "objective",
  [Objective(32768), Objective(32768, kind="jsd"), Objective(32768, support="both_topk", k=16)],
  ids=name,
)
def test_memory_is_an_eighth_of_dense(objective):
  size = (4, 512, 256, 32768)
  assert 8 * temporaries(fused.weighted_sum, objective, *size) <= temporaries(divergence.weighted_sum, objective, *size)


def test_a_qwen_vocabulary_over_16384_tokens_fits():
  """Dense would need 9.3 GiB for one array of logits. 512 MiB are 64 tokens of both models' logits, their derivatives
  and the head's fp32 gradient twice."""
  assert temporaries(fused.weighted_sum, Objective(151936), 1, 16384, 128, 151936) < 512


def test_memory_does_not_grow_with_the_horizon():
  o = Objective(2048, chunk=16)
  at = {T: temporaries(fused.weighted_sum, o, 2, T, 16, 2048) for T in (64, 512)}
  assert at[512] < at[64] + 2 * 2 * 512 * 16 * 4 / 2**20 + 0.1, "hidden states and their gradient may grow; logits not"


@pytest.mark.parametrize("support", ["full", "sampled", "student_topk"])
@pytest.mark.parametrize("vocab_chunk", [0, 4])
def test_without_a_teacher_there_is_what_the_student_alone_tells(support, vocab_chunk):
  if vocab_chunk and support == "student_topk":
    return
  o = Objective(V, support=support, chunk=3, vocab_chunk=vocab_chunk, overlap_k=0 if vocab_chunk else 2)
  args = (*random_inputs(teachers=0), random_coefficients(divergence=False))
  got = graded(fused.weighted_sum, o, *args)
  agree(got, graded(divergence.weighted_sum, o, *args))
  assert got[0][1].keys() == {"logprob", "student_entropy"}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["topk_tv", "topk_kl"])
@pytest.mark.parametrize("vocab_chunk", [0, 4])
def test_how_far_the_recorded_distribution_has_moved(kind, vocab_chunk):
  """Of all ids at once and in blocks; the distance of a student to what it has itself drawn from is 0."""
  o = Objective(V, support="sampled", chunk=3, vocab_chunk=vocab_chunk, sampling_temperature=0.8, topk_distance=kind)
  student, inputs = random_inputs()

  def recorded_from(model: HiddenAndHead) -> divergence.Recorded:
    log = jax.nn.log_softmax(divergence.logits(model, V) / 0.8)
    logprob, ids = jax.lax.top_k(log, 4)
    return divergence.Recorded(ids, logprob, jnp.take_along_axis(log, inputs.token[..., None], axis=-1)[..., 0])

  coefficients = random_coefficients(divergence=False)
  for model in (student, inputs.teachers[0]):
    args = (student, inputs._replace(recorded=recorded_from(model)), coefficients)
    got = graded(fused.weighted_sum, o, *args)
    agree(got, graded(divergence.weighted_sum, o, *args))
    moved = np.asarray(got[0][1]["topk_distance"])
    if model is student:
      np.testing.assert_allclose(moved, 0, atol=1e-5)
    else:
      assert moved[np.asarray(inputs.mask)].min() > 0.01
