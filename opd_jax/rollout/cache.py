"""Key/value caches and the decoder steps that read and write them.

Keys are stored transposed, [B, K, h, S], so that a decode step is two plain batched matrix products; one array per
layer, so that writing one token never copies another layer's cache. What the token loop would make again at every
token is made before it: the weights in the compute type, layer by layer and joined where they read the same input, and
the rotary angles of every position.

Dimensions: B rows, T tokens, P prompt width, S cache width, D model width, N query heads, K key/value heads,
G = N / K, h head width, F feed-forward width, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from opd_jax.models import decoder, lora, moe
from opd_jax.models.attention import attend_causal, attend_groups
from opd_jax.types import Params


class LayerCache(NamedTuple):
  k: Float[Array, "B K h S"]
  v: Float[Array, "B K S h"]

  @property
  def width(self) -> int:
    return self.v.shape[2]

  def grow(self, width: int) -> "LayerCache":
    """With empty slots up to `width`: a copy, so done between token loops and never inside one."""
    more = width - self.width
    return LayerCache(
      jnp.pad(self.k, ((0, 0), (0, 0), (0, 0), (0, more))), jnp.pad(self.v, ((0, 0), (0, 0), (0, more), (0, 0)))
    )


class Weights(NamedTuple):
  """The rollout layout: one pytree per layer, in the compute type."""

  embed: Float[Array, "V D"]
  head: Float[Array, "V D"]
  norm: Float[Array, "D"]
  layers: list[Params]


def lay_out(params: Params, cfg: decoder.DecoderConfig, dtype: jnp.dtype) -> Weights:
  """Casts, unstacks and joins the weights, adapters among them; done once per rollout, before the token loop."""
  cast = lambda tree: jax.tree.map(lambda a: a.astype(dtype), tree)
  return Weights(
    embed=cast(params["embed"]),
    head=cast(decoder.head(params)),
    norm=params["norm"],
    layers=[join(cast(lora.merged(w, cfg.adapter_scale)), cfg) for w in decoder.unstack(params["layers"], cfg.layers)],
  )


def join(w: Params, cfg: decoder.DecoderConfig) -> Params:
  """One layer with `qkv` [D, K, G + 2, h], `gate_up` [D, 2, F] and `out` [K, G, h, D], the heads of a group together.

  Where `cfg` has more key/value heads than the weights, each of them is there several times (mesh.for_rollout).
  """
  K, h = cfg.kv_heads, cfg.head_width
  by_group = lambda a: jnp.repeat(a, K // min(a.shape[-2], K), axis=-2).reshape(*a.shape[:-2], K, -1, h)
  joined = lambda end: jnp.concatenate([by_group(w[name + end]) for name in "qkv"], axis=-2)
  out = {name: a for name, a in w.items() if "norm" in name or name in ("down", *moe.PARAMETERS)}
  out |= {"qkv": joined(""), "out": w["o"].reshape(K, -1, h, cfg.width)}
  if cfg.moe is None:
    out["gate_up"] = jnp.stack([w["gate"], w["up"]], axis=1)
  return out | ({"qkv_bias": joined("_bias")} if cfg.qkv_bias else {})


def prefill(
  w: Weights,
  cfg: decoder.DecoderConfig,
  tokens: Int[Array, "B P"],
  mask: Bool[Array, "B P"],
  attend=attend_causal,
  experts=moe.reference,
) -> tuple[Float[Array, "B D"], list[LayerCache]]:
  """Reads left-padded prompts.

  Args:
    attend: attention over whole prompts, see attention.py and kernels.py.
    experts: the mixture of experts, where there is one, see moe.py.

  Returns:
    The last position's final hidden state, which predicts the first response token, and one full cache of P slots
    per layer.
  """
  rope = decoder.rope_tables(cfg, decoder.positions_of(mask))
  x = w.embed[tokens]
  caches = []
  for layer in w.layers:
    q, k, v = qkv(x, layer, cfg, rope)
    caches.append(LayerCache(k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)))
    x = finish_layer(x, attend(q.reshape(*tokens.shape, cfg.heads, -1), k, v, mask), layer, cfg, experts, mask)
  return decoder.rms_norm(x[:, -1], w.norm, cfg.norm_eps), caches


def decode(
  w: Weights,
  cfg: decoder.DecoderConfig,
  tokens: Int[Array, "B"],
  rope: tuple[Array, Array],
  slot: Int[Array, ""],
  visible: Bool[Array, "B S"],
  caches: list[LayerCache],
  experts=moe.reference,
) -> tuple[Float[Array, "B D"], list[LayerCache]]:
  """Reads one token per row into cache slot `slot`; returns the final hidden state that predicts the next one.

  Args:
    rope: of the token's position, [B, 1, 1, h/2] each; rows of different prompt length differ.
    visible: cache slots that the token may attend to, its own included.
  """
  x = w.embed[tokens][:, None]
  written = []
  for layer, cache in zip(w.layers, caches, strict=True):
    q, k, v = qkv(x, layer, cfg, rope)
    k = lax.dynamic_update_slice_in_dim(cache.k, k.transpose(0, 2, 3, 1), slot, axis=3)
    v = lax.dynamic_update_slice_in_dim(cache.v, v.transpose(0, 2, 1, 3), slot, axis=2)
    written.append(LayerCache(k, v))
    x = finish_layer(x, attend_groups(q, k, v, visible[:, None]), layer, cfg, experts)
  return decoder.rms_norm(x[:, 0], w.norm, cfg.norm_eps), written


def qkv(x: Float[Array, "B T D"], w: Params, cfg: decoder.DecoderConfig, rope: tuple[Array, Array]):
  """`decoder.qkv` by one matrix product: queries [B, T, K, G, h], keys and values [B, T, K, h]."""
  with jax.named_scope("qkv"):
    x = decoder.rms_norm(x, w["attn_norm"], cfg.norm_eps)
    y = jnp.matmul(x, w["qkv"].reshape(cfg.width, -1)).reshape(*x.shape[:2], *w["qkv"].shape[1:])
    if cfg.qkv_bias:
      y = y + w["qkv_bias"]
    q, k, v = y[..., :-2, :], y[..., -2, :], y[..., -1, :]
    if cfg.qk_norm:
      q = decoder.rms_norm(q, w["q_norm"], cfg.norm_eps)
      k = decoder.rms_norm(k, w["k_norm"], cfg.norm_eps)
    cos, sin = rope
    return decoder.rotate(q, (cos[..., None, :], sin[..., None, :])), decoder.rotate(k, rope), v


def finish_layer(
  x: Float[Array, "B T D"],
  heads: Float[Array, "B T *heads h"],
  w: Params,
  cfg: decoder.DecoderConfig,
  experts=moe.reference,
  mask: Bool[Array, "B T"] | None = None,
) -> Float[Array, "B T D"]:
  """The output projection and the feed-forward of a layer, each added to its input."""
  D = cfg.width
  x = x + jnp.matmul(heads.reshape(*x.shape[:2], -1), w["out"].reshape(-1, D))
  with jax.named_scope("feed_forward"):
    y = decoder.rms_norm(x, w["mlp_norm"], cfg.norm_eps)
    if cfg.moe is not None:
      return x + experts(y, w, cfg.moe, mask)
    # Not reshaped to one matrix: its columns lie over the tensor axis, and would be gathered for it at every token.
    y = jnp.tensordot(y, w["gate_up"], axes=1)
    return x + (jax.nn.silu(y[..., 0, :]) * y[..., 1, :]) @ w["down"]


def logits(w: Weights, x: Float[Array, "B D"], vocab: int) -> Float[Array, "B V"]:
  """fp32 logits; ids at or above `vocab` get -inf. Not cut off: the rest would no longer lie evenly over devices."""
  every = jnp.einsum("bd,vd->bv", x, w.head, preferred_element_type=jnp.float32)
  return every if vocab == w.head.shape[0] else jnp.where(jnp.arange(w.head.shape[0]) < vocab, every, -jnp.inf)
