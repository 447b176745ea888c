"""The line of Python that an instruction of optimised HLO comes from, and a short name of its traced operation.

XLA writes the stack frames of all instructions as four tables above the computations; older versions write file and
line into each instruction.
"""

import pathlib
import re

from opd_jax.planning.hlo import Instruction

PACKAGE = "opd_jax"
_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
_WRAPPERS = re.compile(
  r"^(jit\(.*\)|while|body|cond|closed_call|checkpoint|shard_map|scan|branch_\d+_fun|jvp\(\)|vmap\(.*\)|pjit)$"
)


class Sources:
  """The tables of source lines of one module; empty where it has none."""

  def __init__(self, text: str):
    head = text[: max(0, text.find("\n\n%"), text.find("\n\nENTRY"))]
    tables = {name: _rows(head, name) for name in _TABLES}

    def name(table: str, row: int) -> str:
      return tables[table].get(row, "").strip('"')

    def number(key: str, row: str) -> int:
      found = re.search(rf"{key}=(\d+)", row)
      return int(found[1]) if found else 0

    self._lines = {
      i: (
        name("FileNames", number("file_name_id", row)),
        number("line", row),
        name("FunctionNames", number("function_name_id", row)),
      )
      for i, row in tables["FileLocations"].items()
    }
    self._frames = {
      i: (number("file_location_id", row), number("parent_frame_id", row) - 1)
      for i, row in tables["StackFrames"].items()
    }

  def line(self, i: Instruction) -> str:
    """The innermost line of this package, such as "rollout/cache.py:60 grow"; "" where it is not known."""
    if found := re.search(r'source_file="([^"]*)"(?:.*?source_line=(\d+))?', i.attributes):
      return _short(found[1], int(found[2] or 0), "")
    found = re.search(r"stack_frame_id=(\d+)", i.attributes)
    frame, seen = int(found[1]) if found else 0, set()
    while frame in self._frames and frame not in seen:
      seen.add(frame)
      location, parent = self._frames[frame]
      if line := _short(*self._lines.get(location, ("", 0, ""))):
        return line
      frame = parent
    return ""


def operation(op_name: str) -> str:
  """The named scopes and the operation of a traced name, without what tracing put around them."""
  first = op_name.partition(";")[0].replace("\\'", "'")
  parts = [part for part in first.split("/") if part and not _WRAPPERS.match(part)]
  backward = ["backward"] if "transpose(" in op_name else []
  remat = ["again"] if "rematted_computation" in op_name else []
  named = [part for part in parts if part != "rematted_computation" and not part.startswith("transpose(")]
  return "/".join([*backward, *remat, *named[-3:]])


def _rows(head: str, table: str) -> dict[int, str]:
  found = re.search(rf"^{table}\n((?:\d+ .*\n?)+)", head, re.MULTILINE)
  return {int(i): row for i, row in re.findall(r"^(\d+) (.*)$", found[1], re.MULTILINE)} if found else {}


def _short(file: str, line: int, function: str) -> str:
  path = pathlib.PurePath(file)
  if PACKAGE not in path.parts:
    return ""
  within = path.parts[len(path.parts) - path.parts[::-1].index(PACKAGE) :]
  name = function.split(".<locals>.")[-1].replace("<lambda>", "").replace("<listcomp>", "").strip(".")
  return f"{'/'.join(within)}:{line}" + (f" {name}" if name else "")
