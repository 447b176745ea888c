"""Causal attention in blocks of queries, for processors whose caches hold a block's scores and not all of them.

A query reads the keys up to its block's end, so half of the products are never made, and the scores [B, N, T, T] go to
memory neither forward nor backward: the backward pass makes them again from the sums that the forward pass keeps. Rows
go through one at a time. The dense references are `attention.attend_causal` and, for a prompt with several responses as one
sequence, `attention.attend_group`.

Dimensions: B rows, T positions, N query heads, K key/value heads, G = N / K, h head width, t positions of a block, Gt = G t.
In a group: p prompts of P positions, n responses of R positions behind each, of which m go through at a time.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from opd_jax.models.attention import NEVER, PromptGroup, Window, positions_of

BLOCK = 128  # queries; on two CPU cores at T 527, h 64: as fast as 64, faster than 256
WORTHWHILE = 256  # positions; up to here the dense form is as fast there


def attend(
  q: Float[Array, "B T N h"],
  k: Float[Array, "B T K h"],
  v: Float[Array, "B T K h"],
  mask: Bool[Array, "B T"],
  block: int = BLOCK,
  group: PromptGroup | None = None,
  window: Window = None,
) -> Float[Array, "B T N h"]:
  """Compute `attention.attend_causal`, value and gradient, block by block.

  The products are fp32 whatever the type, since CPUs are slower in bfloat16; the output has the type of `q`.

  Args:
    mask: true on real tokens.
    block: queries of a block.
    group: how the sequences are laid out, where they are prompts with several responses each.
    window: as in `attention.attend_causal`; what it hides is masked, not left out.
  """
  B, T, N, h = q.shape
  K, dtype = k.shape[2], q.dtype
  q, k, v = (a.astype(jnp.float32) for a in (q / math.sqrt(h), k, v))
  by_group = lambda a: a.reshape(B, T, K, -1, h).transpose(0, 2, 3, 1, 4)  # [B, K, G, T, h]
  reach = None
  if window is not None:
    at = positions_of(mask) if group is None else group.positions(mask)
    reach = Reach(at, at - window + 1)
  out = _attend(block, group, by_group(q), k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), mask, reach)
  return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, h).astype(dtype)  # pyright: ignore[reportAttributeAccessIssue]


class Reach(NamedTuple):
  """How far the tokens of sequences see, where there is a window."""

  at: Int[Array, "*B T"]  # the position of each
  first: Int[Array, "*B T"]  # and the first position that it sees


class Residuals(NamedTuple):
  """The residuals of one row's forward pass that its backward pass needs."""

  out: Float[Array, "K G T h"]
  log_sum: Float[Array, "K G T"]  # of the exponentials of each query's scores


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(block: int, group: PromptGroup | None, q, k, v, mask, reach: Reach | None):
  return _forward(block, group, q, k, v, mask, reach)[0]


def _forward(block: int, group: PromptGroup | None, q, k, v, mask, reach: Reach | None):
  of_row = functools.partial(_forward_group, group) if group else _forward_row
  residuals = lax.map(lambda row: of_row(block, *row), (q, k, v, mask, reach))
  return residuals.out, (q, k, v, mask, reach, residuals)


def _backward(block: int, group: PromptGroup | None, inputs_and_residuals, d_out):
  of_row = functools.partial(_backward_group, group) if group else _backward_row
  d_q, d_k, d_v = lax.map(lambda row: of_row(block, *row), (*inputs_and_residuals, d_out))
  return d_q, d_k, d_v, None, None


_attend.defvjp(_forward, _backward)


def _forward_row(block: int, q, k, v, mask, reach: Reach | None) -> Residuals:
  """Attend within one row: q [K, G, T, h], k and v [K, T, h], mask and reach [T]."""
  keys = k.swapaxes(1, 2)  # [K, h, T]
  out, log_sum = [], []
  for start, end in _blocks(q.shape[2], block):
    scores = _flat(q, start, end) @ keys[:, :, :end]  # [K, G t, end]
    scores = jnp.where(_visible(q, mask, reach, start, end), scores, NEVER)
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out.append(_by_group(weights @ v[:, :end] / total, q))
    log_sum.append(_by_group(top + jnp.log(total), q)[..., 0])
  return Residuals(jnp.concatenate(out, axis=2), jnp.concatenate(log_sum, axis=2))


