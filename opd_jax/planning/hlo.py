"""Parses optimised HLO: which computation calls which, how often a loop runs, how large an array is.

Only what planning needs is understood; anything else is left out or None, and never an error. The text is that of
`Compiled.as_text()` and of XLA's dumps, on CPU, GPU and TPU.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

WIDTHS = {"token": 0, "opaque": 0, "pred": 8, "bf16": 16, "c64": 64, "c128": 128}  # bits; others end in their bits

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+)\s*(?:\(.*)?\{\s*$")
_NAMED = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY_OP = re.compile(r"^(\S+) ([a-z][a-z0-9\-]*)\(")
_TUPLE_OP = re.compile(r"\) ([a-z][a-z0-9\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\]")
_CALLS = re.compile(r"\b(calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_PASS_THROUGH = (
  "copy",
  "bitcast",
  "opt-barrier",
  "copy-start",
  "copy-done",
  "optimization-barrier",
)  # give what they take


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    shape: as it is written, layout included; of a tuple with its parentheses.
    operands: names, without their shapes.
    attributes: everything behind the operands, metadata included.
  """

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  attributes: str
  root: bool = False

  @property
  def op_name(self) -> str:
    """The name of the traced operation that it comes from, with its named scopes; "" where it has none."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found[1] if found else ""

  @property
  def channel(self) -> str:
    """The channel id of a collective, or ""."""
    found = re.search(r"channel_id=(\d+)", self.attributes)
    return found[1] if found else ""

  @property
  def called(self) -> list[tuple[str, str]]:
    """List the (role, computation) of everything that this instruction runs; branches have the role "branch"."""
    called = _CALLS.findall(self.attributes)
    called = [("branch" if role.endswith("_computation") else role, name) for role, name in called]
    for names in _BRANCHES.findall(self.attributes):
      called += [("branch", name.strip().lstrip("%")) for name in names.split(",") if name.strip()]
    return called


Computation = dict[str, Instruction]  # in the order of the text
Callers = dict[int, tuple[Instruction, Computation, int]]  # by the id of the called computation


@dataclasses.dataclass(frozen=True)
class Module:
  """The computations of a program by name, and which of them is its entry; "" where the text has none."""

  computations: dict[str, Computation]
  entry: str

  def root(self, computation: str) -> Instruction | None:
    """The instruction that a computation returns."""
    return next((i for i in self.computations.get(computation, {}).values() if i.root), None)

  def callers(self) -> Callers:
    """The loop, conditional or call that runs each computation, and which of its operands is the parameter."""
    callers: Callers = {}
    for computation in self.computations.values():
      for i in computation.values():
        if i.opcode in ("while", "conditional", "call"):
          branches = [name for role, name in i.called if role == "branch"]
          for role, name in i.called:
            operand = 1 + branches.index(name) if role == "branch" else 0
            callers[id(self.computations.get(name))] = (i, computation, operand)
    return callers

  def trip_count(self, within: str, loop: Instruction) -> int | None:
    """Count the trips of a while loop of the computation `within` runs; None where that depends on data."""
    if found := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
      return int(found[1])
    roles = dict(loop.called)
    condition, body = roles.get("condition", ""), roles.get("body", "")
    test = self.root(condition)
    if test is None or test.opcode != "compare" or "direction=LT" not in test.attributes:
      return None
    index = self._tuple_index(condition, test.operands[0])
    bound = self._constant(condition, test.operands[1], within, loop)
    if index is None or bound is None:
      return None
    first = self._constant(within, f"{loop.operands[0]}#{index}", within, None)
    step = self._step(body, index)
    return None if first is None else max(0, math.ceil((bound - first) / step))

  def _tuple_index(self, computation: str, name: str) -> int | None:
    """The element of the loop's tuple that a name of its condition or body stands for."""
    i = self._through(computation, name)
    at = re.search(r"index=(\d+)", i.attributes) if i and i.opcode == "get-tuple-element" else None
    return int(at[1]) if at else None

  def _through(self, computation: str, name: str) -> Instruction | None:
    """The instruction behind copies and bitcasts."""
    i = self.computations.get(computation, {}).get(name)
    while i is not None and i.opcode in _PASS_THROUGH and i.operands:
      i = self.computations[computation].get(i.operands[0])
    return i

  def _constant(self, computation: str, name: str, outer: str, loop: Instruction | None, depth: int = 0) -> int | None:
    """The value of a constant, looked for behind tuples, and behind the loop's own operand where that is passed on."""
    if depth > 32:
      return None
    name, _, index = name.partition("#")
    i = self._through(computation, name)
    if i is None:
      return None
    if index:
      if i.opcode == "tuple" and int(index) < len(i.operands):
        return self._constant(computation, i.operands[int(index)], outer, loop, depth + 1)
      return None
    if i.opcode == "constant":
      value = re.search(r"^\((-?\d+)\)", i.attributes)
      return int(value[1]) if value else None
    if i.opcode == "get-tuple-element":
      at = re.search(r"index=(\d+)", i.attributes)
      source = self._through(computation, i.operands[0])
      if at is None or source is None:
        return None
      if source.opcode == "parameter" and loop is not None:
        return self._constant(outer, f"{loop.operands[0]}#{at[1]}", outer, None, depth + 1)
      return self._constant(computation, f"{source.name}#{at[1]}", outer, loop, depth + 1)
    return None

  def _step(self, body: str, index: int) -> int:
    """Find what a loop adds to its counter; 1 where it cannot be seen."""
    root = self.root(body)
    if root is None or root.opcode != "tuple" or index >= len(root.operands):
      return 1
    i = self._through(body, root.operands[index])
    if i is None or i.opcode != "add":
      return 1
    steps = [self._constant(body, name, body, None) for name in i.operands]
    return next((s for s in steps if s), 1)


