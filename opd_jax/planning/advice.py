"""Which keys to change where a stage does not fit into a chip's memory, and roughly what each would save.

Savings are counted from shapes (caches, weights, optimiser state), but for those of a micro-batch, which are a share of
the program's temporaries. They are not compiled: plan again with the key.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

from opd_jax import mesh as meshes
from opd_jax.benchmarks import roofline
from opd_jax.planning import stages
from opd_jax.planning.compiled import Program
from opd_jax.planning.estimate import Estimate
from opd_jax.planning.setup import Setup

GIB = 2**30
LANES = 128  # numbers in the last dimension of a TPU's tile; fewer are padded to as many


@dataclasses.dataclass(frozen=True)
class Need:
  """A program's memory while the rest of the run lies beside it; bytes of one device.

  Attributes:
    beside: state and teachers that are no arguments of it, and the code of the stage's other programs.
  """

  program: Program
  width: int
  beside: int
  capacity: int

  @property
  def total(self) -> int:
    return self.beside + (self.program.memory.total if self.program.memory else 0)

  @property
  def over(self) -> int:
    return self.total - self.capacity

  @property
  def fits(self) -> bool:
    return self.program.memory is not None and self.over <= 0


@dataclasses.dataclass(frozen=True)
class Suggestion:
  """What to override.

  Attributes:
    saves: bytes of a device.
    enough: whether that alone would make the program fit.
  """

  keys: str
  saves: float
  why: str
  enough: bool = False

  def __str__(self) -> str:
    would = "would fit" if self.enough else "would come nearer"
    return f"{would} with {self.keys}: about {self.saves / GIB:.1f} GiB less ({self.why})"


def needs(setup: Setup, programs: Sequence[tuple[int, Program]], resident: dict[str, int]) -> list[Need]:
  """Of the programs of a stage, each with its response width."""
  code = {p.name: p.memory.code if p.memory else 0 for _, p in programs}
  lies = resident["optimizer"] + resident["teachers"]
  return [
    Need(p, width, (0 if p.name == "update" else lies) + sum(code.values()) - code[p.name], setup.target.capacity)
    for width, p in programs
  ]


def suggestions(setup: Setup, need: Need, resident: dict[str, int]) -> list[Suggestion]:
  """What would make a program fit, the largest saving first; [] where it does."""
  if need.fits or need.program.memory is None:
    return []
  of = {"rollout": _rollout, "evaluate": _evaluation, "update": _update}[need.program.name]
  found = [*of(setup, need), *_weights(setup, need, resident)]
  judged = [dataclasses.replace(s, enough=s.saves >= need.over) for s in found if s.saves > 0.01 * GIB]
  return sorted(judged, key=lambda s: -s.saves)


def _rollout(setup: Setup, need: Need) -> Iterator[Suggestion]:
  c, shards = setup.c, meshes.row_shards(setup.mesh)
  whole = _caches(setup, setup.rows, need.width)
  smaller = [b for b in range(shards, c.batch, shards) if whole * (1 - b / c.batch) >= need.over]
  if smaller or c.batch > shards:
    batch = max(smaller) if smaller else shards
    yield Suggestion(
      f"--config.batch={batch}",
      whole * (1 - batch / c.batch),
      f"{batch * c.rollouts_per_prompt // shards} rows a device instead of {setup.rows // shards}; "
      f"their caches are {whole / GIB:.1f} GiB",
    )
  if c.rollouts_per_prompt > 1:
    fewer = [n for n in range(1, c.rollouts_per_prompt) if whole * (1 - n / c.rollouts_per_prompt) >= need.over]
    n = max(fewer, default=1)
    yield Suggestion(
      f"--config.rollouts_per_prompt={n}", whole * (1 - n / c.rollouts_per_prompt), "fewer rows of the same prompts"
    )
  yield from _tensor(setup)


def _evaluation(setup: Setup, need: Need) -> Iterator[Suggestion]:
  c, shards = setup.c, meshes.row_shards(setup.mesh)
  batch = stages.evaluation_batch(setup)
  whole = _caches(setup, batch * c.eval.k, need.width)
  if batch > shards:
    smaller = [b for b in range(shards, batch, shards) if whole * (1 - b / batch) >= need.over]
    b = max(smaller, default=shards)
    yield Suggestion(f"--config.eval.batch={b}", whole * (1 - b / batch), "more calls, the same answers")
  if c.eval.k > 1:
    fewer = [k for k in range(1, c.eval.k) if whole * (1 - k / c.eval.k) >= need.over]
    k = max(fewer, default=1)
    yield Suggestion(
      f"--config.eval.k={k}", whole * (1 - k / c.eval.k), "fewer samples of each problem, wider intervals"
    )
  yield from _tensor(setup)


def _update(setup: Setup, need: Need) -> Iterator[Suggestion]:
  c, shards = setup.c, meshes.row_shards(setup.mesh)
  assert need.program.memory is not None
  temporaries = need.program.memory.temporaries
  size = c.micro_batch or setup.rows
  fits = [m for m in range(shards, size, shards) if setup.rows % m == 0]
  if fits:
    enough = [m for m in fits if temporaries * (1 - m / size) >= need.over]
    m = max(enough) if enough else min(fits)
    yield Suggestion(
      f"--config.micro_batch={m}", temporaries * (1 - m / size), "at most: the share of the rows in the temporaries"
    )
  if c.remat != "layer":
    kept = _activations(setup, size // shards, need.width)
    yield Suggestion("--config.remat=layer", kept, "the backward pass computes each layer again; a third more FLOPs")


def _weights(setup: Setup, need: Need, resident: dict[str, int]) -> Iterator[Suggestion]:
  c, mesh = setup.c, setup.mesh
  teachers = resident["teachers"]
  if need.program.name != "update" and not c.teacher_offload and teachers:
    yield Suggestion("--config.teacher_offload=true", teachers, "teachers rest in the hosts' memory during rollouts")
  if c.teacher_precision != "int8" and teachers:
    dense = sum(roofline.parameters(cfg) for cfg in setup.subject.teachers)
    layers = sum(roofline.layer_weights(cfg) for cfg in setup.subject.teachers)
    yield Suggestion("--config.teacher_precision=int8", teachers * layers / dense / 2, "the matrices of their layers")
  data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
  if data > 1:
    lies = resident["params"] + resident["optimizer"] + teachers
    yield Suggestion(
      f"--mesh=fsdp={fsdp * data},tensor={mesh.shape['tensor']}",
      lies * (1 - 1 / data),
      "state and teachers split over all rows' devices",
    )


def _tensor(setup: Setup) -> Iterator[Suggestion]:
  mesh, student = setup.mesh, setup.subject.student
  tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
  if fsdp % 2 == 0 and student.kv_heads % (2 * tensor) == 0:
    size = roofline.parameters(student) * setup.subject.dtype.itemsize / tensor
    yield Suggestion(
      f"--mesh=data={mesh.shape['data']},fsdp={fsdp // 2},tensor={2 * tensor}",
      size / 2,
      f"the rollout holds {size / GIB:.1f} GiB of weights on each device; two all-reduces a layer at every token",
    )


def _caches(setup: Setup, rows: int, width: int) -> float:
  """Bytes per device."""
  whole = roofline.cache_bytes(setup.subject.student, rows, setup.prompt + width, setup.subject.dtype.itemsize)
  return whole / meshes.row_shards(setup.mesh) / setup.mesh.shape["tensor"]


def _activations(setup: Setup, rows: int, width: int) -> float:
  """Bytes per device that a backward pass without remat keeps, about: what every product of a layer reads."""
  cfg = setup.subject.student
  numbers = 6 * cfg.width + 2 * (cfg.heads + cfg.kv_heads) * cfg.head_width + 3 * cfg.ff_width
  tokens = rows * (setup.prompt + width)
  return tokens * cfg.layers * (numbers - cfg.width) * setup.subject.dtype.itemsize / setup.mesh.shape["tensor"]


def remarks(setup: Setup, programs: Sequence[Program], resident: dict[str, int]) -> list[str]:
  """What is worth mending though it fits: padding of narrow shards, weights that travel at every token."""
  out = []
  update = next((p for p in programs if p.name == "update" and p.memory), None)
  tpu = setup.mesh.devices.flat[0].platform == "tpu"
  split = setup.mesh.shape["fsdp"] * setup.mesh.shape["expert"]
  for name, cfg in zip(setup.subject.names, (setup.subject.student, *setup.subject.teachers), strict=True):
    if tpu and cfg.width % split == 0 and cfg.width // split < LANES:
      better = math.gcd(cfg.width // LANES, setup.mesh.size // setup.mesh.shape["tensor"])
      out.append(
        f"fsdp splits the width {cfg.width} of {name} into {cfg.width // split}, which a TPU pads to {LANES}: beyond "
        f"fsdp={better} nothing is saved; --mesh=fsdp={better},tensor={setup.mesh.shape['tensor']} puts the rest on data"
      )
  if update and update.memory:
    padding = update.memory.arguments - sum(resident.values())
    if padding > 0.1 * update.memory.arguments and padding > GIB / 4:
      out.append(f"{padding / GIB:.1f} GiB of the update's arguments are padding of their layout, or the rollouts")
  for p in programs:
    for c in p.collectives or []:
      if c.in_token_loop and set(c.axes.split("+")) & {"data", "fsdp", "expert"}:
        out.append(f"{p.name}: {c.kind} over {c.axes} at every token ({c.origin}): a layout is wrong")
        break
  return out


def waiting(setup: Setup, update: Program, counted: Estimate, width: int) -> list[str]:
  """Where an update waits for its links longer than it computes, since weights travel once per micro-batch."""
  c = setup.c
  parts = setup.rows // c.micro_batch if c.micro_batch else 1
  sending, working = counted.sent("update", width).once, counted.seconds(counted.works("update", width))
  if parts == 1 or sending < working / 2:
    return []
  larger = next(m for m in range(2 * c.micro_batch, setup.rows + 1) if setup.rows % m == 0)
  sent = sum(one.sent for one in update.collectives or [])
  return [
    f"weights travel once per micro-batch, and the update has {parts}: {sent / GIB:,.0f} GiB a step, "
    f"{sending:.1f} s of sending beside {working:.1f} s of work; --config.micro_batch={larger} sends about half, "
    "if it fits"
  ]
