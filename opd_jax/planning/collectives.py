"""What devices send each other in a compiled program, by kind, mesh axes, and place: inside the token loop or outside.

Every collective is counted as often as the loops around it run: layers and micro-batches by their trip counts, and what
stands in the token loop per token. Of a conditional the branch that sends most is counted.

Bytes are what one device sends around a ring of n devices that hold `held` bytes each: all-gather held (n - 1),
all-reduce 2 held (n - 1) / n, reduce-scatter and all-to-all held (n - 1) / n, collective-permute held.
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
TOKEN_SCOPE = "decode"  # the named scope of rollout/sample.py in which one token is read
_AXIS = re.compile(r"'(\w+)'(?::\((\d+)\)(\d+))?")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation of the program.

  Attributes:
    held: bytes of the operand that a device holds.
    group: devices that take part; 1 where that is not known.
    axes: mesh axes that a group spans, joined by "+"; "" where that is not known.
    times: executions in one call of the program, or per token where it stands in the token loop.
    counted: False where a loop around it has an unknown trip count, taken as 1.
    origin: the traced operation.
  """

  kind: str
  held: int
  group: int
  axes: str
  times: int
  in_token_loop: bool
  counted: bool
  origin: str

  @property
  def sent(self) -> float:
    """Bytes that one device sends, all executions together."""
    n = max(self.group, 1)
    share = (n - 1) / n
    other = {"all-gather": n - 1.0, "all-reduce": 2 * share, "collective-permute": 1.0, "collective-broadcast": 1.0}
    return other.get(self.kind, share) * self.held * self.times


@dataclasses.dataclass(frozen=True)
class Place:
  """Where the walk through a program stands."""

  times: int = 1
  in_token_loop: bool = False
  counted: bool = True


def read(module: Module, mesh: jax.sharding.Mesh | None = None) -> list[Collective]:
  """All collectives of one call of the program."""
  return list(_of(module, module.entry, Place(), mesh))


def by_kind(found: Sequence[Collective]) -> dict[tuple[str, str], tuple[int, float]]:
  """(kind, axes) -> executions and bytes sent, the most bytes first."""
  out: dict[tuple[str, str], tuple[int, float]] = {}
  for c in found:
    times, sent = out.get((c.kind, c.axes), (0, 0.0))
    out[c.kind, c.axes] = (times + c.times, sent + c.sent)
  return dict(sorted(out.items(), key=lambda item: -item[1][1]))


def token_loops(module: Module) -> list[Instruction]:
  """The while loops that read one token at each turn: one per segment of a rollout, and none in an update."""
  every = (i for computation in module.computations.values() for i in computation.values())
  return [i for i in every if i.opcode == "while" and reads_tokens(module, i)]


def reads_tokens(module: Module, loop: Instruction) -> bool:
  """Whether the loop's body itself, not a loop inside of it, has the operations that read a token."""

  def holds(computation: str) -> bool:
    for i in module.computations.get(computation, {}).values():
      if TOKEN_SCOPE in i.op_name.split("/"):
        return True
      if i.opcode != "while" and any(holds(name) for role, name in i.called if role in ("calls", "branch")):
        return True
    return False

  scopes = loop.op_name.split("/")  # of a loop inside the token loop, the scope is in its own name
  return TOKEN_SCOPE not in scopes and holds(dict(loop.called).get("body", ""))


def _of(module: Module, name: str, place: Place, mesh: jax.sharding.Mesh | None) -> Iterator[Collective]:
  computation = module.computations.get(name, {})
  parts = set()  # of collectives that were fused, in pieces, with the work beside them
  for i in computation.values():
    if (kind := i.opcode.removesuffix("-start")) in KINDS:
      yield _collective(computation, i, kind, place, mesh)
    elif i.opcode == "while":
      yield from _loop(module, name, i, place, mesh)
    elif i.opcode == "conditional":
      branches = [list(_of(module, branch, place, mesh)) for _, branch in i.called]
      yield from max(branches, key=_weight, default=[])
    elif i.opcode == "fusion":
      for key, c in _fused(module, i, place, mesh):
        if key not in parts:
          parts.add(key)
          yield c
    elif i.opcode in ("call", "custom-call", "async-start"):
      for _, called in i.called:
        yield from _of(module, called, place, mesh)


def _loop(module: Module, name: str, loop: Instruction, place: Place, mesh) -> Iterator[Collective]:
  body = dict(loop.called).get("body", "")
  if not place.in_token_loop and reads_tokens(module, loop):
    yield from _of(module, body, Place(in_token_loop=True), mesh)
    return
  trips = module.trips(name, loop)
  inside = Place(
    place.times * (1 if trips is None else trips), place.in_token_loop, place.counted and trips is not None
  )
  yield from _of(module, body, inside, mesh)


