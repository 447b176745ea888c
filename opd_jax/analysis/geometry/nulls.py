"""What an update without structure would look like, rounded as checkpoints are, and whether a statistic goes beyond it.

Two nulls: the coordinates of the update permuted within their tensor, which keeps its values and forgets their places; and
normal values of the update's norm, which forgets both. Each is added to W0 and rounded as the checkpoint was, since rounding
alone makes updates look sparse, biased to small weights and overlapping (papers that study bf16 checkpoints see both at once).

An update d = W1 - W0 that is known more finely than r rounds is seen as r(r(W0) + d) - r(W0): by a run that began on the grid of
stored weights, as models do that are read from bf16 files. Where W0 lies between two of them does not matter then.
"""

import functools
import math
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float
from scipy import special

NULLS = ("permuted", "gaussian")
FULL_MANTISSA = 23  # explicit bits of fp32
BF16_MANTISSA = 7
LEVEL = 0.99  # of the interval outside which a value is beyond its null
SAME = 1e-5  # relative difference below which a value equals its null but for rounding errors


def round_mantissa(x: Float[Array, "..."], bits: int) -> Float[Array, "..."]:
  """Round fp32 to so many explicit mantissa bits, to the nearest and ties to even; 7 is bfloat16, 23 changes nothing."""
  if bits >= FULL_MANTISSA:
    return x
  drop = FULL_MANTISSA - bits
  whole = lax.bitcast_convert_type(x, jnp.uint32)
  odd = (whole >> drop) & 1
  rounded = (whole + (1 << (drop - 1)) - 1 + odd) & jnp.uint32(0xFFFFFFFF << drop & 0xFFFFFFFF)
  return jnp.where(jnp.isfinite(x), lax.bitcast_convert_type(rounded, jnp.float32), x)


def rng(seed: int, name: str, *numbers: int) -> np.random.Generator:
  """The generator of a tensor's draw: the same on every machine and for any number of devices."""
  return np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode()), *numbers]))


def permuted(update: Float[np.ndarray, "b n"], generator: np.random.Generator) -> Float[np.ndarray, "b n"]:
  """Permute the coordinates of a block of an update."""
  return generator.permutation(np.asarray(update).reshape(-1)).reshape(update.shape)


def gaussian(shape: tuple[int, ...], std: float, generator: np.random.Generator) -> Float[np.ndarray, "b n"]:
  """Draw normal values of a standard deviation."""
  out = generator.standard_normal(shape, np.float32)
  out *= np.float32(std)
  return out


@functools.partial(jax.jit, static_argnums=2)
def visible(before: Float[Array, "..."], update: Float[Array, "..."], bits: int) -> Float[Array, "..."]:
  """What is seen of an update that begins at rounded weights and ends at such: r(r(W0) + d) - r(W0)."""
  start = round_mantissa(before, bits)
  return round_mantissa(start + update, bits) - start


@functools.partial(jax.jit, static_argnums=2)
def difference(before: Float[Array, "..."], update: Float[Array, "..."], bits: int) -> Float[Array, "..."]:
  """The update between two checkpoints that are rounded: r(W0 + d) - r(W0).

  It is all that is known where W1 was stored rounded and W0 was not; where W0 is rounded it is what is `visible`.
  """
  return round_mantissa(before + update, bits) - round_mantissa(before, bits)


@functools.partial(jax.jit, static_argnums=2)
def stored(before: Float[Array, "..."], update: Float[Array, "..."], bits: int) -> Float[Array, "..."]:
  """An update as W0 and a checkpoint of W0 + d with so many bits have it: r(W0 + d) - W0, and of fp32 (W0 + d) - W0."""
  return round_mantissa(before + update, bits) - before


def matching_std(before: Float[Array, "..."], mean_square: float, bits: int, seed: int = 0) -> float:
  """Find the standard deviation of a normal update whose mean square is `mean_square` as `difference` has it.

  For checkpoints that are stored rounded: what of an update outlives rounding is larger than the update was, since most
  coordinates stay and the others move by a whole step. A null of the visible norm would be a larger update.

  Args:
    before: W0, or a sample of it.
    mean_square: of the update between rounded checkpoints; above 0.
  """
  noise = rng(seed, "matching_std").standard_normal(before.shape, np.float32)
  start = math.log(mean_square) / 2
  return float(_bisect(before, jnp.asarray(noise), mean_square, start - 16, start + 1, bits))


@functools.partial(jax.jit, static_argnums=5)
def _bisect(before, noise, mean_square, low, high, bits):
  """Halve an interval of log standard deviations 30 times; the mean square grows with the standard deviation."""

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) / 2
    above = jnp.mean(jnp.square(difference(before, jnp.exp(middle) * noise, bits))) > mean_square
    return jnp.where(above, low, middle), jnp.where(above, middle, high)

  low, high = lax.fori_loop(0, 30, halve, (jnp.float32(low), jnp.float32(high)))
  return jnp.exp((low + high) / 2)


def against_null(value: float | None, draws: Sequence[float | None]) -> dict[str, Any]:
  """Compare a statistic with draws of its null.

  Beyond is what lies outside Student's prediction interval for one more draw, at LEVEL, and differs by more than SAME of
  the null's mean, which is no more than rounding errors.

  Returns:
    "mean" and "sd" of the draws, "difference" and "ratio" to the mean, and "verdict": "above", "below", "within",
    "undefined", or "unknown" of a single draw, which has no spread. What is undefined is None.
  """
  known = [d for d in draws if d is not None]
  out: dict[str, Any] = dict.fromkeys(("mean", "sd", "difference", "ratio"))
  if value is None or not known or len(known) < len(draws):
    return out | {"verdict": "undefined"}
  mean = float(np.mean(known))
  out |= {"mean": mean, "difference": value - mean, "ratio": value / mean if mean else None}
  if abs(value - mean) <= SAME * max(abs(mean), abs(value)):
    verdict = "within"
  elif len(known) == 1:
    verdict = "unknown"
  else:
    n, sd = len(known), float(np.std(known, ddof=1))
    out["sd"] = sd
    reach = float(special.stdtrit(n - 1, (1 + LEVEL) / 2)) * sd * math.sqrt(1 + 1 / n)
    verdict = "within" if abs(value - mean) <= reach else "above" if value > mean else "below"
  return out | {"verdict": verdict}
