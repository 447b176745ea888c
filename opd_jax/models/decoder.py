"""A decoder-only transformer: Qwen3, Qwen3-MoE, Qwen2.5 and Llama-3 are one `DecoderConfig` each.

Parameters are a plain pytree with the layers stacked on the first axis, so that training can scan
over them and shard them; `unstack` gives the token loop one pytree per layer.

Dimensions: B batch, T positions, L layers, D model width, N query heads, K key/value heads,
G = N / K query heads per key/value head, h head width, F feed-forward width, E experts, V vocabulary.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from opd_jax.models import moe
from opd_jax.models.attention import attend_causal
from opd_jax.models.moe import MoE
from opd_jax.models.quantise import dense
from opd_jax.types import Params

REMAT = {  # what a layer keeps for the backward pass beside its input; "none": everything
  "none": None,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # products with weights; attention again
  "layer": None,  # nothing: the whole layer again
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Llama-3's frequency scaling: long wavelengths are stretched by `factor`, short ones kept."""

  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_positions: int


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  vocab: int
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_width: int
  ff_width: int  # of one expert where there are several
  rope_theta: float = 10_000.0
  rope_scaling: RopeScaling | None = None
  norm_eps: float = 1e-6
  qk_norm: bool = False  # Qwen3
  qkv_bias: bool = False  # Qwen2.5
  tied: bool = True  # the output head is the embedding
  max_positions: int = 32_768
  moe: MoE | None = None  # every layer's feed-forward part is a mixture of experts
  adapter_scale: float = 1.0  # of the low-rank adapters that the parameters may hold, see lora.py

  def __post_init__(self):
    if self.heads % self.kv_heads:
      raise ValueError(f"{self.heads} query heads cannot share {self.kv_heads} key/value heads evenly")


def shapes(cfg: DecoderConfig) -> Params:
  """The shape of every parameter, as a pytree of tuples."""
  L, D, N, K, h, F = cfg.layers, cfg.width, cfg.heads, cfg.kv_heads, cfg.head_width, cfg.ff_width
  layers = {
    "attn_norm": (L, D),
    "q": (L, D, N, h),
    "k": (L, D, K, h),
    "v": (L, D, K, h),
    "o": (L, N, h, D),
    "mlp_norm": (L, D),
  }
  if cfg.moe is None:
    layers |= {"gate": (L, D, F), "up": (L, D, F), "down": (L, F, D)}
  else:
    E = cfg.moe.experts
    layers |= {"router": (L, D, E)}
    layers |= {"experts_gate": (L, E, D, F), "experts_up": (L, E, D, F), "experts_down": (L, E, F, D)}
  if cfg.qk_norm:
    layers |= {"q_norm": (L, h), "k_norm": (L, h)}
  if cfg.qkv_bias:
    layers |= {"q_bias": (L, N, h), "k_bias": (L, K, h), "v_bias": (L, K, h)}
  tree: Params = {"embed": (cfg.vocab, D), "layers": layers, "norm": (D,)}
  if not cfg.tied:
    tree["head"] = (cfg.vocab, D)
  return tree


def init(cfg: DecoderConfig, key: jax.Array, scale: float = 0.02) -> Params:
  """Random fp32 parameters: normal(0, scale), output projections scaled down by sqrt(2 L), norms at one."""
  is_shape = lambda x: isinstance(x, tuple)
  leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes(cfg), is_leaf=is_shape)

  def make(path, shape, key):
    name = path[-1].key
    if "norm" in name:
      return jnp.ones(shape, jnp.float32)
    if "bias" in name:
      return jnp.zeros(shape, jnp.float32)
    std = scale / math.sqrt(2 * cfg.layers) if name in ("o", "down", "experts_down") else scale
    return std * jax.random.normal(key, shape, jnp.float32)

  keys = jax.random.split(key, len(leaves))
  return jax.tree.unflatten(treedef, [make(p, s, k) for (p, s), k in zip(leaves, keys, strict=True)])


