"""Compiled programs: one per (step function, width), known before the run.

A stage's programs are compiled ahead of their first call. While a stage trains, the next one's programs compile in a
background thread; what the loop has to wait for is counted.
"""

import pathlib
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import jax

from opd_jax.errors import InputError

Lower = Callable[[int], Iterable[tuple[str, jax.stages.Lowered]]]  # width -> the lowered step functions, with names


class Programs:
  """Programs by width.

  Attributes:
    compiled: one `record` per program.
  """

  def __init__(self, lower: Lower):
    self._lower = lower
    self._widths = ThreadPoolExecutor(1, thread_name_prefix="lower")  # one width after another
    self._pool = ThreadPoolExecutor(3, thread_name_prefix="compile")  # its programs beside each other
    self._futures: dict[int, Future] = {}
    self._lock = threading.Lock()
    self.compiled: list[dict] = []

  def prepare(self, width: int) -> None:
    """Starts compiling a width in the background, once."""
    with self._lock:
      if width not in self._futures:
        self._futures[width] = self._widths.submit(self._compile, width)

  def at(self, width: int) -> dict[str, jax.stages.Compiled]:
    """The programs of a width; waits where they are not ready."""
    self.prepare(width)
    return self._futures[width].result()

  def close(self) -> None:
    for pool in (self._widths, self._pool):
      pool.shutdown(wait=True, cancel_futures=True)

  def _compile(self, width: int) -> dict[str, jax.stages.Compiled]:
    def one(name: str, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
      began = time.perf_counter()
      program = lowered.compile()
      self.compiled.append(record(name, width, time.perf_counter() - began, program))
      return program

    # Each is lowered while the one before it compiles; XLA holds no lock of Python's.
    futures = {name: self._pool.submit(one, name, lowered) for name, lowered in self._lower(width)}
    return {name: f.result() for name, f in futures.items()}


def record(name: str, width: int, seconds: float, program: jax.stages.Compiled) -> dict:
  """Name, width, seconds of compiling (in whichever thread), and bytes per device while it runs."""
  memory = program.memory_analysis()
  sizes = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
  total = sum(getattr(memory, s, 0) for s in sizes) - getattr(memory, "alias_size_in_bytes", 0)
  return {"name": name, "width": width, "seconds": round(seconds, 3), "bytes": total}


def use_cache(setting: str, workdir: pathlib.Path) -> None:
  """Turns on the persistent compile cache: a directory, "off", or "auto" for .jax_cache beside the workdir.

  Programs that compile in under a second are kept too: on a small model they are all of that kind.
  """
  if setting == "off":
    return
  path = workdir.resolve().parent / ".jax_cache" if setting == "auto" else pathlib.Path(setting).expanduser()
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise InputError(
      f"The compile cache {path} cannot be made ({e.strerror}); set config.compile_cache to another directory or 'off'."
    ) from None
  jax.config.update("jax_compilation_cache_dir", str(path))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
