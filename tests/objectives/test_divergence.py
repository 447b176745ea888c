"""The dense divergences against plain Python in float64, hand-computed numbers and theory."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_jax.objectives import divergence, fused
from opd_jax.objectives.divergence import Objective
from tests.objectives import reference
from tests.objectives.cases import OBJECTIVES, TOPK, V, name, random_coefficients, random_inputs

S, T = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.5, 0.3])
FORWARD, REVERSE = 0.5372, 0.5838
EVERY = pytest.mark.parametrize("objective", OBJECTIVES, ids=name)
SEEDS = given(st.integers(0, 10**6), st.sampled_from([0.3, 1.5, 4.0]))


def value_of(s, t, **objective) -> float:
  """Compute the divergence of two lists of probabilities."""
  s, t = jnp.log(jnp.asarray(s, jnp.float32)), jnp.log(jnp.asarray(t, jnp.float32))
  return float(divergence.divergence(Objective(s.shape[-1], **objective), s, t))


def test_the_first_argument_is_the_student():
  np.testing.assert_allclose(value_of(S, T), REVERSE, atol=5e-5)
  np.testing.assert_allclose(value_of(S, T, kind="forward_kl"), FORWARD, atol=5e-5)
  np.testing.assert_allclose(value_of(T, S), FORWARD, atol=5e-5)


def test_jsd_by_hand():
  np.testing.assert_allclose(value_of(S, T, kind="jsd"), 0.1329, atol=5e-5)
  np.testing.assert_allclose(value_of(T, S, kind="jsd"), 0.1329, atol=5e-5)
  lopsided = value_of([1 - 2e-7, 1e-7, 1e-7], [1e-7, 1e-7, 1 - 2e-7], kind="jsd")
  assert 0.69 < lopsided <= math.log(2) + 1e-6


@pytest.mark.parametrize(("beta", "end"), [(0.0, FORWARD), (1e-4, FORWARD), (1 - 1e-4, REVERSE), (1.0, REVERSE)])
def test_normalised_jsd_meets_the_kls_without_a_jump(beta, end):
  np.testing.assert_allclose(value_of(S, T, kind="jsd", beta=beta, normalised=True), end, rtol=2e-3)


@pytest.mark.parametrize(("beta", "end"), [(1e-6, "forward_kl"), (1 - 2**-20, "reverse_kl")])
def test_normalised_jsd_keeps_its_precision_at_its_ends(beta, end):
  """Where log m is near one side, the difference to it must not be taken of two rounded logarithms."""
  x, y = np.random.default_rng(6).normal(size=(2, 4, 512)).astype(np.float32)
  got, want = (
    graded(o)(x, y) for o in (Objective(512, kind="jsd", beta=beta, normalised=True), Objective(512, kind=end))
  )
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(b).max())


def test_published_jsd_vanishes_at_its_ends():
  assert value_of(S, T, kind="jsd", beta=1e-4) < 1e-4
  assert value_of(S, T, kind="jsd", beta=1 - 1e-4) < 1e-4


@functools.cache
def graded(objective: Objective):
  """Compile the value and the gradient by the student's logits, row by row."""

  def value(student, teacher):
    s = jax.nn.log_softmax(student / objective.student_temperature)
    t = jax.nn.log_softmax(teacher / objective.teacher_temperature)
    return divergence.divergence(objective, s, t)

  return jax.jit(jax.vmap(jax.value_and_grad(value)))