def _backward_row(block: int, q, k, v, mask, reach: Reach | None, residuals: Residuals, d_out):
  """The gradients of one row by q, k and v; all large arrays are [K, end, G t], so that no product transposes one."""
  keys = k.swapaxes(1, 2)  # [K, h, T]
  d_total = jnp.sum(d_out * residuals.out, axis=-1)  # [K, G, T]: what the softmax subtracts from each query's gradients
  across = lambda a, start, end: a[:, :, start:end].reshape(k.shape[0], 1, -1)
  d_q, d_k, d_v = [], jnp.zeros_like(k), jnp.zeros_like(v)
  for start, end in _blocks(q.shape[2], block):
    queries, d = _flat(q, start, end), _flat(d_out, start, end)  # [K, G t, h]
    scores = k[:, :end] @ queries.swapaxes(1, 2)
    visible = _visible(q, mask, reach, start, end).T
    weights = jnp.where(visible, jnp.exp(scores - across(residuals.log_sum, start, end)), 0.0)
    d_weights = v[:, :end] @ d.swapaxes(1, 2)
    d_scores = weights * (d_weights - across(d_total, start, end))
    d_v = d_v.at[:, :end].add(weights @ d)
    d_k = d_k.at[:, :end].add(d_scores @ queries)
    d_q.append(_by_group((keys[:, :, :end] @ d_scores).swapaxes(1, 2), q))
  return jnp.concatenate(d_q, axis=2), d_k, d_v


def _forward_group(group: PromptGroup, block: int, q, k, v, mask, reach: Reach | None) -> Residuals:
  """Attend within one prompt and its responses: q [K, G, S, h], k and v [K, S, h], mask and reach [S], S = P + n R."""
  prompt = _prompt(group, k, v, mask, reach)
  of_prompt = _forward_row(block, q[:, :, : group.prompt], *prompt)
  cut = functools.partial(_behind, group, block)
  responses = cut(q, 2), cut(k, 1), cut(v, 1), cut(mask, 0), _cut_reach(cut, reach)
  of_responses = lax.map(lambda some: _forward_responses(block, prompt, *some), responses)
  return Residuals(
    *(
      jnp.concatenate([first, _in_sequence(behind, 2)], axis=2)
      for first, behind in zip(of_prompt, of_responses, strict=True)
    )
  )


def _backward_group(group: PromptGroup, block: int, q, k, v, mask, reach: Reach | None, residuals: Residuals, d_out):
  """The gradients of one prompt and its responses by q, k and v."""
  first = lambda a: a[:, :, : group.prompt]
  prompt = _prompt(group, k, v, mask, reach)
  d_q, *d_prompt = _backward_row(block, first(q), *prompt, Residuals(*map(first, residuals)), first(d_out))
  cut = functools.partial(_behind, group, block)
  streams = cut(q, 2), cut(k, 1), cut(v, 1), cut(mask, 0), _cut_reach(cut, reach)
  responses = (*streams, *(cut(a, 2) for a in (*residuals, d_out)))

  def add(d_prompt, some):
    d_here, d_some = _backward_responses(block, prompt, *some)
    return jax.tree.map(jnp.add, d_prompt, d_here), d_some

  d_prompt, d_behind = lax.scan(add, tuple(d_prompt), responses)
  return tuple(
    jnp.concatenate([first, _in_sequence(behind, axis)], axis=axis)
    for first, behind, axis in zip((d_q, *d_prompt), d_behind, (2, 1, 1), strict=True)
  )


class Prompt(NamedTuple):
  """A prompt's keys and values, and which are real."""

  k: Float[Array, "K P h"]
  v: Float[Array, "K P h"]
  mask: Bool[Array, " P"]
  reach: Reach | None


