"""Compiles a program for devices that need not be here, and analyses the result.

XLA dumps its optimised HLO and its buffer assignment while it compiles. So a program that does not fit is
analysed as well as one that does, and one whose compiled object gives no text too.
"""

import contextlib
import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.experimental.compilation_cache import compilation_cache

from opd_jax.planning import collectives, hlo, memory
from opd_jax.planning.collectives import Collective
from opd_jax.planning.memory import Buffer, Memory
from opd_jax.planning.sources import Sources

T = TypeVar("T")

NO_CRASH = "xla_tpu_no_crash_on_oom"  # libtpu goes on to the buffer assignment and its dump, and fails after it


@dataclasses.dataclass(frozen=True)
class Program:
  """The analysis of one compiled program; None is what could not be had.

  Attributes:
    seconds: of compiling, XLA's alone.
    memory: bytes of one device; where it does not fit, without its code.
    collectives: every one, as often as it runs.
    token_loops: while loops with a decode step in each iteration.
    buffers: what is live at the peak of memory, largest first.
    flops: per device, as XLA's cost analysis counts: the body of every loop once.
    bytes_accessed: likewise.
    error: why it could not be compiled, "" where it could.
  """

  name: str
  seconds: float
  memory: Memory | None = None
  collectives: list[Collective] | None = None
  token_loops: int = 0
  buffers: list[Buffer] = dataclasses.field(default_factory=list)
  flops: float | None = None
  bytes_accessed: float | None = None
  error: str = ""


def compile_program(name: str, lowered: jax.stages.Lowered, mesh: jax.sharding.Mesh) -> Program:
  """Compiles for the mesh's devices and analyses the program.

  One that does not fit, or that the compiler refuses, raises nothing: see `Program.error`.
  """
  tpu = mesh.devices.flat[0].platform == "tpu"
  with tempfile.TemporaryDirectory(prefix="opd_jax_plan_") as directory:
    options = {"xla_dump_to": directory} | ({NO_CRASH: True} if tpu else {})
    began = time.perf_counter()
    program, error = _try(lowered, options)
    if program is None and "No such compile option" in error:
      program, error = _try(lowered, {})
    seconds = time.perf_counter() - began
    dump = memory.read_dump(pathlib.Path(directory))
  text = dump.get("text") or _quietly(lambda: program.as_text() if program else None) or ""
  module = hlo.parse(text)
  known = bool(module.entry)
  sizes = _quietly(lambda: memory.from_analysis(program.memory_analysis()) if program else None)
  cost = _quietly(lambda: program.cost_analysis() if program else None) or {}

  def positive(key: str) -> float | None:
    return float(cost[key]) if cost.get(key, 0) > 0 else None

  return Program(
    name=name,
    seconds=seconds,
    memory=sizes or memory.from_assignment(dump.get("assignment", "")),
    collectives=collectives.parse(module, mesh) if known else None,
    token_loops=len(collectives.token_loops(module)),
    buffers=memory.buffers_at_peak(dump.get("ranges", ""), module, Sources(text)) if known else [],
    flops=positive("flops"),
    bytes_accessed=positive("bytes accessed"),
    error=error,
  )


def _try(lowered: jax.stages.Lowered, options: dict[str, Any]) -> tuple[jax.stages.Compiled | None, str]:
  try:
    # A program of the compile cache would come without a dump.
    with _without_cache():
      return lowered.compile(compiler_options=options), ""
  except Exception as e:  # of the compiler, of several kinds
    return None, " ".join(str(e).split())[:300]


@contextlib.contextmanager
def _without_cache():
  was = jax.config.values.get("jax_enable_compilation_cache")
  try:
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX asks for the setting once, unless it has forgotten
    yield
  finally:
    jax.config.update("jax_enable_compilation_cache", was)
    compilation_cache.reset_cache()


def _quietly(analyse: Callable[[], T]) -> T | None:
  """Calls `analyse`; None where it fails, since some analyses are not made for every program and device."""
  try:
    return analyse()
  except Exception:
    return None
