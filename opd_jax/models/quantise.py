"""int8 weights for models that are read and never trained: teachers.

Every matrix of the layers is kept as int8 with one fp32 scale per output channel, w ~ scale * int8, symmetric and
rounded to the nearest, so that no weight moves by more than half its scale. The scan over the layers makes them dense
again one layer at a time, and the products run in the compute type. So this saves memory, not FLOPs: the layers take a
quarter of their fp32 and half of their bf16 bytes. Norms, biases, routers, embedding and head stay as they are.

The arrays are qwix's (github.com/google/qwix), which is asked for only here: pip install qwix.

Dimensions: L layers, D model width, N query heads, K key/value heads, h head width, F feed-forward width, E experts.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from opd_jax.types import Params

CONTRACTED = {  # the axes that a product sums over; every other one keeps its scales
  "q": (1,),  # L D N h
  "k": (1,),  # L D K h
  "v": (1,),  # L D K h
  "o": (1, 2),  # L N h D
  "gate": (1,),  # L D F
  "up": (1,),  # L D F
  "down": (1,),  # L F D
  "experts_gate": (2,),  # L E D F
  "experts_up": (2,),  # L E D F
  "experts_down": (2,),  # L E F D
  "delta_qkv": (1,),  # L D C
  "delta_gate": (1,),  # L D H v
  "delta_out": (1, 2),  # L H v D
}


def quantise(params: Params) -> Params:
  """Quantise every matrix of the layers of decoder.py's parameters to a qwix.QArray.

  `qvalue` has the matrix's shape, and `scale` too, but for 1 along the axes of `CONTRACTED`.
  """
  import qwix  # optional, and half a second

  # qwix would send the largest weight to 127.5 and leave its saturation to the backend; this sends it to 127.
  absmax = f"absmax,{127.5 / 127}"

  def matrix(name: str, w: jax.Array):
    if name not in CONTRACTED:
      return w
    channel_axes = [axis for axis in range(w.ndim) if axis not in CONTRACTED[name]]
    w = w.astype(jnp.float32)  # a bf16 scale alone would move a whole channel by up to 0.2 %
    return qwix.quantize(w, jnp.int8, channelwise_axes=channel_axes, calibration_method=absmax)

  return params | {"layers": {name: matrix(name, w) for name, w in params["layers"].items()}}


def dense(layer: Params, dtype: DTypeLike) -> Params:
  """Convert one layer's weights, quantised or not, to plain arrays of the compute type."""

  def plain(w) -> jax.Array:
    if not is_quantised(w):
      return w.astype(dtype)
    import qwix

    with jax.named_scope("dequantise"):
      return qwix.dequantize(w).astype(dtype)  # multiplied in fp32, so rounded once

  return jax.tree.map(plain, layer, is_leaf=is_quantised)


def is_quantised(w) -> bool:
  """Tell whether a weight is a qwix.QArray, found out without importing qwix, which need not be installed."""
  return hasattr(w, "qvalue")
