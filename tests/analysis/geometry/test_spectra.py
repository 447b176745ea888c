"""Spectra that are estimated from products alone, beside exact ones."""

import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.analysis.geometry import blocks, spectra
from tests.helpers.updates import orthonormal

M, N = 900, 720  # N is more than the columns of the Krylov space


def decaying() -> np.ndarray:
  """A few large directions above a bulk without structure, as updates have them."""
  rng = np.random.default_rng(0)
  large = orthonormal(M, 40, 1) * (3.0 / np.sqrt(np.arange(1, 41))) @ orthonormal(N, 40, 2).T
  return (large + 0.05 * rng.standard_normal((M, N)) / np.sqrt(30)).astype(np.float32)


MATRICES = {
  "large directions above a bulk": decaying,
  "no structure": lambda: np.random.default_rng(1).standard_normal((M, N)).astype(np.float32),
  "rank 32": lambda: (orthonormal(M, 32, 3) @ orthonormal(N, 32, 4).T).astype(np.float32),
}


@pytest.mark.long
@pytest.mark.parametrize(
  "name", ["rank 32", *(pytest.param(n, marks=pytest.mark.long) for n in MATRICES if n != "rank 32")]
)
def test_the_randomised_is_within_a_hundredth_of_the_exact(name):
  a = MATRICES[name]()
  exact = spectra.of_values(np.linalg.svd(a.astype(np.float64), compute_uv=False))
  found = spectra.randomised(blocks.of_array(jnp.asarray(a)), seed=1)
  assert exact is not None
  assert found is not None
  assert not found.exact
  np.testing.assert_allclose(found.energy, exact.energy, rtol=0.01)
  assert len(found.energy) == spectra.TOP
  for statistic in ("stable_rank", "entropy_rank", "numerical_rank"):
    assert getattr(found, statistic) == pytest.approx(getattr(exact, statistic), rel=0.01), statistic


@pytest.mark.long
def test_blocks_of_rows_have_the_values_of_the_whole():
  a = decaying()[:, :200]
  spans = blocks.ranges(M, 200, 200 * 128)
  spill = blocks.Spill(a.shape, spans)
  for start, stop in spans:
    spill.write(jnp.asarray(a[start:stop]))
  assert len(spans) > 5
  found = spectra.exact_values(spill.matrix())
  np.testing.assert_allclose(found, np.linalg.svd(a.astype(np.float64), compute_uv=False), rtol=1e-4)
  spill.close()


def test_a_matrix_of_zeros_has_no_spectrum():
  zeros = blocks.of_array(jnp.zeros((8, 4)))
  assert spectra.spectrum(zeros, 4096) is None
  assert spectra.randomised(zeros) is None


@pytest.mark.long
@pytest.mark.parametrize(("name", "exact"), [("no structure", True), ("rank 32", False)])
def test_a_matrix_that_is_read_from_a_file_is_read_once_where_that_is_enough(name, exact):
  """A Gram matrix in fp32 has the values of a matrix that is far from singular; of another one it is not trusted."""
  a, passes = MATRICES[name](), []
  if exact:
    a[:N] += 40 * np.eye(
      N, dtype=np.float32
    )  # the smallest value of a random matrix that is almost square is too small

  def read():
    passes.append(None)
    return iter([jnp.asarray(a[:500]), jnp.asarray(a[500:])])

  found = spectra.spectrum(blocks.Matrix((M, N), read), 4096, stored=True)
  expected = spectra.of_values(np.linalg.svd(a.astype(np.float64), compute_uv=False))
  assert found is not None
  assert expected is not None
  assert found.exact == exact
  assert (len(passes) == 1) == exact
  np.testing.assert_allclose(found.energy, expected.energy, rtol=0.01)
  for statistic in ("stable_rank", "entropy_rank", "numerical_rank"):
    assert getattr(found, statistic) == pytest.approx(getattr(expected, statistic), rel=0.01), statistic
