"""Key/value caches and the decoder steps that read and write them.

A prompt's keys and values are kept once, for all of its rollouts, and each rollout has a cache of its own behind them; a
decode step attends to both. The only rollout of a prompt has one cache for both. A layer of the gated delta rule has a state instead, which each
rollout takes over from its prompt. Keys are stored transposed, [B, K, h, S], so that a decode step is two plain batched matrix products; one array per
layer, so that writing one token never copies another layer's cache. What the token loop would compute again at every
token is computed before it: the weights in the compute type, layer by layer and joined where they have the same input,
and the rotary angles of every position.

Dimensions: p prompts, n rollouts of each, B = p n rows, T tokens, P prompt length, S cache length, D model width, N query heads, K key/value heads,
G = N / K, h head width, F feed-forward width, V vocabulary.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from opd_jax.models import decoder, delta_net, delta_rule, layer_kinds, lora, moe
from opd_jax.models import images as placed
from opd_jax.models.attention import NEVER, attend_causal
from opd_jax.models.delta_net import DeltaState
from opd_jax.types import Images, Params


class LayerCache(NamedTuple):
  """The keys and values of one layer."""

  k: Float[Array, "B K h S"]
  v: Float[Array, "B K S h"]

  @property
  def length(self) -> int:
    """The number of slots, S."""
    return self.v.shape[2]

  def of_rows(self, n: int) -> "LayerCache":
    """Make a cache without slots for n rows behind each: they read this one besides."""
    (rows, K, h), dtypes = self.k.shape[:3], (self.k.dtype, self.v.dtype)
    return LayerCache(jnp.zeros((n * rows, K, h, 0), dtypes[0]), jnp.zeros((n * rows, K, 0, h), dtypes[1]))

  def grow(self, length: int) -> "LayerCache":
    """Append empty slots up to `length`. This copies the cache: call it between token loops, never inside one."""
    added = length - self.length
    return LayerCache(
      jnp.pad(self.k, ((0, 0), (0, 0), (0, 0), (0, added))), jnp.pad(self.v, ((0, 0), (0, 0), (0, added), (0, 0)))
    )


Cache = LayerCache | DeltaState  # of one layer


class PromptCaches(NamedTuple):
  """The part of a rollout's context that it shares with the other rollouts of its prompt."""

  mask: Bool[Array, "p P"]  # true on real tokens
  layers: list[Cache]  # of P slots, one per layer; none where the rows' own caches begin with them


class DecodeParams(NamedTuple):
  """A model's weights in the rollout layout: one pytree per layer, in the compute type."""

  embed: Float[Array, "V D"]
  head: Float[Array, "V D"]
  norm: Float[Array, " D"]
  layers: list[Params]
  vision: Params | None = None  # the tower's, where the model has it with it


def prepare_decode_params(params: Params, cfg: decoder.DecoderConfig, dtype: DTypeLike) -> DecodeParams:
  """Cast, unstack and join the weights, adapters included. Call it once per rollout, before the token loop."""
  cast = lambda tree: jax.tree.map(lambda a: a.astype(dtype), tree)
  return DecodeParams(
    embed=cast(params["embed"]),
    head=cast(decoder.head(params)),
    norm=params["norm"],
    layers=[join(cast(lora.merge_layer(w, cfg.adapter_scale)), cfg) for w in decoder.unstack(params["layers"], cfg)],
    vision=cast(params["vision"]) if "vision" in params else None,
  )