def parse(text: str) -> Module:
  """Parses the text of a module; an empty module where there is none."""
  computations: dict[str, Computation] = {}
  entry, current = "", None
  for line in _logical_lines(text):
    if current is None:
      if header := _HEADER.match(line):
        current = computations.setdefault(header[2], {})
        entry = header[2] if header[1] else entry
    elif line[0] == "}":
      current = None
    elif (found := _NAMED.match(line)) and (i := _instruction(found[2], found[3], bool(found[1]))):
      current[i.name] = i
  return Module(computations, entry)


def _logical_lines(text: str) -> Iterator[str]:
  """Yields the lines, with an instruction that spans several, as a kernel's metadata make it, joined to one."""
  logical = ""
  for line in text.splitlines():
    begins = line == "}" or line.startswith(("}, execution_thread", "ENTRY", "%")) or _NAMED.match(line)
    if begins or not logical.startswith((" ", "\t")):
      if logical:
        yield logical
      logical = line
    else:
      logical += line
  if logical:
    yield logical


def _instruction(name: str, text: str, root: bool) -> Instruction | None:
  found = _TUPLE_OP.search(text) if text.startswith("(") else _ARRAY_OP.match(text)
  if not found:
    return None
  opcode = found[found.lastindex or 1]
  begin = found.end()
  shape = text[: found.start() + 1] if text.startswith("(") else found[1]
  end = _closing(text, begin)
  inside, attributes = text[begin:end], text[end + 1 :]
  has_value = opcode in ("constant", "parameter")  # a value or a number, where others have operands
  if has_value:
    attributes = f"({inside})" + attributes
  elif "%" not in inside:
    inside = re.sub(r"([\w.\-]+)(?=,|$)", r"%\1", inside)
  operands = tuple(re.findall(r"%([\w.\-]+)", inside))
  return Instruction(name, shape, opcode, operands, attributes, root)


def _closing(text: str, begin: int) -> int:
  """The index at which the parenthesis that opened before `begin` closes."""
  depth, at = 1, begin
  for found in re.compile(r"[()]").finditer(text, begin):
    depth += 1 if found[0] == "(" else -1
    at = found.start()
    if depth == 0:
      return at
  return len(text)


def arrays(shape: str) -> list[str]:
  """The arrays of a shape, in order, as "bf16[16,128]"; a tuple inside a tuple is flattened."""
  return [f"{kind}[{dims}]" for kind, dims in _ARRAY.findall(shape)]


@functools.cache
def array_bytes(array: str) -> int:
  """Count the bytes of "bf16[16,128]", without the padding of its layout; 0 for what is not an array."""
  kind, _, dims = array.rstrip("]").partition("[")
  bits = WIDTHS.get(kind)
  if bits is None:
    number = re.match(r"[a-z]+(\d+)", kind)
    bits = int(number[1]) if number else 0
  return math.prod(int(d.lstrip("<=")) for d in dims.split(",") if d) * bits // 8


def shape_bytes(shape: str) -> int:
  """Count the bytes of all arrays of a shape."""
  return sum(map(array_bytes, arrays(shape)))
