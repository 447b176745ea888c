"""Principal subspaces of W0: how much of an update lies in them, and how far it turns them.

W0 = U S V'. With k = floor(rho n), the joint projection of an update dW is |U_k' dW V_k|^2 / |dW|^2 (Frobenius norms), the
one-sided ones |U_k' dW|^2 / |dW|^2 and |dW V_k|^2 / |dW|^2. Of an update without structure they are k^2 / (m n), k / m
and k / n.

Dimensions: m rows, n columns, m >= n; k vectors.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from opd_jax.analysis.geometry.blocks import Matrix, total
from opd_jax.analysis.geometry.coordinates import SHARES
from opd_jax.analysis.geometry.spectra import krylov

EXACT_SIDE = 8192  # n up to which all vectors are computed; beyond, the first k in a Krylov space


@dataclasses.dataclass(frozen=True)
class Principal:
  """The first singular values of a matrix and their right vectors; the left ones are W V / s.

  Attributes:
    values: largest first.
    vectors: V_k.
  """

  values: Float[Array, " k"]
  vectors: Float[Array, "n k"]


def widths(n: int, shares: Sequence[float] = SHARES) -> list[int]:
  """The numbers of vectors k = floor(rho n), at least 1."""
  return [max(1, int(rho * n + 1e-9)) for rho in shares]


def principal(matrix: Matrix, k: int, seed: int = 0) -> Principal:
  """Find the first k singular values and right vectors, from the Gram matrix of the shorter side."""
  n = matrix.shape[1]
  if n <= EXACT_SIDE:
    return Principal(*_largest(total(matrix, _gram), k))
  values, vectors = krylov(matrix, k, seed, block=k // 2 + 32, steps=4)
  return Principal(jnp.asarray(values, jnp.float32), vectors)


@jax.jit
def _gram(x: Array) -> Array:
  return x.T @ x


@functools.partial(jax.jit, static_argnums=1)
def _largest(gram: Array, k: int) -> tuple[Array, Array]:
  values, vectors = jnp.linalg.eigh(gram)
  return jnp.sqrt(jnp.maximum(values[::-1][:k], 0)), vectors[:, ::-1][:, :k]


@jax.jit
def left_vectors(
  weight: Float[Array, "b n"], basis: Float[Array, "n k"], values: Float[Array, " k"]
) -> Float[Array, "b k"]:
  """The rows of U_k that belong to a block of W0; zero for a value of zero."""
  return weight @ basis / jnp.where(values > 0, values, jnp.inf)


@jax.jit
def approximation(
  weight: Float[Array, "b n"], basis: Float[Array, "n k"], values: Float[Array, " k"], first: int
) -> Float[Array, "b n"]:
  """The rows of U S V' that belong to a block of W0, of the first so many vectors: traced, so that every number is one program."""
  kept = (values > 0) & (jnp.arange(values.shape[0]) < first)
  return (weight @ basis * kept) @ basis.T  # U S = W V


class Projection:
  """The projections of an update onto the first k vectors of W0 for several k, summed over blocks."""

  def __init__(self, found: Principal, ks: Sequence[int]):
    self._basis, self._ks = found.vectors, list(ks)
    self._left: Array | None = None  # U_k' dW
    self._right = np.zeros(len(self._ks))  # |dW V_k|^2

  def add(self, left: Float[Array, "b k"], update: Float[Array, "b n"]) -> None:
    """Add a block of the update, with the rows of U_k that belong to it."""
    product, columns = _products(left, update, self._basis)
    self._left = product if self._left is None else self._left + product
    columns = np.asarray(columns, np.float64)
    self._right += [columns[:k].sum() for k in self._ks]

  def shares(self, square: float) -> list[tuple[float, float, float]] | None:
    """The shares of the update's squared norm `square` for each k: joint, of U_k alone, of V_k alone; None of no update."""
    if not square > 0 or self._left is None:
      return None
    joint = np.square(np.asarray(self._left @ self._basis, np.float64))
    rows = np.asarray(jnp.sum(jnp.square(self._left), axis=1), np.float64)
    return [
      (float(joint[:k, :k].sum() / square), float(rows[:k].sum() / square), float(right / square))
      for k, right in zip(self._ks, self._right, strict=True)
    ]


@jax.jit
def _products(left: Array, update: Array, basis: Array) -> tuple[Array, Array]:
  return left.T @ update, jnp.sum(jnp.square(update @ basis), axis=0)


def rotation(before: Principal, after: Principal, ks: Sequence[int]) -> list[float]:
  """How far the first k right vectors have turned, for each k: 1 - |V_k' V'_k|^2 / k, 0 for one subspace, 1 for orthogonal ones.

  It is the mean squared sine of the principal angles. The vectors are those of the shorter side.
  """
  overlap = np.square(np.asarray(before.vectors.T @ after.vectors, np.float64))
  return [float(max(0.0, 1 - overlap[:k, :k].sum() / k)) for k in ks]
