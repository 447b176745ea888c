"""Causal attention in blocks of queries, for processors whose caches hold a block's scores and not all of them.

A query reads the keys up to its block's end, so half of the products are never made, and the scores [B, N, T, T] go to
memory neither forward nor backward: the backward pass makes them again from the sums that the forward pass keeps. Rows
go through one at a time. The dense reference is `attention.attend_causal`.

Dimensions: B rows, T positions, N query heads, K key/value heads, G = N / K, h head width, t positions of a block, Gt = G t.
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
  """Compute `attention.attend_causal`, value and gradient, block by block.

  The products are fp32 whatever the type, since CPUs are slower in bfloat16; the output has the type of `q`.

  Args:
    mask: true on real tokens.
    block: queries of a block.
  """
  B, T, N, h = q.shape
  K, dtype = k.shape[2], q.dtype
  q, k, v = (a.astype(jnp.float32) for a in (q / math.sqrt(h), k, v))
  by_group = lambda a: a.reshape(B, T, K, -1, h).transpose(0, 2, 3, 1, 4)  # [B, K, G, T, h]
  out = _attend(block, by_group(q), k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), mask)
  return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, h).astype(dtype)  # pyright: ignore[reportAttributeAccessIssue]


class Residuals(NamedTuple):
  """The residuals of one row's forward pass that its backward pass needs."""

  out: Float[Array, "K G T h"]
  log_sum: Float[Array, "K G T"]  # of the exponentials of each query's scores


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(block: int, q, k, v, mask):
  return lax.map(lambda row: _forward_row(block, *row).out, (q, k, v, mask))


def _forward(block: int, q, k, v, mask):
  residuals = lax.map(lambda row: _forward_row(block, *row), (q, k, v, mask))
  return residuals.out, (q, k, v, mask, residuals)


def _backward(block: int, inputs_and_residuals, d_out):
  d_q, d_k, d_v = lax.map(lambda row: _backward_row(block, *row), (*inputs_and_residuals, d_out))
  return d_q, d_k, d_v, None


_attend.defvjp(_forward, _backward)


def _forward_row(block: int, q, k, v, mask) -> Residuals:
  """Attend within one row: q [K, G, T, h], k and v [K, T, h], mask [T]."""
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
  return Residuals(jnp.concatenate(out, axis=2), jnp.concatenate(log_sum, axis=2))


def _backward_row(block: int, q, k, v, mask, residuals: Residuals, d_out):
  """The gradients of one row by q, k and v; all large arrays are [K, end, G t], so that no product transposes one."""
  keys = k.swapaxes(1, 2)  # [K, h, T]
  d_total = jnp.sum(d_out * residuals.out, axis=-1)  # [K, G, T]: what the softmax subtracts from each query's gradients
  across = lambda a, start, end: a[:, :, start:end].reshape(k.shape[0], 1, -1)
  d_q, d_k, d_v = [], jnp.zeros_like(k), jnp.zeros_like(v)
  for start, end in _blocks(q.shape[2], block):
    queries, d = _flat(q, start, end), _flat(d_out, start, end)  # [K, G t, h]
    scores = k[:, :end] @ queries.swapaxes(1, 2)
    visible = _visible(q, mask, start, end).T
    weights = jnp.where(visible, jnp.exp(scores - across(residuals.log_sum, start, end)), 0.0)
    d_weights = v[:, :end] @ d.swapaxes(1, 2)
    d_scores = weights * (d_weights - across(d_total, start, end))
    d_v = d_v.at[:, :end].add(weights @ d)
    d_k = d_k.at[:, :end].add(d_scores @ queries)
    d_q.append(_by_group((keys[:, :, :end] @ d_scores).swapaxes(1, 2), q))
  return jnp.concatenate(d_q, axis=2), d_k, d_v


def _visible(q, mask: Bool[Array, "T"], start: int, end: int) -> Bool[Array, "Gt end"]:
  """Mark the keys that each query of a block may attend to, once for every query head of a group."""
  visible = (jnp.arange(end) <= jnp.arange(start, end)[:, None]) & mask[:end]
  return jnp.tile(visible, (q.shape[1], 1))


def _flat(a: Float[Array, "K G T h"], start: int, end: int) -> Float[Array, "K Gt h"]:
  """The queries of a block as rows of one matrix per key/value head."""
  return a[:, :, start:end].reshape(a.shape[0], -1, a.shape[3])


def _by_group(a: Float[Array, "K Gt n"], q: Float[Array, "K G T h"]) -> Float[Array, "K G t n"]:
  """Undo `_flat`."""
  return a.reshape(*q.shape[:2], -1, a.shape[-1])


def _blocks(T: int, block: int) -> list[tuple[int, int]]:
  """The first position of every block and the one behind its last."""
  return [(start, min(start + block, T)) for start in range(0, T, block)]
