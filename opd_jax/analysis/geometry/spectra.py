"""Singular values of an update: the energy of the largest, and three ranks. Exact, or randomised for large matrices.

Randomised, the largest values come from a block Krylov space (Musco and Musco 2015, arXiv:1504.05477), and what depends on all
values from Golub and Kahan's bidiagonalisation started at random vectors, whose Gauss quadrature stands for the distribution of
the values that are left (stochastic Lanczos quadrature: Ubaru, Chen and Saad 2017).

Dimensions: m rows, n columns, m >= n; k largest values; b columns of a Krylov block; p probes.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from opd_jax.analysis.geometry.blocks import Matrix, total
from opd_jax.analysis.geometry.coordinates import squares
from opd_jax.analysis.geometry.nulls import rng

TOP = 64  # k: the largest singular values whose energies are kept
RANK_TOLERANCE = 1e-5  # of the largest value, above which a value counts to the numerical rank
NOISE = 3e-5  # of the largest value: what fp32 leaves of that in an estimate of the others, 1.1e-5 at the most seen
GRAM_SIDE = 8192  # n up to which a Gram matrix is made of a matrix that is read from a file
RESOLVED = 1e-2  # of the largest value, what a Gram matrix in fp32 tells to 1% at least
BLOCK, STEPS = 96, 6  # b, and products with A'A, of the Krylov space
PROBES, QUADRATURE = (8, 32), 24  # p, of large matrices and of small, and steps of the bidiagonalisation


@dataclasses.dataclass(frozen=True)
class Spectrum:
  """Statistics of the singular values s of a matrix that is not zero; e = s^2 / sum of s^2.

  Attributes:
    energy: e summed over the k largest, for k = 1 ... TOP (fewer in a smaller matrix).
    stable_rank: Frobenius norm squared over spectral norm squared.
    numerical_rank: the share of the n values that are above RANK_TOLERANCE of the largest.
    entropy_rank: exp(-sum e log e), the effective rank of Roy and Vetterli 2007 taken of energies.
    exact: whether all values were computed.
  """

  energy: list[float]
  stable_rank: float
  numerical_rank: float
  entropy_rank: float
  exact: bool


def spectrum(matrix: Matrix, exact_side: int, seed: int = 0, stored: bool = False) -> Spectrum | None:
  """Compute a spectrum, exactly where n is at most `exact_side`; None of a matrix of zeros.

  Args:
    stored: every pass over the blocks reads them from a file. One pass for the Gram matrix is then tried first.
  """
  n = matrix.shape[1]
  if n <= max(0 if stored else exact_side, BLOCK * (STEPS + 1)):  # the Krylov space would be the whole one
    return of_values(exact_values(matrix))
  if stored and n <= GRAM_SIDE:
    values = gram_values(matrix)
    if values[-1] > RESOLVED * values[0]:
      return of_values(values)
  return randomised(matrix, seed)


def of_values(values: Float[np.ndarray, " n"]) -> Spectrum | None:
  """Make a spectrum of all singular values, largest first; None where all are 0."""
  s = np.asarray(values, np.float64)
  if not s.size or not s[0] > 0:
    return None
  e = np.square(s / s[0])
  whole = e.sum()
  e = e / whole
  positive = e[e > 0]
  return Spectrum(
    energy=np.cumsum(e)[:TOP].tolist(),
    stable_rank=float(whole),
    numerical_rank=float(np.mean(s > RANK_TOLERANCE * s[0])),
    entropy_rank=float(np.exp(-np.sum(positive * np.log(positive)))),
    exact=True,
  )


def exact_values(matrix: Matrix) -> Float[np.ndarray, " n"]:
  """Compute all singular values: those of the triangular factor R of a QR decomposition, joined block by block.

  A Gram matrix would be cheaper and lose in fp32 the values below 3e-4 of the largest.
  """
  m, n = matrix.shape
  triangle = None
  for block in matrix.blocks():
    if m == n and block.shape[0] == m:
      triangle = block  # it saves nothing
    else:
      joined = block if triangle is None else jnp.concatenate([triangle, block])
      triangle = jax.block_until_ready(_triangle(joined))  # before the next block is read
  assert triangle is not None
  return np.asarray(_values(triangle))


def gram_values(matrix: Matrix) -> Float[np.ndarray, " n"]:
  """Compute all singular values from A'A, in one pass; what is below RESOLVED of the largest is not known to 1%."""
  values = np.asarray(_gram_values(total(matrix, _square)), np.float64)
  return np.sqrt(np.maximum(values[::-1], 0))


@jax.jit
def _square(x: Array) -> Array:
  return x.T @ x


@jax.jit
def _gram_values(gram: Array) -> Array:
  return jnp.linalg.eigvalsh(gram)


@jax.jit
def _triangle(a: Array) -> Array:
  return jnp.linalg.qr(a, mode="r")


@jax.jit
def _values(a: Array) -> Array:
  return jnp.linalg.svd(a, compute_uv=False)