def hidden(
  params: Params,
  cfg: DecoderConfig,
  tokens: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  *,
  dtype: jnp.dtype = jnp.float32,
  remat: str = "none",
  attend=attend_causal,
  experts=moe.reference,
  look_up=None,
) -> Float[Array, "B T D"]:
  """Final normed hidden states; `unembed` turns the positions of interest into logits.

  Args:
    params: the layers' matrices may be int8, see quantise.py; each layer is made dense when the scan reaches it.
    mask: true on real tokens. Padding may stand on either side: it is never attended to and takes no position.
    dtype: compute type of the matrix products; norms, softmax and rotary angles are fp32.
    remat: what the backward pass computes again, a key of REMAT.
    attend: causal attention over whole sequences, see attention.py and kernels.py.
    experts: the mixture of experts, where there is one, see moe.py.
    look_up: the embedding; None: `embed`, and on a mesh see lookup.py.
  """
  positions = positions_of(mask)
  rope = rope_tables(cfg, positions)

  def layer(x, w):
    w = dense(w, dtype)
    q, k, v = qkv(x, w, cfg, rope)
    with jax.named_scope("attention"):
      x = x + project_out(attend(q, k, v, mask), w, cfg)
    return x + feed_forward(x, w, cfg, mask, experts), None

  if remat != "none":
    layer = jax.checkpoint(layer, prevent_cse=False, policy=REMAT[remat])
  x = (look_up or embed)(params, tokens, dtype)
  x, _ = lax.scan(layer, x, params["layers"], unroll=cfg.layers if cfg.layers <= 4 else 1)
  return rms_norm(x, params["norm"], cfg.norm_eps)


def response_hidden(
  params: Params,
  cfg: DecoderConfig,
  prompt: Int[Array, "B P"],
  prompt_mask: Bool[Array, "B P"],
  response: Int[Array, "B H"],
  response_mask: Bool[Array, "B H"],
  **how,
) -> Float[Array, "B H D"]:
  """Hidden states that predict each response token, so state i belongs to `response[:, i]`.

  The first response token is predicted by the last prompt token; the last response token predicts nothing
  that is kept, and is not run. Alignment is by response index: any prompt of any width gives the same layout.
  """
  P = prompt.shape[1]
  tokens = jnp.concatenate([prompt, response[:, :-1]], axis=1)
  mask = jnp.concatenate([prompt_mask, response_mask[:, :-1]], axis=1)
  return hidden(params, cfg, tokens, mask, **how)[:, P - 1 :]


def unembed(params: Params, x: Float[Array, "*b D"]) -> Float[Array, "*b V"]:
  """Logits in fp32."""
  return jnp.einsum("...d,vd->...v", x, head(params).astype(x.dtype), preferred_element_type=jnp.float32)


def head(params: Params) -> Float[Array, "V D"]:
  return params["head"] if "head" in params else params["embed"]


def embed(params: Params, tokens: Int[Array, "*b"], dtype: jnp.dtype) -> Float[Array, "*b D"]:
  return params["embed"][tokens].astype(dtype)


def unstack(layers: Params, n: int) -> list[Params]:
  """One pytree per layer, for loops in which a slice of stacked weights would be paid at every token."""
  return [jax.tree.map(lambda a, i=i: a[i], layers) for i in range(n)]


def positions_of(mask: Bool[Array, "B T"]) -> Int[Array, "B T"]:
  """Position of every token, counting real tokens only."""
  return jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)


