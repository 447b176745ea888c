"""A decoder-only transformer: each architecture that hf_config.py has a row for is one `DecoderConfig`.

Parameters are a plain pytree with the layers stacked on the first axis, so that training can scan
over them and shard them; `unstack` gives the token loop one pytree per layer.

Dimensions: B batch, T positions, L layers, D model width, N query heads, K key/value heads,
G = N / K query heads per key/value head, h head width, F feed-forward width, E experts, V vocabulary; p prompts of width P
with n responses of width H each.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from opd_jax.models import delta_net, layer_kinds, moe, vision
from opd_jax.models import images as placed
from opd_jax.models.attention import PromptGroup, attend_bidirectional, attend_causal, positions_of
from opd_jax.models.decoder_config import NORMS, DecoderConfig
from opd_jax.models.delta_net import DeltaNet
from opd_jax.models.layer_kinds import LayerKind
from opd_jax.models.linear import linear, rms_norm
from opd_jax.models.quantise import dense
from opd_jax.models.rope import RopeScaling, rotate
from opd_jax.types import Images, Params

__all__ = ["DeltaNet", "LayerKind", "RopeScaling", "positions_of", "rotate"]

REMAT = {  # what a layer saves for the backward pass beside its input
  "none": None,  # everything: it is not checkpointed
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # products with weights; attention is run again
  "layer": None,  # nothing: the layer is run again
}

ACTIVATIONS = {"silu": jax.nn.silu, "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True)}


def shapes(cfg: DecoderConfig) -> Params:
  """The shape of every parameter, as a pytree of tuples."""
  L, D, F = cfg.layers, cfg.d_model, cfg.ff_width
  N, K, h = cfg.heads, cfg.kv_heads, cfg.head_width
  A = len(cfg.holders("q"))
  layers = {
    "q": (A, D, N, 2 * h if cfg.gated_attention else h),
    "k": (A, D, K, h),
    "v": (A, D, K, h),
    "o": (A, N, h, D),
  }
  if cfg.delta is not None:
    layers |= {name: (L - A, *shape) for name, shape in cfg.delta.shapes(D).items()}
  layers |= dict.fromkeys(NORMS[cfg.norms], (L, D))
  if cfg.moe is None:
    layers |= {"gate": (L, D, F), "up": (L, D, F), "down": (L, F, D)}
  else:
    E = cfg.moe.experts
    layers |= {"router": (L, D, E)}
    layers |= {"experts_gate": (L, E, D, F), "experts_up": (L, E, D, F), "experts_down": (L, E, F, D)}
  if cfg.qk_norm:
    layers |= {"q_norm": (A, N, h), "k_norm": (A, K, h)} if cfg.whole_qk_norm else {"q_norm": (A, h), "k_norm": (A, h)}
  if cfg.qkv_bias:
    layers |= {"q_bias": (A, N, h), "k_bias": (A, K, h), "v_bias": (A, K, h)}
  if cfg.out_bias:
    layers |= {"o_bias": (A, D)}
  tree: Params = {"embed": (cfg.vocab, D), "layers": layers, "norm": (D,)}
  if not cfg.tied:
    tree["head"] = (cfg.vocab, D)
  if cfg.tower is not None:
    tree["vision"] = vision.shapes(cfg.tower)
  return tree


def init(cfg: DecoderConfig, key: jax.Array, scale: float = 0.02) -> Params:
  """Draw random fp32 parameters: normal(0, scale), output projections scaled down by sqrt(2 L), norms at one."""
  if cfg.tower is not None:
    blind, of_tower = dataclasses.replace(cfg, tower=None), jax.random.fold_in(key, 1)
    return init(blind, key, scale) | {"vision": vision.init(cfg.tower, of_tower, scale)}
  is_shape = lambda x: isinstance(x, tuple)
  leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes(cfg), is_leaf=is_shape)

  def draw(path, shape, key):
    name = path[-1].key
    if name in delta_net.DRAWN:
      return delta_net.DRAWN[name](key, shape)
    if "norm" in name:
      return jnp.full(shape, 0.0 if cfg.zero_centred_norms else 1.0, jnp.float32)
    if "bias" in name:
      return jnp.zeros(shape, jnp.float32)
    std = scale / math.sqrt(2 * cfg.layers) if name in ("o", "down", "experts_down", "delta_out") else scale
    return std * jax.random.normal(key, shape, jnp.float32)

  keys = jax.random.split(key, len(leaves))
  return jax.tree.unflatten(treedef, [draw(p, s, k) for (p, s), k in zip(leaves, keys, strict=True)])


def hidden(
  params: Params,
  cfg: DecoderConfig,
  tokens: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  *,
  dtype: DTypeLike = jnp.float32,
  remat: str = "none",
  attention_fn=attend_causal,
  moe_fn=moe.reference,
  embed_fn=None,
  group: PromptGroup | None = None,
  images: Images | None = None,
) -> Float[Array, "B T D"]:
  """Compute the final normed hidden states; `unembed` turns the positions of interest into logits.

  Args:
    params: the layers' matrices may be int8, see quantise.py; each layer is made dense when the scan reaches it.
    mask: true on real tokens. Padding may stand on either side: it is never attended to and takes no position.
    dtype: compute type of the matrix products; norms, softmax and rotary angles are fp32.
    remat: what the backward pass computes again, a key of REMAT.
    attention_fn: causal attention over whole sequences, see attention.py and kernels.py; a model that is not causal has its own.
    moe_fn: the mixture of experts, where there is one, see moe.py.
    embed_fn: the embedding; None: `embed`, and on a mesh see lookup.py.
    group: how the sequences are laid out, where they are prompts with several responses each.
    images: those of the prompts, which the sequences begin with; None: there are none.

  Raises:
    ValueError: a `group` of a model that is not causal, whose prompts read their responses.
  """
  if not cfg.causal:
    if group is not None:
      raise ValueError("a prompt that reads its response stands once for one response only")
    attention_fn = attend_bidirectional
  if images is not None:
    images = placed.encoded(params.get("vision"), cfg.tower, images, dtype, remat != "none")
    positions = placed.positions(images, tokens.shape[1], group)
  else:
    positions = positions_of(mask) if group is None else group.positions(mask)
  attend = attention_fn if group is None else functools.partial(attention_fn, group=group)
  differ, of_layer = by_layer(cfg, positions, tokens.shape[1] if group is None else group.prompt + group.response)
  if images is not None and images.taps is not None and images.taps.shape[1]:
    differ["number"] = jnp.arange(cfg.layers, dtype=jnp.int32)

  def layer(mixer: str, x: Array, w: Params, own: dict[str, Array]) -> Array:
    w, (rope, options) = dense(w, dtype), of_layer(own)
    with jax.named_scope(mixer):
      if mixer == "delta":
        x = x + gated_delta(x, w, cfg, mask, group)
      else:
        q, k, v, gate = qkv(x, w, cfg, rope)
        x = x + project_out(attend(q, k, v, mask, **options), gate, w, cfg)
    x = x + feed_forward(x, w, cfg, mask, moe_fn)
    return placed.add_tap(x, images, own["number"]) if images is not None and "number" in own else x

  def block(x: Array, w_and_own: tuple[Params, dict[str, Array]]) -> tuple[Array, None]:
    for of_one, own, kind in zip(*map(functools.partial(unblocked, cfg), w_and_own), cfg.kinds, strict=False):
      run = functools.partial(layer, kind.mixer)
      if remat != "none":
        run = jax.checkpoint(run, prevent_cse=False, policy=REMAT[remat])
      x = run(x, of_one, own)
    return x, None

  x = scale_embedding((embed_fn or embed)(params, tokens, dtype), cfg)
  x = x if images is None else placed.insert(x, images)
  blocks = cfg.layers // cfg.block
  x, _ = lax.scan(block, x, blocked((params["layers"], differ), blocks), unroll=blocks if cfg.layers <= 4 else 1)
  return norm(x, params["norm"], cfg)


def by_layer(cfg: DecoderConfig, positions: Int[Array, "B T"] | Int[Array, "B T 3"], longest: int):
  """The rotary tables of each layer and how far it sees, as `layer_kinds.scanned` returns it."""
  return layer_kinds.scanned(cfg.kinds, cfg.ropes(positions), cfg.rope_of, longest)


def response_hidden(
  params: Params,
  cfg: DecoderConfig,
  prompt: Int[Array, "p P"],
  prompt_mask: Bool[Array, "p P"],
  response: Int[Array, "B H"],
  response_mask: Bool[Array, "B H"],
  **hidden_options,
) -> Float[Array, "B H D"]:
  """Compute the hidden states that predict each response token, so state i belongs to `response[:, i]`.

  The first response token is predicted by the last prompt token; the last response token predicts nothing
  that is kept, and is not run. Alignment is by response index: any prompt of any length gives the same layout.
  A prompt is read once for its responses, B = p n: the rows of each prompt are neighbours.

  Args:
    hidden_options: keyword arguments of `hidden`.
  """
  (p, P), (B, H) = prompt.shape, response.shape
  n, R = B // p, H - 1
  behind = lambda a: a[:, :-1].reshape(p, n * R)
  tokens = jnp.concatenate([prompt, behind(response)], axis=1)
  mask = jnp.concatenate([prompt_mask, behind(response_mask)], axis=1)
  if n == 1:
    return hidden(params, cfg, tokens, mask, **hidden_options)[:, P - 1 :]
  x = hidden(params, cfg, tokens, mask, group=PromptGroup(P, n, R) if R else None, **hidden_options)
  first = jnp.repeat(x[:, P - 1], n, axis=0)[:, None]
  return jnp.concatenate([first, x[:, P:].reshape(B, R, x.shape[-1])], axis=1)


def canvas_hidden(
  params: Params,
  cfg: DecoderConfig,
  prompt: Int[Array, "B P"],
  prompt_mask: Bool[Array, "B P"],
  canvas: Int[Array, "B H"],
  **hidden_options,
) -> Float[Array, "B H D"]:
  """Compute the hidden states of a masked diffusion model that predict each position of a response.

  Args:
    canvas: the response, with the mask's id wherever there is no token yet; all of its positions are real.
    hidden_options: keyword arguments of `hidden`.
  """
  tokens = jnp.concatenate([prompt, canvas], axis=1)
  mask = jnp.concatenate([prompt_mask, jnp.ones(canvas.shape, bool)], axis=1)
  first = prompt.shape[1] - cfg.shifted
  return hidden(params, cfg, tokens, mask, **hidden_options)[:, first : first + canvas.shape[1]]


def unembed(params: Params, x: Float[Array, "*b D"]) -> Float[Array, "*b V"]:
  """Project hidden states to fp32 logits."""
  return jnp.einsum("...d,vd->...v", x, head(params).astype(x.dtype), preferred_element_type=jnp.float32)


def head(params: Params) -> Float[Array, "V D"]:
  """The output head, which is the embedding where `DecoderConfig.tied`."""
  return params["head"] if "head" in params else params["embed"]


def embed(params: Params, tokens: Int[Array, "*b"], dtype: DTypeLike) -> Float[Array, "*b D"]:
  """Look up the embedding of each token."""
  return params["embed"][tokens].astype(dtype)


def scale_embedding(x: Float[Array, "*b D"], cfg: DecoderConfig) -> Float[Array, "*b D"]:
  """Multiply what was looked up by sqrt(D), in its own type, where the model does."""
  return x * jnp.asarray(math.sqrt(cfg.d_model), x.dtype) if cfg.scaled_embedding else x


def unstack(layers: Params, cfg: DecoderConfig) -> list[Params]:
  """Split stacked layers into one pytree per layer, for loops that would pay for the slice at every token."""
  return _split(layers, cfg, range(cfg.layers))


def _split(layers: Params, cfg: DecoderConfig, which: range) -> list[Params]:
  """Split what is stacked of these layers, the first ones; each has the parameters that its kind has."""
  found: list[Params] = [{} for _ in which]
  for name, stacked in layers.items():
    for place, i in enumerate(i for i in cfg.holders(name) if i in which):
      found[i][name] = jax.tree.map(lambda a, place=place: a[place], stacked)
  return found


def blocked(tree: Any, blocks: int) -> Any:
  """Stack by blocks of layers what is stacked by layers, to be scanned."""
  return jax.tree.map(lambda a: a.reshape(blocks, -1, *a.shape[1:]), tree)


def unblocked(cfg: DecoderConfig, of_block: Params) -> list[Params]:
  """Split one block of what `blocked` has stacked into its layers."""
  return _split(of_block, cfg, range(cfg.block))


def norm(x: Float[Array, "*b D"], scale: Float[Array, " D"], cfg: DecoderConfig) -> Float[Array, "*b D"]:
  """Apply a norm of the model."""
  return rms_norm(x, 1.0 + scale.astype(jnp.float32) if cfg.zero_centred_norms else scale, cfg.norm_eps)


def norm_of_layer(x: Float[Array, "*b D"], w: Params, name: str, cfg: DecoderConfig) -> Float[Array, "*b D"]:
  """Apply the layer's norm of that name, where it has one."""
  return norm(x, w[name], cfg) if name in w else x


