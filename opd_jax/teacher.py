"""Who teaches: external models that never change, and the student as it was before training.

A frozen model is its parameters on the mesh and the configuration that reads them. It is kept in the compute type,
since nothing is ever added to it, or with its matrices in int8.
"""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from opd_jax import mesh as meshes
from opd_jax.config import INITIAL, Config
from opd_jax.errors import InputError
from opd_jax.models import decoder, hf, lora, quantise
from opd_jax.types import Judges, Params

if TYPE_CHECKING:
  from opd_jax.inputs import Inputs, Model


def judges(c: Config, i: "Inputs") -> Judges:
  """The frozen models of a run, read from their directories; one that has several parts is read once."""
  layout = f"teacher:{c.mesh.teacher}"

  def read(model: "Model", precision: str = "compute") -> Params:
    params = external(model.path, model.cfg, i.mesh, i.dtype, precision, layout)
    return rest(params) if c.teacher_offload else params

  base = read(i.student) if lora.from_config(c.lora) else None
  names = tuple(c.teachers) or (c.teacher,)
  teachers = tuple(
    None if base is not None and name == INITIAL else read(model, c.teacher_precision)
    for name, model in zip(names, i.teachers, strict=True)
  )
  initial = (read(i.student) if base is None else base) if c.mixture.initial else None
  return Judges(teachers, initial, base)


def external(
  directory: pathlib.Path,
  cfg: decoder.DecoderConfig,
  mesh: jax.sharding.Mesh,
  dtype: jnp.dtype,
  precision: str = "compute",
  layout: str = "teacher:fsdp",
) -> Params:
  """Reads a frozen model's weights straight into their shards.

  Args:
    dtype: the compute type.
    precision: "compute", or "int8": the layers' matrices as models/quantise.py keeps them.
    layout: what it is split over, a key of mesh.RULES.
  """
  params = hf.read(directory, cfg, meshes.parameter_shardings(mesh, cfg, layout), dtype=dtype)
  return quantised(params, mesh, layout) if precision == "int8" else params


def quantised(params: Params, mesh: jax.sharding.Mesh, layout: str = "teacher:fsdp") -> Params:
  """The parameters with int8 matrices, each in its shards; the dense matrices in `params` are given up one by one.

  So the devices never hold more than the dense model, and one matrix of all layers in both types.
  """
  layers = params["layers"]
  for name in [name for name in quantise.CONTRACTED if name in layers]:
    one = {"layers": {name: layers.pop(name)}}
    kept = meshes.shardings(mesh, jax.eval_shape(quantise.quantise, one), layout)
    layers |= jax.block_until_ready(jax.jit(quantise.quantise, out_shardings=kept)(one))["layers"]
  return params


def rest(params: Params) -> Params:
  """Moved into the hosts' memory, where every device reaches its own shards over a bus."""
  return _moved(params, "pinned_host")


def rise(judges: Judges) -> Judges:
  """A copy on the devices, of models that rest in host memory."""
  return _moved(judges, "device")


def on_devices(judges: Judges) -> Judges:
  """Their shapes and places once they have risen."""
  place = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding.with_memory_kind("device"))
  return jax.tree.map(place, judges)


def _moved(tree, kind: str):
  return jax.device_put(tree, jax.tree.map(lambda a: a.sharding.with_memory_kind(kind), tree))


def weights(
  directories: Sequence[str], mixture: Sequence[float], chosen: Sequence[tuple[str, str]], prompts: int
) -> Float[np.ndarray, "prompts K"] | None:
  """How much each prompt listens to each of K teachers; None where there is one.

  Args:
    mixture: the weight of each teacher, where none is chosen; empty: equal.
    chosen: each prompt's teacher, as an index or as the last name of its directory, and where the prompt stands, for
      the error; empty: all prompts mix.

  Raises:
    InputError: weights that do not fit, or a prompt whose teacher is none of them.
  """
  K = len(directories)
  if mixture and (len(mixture) != K or not min(mixture) >= 0 or not 0 < sum(mixture) < np.inf):
    raise InputError(
      f"config.teacher_weights is {tuple(mixture)}; it needs one weight of 0 or more for each of the {K} teacher(s), "
      "and not all of them 0."
    )
  if not chosen:
    each = np.asarray(mixture or [1.0] * K, np.float32)
    return np.tile(each / each.sum(), (prompts, 1)) if K > 1 else None
  names = [pathlib.PurePath(d).name.removeprefix("builtin:") for d in directories]
  rows = np.zeros((prompts, K), np.float32)
  for i, (name, where) in enumerate(chosen):
    known = name in names or (name.isdecimal() and int(name) < K)
    if not known or names.count(name) > 1:
      raise InputError(
        f"{where} asks for the teacher {name!r} in config.data.teacher_field; the teachers are "
        f"{', '.join(f'{k} ({n})' for k, n in enumerate(names))}: use an index, or a name that only one has."
      )
    rows[i, names.index(name) if name in names else int(name)] = 1
  return rows if K > 1 else None