@pytest.mark.few(3)
@EVERY
@settings(max_examples=5, deadline=None, derandomize=True)
@SEEDS
def test_value_and_gradient_are_those_of_plain_float64(objective, seed, scale):
  rng = np.random.default_rng(seed)
  student, teacher = (rng.normal(size=(4, V)).astype(np.float32) * np.float32(scale) for _ in range(2))
  value, gradient = graded(objective)(student, teacher)
  for row in range(4):
    s, t = student[row].astype(float).tolist(), teacher[row].astype(float).tolist()
    np.testing.assert_allclose(value[row], reference.divergence(objective, s, t), rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(gradient[row], reference.gradient(objective, s, t), rtol=1e-4, atol=3e-6)


def test_every_support_and_tail_is_among_the_cases():
  assert {o.support for o in OBJECTIVES} | {"sampled"} == set(divergence.SUPPORTS)
  assert {o.tail for o in OBJECTIVES} == set(divergence.TAILS)


@pytest.mark.parametrize("changes", [{"kind": "kl"}, {"support": "teacher"}, {"tail": "clamp"}])
def test_what_does_not_exist_is_nothing_else(changes):
  with pytest.raises(ValueError, match="is not one of"):
    Objective(V, **changes)


@pytest.mark.parametrize(
  "changes", [{"support": "middle"}, {"support": "middle_topk"}, {"support": "student_topk", "tail": "forget"}], ids=str
)
def test_a_support_or_tail_that_is_named_and_not_made_is_no_other_one(changes, monkeypatch):
  monkeypatch.setattr(divergence, "SUPPORTS", (*divergence.SUPPORTS, "middle", "middle_topk"))
  monkeypatch.setattr(divergence, "TAILS", (*divergence.TAILS, "forget"))
  objective = Objective(V, k=3, chunk=3, **changes)
  for module in (divergence, fused):
    with pytest.raises(NotImplementedError, match=r"middle|forget"):
      module.weighted_sum(objective, *random_inputs(), random_coefficients())


@pytest.mark.parametrize("kind", divergence.DIVERGENCES)
@pytest.mark.parametrize("changes", [{}, {"beta": 0.3}, {"beta": 0.0, "normalised": True}, {"entry_clip": 0.05}])
def test_slopes_are_the_derivatives_of_the_entries_up_to_a_multiple_of_the_student(kind, changes):
  o = Objective(V, kind=kind, **changes)
  s, t = jax.nn.log_softmax(jnp.asarray(np.random.default_rng(3).normal(size=(2, 4, V)), jnp.float32))
  _, derivative = jax.jvp(lambda s: divergence.clip(o, divergence.entries(o, s, t)), (s,), (jnp.ones_like(s),))
  multiple = divergence.DIVERGENCES[kind].multiple(o)
  np.testing.assert_allclose(divergence.slopes(o, s, t), derivative + multiple * jnp.exp(s), atol=2e-6)
  np.testing.assert_array_equal(divergence.slopes(o, s, s), 0)


@pytest.mark.few(3)
@EVERY
def test_same_distribution_gives_zero(objective):
  same = dataclasses.replace(objective, teacher_temperature=objective.student_temperature)
  x = np.random.default_rng(0).normal(size=(4, V)).astype(np.float32)
  value, gradient = graded(same)(x, x)
  np.testing.assert_allclose(value, 0, atol=1e-7)
  np.testing.assert_allclose(gradient, 0, atol=1e-7)


@pytest.mark.few(3)
@pytest.mark.parametrize("objective", [o for o in OBJECTIVES if not o.entry_clip and o.tail != "reweight"], ids=name)
@settings(max_examples=5, deadline=None, derandomize=True)
@SEEDS
def test_never_negative_where_theory_says_so(objective, seed, scale):
  rng = np.random.default_rng(seed)
  value, _ = graded(objective)(*(rng.normal(size=(4, V)).astype(np.float32) * scale for _ in range(2)))
  assert np.all(value >= -1e-6)


def test_clipped_entries_can_make_a_divergence_negative():
  """The instance of the d-OPSD brief: entries 1.978 and -0.220, true KL 1.758."""
  np.testing.assert_allclose(value_of([0.9, 0.1], [0.1, 0.9]), 1.758, atol=5e-4)
  np.testing.assert_allclose(value_of([0.9, 0.1], [0.1, 0.9], entry_clip=0.05), -0.170, atol=5e-4)


@pytest.mark.parametrize(("top", "barrier"), [(0.99, 0.023), (0.999, 0.034)])
def test_clipped_entries_are_lowest_away_from_the_teacher_behind_a_barrier(top, barrier):
  """What docs/diffusion.md says of two tokens, of which the teacher gives one `top`."""
  student = np.linspace(1 - top, 0.9, 2000)  # the other token's probability, from where both agree
  pairs = np.stack([1 - student, student], axis=-1)
  found = jax.vmap(
    lambda s: divergence.divergence(Objective(2, entry_clip=0.05), jnp.log(s), jnp.log(jnp.array([top, 1 - top])))
  )(jnp.asarray(pairs, jnp.float32))
  np.testing.assert_allclose(found[0], 0.0, atol=1e-5)
  np.testing.assert_allclose(found.max(), barrier, atol=1e-3)
  np.testing.assert_allclose(1 - student[int(found.argmin())], top / math.e, atol=1e-3)
  assert found.min() < -0.3


def test_reweighted_topk_can_be_negative_and_is_not_clamped():
  assert value_of([0.5, 0.3, 0.2], [0.6, 0.35, 0.05], support="student_topk", k=2, tail="reweight") < -0.1


@pytest.mark.few(3)
@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "jsd"])
@pytest.mark.parametrize("objective", [*TOPK, OBJECTIVES[-1]], ids=name)
def test_topk_of_all_ids_is_the_full_divergence(kind, objective):
  x, y = np.random.default_rng(1).normal(size=(2, 4, V)).astype(np.float32)
  if objective.tail == "reweight":
    kind = "reverse_kl"
  want = graded(Objective(V, kind=kind))(x, y)
  got = graded(dataclasses.replace(objective, kind=kind, k=V + 5))(x, y)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.parametrize("objective", TOPK, ids=name)