def norm_heads(
  x: Float[Array, "B T *n h"], scale: Float[Array, "*m h"], cfg: DecoderConfig
) -> Float[Array, "B T *n h"]:
  """Apply the norm of queries or keys, within each head or over all heads at once."""
  if not cfg.whole_qk_norm:
    return norm(x, scale, cfg)
  return norm(x.reshape(*x.shape[:2], -1), scale.reshape(-1), cfg).reshape(x.shape)


def scale_queries(q: Float[Array, "B T *n h"], cfg: DecoderConfig) -> Float[Array, "B T *n h"]:
  """Scale queries so that scores, which attention divides by sqrt(h), are divided by sqrt(`query_scalar`)."""
  if cfg.query_scalar is None or cfg.query_scalar == cfg.head_width:
    return q
  return q * jnp.asarray(math.sqrt(cfg.head_width / cfg.query_scalar), q.dtype)


def qkv(x: Float[Array, "B T D"], w: Params, cfg: DecoderConfig, rope: tuple[Array, Array]):
  """Norm and project x, and rotate the result: queries [B, T, N, h], keys and values [B, T, K, h], the gate as queries or None."""
  with jax.named_scope("qkv"):
    x = norm_of_layer(x, w, "attn_norm", cfg)
    by_head = lambda name: linear(x, w, name, cfg.adapter_scale).reshape(*x.shape[:2], -1, w[name].shape[-1])
    q, k, v = map(by_head, "qkv")
    q, gate = jnp.split(q, 2, axis=-1) if cfg.gated_attention else (q, None)
    if cfg.qkv_bias:
      q, k, v = q + w["q_bias"], k + w["k_bias"], v + w["v_bias"]
    if cfg.qk_norm:
      q, k = norm_heads(q, w["q_norm"], cfg), norm_heads(k, w["k_norm"], cfg)
    return scale_queries(rotate(q, rope), cfg), rotate(k, rope), v, gate


