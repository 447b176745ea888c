"""What a compiled program holds in a device's memory, what is largest at its peak, and where that comes from.

Sizes are XLA's own: `memory_analysis()` of the program, or, where it did not fit and so there is none, the buffer
assignment that XLA dumps before it gives up. The buffers at the peak are those of its dumped live ranges.
"""

import dataclasses
import pathlib
import re
from typing import Any

from opd_jax.planning import hlo
from opd_jax.planning.hlo import Module
from opd_jax.planning.sources import Sources, operation


@dataclasses.dataclass(frozen=True)
class Memory:
  """The memory of one compiled program; bytes of one device.

  Attributes:
    aliased: bytes of outputs that reuse the memory of arguments.
    host: bytes in the host's memory.
  """

  arguments: int
  outputs: int
  temporaries: int
  code: int = 0
  aliased: int = 0
  host: int = 0

  @property
  def added(self) -> int:
    """Bytes that the program adds to its arguments while it runs."""
    return self.outputs - self.aliased + self.temporaries + self.code

  @property
  def total(self) -> int:
    return self.arguments + self.added


@dataclasses.dataclass(frozen=True)
class Buffer:
  """Arrays at the peak of memory that are alike in shape and origin.

  Attributes:
    size: bytes of one, without the padding of its layout.
    operation: named scopes and operation that made it.
    source: line of Python; "" where that is not known.
  """

  array: str
  count: int
  size: int
  operation: str
  source: str

  @property
  def total(self) -> int:
    return self.count * self.size


def from_analysis(stats: Any) -> Memory:
  """The memory that `Compiled.memory_analysis()` states."""

  def size(name: str) -> int:
    return int(getattr(stats, f"{name}_size_in_bytes", 0) or 0)

  return Memory(
    arguments=size("argument"),
    outputs=size("output"),
    temporaries=size("temp"),
    code=size("generated_code"),
    aliased=size("alias"),
    host=size("host_temp") + size("host_argument") + size("host_output") - size("host_alias"),
  )


def from_assignment(text: str) -> Memory | None:
  """The memory of a dumped buffer assignment, without what is outside of the device's main memory; None for no dump."""
  sizes = {"arguments": 0, "outputs": 0, "temporaries": 0, "aliased": 0}
  allocations = re.findall(r"^allocation \d+: size (\d+)(.*)$", text, re.MULTILINE)
  for size, properties in allocations:
    if ", color " in properties or ", thread-local" in properties:
      continue
    is_argument, is_output = ", parameter " in properties, "maybe-live-out" in properties
    if is_argument:
      sizes["arguments"] += int(size)
    if is_output:
      sizes["outputs"] += int(size)
    if is_argument and is_output:
      sizes["aliased"] += int(size)
    if not (is_argument or is_output):
      sizes["temporaries"] += int(size)
  return Memory(**sizes) if allocations else None


def buffers_at_peak(live_ranges: str, module: Module, sources: Sources) -> list[Buffer]:
  """The buffers that are live at the peak, arguments included, the largest first.

  Args:
    live_ranges: XLA's dump of them.
  """
  begin = live_ranges.find("(peak)")
  names = re.findall(r"^ +([\w.\-]+)\{([\d,]*)\}: (\d+) bytes", live_ranges[begin:], re.MULTILINE) if begin >= 0 else []
  instructions = {
    i.name: (i, computation) for computation in module.computations.values() for i in computation.values()
  }
  callers = module.callers()
  alike: dict[tuple[str, int, str, str], int] = {}
  for name, index, size in names:
    i, computation = instructions.get(name, (None, {}))
    if i is None:
      key = ("?", int(size), name, "")
    else:
      origin = _origin(module, callers, i, index, computation)
      array = _array(i.shape, index, int(size))
      key = (array, int(size), operation(origin.op_name) or origin.opcode, sources.line(origin))
    alike[key] = alike.get(key, 0) + 1
  buffers = [Buffer(array, count, size, made_by, source) for (array, size, made_by, source), count in alike.items()]
  return sorted(buffers, key=lambda b: -b.total)


def read_dump(directory: pathlib.Path) -> dict[str, str]:
  """Reads what XLA has dumped of the largest module: "text", "assignment" and "ranges", those that there are."""
  endings = {
    "text": "after_optimizations.txt",
    "assignment": "after_optimizations-buffer-assignment.txt",
    "ranges": "after_optimizations-live-range.txt",
  }
  texts = {}
  for kind, ending in endings.items():
    files = sorted(directory.glob(f"*{ending}"), key=lambda path: path.stat().st_size)
    if files:
      texts[kind] = files[-1].read_text(encoding="utf-8", errors="replace")
  return texts


def _origin(
  module: Module, callers: hlo.Callers, i: hlo.Instruction, index: str, computation: hlo.Computation
) -> hlo.Instruction:
  """The instruction with a traced name behind one that XLA has added to copy, carry or pass on its result."""
  at, path = i, [int(n) for n in index.split(",") if n]
  for _ in range(24):
    if at.op_name:
      break
    name = ""
    if at.opcode == "parameter":
      called = callers.get(id(computation))
      if called is None:
        break
      caller, computation, operand = called
      name = caller.operands[operand] if operand < len(caller.operands) else ""
    elif at.opcode == "get-tuple-element":
      found = re.search(r"index=(\d+)", at.attributes)
      path = [int(found[1]) if found else 0, *path]
      name = at.operands[0]
    elif at.opcode == "tuple" and path and path[0] < len(at.operands):
      name, path = at.operands[path[0]], path[1:]
    elif at.operands:
      name = at.operands[0]
    if name not in computation:
      break
    at = computation[name]
  return at if at.op_name else i


def _array(shape: str, index: str, size: int) -> str:
  """The array of a shape at a tuple index; of a nested one, the first of the size."""
  arrays = hlo.arrays(shape)
  if not arrays:
    return "?"
  if not index:
    return arrays[0] if len(arrays) == 1 else "tuple"
  at = int(index.split(",")[0])
  of_size = [array for array in arrays if hlo.array_bytes(array) == size]
  if at < len(arrays) and (not of_size or arrays[at] in of_size):
    return arrays[at]
  return of_size[0] if of_size else "?"
