"""What this machine's device can do: bytes per second read and copied, FLOPs per second of matrix products.

Every probe is a chain of operations inside one program, each reading what the last one wrote, so that dispatch costs
next to nothing and no operation can be left out. The rate of reading depends on whether the array fits a cache, so it
is measured for several sizes; what a token reads (weights and filled caches) is read again at the next one, and its
roofline is the rate of an array of that size.
"""

import dataclasses
import functools
import math
import os
import pathlib
import platform
import statistics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from opd_jax.runtime import timing

MIB = 2**20


class Rate(NamedTuple):
  """Units per second, the best and the median of the repeats."""

  best: float
  median: float


class ReadRate(NamedTuple):
  """The rate at which an array of `size` bytes is read, in bytes per second."""

  size: int
  rate: Rate


@dataclasses.dataclass(frozen=True)
class Machine:
  """The rates of one device, measured.

  Attributes:
    reads: rising in size; the last array is larger than the caches.
    copy: bytes per second read and written together, of an array as large as the last of `reads`.
    matrix: FLOPs per second of a square product in the compute type.
  """

  reads: tuple[ReadRate, ...]
  copy: Rate
  matrix: Rate

  def bandwidth(self, size: float) -> float:
    """Returns the bytes per second of reading `size` bytes repeatedly, interpolated in the sizes' logarithms."""
    sizes, best = zip(*((r.size, r.rate.best) for r in self.reads), strict=True)
    # A smaller array is read at least as fast as a larger one: where it was not, something disturbed it.
    best = np.maximum.accumulate(best[::-1])[::-1]
    return float(np.interp(math.log(max(size, 1)), np.log(sizes), best))

  def as_json(self) -> dict[str, Any]:
    """Returns every rate as plain data."""
    reads = [{"size": r.size, **r.rate._asdict()} for r in self.reads]
    return {"reads": reads, "copy": self.copy._asdict(), "matrix": self.matrix._asdict()}


def measure(dtype: jnp.dtype, repeat: int = 5, *, small: bool = False) -> Machine:
  """Measures the first device, in seconds on two CPU cores.

  Args:
    dtype: of the matrix products.
    repeat: timed repeats of each probe, after one that warms up.
    small: takes milliseconds, on arrays that any cache holds.
  """
  if small:
    array_sides, product_side = (512, 1024), 256
  elif jax.default_backend() == "cpu":
    array_sides, product_side = (512, 1024, 2048, 4096, 8192), 2048
  else:
    array_sides, product_side = (2048, 16384), 8192
  return Machine(
    reads=tuple(ReadRate(4 * n * n, read_bandwidth(n, repeat)) for n in array_sides),
    copy=copy_bandwidth(array_sides[-1], repeat),
    matrix=matrix_rate(product_side, dtype, repeat),
  )


def read_bandwidth(n: int, repeat: int) -> Rate:
  """Measures the bytes per second of reading a matrix f32[n, n], which is multiplied by a vector over and over."""
  steps = jnp.int32(max(2, 512 * MIB // (4 * n * n)))
  matrix, vector = jnp.full((n, n), 1 / n), jnp.ones((n,))

  @jax.jit
  def chain(a, v, steps):
    return lax.fori_loop(0, steps, lambda _, v: a @ v, v)

  return _measured_rate(4 * n * n * int(steps), chain, (matrix, vector, steps), repeat)


def copy_bandwidth(n: int, repeat: int) -> Rate:
  """Measures the bytes per second, read and written together, of adding one to f32[n, n] in place."""
  steps = jnp.int32(4)

  @functools.partial(jax.jit, donate_argnums=0)
  def chain(a, steps):
    return lax.fori_loop(0, steps, lambda _, a: a + 1, a)

  array = jnp.zeros((n, n))
  spent = []
  for _ in range(repeat + 1):
    seconds, array = timing.timed(functools.partial(chain, array, steps))
    spent.append(seconds)
  return _rate(2 * 4 * n * n * int(steps), spent[1:])


def matrix_rate(n: int, dtype: jnp.dtype, repeat: int) -> Rate:
  """Measures the FLOPs per second of products [n, n] x [n, n] in `dtype`."""
  steps = jnp.int32(4 if jax.default_backend() == "cpu" else 16)
  matrix = jnp.full((n, n), 1 / n, dtype)

  @jax.jit
  def chain(a, b, steps):
    return lax.fori_loop(0, steps, lambda _, b: a @ b, b)

  return _measured_rate(2 * n**3 * int(steps), chain, (matrix, matrix, steps), repeat)


def cores() -> int:
  """Counts the cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
  """The host's processor by name, where the system says."""
  info = pathlib.Path("/proc/cpuinfo")
  lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
  named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
  return next(named, platform.processor() or platform.machine())


def _measured_rate(units: int, program, args: tuple, repeat: int) -> Rate:
  spent = [timing.timed(lambda: program(*args))[0] for _ in range(repeat + 1)]
  return _rate(units, spent[1:])


def _rate(units: int, spent: list[float]) -> Rate:
  return Rate(units / min(spent), units / statistics.median(spent))