def rope_tables(cfg: DecoderConfig, positions: Int[Array, "B T"]) -> tuple[Array, Array]:
  """Cosine and sine of the rotary angles, f32[B, T, 1, h/2] each."""
  h = cfg.head_width
  freq = cfg.rope_theta ** (-jnp.arange(0, h, 2, dtype=jnp.float32) / h)
  if s := cfg.rope_scaling:
    wavelength = 2 * math.pi / freq
    smooth = (s.original_max_positions / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    smooth = jnp.clip(smooth, 0.0, 1.0)
    freq = (1 - smooth) * freq / s.factor + smooth * freq
  angle = positions[:, :, None, None].astype(jnp.float32) * freq
  return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Float[Array, "B T n h"], rope: tuple[Array, Array]) -> Float[Array, "B T n h"]:
  """Rotary position embedding, halves convention (the first half pairs with the second), in fp32."""
  cos, sin = rope
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def rms_norm(x: Float[Array, "*b D"], scale: Float[Array, "D"], eps: float) -> Float[Array, "*b D"]:
  """Root-mean-square norm over the last axis, in fp32."""
  y = x.astype(jnp.float32)
  y = y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
  return (y * scale.astype(jnp.float32)).astype(x.dtype)


def qkv(x: Float[Array, "B T D"], w: Params, cfg: DecoderConfig, rope: tuple[Array, Array]):
  """Normed, projected and rotated queries [B, T, N, h], keys and values [B, T, K, h]."""
  with jax.named_scope("qkv"):
    x = rms_norm(x, w["attn_norm"], cfg.norm_eps)
    by_head = lambda name: linear(x, w, name, cfg).reshape(*x.shape[:2], -1, cfg.head_width)
    q, k, v = map(by_head, "qkv")
    if cfg.qkv_bias:
      q, k, v = q + w["q_bias"], k + w["k_bias"], v + w["v_bias"]
    if cfg.qk_norm:
      q, k = rms_norm(q, w["q_norm"], cfg.norm_eps), rms_norm(k, w["k_norm"], cfg.norm_eps)
    return rotate(q, rope), rotate(k, rope), v


def project_out(x: Float[Array, "B T N h"], w: Params, cfg: DecoderConfig) -> Float[Array, "B T D"]:
  return linear(x.reshape(*x.shape[:2], -1), w, "o", cfg)


def feed_forward(
  x: Float[Array, "B T D"], w: Params, cfg: DecoderConfig, mask: Bool[Array, "B T"], experts=moe.reference
) -> Float[Array, "B T D"]:
  """SwiGLU, or a mixture of several."""
  with jax.named_scope("feed_forward"):
    x = rms_norm(x, w["mlp_norm"], cfg.norm_eps)
    if cfg.moe is not None:
      return experts(x, w, cfg.moe, mask)
    return linear(jax.nn.silu(linear(x, w, "gate", cfg)) * linear(x, w, "up", cfg), w, "down", cfg)


def linear(x: Float[Array, "*b d"], w: Params, name: str, cfg: DecoderConfig) -> Float[Array, "*b f"]:
  """x times a layer's matrix of that name, heads and their width as one axis, and through its adapter if it has one."""
  y = project(x, w[name].reshape(x.shape[-1], -1))
  if (a := w.get(f"{name}_a")) is None:
    return y
  b = w[f"{name}_b"]
  return y + cfg.adapter_scale * project(project(x, a.reshape(x.shape[-1], -1)), b.reshape(b.shape[0], -1))


@jax.custom_vjp
def project(x: Float[Array, "*b d"], w: Float[Array, "d f"]) -> Float[Array, "*b f"]:
  """x @ w, whose backward pass finishes the gradient of the output before it uses it.

  Otherwise XLA on CPU makes that gradient again, column by column, inside the transposition that the weight's gradient
  needs, where it costs more than the product.
  """
  return x @ w


def _project(x, w):
  return x @ w, (x, w)


def _project_back(residuals, d_out):
  x, w = residuals
  d_out = lax.optimization_barrier(d_out)
  rows = lambda a: a.reshape(-1, a.shape[-1])
  return d_out @ w.T, lax.dot_general(rows(x), rows(d_out), (((0,), (0,)), ((), ())))


project.defvjp(_project, _project_back)
