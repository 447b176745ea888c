"""The train state: new from a model directory, abstract for planning and restoring, or out of a checkpoint."""

import pathlib

import jax
import jax.numpy as jnp
from etils import epath

from opd_jax import checkpoint, optim
from opd_jax import mesh as meshes
from opd_jax.config import Config
from opd_jax.models import decoder, hf
from opd_jax.types import Params, TrainState


def init(c: Config, params: Params) -> TrainState:
  """A new optimiser around these parameters."""
  zero = jnp.zeros((), jnp.int32)
  return TrainState(params=params, opt_state=optim.make(c.optimizer).init(params), step=zero, skipped=zero, empty=zero)


def abstract(c: Config, cfg: decoder.DecoderConfig, mesh: jax.sharding.Mesh) -> TrainState:
  """Shapes and shardings; nothing is allocated."""
  shapes = jax.eval_shape(lambda: init(c, decoder.init(cfg, jax.random.key(0))))
  placed = lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
  return jax.tree.map(placed, shapes, meshes.shardings(mesh, shapes))


def read(c: Config, path: pathlib.Path, cfg: decoder.DecoderConfig, mesh: jax.sharding.Mesh) -> TrainState:
  """The model on disk, fp32, with a new optimiser, laid out on the mesh."""
  params = hf.read(path, cfg, meshes.parameter_shardings(mesh, cfg))
  layout = jax.tree.map(lambda a: a.sharding, abstract(c, cfg, mesh))
  return jax.jit(lambda p: init(c, p), out_shardings=layout, donate_argnums=0)(params)


def saved_params(
  c: Config, cfg: decoder.DecoderConfig, mesh: jax.sharding.Mesh, root: epath.Path, step: int | None
) -> tuple[Params, int]:
  """The parameters of a checkpoint (the last where `step` is None), and its step."""
  checkpoints = checkpoint.Checkpoints(root)
  state, position = checkpoints.restore(abstract(c, cfg, mesh), step)
  checkpoints.close()
  return state.params, position["step"]


def size(tree) -> int:
  """Bytes of all leaves together."""
  return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))
