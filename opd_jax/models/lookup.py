"""The embedding of tokens on a mesh: rows of tokens lie over some axes, the table over others, and neither is copied.

Left to the compiler, the gradient of a table is summed whole onto every device, [V, D] in fp32. Here a device looks its
group's tokens up in the columns that it has, and the columns are exchanged for rows; the gradient goes the same way
back.

Dimensions: B rows, T positions, V vocabulary, D model width, b, v, d the parts of them on one device.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from opd_jax.models import decoder
from opd_jax.runtime import mesh as meshes
from opd_jax.types import Params


def embed(
  mesh: Mesh, layout: str, params: Params, tokens: Int[Array, "B T"], dtype: DTypeLike
) -> Float[Array, "B T D"]:
  """Look up the embedding of each token on a mesh, for parameters in this layout; values as `decoder.embed`'s."""
  table = params["embed"]
  vocab_axes, column_axes = (_axes(entry) for entry in meshes.spec(mesh, "embed", table.shape, layout))
  if mesh.size == 1 or tokens.shape[0] % meshes.row_shards(mesh):
    return decoder.embed(params, tokens, dtype)
  return _embed(mesh, vocab_axes, column_axes, jnp.dtype(dtype).name, table, tokens)


def _axes(entry) -> tuple[str, ...]:
  """The mesh axes of one dimension, from its entry in a PartitionSpec."""
  if entry is None:
    return ()
  return (entry,) if isinstance(entry, str) else tuple(entry)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _embed(mesh: Mesh, vocab_axes: tuple[str, ...], column_axes: tuple[str, ...], dtype: str, table, tokens):
  """Look tokens up in a table whose rows lie over `vocab_axes` and whose columns lie over `column_axes`."""

  def on_device(table: Float[Array, "v d"], tokens: Int[Array, "b T"]) -> Float[Array, "b T D"]:
    tokens = lax.all_gather(tokens, column_axes, axis=0, tiled=True) if column_axes else tokens
    local, is_here = _local_ids(vocab_axes, table.shape[0], tokens)
    x = jnp.where(is_here[..., None], table[local], 0).astype(dtype)
    x = lax.psum(x, vocab_axes) if vocab_axes else x
    return lax.all_to_all(x, column_axes, split_axis=0, concat_axis=2, tiled=True) if column_axes else x

  rows = PartitionSpec(meshes.ROWS)
  by_table = PartitionSpec(vocab_axes or None, column_axes or None)
  run = jax.shard_map(on_device, mesh=mesh, in_specs=(by_table, rows), out_specs=rows, check_vma=False)
  return run(table, tokens)


def _forward(mesh, vocab_axes, column_axes, dtype, table, tokens):
  return _embed(mesh, vocab_axes, column_axes, dtype, table, tokens), (table, tokens)


def _backward(mesh, vocab_axes, column_axes, dtype, residuals, d_x):
  table, tokens = residuals
  V, D = table.shape
  v = V // math.prod(mesh.shape[axis] for axis in vocab_axes)
  d = D // math.prod(mesh.shape[axis] for axis in column_axes)

  def on_device(d_x: Float[Array, "b T D"], tokens: Int[Array, "b T"]) -> Float[Array, "v d"]:
    if column_axes:
      tokens = lax.all_gather(tokens, column_axes, axis=0, tiled=True)
      d_x = lax.all_to_all(d_x, column_axes, split_axis=2, concat_axis=0, tiled=True)
    local, is_here = _local_ids(vocab_axes, v, tokens)
    d_x = jnp.where(is_here[..., None], d_x.astype(jnp.float32), 0)
    d_table = jnp.zeros((v, d), jnp.float32).at[local].add(d_x)
    other_row_axes = tuple(axis for axis in meshes.ROWS if axis not in column_axes)
    return lax.psum(d_table, other_row_axes)

  rows = PartitionSpec(meshes.ROWS)
  by_table = PartitionSpec(vocab_axes or None, column_axes or None)
  run = jax.shard_map(on_device, mesh=mesh, in_specs=(rows, rows), out_specs=by_table, check_vma=False)
  return run(d_x, tokens).astype(table.dtype), None


_embed.defvjp(_forward, _backward)


def _local_ids(vocab_axes: tuple[str, ...], v: int, tokens: Int[Array, "b T"]):
  """The row of each token in this device's v rows of the table, and whether the token is among them."""
  if not vocab_axes:
    return tokens, jnp.ones(tokens.shape, bool)
  local = tokens - lax.axis_index(vocab_axes) * v
  return jnp.clip(local, 0, v - 1), (local >= 0) & (local < v)
