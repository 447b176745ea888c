"""What the teacher of d-OPSD is shown of the student's own finished answer, and where it is then compared with the student (arXiv:2606.18195).

Of a canvas before step t, its masks M (the positions committed at t or later):

    R   is revealed to the teacher: a share of M drawn at random ("any", the paper), a share of M from the next block on, none once that
        begins behind the answer's first stop token ("ahead", the released code); or the whole answer in front of the canvas ("prefix"),
        as in OPSD, and then R is empty
    K   is compared: of M without R as many positions as step t commits, those of which the teacher is surest ("teacher", surest by its
        largest probability), or those that the student committed ("student"), or all ("all")

R and K have no position in common, which the paper leaves open: at a position of both the teacher would copy the answer. As many masks as
step t commits are set aside at random, within the block where K has to be in it, so that the sizes of K sum to H over all steps; with
"student" they are those that the student commits. R is the share of the masks, as far as there are others.

Dimensions: B rows, H response positions, k positions that are compared.
"""

import dataclasses

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

REVEALS = ("any", "ahead", "prefix")
COMPARED = ("teacher", "student", "all")


@dataclasses.dataclass(frozen=True)
class SelfFuture:
  """What is revealed and what is compared.

  Attributes:
    reveal: one of REVEALS.
    share: of the masks, in [0, 1]; a number of positions that is not whole is rounded up as often as its fraction says.
    compared: one of COMPARED.
    in_block: whether K is within the block that step t fills.
    block: its positions.
  """

  reveal: str
  share: float
  compared: str
  in_block: bool
  block: int

  def revealed(
    self,
    committed_at: Int[Array, "B H"],
    step: Int[Array, " B"],
    block_of_step: Int[Array, " B"],
    first_stop: Int[Array, " B"],
    order: Float[Array, "B H"],
    rounding: Float[Array, " B"],
  ) -> Bool[Array, "B H"]:
    """Choose R.

    Args:
      step: of each row's canvas, t.
      block_of_step: the block that the step fills, from 0.
      first_stop: the position of the answer's first stop token; H: it has none.
      order, rounding: random numbers in [0, 1).
    """
    masked = committed_at >= step[:, None]
    now = committed_at == step[:, None]
    if self.reveal == "prefix":
      return jnp.zeros_like(masked)
    place = jnp.arange(masked.shape[1])
    if self.reveal == "ahead":
      begin = (block_of_step + 1) * self.block
      candidates = masked & (place >= begin[:, None]) & (begin <= first_stop)[:, None]
      number = self.share * _count(candidates)
    else:
      in_reach = masked & (place // self.block == block_of_step[:, None]) if self.in_block else masked
      kept = _rank(jnp.where(in_reach, -order, 2.0)) < _count(now)[:, None]  # others than those that are revealed first
      candidates = masked & ~(now if self.compared == "student" else kept)
      number = self.share * _count(masked)
    number = jnp.floor(number + rounding).astype(jnp.int32)
    return candidates & (_rank(jnp.where(candidates, order, 2.0)) < number[:, None])

  def candidates(
    self,
    committed_at: Int[Array, "B H"],
    step: Int[Array, " B"],
    block_of_step: Int[Array, " B"],
    revealed: Bool[Array, "B H"],
  ) -> Bool[Array, "B H"]:
    """Tell which positions K is chosen from."""
    if self.compared == "student":
      return (committed_at == step[:, None]) & ~revealed
    found = (committed_at >= step[:, None]) & ~revealed
    if self.in_block:
      found &= jnp.arange(found.shape[1]) // self.block == block_of_step[:, None]
    return found

  def choose(
    self,
    candidates: Bool[Array, "B H"],
    committed_at: Int[Array, "B H"],
    step: Int[Array, " B"],
    confidence: Float[Array, "B H"],
    k: int,
  ) -> tuple[Int[Array, "B k"], Bool[Array, "B k"]]:
    """Choose K: positions, and which of them are in it.

    Args:
      confidence: the teacher's largest probability at each position.
      k: the most that a step commits; "all" takes every position.
    """
    if self.compared == "all":
      positions = jnp.broadcast_to(jnp.arange(candidates.shape[1]), candidates.shape)
      return positions, candidates
    _, positions = lax.top_k(jnp.where(candidates, confidence, -1.0), k)
    number = jnp.minimum(_count(committed_at == step[:, None]), _count(candidates))
    return positions, jnp.arange(k) < number[:, None]


def _count(a: Bool[Array, "B H"]) -> Int[Array, " B"]:
  return jnp.sum(a, axis=1, dtype=jnp.int32)


def _rank(order: Float[Array, "B H"]) -> Int[Array, "B H"]:
  return jnp.argsort(jnp.argsort(order, axis=1), axis=1)


def recorded(
  committed_at: Int[Array, "B H"],
  stops: Bool[Array, "B H"],
  step: Int[Array, " s"],
  last_block: int,
  total: int,
  kind: str,
) -> Bool[Array, "B s"]:
  """Tell which canvases are learned from: all of them, or as the released code records them ("unended").

  That leaves out the last block, and every canvas that has a stop token with no mask in front of it: its answer is complete. A canvas to
  which its step commits nothing, as a linear schedule has them, is that of the next step, and left out always.

  Args:
    stops: stop tokens of the finished answer.
    last_block: its steps; 0: there are no blocks.
    total: steps of the whole canvas.
  """
  commits = jnp.any(committed_at[:, None] == step[:, None], axis=2)
  if kind == "all":
    return commits
  masked = committed_at[:, None] >= step[:, None]  # [B, s, H]
  masks_before = jnp.cumsum(masked, axis=2) - masked
  complete = jnp.any(stops[:, None] & ~masked & (masks_before == 0), axis=2)
  return commits & ~complete & (step < total - last_block)