def gated_delta(
  x: Float[Array, "B T D"],
  w: Params,
  cfg: DecoderConfig,
  mask: Bool[Array, "B T"],
  group: PromptGroup | None = None,
) -> Float[Array, "B T D"]:
  """Norm x and apply the gated delta rule, which stands in the place of attention, to whole sequences."""
  y = norm_of_layer(x, w, "attn_norm", cfg)
  return delta_net.mix_sequences(y, w, cfg.delta, mask, group, cfg.norm_eps, cfg.adapter_scale)


def project_out(
  x: Float[Array, "B T N h"], gate: Float[Array, "B T N h"] | None, w: Params, cfg: DecoderConfig
) -> Float[Array, "B T D"]:
  """Join the heads of the attention's output, gated, and project them to the model width; a norm behind is applied too."""
  x = x if gate is None else x * jax.nn.sigmoid(gate)
  y = linear(x.reshape(*x.shape[:2], -1), w, "o", cfg.adapter_scale)
  return norm_of_layer(y + w["o_bias"] if cfg.out_bias else y, w, "attn_out_norm", cfg)


def feed_forward(
  x: Float[Array, "B T D"], w: Params, cfg: DecoderConfig, mask: Bool[Array, "B T"], moe_fn=moe.reference
) -> Float[Array, "B T D"]:
  """Apply the layer's norms and its gated feed-forward, or its mixture of experts where the config has one."""
  with jax.named_scope("feed_forward"):
    x = norm_of_layer(x, w, "mlp_norm", cfg)
    if cfg.moe is not None:
      return moe_fn(x, w, cfg.moe, mask)
    gated = ACTIVATIONS[cfg.activation](linear(x, w, "gate", cfg.adapter_scale)) * linear(x, w, "up", cfg.adapter_scale)
    return norm_of_layer(linear(gated, w, "down", cfg.adapter_scale), w, "mlp_out_norm", cfg)
