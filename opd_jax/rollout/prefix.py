"""Rollouts that go on from where others stopped, whose keys and values they take over and do not compute again.

    kept = what rows have read and written     behind every step of `rollout_and_prefix`
    x = the model on the last token of each    one token, where sampling behind a prefix as a prompt reads all of it

A step may end before its last slot, so caches have holes, which no token attends to; positions count tokens and not slots, so that the
numbers are those of the same tokens as a prompt, but for the order of sums. A sliding window is told by slots, and does not go with holes.

Dimensions: B rows in q equal parts of r, S slots so far, H slots of a step.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Int

from opd_jax.models import decoder, layer_kinds, moe
from opd_jax.models.attention import attend_causal
from opd_jax.rollout import cache
from opd_jax.rollout.sample import Context, DecodeRow, Sampling, chosen_rows, token_loop
from opd_jax.rollout.segments import DEFAULT, Segments
from opd_jax.types import Batch, Params, Rollout


class Prefix(NamedTuple):
  """What rows have read and written, for others to go on from."""

  mask: Bool[Array, "B S"]  # the slots that hold a token
  layers: list[cache.Cache]  # of S slots, one per layer
  token: Int[Array, " B"]  # the last one, which is in no slot yet


def supports(cfg: decoder.DecoderConfig, longest: int) -> bool:
  """Tell whether rollouts of a model can go on from caches: no layer has a state, nor a window that hides one of `longest` tokens.

  A state holds the tokens that rows with a longer step have read since, and cannot go back.
  """
  return cfg.delta is None and all(layer_kinds.binding_window(kind, longest) is None for kind in cfg.kinds)


def rollout_and_prefix(
  params: Params,
  before: Batch | Prefix,
  key: jax.Array,
  limit: Int[Array, ""],
  expand: Int[Array, "q r"],
  *,
  cfg: decoder.DecoderConfig,
  sampling: Sampling,
  response_len: int,
  dtype: DTypeLike = jnp.float32,
  prepare_decode_params=cache.prepare_decode_params,
  segments: Segments = DEFAULT,
  attention_fn=attend_causal,
  moe_fn=moe.reference,
  sample_fn=None,
) -> tuple[Rollout, Prefix]:
  """Sample a response to each chosen prompt, or a continuation of each chosen prefix, and keep what the next ones go on from.

  Draws are those of `sample.rollout` behind the same tokens as prompts.

  Args:
    before: prompts, in the first layer; then the prefixes that this function returned.
    expand: of each part of the rows before, which of them r rows go on from.
    Others are those of `sample.rollout`; of models that `supports`.

  Raises:
    ValueError: the prompts have images.
  """
  w = prepare_decode_params(params, cfg, dtype)
  if isinstance(before, Prefix):
    context = _go_on(w, cfg, chosen_rows(before, expand), moe_fn)
  else:
    if before.images is not None:
      raise ValueError("a prefix keeps no positions of images, so nothing goes on from prompts that have any")
    with jax.named_scope("prefill"):
      x, prompts = cache.prefill(w, cfg, before.prompt, before.prompt_mask, attention_fn, moe_fn)
    x, (mask, layers) = chosen_rows((x, prompts), expand)
    context = Context(x, cache.PromptCaches(mask, []), layers, jnp.sum(mask, axis=1, dtype=jnp.int32), mask.shape[1])
  keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(expand.size))
  settings = {"cfg": cfg, "sampling": sampling, "segments": segments, "moe_fn": moe_fn, "sample_fn": sample_fn}
  rows = token_loop(w, context, keys, limit, response_len=response_len, **settings)
  return rows.as_rollout(), _kept(context, rows)


def _go_on(w: cache.DecodeParams, cfg: decoder.DecoderConfig, prefix: Prefix, moe_fn) -> Context:
  """Read the last token of every prefix, into a slot of its own."""
  mask = jnp.pad(prefix.mask, ((0, 0), (0, 1)), constant_values=True)
  length = jnp.sum(mask, axis=1, dtype=jnp.int32)
  slots, prompts = mask.shape[1], cache.PromptCaches(mask, [])
  ropes = cfg.ropes(length[:, None] - 1)
  grown = [layer.grow(slots) for layer in prefix.layers]
  with jax.named_scope("decode"):
    x, layers = cache.decode(w, cfg, prefix.token, ropes, jnp.int32(slots - 1), prompts, grown, moe_fn)
  return Context(x, prompts, layers, length, slots)


def _kept(context: Context, rows: DecodeRow) -> Prefix:
  """Take over what rows have written: all tokens but the last, which the token loop has not read."""
  written = rows.response.shape[1] - 1
  slots = context.first_slot + written
  mask = jnp.arange(written) < rows.length[:, None] - 1
  token = jnp.take_along_axis(rows.response, rows.length[:, None] - 1, axis=1)[:, 0]
  layers: list[cache.Cache] = [
    cache.LayerCache(*(lax.slice_in_dim(a, 0, slots, axis=axis) for a, axis in zip(layer, (3, 2), strict=True)))
    for layer in rows.caches
  ]
  return Prefix(jnp.concatenate([context.prompts.mask, mask], axis=1), layers, token)
