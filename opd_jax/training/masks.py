"""Masks of coordinates: only those that are set are trained, all others stay what they were, bit for bit.

    g <- g m                      before it is clipped and before the optimiser's moments, which stay 0 where m is 0
    theta <- optimiser step       momentum and decay included
    theta_i <- former theta_i     wherever m_i is 0: restored and not added to, so that a negative zero keeps its sign

A mask has the tree of the parameters, with one bit for every coordinate: its last axis is packed by eight, most significant
bit first, and the rest of a last byte is 0. A packed array lies on the mesh as its parameter does (runtime/mesh.py), whose
name it has; where eight do not divide what a device has of the last axis, that axis is whole.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt8

from opd_jax.runtime import hosts
from opd_jax.types import MaskedTrainState, Params, TrainState

PARTS = ("embeddings", "norms", "attention", "MLP")


def pack(mask: Bool[Array, "*s n"]) -> UInt8[Array, "*s m"]:
  """Packs the last axis by eight: m = n / 8, rounded up."""
  return jnp.packbits(mask, axis=-1)


def unpack(packed: UInt8[Array, "*s m"], n: int) -> Bool[Array, "*s n"]:
  """Undoes `pack` of a last axis of n."""
  return jnp.unpackbits(packed, axis=-1, count=n).astype(bool)


def full(params: Params) -> Params:
  """Makes the packed mask with which every coordinate is trained."""
  return jax.tree.map(lambda a: pack(jnp.ones(a.shape, bool)), params)


def of(state: TrainState) -> Params | None:
  """Returns a state's mask, unpacked: bool arrays of the parameters' shapes; None: all coordinates are trained."""
  if not isinstance(state, MaskedTrainState):
    return None
  return jax.tree.map(lambda packed, a: unpack(packed, a.shape[-1]), state.mask, state.params)


def keep(mask: Params | None, grads: Params) -> Params:
  """Puts zeros in the place of the gradient of coordinates that are not trained, also of one that is NaN."""
  return grads if mask is None else jax.tree.map(lambda m, g: jnp.where(m, g, jnp.zeros_like(g)), mask, grads)


def part(name: str) -> str:
  """Tells which of PARTS a parameter of models/decoder.py belongs to, by its name; biases are among the norms."""
  if name in ("embed", "head"):
    return "embeddings"
  if "norm" in name or name.endswith("_bias"):
    return "norms"
  return "attention" if name in ("q", "k", "v", "o") else "MLP"


def counts(mask: Params, params: Params) -> dict[str, tuple[int, int]]:
  """Counts the coordinates of each of PARTS that are trained, and all of them; parts that a model lacks are left out.

  Args:
    mask: packed.
    params: arrays or their shapes.
  """
  found: dict[str, tuple[int, int]] = {}
  trained = hosts.all_gather_to_host(_set_bits(mask))
  for (path, bits), a in zip(jax.tree_util.tree_leaves_with_path(trained), jax.tree.leaves(params), strict=True):
    name = part(path[-1].key)
    before = found.get(name, (0, 0))
    found[name] = before[0] + int(np.sum(bits, dtype=np.int64)), before[1] + a.size
  return {name: found[name] for name in PARTS if name in found}


@jax.jit
def _set_bits(mask: Params) -> Any:
  """Counts the bits of each slice along the first axis, of which none has 2^32."""

  def count(packed: UInt8[Array, "..."]) -> Array:
    return jnp.sum(jax.lax.population_count(packed), axis=tuple(range(1, packed.ndim)), dtype=jnp.uint32)

  return jax.tree.map(count, mask)
