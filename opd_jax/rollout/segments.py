"""Segments of the token loop: attention covers only filled slots, and rows that have ended stop costing time.

A static program cannot have a cache that grows or a batch that shrinks at every token. It can at a few boundaries: the
loop runs segment by segment, each with a cache that ends where the segment does, and, if wanted, with the rows that
are still live gathered into a smaller batch. Tokens are the same as without.

Dimensions: B rows, b of them in a smaller batch, r row shards of the mesh, b_per_r = b / r.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@dataclasses.dataclass(frozen=True)
class Segments:
  """The static description of how a token loop is cut into segments.

  Attributes:
    length: the least tokens of a segment; 0: one segment, the plain loop.
    max_segments: the most segments of a rollout; each is compiled, so a longer rollout has longer ones.
    shrink: divisors of B. The live rows are gathered into a batch of B / divisor once they fit; (): never.
    shards: the number of devices that rows are split over. Each has its own rows, and those have to fit on each.
  """

  length: int = 64
  max_segments: int = 8
  shrink: tuple[int, ...] = ()
  shards: int = 1

  def ends(self, response_len: int) -> list[int]:
    """List the tokens after which each segment ends, ascending; the last is `response_len`."""
    if not self.length:
      return [response_len]
    length = self.length * math.ceil(response_len / (self.length * self.max_segments))
    return [*range(length, response_len, length), response_len]

  def sizes(self, rows: int) -> list[int]:
    """List the batch sizes that a segment can run at, ascending; the last is `rows`."""
    smaller = {rows // d for d in self.shrink if rows % (d * self.shards) == 0}
    return sorted(smaller | {rows})

  def choose(self, sizes: list[int], ended: Bool[Array, " B"]) -> Int[Array, ""]:
    """Choose the smallest size that holds all live rows; returns its index."""
    live = jnp.max(jnp.sum(~ended.reshape(self.shards, -1), axis=1, dtype=jnp.int32))
    return jnp.sum(live > jnp.array([s // self.shards for s in sizes[:-1]], jnp.int32), dtype=jnp.int32)

  def live_first(self, ended: Bool[Array, " B"], size: int) -> Int[Array, "r b_per_r"]:
    """Choose `size` rows, all live ones among them, as indices within each shard: live rows first, in order."""
    return jnp.argsort(ended.reshape(self.shards, -1), axis=1, stable=True)[:, : size // self.shards]

  def gather(self, tree, rows: Int[Array, "r b_per_r"]):
    """Gather rows, [B, ...] -> [b, ...]; every device takes from its own."""
    take = jax.vmap(lambda a, i: a[i])
    return jax.tree.map(lambda a: take(self._by_shard(a), rows).reshape(rows.size, *a.shape[1:]), tree)

  def scatter(self, tree, part, rows: Int[Array, "r b_per_r"]):
    """Put gathered rows back: `tree` [B, ...] with `part` [b, ...] at `rows`."""
    put = jax.vmap(lambda a, i, new: a.at[i].set(new, unique_indices=True))
    return jax.tree.map(
      lambda a, new: put(self._by_shard(a), rows, new.reshape(*rows.shape, *a.shape[1:])).reshape(a.shape), tree, part
    )

  def _by_shard(self, a: Array) -> Array:
    return a.reshape(self.shards, a.shape[0] // self.shards, *a.shape[1:])


DEFAULT = Segments()
PLAIN = Segments(length=0)  # the reference
