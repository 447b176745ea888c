"""Key/value caches and the decoder steps that read and write them.

Keys are stored transposed, [B, K, h, S], so that a decode step is two plain batched matrix products; one array per
layer, so that writing one token never copies another layer's cache.

Dimensions: B rows, P prompt width, S cache width, D model width, N query heads, K key/value heads, h head width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from opd_jax.models import decoder
from opd_jax.models.attention import attend_cache
from opd_jax.types import Params


class LayerCache(NamedTuple):
  k: Float[Array, "B K h S"]
  v: Float[Array, "B K S h"]


class Weights(NamedTuple):
  """The rollout layout: one pytree per layer, in the compute type."""

  embed: Float[Array, "V D"]
  head: Float[Array, "V D"]
  norm: Float[Array, "D"]
  layers: list[Params]


def lay_out(params: Params, cfg: decoder.DecoderConfig, dtype: jnp.dtype) -> Weights:
  """Casts and unstacks the weights; done once per rollout, before the token loop."""
  cast = lambda tree: jax.tree.map(lambda a: a.astype(dtype), tree)
  return Weights(
    embed=cast(params["embed"]),
    head=cast(decoder.head(params)),
    norm=params["norm"],
    layers=[cast(w) for w in decoder.unstack(params["layers"], cfg.layers)],
  )


def prefill(
  w: Weights, cfg: decoder.DecoderConfig, tokens: Int[Array, "B P"], mask: Bool[Array, "B P"], width: int
) -> tuple[Float[Array, "B D"], list[LayerCache]]:
  """Reads left-padded prompts.

  Returns:
    The last position's final hidden state, which predicts the first response token, and one cache of `width`
    positions per layer whose first P are filled.
  """
  P = tokens.shape[1]
  rope = decoder.rope_tables(cfg, decoder.positions_of(mask))
  visible = jnp.tril(jnp.ones((P, P), bool))[None] & mask[:, None, :]
  x = w.embed[tokens]
  caches = []
  for layer in w.layers:
    q, k, v = decoder.qkv(x, layer, cfg, rope)
    k, v = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
    x = x + decoder.project_out(attend_cache(q, k, v, visible), layer)
    x = x + decoder.feed_forward(x, layer, cfg)
    room = ((0, 0), (0, 0))
    caches.append(LayerCache(jnp.pad(k, (*room, (0, 0), (0, width - P))), jnp.pad(v, (*room, (0, width - P), (0, 0)))))
  return decoder.rms_norm(x[:, -1], w.norm, cfg.norm_eps), caches


def decode(
  w: Weights,
  cfg: decoder.DecoderConfig,
  tokens: Int[Array, "B"],
  position: Int[Array, "B"],
  slot: Int[Array, ""],
  visible: Bool[Array, "B S"],
  caches: list[LayerCache],
) -> tuple[Float[Array, "B D"], list[LayerCache]]:
  """Reads one token per row into cache slot `slot`; returns the final hidden state that predicts the next one.

  Args:
    position: rotary position of the token, which differs between rows of different prompt length.
    visible: cache slots that the token may attend to, its own included.
  """
  rope = decoder.rope_tables(cfg, position[:, None])
  x = w.embed[tokens][:, None]
  written = []
  for layer, cache in zip(w.layers, caches, strict=True):
    q, k, v = decoder.qkv(x, layer, cfg, rope)
    k = lax.dynamic_update_slice_in_dim(cache.k, k.transpose(0, 2, 3, 1), slot, axis=3)
    v = lax.dynamic_update_slice_in_dim(cache.v, v.transpose(0, 2, 1, 3), slot, axis=2)
    written.append(LayerCache(k, v))
    x = x + decoder.project_out(attend_cache(q, k, v, visible[:, None]), layer)
    x = x + decoder.feed_forward(x, layer, cfg)
  return decoder.rms_norm(x[:, 0], w.norm, cfg.norm_eps), written


def logits(w: Weights, x: Float[Array, "B D"], vocab: int) -> Float[Array, "B V"]:
  """fp32 logits of the first `vocab` ids."""
  return jnp.einsum("bd,vd->bv", x, w.head[:vocab], preferred_element_type=jnp.float32)
