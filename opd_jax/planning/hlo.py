"""Optimised HLO as text, read into computations: what calls what, how often a loop runs, how large an array is.

Only what planning asks is understood; what is not, is left out or None, and never an error. The text is that of
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
_PASSING = ("copy", "bitcast", "opt-barrier", "copy-start", "copy-done", "optimization-barrier")  # give what they take


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    shape: as it is written, layout included; of a tuple with its parentheses.
    operands: names, without their shapes.
    rest: everything behind the operands: attributes and metadata.
  """

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  rest: str
  root: bool = False

  @property
  def op_name(self) -> str:
    """Where it comes from in the traced program, with named scopes."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found[1] if found else ""

  @property
  def channel(self) -> str:
    found = re.search(r"channel_id=(\d+)", self.rest)
    return found[1] if found else ""

  @property
  def called(self) -> list[tuple[str, str]]:
    """(role, computation) of everything that this instruction runs; branches have the role "branch"."""
    out = [(role, name) for role, name in _CALLS.findall(self.rest)]
    out = [("branch" if role.endswith("_computation") else role, name) for role, name in out]
    for names in _BRANCHES.findall(self.rest):
      out += [("branch", name.strip().lstrip("%")) for name in names.split(",") if name.strip()]
    return out


Computation = dict[str, Instruction]  # in the order of the text
Callers = dict[int, tuple[Instruction, Computation, int]]  # by the id of the called computation


@dataclasses.dataclass(frozen=True)
class Module:
  computations: dict[str, Computation]
  entry: str

  def root(self, computation: str) -> Instruction | None:
    return next((i for i in self.computations.get(computation, {}).values() if i.root), None)

  def callers(self) -> Callers:
    """Who runs each computation that takes one operand: loops and conditionals, and which operand is its parameter."""
    out: Callers = {}
    for computation in self.computations.values():
      for i in computation.values():
        if i.opcode in ("while", "conditional", "call"):
          branches = [name for role, name in i.called if role == "branch"]
          for role, name in i.called:
            operand = 1 + branches.index(name) if role == "branch" else 0
            out[id(self.computations.get(name))] = (i, computation, operand)
    return out

  def trips(self, within: str, loop: Instruction) -> int | None:
    """How often a while loop runs; None where that depends on data."""
    if found := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
      return int(found[1])
    roles = dict(loop.called)
    condition, body = roles.get("condition", ""), roles.get("body", "")
    test = self.root(condition)
    if test is None or test.opcode != "compare" or "direction=LT" not in test.rest:
      return None
    index = self._carried(condition, test.operands[0])
    bound = self._number(condition, test.operands[1], within, loop)
    if index is None or bound is None:
      return None
    first = self._number(within, f"{loop.operands[0]}#{index}", within, None)
    step = self._step(body, index)
    return None if first is None else max(0, math.ceil((bound - first) / step))

  def _carried(self, computation: str, name: str) -> int | None:
    """Which element of the loop's tuple a name of its condition or body is."""
    i = self._through(computation, name)
    at = re.search(r"index=(\d+)", i.rest) if i and i.opcode == "get-tuple-element" else None
    return int(at[1]) if at else None

  def _through(self, computation: str, name: str) -> Instruction | None:
    """The instruction behind copies and bitcasts."""
    i = self.computations.get(computation, {}).get(name)
    while i is not None and i.opcode in _PASSING and i.operands:
      i = self.computations[computation].get(i.operands[0])
    return i

  def _number(self, computation: str, name: str, outer: str, loop: Instruction | None, depth: int = 0) -> int | None:
    """A constant, looked for behind tuples, and behind the loop's own operand where it is carried unchanged."""
    if depth > 32:
      return None
    name, _, index = name.partition("#")
    i = self._through(computation, name)
    if i is None:
      return None
    if index:
      if i.opcode == "tuple" and int(index) < len(i.operands):
        return self._number(computation, i.operands[int(index)], outer, loop, depth + 1)
      return None
    if i.opcode == "constant":
      value = re.search(r"^\((-?\d+)\)", i.rest)
      return int(value[1]) if value else None
    if i.opcode == "get-tuple-element":
      at = re.search(r"index=(\d+)", i.rest)
      source = self._through(computation, i.operands[0])
      if at is None or source is None:
        return None
      if source.opcode == "parameter" and loop is not None:
        return self._number(outer, f"{loop.operands[0]}#{at[1]}", outer, None, depth + 1)
      return self._number(computation, f"{source.name}#{at[1]}", outer, loop, depth + 1)
    return None

  def _step(self, body: str, index: int) -> int:
    """What a loop adds to its counter; 1 where it cannot be seen."""
    root = self.root(body)
    if root is None or root.opcode != "tuple" or index >= len(root.operands):
      return 1
    i = self._through(body, root.operands[index])
    if i is None or i.opcode != "add":
      return 1
    steps = [self._number(body, name, body, None) for name in i.operands]
    return next((s for s in steps if s), 1)