def join(w: Params, cfg: decoder.DecoderConfig) -> Params:
  """Join a layer's matrices that have the same input, the heads of a group together.

  Where `cfg` has more key/value heads than the weights, each of them is repeated (mesh.for_rollout).

  Returns:
    The layer with `qkv` [D, K, G + 2, h], `gate_up` [D, 2, F] and `out` [K, G, h, D]; gates stand behind the queries, 2 G in the place
    of G. A layer of the delta rule has `gate_up` alone.
  """
  K, h = cfg.kv_heads, cfg.head_width
  by_group = lambda a: jnp.repeat(a, K // min(a.shape[-2], K), axis=-2).reshape(*a.shape[:-2], K, -1, h)
  parts = lambda name: jnp.split(w[name], 2, axis=-1) if name == "q" and cfg.gated_attention else [w[name]]
  join_qkv = lambda suffix: jnp.concatenate([by_group(a) for name in "qkv" for a in parts(name + suffix)], axis=-2)
  kept = ("down", *moe.PARAMETERS)
  layer = {name: a for name, a in w.items() if "norm" in name or name in kept or name.startswith("delta_")}
  if cfg.moe is None:
    layer["gate_up"] = jnp.stack([w["gate"], w["up"]], axis=1)
  if "q" not in w:
    return layer
  layer |= {"qkv": join_qkv(""), "out": w["o"].reshape(K, -1, h, cfg.d_model)}
  if cfg.qkv_bias:
    layer["qkv_bias"] = join_qkv("_bias")
  if cfg.out_bias:
    layer["o_bias"] = w["o_bias"]
  if cfg.whole_qk_norm:
    layer |= {"q_norm": w["q_norm"].reshape(K, -1, h), "k_norm": by_group(w["k_norm"])[:, 0]}
  return layer


def prefill(
  w: DecodeParams,
  cfg: decoder.DecoderConfig,
  tokens: Int[Array, "p P"],
  mask: Bool[Array, "p P"],
  attention_fn=attend_causal,
  moe_fn=moe.reference,
  images: Images | None = None,
) -> tuple[Float[Array, "p D"], PromptCaches]:
  """Run the model on left-padded prompts.

  Args:
    attention_fn: attention over whole prompts, see attention.py and kernels.py.
    moe_fn: the mixture of experts, where there is one, see moe.py.
    images: those of the prompts; None: there are none.

  Returns:
    The last position's final hidden state, which predicts the first response token, and the prompts' caches.
  """
  P = tokens.shape[1]
  if images is not None:
    images = placed.encoded(w.vision, cfg.tower, images, w.embed.dtype)
  ropes = cfg.ropes(decoder.positions_of(mask) if images is None else placed.positions(images, P, None))
  x = decoder.scale_embedding(w.embed[tokens], cfg)
  x = x if images is None else placed.insert(x, images)
  caches: list[Cache] = []
  for number, (layer, kind, i) in enumerate(zip(w.layers, cfg.kinds, cfg.rope_of, strict=True)):
    if kind.mixer == "delta":
      y, state = mix(x, layer, cfg, mask=mask)
      caches.append(state)
    else:
      q, k, v, gate = qkv(x, layer, cfg, ropes[i])
      caches.append(LayerCache(k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)))
      window = layer_kinds.binding_window(kind, P)
      options = {} if window is None else {"window": window}
      y = project_out(attention_fn(q.reshape(*tokens.shape, cfg.heads, -1), k, v, mask, **options), gate, layer, cfg)
    x = feed_forward(x + y, layer, cfg, moe_fn, mask)
    x = x if images is None else placed.add_tap(x, images, number)
  return decoder.norm(x[:, -1], w.norm, cfg), PromptCaches(mask, caches)


