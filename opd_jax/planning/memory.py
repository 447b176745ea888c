"""What a compiled program holds in a chip's memory, and what is largest at its peak and where that comes from.

Sizes are XLA's own: `memory_analysis()` of the program, or, of one that did not fit and so is none, the buffer assignment
that XLA dumps before it gives up. The buffers that live at the peak are those of its dumped live ranges.
"""

import dataclasses
import pathlib
import re
from collections.abc import Sequence

from opd_jax.planning import hlo
from opd_jax.planning.hlo import Module
from opd_jax.planning.sources import Sources, operation


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of one device.

  Attributes:
    aliased: of outputs that lie where arguments were.
    host: in the host's memory.
  """

  arguments: int
  outputs: int
  temporaries: int
  code: int = 0
  aliased: int = 0
  host: int = 0

  @property
  def beside_arguments(self) -> int:
    """What the program adds to its arguments while it runs."""
    return self.outputs - self.aliased + self.temporaries + self.code

  @property
  def total(self) -> int:
    return self.arguments + self.beside_arguments


@dataclasses.dataclass(frozen=True)
class Buffer:
  """Equal arrays that live at the peak.

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


def of_analysis(stats) -> Memory:
  """Of `Compiled.memory_analysis()`."""
  size = lambda name: int(getattr(stats, f"{name}_size_in_bytes", 0) or 0)
  return Memory(
    arguments=size("argument"),
    outputs=size("output"),
    temporaries=size("temp"),
    code=size("generated_code"),
    aliased=size("alias"),
    host=size("host_temp") + size("host_argument") + size("host_output") - size("host_alias"),
  )


def of_assignment(text: str) -> Memory | None:
  """Of a dumped buffer assignment; what lies in another memory than the chip's main one is left out."""
  sizes = {"arguments": 0, "outputs": 0, "temporaries": 0, "aliased": 0}
  found = re.findall(r"^allocation \d+: size (\d+)(.*)$", text, re.MULTILINE)
  for size, said in found:
    if ", color " in said or ", thread-local" in said:
      continue
    argument, output = ", parameter " in said, "maybe-live-out" in said
    kinds = ["arguments"] * argument + ["outputs"] * output + ["aliased"] * (argument and output)
    for kind in kinds or ["temporaries"]:
      sizes[kind] += int(size)
  return Memory(**sizes) if found else None


def at_peak(live_ranges: str, module: Module, sources: Sources) -> list[Buffer]:
  """The buffers that live at the peak, alike ones together, the largest first; arguments too."""
  begin = live_ranges.find("(peak)")
  names = re.findall(r"^ +([\w.\-]+)\{([\d,]*)\}: (\d+) bytes", live_ranges[begin:], re.MULTILINE) if begin >= 0 else []
  every = {i.name: (i, computation) for computation in module.computations.values() for i in computation.values()}
  callers = module.callers()
  alike: dict[tuple[str, int, str, str], int] = {}
  for name, index, size in names:
    i, computation = every.get(name, (None, {}))
    if i is None:
      key = ("?", int(size), name, "")
    else:
      made = _maker(module, callers, i, index, computation)
      key = (_array(i.shape, index, int(size)), int(size), operation(made.op_name) or made.opcode, sources.of(made))
    alike[key] = alike.get(key, 0) + 1
  found = [Buffer(array, count, size, said, source) for (array, size, said, source), count in alike.items()]
  return sorted(found, key=lambda b: -b.total)


def read_dump(directory: pathlib.Path) -> dict[str, str]:
  """The texts that XLA has dumped of the largest module: "text", "assignment" and "ranges", those that are there."""
  endings = {
    "text": "after_optimizations.txt",
    "assignment": "after_optimizations-buffer-assignment.txt",
    "ranges": "after_optimizations-live-range.txt",
  }
  out = {}
  for kind, ending in endings.items():
    files = sorted(directory.glob(f"*{ending}"), key=lambda path: path.stat().st_size)
    if files:
      out[kind] = files[-1].read_text(encoding="utf-8", errors="replace")
  return out


def _maker(
  module: Module, callers: hlo.Callers, i: hlo.Instruction, index: str, computation: hlo.Computation
) -> hlo.Instruction:
  """The instruction that has a traced name: what XLA adds stands for what it copies, carries or passes on."""
  at, path, seen = i, [int(n) for n in index.split(",") if n], 0
  while not at.op_name and seen < 24:
    seen += 1
    name = ""
    if at.opcode == "parameter":
      called = callers.get(id(computation))
      if called is None:
        break
      caller, computation, operand = called
      name = caller.operands[operand] if operand < len(caller.operands) else ""
    elif at.opcode == "get-tuple-element":
      found = re.search(r"index=(\d+)", at.rest)
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
  arrays: Sequence[str] = hlo.elements(shape)
  if not arrays:
    return "?"
  if not index:
    return arrays[0] if len(arrays) == 1 else "tuple"
  at = int(index.split(",")[0])
  same = [a for a in arrays if hlo.array_bytes(a) == size]
  return arrays[at] if at < len(arrays) and (arrays[at] in same or not same) else same[0] if same else "?"
