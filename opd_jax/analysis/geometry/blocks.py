"""Matrices in blocks of rows, so that what is computed from them needs no more memory than a block.

A matrix is taken with its longer axis first ("tall"): what is computed here does not change under transposition, and Gram
matrices are of the shorter side. Blocks of a matrix that is in memory are one, on the devices; those of a larger one are read
or made anew whenever they are asked for.

Dimensions: m rows, n columns, m >= n; b rows of a block.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float

ROWS = "rows"  # the only axis of `device_mesh`


def device_mesh() -> Mesh:
  """Make a mesh of all devices, over which the rows of a block lie."""
  return jax.make_mesh((jax.device_count(),), (ROWS,), axis_types=(jax.sharding.AxisType.Auto,))


def place(block: np.ndarray, mesh: Mesh | None) -> Array:
  """Put a block on the devices; rows that the devices do not divide lie on each of them in full."""
  if mesh is None or mesh.size == 1:
    return jnp.asarray(block)
  spec = P(ROWS) if block.shape[0] % mesh.size == 0 else P()
  return jax.device_put(block, NamedSharding(mesh, spec))


@dataclasses.dataclass(frozen=True)
class Matrix:
  """A matrix by its blocks of rows.

  Attributes:
    shape: m and n.
    blocks: makes the blocks, from the first row to the last.
  """

  shape: tuple[int, int]
  blocks: Callable[[], Iterator[Float[Array, "b n"]]] = dataclasses.field(repr=False)


def total(matrix: Matrix, term: Callable[[Array], Array]) -> Array:
  """Sum what is computed of every block."""
  found: Array | None = None
  for block in matrix.blocks():
    # Computing is asynchronous: without waiting, all blocks would be read before the first is done with.
    found = jax.block_until_ready(term(block) if found is None else found + term(block))
  assert found is not None
  return found


def of_array(array: Float[Array, "m n"]) -> Matrix:
  """A matrix that is in memory, as one block."""
  m, n = array.shape
  return Matrix((m, n), lambda: iter([array]))


def ranges(rows: int, columns: int, elements: int) -> list[tuple[int, int]]:
  """The first row and the row behind the last, of blocks of at most so many elements and at least a row."""
  step = max(1, elements // max(1, columns))
  return [(start, min(start + step, rows)) for start in range(0, rows, step)]


class Spill:
  """A matrix in a temporary file, written block by block and read as often as needed; closed, it is gone.

  The file lies where Python's tempfile puts it, which TMPDIR names.
  """

  def __init__(
    self,
    shape: tuple[int, int],
    spans: Sequence[tuple[int, int]],
    mesh: Mesh | None = None,
    dtype: DTypeLike = np.float32,
  ):
    self.shape, self._spans, self._mesh, self._dtype = shape, spans, mesh, np.dtype(dtype)
    self._file: IO[bytes] = tempfile.TemporaryFile(prefix="opd_jax_geometry_")  # noqa: SIM115

  def write(self, block: Array) -> None:
    """Add the next block."""
    self._file.write(np.ascontiguousarray(block, self._dtype).data)

  def read(self, i: int) -> Array:
    """Read a block by its number, once all are written."""
    (start, stop), n = self._spans[i], self.shape[1]
    self._file.seek(start * n * self._dtype.itemsize)
    data = self._file.read((stop - start) * n * self._dtype.itemsize)
    return place(np.frombuffer(data, self._dtype).reshape(stop - start, n), self._mesh)

  def matrix(self) -> Matrix:
    """The matrix, once all of its blocks are written."""
    return Matrix(self.shape, lambda: map(self.read, range(len(self._spans))))

  def close(self) -> None:
    """Remove the file."""
    self._file.close()
