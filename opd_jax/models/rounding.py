"""Weights rounded to fewer bits and back: what a sampler of lower precision would compute with, at no saving.

It makes a rollout's distribution differ from the trainer's as quantised samplers' do, to study what that does to training.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from opd_jax.types import Params

PRECISIONS = ("compute", "bfloat16", "float8", "int8")
LARGEST = {"float8": 448.0, "int8": 127.0}  # of float8_e4m3fn


def round_weights(params: Params, precision: str) -> Params:
  """Round every matrix of a model: to bfloat16, or to 8 bits with one scale for each of its rows.

  Args:
    precision: one of PRECISIONS; "compute" changes nothing.
  """
  if precision == "compute":
    return params
  return jax.tree.map(lambda w: _rounded(w, precision) if w.ndim >= 2 else w, params)


def _rounded(w: Float[Array, "*m n"], precision: str) -> Float[Array, "*m n"]:
  if precision == "bfloat16":
    return w.astype(jnp.bfloat16).astype(w.dtype)
  most = jnp.max(jnp.abs(w), axis=-1, keepdims=True)
  scale = jnp.where(most > 0, most, 1.0) / LARGEST[precision]
  if precision == "int8":
    return jnp.round(w / scale) * scale
  return (w / scale).astype(jnp.float8_e4m3fn).astype(w.dtype) * scale
