"""Mixtures of experts: every token goes through the few feed-forward networks that a router picks for it (Qwen3-MoE).

    p = softmax(router x) over all experts,    y = sum over the k largest of  p_e down_e(silu(gate_e x) * up_e x)

`dense` is the reference, every expert on every token. `sparse` gives each expert the tokens that chose it and no
others, block by block, so its work follows the routing and no token is ever dropped. `feed_forward` is what a layer
calls, on one device or on a mesh.

Dimensions: B rows, T positions, n tokens, k experts of a token, E experts (of those on this device), D model width,
F width of one expert, b pairs of a block, p all pairs of a token and an expert that it chose.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from opd_jax.runtime.mesh import ROWS
from opd_jax.types import Params

EXPERTS, FF = "expert", "tensor"  # mesh axes
PARAMETERS = ("router", "experts_gate", "experts_up", "experts_down")  # of a layer
KINDS = ("auto", "dense", "blocks", "ragged")
BLOCK = {"cpu": 128}  # pairs of one expert; of 32 to 256 the fastest there or near it
BLOCK_ON_ACCELERATORS = 512  # fewer steps of the loop, more of them half empty; not measured yet
RAGGED = 8192  # pairs of a ragged_dot: at Qwen3-30B-A3B's widths 77 GFLOP


@dataclasses.dataclass(frozen=True)
class MoE:
  """The static settings of the feed-forward part of every layer."""

  experts: int
  per_token: int  # experts of a token, k
  renormalise: bool  # the k probabilities are divided by their sum

  def __post_init__(self):
    if self.per_token > self.experts:
      raise ValueError(f"a token cannot go through {self.per_token} of {self.experts} experts")


class Experts(NamedTuple):
  """The matrices of a layer's experts, or of those of them that one device holds."""

  gate: Float[Array, "E D F"]
  up: Float[Array, "E D F"]
  down: Float[Array, "E F D"]


def feed_forward(
  mesh: Mesh | None,
  x: Float[Array, "B T D"],
  w: Params,
  moe: MoE,
  mask: Bool[Array, "B T"] | None = None,
  *,
  kind: str = "auto",
) -> Float[Array, "B T D"]:
  """Run the mixture on a mesh, each device its own experts and its own columns of them on the tokens of its group.

  A group is the devices along the `expert` axis. They gather each other's tokens, which moves no more than sending
  every token to its experts would while the axis is no longer than k, and sum what they made of them. What an axis does
  not divide stays whole, and is computed by each of its devices.

  Args:
    mesh: None: one device.
    w: PARAMETERS of one layer, and maybe others; `router` is [D, all experts], the rest are those of `Experts`.
    mask: true on real tokens; the others go to no expert and come back as zeros.
    kind: one of KINDS; "auto": see `choose`.
  """
  if kind not in KINDS:
    raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
  mask = jnp.ones(x.shape[:2], bool) if mask is None else mask
  router, *matrices = (w[name] for name in PARAMETERS)
  experts = Experts(*matrices)
  device = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
  run = functools.partial(_on_device, moe, kind, device)
  if mesh is None or mesh.size == 1:
    return run((), (), x, mask, router, experts)
  size = mesh.shape
  rows = ROWS if x.shape[0] % math.prod(size[axis] for axis in ROWS) == 0 else ()
  expert = (EXPERTS,) if moe.experts % size[EXPERTS] == 0 and size[EXPERTS] > 1 else ()
  ff = (FF,) if experts.gate.shape[-1] % size[FF] == 0 and size[FF] > 1 else ()
  split = Experts(P(expert, None, ff), P(expert, None, ff), P(expert, ff))  # pyright: ignore[reportArgumentType]
  return jax.shard_map(
    functools.partial(run, expert if rows else (), expert + ff),
    mesh=mesh,
    in_specs=(P(rows), P(rows), P(), split),
    out_specs=P(rows),
    check_vma=False,
  )(x, mask, router, experts)


def reference(
  x: Float[Array, "B T D"], w: Params, moe: MoE, mask: Bool[Array, "B T"] | None = None
) -> Float[Array, "B T D"]:
  """Run the mixture by `dense`, without a mesh."""
  return feed_forward(None, x, w, moe, mask, kind="dense")


