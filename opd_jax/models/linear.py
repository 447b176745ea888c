"""Products with a layer's matrices, their adapters added, and the norm: what every kind of layer is made of."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from opd_jax.types import Params


def rms_norm(x: Float[Array, "*b D"], scale: Float[Array, " D"], eps: float) -> Float[Array, "*b D"]:
  """Apply the root-mean-square norm over the last axis, in fp32."""
  y = x.astype(jnp.float32)
  y = y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
  return (y * scale.astype(jnp.float32)).astype(x.dtype)


def linear(x: Float[Array, "*b d"], w: Params, name: str, adapter_scale: float = 1.0) -> Float[Array, "*b f"]:
  """Multiply x with a layer's matrix of that name, heads and their width as one axis, and add its adapter if any."""
  y = project(x, w[name].reshape(x.shape[-1], -1))
  if (a := w.get(f"{name}_a")) is None:
    return y
  b = w[f"{name}_b"]
  low_rank = project(x, a.reshape(x.shape[-1], -1))
  return y + adapter_scale * project(low_rank, b.reshape(b.shape[0], -1))


@jax.custom_vjp
def project(x: Float[Array, "*b d"], w: Float[Array, "d f"]) -> Float[Array, "*b f"]:
  """Multiply x @ w, with a backward pass that finishes the gradient of the output before it uses it.

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
