"""Made-up updates of weights, as the analysis of their geometry takes them."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from opd_jax.analysis.geometry import measure, summary
from opd_jax.analysis.geometry.measure import OBSERVED, Options
from opd_jax.analysis.geometry.sources import Pair, Tensor


def tensor(array, mantissa=23, change=False) -> Tensor:
  array = np.asarray(array, np.float32)

  def read(start, stop, axis):
    return array[(slice(None),) * axis + (slice(start, stop),)]

  return Tensor(array.shape, mantissa, read, change)


def pair(before, after, mantissa=23, other=None, name="model.layers.0.mlp.up_proj.weight") -> Pair:
  return Pair(
    name, tensor(before, mantissa), tensor(after, mantissa), None if other is None else tensor(other, mantissa)
  )


def all_statistics(one: Pair, **options: Any) -> dict[str, dict[str, list[dict[str, Any]]]]:
  """The statistics of every draw, by kind of update and source."""
  chosen = dataclasses.replace(Options(draws=0), **options)
  found = measure.measure(one, chosen, measure.kinds([one], chosen))
  return {
    kind: {source: [summary.summarise([raw]) for raw in raws] for source, raws in own.items()}
    for kind, own in found.items()
  }


def statistics(one: Pair, kind: str = "fp32", **options) -> dict[str, Any]:
  """The statistics of the update itself, of one kind."""
  return all_statistics(one, **options)[kind][OBSERVED][0]


def bf16(x) -> np.ndarray:
  return np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32))


def gaussian_weights(shape, seed=0, std=0.02) -> np.ndarray:
  """Weights as they are stored in bf16."""
  return bf16(std * np.random.default_rng(seed).standard_normal(shape))


def moved(before, std, seed) -> np.ndarray:
  """Weights after an update without structure, stored in bf16."""
  return bf16(before + std * np.random.default_rng(seed).standard_normal(before.shape))


def orthonormal(n, k, seed) -> np.ndarray:
  return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, k)))[0]
