"""The train state: parameters, new from a model directory, and the optimiser around them."""

import pathlib

import jax
import jax.numpy as jnp

from opd_jax.config import Config, expanded_path
from opd_jax.models import decoder, hf, lora, model_sharding
from opd_jax.runtime import keys
from opd_jax.runtime import mesh as meshes
from opd_jax.training import masks, optim
from opd_jax.training.teacher_update import TeacherUpdate
from opd_jax.types import AveragedTrainState, MaskedAveragedTrainState, MaskedTrainState, Params, TrainState


def init(config: Config, params: Params) -> TrainState:
  """Puts a new optimiser around parameters; a mask, where the config has one, is full until Recipe.begin has found it."""
  zero = jnp.zeros((), jnp.int32)
  opt_state, teacher = optim.make(config.optimizer).init(params), TeacherUpdate.from_config(config).begin(params)
  fields = {"params": params, "opt_state": opt_state, "step": zero, "skipped": zero, "empty": zero}
  if config.subnetwork.mask == "none":
    return TrainState(**fields) if teacher is None else AveragedTrainState(**fields, teacher=teacher)
  fields["mask"] = masks.full(params)
  return MaskedTrainState(**fields) if teacher is None else MaskedAveragedTrainState(**fields, teacher=teacher)


def new(config: Config, mesh: jax.sharding.Mesh, params: Params) -> TrainState:
  """Makes a train state in its layout on the mesh, around parameters that are given up."""
  layout = meshes.shardings(mesh, jax.eval_shape(lambda p: init(config, p), params))
  return jax.jit(lambda p: init(config, p), out_shardings=layout, donate_argnums=0)(params)


def untrained_params(config: Config, path: pathlib.Path, cfg: decoder.DecoderConfig, mesh: jax.sharding.Mesh) -> Params:
  """Loads what is trained, before it is: the model on disk in fp32, an adapter on disk, or a new one."""
  adapter = lora.from_config(config.lora)
  if not adapter:
    return hf.load(path, cfg, model_sharding.parameter_shardings(mesh, cfg))
  layout = meshes.shardings(mesh, jax.eval_shape(lambda: random_params(config, cfg)))
  if not config.lora.path:
    return jax.jit(lambda: random_params(config, cfg), out_shardings=layout)()
  host = lora.load(expanded_path(config.lora.path), cfg, adapter)
  return jax.tree.map(lambda a, s: jax.make_array_from_callback(a.shape, s, lambda i: a[i]), host, layout)


def random_params(config: Config, cfg: decoder.DecoderConfig) -> Params:
  """Makes what is trained from random numbers: the model, or an adapter to it."""
  adapter = lora.from_config(config.lora)
  if adapter:
    return lora.init(cfg, adapter, keys.of_seed(config.seed, keys.Use.ADAPTER))
  return decoder.init(cfg, jax.random.key(config.seed))
