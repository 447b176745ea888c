"""Where the token loop is cut: attention reads what is filled, and rows that have ended stop costing.

A static program cannot have a cache that grows or a batch that shrinks at every token. It can at a few boundaries: the
loop runs segment by segment, each with a cache that ends where the segment does, and, if wanted, with the rows that
are still live gathered into a smaller batch. Tokens are the same as without.

Dimensions: B rows, b of them in a smaller batch, r row shards of the mesh, H horizon.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@dataclasses.dataclass(frozen=True)
class Segments:
  """What is static in the cutting.

  Attributes:
    length: the least tokens of a segment; 0: one segment, the plain loop.
    most: the most segments of a rollout; each is compiled, so a longer rollout has longer ones.
    shrink: divisors of B: into B / divisor rows the live ones are gathered once they fit; (): never.
    shards: over how many devices rows are split. Each keeps its own, so all have to fit.
  """

  length: int = 64
  most: int = 8
  shrink: tuple[int, ...] = ()
  shards: int = 1

  def ends(self, horizon: int) -> list[int]:
    """After how many tokens each segment ends, rising; the last is the horizon."""
    if not self.length:
      return [horizon]
    length = self.length * math.ceil(horizon / (self.length * self.most))
    return [*range(length, horizon, length), horizon]

  def sizes(self, rows: int) -> list[int]:
    """The batch sizes that a segment can run at, rising; the last is `rows`."""
    small = {rows // d for d in self.shrink if rows % (d * self.shards) == 0}
    return sorted(small | {rows})

  def choose(self, sizes: list[int], ended: Bool[Array, "B"]) -> Int[Array, ""]:
    """Which of the sizes holds all live rows: an index."""
    live = jnp.max(jnp.sum(~ended.reshape(self.shards, -1), axis=1, dtype=jnp.int32))
    return jnp.sum(live > jnp.array([s // self.shards for s in sizes[:-1]], jnp.int32), dtype=jnp.int32)

  def live_first(self, ended: Bool[Array, "B"], size: int) -> Int[Array, "r b/r"]:
    """`size` rows with all live ones among them, as indices within each shard; rising where possible."""
    return jnp.argsort(ended.reshape(self.shards, -1), axis=1, stable=True)[:, : size // self.shards]

  def gather(self, tree, rows: Int[Array, "r b/r"]):
    """[B, ...] -> [b, ...]; every device takes from its own rows."""
    take = jax.vmap(lambda a, i: a[i])
    return jax.tree.map(lambda a: take(self._by_shard(a), rows).reshape(rows.size, *a.shape[1:]), tree)

  def scatter(self, tree, part, rows: Int[Array, "r b/r"]):
    """Puts gathered rows back: `tree` [B, ...] with `part` [b, ...] at `rows`."""
    put = jax.vmap(lambda a, i, new: a.at[i].set(new, unique_indices=True))
    return jax.tree.map(
      lambda a, new: put(self._by_shard(a), rows, new.reshape(*rows.shape, *a.shape[1:])).reshape(a.shape), tree, part
    )

  def _by_shard(self, a: Array) -> Array:
    return a.reshape(self.shards, -1, *a.shape[1:])


DEFAULT = Segments()
PLAIN = Segments(length=0)  # the reference
