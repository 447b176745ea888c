"""The device mesh, and where every array lies on it.

One table says which mesh axis each dimension of a parameter is split over, for the two layouts:

    train     fp32 master weights and optimiser state, layers stacked, split over fsdp and tensor
    rollout   compute-type weights, one pytree per layer, split over tensor only

Rows of a batch are split over data and fsdp together. A dimension that its axis does not divide stays whole.
"""

import math

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from opd_jax.errors import InputError
from opd_jax.models import decoder

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")

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
  # as rollout/cache.py joins them
  "qkv": ("width", "heads", None, None),
  "qkv_bias": ("heads", None, None),
  "out": ("heads", None, None, "width"),
  "gate_up": ("width", None, "ff"),
}
PARTS = ("qvalue", "scale")  # of an int8 matrix, that lie as it does; axes that share a scale have size 1, so whole
RULES = {
  "train": {"vocab": "tensor", "heads": "tensor", "ff": "tensor", "width": "fsdp"},
  "rollout": {"vocab": "tensor", "heads": "tensor", "ff": "tensor", "width": None},
}


def make(data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
  """A mesh of the given axis sizes, at most one of them -1 (what the others leave).

  Raises:
    InputError: where the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = [data, fsdp, tensor]
  if any(s == 0 or s < -1 for s in sizes) or sizes.count(-1) > 1:
    raise InputError(
      f"config.mesh is data={data}, fsdp={fsdp}, tensor={tensor}; sizes are positive, and one of them may be -1."
    )
  known = math.prod(s for s in sizes if s != -1)
  if -1 in sizes and len(devices) % known == 0:
    sizes[sizes.index(-1)] = len(devices) // known
  if math.prod(sizes) != len(devices):
    raise InputError(
      f"config.mesh is data={data}, fsdp={fsdp}, tensor={tensor}, which does not make {len(devices)} device(s); "
      "the three sizes have to multiply to the number of devices, and one of them may be -1."
    )
  return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def for_reading(c) -> Mesh:
  """The mesh of `config.mesh`, or all devices as rows where the run had another number of them."""
  try:
    return make(c.data, c.fsdp, c.tensor)
  except InputError:
    return make()


def row_shards(mesh: Mesh) -> int:
  """Over how many devices the rows of a batch are split."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


def check_rows(mesh: Mesh, rows: int, key: str) -> None:
  """Refuses a number of rows that the data and fsdp axes do not divide, naming sizes that would work."""
  shards = row_shards(mesh)
  if rows % shards:
    near = sorted({max(shards, rows // shards * shards), (rows // shards + 1) * shards})
    raise InputError(
      f"{key} is {rows}, which the {shards} row shards of the mesh (data x fsdp) do not divide; "
      f"{' or '.join(map(str, near))} would."
    )


def shardings(mesh: Mesh, tree, layout: str = "train"):
  """A sharding for every leaf of parameters, optimiser state or a train state, found by the leaf's name."""
  return jax.tree_util.tree_map_with_path(lambda path, leaf: NamedSharding(mesh, _spec(mesh, path, leaf, layout)), tree)


def parameter_shardings(mesh: Mesh, cfg: decoder.DecoderConfig):
  """Train-layout shardings of a model that has not been read yet."""
  is_shape = lambda x: isinstance(x, tuple)
  arrays = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, "float32"), decoder.shapes(cfg), is_leaf=is_shape)
  return shardings(mesh, arrays)


def constrain(mesh: Mesh, tree, layout: str):
  """Inside jit: moves parameters to a layout."""
  return jax.lax.with_sharding_constraint(tree, shardings(mesh, tree, layout))


def rows(mesh: Mesh) -> NamedSharding:
  """Rows of a batch; further dimensions whole."""
  return NamedSharding(mesh, P(ROWS))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def _spec(mesh: Mesh, path, leaf, layout: str) -> P:
  names = [key.key if hasattr(key, "key") else getattr(key, "name", None) for key in path]
  own = (n for n in reversed(names) if isinstance(n, str) and n not in PARTS)
  dimensions = DIMENSIONS.get(next(own, ""), ())
  lead = leaf.ndim - len(dimensions)  # the stacked layers
  if lead not in (0, 1):
    return P()
  axes = (None,) * lead + tuple(RULES[layout].get(d) if d else None for d in dimensions)
  fits = lambda axis, size: axis if axis and size % mesh.shape[axis] == 0 else None
  return P(*(fits(axis, size) for axis, size in zip(axes, leaf.shape, strict=True)))
