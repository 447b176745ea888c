"""The vision tower of Qwen2.5-VL, Qwen3-VL and Qwen3.5: patches of an image become vectors that stand among a prompt's tokens.

    x = W patch + position;   x += attention(norm(x));   x += feed_forward(norm(x))       each patch sees the others of its image
    feature = W_out gelu(W_in merge(norm(x)))                                            merge: m x m neighbouring patches side by side

Qwen2.5-VL has RMS norms, a gated feed-forward and windows in most layers, and no learned positions. Qwen3-VL has taps besides: what stands
behind some of the tower's layers is merged likewise, and added to the hidden states of the decoder's first layers (DeepStack, arXiv:2406.04334).

Patches stand as transformers' processors have them: the m x m patches of a feature are neighbours, features row by row. All
attention is masked and nothing is reordered, for windows either. A still image fills all frames of a patch alike, so a patch is kept once and
the frames' weights are summed.

Dimensions: I rows of images, S patches, M = S / m^2 features, E tower width, N heads, h head width, F feed-forward width, L layers, K taps, D width
of the decoder, c = channels times patch side squared.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from opd_jax.models import rope
from opd_jax.models.attention import attend_in_blocks
from opd_jax.models.linear import project, rms_norm
from opd_jax.types import Params, Patches

EPS = 1e-6  # of all norms
THETA = 10_000.0  # of the rotary angles


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """The sizes and switches of a tower; hf_vision.py reads one from a config.json."""

  layers: int
  width: int  # E
  heads: int
  ff_width: int
  out_width: int  # D
  patch: int  # side, pixels
  merge: int = 2  # side of a feature, patches
  frames: int = 2  # of a patch
  channels: int = 3
  gated: bool = (
    False  # RMS norms and a gated feed-forward by silu, in the place of layer norms and a GELU; patches have no bias
  )
  grid: int | None = None  # side of the table of learned positions; None: there is none
  window: int | None = None  # side in patches, of the layers that are not in `full`; None: there are none
  full: tuple[int, ...] = ()
  taps: tuple[int, ...] = ()  # the layers behind which there are taps, rising

  @property
  def head_width(self) -> int:
    """h."""
    return self.width // self.heads

  @property
  def pixels(self) -> int:
    """c, the numbers of a patch."""
    return self.channels * self.patch**2

  @property
  def merged(self) -> int:
    """The patches of a feature."""
    return self.merge**2


class Encoded(NamedTuple):
  """What the decoder reads of images."""

  features: Float[Array, "I M D"]
  taps: Float[Array, "I K M D"]


def shapes(cfg: VisionConfig) -> Params:
  """The shape of every parameter, as a pytree of tuples."""
  L, E, N, h, F = cfg.layers, cfg.width, cfg.heads, cfg.head_width, cfg.ff_width
  layers = {
    "vision_norm": (L, E),
    "vision_qkv": (L, E, 3, N, h),
    "vision_qkv_bias": (L, 3, N, h),
    "vision_o": (L, N, h, E),
    "vision_o_bias": (L, E),
    "vision_mlp_norm": (L, E),
    "vision_up": (L, E, F),
    "vision_up_bias": (L, F),
    "vision_down": (L, F, E),
    "vision_down_bias": (L, E),
  }
  if cfg.gated:
    layers |= {"vision_gate": (L, E, F), "vision_gate_bias": (L, F)}
  else:
    layers |= {"vision_norm_bias": (L, E), "vision_mlp_norm_bias": (L, E)}
  tree: Params = {
    "patch": (cfg.channels, cfg.frames, cfg.patch, cfg.patch, E),
    "layers": layers,
    "merger": _merger(cfg, (), E),
  }
  if not cfg.gated:
    tree["patch_bias"] = (E,)
  if cfg.grid is not None:
    tree["position"] = (cfg.grid**2, E)
  if cfg.taps:
    tree["taps"] = _merger(cfg, (len(cfg.taps),), cfg.merged * E)
  return tree


def _merger(cfg: VisionConfig, lead: tuple[int, ...], normed: int) -> Params:
  wide = cfg.merged * cfg.width
  merger = {
    "merge_norm": (*lead, normed),
    "merge_in": (*lead, wide, wide),
    "merge_in_bias": (*lead, wide),
    "merge_out": (*lead, wide, cfg.out_width),
    "merge_out_bias": (*lead, cfg.out_width),
  }
  return merger if cfg.gated else merger | {"merge_norm_bias": (*lead, normed)}


def init(cfg: VisionConfig, key: jax.Array, scale: float = 0.02) -> Params:
  """Draw random fp32 parameters: normal(0, scale), what a layer adds scaled down by sqrt(2 L), biases 0, norms 1."""
  is_shape = lambda x: isinstance(x, tuple)
  leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes(cfg), is_leaf=is_shape)

  def draw(path: Any, shape: tuple[int, ...], key: jax.Array) -> Array:
    name = path[-1].key
    if name.endswith("bias"):
      return jnp.zeros(shape, jnp.float32)
    if name.endswith("norm"):
      return jnp.ones(shape, jnp.float32)
    std = scale / math.sqrt(2 * cfg.layers) if name in ("vision_o", "vision_down") else scale
    return std * jax.random.normal(key, shape, jnp.float32)

  keys = jax.random.split(key, len(leaves))
  return jax.tree.unflatten(treedef, [draw(path, s, k) for (path, s), k in zip(leaves, keys, strict=True)])


def encode(
  params: Params,
  cfg: VisionConfig,
  patches: Patches,
  *,
  dtype: DTypeLike = jnp.float32,
  remat: bool = False,
  block: int = 1024,
) -> Encoded:
  """Compute the features of images, padding's among them, which mean nothing.

  Args:
    params: as `shapes` lists them.
    dtype: of the matrix products; norms, softmax and rotary angles are fp32.
    remat: whether the backward pass runs each layer again.
    block: queries of attention that go through at a time.
  """
  x = _embed(params, cfg, patches, dtype)
  tables = _rope_tables(cfg, patches)
  full = jnp.array([cfg.window is None or i in cfg.full for i in range(cfg.layers)])

  def layer(x: Array, w_and_full: tuple[Params, Array]) -> tuple[Array, None]:
    w, sees_all = w_and_full
    w = jax.tree.map(lambda a: a.astype(dtype), w)
    x = x + _attend(x, w, cfg, patches, tables, sees_all, block)
    return x + _feed_forward(x, w, cfg), None

  run = jax.checkpoint(layer, prevent_cse=False) if remat else layer
  tapped = []
  for first, end in itertools.pairwise((0, *(tap + 1 for tap in cfg.taps), cfg.layers)):
    if first < end:
      x, _ = lax.scan(run, x, jax.tree.map(lambda a, s=slice(first, end): a[s], (params["layers"], full)))
    tapped.append(x)
  taps = [_merge(jax.tree.map(lambda a, i=i: a[i], params["taps"]), cfg, x) for i, x in enumerate(tapped[:-1])]
  features = _merge(params["merger"], cfg, tapped[-1])
  empty = jnp.zeros((features.shape[0], 0, *features.shape[1:]), features.dtype)
  return Encoded(features, jnp.stack(taps, axis=1) if taps else empty)


def _embed(params: Params, cfg: VisionConfig, patches: Patches, dtype: DTypeLike) -> Float[Array, "I S E"]:
  weight = params["patch"].sum(axis=1).reshape(-1, cfg.width)
  x = project(patches.pixels.astype(dtype), weight.astype(dtype))
  if "patch_bias" in params:
    x = x + params["patch_bias"].astype(dtype)
  if cfg.grid is not None:
    x = x + _learned_positions(params["position"], cfg.grid, patches).astype(dtype)
  return x


def _learned_positions(table: Float[Array, "GG E"], grid: int, patches: Patches) -> Float[Array, "I S E"]:
  """Interpolate the table between its entries, so that an image's corners have the table's."""

  def between(at: Int[Array, "I S"], size: Int[Array, "I S"]) -> tuple[Array, Array, Array]:
    place = at.astype(jnp.float32) * (grid - 1) / jnp.maximum(size - 1, 1).astype(jnp.float32)
    below = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, grid - 1)
    return below, jnp.minimum(below + 1, grid - 1), place - below

  above, beneath, down = between(patches.row, patches.size[..., 0])
  left, right, along = between(patches.column, patches.size[..., 1])
  corners = (
    (above, left, (1 - down) * (1 - along)),
    (above, right, (1 - down) * along),
    (beneath, left, down * (1 - along)),
    (beneath, right, down * along),
  )
  table = table.astype(jnp.float32)
  return sum(table[row * grid + column] * share[..., None] for row, column, share in corners)  # pyright: ignore[reportReturnType]


def _rope_tables(cfg: VisionConfig, patches: Patches) -> tuple[Array, Array]:
  """The rotary tables, f32[I, S, 1, h/2] each: half of the angles by row, half by column."""
  freq = rope.frequencies(cfg.head_width // 2, THETA, None)
  by_place = [place[..., None].astype(jnp.float32) * freq for place in (patches.row, patches.column)]
  angle = jnp.concatenate(by_place, axis=-1)[:, :, None, :]
  return jnp.cos(angle), jnp.sin(angle)


def _attend(
  x: Float[Array, "I S E"],
  w: Params,
  cfg: VisionConfig,
  patches: Patches,
  tables: tuple[Array, Array],
  sees_all: Bool[Array, ""],
  block: int,
) -> Float[Array, "I S E"]:
  with jax.named_scope("vision_attention"):
    y = _norm(x, w, "vision_norm", cfg)
    y = project(y, w["vision_qkv"].reshape(cfg.width, -1)) + w["vision_qkv_bias"].reshape(-1)
    q, k, v = jnp.moveaxis(y.reshape(*y.shape[:2], 3, cfg.heads, cfg.head_width), 2, 0)
    visible = functools.partial(_visible, cfg, patches, sees_all)
    out = attend_in_blocks(rope.rotate(q, tables), rope.rotate(k, tables), v, visible, block)
    return project(out.reshape(x.shape), w["vision_o"].reshape(-1, cfg.width)) + w["vision_o_bias"]


def _visible(
  cfg: VisionConfig, patches: Patches, sees_all: Bool[Array, ""], queries: Int[Array, " t"]
) -> Bool[Array, "I t S"]:
  """Tell which patches those at `queries` see: the others of their image, or of their window in it."""
  at = lambda a: jnp.take(a, queries, axis=1, mode="clip")
  same = lambda a: at(a)[:, :, None] == a[:, None, :]
  seen = same(patches.image) & (patches.image >= 0)[:, None, :]
  if cfg.window is None:
    return seen
  return seen & (sees_all | same(patches.row // cfg.window) & same(patches.column // cfg.window))


def _feed_forward(x: Float[Array, "I S E"], w: Params, cfg: VisionConfig) -> Float[Array, "I S E"]:
  with jax.named_scope("vision_feed_forward"):
    y = _norm(x, w, "vision_mlp_norm", cfg)
    up = project(y, w["vision_up"]) + w["vision_up_bias"]
    if cfg.gated:
      up = jax.nn.silu(project(y, w["vision_gate"]) + w["vision_gate_bias"]) * up
    else:
      up = jax.nn.gelu(up, approximate=True)
    return project(up, w["vision_down"]) + w["vision_down_bias"]


def _merge(w: Params, cfg: VisionConfig, x: Float[Array, "I S E"]) -> Float[Array, "I M D"]:
  """Make features of neighbouring patches; the norm is of each patch, or of a tap's patches side by side."""
  w = jax.tree.map(lambda a: a.astype(x.dtype), w)
  wide = cfg.merged * cfg.width
  by_feature = lambda a: a.reshape(a.shape[0], -1, wide)
  x = by_feature(x) if w["merge_norm"].shape[-1] == wide else x
  y = by_feature(_norm(x, w, "merge_norm", cfg))
  y = jax.nn.gelu(project(y, w["merge_in"]) + w["merge_in_bias"], approximate=False)
  return project(y, w["merge_out"]) + w["merge_out_bias"]


def _norm(x: Float[Array, "*b E"], w: Params, name: str, cfg: VisionConfig) -> Float[Array, "*b E"]:
  if cfg.gated:
    return rms_norm(x, w[name], EPS)
  y = x.astype(jnp.float32)
  y = y - jnp.mean(y, axis=-1, keepdims=True)
  y = y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + EPS)
  return (y * w[name].astype(jnp.float32) + w[f"{name}_bias"].astype(jnp.float32)).astype(x.dtype)
