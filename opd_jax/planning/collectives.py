"""What devices send each other in a compiled program: by kind, by mesh axes, inside of the token loop or outside.

Every collective is counted as often as the loops around it run: layers and micro-batches by their trip counts, and what
stands in the token loop per token. Of a conditional the branch that sends most is counted.

Bytes are what one device sends around a ring of n devices that hold b bytes each: all-gather b (n - 1), all-reduce
2 b (n - 1) / n, reduce-scatter and all-to-all b (n - 1) / n, collective-permute b.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from opd_jax.planning import hlo
from opd_jax.planning.hlo import Computation, Instruction, Module

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
  "collective-broadcast",
)
TOKEN_SCOPE = "decode"  # the named scope of rollout/sample.py of one decode step
_AXIS = re.compile(r"'(\w+)'(?::\((\d+)\)(\d+))?")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation of the program.

  Attributes:
    operand_bytes: bytes of the operand that a device holds.
    group_size: devices that take part; 1 where that is not known.
    axes: mesh axes that a group spans, joined by "+"; "" where that is not known.
    times: executions in one call of the program, or per token where it stands in the token loop.
    trips_known: False where a loop around it has an unknown trip count, taken as 1.
    origin: name of the traced operation.
  """

  kind: str
  operand_bytes: int
  group_size: int
  axes: str
  times: int
  in_token_loop: bool
  trips_known: bool
  origin: str

  @property
  def sent_bytes(self) -> float:
    """Bytes that one device sends, all executions together."""
    n = max(self.group_size, 1)
    share = (n - 1) / n
    factors = {"all-gather": n - 1.0, "all-reduce": 2 * share, "collective-permute": 1.0, "collective-broadcast": 1.0}
    return factors.get(self.kind, share) * self.operand_bytes * self.times


@dataclasses.dataclass(frozen=True)
class LoopContext:
  """The loops around the computation that is visited; attributes as of `Collective`."""

  times: int = 1
  in_token_loop: bool = False
  trips_known: bool = True


def parse(module: Module, mesh: jax.sharding.Mesh | None = None) -> list[Collective]:
  """The collectives of one call of the program.

  Args:
    mesh: names the axes of the groups.
  """
  return list(_visit(module, module.entry, LoopContext(), mesh))


def totals_by_kind(collectives: Sequence[Collective]) -> dict[tuple[str, str], tuple[int, float]]:
  """Sums executions and sent bytes by (kind, axes), the most bytes first."""
  totals: dict[tuple[str, str], tuple[int, float]] = {}
  for c in collectives:
    times, sent = totals.get((c.kind, c.axes), (0, 0.0))
    totals[c.kind, c.axes] = (times + c.times, sent + c.sent_bytes)
  return dict(sorted(totals.items(), key=lambda item: -item[1][1]))


def token_loops(module: Module) -> list[Instruction]:
  """The while loops with a decode step in each iteration: one per segment of a rollout, and none in an update."""
  instructions = (i for computation in module.computations.values() for i in computation.values())
  return [i for i in instructions if i.opcode == "while" and is_token_loop(module, i)]


def is_token_loop(module: Module, loop: Instruction) -> bool:
  """Tell whether the loop's body itself, not a loop inside of it, has the operations of a decode step."""

  def decodes(computation: str) -> bool:
    for i in module.computations.get(computation, {}).values():
      if TOKEN_SCOPE in i.op_name.split("/"):
        return True
      if i.opcode != "while" and any(decodes(name) for role, name in i.called if role in ("calls", "branch")):
        return True
    return False

  scopes = loop.op_name.split("/")  # of a loop inside the token loop, the scope is in its own name
  return TOKEN_SCOPE not in scopes and decodes(dict(loop.called).get("body", ""))


def _visit(module: Module, name: str, context: LoopContext, mesh: jax.sharding.Mesh | None) -> Iterator[Collective]:
  computation = module.computations.get(name, {})
  seen = set()  # collectives that XLA fused, in pieces, with other operations
  for i in computation.values():
    if (kind := i.opcode.removesuffix("-start")) in KINDS:
      yield _collective(computation, i, kind, context, mesh)
    elif i.opcode == "while":
      yield from _loop(module, name, i, context, mesh)
    elif i.opcode == "conditional":
      branches = [list(_visit(module, branch, context, mesh)) for _, branch in i.called]
      yield from max(branches, key=_size, default=[])
    elif i.opcode == "fusion":
      for key, c in _fused(module, i, context, mesh):
        if key not in seen:
          seen.add(key)
          yield c
    elif i.opcode in ("call", "custom-call", "async-start"):
      for _, called in i.called:
        yield from _visit(module, called, context, mesh)


def _loop(module: Module, name: str, loop: Instruction, context: LoopContext, mesh) -> Iterator[Collective]:
  body = dict(loop.called).get("body", "")
  if not context.in_token_loop and is_token_loop(module, loop):
    yield from _visit(module, body, LoopContext(in_token_loop=True), mesh)
    return
  trips = module.trip_count(name, loop)
  inside = LoopContext(
    times=context.times * (1 if trips is None else trips),
    in_token_loop=context.in_token_loop,
    trips_known=context.trips_known and trips is not None,
  )
  yield from _visit(module, body, inside, mesh)


