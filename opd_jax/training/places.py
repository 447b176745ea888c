"""A step's batch with places for prompts of two kinds, each of a width of its own: as many places always, and so the same programs.

    plain     the prompts of the data, new ones and others
    asked     prompts that are made of their rollouts
    an update has all groups that are learned from before its empty places

Dimensions: s places of an update, n rollouts of each, P prompt width.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from opd_jax.types import Batch, Images, Patches, Rollout


@dataclasses.dataclass(frozen=True)
class Places:
  """How many places a step has: as the mesh and the mini-batches divide them.

  Attributes:
    plain, asked: of the two kinds of prompts, where rollouts are drawn.
    update: of the update's batch.
  """

  plain: int
  asked: int
  update: int

  @classmethod
  def of(cls, plain: int, asked: int, shards: int, mini_batches: int) -> "Places":
    """Makes places for so many prompts of each kind.

    Args:
      shards: row shards of the mesh.
    """
    all_of = _rounded(plain + asked, shards * mini_batches)
    return cls(_rounded(plain, shards), _rounded(asked, shards), all_of)

  def order(self, plain: int, asked: int) -> tuple[Int[np.ndarray, " s"], Bool[np.ndarray, " s"]]:
    """Returns for `joined` the groups of an update's places, and which of the places are not empty.

    Args:
      plain, asked: how many prompts there are of each kind.
    """
    order = [*range(plain), *range(self.plain, self.plain + asked)]
    live = np.arange(self.update) < len(order)
    return np.array(order + [0] * (self.update - len(order)), np.int32), live


def _rounded(number: int, multiple: int) -> int:
  return -(-number // multiple) * multiple


def joined(
  parts: Sequence[tuple[Batch, Rollout]],
  order: Int[jax.Array, " s"],
  live: Bool[jax.Array, " s"],
  *,
  width: int,
  pad_id: int,
  features: int = 0,
) -> tuple[Batch, Rollout]:
  """Lays out groups of several batches as one.

  Args:
    parts: prompts of at most `width` tokens, and their responses.
    order: of each place the group that stands there, counted over all parts.
    live: false: a place is empty, and none of its tokens counts.
    width: of all prompts, tokens.
    features: of all prompts' images, at most.
  """
  wide = [(_widened(batch, width, pad_id, features), rollout) for batch, rollout in parts]
  groups = [batch.prompt.shape[0] for batch, _ in wide]

  def take(*arrays: jax.Array) -> jax.Array:
    grouped = [a.reshape(p, -1, *a.shape[1:]) for p, a in zip(groups, arrays, strict=True)]
    taken = jnp.concatenate(grouped)[order]
    return taken.reshape(-1, *taken.shape[2:])

  batch, rollout = jax.tree.map(take, *wide)
  n = rollout.mask.shape[0] // len(order)
  return batch, dataclasses.replace(rollout, mask=rollout.mask & jnp.repeat(live, n)[:, None])


def _widened(batch: Batch, width: int, pad_id: int, features: int) -> Batch:
  left = ((0, 0), (width - batch.prompt.shape[1], 0))
  prompt = jnp.pad(batch.prompt, left, constant_values=pad_id)
  images = batch.images and _with_room(batch.images, left, features)
  return dataclasses.replace(batch, prompt=prompt, prompt_mask=jnp.pad(batch.prompt_mask, left), images=images)


def _with_room(images: Images, left: tuple[tuple[int, int], tuple[int, int]], features: int) -> Images:
  """Widens the prompts of images likewise, and makes room for so many features."""

  def behind(a: jax.Array, axis: int, length: int, fill: int = 0) -> jax.Array:
    return jnp.pad(a, [(0, length - n if i == axis else 0) for i, n in enumerate(a.shape)], constant_values=fill)

  found = dataclasses.replace(
    images, index=jnp.pad(images.index, left, constant_values=-1), positions=jnp.pad(images.positions, (*left, (0, 0)))
  )
  if (patches := images.patches) is None:
    assert images.features is not None
    assert images.taps is not None
    return dataclasses.replace(
      found, features=behind(images.features, 1, features), taps=behind(images.taps, 2, features)
    )
  fills = Patches(pixels=0, row=0, column=0, size=1, image=-1)  # pyright: ignore[reportArgumentType]
  return dataclasses.replace(found, patches=jax.tree.map(lambda a, fill: behind(a, 1, features, fill), patches, fills))