def _prompt(group: PromptGroup, k, v, mask, reach: Reach | None) -> Prompt:
  """Cut the prompt off its responses."""
  P = group.prompt
  return Prompt(k[:, :P], v[:, :P], mask[:P], jax.tree.map(lambda a: a[:P], reach))


def _cut_reach(cut, reach: Reach | None) -> Reach | None:
  """Cut into responses how far they see."""
  return jax.tree.map(lambda a: cut(a, 0), reach)


def _forward_responses(block: int, prompt: Prompt, q, k, v, mask, reach: Reach | None) -> Residuals:
  """Attend from m responses to their prompt and to themselves: q [m, K, G, R, h], k and v [m, K, R, h], the rest [m, R]."""
  prompt_keys, keys = prompt.k.swapaxes(1, 2), k.swapaxes(2, 3)
  out, log_sum = [], []
  for start, end in _blocks(q.shape[3], block):
    queries = _flat_responses(q, start, end)  # [m, K, G t, h]
    in_prompt = _visible_of_prompt(prompt, q, reach, start, end)
    to_prompt = jnp.where(in_prompt, _joined(queries) @ prompt_keys, NEVER)  # [K, m G t, P]
    to_own = jnp.where(
      _visible_to_all(q, mask, reach, start, end), queries @ keys[..., :end], NEVER
    )  # [m, K, G t, end]
    top = jnp.maximum(jnp.max(to_prompt, axis=-1, keepdims=True), _joined(jnp.max(to_own, axis=-1, keepdims=True)))
    to_prompt, to_own = jnp.exp(to_prompt - top), jnp.exp(to_own - _by_response(top, mask))
    total = jnp.sum(to_prompt, axis=-1, keepdims=True) + _joined(jnp.sum(to_own, axis=-1, keepdims=True))
    both = (to_prompt @ prompt.v + _joined(to_own @ v[:, :, :end])) / total
    out.append(_by_response(both, mask).reshape(*q.shape[:3], -1, q.shape[4]))
    log_sum.append(_by_response(top + jnp.log(total), mask).reshape(*q.shape[:3], -1))
  return Residuals(jnp.concatenate(out, axis=3), jnp.concatenate(log_sum, axis=3))


def _backward_responses(block: int, prompt: Prompt, q, k, v, mask, reach: Reach | None, out, log_sum, d_out):
  """The gradients of m responses: by their prompt's k and v, and by their own q, k and v."""
  prompt_keys, keys = prompt.k.swapaxes(1, 2), k.swapaxes(2, 3)
  d_total = jnp.sum(d_out * out, axis=-1, keepdims=True)  # [m, K, G, R, 1]
  d_prompt_k, d_prompt_v = jnp.zeros_like(prompt.k), jnp.zeros_like(prompt.v)
  d_q, d_k, d_v = [], jnp.zeros_like(k), jnp.zeros_like(v)
  for start, end in _blocks(q.shape[3], block):
    arrays = (q, d_out, log_sum[..., None], d_total)
    queries, d, sums, subtracted = (_flat_responses(a, start, end) for a in arrays)  # [m, K, G t, h] and [m, K, G t, 1]
    rows, d_rows, sums_of_rows, subtracted_of_rows = map(_joined, (queries, d, sums, subtracted))
    scores = prompt.k @ rows.swapaxes(1, 2)  # [K, P, m G t]
    in_prompt = prompt.mask[:, None] if reach is None else _visible_of_prompt(prompt, q, reach, start, end).T
    weights = jnp.where(in_prompt, jnp.exp(scores - sums_of_rows.swapaxes(1, 2)), 0.0)
    d_scores = weights * (prompt.v @ d_rows.swapaxes(1, 2) - subtracted_of_rows.swapaxes(1, 2))
    d_prompt_k, d_prompt_v = d_prompt_k + d_scores @ rows, d_prompt_v + weights @ d_rows
    d_queries = _by_response((prompt_keys @ d_scores).swapaxes(1, 2), mask)
    scores = k[:, :, :end] @ queries.swapaxes(2, 3)  # [m, K, end, G t]
    visible = _visible_to_all(q, mask, reach, start, end).swapaxes(2, 3)
    weights = jnp.where(visible, jnp.exp(scores - sums.swapaxes(2, 3)), 0.0)
    d_scores = weights * (v[:, :, :end] @ d.swapaxes(2, 3) - subtracted.swapaxes(2, 3))
    d_k, d_v = d_k.at[:, :, :end].add(d_scores @ queries), d_v.at[:, :, :end].add(weights @ d)
    d_queries = d_queries + (keys[..., :end] @ d_scores).swapaxes(2, 3)
    d_q.append(d_queries.reshape(*q.shape[:3], -1, q.shape[4]))
  return (d_prompt_k, d_prompt_v), (jnp.concatenate(d_q, axis=3), d_k, d_v)


