"""What this machine's device can do: bytes per second read and copied, FLOPs per second of matrix products.

Every probe is a chain of operations inside one program, each reading what the last one wrote, so that dispatch costs
next to nothing and no operation can be left out. The rate of reading depends on whether the array fits a cache, so it
is measured for several sizes; what a token reads (weights and filled caches) is read again at the next one, and its
roofline is the rate of an array of that size.
"""

import dataclasses
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

from opd_jax.benchmarks import timing

MIB = 2**20


class Rate(NamedTuple):
  """Units per second."""

  best: float
  median: float


class Read(NamedTuple):
  """Of an array of `size` bytes, bytes per second."""

  size: int
  rate: Rate


@dataclasses.dataclass(frozen=True)
class Machine:
  """Measured on one device.

  Attributes:
    reads: rising in size; the last array is larger than the caches.
    copy: bytes per second read and written together, of an array as large as the last of `reads`.
    matrix: FLOPs per second of a square product in the compute type.
  """

  reads: tuple[Read, ...]
  copy: Rate
  matrix: Rate

  def bandwidth(self, size: float) -> float:
    """Bytes per second at which `size` bytes are read over and over, between the measured sizes by their logarithms."""
    sizes, best = zip(*((r.size, r.rate.best) for r in self.reads), strict=True)
    # A smaller array is read at least as fast as a larger one: where it was not, something disturbed it.
    best = np.maximum.accumulate(best[::-1])[::-1]
    return float(np.interp(math.log(max(size, 1)), np.log(sizes), best))

  def as_json(self) -> dict[str, Any]:
    reads = [{"size": r.size, **r.rate._asdict()} for r in self.reads]
    return {"reads": reads, "copy": self.copy._asdict(), "matrix": self.matrix._asdict()}


def measure(dtype: jnp.dtype, repeat: int = 5, *, small: bool = False) -> Machine:
  """Seconds on two CPU cores; `small`: milliseconds, and arrays that any cache holds."""
  cpu = jax.default_backend() == "cpu"
  sides = (512, 1024) if small else (512, 1024, 2048, 4096, 8192) if cpu else (2048, 16384)
  side = 256 if small else 2048 if cpu else 8192
  return Machine(
    reads=tuple(Read(4 * n * n, read(n, repeat)) for n in sides),
    copy=copy(sides[-1], repeat),
    matrix=matrix(side, dtype, repeat),
  )


def read(n: int, repeat: int) -> Rate:
  """Of a matrix f32[n, n] that is multiplied by a vector, times and again."""
  many = jnp.int32(max(2, 512 * MIB // (4 * n * n)))
  chain = jax.jit(lambda a, v, many: lax.fori_loop(0, many, lambda _, v: a @ v, v))
  return _rate(4 * n * n * int(many), chain, (jnp.full((n, n), 1 / n), jnp.ones((n,)), many), repeat)


def copy(n: int, repeat: int) -> Rate:
  """Of f32[n, n] to which one is added in place."""
  many = jnp.int32(4)
  chain = jax.jit(lambda a, many: lax.fori_loop(0, many, lambda _, a: a + 1, a), donate_argnums=0)
  array = jnp.zeros((n, n))
  spent = []
  for _ in range(repeat + 1):
    seconds, array = timing.giving(lambda array=array: chain(array, many))
    spent.append(seconds)
  return _of(2 * 4 * n * n * int(many), spent[1:])


def matrix(n: int, dtype: jnp.dtype, repeat: int) -> Rate:
  """Of products [n, n] x [n, n] in `dtype`."""
  many = jnp.int32(4 if jax.default_backend() == "cpu" else 16)
  chain = jax.jit(lambda a, b, many: lax.fori_loop(0, many, lambda _, b: a @ b, b))
  a = jnp.full((n, n), 1 / n, dtype)
  return _rate(2 * n**3 * int(many), chain, (a, a, many), repeat)


def cores() -> int:
  """Cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
  """The host's processor by name, where the system says."""
  info = pathlib.Path("/proc/cpuinfo")
  lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
  named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
  return next(named, platform.processor() or platform.machine())


def _rate(units: int, program, args: tuple, repeat: int) -> Rate:
  spent = [timing.giving(lambda: program(*args))[0] for _ in range(repeat + 1)]
  return _of(units, spent[1:])


def _of(units: int, spent: list[float]) -> Rate:
  return Rate(units / min(spent), units / statistics.median(spent))