def decode(
  w: DecodeParams,
  cfg: decoder.DecoderConfig,
  tokens: Int[Array, " B"],
  ropes: list[tuple[Array, Array]],
  slot: Int[Array, ""],
  prompts: PromptCaches,
  caches: list[Cache],
  moe_fn=moe.reference,
) -> tuple[Float[Array, "B D"], list[Cache]]:
  """Run the model on one token per row, which takes slot `slot` of the row's own cache.

  Args:
    ropes: cosines and sines at the tokens' positions, [B, 1, 1, h/2] each, as `DecoderConfig.ropes` lists them; rows of
      different prompt length differ.
    prompts: of the rows, n neighbours each.
    caches: the rows' own, filled below `slot`, one per layer; where `prompts` has none, the first P slots are the prompt's.

  Returns:
    The final hidden state, which predicts the next token, and the caches with this one.
  """
  x = decoder.scale_embedding(w.embed[tokens][:, None], cfg)
  length, P = max(cache.length for cache in caches), prompts.mask.shape[1]
  visible = filled = jnp.arange(length) <= slot
  if not prompts.layers:  # a row's own cache begins with the prompt, and its padding
    visible = filled & jnp.pad(prompts.mask, ((0, 0), (0, length - P)), constant_values=True)
  longest = length + (P if prompts.layers else 0)
  written: list[Cache] = []
  rope_of = cfg.rope_of
  for i, (layer, cache, kind) in enumerate(zip(w.layers, caches, cfg.kinds, strict=True)):
    if isinstance(cache, DeltaState):
      y, state = mix(x, layer, cfg, before=cache, rule=delta_rule.recurrent)
      written.append(state)
      x = feed_forward(x + y, layer, cfg, moe_fn)
      continue
    q, k, v, gate = qkv(x, layer, cfg, ropes[rope_of[i]])
    k = lax.dynamic_update_slice_in_dim(cache.k, k.transpose(0, 2, 3, 1), slot, axis=3)
    v = lax.dynamic_update_slice_in_dim(cache.v, v.transpose(0, 2, 1, 3), slot, axis=2)
    written.append(own := LayerCache(k, v))
    near = window_of_slots(layer_kinds.binding_window(kind, longest), slot)
    if prompts.layers:
      of_prompt = prompts.layers[i]
      assert isinstance(of_prompt, LayerCache)
      heads = attend_to_both(q[:, 0], of_prompt, near(prompts.mask, -P), own, near(filled, 0))
    else:
      heads = attend_cached(q[:, 0], own, near(visible, 0))
    x = feed_forward(x + project_out(heads[:, None], gate, layer, cfg), layer, cfg, moe_fn)
  return decoder.norm(x[:, 0], w.norm, cfg), written


def window_of_slots(window: int | None, slot: Int[Array, ""]):
  """Build a function that takes out of a mask of slots, of which the first is given, what is too far from `slot`.

  Prompts are padded on the left, so slots are as far from each other as their tokens are; where a prompt has a cache of
  its own, its slots are the ones before slot 0.
  """

  def near(visible: Bool[Array, "*b S"], first: int) -> Bool[Array, "*b S"]:
    if window is None:
      return visible
    return visible & (slot - first - jnp.arange(visible.shape[-1]) < window)

  return near


def attend_cached(
  q: Float[Array, "B K G h"], cache: LayerCache, visible: Bool[Array, "B S"]
) -> Float[Array, "B K G h"]:
  """Compute softmax attention over one cache for every row; scores and softmax are fp32, the output has the values' type."""
  scores = jnp.where(visible[:, None, None], _scores(q, cache), NEVER)
  weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
  total = jnp.sum(weights, axis=-1, keepdims=True)
  return (_weighted(weights, cache) / total).astype(cache.v.dtype)


