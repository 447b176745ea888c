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

from opd_jax.config import expanded
from opd_jax.errors import InputError
from opd_jax.runtime.interrupts import COMPILER


class StepShape(NamedTuple):
  """The shape of a step's programs: all that is static about them beside their recipe."""

  prompt: int  # P, tokens
  width: int  # H, tokens: the response width
  teacher_prompt: int = 0  # tokens of a prompt of the teachers' own; 0: they have none
  kind: str = "step"  # a recipe may compile other programs than those of a step
  context: int = (
    0  # tokens of what the teacher reads before each row, made of rollouts; 0: what it reads is the prompt's
  )
  model: str = ""  # which of several trained models, where their architectures differ

  def distance(self, other: "StepShape") -> tuple:
    """Orders shapes by which a run at this one may need next: of its kind and prompt, the nearest and rather longer width."""
    return self.kind != other.kind, self.prompt != other.prompt, abs(self.width - other.width), -other.width


ProgramCache = dict[Hashable, Any]  # what runs of one process compile once, by all that is static in it
Lower = Callable[[StepShape], Iterable[tuple[str, jax.stages.Lowered]]]  # the lowered step functions, with names


class CompiledSteps:
  """Step programs by shape.

  Args:
    lower: lowers the programs of a shape, with their names.
    program_cache: programs of earlier runs are taken from here, and left here for later ones.
    static: all that programs depend on beside their shape.

  Attributes:
    compiled: one `record` per program; 0 seconds for one that an earlier run has compiled.
  """

  def __init__(self, lower: Lower, program_cache: ProgramCache | None = None, static: Hashable = None):
    self._lower, self._cache, self._static = lower, {} if program_cache is None else program_cache, static
    self._shape_pool = ThreadPoolExecutor(1, thread_name_prefix=f"{COMPILER}-shapes")  # one shape after another
    self._program_pool = ThreadPoolExecutor(
      3, thread_name_prefix=f"{COMPILER}-programs"
    )  # its programs beside each other
    self._futures: dict[StepShape, Future] = {}
    self._lock = threading.Lock()
    self._closed = False
    self.compiled: list[dict] = []

  def prepare(self, shape: StepShape) -> None:
    """Starts compiling a shape in the background, once."""
    with self._lock:
      if shape in self._futures:
        return
      if programs := self._cache.get((self._static, shape)):
        self._futures[shape] = done = Future()
        self.compiled += [record(name, shape, 0.0, program) for name, program in programs.items()]
        done.set_result(programs)
      else:
        self._futures[shape] = self._shape_pool.submit(self._compile, shape)
        self._futures[shape].add_done_callback(functools.partial(self._report_failure, shape))

  def __contains__(self, shape: StepShape) -> bool:
    """Tells whether a shape has been compiled, or is being."""
    return shape in self._futures

  @property
  def idle(self) -> bool:
    """True where nothing is being compiled."""
    return all(f.done() for f in self._futures.values())

  def at(self, shape: StepShape) -> dict[str, jax.stages.Compiled]:
    """Returns the programs of a shape by name; waits where they are not ready."""
    self.prepare(shape)
    return self._futures[shape].result()

  def close(self, wait: bool = True) -> None:
    """Begins nothing more, and waits for what is being compiled, unless told otherwise: XLA cannot be interrupted."""
    self._closed = True
    for pool in (self._shape_pool, self._program_pool):
      pool.shutdown(wait=wait, cancel_futures=True)

  def _compile(self, shape: StepShape) -> dict[str, jax.stages.Compiled]:
    def compile_one(name: str, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
      began = time.perf_counter()
      program = lowered.compile()
      self.compiled.append(record(name, shape, time.perf_counter() - began, program))
      return program

    # Each is lowered while the one before it compiles; XLA holds no lock of Python's.
    futures = {name: self._program_pool.submit(compile_one, name, lowered) for name, lowered in self._lower(shape)}
    self._cache[self._static, shape] = programs = {name: f.result() for name, f in futures.items()}
    return programs

  def _report_failure(self, shape: StepShape, done: Future) -> None:
    """Prints why a shape could not be compiled: it may be asked for much later, or never."""
    if not self._closed and not done.cancelled() and (e := done.exception()):
      print(f"compiling for {shape.prompt} + {shape.width} tokens failed: {type(e).__name__}: {e}", file=sys.stderr)


def record(name: str, shape: StepShape, seconds: float, program: jax.stages.Compiled) -> dict:
  """Describes a program: name, shape, seconds of compiling (in whichever thread), and bytes per device while it runs."""
  memory = program.memory_analysis()
  sizes = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
  total = sum(getattr(memory, s, 0) for s in sizes) - getattr(memory, "alias_size_in_bytes", 0)
  lengths = {"prompt": shape.prompt, "width": shape.width}
  return {"name": name, **lengths, "seconds": round(seconds, 3), "bytes": total}


def use_cache(setting: str, root: epath.Path) -> None:
  """Turns on the persistent compile cache: a directory, "auto" for .jax_cache beside the workdir, "off" or "" for none.

  Programs that compile in under a second are cached too: on a small model they are all of that kind.
  """
  if setting in ("", "off"):
    return
  path = root.resolve().parent / ".jax_cache" if setting == "auto" else epath.Path(expanded(setting))
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise InputError(
      f"The compile cache {path} cannot be made ({e.strerror}); set config.compile_cache to another directory or 'off'."
    ) from None
  jax.config.update("jax_compilation_cache_dir", os.fspath(path))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
