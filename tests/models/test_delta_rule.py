"""The gated delta rule in its three forms, which are one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_jax.models import delta_rule
from opd_jax.models.delta_rule import Inputs, causal_conv, chunked, keys_and_queries, recurrent, step


def inputs_of(seed, B=2, T=20, J=2, H=4, k=8, v=6, dtype: type = np.float32, decay=1.0):
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return jnp.asarray(rng.standard_normal(shape), dtype)

  q, keys = keys_and_queries(draw(B, T, J, k), draw(B, T, J, k), H)
  g = -decay * jnp.abs(draw(B, T, H))
  return Inputs(q, keys, draw(B, T, H, v), g, jax.nn.sigmoid(draw(B, T, H)))


def by_numpy(inputs, state=None):
  """The rule as its paper writes it, in fp64, a row, a head and a token at a time."""
  q, k, v, g, beta = (np.asarray(a, np.float64) for a in inputs)
  B, T, H, width = k.shape
  S = np.zeros((B, H, width, v.shape[-1])) if state is None else np.array(state, np.float64)
  out = np.zeros(v.shape)
  for b in range(B):
    for h in range(H):
      for t in range(T):
        S[b, h] *= np.exp(g[b, t, h])
        S[b, h] += np.outer(k[b, t, h], beta[b, t, h] * (v[b, t, h] - S[b, h].T @ k[b, t, h]))
        out[b, t, h] = S[b, h].T @ q[b, t, h]
  return out, S


@pytest.mark.long
@pytest.mark.parametrize("form", [recurrent, functools.partial(chunked, chunk=8), chunked])
def test_every_form_is_what_the_paper_writes(form):
  inputs = inputs_of(0)
  for got, expected in zip(form(inputs), by_numpy(inputs), strict=True):
    np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.few(2)
@pytest.mark.parametrize("T", [1, 2, 63, 64, 65, 130])
def test_chunks_end_anywhere(T):
  inputs = inputs_of(1, B=1, T=T, H=2)
  for got, expected in zip(chunked(inputs), recurrent(inputs), strict=True):
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.long
@settings(max_examples=25, deadline=None)
@given(
  st.integers(0, 10**6), st.sampled_from([1, 3, 16, 37]), st.sampled_from([4, 16, 64]), st.sampled_from([0.0, 0.1, 5.0])
)
def test_chunks_are_the_recurrence_in_float64(seed, T, chunk, decay):
  with jax.enable_x64(True):
    inputs = inputs_of(seed, B=1, T=T, J=1, H=2, dtype=np.float64, decay=decay)
    state = jnp.asarray(np.random.default_rng(seed).standard_normal((1, 2, 8, 6)))
    for got, expected in zip(chunked(inputs, state, chunk), recurrent(inputs, state), strict=True):
      assert got.dtype == jnp.float64
      np.testing.assert_allclose(got, expected, atol=1e-10)


@pytest.mark.few(3)
@pytest.mark.parametrize("form", [recurrent, functools.partial(chunked, chunk=8)])
@pytest.mark.parametrize("first", [1, 7, 8, 19])
def test_a_sequence_goes_on_from_a_state(form, first):
  inputs = inputs_of(2)
  before, after = (jax.tree.map(lambda a, s=s: a[:, s], inputs) for s in (slice(None, first), slice(first, None)))
  out, state = form(before)
  more, last = form(after, state)
  whole, end = form(inputs)
  np.testing.assert_allclose(jnp.concatenate([out, more], axis=1), whole, atol=2e-6)
  np.testing.assert_allclose(last, end, atol=2e-6)


def test_one_token_by_hand():
  """With no state before it o = beta v (k' q); the same token again, without decay and with beta 1, corrects nothing."""
  inputs = inputs_of(3, T=1, J=4)
  token = jax.tree.map(lambda a: a[:, 0], inputs)
  out, _ = step(token, delta_rule.start(inputs))
  expected = token.beta[..., None] * token.v * jnp.sum(token.k * token.q, axis=-1, keepdims=True)
  np.testing.assert_allclose(out, expected, atol=1e-6)
  sure = token._replace(g=jnp.zeros_like(token.g), beta=jnp.ones_like(token.beta))
  _, once = step(sure, delta_rule.start(inputs))
  _, twice = step(sure, once)
  np.testing.assert_allclose(twice, once, atol=2e-6)


@pytest.mark.long
@pytest.mark.parametrize("form", [recurrent, functools.partial(chunked, chunk=8)])
def test_padding_changes_no_state_on_either_side(form):
  inputs = inputs_of(4, T=12)
  out, state = form(inputs)
  padded, same = form(jax.tree.map(lambda a: jnp.pad(a, ((0, 0), (5, 9), *[(0, 0)] * (a.ndim - 2))), inputs))
  np.testing.assert_allclose(padded[:, 5:17], out, atol=2e-6)
  np.testing.assert_allclose(same, state, atol=2e-6)


@pytest.mark.few(2)
@pytest.mark.parametrize("decay", [0.1, 2.0, 50.0, 1e4])
def test_gradients_are_finite_where_decay_underflows_and_those_of_the_recurrence(decay):
  inputs = inputs_of(5, B=1, T=70, H=2, decay=decay)

  def loss(form, inputs):
    out, state = form(inputs)
    return jnp.sum(jnp.sin(out)) + jnp.sum(state**2)

  chunk, token = (jax.grad(functools.partial(loss, form))(inputs) for form in (chunked, recurrent))
  for a, b in zip(chunk, token, strict=True):
    assert jnp.isfinite(a).all()
    np.testing.assert_allclose(a, b, atol=2e-4, rtol=2e-4)


@pytest.mark.long
@pytest.mark.parametrize("C", [1, 2, 5, 8, 64])
def test_the_inverse_of_a_lower_matrix(C):
  """Also where its powers are as large as can be: with all keys alike."""
  rng = np.random.default_rng(C)
  lower = np.tril(np.stack([rng.standard_normal((C, C)) / max(1, C) ** 0.5, np.ones((C, C))]), -1).astype(np.float32)
  exact = np.linalg.inv(np.eye(C) + lower.astype(np.float64))
  np.testing.assert_allclose(delta_rule.inverse(lower), exact, atol=2e-5)
  cotangent = rng.standard_normal(lower.shape)
  found = jax.grad(lambda a: jnp.sum(delta_rule.inverse(a) * cotangent))(jnp.asarray(lower))
  expected = -np.swapaxes(exact, 1, 2) @ cotangent @ np.swapaxes(exact, 1, 2)
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_keys_of_zeros_have_a_gradient():
  zeros = jnp.zeros((1, 2, 1, 4))
  grads = jax.grad(lambda k: jnp.sum(keys_and_queries(k, k, 2)[1]))(zeros)
  assert jnp.isfinite(grads).all()


def test_heads_of_keys_serve_their_neighbours():
  q = jnp.arange(1.0, 3.0).reshape(1, 1, 2, 1)
  queries, keys = keys_and_queries(q, -q, 6)
  assert queries.shape == (1, 1, 6, 1)
  np.testing.assert_allclose(queries[0, 0, :, 0], 1.0, atol=1e-5)
  np.testing.assert_allclose(keys[0, 0, :, 0], -1.0, atol=1e-5)
  q = jnp.eye(2)[None, None]
  np.testing.assert_allclose(keys_and_queries(q, q, 4)[1][0, 0], np.repeat(np.eye(2), 2, axis=0), atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("cut", [1, 2, 3, 9])
def test_a_convolution_goes_on_from_its_tail(cut):
  rng = np.random.default_rng(0)
  u, kernel = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((2, 10, 3), (3, 4)))
  whole, tail = causal_conv(u, kernel)
  expected = sum(np.pad(u, ((0, 0), (3 - j, 0), (0, 0)))[:, :10] * np.asarray(kernel[:, j]) for j in range(4))
  np.testing.assert_allclose(whole, expected, atol=1e-5)
  first, middle = causal_conv(u[:, :cut], kernel)
  second, end = causal_conv(u[:, cut:], kernel, middle)
  np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, atol=1e-6)
  np.testing.assert_array_equal(end, tail)


@pytest.mark.long
@pytest.mark.parametrize("T", [256, 512])
def test_memory_is_linear_in_the_length(T):
  """Of the gradient's program: twice the tokens take about twice the memory."""

  def bytes_of(T):
    shapes = jax.eval_shape(lambda: inputs_of(0, B=1, T=T, H=2, k=16, v=16))
    grad = jax.jit(jax.grad(lambda inputs: jnp.sum(chunked(inputs)[0])))
    return grad.lower(shapes).compile().memory_analysis().temp_size_in_bytes

  assert bytes_of(2 * T) < 2.3 * bytes_of(T)
