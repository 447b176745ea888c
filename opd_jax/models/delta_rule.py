"""The gated delta rule: linear attention whose state is a matrix for each head, corrected by every token (arXiv:2412.06464).

    S_t = exp(g_t) S_{t-1} + k_t beta_t (v_t - (exp(g_t) S_{t-1})' k_t)'          S_0 = 0
    o_t = S_t' q_t

Three forms of it: `recurrent`, the reference, token after token; `chunked`, for whole sequences, in which the tokens of a chunk are found by a
triangular system and only chunks follow each other; and `step`, one token. All are in fp32, or in fp64 where they are given it.

A token without k, with g and beta 0, changes nothing: that is what padding is.

Dimensions: B rows, T tokens, C tokens of a chunk, H heads, k and v the widths of keys and of values.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

CHUNK = 64
NEVER = -1e30  # finite, so that what is masked has no gradient that is NaN
EPS = 1e-6  # of the length of a key or a query


class Inputs(NamedTuple):
  """What the rule reads of each token; `keys_and_queries` makes the first two."""

  q: Float[Array, "B T H k"]
  k: Float[Array, "B T H k"]
  v: Float[Array, "B T H v"]
  g: Float[Array, "B T H"]  # the logarithm of the decay, at most 0
  beta: Float[Array, "B T H"]  # how much of the correction is made, 0 to 1


State = Float[Array, "B H k v"]


def keys_and_queries(
  q: Float[Array, "B T J k"], k: Float[Array, "B T J k"], heads: int
) -> tuple[Float[Array, "B T H k"], Float[Array, "B T H k"]]:
  """Scale both to length one, queries by 1 / sqrt(k) besides, in fp32; each of J heads serves H / J neighbours."""
  repeat = heads // q.shape[2]

  def unit(x: Array) -> Array:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.repeat(x * lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + EPS), repeat, axis=2)

  return unit(q) * q.shape[-1] ** -0.5, unit(k)


def start(inputs: Inputs) -> State:
  """The state before the first token."""
  B, _, H, k = inputs.k.shape
  return jnp.zeros((B, H, k, inputs.v.shape[-1]), inputs.k.dtype)


def step(inputs: Inputs, state: State) -> tuple[Float[Array, "B H v"], State]:
  """Apply the rule to one token; the inputs are without their axis of tokens."""
  q, k, v, g, beta = inputs
  state = state * jnp.exp(g)[..., None, None]
  correction = beta[..., None] * (v - _times("bhkv,bhk->bhv", state, k))
  state = state + k[..., :, None] * correction[..., None, :]
  return _times("bhkv,bhk->bhv", state, q), state


def recurrent(inputs: Inputs, state: State | None = None) -> tuple[Float[Array, "B T H v"], State]:
  """Apply the rule token after token; returns the outputs and the state behind the last token."""

  def token(state: State, of_token: Inputs) -> tuple[State, Array]:
    out, state = step(of_token, state)
    return state, out

  by_token = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), inputs)
  state, out = lax.scan(token, start(inputs) if state is None else state, by_token)
  return jnp.moveaxis(out, 0, 1), state


def chunked(inputs: Inputs, state: State | None = None, chunk: int = CHUNK) -> tuple[Float[Array, "B T H v"], State]:
  """Compute what `recurrent` does, a chunk of tokens at a time.

  With c the cumulative sum of g within a chunk, and D_ij = exp(c_i - c_j) for j <= i, the corrections of all tokens of a chunk solve

      (I + strictly lower(beta_i k_i' k_j D_ij)) X = beta (V - exp(c) K S)

  since a token's correction reads those before it. What does not depend on S is computed for all chunks at once.
  """
  B, T, H, _ = inputs.k.shape
  n = -(-T // chunk)

  def by_chunk(a: Array) -> Array:
    a = jnp.pad(a, ((0, 0), (0, n * chunk - T), *[(0, 0)] * (a.ndim - 2)))
    return jnp.moveaxis(jnp.moveaxis(a.reshape(B, n, chunk, *a.shape[2:]), 3, 1), 2, 0)  # [n, B, H, C, ...]

  q, k, v, g, beta = map(by_chunk, inputs)
  c = jnp.cumsum(g, axis=-1)
  lower = jnp.tril(jnp.ones((chunk, chunk), bool))
  # Masked before the exponential: above the diagonal it would overflow, and its gradient would be NaN there.
  decay = jnp.exp(jnp.where(lower, c[..., :, None] - c[..., None, :], NEVER))
  with_beta = beta[..., None]
  system = jnp.where(jnp.tril(lower, -1), with_beta * _times("...ik,...jk->...ij", k, k) * decay, 0.0)
  right = jnp.concatenate([with_beta * v, with_beta * jnp.exp(c)[..., None] * k], axis=-1)
  solved = _times("...ij,...jv->...iv", inverse(system), right)
  of_values, of_state = solved[..., : v.shape[-1]], solved[..., v.shape[-1] :]
  scores = _times("...ik,...jk->...ij", q, k) * decay
  queries = jnp.exp(c)[..., None] * q
  keys = jnp.exp(c[..., -1:] - c)[..., None] * k

  def next_chunk(state: State, of_chunk: tuple[Array, ...]) -> tuple[State, Array]:
    of_values, of_state, scores, queries, keys, decayed = of_chunk
    corrections = of_values - _times("bhck,bhkv->bhcv", of_state, state)
    out = _times("bhck,bhkv->bhcv", queries, state) + _times("bhij,bhjv->bhiv", scores, corrections)
    state = decayed[..., None, None] * state + _times("bhck,bhcv->bhkv", keys, corrections)
    return state, out

  parts = of_values, of_state, scores, queries, keys, jnp.exp(c[..., -1])
  state, out = lax.scan(next_chunk, start(inputs) if state is None else state, parts)  # [n, B, H, C, v]
  out = jnp.moveaxis(out, 0, 2).reshape(B, H, n * chunk, -1)[:, :, :T]
  return jnp.swapaxes(out, 1, 2), state


@jax.custom_vjp
def inverse(lower: Float[Array, "*b C C"]) -> Float[Array, "*b C C"]:
  """Invert I + a strictly lower matrix, by the inverses of its blocks of 1, 2, 4 ... rows, which come two by two from those of half.

      (A 0; B D)^-1 = (A^-1 0; -D^-1 B A^-1 D^-1)

  Products alone, as a TPU likes them. `lax.linalg.triangular_solve` is not called: on CPU it waits for threads of the pool that it runs in, and two
  at once on two cores wait for ever (jaxlib 0.10.2).
  """
  C = lower.shape[-1]
  size = 1 << (C - 1).bit_length()
  lower = jnp.pad(lower, (*[(0, 0)] * (lower.ndim - 2), (0, size - C), (0, size - C)))
  found, half = jnp.ones((*lower.shape[:-1], 1, 1), lower.dtype), 1  # [..., blocks, half, half]
  while half < size:
    blocks = lower.reshape(*lower.shape[:-2], size // (2 * half), 2 * half, size // (2 * half), 2 * half)
    below = jnp.moveaxis(jnp.diagonal(blocks[..., half:, :, :half], axis1=-4, axis2=-2), -1, -3)
    first, second = found[..., ::2, :, :], found[..., 1::2, :, :]
    below = -_times("...ij,...jk->...ik", second, _times("...ij,...jk->...ik", below, first))
    above = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
    found, half = jnp.concatenate([above, jnp.concatenate([below, second], axis=-1)], axis=-2), 2 * half
  return found[..., 0, :C, :C]


def _inverse(lower):
  found = inverse(lower)
  return found, found


def _inverse_back(found, d_found):
  """The gradient is -X' dX X', of which the caller's mask keeps what is strictly lower."""
  return (-_times("...ji,...jk->...ik", found, _times("...jk,...lk->...jl", d_found, found)),)


inverse.defvjp(_inverse, _inverse_back)


def _times(subscripts: str, a: Array, b: Array) -> Array:
  """A product in full precision: errors of a state add up over all tokens."""
  return jnp.einsum(subscripts, a, b, precision=lax.Precision.HIGHEST)


def causal_conv(
  u: Float[Array, "B T *c"], kernel: Float[Array, "*c w"], tail: Float[Array, "B w_less_1 *c"] | None = None
) -> tuple[Float[Array, "B T *c"], Float[Array, "B w_less_1 *c"]]:
  """Mix each channel with its last tokens, y_t = sum_j kernel_j u_{t - w + 1 + j}; returns the tail for the tokens behind too.

  Args:
    tail: u of the w - 1 tokens before; None: zeros.
  """
  T, w = u.shape[1], kernel.shape[-1]
  tail = jnp.zeros((u.shape[0], w - 1, *u.shape[2:]), u.dtype) if tail is None else tail
  joined = jnp.concatenate([tail, u], axis=1)
  shifted = (kernel[..., j] * lax.slice_in_dim(joined, j, j + T, axis=1) for j in range(w))
  return functools.reduce(jnp.add, shifted), joined[:, joined.shape[1] - (w - 1) :]
