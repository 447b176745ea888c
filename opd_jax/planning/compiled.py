"""Compiles a program for devices that need not be here, and keeps what can be known of it.

XLA dumps its optimised HLO and its buffer assignment beside the compilation. So a program that does not fit is read as
well as one that does, and one whose text cannot be had from the compiled object too.
"""

import contextlib
import dataclasses
import pathlib
import tempfile
import time
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from opd_jax.planning import collectives, hlo, memory
from opd_jax.planning.collectives import Collective
from opd_jax.planning.memory import Buffer, Memory
from opd_jax.planning.sources import Sources

NO_CRASH = "xla_tpu_no_crash_on_oom"  # libtpu goes on to the buffer assignment and its dump, and fails after it


@dataclasses.dataclass(frozen=True)
class Program:
  """What is known of one compiled program; None is what could not be had.

  Attributes:
    seconds: of compiling, XLA's alone.
    memory: bytes of one device; where it does not fit, without its code.
    collectives: every one, as often as it runs.
    token_loops: while loops that read one token at each turn.
    buffers: what lives at the peak of memory, largest first.
    flops: per device, as XLA's cost analysis counts: the body of every loop once.
    accessed: bytes, likewise.
    failed: why it could not be compiled, "" where it could.
  """

  name: str
  seconds: float
  memory: Memory | None = None
  collectives: list[Collective] | None = None
  token_loops: int = 0
  buffers: list[Buffer] = dataclasses.field(default_factory=list)
  flops: float | None = None
  accessed: float | None = None
  failed: str = ""


def compile_(name: str, lowered: jax.stages.Lowered, mesh: jax.sharding.Mesh) -> Program:
  """Compiles for the mesh's devices. A program that does not fit, or that the compiler refuses, is no error."""
  tpu = mesh.devices.flat[0].platform == "tpu"
  with tempfile.TemporaryDirectory(prefix="opd_jax_plan_") as there:
    options = {"xla_dump_to": there} | ({NO_CRASH: True} if tpu else {})
    began = time.perf_counter()
    program, failed = _try(lowered, options)
    if program is None and "No such compile option" in failed:
      program, failed = _try(lowered, {})
    seconds = time.perf_counter() - began
    dump = memory.read_dump(pathlib.Path(there))
  text = dump.get("text") or _quietly(lambda: program.as_text() if program else None) or ""
  module = hlo.parse(text)
  known = bool(module.entry)
  sizes = _quietly(lambda: memory.of_analysis(program.memory_analysis()) if program else None)
  cost = _quietly(lambda: program.cost_analysis() if program else None) or {}
  positive = lambda key: float(cost[key]) if cost.get(key, 0) > 0 else None
  return Program(
    name=name,
    seconds=seconds,
    memory=sizes or memory.of_assignment(dump.get("assignment", "")),
    collectives=collectives.read(module, mesh) if known else None,
    token_loops=len(collectives.token_loops(module)),
    buffers=memory.at_peak(dump.get("ranges", ""), module, Sources(text)) if known else [],
    flops=positive("flops"),
    accessed=positive("bytes accessed"),
    failed=failed,
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


def _quietly(ask):
  """What could be had, or None: some analyses are not made for every program and device."""
  try:
    return ask()
  except Exception:
    return None
