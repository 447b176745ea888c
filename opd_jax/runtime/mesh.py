"""The device mesh, and where every array lies on it.

Axes: `data` and `fsdp` split the rows of a batch, `expert` splits them too and holds the experts of a mixture, `tensor`
splits heads, feed-forward width and vocabulary. Over several slices, `data` is what crosses from one to the other.

One table says which mesh axes each dimension of a parameter is split over, for every layout:

    train     fp32 master weights and optimiser state, layers stacked, split over fsdp and tensor
    rollout   compute-type weights, one pytree per layer, split over tensor only (and experts over expert)
    teacher   compute type, stacked; beside tensor split over nothing, over fsdp, or over everything (`mesh.teacher`)

A dimension that its axes do not divide is split over those of them that do, or stays whole; `models/model_sharding.py` says which.
"""

import math
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from opd_jax.errors import InputError

AXES = ("data", "fsdp", "expert", "tensor")
ROWS = ("data", "fsdp", "expert")

DIMENSIONS = {  # of each parameter by name, without the leading layer axis
  "embed": ("vocab", "width"),
  "head": ("vocab", "width"),
  "q": ("width", "heads", None),
  "k": ("width", "heads", None),
  "v": ("width", "heads", None),
  "q_bias": ("heads", None),
  "k_bias": ("heads", None),
  "v_bias": ("heads", None),
  "o": ("heads", None, "width"),
  "gate": ("width", "ff"),
  "up": ("width", "ff"),
  "down": ("ff", "width"),
  "router": ("width", None),
  "experts_gate": ("experts", "width", "ff"),
  "experts_up": ("experts", "width", "ff"),
  "experts_down": ("experts", "ff", "width"),
  # of the gated delta rule, see models/delta_net.py
  "delta_qkv": ("width", "heads", None),
  "delta_gate": ("width", "heads", None),
  "delta_rate": ("width", "heads"),
  "delta_decay": ("width", "heads"),
  "delta_conv": ("heads", None, None),
  "delta_log_decay": ("heads",),
  "delta_bias": ("heads",),
  "delta_out": ("heads", None, "width"),
  # of a vision tower, see models/vision.py
  "vision_qkv": ("width", None, "heads", None),
  "vision_qkv_bias": (None, "heads", None),
  "vision_o": ("heads", None, "width"),
  "vision_gate": ("width", "ff"),
  "vision_up": ("width", "ff"),
  "vision_down": ("ff", "width"),
  "merge_in": ("width", "ff"),
  "merge_out": ("ff", "width"),
  # low-rank adapters, see models/lora.py
  "q_a": ("width", None),
  "k_a": ("width", None),
  "v_a": ("width", None),
  "q_b": (None, "heads", None),
  "k_b": (None, "heads", None),
  "v_b": (None, "heads", None),
  "o_a": ("heads", None, None),
  "o_b": (None, "width"),
  "gate_a": ("width", None),
  "up_a": ("width", None),
  "gate_b": (None, "ff"),
  "up_b": (None, "ff"),
  "down_a": ("ff", None),
  "down_b": (None, "width"),
  "delta_qkv_a": ("width", None),
  "delta_gate_a": ("width", None),
  "delta_rate_a": ("width", None),
  "delta_decay_a": ("width", None),
  "delta_qkv_b": (None, "heads", None),
  "delta_gate_b": (None, "heads", None),
  "delta_rate_b": (None, "heads"),
  "delta_decay_b": (None, "heads"),
  "delta_out_a": ("heads", None, None),
  "delta_out_b": (None, "width"),
  # as rollout/cache.py joins them
  "qkv": ("width", "heads", None, None),
  "qkv_bias": ("heads", None, None),
  "out": ("heads", None, None, "width"),
  "gate_up": ("width", None, "ff"),
}
PARTS = ("qvalue", "scale")  # of an int8 matrix, that lie as it does; axes that share a scale have size 1, so whole
WIDE = {"vocab": ("tensor",), "heads": ("tensor",), "ff": ("tensor",), "experts": ("expert",)}
RULES = {  # an axis is used once per array, by the first dimension that asks for it
  "train": WIDE | {"width": ("fsdp", "expert")},
  "rollout": WIDE,
  "teacher:none": WIDE,
  "teacher:fsdp": WIDE | {"width": ("fsdp", "expert")},
  "teacher:all": WIDE | {"width": ("data", "fsdp", "expert")},
}


