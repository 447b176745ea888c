"""Rotary position embeddings: frequencies, as models scale them for contexts longer than those they began with, and the rotation.

Dimensions: B rows, T positions, n heads, h head width.
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Llama-3's frequency scaling: long wavelengths are stretched by `factor`, and short ones are not."""

  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_positions: int


@dataclasses.dataclass(frozen=True)
class LinearScaling:
  """Position interpolation (Chen et al. 2023, arXiv:2306.15595): all wavelengths are stretched by `factor`."""

  factor: float


@dataclasses.dataclass(frozen=True)
class YarnScaling:
  """YaRN (Peng et al. 2023, arXiv:2309.00071): as llama3's by turns within the old context, with larger scores."""

  factor: float
  original_max_positions: int
  beta_fast: float  # turns from which on a frequency stays
  beta_slow: float  # turns up to which it is divided by `factor`
  attention_factor: float  # of queries and of keys


Scaling = RopeScaling | LinearScaling | YarnScaling


def frequencies(h: int, theta: float, scaling: Scaling | None) -> Float[Array, " pairs"]:
  """The angle per position of each pair of a head's numbers, in radians."""
  freq = theta ** (-jnp.arange(0, h, 2, dtype=jnp.float32) / h)
  match scaling:
    case None:
      return freq
    case LinearScaling(factor):
      return freq / factor
    case RopeScaling(factor, low, high, original):
      wavelength = 2 * math.pi / freq
      smooth = (original / wavelength - low) / (high - low)
      smooth = jnp.clip(smooth, 0.0, 1.0)
      return (1 - smooth) * freq / factor + smooth * freq
    case YarnScaling(factor, original, beta_fast, beta_slow):
      # The pair, as a real number, that makes so many turns within the original context.
      pair = lambda turns: h * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))
      first, last = max(math.floor(pair(beta_fast)), 0), min(math.ceil(pair(beta_slow)), h - 1)
      stretched = jnp.clip((jnp.arange(h // 2) - first) / max(last - first, 1e-3), 0.0, 1.0)
      return freq / factor * stretched + freq * (1 - stretched)


def tables(
  h: int,
  theta: float,
  scaling: Scaling | None,
  positions: Int[Array, "B T"] | Int[Array, "B T 3"],
  axes: tuple[int, ...] = (),
) -> tuple[Array, Array]:
  """The cosine and the sine of the rotary angles, f32[B, T, 1, h/2] each.

  Args:
    axes: where a token has three positions, the one that each frequency turns by, see mrope.py.
  """
  freq = frequencies(h, theta, scaling)
  by_frequency = positions[..., None] if positions.ndim == 2 else positions[..., jnp.array(axes)]
  angle = by_frequency[:, :, None, :].astype(jnp.float32) * freq
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  if isinstance(scaling, YarnScaling) and scaling.attention_factor != 1:
    return cos * scaling.attention_factor, sin * scaling.attention_factor
  return cos, sin


def rotate(x: Float[Array, "B T *n h"], rope: tuple[Array, Array]) -> Float[Array, "B T *n h"]:
  """Apply the rotary position embedding in fp32, where the first half of a head pairs with the second.

  Where the tables are of less than a head, its first numbers are rotated and the others stay.
  """
  cos, sin = rope
  if (width := 2 * cos.shape[-1]) < x.shape[-1]:
    return jnp.concatenate([rotate(x[..., :width], rope), x[..., width:]], axis=-1)
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def nowhere(like: tuple[Array, Array]) -> tuple[Array, Array]:
  """The tables of layers without rotary positions: they turn nothing."""
  cos, sin = like
  return jnp.ones_like(cos), jnp.zeros_like(sin)