def test_both_sides_stay_distributions(objective):
  x, y = np.random.default_rng(2).normal(size=(2, 4, V)).astype(np.float32) * 4
  for side in divergence.support(objective, jax.nn.log_softmax(x), jax.nn.log_softmax(y)):
    np.testing.assert_allclose(np.exp(side).sum(axis=-1), 1, atol=1e-6)


def test_bucket_sees_the_tail_that_renormalising_forgets():
  """Same three ids, same ratios among them; the teacher moved half of its mass outside."""
  s, t = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.25, 0.15, 0.075, 0.525])
  assert abs(value_of(s, t, support="student_topk", k=3, tail="renormalise")) < 1e-6
  np.testing.assert_allclose(value_of(s, t, support="student_topk", k=3), value_of(s, t), rtol=1e-5)


def test_bucket_is_exact_where_the_tail_is_smaller_than_fp32_can_subtract():
  s = np.array([1 - 1e-9, 7e-10, 3e-10])
  t = np.array([0.5, 0.3, 0.2])
  want = math.fsum(b * math.log(b / a) for a, b in (((1 - 1e-9), 0.5), (1e-9, 0.5)))
  np.testing.assert_allclose(value_of(s, t, support="student_topk", k=1, kind="forward_kl"), want, rtol=1e-5)


def test_constant_shift_of_the_teacher_changes_the_reweighted_gradient_only():
  """Its weights are renormalised and its log-probabilities are not: the bias that the docstring names."""
  x, y = jnp.asarray(np.random.default_rng(3).normal(size=(2, V)), jnp.float32)

  def gradient(objective, shift):
    def value(x):
      return divergence.divergence(objective, jax.nn.log_softmax(x), jax.nn.log_softmax(y) + shift)

    return np.asarray(jax.grad(value)(x))

  def moved(o):
    return abs(gradient(o, 0.0) - gradient(o, 1.0)).max()

  assert moved(Objective(V)) < 1e-6
  assert moved(Objective(V, support="student_topk", tail="reweight", k=2)) > 1e-2


