"""Models that never change: teachers, the student before training (the reference), and the base of an adapter.

A frozen model is its parameters on the mesh and the configuration that reads them. It is kept in the compute type,
since nothing is ever added to it, or with its matrices in int8.
"""

import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float

from opd_jax.errors import InputError
from opd_jax.models import decoder, hf, model_sharding, quantise
from opd_jax.runtime import mesh as meshes
from opd_jax.types import FrozenModels, Params


def external(
  directory: pathlib.Path,
  cfg: decoder.DecoderConfig,
  mesh: jax.sharding.Mesh,
  dtype: DTypeLike,
  precision: str = "compute",
  layout: str = "teacher:fsdp",
) -> Params:
  """Reads a frozen model's weights straight into their shards.

  Args:
    dtype: the compute type.
    precision: "compute", or "int8": the layers' matrices as models/quantise.py keeps them.
    layout: what it is split over, a key of mesh.RULES.
  """
  params = hf.load(directory, cfg, model_sharding.parameter_shardings(mesh, cfg, layout), dtype=dtype)
  return in_precision(precision, params, mesh, layout)


def in_precision(precision: str, params: Params, mesh: jax.sharding.Mesh, layout: str) -> Params:
  """Brings parameters of the compute type to a precision: "compute" or "int8"."""
  match precision:
    case "compute":
      return params
    case "int8":
      return quantised(params, mesh, layout)
  raise ValueError(f"precision {precision!r} is neither compute nor int8")


def quantised(params: Params, mesh: jax.sharding.Mesh, layout: str = "teacher:fsdp") -> Params:
  """Quantises the layers' matrices to int8, each in its shards; the dense matrices in `params` are given up one by one.

  So the devices never hold more than the dense model, and one matrix of all layers in both types.
  """
  layers = params["layers"]
  for name in [name for name in quantise.CONTRACTED if name in layers]:
    layer = {"layers": {name: layers.pop(name)}}
    shardings = meshes.shardings(mesh, jax.eval_shape(quantise.quantise, layer), layout)
    layers |= jax.block_until_ready(jax.jit(quantise.quantise, out_shardings=shardings)(layer))["layers"]
  return params


def offload_to_host(params: Params) -> Params:
  """Moves parameters into the hosts' memory, where every device reaches its own shards over a bus."""
  return _with_memory_kind(params, "pinned_host")


def load_to_device(frozen_models: FrozenModels) -> FrozenModels:
  """Copies models that are offloaded to host memory back to the devices."""
  return _with_memory_kind(frozen_models, "device")


def _with_memory_kind(tree, kind: str):
  return jax.device_put(tree, jax.tree.map(lambda a: a.sharding.with_memory_kind(kind), tree))


def teacher_weights(
  directories: Sequence[str], mixture: Sequence[float], chosen: Sequence[tuple[str, str]], prompts: int
) -> Float[np.ndarray, "prompts K"] | None:
  """Computes how much each prompt weighs each of K teachers; None where there is one.

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
    shares = np.asarray(mixture or [1.0] * K, np.float32)
    return np.tile(shares / shares.sum(), (prompts, 1)) if K > 1 else None
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