def make(data: int = -1, fsdp: int = 1, tensor: int = 1, expert: int = 1, devices: Sequence | None = None) -> Mesh:
  """Makes a mesh of the given axis sizes, at most one of them -1 (what the others leave).

  Devices of several slices (TPU slices joined by the data-centre network) lie along `data`, so that everything but the
  sum of gradients and a gather over all data stays inside a slice.

  Raises:
    InputError: where the sizes do not multiply to the number of devices, or the slices do not divide `data`.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = [data, fsdp, expert, tensor]
  given = f"config.mesh is data={data}, fsdp={fsdp}, expert={expert}, tensor={tensor}"
  if any(s == 0 or s < -1 for s in sizes) or sizes.count(-1) > 1:
    raise InputError(f"{given}; sizes are positive, and one of them may be -1.")
  known = math.prod(s for s in sizes if s != -1)
  if -1 in sizes and len(devices) % known == 0:
    sizes[sizes.index(-1)] = len(devices) // known
  if math.prod(sizes) != len(devices):
    raise InputError(
      f"{given}, which does not make {len(devices)} device(s); "
      "the four sizes have to multiply to the number of devices, and one of them may be -1."
    )
  slices = len({getattr(d, "slice_index", 0) for d in devices})
  types = (AxisType.Auto,) * len(AXES)
  if slices == 1:
    return jax.make_mesh(tuple(sizes), AXES, axis_types=types, devices=devices)
  if sizes[0] % slices:
    near = [n for n in range(slices, len(devices) + 1, slices) if len(devices) % n == 0]
    raise InputError(
      f"{given}, over {slices} slices: the slices lie along data, so config.mesh.data has to be a multiple of "
      f"{slices}, "
      f"such as {' or '.join(map(str, near[:2]))}."
    )
  inner, outer = [sizes[0] // slices, *sizes[1:]], [slices, 1, 1, 1]
  return Mesh(mesh_utils.create_hybrid_device_mesh(inner, outer, devices), AXES, axis_types=types)


def from_config(config, devices: Sequence | None = None) -> Mesh:
  """Makes the mesh of `config.mesh`."""
  return make(config.data, config.fsdp, config.tensor, config.expert, devices)


def for_reading(config) -> Mesh:
  """Makes the mesh of `config.mesh`, or of all devices as rows where the run had another number of them."""
  try:
    return from_config(config)
  except InputError:
    return make()


def row_shards(mesh: Mesh) -> int:
  """Counts the devices over which the rows of a batch are split."""
  return math.prod(mesh.shape[axis] for axis in ROWS)


def check_rows(mesh: Mesh, rows: int, key: str) -> None:
  """Refuses a number of rows that the data and fsdp axes do not divide, naming sizes that would work."""
  shards = row_shards(mesh)
  if rows % shards:
    near = sorted({max(shards, rows // shards * shards), (rows // shards + 1) * shards})
    raise InputError(
      f"{key} is {rows}, which the {shards} row shards of the mesh (data x fsdp x expert) do not divide; "
      f"{' or '.join(map(str, near))} would."
    )


def shardings(mesh: Mesh, tree, layout: str = "train"):
  """Returns a sharding for every leaf of parameters, optimiser state or a train state, found by the leaf's name."""
  return jax.tree_util.tree_map_with_path(lambda path, leaf: NamedSharding(mesh, _spec(mesh, path, leaf, layout)), tree)


def constrain(mesh: Mesh, tree, layout: str):
  """Moves parameters to a layout, inside jit."""
  return jax.lax.with_sharding_constraint(tree, shardings(mesh, tree, layout))


def abstract(tree, sharding=None):
  """Returns the shapes, types and shardings of a pytree of arrays, concrete or abstract; nothing is allocated.

  Args:
    sharding: one for all leaves, or a pytree of them; None: each array's own.
  """
  if sharding is None:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), tree)
  if isinstance(sharding, jax.sharding.Sharding):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)
  return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, sharding)


def rows(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of a batch's rows; further dimensions are not split."""
  return NamedSharding(mesh, P(ROWS))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays that every device holds in full."""
  return NamedSharding(mesh, P())


def _spec(mesh: Mesh, path, leaf, layout: str) -> P:
  names = [key.key if hasattr(key, "key") else getattr(key, "name", None) for key in path]
  own = (n for n in reversed(names) if isinstance(n, str) and n not in PARTS)
  return spec(mesh, next(own, ""), leaf.shape, layout)


def spec(mesh: Mesh, name: str, shape: tuple[int, ...], layout: str) -> P:
  """Returns the axes over which each dimension of the parameter of that name lies."""
  dimensions = DIMENSIONS.get(name, ())
  lead = len(shape) - len(dimensions)  # the stacked layers
  if lead not in (0, 1):
    return P()
  free = set(mesh.axis_names)
  found: list = [None] * lead
  for dimension, size in zip(dimensions, shape[lead:], strict=True):
    wanted = [axis for axis in RULES[layout].get(dimension, ()) if axis in free]
    axes = _dividing(wanted, size, mesh)
    free -= set(axes)
    single = axes[0] if axes else None
    found.append(axes if len(axes) > 1 else single)
  return P(*found)


def _dividing(axes: Sequence[str], size: int, mesh: Mesh) -> tuple[str, ...]:
  """Selects the axes, from the first, whose product divides the size; of several, none of size 1 beside another."""
  chosen: list[str] = []
  for axis in axes:
    if size % math.prod(mesh.shape[a] for a in (*chosen, axis)) == 0:
      chosen.append(axis)
  return tuple(a for a in chosen if mesh.shape[a] > 1) or tuple(chosen[:1])
