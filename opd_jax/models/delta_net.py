"""A layer of the gated delta rule (Gated DeltaNet, arXiv:2412.06464) as Qwen3.5 has it: projections, a short convolution, the rule, a gated norm.

    u = W_qkv x;   q, k, v = silu(causal convolution of u)
    g = -exp(log_decay) softplus(W_decay x + bias);   beta = sigmoid(W_rate x)
    y = W_out (norm(rule(q, k, v, g, beta)) * silu(W_gate x))

Behind a token stands a `DeltaState` in the place of keys and values: as large after many tokens as after one.

The channels of u stand by key heads, each with its query, its key and the values that read it, so that devices that share out heads need
nothing of each other; in a file they stand as all queries, all keys and all values.

Dimensions: B rows, T tokens, D model width, J key heads of width k, H value heads of width v, C = 2 k + (H / J) v channels of a key head, w the
convolution's width; p prompts with n responses each.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from opd_jax.models import delta_rule
from opd_jax.models.attention import PromptGroup
from opd_jax.models.delta_rule import Inputs, State
from opd_jax.models.linear import linear
from opd_jax.types import Params

EXACT = ("delta_log_decay", "delta_norm")  # written in fp32 whatever the other weights are
MATRICES = ("delta_qkv", "delta_gate", "delta_rate", "delta_decay", "delta_out")


@dataclasses.dataclass(frozen=True)
class DeltaNet:
  """The sizes of the layers that have it."""

  key_heads: int  # J
  value_heads: int  # H, a multiple of J
  key_width: int  # k
  value_width: int  # v
  conv: int = 4  # w

  def __post_init__(self):
    if self.value_heads % self.key_heads:
      raise ValueError(f"{self.value_heads} value heads cannot share {self.key_heads} key heads evenly")

  @property
  def parts(self) -> tuple[int, int, int]:
    """How many of a key head's channels are of its query, of its key and of its values."""
    return self.key_width, self.key_width, self.value_heads // self.key_heads * self.value_width

  @property
  def channels(self) -> int:
    """C."""
    return sum(self.parts)

  def parts_of(self, name: str) -> tuple[int, ...]:
    """The parts of a key head that a file keeps apart in the parameter of this name; () where it has none."""
    return self.parts if name in ("delta_qkv", "delta_conv") else ()

  def shapes(self, D: int) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a layer."""
    J, H, v = self.key_heads, self.value_heads, self.value_width
    return {
      "delta_qkv": (D, J, self.channels),
      "delta_gate": (D, H, v),
      "delta_rate": (D, H),
      "delta_decay": (D, H),
      "delta_conv": (J, self.channels, self.conv),
      "delta_log_decay": (H,),
      "delta_bias": (H,),
      "delta_norm": (v,),
      "delta_out": (H, v, D),
    }


def _log_decay(key: jax.Array, shape: tuple[int, ...]) -> Array:
  return jnp.log(jax.random.uniform(key, shape, jnp.float32, 1e-3, 16.0))


def _ones(key: jax.Array, shape: tuple[int, ...]) -> Array:
  return jnp.ones(shape, jnp.float32)


# How parameters are drawn that are no matrices; the norm is not about zero, whatever those of the model are.
DRAWN: dict[str, Callable[[jax.Array, tuple[int, ...]], Array]] = {
  "delta_log_decay": _log_decay,
  "delta_bias": _ones,
  "delta_norm": _ones,
}


class DeltaState(NamedTuple):
  """What stands behind a token."""

  tail: Float[Array, "B w_less_1 J C"]  # u of the last tokens, before the convolution
  state: State

  @property
  def length(self) -> int:
    """It has no slots."""
    return 0

  def of_rows(self, n: int) -> "DeltaState":
    """Repeat it for n rows each."""
    return jax.tree.map(lambda a: jnp.repeat(a, n, axis=0), self)

  def grow(self, length: int) -> "DeltaState":
    """It does not grow."""
    return self


class _Projected(NamedTuple):
  """What the rule reads, before the convolution."""

  u: Float[Array, "B T J C"]
  g: Float[Array, "B T H"]
  beta: Float[Array, "B T H"]


def mix(
  x: Float[Array, "B T D"],
  w: Params,
  net: DeltaNet,
  eps: float,
  *,
  mask: Bool[Array, "B T"] | None = None,
  before: DeltaState | None = None,
  adapter_scale: float = 1.0,
  rule: Any = delta_rule.chunked,
) -> tuple[Float[Array, "B T D"], DeltaState]:
  """Mix the tokens of sequences, normed before.

  Args:
    w: the layer's parameters in the compute type.
    eps: of the norm.
    mask: true on real tokens; what is padded changes no state, but has to stand before all tokens or behind them. None: all are real.
    before: what the sequences go on from; None: they begin.
    rule: a form of the delta rule.
  """
  projected = _project(x, w, net, mask, adapter_scale)
  out, after = _apply(projected, w, net, before, rule)
  return _finish(out, x, w, eps, adapter_scale), after


def mix_sequences(
  x: Float[Array, "B T D"],
  w: Params,
  net: DeltaNet | None,
  mask: Bool[Array, "B T"],
  group: PromptGroup | None,
  eps: float,
  adapter_scale: float,
) -> Float[Array, "B T D"]:
  """Mix the tokens of whole sequences, or of prompts with their responses, which all go on from what stands behind the prompt."""
  assert net is not None
  if group is None:
    return mix(x, w, net, eps, mask=mask, adapter_scale=adapter_scale)[0]
  P, n, R = group
  projected = _project(x, w, net, mask, adapter_scale)
  prompt = jax.tree.map(lambda a: a[:, :P], projected)
  responses = jax.tree.map(lambda a: a[:, P:].reshape(-1, R, *a.shape[2:]), projected)
  of_prompt, behind = _apply(prompt, w, net, None, delta_rule.chunked)
  of_responses, _ = _apply(responses, w, net, behind.of_rows(n), delta_rule.chunked)
  out = jnp.concatenate([of_prompt, of_responses.reshape(len(x), n * R, *of_responses.shape[2:])], axis=1)
  return _finish(out, x, w, eps, adapter_scale)


def _project(x: Array, w: Params, net: DeltaNet, mask: Array | None, adapter_scale: float) -> _Projected:
  decay, rate = (linear(x, w, name, adapter_scale) for name in ("delta_decay", "delta_rate"))
  g = decay.astype(jnp.float32) + w["delta_bias"].astype(jnp.float32)
  g = -jnp.exp(w["delta_log_decay"].astype(jnp.float32)) * jax.nn.softplus(g)
  u = linear(x, w, "delta_qkv", adapter_scale).reshape(*x.shape[:2], net.key_heads, net.channels)
  projected = _Projected(u, g, jax.nn.sigmoid(rate).astype(jnp.float32))
  if mask is None:
    return projected
  return jax.tree.map(lambda a: jnp.where(mask.reshape(*mask.shape, *[1] * (a.ndim - 2)), a, 0), projected)


def _apply(
  projected: _Projected, w: Params, net: DeltaNet, before: DeltaState | None, rule: Any
) -> tuple[Array, DeltaState]:
  """Convolve and apply the rule; [B, T, H, v] in fp32."""
  tail, state = (None, None) if before is None else before
  mixed, tail = delta_rule.causal_conv(projected.u, w["delta_conv"], tail)
  q, k, v = jnp.split(jax.nn.silu(mixed), [net.key_width, 2 * net.key_width], axis=-1)
  q, k = delta_rule.keys_and_queries(q, k, net.value_heads)
  values = v.reshape(*v.shape[:2], net.value_heads, net.value_width).astype(k.dtype)
  out, state = rule(Inputs(q, k, values, projected.g, projected.beta), state)
  return out, DeltaState(tail, state)


def _finish(out: Array, x: Array, w: Params, eps: float, adapter_scale: float) -> Array:
  """Norm within each head, gate and project; the norm first, in fp32."""
  gate = linear(x, w, "delta_gate", adapter_scale).reshape(out.shape)
  out = (out * jax.lax.rsqrt(jnp.mean(out * out, axis=-1, keepdims=True) + eps)).astype(x.dtype)
  out = (w["delta_norm"] * out).astype(jnp.float32) * jax.nn.silu(gate.astype(jnp.float32))
  return linear(out.astype(x.dtype).reshape(*x.shape[:2], -1), w, "delta_out", adapter_scale)