def attend_to_both(
  q: Float[Array, "B K G h"],
  prompt: LayerCache,
  in_prompt: Bool[Array, "p P"],
  own: LayerCache,
  filled: Bool[Array, " S"],
) -> Float[Array, "B K G h"]:
  """Compute what `attend_cached` does over the prompt of each row and its own cache together.

  The queries of a prompt's rows are rows of one matrix product, so that the prompt is read once for all of them.
  """
  (B, K, G, _), p = q.shape, len(in_prompt)
  by_prompt = lambda a: a.reshape(p, B // p, K, G, -1).swapaxes(1, 2).reshape(p, K, B // p * G, -1)
  by_row = lambda a: a.reshape(p, K, B // p, G, -1).swapaxes(1, 2).reshape(B, K, G, -1)
  to_prompt = jnp.where(in_prompt[:, None, None], _scores(by_prompt(q), prompt), NEVER)
  to_own = jnp.where(filled, _scores(q, own), NEVER)
  top = jnp.maximum(by_row(jnp.max(to_prompt, axis=-1, keepdims=True)), jnp.max(to_own, axis=-1, keepdims=True))
  to_prompt, to_own = jnp.exp(to_prompt - by_prompt(top)), jnp.exp(to_own - top)
  total = by_row(jnp.sum(to_prompt, axis=-1, keepdims=True)) + jnp.sum(to_own, axis=-1, keepdims=True)
  return ((by_row(_weighted(to_prompt, prompt)) + _weighted(to_own, own)) / total).astype(own.v.dtype)


def _scores(q: Float[Array, "b K g h"], cache: LayerCache) -> Float[Array, "b K g S"]:
  return jnp.matmul(q, cache.k, preferred_element_type=jnp.float32) / math.sqrt(q.shape[-1])


def _weighted(weights: Float[Array, "b K g S"], cache: LayerCache) -> Float[Array, "b K g h"]:
  return jnp.matmul(weights.astype(cache.v.dtype), cache.v, preferred_element_type=jnp.float32)


def qkv(x: Float[Array, "B T D"], w: Params, cfg: decoder.DecoderConfig, rope: tuple[Array, Array]):
  """Compute what `decoder.qkv` does by one matrix product: queries and gate [B, T, K, G, h], keys and values [B, T, K, h]."""
  with jax.named_scope("qkv"):
    x = decoder.norm_of_layer(x, w, "attn_norm", cfg)
    y = jnp.matmul(x, w["qkv"].reshape(cfg.d_model, -1)).reshape(*x.shape[:2], *w["qkv"].shape[1:])
    if cfg.qkv_bias:
      y = y + w["qkv_bias"]
    q, k, v, gate = y[..., :-2, :], y[..., -2, :], y[..., -1, :], None
    if cfg.gated_attention:
      q, gate = jnp.split(q, 2, axis=-2)
    if cfg.qk_norm:
      q, k = decoder.norm_heads(q, w["q_norm"], cfg), decoder.norm_heads(k, w["k_norm"], cfg)
    cos, sin = rope
    q = decoder.rotate(q, (cos[..., None, :], sin[..., None, :]))
    return decoder.scale_queries(q, cfg), decoder.rotate(k, rope), v, gate


def project_out(
  heads: Float[Array, "B T *heads h"], gate: Float[Array, "B T K G h"] | None, w: Params, cfg: decoder.DecoderConfig
) -> Float[Array, "B T D"]:
  """Compute what `decoder.project_out` does with the joined weights."""
  heads = heads if gate is None else heads * jax.nn.sigmoid(gate).reshape(heads.shape)
  y = jnp.matmul(heads.reshape(*heads.shape[:2], -1), w["out"].reshape(-1, cfg.d_model))
  return decoder.norm_of_layer(y + w["o_bias"] if cfg.out_bias else y, w, "attn_out_norm", cfg)


def mix(x: Float[Array, "B T D"], w: Params, cfg: decoder.DecoderConfig, **options) -> tuple[Array, DeltaState]:
  """Apply the gated delta rule of a layer behind its norm; `options` are those of `delta_net.mix`."""
  assert cfg.delta is not None
  with jax.named_scope("delta"):
    return delta_net.mix(decoder.norm_of_layer(x, w, "attn_norm", cfg), w, cfg.delta, cfg.norm_eps, **options)


def feed_forward(
  x: Float[Array, "B T D"],
  w: Params,
  cfg: decoder.DecoderConfig,
  moe_fn=moe.reference,
  mask: Bool[Array, "B T"] | None = None,
) -> Float[Array, "B T D"]:
  """Apply the feed-forward of a layer, added to its input."""
  with jax.named_scope("feed_forward"):
    y = decoder.norm_of_layer(x, w, "mlp_norm", cfg)
    if cfg.moe is not None:
      return x + moe_fn(y, w, cfg.moe, mask)
    # Not reshaped to one matrix: its columns lie over the tensor axis, and would be gathered for it at every token.
    y = jnp.tensordot(y, w["gate_up"], axes=1)
    y = (decoder.ACTIVATIONS[cfg.activation](y[..., 0, :]) * y[..., 1, :]) @ w["down"]
    return x + decoder.norm_of_layer(y, w, "mlp_out_norm", cfg)


def logits(w: DecodeParams, x: Float[Array, "B D"], vocab: int) -> Float[Array, "B V"]:
  """Compute fp32 logits; ids at or above `vocab` get -inf.

  They are not cut off, since the ids would then no longer lie evenly over devices.
  """
  V = w.head.shape[0]
  all_logits = jnp.einsum("bd,vd->bv", x, w.head, preferred_element_type=jnp.float32)
  return all_logits if vocab == V else jnp.where(jnp.arange(V) < vocab, all_logits, -jnp.inf)
