"""The embedding of tokens on a mesh: rows of tokens lie over some axes, the table over others, and neither is copied whole.

Left to the compiler, the gradient of a table is summed whole onto every device, [V, D] in fp32. Here a device looks its
group's tokens up in the columns that it has, and the columns are exchanged for rows; the gradient goes the same way back.

Dimensions: B rows, T positions, V vocabulary, D model width, b, v, d the parts of them on one device.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from opd_jax import mesh as meshes
from opd_jax.models import decoder
from opd_jax.types import Params


def embed(
  mesh: Mesh, layout: str, params: Params, tokens: Int[Array, "B T"], dtype: jnp.dtype
) -> Float[Array, "B T D"]:
  """`decoder.embed` on a mesh, for parameters in this layout."""
  table = params["embed"]
  ids, width = (_axes(a) for a in meshes.spec(mesh, "embed", table.shape, layout))
  if mesh.size == 1 or tokens.shape[0] % meshes.row_shards(mesh):
    return decoder.embed(params, tokens, dtype)
  return _embed(mesh, ids, width, jnp.dtype(dtype).name, table, tokens)


def _axes(entry) -> tuple[str, ...]:
  return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _embed(mesh: Mesh, ids: tuple[str, ...], width: tuple[str, ...], dtype: str, table, tokens):
  """Args: ids, width: the axes over which the table's rows and columns lie."""

  def on_device(table: Float[Array, "v d"], tokens: Int[Array, "b T"]) -> Float[Array, "b T D"]:
    tokens = lax.all_gather(tokens, width, axis=0, tiled=True) if width else tokens
    own, there = _own(mesh, ids, table.shape[0], tokens)
    x = jnp.where(there[..., None], table[own], 0).astype(dtype)
    x = lax.psum(x, ids) if ids else x
    return lax.all_to_all(x, width, split_axis=0, concat_axis=2, tiled=True) if width else x

  rows = PartitionSpec(meshes.ROWS)
  place = PartitionSpec(ids or None, width or None)
  return jax.shard_map(on_device, mesh=mesh, in_specs=(place, rows), out_specs=rows, check_vma=False)(table, tokens)


def _forward(mesh, ids, width, dtype, table, tokens):
  return _embed(mesh, ids, width, dtype, table, tokens), (table, tokens)


def _backward(mesh, ids, width, dtype, kept, d_x):
  table, tokens = kept
  v, d = (n // math.prod(mesh.shape[a] for a in axes) for n, axes in zip(table.shape, (ids, width), strict=True))

  def on_device(d_x: Float[Array, "b T D"], tokens: Int[Array, "b T"]) -> Float[Array, "v d"]:
    if width:
      tokens = lax.all_gather(tokens, width, axis=0, tiled=True)
      d_x = lax.all_to_all(d_x, width, split_axis=2, concat_axis=0, tiled=True)
    own, there = _own(mesh, ids, v, tokens)
    d_x = jnp.where(there[..., None], d_x.astype(jnp.float32), 0)
    d_table = jnp.zeros((v, d), jnp.float32).at[own].add(d_x)
    others = tuple(a for a in meshes.ROWS if a not in width)
    return lax.psum(d_table, others)

  rows = PartitionSpec(meshes.ROWS)
  place = PartitionSpec(ids or None, width or None)
  run = jax.shard_map(on_device, mesh=mesh, in_specs=(rows, rows), out_specs=place, check_vma=False)
  return run(d_x, tokens).astype(table.dtype), None


_embed.defvjp(_forward, _backward)


def _own(mesh: Mesh, ids: tuple[str, ...], v: int, tokens: Int[Array, "b T"]):
  """Where each token stands in this device's rows of the table, and whether it does."""
  if not ids:
    return tokens, jnp.ones(tokens.shape, bool)
  own = tokens - lax.axis_index(ids) * v
  return jnp.clip(own, 0, v - 1), (own >= 0) & (own < v)
