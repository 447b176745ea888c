"""Causal attention in blocks of queries, for processors whose caches hold a block's scores and not all of them.

A query reads the keys up to its block's end, so half of the products are never made, and the scores [B, N, T, T] go to
memory neither forward nor backward: the backward pass makes them again from the sums that the forward pass keeps. Rows
go through one at a time. The dense reference is `attention.attend_causal`.

Dimensions: B rows, T positions, N query heads, K key/value heads, G = N / K, h head width, t positions of a block.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from opd_jax.models.attention import NEVER

BLOCK = 128  # queries; on two CPU cores at T 527, h 64: as fast as 64, faster than 256
WORTHWHILE = 256  # positions; up to here the dense form is as fast there


def attend(
  q: Float[Array, "B T N h"],
  k: Float[Array, "B T K h"],
  v: Float[Array, "B T K h"],
  mask: Bool[Array, "B T"],
  block: int = BLOCK,
) -> Float[Array, "B T N h"]:
  """`attention.attend_causal`, value and gradient, block by block; in fp32 whatever the type, which CPUs prefer."""
  B, T, N, h = q.shape
  K, dtype = k.shape[2], q.dtype
  q, k, v = (a.astype(jnp.float32) for a in (q / math.sqrt(h), k, v))
  heads = lambda a: a.reshape(B, T, K, -1, h).transpose(0, 2, 3, 1, 4)  # [B, K, G, T, h]
  out = _attend(block, heads(q), k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), mask)
  return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, h).astype(dtype)  # pyright: ignore[reportAttributeAccessIssue]


class Kept(NamedTuple):
  """Of one row for the backward pass."""

  out: Float[Array, "K G T h"]
  log_sum: Float[Array, "K G T"]  # of the exponentials of each query's scores


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(block: int, q, k, v, mask):
  return lax.map(lambda row: _forward_row(block, *row).out, (q, k, v, mask))


def _forward(block: int, q, k, v, mask):
  kept = lax.map(lambda row: _forward_row(block, *row), (q, k, v, mask))
  return kept.out, (q, k, v, mask, kept)


def _backward(block: int, residuals, d_out):
  return *lax.map(lambda row: _backward_row(block, *row), (*residuals, d_out)), None


_attend.defvjp(_forward, _backward)


def _forward_row(block: int, q, k, v, mask) -> Kept:
  keys = k.swapaxes(1, 2)  # [K, h, T]
  out, log_sum = [], []
  for start, end in _blocks(q.shape[2], block):
    scores = _flat(q, start, end) @ keys[:, :, :end]  # [K, G t, end]
    scores = jnp.where(_visible(q, mask, start, end), scores, NEVER)
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out.append(_by_group(weights @ v[:, :end] / total, q))
    log_sum.append(_by_group(top + jnp.log(total), q)[..., 0])
  return Kept(jnp.concatenate(out, axis=2), jnp.concatenate(log_sum, axis=2))


def _backward_row(block: int, q, k, v, mask, kept: Kept, d_out):
  """All large arrays are [K, end, G t], so that no product has to turn one over."""
  keys = k.swapaxes(1, 2)  # [K, h, T]
  own = jnp.sum(d_out * kept.out, axis=-1)
  across = lambda a, start, end: a[:, :, start:end].reshape(k.shape[0], 1, -1)
  d_q, d_k, d_v = [], jnp.zeros_like(k), jnp.zeros_like(v)
  for start, end in _blocks(q.shape[2], block):
    asked, d = _flat(q, start, end), _flat(d_out, start, end)  # [K, G t, h]
    scores = k[:, :end] @ asked.swapaxes(1, 2)
    visible = _visible(q, mask, start, end).T
    weights = jnp.where(visible, jnp.exp(scores - across(kept.log_sum, start, end)), 0.0)
    d_weights = v[:, :end] @ d.swapaxes(1, 2)
    d_scores = weights * (d_weights - across(own, start, end))
    d_v = d_v.at[:, :end].add(weights @ d)
    d_k = d_k.at[:, :end].add(d_scores @ asked)
    d_q.append(_by_group((keys[:, :, :end] @ d_scores).swapaxes(1, 2), q))
  return jnp.concatenate(d_q, axis=2), d_k, d_v


def _visible(q, mask: Bool[Array, "T"], start: int, end: int) -> Bool[Array, "G*t end"]:
  seen = (jnp.arange(end) <= jnp.arange(start, end)[:, None]) & mask[:end]
  return jnp.tile(seen, (q.shape[1], 1))


def _flat(a: Float[Array, "K G T h"], start: int, end: int) -> Float[Array, "K G*t h"]:
  return a[:, :, start:end].reshape(a.shape[0], -1, a.shape[3])


def _by_group(a: Float[Array, "K G*t n"], q: Float[Array, "K G T h"]) -> Float[Array, "K G t n"]:
  return a.reshape(*q.shape[:2], -1, a.shape[-1])


def _blocks(T: int, block: int) -> list[tuple[int, int]]:
  return [(start, min(start + block, T)) for start in range(0, T, block)]