@EVERY
def test_tiny_and_impossible_ids_give_no_nan(objective):
  """Probabilities near 1e-38 on either side; ids that have probability 0 on both sides."""
  x, y = np.random.default_rng(4).normal(size=(2, 4, V)).astype(np.float32)
  x[0, 0] = x[1, 1] = y[1, 1] = y[2, 2] = -87.0
  x[:, 5:7] = y[:, 5:7] = -np.inf
  value, gradient = graded(objective)(x, y)
  assert np.isfinite(value).all()
  assert np.isfinite(gradient).all()
  assert not np.any(np.asarray(gradient)[:, 5:7])


def test_ids_that_only_one_side_can_produce():
  without, with_third = [0.5, 0.5, 0.0], [0.3, 0.3, 0.4]
  assert value_of(with_third, without) == math.inf
  assert value_of(without, with_third, kind="forward_kl") == math.inf
  np.testing.assert_allclose(value_of(without, with_third), 0.5 * 2 * math.log(0.5 / 0.3), rtol=1e-5)
  assert math.isfinite(value_of(with_third, without, kind="jsd"))
  assert math.isfinite(value_of(without, with_third, kind="jsd"))


def test_teachers_mix_as_probabilities_and_one_of_them_can_be_chosen():
  rng = np.random.default_rng(5)
  a, b = (jax.nn.log_softmax(jnp.asarray(rng.normal(size=(2, 3, V)), jnp.float32)) for _ in range(2))
  share = jnp.array([[0.25, 0.75], [0.0, 1.0]])
  mixed = divergence.mix([a, b], share)
  np.testing.assert_allclose(jnp.exp(mixed[0]), 0.25 * jnp.exp(a[0]) + 0.75 * jnp.exp(b[0]), rtol=1e-5)
  np.testing.assert_allclose(mixed[1], b[1], rtol=1e-6)


def test_entropy_and_overlap():
  np.testing.assert_allclose(divergence.entropy(jnp.log(S)), -sum(S * np.log(S)), rtol=1e-6)
  assert float(divergence.entropy(jnp.log(jnp.array([1.0, 0.0])))) == 0
  a, b = jnp.log(jnp.array([0.5, 0.3, 0.1, 0.1])), jnp.log(jnp.array([0.1, 0.5, 0.3, 0.1]))
  np.testing.assert_allclose(divergence.overlap(a, b, 2), 0.5)
  np.testing.assert_allclose(divergence.overlap(a, a, 3), 1.0)


PAIR = jnp.log(jnp.array([0.7, 0.2, 0.1])), jnp.log(jnp.array([0.2, 0.5, 0.3]))


def proximal(beta: float):
  o = Objective(3, kind="proximal", beta=beta)
  return jax.value_and_grad(lambda x: divergence.divergence(o, jax.nn.log_softmax(x), PAIR[1]))(PAIR[0])


def test_the_proximal_teacher_of_a_tenth_on_a_worked_pair():
  value, gradient = proximal(0.1)
  assert float(value) == pytest.approx(0.00569, abs=1e-5)
  np.testing.assert_allclose(gradient / 0.1, [0.479, -0.291, -0.188], atol=1e-3)


def test_far_from_the_teacher_it_pulls_as_the_forward_kl_and_at_the_teacher_as_the_reverse_kl():
  s, t = PAIR
  np.testing.assert_allclose(proximal(1e-4)[1] / 1e-4, jnp.exp(s) - jnp.exp(t), atol=2e-4)
  value, gradient = proximal(1.0)
  reverse, of_reverse = jax.value_and_grad(lambda x: divergence.divergence(Objective(3), jax.nn.log_softmax(x), t))(s)
  np.testing.assert_allclose(value, reverse, rtol=1e-6)
  np.testing.assert_allclose(gradient, of_reverse, atol=1e-6)
  assert float(proximal(0.0)[0]) == 0
