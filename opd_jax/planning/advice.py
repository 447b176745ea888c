"""Suggests keys to change where a stage does not fit into a chip's memory, and estimates what each would save.

Savings are counted from shapes (caches, weights, optimiser state), but for those of a micro-batch, which are a share of
the program's temporaries. They are not compiled: plan again with the key.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

from opd_jax.models import image_encoder, roofline
from opd_jax.planning import stages
from opd_jax.planning.compiled import Program
from opd_jax.planning.estimate import RunEstimate
from opd_jax.planning.setup import Setup
from opd_jax.runtime import mesh as meshes

GIB = 2**30
LANES = 128  # numbers in the last dimension of a TPU's tile; fewer are padded to as many


@dataclasses.dataclass(frozen=True)
class MemoryNeed:
  """The memory that a program needs together with the rest of the run; bytes of one device.

  Attributes:
    width: of the responses, tokens; of what encodes images, patches.
    others: bytes of state, teachers and towers that are no arguments of it, and of the code of the stage's other programs.
  """

  program: Program
  width: int
  others: int
  capacity: int

  @property
  def total(self) -> int:
    return self.others + (self.program.memory.total if self.program.memory else 0)

  @property
  def excess(self) -> int:
    """Bytes by which it does not fit; below zero where it does."""
    return self.total - self.capacity

  @property
  def fits(self) -> bool:
    return self.program.memory is not None and self.excess <= 0


@dataclasses.dataclass(frozen=True)
class Suggestion:
  """A change of the config or the mesh that saves memory.

  Attributes:
    keys: the arguments of the command line.
    saves: bytes of a device.
    why: what saves them, or what it costs.
    enough: whether that alone would make the program fit.
  """

  keys: str
  saves: float
  why: str
  enough: bool = False

  def __str__(self) -> str:
    would = "would fit" if self.enough else "would come nearer"
    return f"{would} with {self.keys}: about {self.saves / GIB:.1f} GiB less ({self.why})"


def needs(setup: Setup, programs: Sequence[tuple[int, Program]], resident: dict[str, int]) -> list[MemoryNeed]:
  """List what each program of a stage needs.

  Args:
    programs: each with its response width.
    resident: see `stages.resident`.
  """
  code = {p.name: p.memory.code if p.memory else 0 for _, p in programs}
  stage_needs = []
  for width, p in programs:
    others = sum(code.values()) - code[p.name] + resident["towers"]
    if p.name != "update":  # which has the state and the teachers as arguments
      others += resident["optimizer"] + resident["teachers"]
    if p.name == image_encoder.PROGRAM:  # which has one tower alone
      others += resident["params"] - stages.tower_bytes(setup, stages.towers(setup)[0])
    stage_needs.append(MemoryNeed(p, width, others, setup.target.capacity))
  return stage_needs


def suggestions(setup: Setup, need: MemoryNeed, resident: dict[str, int]) -> list[Suggestion]:
  """Changes that would make a program fit or come nearer, the largest saving first; [] where it fits."""
  if need.fits or need.program.memory is None:
    return []
  by_name = {"rollout": _rollout, "evaluate": _evaluation, "update": _update, image_encoder.PROGRAM: _encoding}
  own = by_name[need.program.name]
  found = [s for s in (*own(setup, need), *_weights(setup, need, resident)) if s.saves > 0.01 * GIB]
  return sorted((dataclasses.replace(s, enough=s.saves >= need.excess) for s in found), key=lambda s: -s.saves)


def _rollout(setup: Setup, need: MemoryNeed) -> Iterator[Suggestion]:
  c, shards = setup.c, meshes.row_shards(setup.mesh)
  n = c.rollouts_per_prompt
  caches = _cache_bytes(setup, c.batch, n, need.width)
  smaller = [b for b in range(shards, c.batch, shards) if caches * (1 - b / c.batch) >= need.excess]
  if smaller or c.batch > shards:
    batch = max(smaller) if smaller else shards
    yield Suggestion(
      f"--config.batch={batch}",
      caches * (1 - batch / c.batch),
      f"{batch * c.rollouts_per_prompt // shards} rows a device instead of {setup.rows // shards}; "
      f"their caches are {caches / GIB:.1f} GiB",
    )
  if n > 1:
    fewer, saved = _fewest(setup, c.batch, n, need)
    yield Suggestion(f"--config.rollouts_per_prompt={fewer}", saved, "fewer rows of the same prompts")
  yield from _tensor(setup)


def _evaluation(setup: Setup, need: MemoryNeed) -> Iterator[Suggestion]:
  c, shards = setup.c, meshes.row_shards(setup.mesh)
  batch = stages.evaluation_batch(setup)
  caches = _cache_bytes(setup, batch, c.eval.k, need.width)
  if batch > shards:
    smaller = [b for b in range(shards, batch, shards) if caches * (1 - b / batch) >= need.excess]
    b = max(smaller, default=shards)
    yield Suggestion(f"--config.eval.batch={b}", caches * (1 - b / batch), "more calls, the same answers")
  if c.eval.k > 1:
    k, saved = _fewest(setup, batch, c.eval.k, need)
    yield Suggestion(f"--config.eval.k={k}", saved, "fewer samples of each problem, wider intervals")
  yield from _tensor(setup)


def _update(setup: Setup, need: MemoryNeed) -> Iterator[Suggestion]:
  c, shards = setup.c, meshes.row_shards(setup.mesh)
  assert need.program.memory is not None
  temporaries = need.program.memory.temporaries
  size = c.micro_batch or setup.rows
  whole = shards * c.rollouts_per_prompt  # slices of whole prompts read each of them once
  fits = [m for m in range(whole, size, whole) if setup.rows % m == 0]
  fits = fits or [m for m in range(shards, size, shards) if setup.rows % m == 0]
  if fits:
    enough = [m for m in fits if temporaries * (1 - m / size) >= need.excess]
    m = max(enough) if enough else min(fits)
    yield Suggestion(
      f"--config.micro_batch={m}", temporaries * (1 - m / size), "at most: the share of the rows in the temporaries"
    )
  if c.remat != "layer":
    activations = _activation_bytes(setup, size // shards, need.width)
    yield Suggestion(
      "--config.remat=layer", activations, "the backward pass computes each layer again; a third more FLOPs"
    )


def _encoding(setup: Setup, need: MemoryNeed) -> Iterator[Suggestion]:
  assert need.program.memory is not None
  share = image_encoder.PATCHES / need.width
  if share < 1:  # smaller ones go through together, as many patches as that
    tower = stages.towers(setup)[0]
    saved = need.program.memory.temporaries * (1 - share)
    pixels = image_encoder.PATCHES * tower.patch**2
    yield Suggestion(f"--config.data.max_pixels={pixels}", saved, "smaller images, with fewer tokens")


def _weights(setup: Setup, need: MemoryNeed, resident: dict[str, int]) -> Iterator[Suggestion]:
  c, mesh = setup.c, setup.mesh
  teachers = resident["teachers"]
  if need.program.name != "update" and not c.teacher_offload and teachers:
    yield Suggestion("--config.teacher_offload=true", teachers, "teachers rest in the hosts' memory during rollouts")
  if c.teacher_precision != "int8" and teachers:
    dense = sum(roofline.parameter_count(cfg) for cfg in setup.teachers)
    layers = sum(roofline.layer_parameters(cfg) for cfg in setup.teachers)
    yield Suggestion("--config.teacher_precision=int8", teachers * layers / dense / 2, "the matrices of their layers")
  data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
  if data > 1:
    state = resident["params"] + resident["optimizer"] + teachers
    yield Suggestion(
      f"--mesh=fsdp={fsdp * data},tensor={mesh.shape['tensor']}",
      state * (1 - 1 / data),
      "state and teachers split over all rows' devices",
    )


def _tensor(setup: Setup) -> Iterator[Suggestion]:
  mesh, student = setup.mesh, setup.student
  tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
  if fsdp % 2 == 0 and student.kv_heads % (2 * tensor) == 0:
    size = roofline.parameter_count(student) * setup.dtype.itemsize / tensor
    yield Suggestion(
      f"--mesh=data={mesh.shape['data']},fsdp={fsdp // 2},tensor={2 * tensor}",
      size / 2,
      f"the rollout holds {size / GIB:.1f} GiB of weights on each device; two all-reduces a layer at every token",
    )


def _cache_bytes(setup: Setup, prompts: int, n: int, width: int) -> float:
  """Count the bytes per device of the keys and values of all prompts and of n responses to each, full."""
  slots = prompts * (setup.prompt + n * width)
  all_devices = roofline.cache_bytes(setup.student, 1, slots, setup.dtype.itemsize)
  return all_devices / meshes.row_shards(setup.mesh) / setup.mesh.shape["tensor"]


def _fewest(setup: Setup, prompts: int, n: int, need: MemoryNeed) -> tuple[int, float]:
  """Choose the most responses to a prompt below n whose caches would fit, 1 where none would; and the bytes it saves."""
  saves = {
    m: _cache_bytes(setup, prompts, n, need.width) - _cache_bytes(setup, prompts, m, need.width) for m in range(1, n)
  }
  m = max((m for m, saved in saves.items() if saved >= need.excess), default=1)
  return m, saves[m]


def _activation_bytes(setup: Setup, rows: int, width: int) -> float:
  """Estimates bytes per device that a backward pass without remat holds: the operands of every product of a layer."""
  cfg = setup.student
  numbers = 6 * cfg.d_model + 2 * (cfg.heads + cfg.kv_heads) * cfg.head_width + 3 * cfg.ff_width
  tokens = rows * (setup.prompt / setup.c.rollouts_per_prompt + width)
  return tokens * cfg.layers * (numbers - cfg.d_model) * setup.dtype.itemsize / setup.mesh.shape["tensor"]


def remarks(setup: Setup, programs: Sequence[Program], resident: dict[str, int]) -> list[str]:
  """Write sentences on what wastes memory or time though it fits: padded shards, weights sent at every token."""
  sentences = []
  update = next((p for p in programs if p.name == "update" and p.memory), None)
  tpu = setup.mesh.devices.flat[0].platform == "tpu"
  split = setup.mesh.shape["fsdp"] * setup.mesh.shape["expert"]
  for name, cfg in zip(setup.names, (setup.student, *setup.teachers), strict=True):
    if tpu and cfg.d_model % split == 0 and cfg.d_model // split < LANES:
      better = math.gcd(cfg.d_model // LANES, setup.mesh.size // setup.mesh.shape["tensor"])
      sentences.append(
        f"fsdp splits the width {cfg.d_model} of {name} into {cfg.d_model // split}, which a TPU pads to {LANES}: beyond "
        f"fsdp={better} nothing is saved; --mesh=fsdp={better},tensor={setup.mesh.shape['tensor']} puts the rest "
        "on data"
      )
  if update and update.memory:
    padding = update.memory.arguments - (sum(resident.values()) - resident["towers"])
    if padding > 0.1 * update.memory.arguments and padding > GIB / 4:
      sentences.append(
        f"{padding / GIB:.1f} GiB of the update's arguments are padding of their layout, or the rollouts"
      )
  for p in programs:
    row_axes = {"data", "fsdp", "expert"}
    wrong = (c for c in p.collectives or [] if c.in_token_loop and row_axes & set(c.axes.split("+")))
    if c := next(wrong, None):
      sentences.append(f"{p.name}: {c.kind} over {c.axes} at every token ({c.origin}): a layout is wrong")
  return sentences


def link_bound(setup: Setup, update: Program, estimate: RunEstimate, width: int) -> list[str]:
  """Write a sentence where an update waits for its links half as long as it computes, or longer.

  Weights are sent once per micro-batch, so that a larger one sends them less often.
  """
  c = setup.c
  parts = setup.rows // c.micro_batch if c.micro_batch else 1
  sending = estimate.collectives("update", width).per_call
  working = estimate.roofline_seconds(estimate.costs("update", width))
  if parts == 1 or sending < working / 2:
    return []
  larger = next(m for m in range(2 * c.micro_batch, setup.rows + 1) if setup.rows % m == 0)
  sent = sum(collective.sent_bytes for collective in update.collectives or [])
  return [
    f"weights travel once per micro-batch, and the update has {parts}: {sent / GIB:,.0f} GiB a step, "
    f"{sending:.1f} s of sending beside {working:.1f} s of work; --config.micro_batch={larger} sends about half, "
    "if it fits"
  ]