def randomised(matrix: Matrix, seed: int = 0) -> Spectrum | None:
  """Estimate a spectrum from products with A and A' alone; top energies and ranks within about 1%.

  Beyond the largest, what is below `NOISE` counts to no rank.

  STEPS + 4 passes over the blocks for the largest values, and 2 QUADRATURE for the others.
  """
  scale = math.sqrt(sum(float(squares(x)) for x in matrix.blocks()))
  if not scale > 0:
    return None
  # Right singular vectors V and values of the largest, by a Rayleigh-Ritz step in the Krylov space.
  _, vectors = krylov(matrix, TOP, seed)
  # The values once more without a Gram matrix, whose noise in fp32 would count to the numerical rank.
  columns = Matrix((matrix.shape[0], vectors.shape[1]), lambda: (x @ vectors for x in matrix.blocks()))
  values = exact_values(columns).astype(np.float64)
  e = np.square(np.minimum(values / scale, 1.0))
  kept = min(TOP, len(e))
  held = float(e[:kept].sum())
  nodes, parts = _quadrature(matrix, vectors[:, :kept], seed)
  nodes = nodes / scale
  # Of the other n - k values: the quadrature's parts, scaled so that their energies sum to what is left of the norm.
  n, left = matrix.shape[1], max(0.0, 1.0 - held)
  left_energy = np.square(nodes)
  mean = float(np.sum(parts * left_energy))
  others = parts * (n - kept)
  tail = -math.fsum(others * left_energy * np.log(np.where(left_energy > 0, left_energy, 1.0)))
  expected = mean * (n - kept)
  # -sum e log e is measured where quadrature's energies sum to `expected`; scaled by c = left / expected, e log e gains e log c.
  c = left / expected if expected > 0 else 0.0
  entropy = -float(np.sum(e[:kept] * np.log(np.where(e[:kept] > 0, e[:kept], 1.0))))
  if c > 0:
    entropy += c * tail - left * math.log(c)
  tolerance = RANK_TOLERANCE * values[0] / scale
  floor = max(RANK_TOLERANCE, NOISE) * values[0] / scale
  rank = float(np.sum(values[:kept] / scale > tolerance)) + float(np.sum(others[nodes > floor]))
  return Spectrum(
    energy=np.cumsum(e[:kept]).tolist(),
    stable_rank=float(1 / e[0]),
    numerical_rank=rank / n,
    entropy_rank=math.exp(entropy),
    exact=False,
  )


def krylov(
  matrix: Matrix, k: int, seed: int = 0, block: int = BLOCK, steps: int = STEPS
) -> tuple[Float[np.ndarray, " k"], Float[Array, "n k"]]:
  """The k largest singular values, largest first, and their right singular vectors, from a block Krylov space of A'A."""
  n = matrix.shape[1]
  start = jnp.asarray(rng(seed, "krylov").standard_normal((n, block), np.float32))
  basis = [_orthonormal(start)]
  for _ in range(steps):
    following = total(matrix, lambda x, v=basis[-1]: x.T @ (x @ v))
    for _ in range(2):  # once more, since fp32 loses what a single pass leaves
      for own in basis:
        following = following - own @ (own.T @ following)
      following = _orthonormal(following)
    basis.append(following)
  space = jnp.concatenate(basis, axis=1)
  gram = total(matrix, lambda x: _gram(x, space))
  values, vectors = jnp.linalg.eigh(gram)
  values, vectors = values[::-1][:k], vectors[:, ::-1][:, :k]
  return np.sqrt(np.maximum(np.asarray(values, np.float64), 0)), space @ vectors


@jax.jit
def _orthonormal(x: Array) -> Array:
  return jnp.linalg.qr(x)[0]


@jax.jit
def _gram(x: Array, space: Array) -> Array:
  y = x @ space
  return y.T @ y


def _quadrature(
  matrix: Matrix, top: Float[Array, "n k"], seed: int
) -> tuple[Float[np.ndarray, " i"], Float[np.ndarray, " i"]]:
  """Nodes and weights that stand for the singular values of A other than those of the vectors `top`; weights sum to 1.

  Each probe is bidiagonalised by itself, orthogonal to `top` and to its own former vectors on the right; those on the left, which
  are longer, need not be kept (Simon and Zha 2000).
  """
  n = matrix.shape[1]
  probes = max(PROBES[0], min(PROBES[1], 24_000 // n))  # a probe of a larger matrix is closer to the mean
  # Where fewer columns than steps are left, the space is whole before the last of them.
  steps = max(1, min(QUADRATURE, n - top.shape[1] - 1))

  def without(v: Array, former: list[Array]) -> Array:
    for _ in range(2):
      v = v - top @ (top.T @ v)
      for own in former:
        v = v - own * jnp.sum(own * v, axis=0)
    return v

  v = without(jnp.asarray(rng(seed, "probes").choice([-1.0, 1.0], (n, probes)), jnp.float32), [])
  v = v / jnp.linalg.norm(v, axis=0)
  right, u, beta = [v], None, None
  alphas, betas = [], []
  for _ in range(steps):
    product = jnp.concatenate([jax.block_until_ready(x @ right[-1]) for x in matrix.blocks()])
    u = product if u is None or beta is None else product - u * beta
    alpha = jnp.linalg.norm(u, axis=0)
    u = u / jnp.where(alpha > 0, alpha, 1.0)
    following, row = jnp.zeros_like(v), 0
    for x in matrix.blocks():
      following = jax.block_until_ready(following + x.T @ u[row : row + x.shape[0]])
      row += x.shape[0]
    following = without(following, right)
    beta = jnp.linalg.norm(following, axis=0)
    alphas.append(np.asarray(alpha, np.float64))
    betas.append(np.asarray(beta, np.float64))
    right.append(following / jnp.where(beta > 0, beta, 1.0))
  nodes, parts = [], []
  for probe in range(probes):
    a, b = np.array([x[probe] for x in alphas]), np.array([x[probe] for x in betas])
    # Rounding goes on behind the end of an invariant space; what follows it is noise of the size of the norm's last bit.
    small = 1e-6 * max(a.max(), b.max())
    length = next((i + 1 for i in range(len(a)) if b[i] <= small), len(a))
    bidiagonal = np.diag(a[:length]) + np.diag(b[: length - 1], 1)
    _, s, vectors = np.linalg.svd(bidiagonal)
    nodes.append(s)
    parts.append(np.square(vectors[:, 0]) / probes)
  return np.concatenate(nodes), np.concatenate(parts)
