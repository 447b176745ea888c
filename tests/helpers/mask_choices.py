"""Finds masks of every kind on one device and on eight, and prints them as hexadecimal digits: a JSON list of both.

A process of its own, since a process cannot change its devices:

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.helpers.mask_choices
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax import config
from opd_jax.runtime import mesh as meshes
from opd_jax.training import optim, state
from opd_jax.training.subnetwork import Subnetwork

KEY, L = jax.random.key(3), 2
SHAPES = {
  "embed": (33, 16),
  "layers": {"q": (L, 16, 4, 8), "gate": (L, 16, 64), "q_norm": (L, 8), "q_bias": (L, 4, 8)},
  "norm": (16,),
}


def drawn(seed: int, scale: float):
  """Arrays of the shapes, the layers of different scales."""
  shapes, tree = jax.tree.flatten(SHAPES, is_leaf=lambda x: isinstance(x, tuple))
  keys = jax.random.split(jax.random.key(seed), len(shapes))
  arrays = [scale * jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
  out = tree.unflatten(arrays)
  by_layer = jnp.array([1.0, 3.0])
  out["layers"] = {n: a * by_layer.reshape(L, *[1] * (a.ndim - 1)) for n, a in out["layers"].items()}
  return out


PARAMS = drawn(0, 0.02)
PARAMS["norm"] = PARAMS["norm"].at[0].set(-0.0)


def moved():
  """The parameters after a run that moved all of them a little."""
  return jax.tree.map(jnp.add, PARAMS, drawn(1, 3e-5))


def on(mesh) -> dict:
  """The masks of every kind there, what two updates make of the last, and whether a packed array is split."""
  layout = meshes.shardings(mesh, PARAMS)
  before, after = jax.device_put((PARAMS, moved()), (layout, layout))
  out, mask = {}, None
  for kind in ("visible", "top", "lowest", "stratified", "layer", "tensor", "global"):
    mask = Subnetwork(kind).find(mesh, before, after, KEY)
    out[kind] = [np.asarray(a).tobytes().hex() for a in jax.tree.leaves(mask)]
  left_out = Subnetwork("layer", embeddings="trained", norms="frozen").find(mesh, before, after, KEY)
  out["left out"] = [np.asarray(a).tobytes().hex() for a in jax.tree.leaves(left_out)]
  assert mask is not None
  c = config.override(config.default(), {"subnetwork.mask": "global", "subnetwork.density": 0.5, "optimizer.clip": 0.0})
  now, optimizer = (
    dataclasses.replace(state.new(c, mesh, jax.tree.map(jnp.copy, before)), mask=mask),
    optim.make(c.optimizer),
  )
  update = jax.jit(lambda s: optim.apply(optimizer, s, s.params, jnp.float32(1))[0], donate_argnums=0)
  now = update(update(now))
  out["trained"] = [np.asarray(a).tobytes().hex() for a in jax.tree.leaves(now.params)]
  for packed, a in zip(*map(jax.tree.leaves, (now.mask, now.params)), strict=True):
    assert len(packed.sharding.device_set) == len(a.sharding.device_set)
  return {"found": out, "split": not now.mask["layers"]["gate"].sharding.is_fully_replicated}


def main() -> None:
  alone, several = on(meshes.make(devices=jax.devices()[:1])), on(meshes.make(fsdp=2, tensor=4, data=1))
  print(json.dumps([alone["found"], several]))


if __name__ == "__main__":
  main()
