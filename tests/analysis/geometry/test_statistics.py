"""Every statistic of an update against NumPy in float64, and against what is known of matrices that are made for it."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.analysis.geometry import coordinates, summary
from opd_jax.analysis.geometry.coordinates import ABSOLUTE, LARGEST, RELATIVE, SHARES
from opd_jax.analysis.geometry.sources import Pair
from opd_jax.analysis.geometry.subspaces import widths
from tests.helpers.updates import orthonormal, pair, statistics, tensor

SHAPES = {"tall": (60, 40), "wide": (40, 60), "square": (40, 40)}


def made(shape):
  """Weights with a decaying spectrum, and an update of many sizes, of which some coordinates are 0."""
  rng = np.random.default_rng(3)
  m, n = shape
  k = min(shape)
  before = orthonormal(m, k, 1) * np.linspace(2, 0.1, k) @ orthonormal(n, k, 2).T
  update = 10.0 ** rng.uniform(-7, -2, shape) * rng.choice([-1, 0, 1], shape, p=[0.4, 0.2, 0.4])
  before = before.astype(np.float32)
  return before, (before + update).astype(np.float32)


def reference(before, after):
  """All statistics of one matrix in float64, written as the definitions are."""
  w, d = before.astype(np.float64), after.astype(np.float64) - before
  size, a = w.size, np.abs(d).ravel()
  out = {"relative_norm": np.linalg.norm(d) / np.linalg.norm(w), "zero": np.mean(d == 0)}
  out |= {f"sparsity@{eps:g}": np.mean(a <= eps) for eps in ABSOLUTE}
  rms = math.sqrt(np.mean(w**2))
  out |= {f"relative_sparsity@{tau:g}": np.mean(a <= tau * rms) for tau in RELATIVE}
  held = np.concatenate([[0], np.cumsum(np.sort(a**2)[::-1])]) / np.sum(a**2)
  for p in LARGEST:
    out[f"coordinate_energy@{100 * p:g}%"] = np.interp(p * size, np.arange(size + 1), held)
  s = np.linalg.svd(d, compute_uv=False)
  e = s**2 / np.sum(s**2)
  out |= {f"top_energy@{k}": e[:k].sum() for k in summary.TOLD}
  out |= {
    "stable_rank": 1 / e[0],
    "numerical_rank": np.mean(s > 1e-5 * s[0]),
    "entropy_rank": np.exp(-np.sum(e * np.log(e))),
  }
  u, values, vt = np.linalg.svd(w, full_matrices=False)
  u1, _, vt1 = np.linalg.svd(after.astype(np.float64), full_matrices=False)
  for rho, k in zip(SHARES, widths(min(w.shape)), strict=True):
    name = f"@{100 * rho:g}%"
    out[f"projection{name}"] = np.sum((u[:, :k].T @ d @ vt[:k].T) ** 2) / np.sum(d**2)
    out[f"projection_left{name}"] = np.sum((u[:, :k].T @ d) ** 2) / np.sum(d**2)
    out[f"projection_right{name}"] = np.sum((d @ vt[:k].T) ** 2) / np.sum(d**2)
    one, two = (vt[:k].T, vt1[:k].T) if w.shape[0] >= w.shape[1] else (u[:, :k], u1[:, :k])
    out[f"rotation{name}"] = 1 - np.sum((one.T @ two) ** 2) / k
    largest = np.argsort(-np.abs((u[:, :k] * values[:k]) @ vt[:k]).ravel())[: round(rho * size)]
    smallest = np.argsort(np.abs(w).ravel())[: round(rho * size)]
    for alpha, end in ((0, ""), (1e-5, ">1e-05")):
      out[f"principal_coverage{name}{end}"] = np.sum(a[largest] > alpha) / np.sum(a > alpha)
      out[f"low_coverage{name}{end}"] = np.sum(a[smallest] > alpha) / np.sum(a > alpha)
  return out


@pytest.mark.parametrize("name", SHAPES)
def test_all_are_those_of_numpy(name):
  before, after = made(SHAPES[name])
  found = statistics(pair(before, after))
  expected = reference(before, after)
  assert found.keys() == expected.keys()
  for key, value in expected.items():
    # A mask may differ in one coordinate or two, which lie in the same bin as its last one.
    tolerance = 2.5 / (0.6 * before.size) if "coverage" in key else 5e-4
    assert found[key] == pytest.approx(value, rel=5e-4, abs=tolerance), key


@pytest.mark.long
@pytest.mark.parametrize("name", SHAPES)
def test_blocks_give_what_the_whole_gives(name):
  before, after = made(SHAPES[name])
  whole = statistics(pair(before, after))
  blocked = statistics(pair(before, after), whole=100, block=450)
  for key, value in whole.items():
    assert blocked[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key


def of_update(update):
  """The statistics of what is added to random weights, and not of a difference, which would be rounded."""
  before = np.random.default_rng(0).standard_normal(np.shape(update))
  added = Pair("layers.0.mlp.up_proj.weight", tensor(before), tensor(update, change=True))
  return statistics(added)


def test_rank_one():
  found = of_update(np.outer(np.arange(1, 41), np.linspace(1, 2, 30)))
  assert found["stable_rank"] == pytest.approx(1, abs=1e-5)
  assert found["top_energy@1"] == pytest.approx(1, abs=1e-5)
  assert found["entropy_rank"] == pytest.approx(1, abs=1e-4)
  assert found["numerical_rank"] == pytest.approx(1 / 30)


def test_the_identity():
  found = of_update(np.eye(32))
  assert found["stable_rank"] == pytest.approx(32, rel=1e-5)
  assert found["entropy_rank"] == pytest.approx(32, rel=1e-5)
  assert found["top_energy@8"] == pytest.approx(0.25, rel=1e-5)
  assert found["numerical_rank"] == 1
  assert found["zero"] == 31 / 32
  assert found["coordinate_energy@5%"] == pytest.approx(1, abs=1e-6)  # 1 of 32 is less than 5%


def test_an_update_that_is_sparse_by_construction():
  update = np.zeros((50, 20), np.float32)
  update[:5] = 3e-5  # a tenth, and a tenth of these at twice the size
  update[0, :10] = 6e-5
  found = of_update(update)
  assert (found["zero"], found["sparsity@1e-05"], found["sparsity@0.0001"]) == (0.9, 0.9, 1.0)
  assert found["coordinate_energy@1%"] == pytest.approx(40 / (40 + 90), abs=1e-4)


def test_an_update_within_the_principal_subspace():
  """dW = U_k A V_k' with k = 10% lies in it from both sides; built of the last vectors it has nothing in common with it."""
  rng = np.random.default_rng(0)
  u, v = orthonormal(80, 50, 1), orthonormal(50, 50, 2)
  before = (u * np.linspace(50, 1, 50)) @ v.T
  a = rng.standard_normal((5, 5))
  inside, outside = u[:, :5] @ a @ v[:, :5].T, u[:, -5:] @ a @ v[:, -5:].T
  for update, joint in ((inside, 1.0), (outside, 0.0)):
    found = statistics(pair(before, before + 1e-3 * update))
    for name in ("projection@10%", "projection_left@10%", "projection_right@10%"):
      assert found[name] == pytest.approx(joint, abs=1e-3), name


