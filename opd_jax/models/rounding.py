"""Weights rounded to fewer bits and back: what a sampler of lower precision would compute with, at no saving.

It makes a rollout's distribution differ from the trainer's as quantised samplers' do, to study what that does to training. As
there, the matrices of the layers are rounded, with one scale for each output channel; norms, biases, routers, embedding and head
stay as they are, but for bfloat16, which is of all weights.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from opd_jax.models.quantise import CONTRACTED
from opd_jax.types import Params

PRECISIONS = ("compute", "bfloat16", "float8", "int8")
LARGEST = {"float8": 448.0, "int8": 127.0}  # of float8_e4m3fn


def round_weights(params: Params, precision: str) -> Params:
  """Round the parameters of models/decoder.py.

  Args:
    precision: one of PRECISIONS; "compute" changes nothing.
  """
  if precision == "compute":
    return params
  if precision == "bfloat16":
    return jax.tree.map(lambda w: w.astype(jnp.bfloat16).astype(w.dtype), params)
  layers = params["layers"]
  rounded = {name: _rounded(layers[name], axes, precision) for name, axes in CONTRACTED.items() if name in layers}
  return params | {"layers": layers | rounded}


def _rounded(w: Float[Array, "..."], axes: tuple[int, ...], precision: str) -> Float[Array, "..."]:
  """Round a matrix; the axes that a product sums over share a scale."""
  most = jnp.max(jnp.abs(w), axis=axes, keepdims=True)
  scale = jnp.where(most > 0, most, 1.0) / LARGEST[precision]
  if precision == "int8":
    return jnp.round(w / scale) * scale
  return (w / scale).astype(jnp.float8_e4m3fn).astype(w.dtype) * scale
