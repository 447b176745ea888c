"""The train state: new from a model directory, abstract for planning and restoring, or out of a checkpoint."""

import pathlib

import jax
import jax.numpy as jnp
from etils import epath

from opd_jax import checkpoint, optim
from opd_jax import mesh as meshes
from opd_jax.config import Config
from opd_jax.models import decoder, hf, lora
from opd_jax.types import Params, TrainState


def init(c: Config, params: Params) -> TrainState:
  """A new optimiser around these parameters."""
  zero = jnp.zeros((), jnp.int32)
  return TrainState(params=params, opt_state=optim.make(c.optimizer).init(params), step=zero, skipped=zero, empty=zero)


def abstract(c: Config, cfg: decoder.DecoderConfig, mesh: jax.sharding.Mesh) -> TrainState:
  """Shapes and shardings; nothing is allocated."""
  shapes = jax.eval_shape(lambda: init(c, random(c, cfg)))
  placed = lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
  return jax.tree.map(placed, shapes, meshes.shardings(mesh, shapes))


def read(c: Config, path: pathlib.Path, cfg: decoder.DecoderConfig, mesh: jax.sharding.Mesh) -> TrainState:
  """The model on disk, fp32, or an adapter to it, with a new optimiser, laid out on the mesh."""
  layout = jax.tree.map(lambda a: a.sharding, abstract(c, cfg, mesh))
  return jax.jit(lambda p: init(c, p), out_shardings=layout, donate_argnums=0)(untrained(c, path, cfg, mesh))


def untrained(c: Config, path: pathlib.Path, cfg: decoder.DecoderConfig, mesh: jax.sharding.Mesh) -> Params:
  """What is trained, before it is."""
  adapter = lora.from_config(c.lora)
  if not adapter:
    return hf.read(path, cfg, meshes.parameter_shardings(mesh, cfg))
  layout = meshes.shardings(mesh, jax.eval_shape(lambda: random(c, cfg)))
  if not c.lora.path:
    return jax.jit(lambda: random(c, cfg), out_shardings=layout)()
  host = lora.read(pathlib.Path(c.lora.path), cfg, adapter)
  return jax.tree.map(lambda a, s: jax.make_array_from_callback(a.shape, s, lambda i: a[i]), host, layout)


def random(c: Config, cfg: decoder.DecoderConfig) -> Params:
  """What is trained, with random numbers."""
  adapter, key = lora.from_config(c.lora), jax.random.key(c.seed)
  return lora.init(cfg, adapter, jax.random.fold_in(key, 2**24)) if adapter else decoder.init(cfg, key)


def saved_params(
  c: Config, path: pathlib.Path, cfg: decoder.DecoderConfig, mesh: jax.sharding.Mesh, root: epath.Path, step: int | None
) -> tuple[Params, int]:
  """The student's parameters in a checkpoint (the last where `step` is None), and its step.

  Args:
    path: of the student's directory, where an adapter finds its base.
  """
  params, step = trained_params(c, cfg, mesh, root, step)
  if c.lora.rank or c.lora.path:
    params = lora.join(hf.read(path, cfg, meshes.parameter_shardings(mesh, cfg)), params)
  return params, step


def trained_params(
  c: Config, cfg: decoder.DecoderConfig, mesh: jax.sharding.Mesh, root: epath.Path, step: int | None
) -> tuple[Params, int]:
  """What was trained of them: all, or an adapter."""
  checkpoints = checkpoint.Checkpoints(root)
  state, position = checkpoints.restore(abstract(c, cfg, mesh), step)
  checkpoints.close()
  return state.params, position["step"]


def size(tree) -> int:
  """Bytes of all leaves together."""
  return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))