def test_a_turned_subspace():
  """Exchanging the vectors of the largest values for others makes the rotation 1; scaling all of them makes it 0."""
  v = orthonormal(40, 40, 4)
  before = (v * np.linspace(40, 1, 40)) @ v.T
  exchanged = (v * np.linspace(1, 40, 40)) @ v.T
  assert statistics(pair(before, exchanged))["rotation@20%"] == pytest.approx(1, abs=1e-3)
  assert statistics(pair(before, 1.5 * before))["rotation@20%"] == pytest.approx(0, abs=1e-3)


def test_masks_hold_what_they_say_whatever_is_equal():
  """A mask of 20% of coordinates of which half are equal takes a share of the equal ones, wherever they are."""
  x = jnp.ones((100, 50)).at[:50].set(0.5)
  counts = np.asarray(coordinates.histogram(x))
  cut = coordinates.cut(counts, 0.2, largest=False)
  mask = np.asarray(coordinates.members(x, cut.edge, cut.part, 0, largest=False))
  assert mask.mean() == pytest.approx(0.2, abs=0.015)
  assert not mask[50:].any()


def test_masks_that_are_disjoint_or_equal():
  assert coordinates.overlap(30, 20, 0, 100) == {"of_first": 0, "of_second": 0, "lift": 0}
  assert coordinates.overlap(20, 20, 20, 100) == {"of_first": 1, "of_second": 1, "lift": 5}
  assert coordinates.overlap(0, 20, 0, 100) == {"of_first": None, "of_second": 0, "lift": None}
