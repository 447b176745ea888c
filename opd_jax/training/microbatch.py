"""Gradients slice by slice: rows of a batch split over micro-batches, and response widths that fit their longest row.

Dimensions: B rows, H response width, p prompts, n rollouts of each.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from opd_jax.rollout.segments import Segments
from opd_jax.runtime import mesh as meshes


def repeat(tree: Any, n: int) -> Any:
  """Repeats every row of a pytree n times in a row: [p, ...] -> [p n, ...]."""
  return tree if n == 1 else jax.tree.map(lambda a: jnp.repeat(a, n, axis=0), tree)


def prompt_copies(prompts: int, n: int, micro_batches: int) -> int:
  """Computes how often a prompt has to stand there for its n rollouts, so that no micro-batch has rows without theirs.

  Once, unless there are more micro-batches than a device has prompts.
  """
  return next(copies for copies in range(1, n + 1) if n % copies == 0 and prompts * copies % micro_batches == 0)


def split(
  prompts: Any, rows: Any, micro_batches: int, mesh: jax.sharding.Mesh, n: int, lengths: Int[Array, " B"] | None = None
) -> tuple[Any, Any]:
  """Splits the rows of two pytrees into micro-batches, those of a prompt together; every device keeps its own.

  Args:
    prompts: arrays [p, ...].
    rows: arrays [p n, ...].
    lengths: of the rows; where given, the longest rows of the prompts of a micro-batch are of like length.

  Returns:
    Arrays [micro_batches, p / micro_batches, ...] and [micro_batches, p n / micro_batches, ...].
  """
  shards = Segments(shards=meshes.row_shards(mesh))
  groups = prompts, jax.tree.map(lambda a: a.reshape(-1, n, *a.shape[1:]), rows)
  if lengths is not None:
    longest = jnp.max(lengths.reshape(shards.shards, -1, n), axis=2)
    groups = shards.gather(groups, jnp.argsort(longest, axis=1))

  def split_one(a: jax.Array) -> jax.Array:
    by_shard = a.reshape(shards.shards, micro_batches, -1, *a.shape[1:])
    return by_shard.swapaxes(0, 1).reshape(micro_batches, -1, *a.shape[1:])

  prompts, groups = jax.tree.map(split_one, groups)
  return prompts, jax.tree.map(lambda a: a.reshape(micro_batches, -1, *a.shape[3:]), groups)


def accumulate(f: Callable[[Any], tuple[Any, Any]], parts: Any) -> tuple[Any, Any]:
  """Sums the first result of f over the leading axis of `parts`, one slice at a time, and takes the largest of the second."""
  of_sums, of_largest = jax.eval_shape(f, jax.tree.map(lambda a: a[0], parts))
  start = (
    jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), of_sums),
    jax.tree.map(lambda s: jnp.full(s.shape, -jnp.inf, s.dtype), of_largest),
  )

  def add(total, part):
    sums, largest = f(part)
    return (jax.tree.map(jnp.add, total[0], sums), jax.tree.map(jnp.maximum, total[1], largest)), None

  return lax.scan(add, start, parts)[0]


def at_narrowest(
  f: Callable[[Any], Any], rows: Any, cut: Callable[[Any, int], Any], mask: jax.Array, widths: Sequence[int]
):
  """Computes f on rows cut to the least of the widths that holds the longest response; all widths are compiled.

  Args:
    cut: (rows, width) -> rows without the response columns from `width` on.
    mask: bool[B, H], true on generated tokens.
    widths: rising, the last is H.
  """
  longest = jnp.max(jnp.sum(mask, axis=1, dtype=jnp.int32))

  def at_width(width: int) -> Callable[[Any], Any]:
    return lambda rows: f(cut(rows, width))

  index = jnp.sum(longest > jnp.array(widths[:-1], jnp.int32))
  return lax.switch(index, [at_width(width) for width in widths], rows)


def response_widths(width: int, buckets: int) -> tuple[int, ...]:
  """Lists the response widths that an update is compiled for: multiples of width / buckets, rounded up."""
  return tuple(-(-width * (i + 1) // buckets) for i in range(buckets))


def sums_by_position(
  stats: dict[str, Float[Array, "B H"]], bins: int, max_horizon: int
) -> dict[str, Float[Array, " bins"]]:
  """Sums per-token numbers over rows within bins of response position over [0, max_horizon); fp32, no gradient."""
  bin_of = jnp.arange(stats["count"].shape[1]) * bins // max_horizon

  def by_bin(a: jax.Array) -> jax.Array:
    # Not a matrix product: on a TPU that would round its inputs to bfloat16, and counts with them.
    return jax.ops.segment_sum(jnp.sum(a, axis=0, dtype=jnp.float32), bin_of, bins)

  return {name: by_bin(lax.stop_gradient(a)) for name, a in stats.items()}


def cut_columns(tree: Any, width: int, H: int) -> Any:
  """Drops the columns from `width` on of all arrays [B, H, ...] of a pytree."""
  return jax.tree.map(lambda a: a[:, :width] if a.ndim >= 2 and a.shape[1] == H else a, tree)
