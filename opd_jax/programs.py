"""Compiled programs: one per (step function, shape), known before the run.

A stage's programs are compiled ahead of their first call. While a stage trains, the next one's programs compile in a
background thread; what the loop has to wait for is counted.
"""

import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
from etils import epath

from opd_jax.errors import InputError


class Shape(NamedTuple):
  """What is static about a step."""

  prompt: int  # P, tokens
  width: int  # H, tokens


Kept = dict[Hashable, Any]  # what runs of one process compile once, by all that is static in it
Lower = Callable[[Shape], Iterable[tuple[str, jax.stages.Lowered]]]  # the lowered step functions, with names


class Programs:
  """Programs by shape.

  Args:
    kept: programs of earlier runs are taken from here, and left here for later ones.
    of: what is static in them beside their shape.

  Attributes:
    compiled: one `record` per program; 0 seconds for one that an earlier run has compiled.
  """

  def __init__(self, lower: Lower, kept: Kept | None = None, of: Hashable = None):
    self._lower, self._kept, self._of = lower, {} if kept is None else kept, of
    self._shapes = ThreadPoolExecutor(1, thread_name_prefix="lower")  # one shape after another
    self._pool = ThreadPoolExecutor(3, thread_name_prefix="compile")  # its programs beside each other
    self._futures: dict[Shape, Future] = {}
    self._lock = threading.Lock()
    self.compiled: list[dict] = []

  def prepare(self, shape: Shape) -> None:
    """Starts compiling a shape in the background, once."""
    with self._lock:
      if shape in self._futures:
        return
      if made := self._kept.get((self._of, shape)):
        self._futures[shape] = done = Future()
        self.compiled += [record(name, shape, 0.0, program) for name, program in made.items()]
        done.set_result(made)
      else:
        self._futures[shape] = self._shapes.submit(self._compile, shape)
        self._futures[shape].add_done_callback(functools.partial(_say, shape))

  def __contains__(self, shape: Shape) -> bool:
    """Whether it has been prepared, or is being."""
    return shape in self._futures

  @property
  def idle(self) -> bool:
    """Nothing is being compiled."""
    return all(f.done() for f in self._futures.values())

  def at(self, shape: Shape) -> dict[str, jax.stages.Compiled]:
    """The programs of a shape; waits where they are not ready."""
    self.prepare(shape)
    return self._futures[shape].result()

  def close(self) -> None:
    for pool in (self._shapes, self._pool):
      pool.shutdown(wait=True, cancel_futures=True)

  def _compile(self, shape: Shape) -> dict[str, jax.stages.Compiled]:
    def one(name: str, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
      began = time.perf_counter()
      program = lowered.compile()
      self.compiled.append(record(name, shape, time.perf_counter() - began, program))
      return program

    # Each is lowered while the one before it compiles; XLA holds no lock of Python's.
    futures = {name: self._pool.submit(one, name, lowered) for name, lowered in self._lower(shape)}
    self._kept[self._of, shape] = made = {name: f.result() for name, f in futures.items()}
    return made


def _say(shape: Shape, done: Future) -> None:
  """A shape that could not be compiled in the background may be asked for much later, or never."""
  if not done.cancelled() and (e := done.exception()):
    print(f"compiling for {shape.prompt} + {shape.width} tokens failed: {type(e).__name__}: {e}", file=sys.stderr)


def record(name: str, shape: Shape, seconds: float, program: jax.stages.Compiled) -> dict:
  """Name, shape, seconds of compiling (in whichever thread), and bytes per device while it runs."""
  memory = program.memory_analysis()
  sizes = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
  total = sum(getattr(memory, s, 0) for s in sizes) - getattr(memory, "alias_size_in_bytes", 0)
  return {"name": name, **shape._asdict(), "seconds": round(seconds, 3), "bytes": total}


def use_cache(setting: str, root: epath.Path) -> None:
  """Turns on the persistent compile cache: a directory, "off", or "auto" for .jax_cache beside the workdir.

  Programs that compile in under a second are kept too: on a small model they are all of that kind.
  """
  if setting == "off":
    return
  path = root.resolve().parent / ".jax_cache" if setting == "auto" else epath.Path(setting).expanduser()
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise InputError(
      f"The compile cache {path} cannot be made ({e.strerror}); set config.compile_cache to another directory or 'off'."
    ) from None
  jax.config.update("jax_compilation_cache_dir", os.fspath(path))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
