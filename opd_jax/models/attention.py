"""Grouped-query attention, written as batched matrix products.

Dimensions: B batch, T queries, S keys, N query heads, K key/value heads, G = N / K, h head width.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

NEVER = -1e30  # finite, so that a row which may see nothing gives numbers and not NaN


def attend_causal(
  q: Float[Array, "B T N h"],
  k: Float[Array, "B T K h"],
  v: Float[Array, "B T K h"],
  mask: Bool[Array, "B T"],
  block: int = 1024,
) -> Float[Array, "B T N h"]:
  """Attend from every token to itself and to the real tokens before it.

  Beyond `block` positions the queries go through in blocks, which the backward pass computes again, so that the scores
  held at a time are [B, N, block, T] and not [B, N, T, T].

  Args:
    mask: true on real tokens.
  """
  B, T, N, h = q.shape

  def attend_from(first: Array | int, queries: Float[Array, "B t N h"]) -> Float[Array, "B t N h"]:
    """Attend from the queries that stand at `first` and behind it."""
    positions = first + jnp.arange(queries.shape[1])
    causal = jnp.arange(T) <= positions[:, None]
    return attend(queries, k, v, causal[None] & mask[:, None, :])

  if block >= T:
    return attend_from(0, q)
  blocks = -(-T // block)
  q = jnp.pad(q, ((0, 0), (0, blocks * block - T), (0, 0), (0, 0))).reshape(B, blocks, block, N, h)
  attend_block = jax.checkpoint(lambda first_and_queries: attend_from(*first_and_queries))
  out = lax.map(attend_block, (jnp.arange(blocks) * block, jnp.moveaxis(q, 1, 0)))
  return jnp.moveaxis(out, 0, 1).reshape(B, blocks * block, N, h)[:, :T]


def attend(
  q: Float[Array, "B T N h"],
  k: Float[Array, "B S K h"],
  v: Float[Array, "B S K h"],
  visible: Bool[Array, "B T S"],
) -> Float[Array, "B T N h"]:
  """Compute softmax attention with keys and values in token order; scores and softmax are fp32."""
  B, T, N, h = q.shape
  q = q.reshape(B, T, k.shape[2], -1, h)
  return attend_groups(q, k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3), visible).reshape(B, T, N, h)


def attend_groups(
  q: Float[Array, "B T K G h"],
  k: Float[Array, "B K h S"],
  v: Float[Array, "B K S h"],
  visible: Bool[Array, "B T S"],
) -> Float[Array, "B T K G h"]:
  """Compute softmax attention in the cache's layout: keys transposed, heads outermost, a group's query heads together.

  Scores and softmax are fp32, and the output has the type of `v`.
  The heads of a group are rows of one matrix product, so keys and values are never repeated.
  """
  B, T, K, G, h = q.shape
  rows = q.transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, h)
  scores = jnp.matmul(rows, k, preferred_element_type=jnp.float32) / math.sqrt(h)
  scores = jnp.where(visible[:, None, None], scores.reshape(B, K, G, T, -1), NEVER)
  weights = jnp.exp(scores - lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
  total = jnp.sum(weights, axis=-1).reshape(B, K, G * T, 1)
  out = jnp.matmul(weights.reshape(B, K, G * T, -1).astype(v.dtype), v, preferred_element_type=jnp.float32)
  out = (out / total).astype(v.dtype)  # h numbers are fewer than S
  return out.reshape(B, K, G, T, h).transpose(0, 3, 1, 2, 4)