def _on_device(
  moe: MoE, kind: str, device: str, gather: tuple[str, ...], parts: tuple[str, ...], x, mask, router, experts: Experts
) -> Float[Array, "B T D"]:
  """Run one device's share of `feed_forward`.

  Args:
    gather: the mesh axis along which devices hold other tokens and other experts, if there is one.
    parts: the mesh axes along which devices make different parts of one sum.
  """
  tokens = x.reshape(-1, x.shape[-1])
  with jax.named_scope("route"):
    chosen, weight = route(tokens, router, moe)
    chosen = jnp.where(mask.reshape(-1, 1), chosen, moe.experts)
  for axis in gather:
    tokens, chosen, weight = lax.all_gather((tokens, chosen, weight), axis, tiled=True)
  if EXPERTS in parts:
    chosen = chosen - lax.axis_index(EXPERTS) * len(experts.gate)
  with jax.named_scope("experts"):
    kind = choose(device, len(tokens)) if kind == "auto" else kind
    run = dense if kind == "dense" else functools.partial(sparse, kind == "ragged", block_size(device))
    y = run(tokens, experts, chosen, weight).astype(x.dtype)
  for axis in gather:
    y = lax.psum_scatter(y, axis, tiled=True)
  return lax.psum(y, [axis for axis in parts if axis not in gather]).reshape(x.shape)


def choose(device: str, tokens: int) -> str:
  """Choose the form, "dense", "ragged" or "blocks", for a number of tokens on a platform, as JAX names it.

  "ragged" on TPUs, where `lax.ragged_dot` is a kernel. On CPUs and GPUs it makes the products of all experts and masks
  them, so "blocks" there. Tokens that do not fill one block make no more products in "dense".
  """
  if tokens <= block_size(device):
    return "dense"
  return "ragged" if device == "tpu" else "blocks"


def block_size(device: str) -> int:
  """The pairs of a block of one expert on a platform."""
  return BLOCK.get(device, BLOCK_ON_ACCELERATORS)


