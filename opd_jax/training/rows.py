"""The rows that an update computes on, and what is measured of them.

Dimensions: B rows, H response width.
"""

import dataclasses
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from opd_jax.objectives.divergence import HiddenAndHead
from opd_jax.objectives.loss import TokenWeights
from opd_jax.training import microbatch
from opd_jax.types import Batch, Rollout, RowContext

MU_BINS = 10  # of a token's probability when it was drawn


@flax.struct.dataclass
class Rows:
  """The rows of a batch that an update computes on: n neighbours for each of its prompts."""

  batch: Batch
  rollout: Rollout
  token_weights: TokenWeights
  advantage: Float[Array, "*m B"] | Float[Array, "*m B H"] | None  # m micro-batches, where the rows are split into them
  shuffle: Float[Array, "*m B H"] | None = None  # random: the order in which shuffled predictions stand
  context: RowContext | None = None  # what the teacher reads, where each row has its own

  @property
  def n(self) -> int:
    """The rows of a prompt."""
    return self.rollout.response.shape[-2] // self.batch.prompt.shape[-2]

  @property
  def of_teacher(self) -> Batch:
    """The prompts that the teacher reads: one for each row, or for each prompt of the batch."""
    if self.context is None:
      return self.batch.of_teacher
    return Batch(prompt=self.context.prompt, prompt_mask=self.context.prompt_mask)

  def cut(self, width: int) -> "Rows":
    """Drops the response columns from `width` on."""
    H = self.rollout.mask.shape[1]
    by_token = ("rollout", "token_weights", "shuffle")
    if self.advantage is not None and self.advantage.ndim == 2:
      by_token = (*by_token, "advantage")
    cut = microbatch.cut_columns(tuple(getattr(self, name) for name in by_token), width, H)
    return dataclasses.replace(self, **dict(zip(by_token, cut, strict=True)))


class Stats(NamedTuple):
  """The metrics of some rows, to be joined with those of others."""

  sums: dict[str, Array]  # over tokens, by bin of position; "by_mu" by tenth of the probability when drawn
  largest: dict[str, Array]

  @classmethod
  def of(cls, by_position: dict[str, Array], moves: dict[str, Float[Array, "B H"]], rollout: Rollout) -> "Stats":
    """Adds to sums by position what is known of tokens that have moved since they were drawn, see objectives/loss.py."""
    if "gradient_weight" not in moves:
      return cls(by_position, {})
    mask, w = rollout.mask, moves["gradient_weight"]
    bins = jnp.clip((jnp.exp(rollout.behavior_logprob) * MU_BINS).astype(jnp.int32), 0, MU_BINS - 1)

    def by_mu(a: Array) -> Array:
      return jax.ops.segment_sum(jnp.where(mask, a, 0.0).reshape(-1), bins.reshape(-1), MU_BINS)

    def most(a: Array) -> Array:
      return jnp.max(jnp.where(mask, a, -jnp.inf))

    of_mu = {"moved_by_mu": by_mu(moves["moved"]), "count_by_mu": by_mu(jnp.ones(mask.shape, jnp.float32))}
    largest = {"gradient_weight_max": most(w), "minus_gradient_weight_min": most(-w), "ratio_max": most(moves["ratio"])}
    return cls(by_position | of_mu, largest)


def shuffled(teacher: HiddenAndHead, mask: Bool[Array, "B H"], order: Float[Array, "B H"]) -> HiddenAndHead:
  """Puts what a teacher predicts at each token in the place of another's, over all generated tokens of these rows.

  Args:
    order: random numbers in [0, 1), by whose order the predictions stand.
  """
  flat, last = mask.reshape(-1), mask.size
  place = jnp.argsort(jnp.where(flat, jnp.arange(last), last))  # the generated tokens first
  source = jnp.argsort(jnp.where(flat, order.reshape(-1), 2.0))
  index = jnp.arange(last).at[place].set(source)
  hidden = teacher.hidden.reshape(last, -1)[jnp.where(flat, index, jnp.arange(last))]
  return teacher._replace(hidden=hidden.reshape(teacher.hidden.shape))


def lengths(rollout: Rollout) -> dict[str, Array]:
  """Counts generated tokens, and the shares of rows that ended by themselves and that the horizon cut."""
  ended = jnp.mean(rollout.ended, dtype=jnp.float32)
  return {"tokens": jnp.sum(rollout.mask, dtype=jnp.int32), "ended": ended, "cut": 1 - ended}