def _fused(module: Module, fusion: Instruction, context: LoopContext, mesh) -> Iterator[tuple[tuple, Collective]]:
  """Yields the collectives inside a fusion, each with a key that its pieces in other fusions have too."""
  for _, called in fusion.called:
    computation = module.computations.get(called, {})
    for i in computation.values():
      if (kind := i.opcode.removesuffix("-start")) in KINDS:
        # A TPU's reduce-scatter is a fusion of an all-reduce and the slice that stays.
        scattered = kind == "all-reduce" and called.startswith("all-reduce-scatter")
        c = _collective(computation, i, "reduce-scatter" if scattered else kind, context, mesh)
        chain = re.search(r'chain_id="(\d+)"', i.attributes)
        yield (kind, i.channel, chain[1] if chain else i.name, c.operand_bytes), c
      elif i.opcode == "fusion":
        yield from _fused(module, i, context, mesh)


def _size(collectives: list[Collective]) -> tuple[float, int]:
  return sum(c.sent_bytes for c in collectives), len(collectives)


def _collective(computation: Computation, i: Instruction, kind: str, context: LoopContext, mesh) -> Collective:
  groups = replica_groups(i.attributes, 0 if mesh is None else mesh.size)
  if groups:
    group_size = len(groups[0])
  else:
    group_size = 2 if kind == "collective-permute" else 1
  return Collective(
    kind=kind,
    operand_bytes=sum(hlo.shape_bytes(computation[name].shape) for name in i.operands if name in computation),
    group_size=group_size,
    axes=spanned_axes(groups, mesh) if groups and mesh is not None else "",
    times=context.times,
    in_token_loop=context.in_token_loop,
    trips_known=context.trips_known,
    origin=i.op_name,
  )


def replica_groups(text: str, devices: int = 0) -> list[list[int]]:
  """The groups of devices that exchange with each other, from an instruction's attributes; [] where there are none.

  Devices are numbered in the order of the mesh. Pairs of a permutation are groups of two, or of one for what stays.

  Args:
    devices: how many there are, for `replica_groups={}`.
  """
  if found := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", text):
    return [[int(a), int(b)] for a, b in re.findall(r"\{(\d+),(\d+)\}", found[1])]
  if found := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", text):
    groups = [_numbers(group) for group in re.findall(r"\{([\d,]*)\}", found[1])]
    return groups or ([list(range(devices))] if devices else [])
  if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
    shape, reshape, order = map(_numbers, found.groups())
    ids = np.arange(math.prod(reshape)).reshape(reshape)
    return (ids.transpose(order) if order else ids).reshape(shape).tolist()
  if found := re.search(r"replica_groups=mesh\[([^\]]*)\](?:,? ?device_ids=\(([^{]*)\))? ?\{([^}]*)\}", text):
    sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", found[1])}
    return _by_axes(sizes, _order(found[2] or "", math.prod(sizes.values())), found[3])
  return []


def _numbers(text: str | None) -> list[int]:
  return [int(number) for number in (text or "").split(",") if number]


def _order(text: str, devices: int) -> list[int]:
  """The devices of a mesh in its order, from "[2,4]T(1,0)" or "0,2,1,3"; "" is 0, 1, 2, ..."""
  if found := re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
    shape, order = map(_numbers, found.groups())
    ids = np.arange(math.prod(shape)).reshape(shape)
    return (ids.transpose(order) if order else ids).reshape(-1).tolist()
  return [int(d) for d in re.findall(r"\d+", text)] or list(range(devices))


def _by_axes(sizes: dict[str, int], devices: list[int], names: str) -> list[list[int]]:
  """The groups over the named axes of a mesh of devices.

  An axis may be named in part, as 'x':(4)2, which is 2 after 4.
  """
  named = {name: (int(before or 1), int(n or sizes.get(name, 0))) for name, before, n in _AXIS.findall(names)}
  if len(devices) != math.prod(sizes.values()) or not named.keys() <= sizes.keys():
    return []
  shape, inside = [], []
  for name, n in sizes.items():
    before, taken = named.get(name, (1, 1))
    if name in named:
      inside.append(len(shape) + 1)
    shape += [before, taken, n // before // taken]
  outside = [axis for axis in range(len(shape)) if axis not in inside]
  ids = np.array(devices).reshape(shape).transpose(*outside, *inside)
  return ids.reshape(-1, math.prod(shape[axis] for axis in inside)).tolist()


def spanned_axes(groups: list[list[int]], mesh: jax.sharding.Mesh) -> str:
  """The mesh axes along which the devices of a group differ, joined by "+"."""
  names = []
  for axis, name in enumerate(mesh.axis_names):
    coordinates = [np.unravel_index(devices, mesh.devices.shape)[axis] for devices in groups]
    if any(len(np.unique(coordinate)) > 1 for coordinate in coordinates):
      names.append(str(name))
  return "+".join(names)