def route(
  x: Float[Array, "n D"], router: Float[Array, "D E"], moe: MoE
) -> tuple[Int[Array, "n k"], Float[Array, "n k"]]:
  """Choose the experts of every token and the weight of each, in fp32 throughout."""
  logits = jnp.matmul(x, router, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
  weight, chosen = lax.top_k(jax.nn.softmax(logits, axis=-1), moe.per_token)
  if moe.renormalise:
    weight = weight / jnp.sum(weight, axis=-1, keepdims=True)
  return chosen, weight


def dense(
  x: Float[Array, "n D"], experts: Experts, chosen: Int[Array, "n k"], weight: Float[Array, "n k"]
) -> Float[Array, "n D"]:
  """Run every expert on every token, where those that it did not choose weigh nothing; sums are fp32. The reference.

  Args:
    chosen: indices into `experts`; one out of their range stands for an expert that is elsewhere.
  """
  E = len(experts.gate)
  share = jnp.sum(jnp.where(chosen[:, :, None] == jnp.arange(E), weight[:, :, None], 0.0), axis=1)
  by_expert = jnp.broadcast_to(x, (E, *x.shape))  # one product per expert: a joint one would transpose its matrices
  hidden = jax.nn.silu(by_expert @ experts.gate) * (by_expert @ experts.up) * share.T[:, :, None]
  return jnp.einsum("enf,efd->nd", hidden.astype(x.dtype), experts.down, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def sparse(
  ragged: bool,
  b: int,
  x: Float[Array, "n D"],
  experts: Experts,
  chosen: Int[Array, "n k"],
  weight: Float[Array, "n k"],
) -> Float[Array, "n D"]:
  """Compute what `dense` gives in a loop over blocks of pairs of a token and an expert, which ends with the last pair.

  Args:
    ragged: a block holds `RAGGED` pairs of whatever experts come, and is a `lax.ragged_dot`. False: a block holds up to
      b pairs of one expert, and is a plain product with its matrices. So is the gradient in either case: on TPUs too,
      ragged_dot's own by the matrices is a product of every token with every expert.
  """
  return _forward(ragged, b, x, experts, chosen, weight)[0]


class Pairs(NamedTuple):
  """Pairs of a token and one of its experts, numbered in the order of `chosen`, those of an expert together."""

  order: Int[Array, " p+b"]  # those of experts elsewhere at the end, and room for a block
  begin: Int[Array, " E"]  # where in it an expert's pairs begin
  size: Int[Array, " E"]  # and how many they are

  def one_expert(self, i: Array, b: int) -> tuple[Array, Array]:
    """The expert of block i and its b pairs, where no block holds pairs of two experts."""
    blocks = -(-self.size // b)
    last = jnp.cumsum(blocks)
    e = jnp.sum(i >= last)
    done = (i - last[e] + blocks[e]) * b
    return e, self._slice(self.begin[e] + done, self.size[e] - done, b)

  def any_expert(self, i: Array, b: int) -> tuple[Array, Array]:
    """The number of pairs of every expert in block i, and its b pairs, where every block but the last is full."""
    inside = lambda position: jnp.clip(position - i * b, 0, b)
    return inside(self.begin + self.size) - inside(self.begin), self._slice(i * b, jnp.sum(self.size) - i * b, b)

  def _slice(self, start: Array, size: Array, b: int) -> Int[Array, " b"]:
    """The b pairs from `start`; where there are fewer, a number out of range, as its token is too, stands for none."""
    none = len(self.order)
    return jnp.where(jnp.arange(b) < size, lax.dynamic_slice_in_dim(self.order, start, b), none)


def _pairs(chosen: Int[Array, "n k"], E: int, b: int) -> Pairs:
  """Sort the pairs of a token and an expert by expert, with room for a block of b behind the last."""
  expert = jnp.where((chosen >= 0) & (chosen < E), chosen, E).reshape(-1)
  size = jnp.sum(expert[:, None] == jnp.arange(E), axis=0, dtype=jnp.int32)
  return Pairs(jnp.pad(jnp.argsort(expert), (0, b)), jnp.cumsum(size) - size, size)


def _swiglu(product, x: Float[Array, "b D"], share: Float[Array, " b"], w: Experts) -> Float[Array, "b D"]:
  """The experts' SwiGLU with this matrix product, weighted by each pair's share."""
  hidden = jax.nn.silu(product(x, w.gate)) * product(x, w.up)
  return product(hidden, w.down, preferred_element_type=jnp.float32) * share[:, None]


def _forward(ragged: bool, b: int, x, experts: Experts, chosen, weight):
  pairs = _pairs(chosen, len(experts.gate), max(b, RAGGED) if ragged else b)
  b = min(RAGGED if ragged else b, weight.size)

  def block(i: Array, out: Float[Array, "n D"]):
    if ragged:
      sizes, pair = pairs.any_expert(i, b)
      product = functools.partial(lax.ragged_dot, group_sizes=sizes)
      w = experts
    else:
      e, pair = pairs.one_expert(i, b)
      product = jnp.matmul
      w = _one_expert(e, experts)
    token = pair // weight.shape[1]
    y = _swiglu(product, _take(x, token), _take(weight.reshape(-1), pair), w)
    return out.at[token].add(y, mode="drop")

  blocks = -(-jnp.sum(pairs.size) // b) if ragged else jnp.sum(-(-pairs.size // b))
  out = lax.fori_loop(0, blocks, block, jnp.zeros(x.shape, jnp.float32))
  return out, (x, experts, weight, pairs)


def _backward(ragged: bool, b: int, residuals, d_out: Float[Array, "n D"]):
  x, experts, weight, pairs = residuals
  b = min(b, weight.size)

  def block(i: Array, grads):
    d_x, d_experts, d_weight = grads
    e, pair = pairs.one_expert(i, b)
    token = pair // weight.shape[1]
    swiglu = functools.partial(_swiglu, jnp.matmul)
    _, vjp = jax.vjp(swiglu, _take(x, token), _take(weight.reshape(-1), pair), _one_expert(e, experts))
    d_rows, d_share, d_w = vjp(d_out.at[token].get(mode="fill", fill_value=0))

    def add_to_expert(total: Array, d: Array) -> Array:
      return lax.dynamic_update_index_in_dim(total, lax.dynamic_index_in_dim(total, e) + d, e, 0)

    return (
      d_x.at[token].add(d_rows, mode="drop"),
      jax.tree.map(add_to_expert, d_experts, d_w),
      d_weight.at[pair].set(d_share, mode="drop"),
    )

  zeros = lambda a: jnp.zeros(a.shape, jnp.float32)
  no_grads = jax.tree.map(zeros, (x, experts, weight.reshape(-1)))
  d_x, d_experts, d_weight = lax.fori_loop(0, jnp.sum(-(-pairs.size // b)), block, no_grads)
  like = lambda d, a: d.reshape(a.shape).astype(a.dtype)
  return *jax.tree.map(like, (d_x, d_experts), (x, experts)), None, like(d_weight, weight)


sparse.defvjp(_forward, _backward)


def _take(a: Float[Array, " m *d"], at: Int[Array, " b"]) -> Float[Array, " b *d"]:
  """Take rows of an array, and any row where the index is out of range."""
  return a.at[at].get(mode="clip")


def _one_expert(e: Int[Array, ""], experts: Experts) -> Experts:
  """Slice the matrices of expert e."""
  return jax.tree.map(lambda w: lax.dynamic_index_in_dim(w, e, keepdims=False), experts)
