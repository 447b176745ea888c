"""Grouped-query attention, written as batched matrix products.

A prompt with several responses is one sequence, in which the prompt stands once: see `PromptGroup`.

Dimensions: B batch, T queries, S keys, N query heads, K key/value heads, G = N / K, h head width. In a group: p prompts of
P positions, n responses behind each, R positions of a response, t of a block of them.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

NEVER = -1e30  # finite, so that a row which may see nothing gives numbers and not NaN


class PromptGroup(NamedTuple):
  """The layout of a prompt and n responses to it as one sequence: P + n R positions, the prompt once and first.

  A response's tokens see the prompt, themselves and what stands before them in their own response; so every model predicts
  what it would behind a prompt of their own, and the prompt is read once.
  """

  prompt: int  # positions, P
  n: int
  response: int  # positions of each, R

  @property
  def length(self) -> int:
    """The number of positions."""
    return self.prompt + self.n * self.response

  def positions(self, mask: Bool[Array, "p S"]) -> Int[Array, "p S"]:
    """The position of every token behind the padding of its prompt, as if each response stood behind the prompt alone."""
    in_prompt = mask[:, : self.prompt]
    first = jnp.sum(in_prompt, axis=1, dtype=jnp.int32, keepdims=True)
    behind = first + jnp.tile(jnp.arange(self.response, dtype=jnp.int32), self.n)
    return jnp.concatenate([jnp.maximum(jnp.cumsum(in_prompt, axis=1, dtype=jnp.int32) - 1, 0), behind], axis=1)

  def as_rows(self, a: Shaped[Array, "p S *d"]) -> Shaped[Array, "B T *d"]:
    """Put each response behind a copy of its prompt: B = p n rows of T = P + R positions."""
    prompt = jnp.repeat(a[:, : self.prompt], self.n, axis=0)
    return jnp.concatenate([prompt, a[:, self.prompt :].reshape(-1, self.response, *a.shape[2:])], axis=1)

  def from_rows(self, a: Shaped[Array, "B T *d"]) -> Shaped[Array, "p S *d"]:
    """Undo `as_rows`; the prompt is that of the first of its rows."""
    behind = a[:, self.prompt :].reshape(-1, self.n * self.response, *a.shape[2:])
    return jnp.concatenate([a[:: self.n, : self.prompt], behind], axis=1)

  def sees(self, query: np.ndarray | jax.Array, key: np.ndarray | jax.Array) -> Any:
    """Tell whether the token at one place of the sequence may see the one at another, padding aside."""
    response_of = lambda at: (at - self.prompt) // self.response
    same = (key < self.prompt) | (response_of(query) == response_of(key))
    return (key <= query) & same


Window = Int[Array, ""] | int | None


def positions_of(mask: Bool[Array, "B T"]) -> Int[Array, "B T"]:
  """The position of every token, counting real tokens only."""
  return jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)


def in_window(
  window: Int[Array, ""] | int, query: Int[Array, "*b t"], key: Int[Array, "*b s"]
) -> Bool[Array, "*b t s"]:
  """Tell which tokens at the positions `key` are among the last `window` that one at `query` sees, itself included."""
  return query[..., :, None] - key[..., None, :] < window


def attend_causal(
  q: Float[Array, "B T N h"],
  k: Float[Array, "B T K h"],
  v: Float[Array, "B T K h"],
  mask: Bool[Array, "B T"],
  block: int = 1024,
  group: PromptGroup | None = None,
  window: Window = None,
) -> Float[Array, "B T N h"]:
  """Attend from every token to itself and to the real tokens before it.

  Beyond `block` positions the queries go through in blocks, which the backward pass computes again, so that the scores
  held at a time are [B, N, block, T] and not [B, N, T, T].

  Args:
    mask: true on real tokens.
    group: how the sequences are laid out, where they are prompts with several responses each.
    window: the real tokens that a token sees, itself included; None: all.
  """
  if group is not None:
    return attend_group(q, k, v, mask, group, block, window)
  T = q.shape[1]
  at = None if window is None else positions_of(mask)

  def visible(positions: Int[Array, " t"]) -> Bool[Array, "B t T"]:
    causal = jnp.arange(T) <= positions[:, None]
    seen = causal[None] & mask[:, None, :]
    if at is not None and window is not None:
      seen = seen & in_window(window, jnp.take(at, positions, axis=1, mode="clip"), at)
    return seen

  return attend_in_blocks(q, k, v, visible, block)


def attend_bidirectional(
  q: Float[Array, "B T N h"],
  k: Float[Array, "B T K h"],
  v: Float[Array, "B T K h"],
  mask: Bool[Array, "B T"],
  block: int = 1024,
) -> Float[Array, "B T N h"]:
  """Attend from every token to all real tokens, before it and behind it; arguments as of `attend_causal`."""
  return attend_in_blocks(q, k, v, lambda positions: jnp.repeat(mask[:, None, :], len(positions), axis=1), block)


def attend_in_blocks(
  q: Float[Array, "B T N h"],
  k: Float[Array, "B T K h"],
  v: Float[Array, "B T K h"],
  visible: Callable[[Int[Array, " t"]], Bool[Array, "B t T"]],
  block: int,
) -> Float[Array, "B T N h"]:
  """Attend from blocks of queries, of which `visible` tells by their positions what each sees."""
  B, T, N, h = q.shape

  def attend_from(first: Array | int, queries: Float[Array, "B t N h"]) -> Float[Array, "B t N h"]:
    """Attend from the queries that stand at `first` and behind it."""
    return attend(queries, k, v, visible(first + jnp.arange(queries.shape[1])))

  if block >= T:
    return attend_from(0, q)
  blocks = -(-T // block)
  q = jnp.pad(q, ((0, 0), (0, blocks * block - T), (0, 0), (0, 0))).reshape(B, blocks, block, N, h)
  attend_block = jax.checkpoint(lambda first_and_queries: attend_from(*first_and_queries))
  out = lax.map(attend_block, (jnp.arange(blocks) * block, jnp.moveaxis(q, 1, 0)))
  return jnp.moveaxis(out, 0, 1).reshape(B, blocks * block, N, h)[:, :T]


def attend_group(
  q: Float[Array, "p S N h"],
  k: Float[Array, "p S K h"],
  v: Float[Array, "p S K h"],
  mask: Bool[Array, "p S"],
  group: PromptGroup,
  block: int = 1024,
  window: Window = None,
) -> Float[Array, "p S N h"]:
  """Attend within prompts and their responses: what `attend` with `group.sees` gives, without the scores between responses.

  Args:
    block: positions of a response that go through at a time, as in `attend_causal`.
    window: as in `attend_causal`, counted as if each response stood behind the prompt alone.
  """
  P, n, R = group
  p, _, N, h = q.shape
  K, G = k.shape[2], N // k.shape[2]
  of_prompt = attend_causal(q[:, :P], k[:, :P], v[:, :P], mask[:, :P], block, window=window)
  prompt_keys = k[:, :P].transpose(0, 2, 3, 1)  # [p, K, h, P]
  prompt_values = v[:, :P].transpose(0, 2, 1, 3)  # [p, K, P, h]
  responses = lambda a: a[:, P:].reshape(p, n, R, K, -1, h)
  queries = responses(q).transpose(0, 3, 1, 4, 2, 5)  # [p, K, n, G, R, h]
  keys, values = (responses(a)[..., 0, :].transpose(0, 3, 1, 2, 4) for a in (k, v))  # [p, K, n, R, h]
  keys = keys.swapaxes(-1, -2)
  in_prompt = mask[:, None, None, :P]
  in_response = mask[:, P:].reshape(p, 1, n, 1, 1, R)

  def scores(rows: Array, keys: Array) -> Array:
    return jnp.matmul(rows, keys, preferred_element_type=jnp.float32) / math.sqrt(h)

  def weighted(weights: Array, values: Array) -> Float[Array, "p K n G t h"]:
    product = jnp.matmul(weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return product.reshape(p, K, n, G, -1, h)

  def attend_from(first: Array | int, q: Float[Array, "p K n G t h"]) -> Float[Array, "p K n G t h"]:
    """Attend from the queries that stand at `first` of each response and behind it."""
    t = q.shape[4]
    causal = jnp.arange(R) <= first + jnp.arange(t)[:, None]
    to_prompt = jnp.where(in_prompt, scores(q.reshape(p, K, -1, h), prompt_keys), NEVER).reshape(p, K, n, G, t, P)
    to_own = scores(q.reshape(p, K, n, G * t, h), keys).reshape(p, K, n, G, t, R)
    if window is not None:
      at = first + jnp.arange(t)
      causal = causal & in_window(window, at, jnp.arange(R))
      real = jnp.sum(mask[:, :P], axis=1, dtype=jnp.int32, keepdims=True)  # the position of each first response token
      near = in_window(window, real + at, positions_of(mask[:, :P]))
      to_prompt = jnp.where(near[:, None, None, None], to_prompt, NEVER)
    to_own = jnp.where(causal & in_response, to_own, NEVER)
    top = jnp.maximum(jnp.max(to_prompt, axis=-1, keepdims=True), jnp.max(to_own, axis=-1, keepdims=True))
    top = lax.stop_gradient(top)
    to_prompt, to_own = jnp.exp(to_prompt - top), jnp.exp(to_own - top)
    total = jnp.sum(to_prompt, axis=-1, keepdims=True) + jnp.sum(to_own, axis=-1, keepdims=True)
    out = weighted(to_prompt.reshape(p, K, -1, P), prompt_values) + weighted(to_own.reshape(p, K, n, -1, R), values)
    return (out / total).astype(v.dtype)

  if block >= R:
    out = attend_from(0, queries)
  else:
    blocks = -(-R // block)
    padding = [(0, 0)] * 4 + [(0, blocks * block - R), (0, 0)]
    queries = jnp.pad(queries, padding).reshape(p, K, n, G, blocks, block, h)
    attend_block = jax.checkpoint(lambda first_and_queries: attend_from(*first_and_queries))
    out = lax.map(attend_block, (jnp.arange(blocks) * block, jnp.moveaxis(queries, 4, 0)))
    out = jnp.moveaxis(out, 0, 4).reshape(p, K, n, G, -1, h)[..., :R, :]
  return jnp.concatenate([of_prompt, out.transpose(0, 2, 4, 1, 3, 5).reshape(p, n * R, N, h)], axis=1)


def attend(
  q: Float[Array, "B T N h"],
  k: Float[Array, "B S K h"],
  v: Float[Array, "B S K h"],
  visible: Bool[Array, "B T S"],
) -> Float[Array, "B T N h"]:
  """Compute softmax attention; scores and softmax are fp32, and the output has the type of `v`.

  The query heads of a key/value head are rows of one matrix product, so keys and values are never repeated.
  """
  B, T, N, h = q.shape
  K = k.shape[2]
  rows = q.reshape(B, T, K, -1, h).transpose(0, 2, 3, 1, 4).reshape(B, K, -1, h)
  scores = jnp.matmul(rows, k.transpose(0, 2, 3, 1), preferred_element_type=jnp.float32) / math.sqrt(h)
  scores = jnp.where(visible[:, None, None], scores.reshape(B, K, N // K, T, -1), NEVER)
  weights = jnp.exp(scores - lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
  total = jnp.sum(weights, axis=-1).reshape(B, K, -1, 1)
  weights, values = weights.reshape(B, K, N // K * T, -1).astype(v.dtype), v.transpose(0, 2, 1, 3)
  out = jnp.matmul(weights, values, preferred_element_type=jnp.float32)
  out = (out / total).astype(v.dtype)  # h numbers are fewer than S
  return out.reshape(B, K, N // K, T, h).transpose(0, 3, 1, 2, 4).reshape(B, T, N, h)