def parse(text: str) -> Module:
  computations: dict[str, Computation] = {}
  entry, current = "", None
  for line in _whole_lines(text):
    if current is None:
      if header := _HEADER.match(line):
        current = computations.setdefault(header[2], {})
        entry = header[2] if header[1] else entry
    elif line[0] == "}":
      current = None
    elif (found := _NAMED.match(line)) and (i := _instruction(found[2], found[3], bool(found[1]))):
      current[i.name] = i
  return Module(computations, entry)


def _whole_lines(text: str) -> Iterator[str]:
  """Lines, with those that an instruction's attributes go on in, as a kernel's metadata do, joined to their first."""
  whole = ""
  for line in text.splitlines():
    begins = line == "}" or line.startswith(("}, execution_thread", "ENTRY", "%")) or _NAMED.match(line)
    if begins or not whole.startswith((" ", "\t")):
      if whole:
        yield whole
      whole = line
    else:
      whole += line
  if whole:
    yield whole


def _instruction(name: str, text: str, root: bool) -> Instruction | None:
  found = _TUPLE_OP.search(text) if text.startswith("(") else _ARRAY_OP.match(text)
  if not found:
    return None
  opcode = found[found.lastindex or 1]
  begin = found.end()
  shape = text[: found.start() + 1] if text.startswith("(") else found[1]
  end = _closing(text, begin)
  inside = text[begin:end]
  names = (
    inside if "%" in inside or opcode in ("constant", "parameter") else re.sub(r"([\w.\-]+)(?=,|$)", r"%\1", inside)
  )
  operands = tuple(re.findall(r"%([\w.\-]+)", names))
  # A constant's value and a parameter's number stand where operands do.
  rest = f"({inside})" + text[end + 1 :] if opcode in ("constant", "parameter") else text[end + 1 :]
  return Instruction(name, shape, opcode, operands, rest, root)


def _closing(text: str, begin: int) -> int:
  """Where the parenthesis that opened before `begin` closes."""
  depth, at = 1, begin
  for found in re.compile(r"[()]").finditer(text, begin):
    depth += 1 if found[0] == "(" else -1
    at = found.start()
    if depth == 0:
      return at
  return len(text)


def elements(shape: str) -> list[str]:
  """The arrays of a shape, in order, as "bf16[16,128]"; a tuple inside a tuple is flattened."""
  return [f"{kind}[{dims}]" for kind, dims in _ARRAY.findall(shape)]


@functools.cache
def array_bytes(array: str) -> int:
  """Bytes of "bf16[16,128]", without the padding of its layout; 0 for what is not an array."""
  kind, _, dims = array.rstrip("]").partition("[")
  bits = WIDTHS.get(kind)
  if bits is None:
    number = re.match(r"[a-z]+(\d+)", kind)
    bits = int(number[1]) if number else 0
  return math.prod(int(d.lstrip("<=")) for d in dims.split(",") if d) * bits // 8


def size(shape: str) -> int:
  """Bytes of all arrays of a shape."""
  return sum(map(array_bytes, elements(shape)))


def dimensions(array: str) -> tuple[int, ...]:
  return tuple(int(d.lstrip("<=")) for d in array.partition("[")[2].rstrip("]").split(",") if d)