def _behind(group: PromptGroup, block: int, a: Array, axis: int) -> Array:
  """Cut what stands behind the prompt into responses, as many at a time as a block has room for.

  Args:
    axis: of `a` that runs over the sequence.

  Returns:
    [n / m, m, ..., R, ...], the axes of `a` behind the first two.
  """
  P, n, R = group
  m = max(m for m in range(1, n + 1) if n % m == 0 and (m == 1 or m * R <= block))
  a = lax.slice_in_dim(a, P, None, axis=axis)
  return jnp.moveaxis(a.reshape(*a.shape[:axis], n // m, m, R, *a.shape[axis + 1 :]), (axis, axis + 1), (0, 1))


def _in_sequence(a: Float[Array, "n_per_m m *axes"], axis: int) -> Array:
  """Undo `_behind`."""
  a = jnp.moveaxis(a, (0, 1), (axis, axis + 1))
  return a.reshape(*a.shape[:axis], -1, *a.shape[axis + 3 :])


def _flat_responses(a: Float[Array, "m K G R d"], start: int, end: int) -> Float[Array, "m K Gt d"]:
  """The queries of a block of each response as rows of one matrix per response and key/value head."""
  return a[:, :, :, start:end].reshape(*a.shape[:2], -1, a.shape[4])


def _joined(a: Float[Array, "m K Gt d"]) -> Float[Array, "K mGt d"]:
  """The queries of several responses as rows of one matrix per key/value head."""
  return a.swapaxes(0, 1).reshape(a.shape[1], -1, a.shape[3])


def _by_response(a: Float[Array, "K mGt d"], mask: Bool[Array, "m R"]) -> Float[Array, "m K Gt d"]:
  """Undo `_joined`."""
  return a.reshape(a.shape[0], len(mask), -1, a.shape[2]).swapaxes(0, 1)


def _visible_of_prompt(prompt: Prompt, q, reach: Reach | None, start: int, end: int) -> Bool[Array, "*mGt P"]:
  """Mark the prompt's keys that each query of a block of each response may attend to; those of all are one row."""
  if reach is None or prompt.reach is None:
    return prompt.mask
  near = prompt.reach.at >= reach.first[:, None, start:end, None]  # [m, 1, t, P]
  return jnp.repeat(near & prompt.mask, q.shape[2], axis=1).reshape(-1, len(prompt.mask))


def _visible_to_all(
  q, mask: Bool[Array, "m R"], reach: Reach | None, start: int, end: int
) -> Bool[Array, "m 1 Gt end"]:
  """Mark the keys of its response that each query of a block may attend to."""
  return jax.vmap(lambda mask, reach: _visible(q[0], mask, reach, start, end))(mask, reach)[:, None]


def _visible(q, mask: Bool[Array, " T"], reach: Reach | None, start: int, end: int) -> Bool[Array, "Gt end"]:
  """Mark the keys that each query of a block may attend to, once for every query head of a group."""
  visible = (jnp.arange(end) <= jnp.arange(start, end)[:, None]) & mask[:end]
  if reach is not None:
    visible = visible & (reach.at[:end] >= reach.first[start:end, None])
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