def _fused(module: Module, fusion: Instruction, place: Place, mesh) -> Iterator[tuple[tuple, Collective]]:
  """Collectives inside a fusion, each with what its pieces in other fusions share with it."""
  for _, called in fusion.called:
    computation = module.computations.get(called, {})
    for i in computation.values():
      if (kind := i.opcode.removesuffix("-start")) in KINDS:
        # A TPU's reduce-scatter is a fusion of an all-reduce and the slice that stays.
        scattered = kind == "all-reduce" and called.startswith("all-reduce-scatter")
        c = _collective(computation, i, "reduce-scatter" if scattered else kind, place, mesh)
        chain = re.search(r'chain_id="(\d+)"', i.rest)
        yield (kind, i.channel, chain[1] if chain else i.name, c.held), c
      elif i.opcode == "fusion":
        yield from _fused(module, i, place, mesh)


def _weight(found: list[Collective]) -> tuple[float, int]:
  return sum(c.sent for c in found), len(found)


def _collective(computation: Computation, i: Instruction, kind: str, place: Place, mesh) -> Collective:
  held = sum(hlo.size(computation[name].shape) for name in i.operands if name in computation)
  devices = group(i.rest, _partitions(mesh))
  return Collective(
    kind=kind,
    held=held,
    group=len(devices[0]) if devices else 2 if kind == "collective-permute" else 1,
    axes=axes(devices, mesh) if devices and mesh is not None else "",
    times=place.times,
    in_token_loop=place.in_token_loop,
    counted=place.counted,
    origin=i.op_name,
  )


def _partitions(mesh: jax.sharding.Mesh | None) -> int:
  return 0 if mesh is None else mesh.size


def group(text: str, devices: int = 0) -> list[list[int]]:
  """Groups of devices that exchange with each other, from an instruction's attributes; [] where they cannot be read.

  Devices are numbered in the order of the mesh. Pairs of a permutation are groups of two, or of one for what stays.

  Args:
    devices: all of them, for `replica_groups={}`.
  """
  if found := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", text):
    return [[int(a), int(b)] for a, b in re.findall(r"\{(\d+),(\d+)\}", found[1])]
  if found := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", text):
    given = [[int(d) for d in one.split(",") if d] for one in re.findall(r"\{([\d,]*)\}", found[1])]
    return given or ([list(range(devices))] if devices else [])
  if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
    shape, reshape, order = (tuple(int(d) for d in (part or "").split(",") if d) for part in found.groups())
    ids = np.arange(math.prod(reshape)).reshape(reshape)
    return (ids.transpose(order) if order else ids).reshape(shape).tolist()
  if found := re.search(r"replica_groups=mesh\[([^\]]*)\](?:,? ?device_ids=\(([^{]*)\))? ?\{([^}]*)\}", text):
    sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", found[1])}
    return _by_axes(sizes, _order(found[2] or "", math.prod(sizes.values())), found[3])
  return []


def _order(text: str, devices: int) -> list[int]:
  """The devices of a mesh in its order, from "[2,4]T(1,0)" or "0,2,1,3"; "" is 0, 1, 2, ..."""
  if found := re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
    shape, order = (tuple(int(d) for d in (part or "").split(",") if d) for part in found.groups())
    ids = np.arange(math.prod(shape)).reshape(shape)
    return (ids.transpose(order) if order else ids).reshape(-1).tolist()
  return [int(d) for d in re.findall(r"\d+", text)] or list(range(devices))


def _by_axes(sizes: dict[str, int], devices: list[int], said: str) -> list[list[int]]:
  """Groups over the named axes of a mesh of devices; an axis may be named in part, as 'x':(4)2, which is 2 after 4."""
  named = {name: (int(before or 1), int(n or sizes.get(name, 0))) for name, before, n in _AXIS.findall(said)}
  if len(devices) != math.prod(sizes.values()) or not named.keys() <= sizes.keys():
    return []
  shape, inside = [], []
  for name, n in sizes.items():
    before, taken = named.get(name, (1, 1))
    inside += [len(shape) + 1] if name in named else []
    shape += [before, taken, n // before // taken]
  outside = [axis for axis in range(len(shape)) if axis not in inside]
  ids = np.array(devices).reshape(shape).transpose(*outside, *inside)
  return ids.reshape(-1, math.prod(shape[axis] for axis in inside)).tolist()


def axes(groups: list[list[int]], mesh: jax.sharding.Mesh) -> str:
  """The mesh axes along which the devices of a group differ."""
  where = [np.unravel_index(devices, mesh.devices.shape) for devices in groups]
  names = [
    name for axis, name in enumerate(mesh.axis_names) if any(len(set(map(int, coords[axis]))) > 1 for coords in where)
  ]
  return "+".join(map(str, names))
