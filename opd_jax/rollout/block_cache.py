"""A cache for masked diffusion: within a block, what stands outside of it is read as it was when the block was entered.

Every token of a masked diffusion model sees all others, so that each step changes all keys and values, and no cache is exact. Those of
the prompt, of finished blocks and of the masks behind change little while a block is filled: they are computed at its first step and
kept for the others, which run the model on the positions of the block alone (as Fast-dLLM does, arXiv:2505.22618). The first step of every
block is exact.

Dimensions: B rows, P prompt width, H response width, T = P + H, b positions of a block, L layers, K key/value heads, h head width.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from opd_jax.models import decoder
from opd_jax.models.attention import attend, positions_of
from opd_jax.types import Params


class BlockCache(NamedTuple):
  """Keys and values of all positions, as of the step that entered the block."""

  k: Float[Array, "L B T K h"]
  v: Float[Array, "L B T K h"]


def empty(cfg: decoder.DecoderConfig, rows: int, prompt: int, length: int, dtype: DTypeLike) -> BlockCache:
  """Make a cache of nothing, which the first step replaces."""
  shape = (cfg.layers, rows, prompt + length, cfg.kv_heads, cfg.head_width)
  return BlockCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def hidden(
  w: Params,
  cfg: decoder.DecoderConfig,
  prompt: Int[Array, "B P"],
  prompt_mask: Bool[Array, "B P"],
  canvas: Int[Array, "B H"],
  first: Int[Array, ""],
  enters: Bool[Array, ""],
  cache: BlockCache,
  block: int,
  dtype: DTypeLike,
  embed_fn=decoder.embed,
) -> tuple[Float[Array, "B b D"], BlockCache]:
  """Compute the hidden states that predict the positions of a block.

  Args:
    first: the block's first position in the canvas.
    enters: whether this is the block's first step, which reads everything and fills the cache.
  """
  tokens = jnp.concatenate([prompt, canvas], axis=1)
  mask = jnp.concatenate([prompt_mask, jnp.ones(canvas.shape, bool)], axis=1)
  own = block + cfg.shifted  # the prediction of a block's first position stands in front of it
  at = prompt.shape[1] + first - cfg.shifted

  def run(size: int, begin: Array | int, cache: BlockCache) -> tuple[Array, BlockCache]:
    """Run the model on `size` positions from `begin` on, which see all."""
    here = lambda a: lax.dynamic_slice_in_dim(a, begin, size, axis=1)
    ropes = cfg.ropes(here(positions_of(mask)))
    visible = jnp.broadcast_to(mask[:, None, :], (len(tokens), size, tokens.shape[1]))

    def layer(x: Array, w_and_kept: tuple[Params, Array, Array]):
      w, k_kept, v_kept = w_and_kept
      q, k, v, gate = decoder.qkv(x, w, cfg, ropes[0])
      k, v = (lax.dynamic_update_slice_in_dim(kept, new, begin, axis=1) for kept, new in ((k_kept, k), (v_kept, v)))
      x = x + decoder.project_out(attend(q, k, v, visible), gate, w, cfg)
      return x + decoder.feed_forward(x, w, cfg, here(mask)), (k, v)

    x = decoder.scale_embedding(embed_fn(w, here(tokens), dtype), cfg)
    x, kept = lax.scan(layer, x, (w["layers"], cache.k, cache.v))
    return decoder.norm(x, w["norm"], cfg), BlockCache(*kept)

  def enter(cache: BlockCache) -> tuple[Array, BlockCache]:
    x, cache = run(tokens.shape[1], 0, cache)
    return lax.dynamic_slice_in_dim(x, at, block, axis=1), cache

  def go_on(cache: BlockCache) -> tuple[Array, BlockCache]:
    x, cache = run(own, at, cache)
    return x[:, :block], cache

  return lax.cond(enters, enter, go_on, cache)
