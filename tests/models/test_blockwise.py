"""Blockwise attention is the dense one, value and gradient, wherever the padding stands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.models import blockwise, kernels
from opd_jax.models.attention import attend, attend_causal
from opd_jax.runtime import mesh as meshes

B, T, N, K, h = 3, 21, 6, 2, 8


@pytest.fixture(scope="module")
def inputs():
  rng = np.random.default_rng(0)

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  at = np.arange(T)
  mask = jnp.asarray(np.stack([at < T, (at >= 5) & (at < 17), at < 0]))  # all real, padding on both sides, none real
  return normal(B, T, N, h), normal(B, T, K, h), normal(B, T, K, h), mask, normal(B, T, N, h)


def value_and_gradient(attend, q, k, v, mask, cotangent):
  """The outputs of real tokens and the gradients of q, k and v; outputs at padding mean nothing."""
  cotangent = jnp.where(mask[..., None, None], cotangent, 0)
  out, vjp = jax.vjp(lambda q, k, v: attend(q, k, v, mask), q, k, v)
  return jnp.where(mask[..., None, None], out, 0), *vjp(cotangent.astype(out.dtype))


@pytest.mark.long
@pytest.mark.parametrize("block", [4, 7, 20, 64])
def test_equals_the_dense_form(block, inputs):
  found = value_and_gradient(lambda *a: blockwise.attend(*a, block=block), *inputs)
  dense = value_and_gradient(attend_causal, *inputs)
  for a, b in zip(found, dense, strict=True):
    assert float(jnp.abs(b).max()) > 0.1
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.few(3)
@pytest.mark.parametrize("window", [1, 5, jnp.int32(9)], ids=str)
@pytest.mark.parametrize("block", [4, 64])
def test_windows_hide_what_is_too_far_and_nothing_else(block, window, inputs):
  """In blocks, in the dense form in blocks, and against the mask written out; padding takes no position."""
  q, k, v, mask, cotangent = inputs
  mask = mask.at[0].set(jnp.arange(T) % 4 != 1)  # padding between tokens too
  at = jnp.cumsum(mask, axis=1) - 1
  sees = (at[:, None, :] > at[:, :, None] - window) & (jnp.arange(T) <= jnp.arange(T)[:, None]) & mask[:, None, :]
  expected = value_and_gradient(lambda q, k, v, _: attend(q, k, v, sees), q, k, v, mask, cotangent)
  for form in (blockwise.attend, attend_causal):
    found = value_and_gradient(lambda *a, f=form: f(*a, block=block, window=window), q, k, v, mask, cotangent)
    for a, b in zip(found, expected, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_types_are_kept(inputs):
  low = [a.astype(jnp.bfloat16) for a in inputs[:3]]
  found = value_and_gradient(lambda *a: blockwise.attend(*a, block=8), *low, *inputs[3:])
  exact = value_and_gradient(attend_causal, *(a.astype(jnp.float32) for a in low), *inputs[3:])
  for a, b in zip(found, exact, strict=True):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.06)


def test_scores_never_exist_whole():
  """Temporary memory of value and gradient at 1024 positions is under a quarter of one array of scores."""

  def shape(n):
    return jax.ShapeDtypeStruct((8, 1024, n, h), jnp.float32)

  gradient = jax.grad(lambda q, k, v, m: jnp.sum(blockwise.attend(q, k, v, m) ** 2), argnums=(0, 1, 2))
  lowered = jax.jit(gradient).lower(shape(8), shape(4), shape(4), jax.ShapeDtypeStruct((8, 1024), bool))
  assert lowered.compile().memory_analysis().temp_size_in_bytes < 8 * 8 * 1024 * 1024 * 4 / 4  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("length", [blockwise.WORTHWHILE, blockwise.WORTHWHILE + 1])
def test_short_sequences_take_the_dense_form(length):
  """The dense form has no loop over rows."""
  q, mask = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32), jax.ShapeDtypeStruct((1, length), bool)
  mesh = meshes.make(devices=jax.devices()[:1])
  text = jax.jit(lambda q, m: kernels.attend("blocks", mesh, q, q, q, m)).lower(q, mask).as_text()
  assert ("stablehlo.while" in text) == (length > blockwise.WORTHWHILE)
