"""Where the features of images stand among the tokens of prompts: in the place of embeddings, at positions of their own.

Dimensions: p prompts, P prompt width, S positions of a sequence, M features of a prompt, K taps, D model width.
"""

import dataclasses

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from opd_jax.models import vision
from opd_jax.models.attention import PromptGroup
from opd_jax.models.vision import VisionConfig
from opd_jax.types import Images, Params


def encoded(
  params: Params | None, tower: VisionConfig | None, images: Images, dtype: DTypeLike, remat: bool = False
) -> Images:
  """Encode images that come as patches by a model's own tower; others are as they are.

  Args:
    params: the tower's.

  Raises:
    ValueError: the model has no tower with it.
  """
  if images.patches is None:
    return images
  if params is None or tower is None:
    raise ValueError("images come as patches, and the model that reads them has no vision tower with it")
  found = vision.encode(params, tower, images.patches, dtype=dtype, remat=remat)
  return dataclasses.replace(images, features=found.features, taps=found.taps, patches=None)


def insert(x: Float[Array, "p S D"], images: Images) -> Float[Array, "p S D"]:
  """Put the features in the place of the embeddings of the tokens that stand for them, which are in the prompt."""
  assert images.features is not None
  P = images.index.shape[1]
  here = (images.index >= 0)[..., None]
  return x.at[:, :P].set(jnp.where(here, _spread(images.features, images).astype(x.dtype), x[:, :P]))


def add_tap(x: Float[Array, "p S D"], images: Images, layer: Int[Array, ""] | int) -> Float[Array, "p S D"]:
  """Add the tap of a layer, if it has one, to the hidden states behind it where features stand.

  Args:
    layer: of the decoder; the first K have taps.
  """
  assert images.taps is not None
  taps, (K, P) = images.taps, (images.taps.shape[1], images.index.shape[1])
  if K == 0 or (isinstance(layer, int) and layer >= K):
    return x
  here = (images.index >= 0)[..., None] & (layer < K)
  own = jnp.take(taps, jnp.minimum(layer, K - 1), axis=1)
  return x.at[:, :P].add(jnp.where(here, _spread(own, images), 0).astype(x.dtype))


def _spread(a: Float[Array, "p M D"], images: Images) -> Float[Array, "p P D"]:
  return jnp.take_along_axis(a, jnp.maximum(images.index, 0)[..., None], axis=1)


def positions(images: Images, length: int, group: PromptGroup | None) -> Int[Array, "p S 3"]:
  """The positions of prompts and of what stands behind them, up to `length`, or laid out as a group."""
  P = images.index.shape[1]
  if group is None:
    behind = jnp.arange(length - P, dtype=jnp.int32)
  else:
    behind = jnp.tile(jnp.arange(group.response, dtype=jnp.int32), group.n)
  of_text = images.next_position[:, None] + behind
  return jnp.concatenate([images.positions, jnp.repeat(of_text[..., None], 3, axis=2)], axis=1)
