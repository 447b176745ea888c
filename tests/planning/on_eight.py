"""Run by test_collectives.py in a process with eight devices: compiles, and prints what was read as JSON."""

import dataclasses
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from opd_jax import mesh as meshes
from opd_jax.models import decoder
from opd_jax.planning import compiled
from opd_jax.rollout import cache, sample
from opd_jax.rollout.sample import Sampling
from opd_jax.rollout.segments import Segments
from opd_jax.types import Batch
from tests.conftest import STUDENT

CFG = dataclasses.replace(STUDENT, vocab=64)


def main():
  mesh = meshes.make(data=2, fsdp=4)
  print(json.dumps({"scan": scan(mesh), "matrices": matrices(), **rollouts(mesh)}))


def scan(mesh) -> dict[str, Any]:
  """Seven layers, whose weights are split over fsdp, on rows that are split over everything; summed up."""
  weights = jax.ShapeDtypeStruct((7, 64, 64), jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp")))
  x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=meshes.rows(mesh))

  def layer(x, w):
    w = jax.lax.with_sharding_constraint(w, meshes.replicated(mesh))
    return jnp.tanh(x @ w), None

  def total(weights, x):
    return jnp.sum(jax.lax.scan(layer, x, weights)[0])

  return said(compiled.compile_("scan", jax.jit(total, out_shardings=meshes.replicated(mesh)).lower(weights, x), mesh))


def rollouts(mesh) -> dict[str, Any]:
  """As the recipe lays the weights out, and as it must not."""
  shapes = jax.eval_shape(lambda: decoder.init(CFG, jax.random.key(0)))
  placed = lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)
  params = jax.tree.map(placed, shapes, meshes.parameter_shardings(mesh, CFG))
  rows, everywhere = meshes.rows(mesh), meshes.replicated(mesh)
  prompts: Any = [jax.ShapeDtypeStruct((8, 6), kind, sharding=rows) for kind in (jnp.int32, jnp.bool_)]
  key, limit = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
  segments = Segments(length=8, most=2, shards=8)
  how: Any = {"cfg": CFG, "sampling": Sampling((1,), 0, 64), "horizon": 16, "segments": segments}

  def lay_out(spec):
    def run(params, cfg, dtype):
      w = cache.lay_out(params, cfg, dtype)
      if spec is None:
        return meshes.constrain(mesh, w, "rollout")
      split = lambda a: NamedSharding(mesh, P("fsdp") if a.ndim > 1 and a.shape[0] % 4 == 0 else P())
      return jax.lax.with_sharding_constraint(w, jax.tree.map(split, w))

    return run

  def one(spec):
    run = lambda p, b, k, l: sample.rollout(p, b, k, l, lay_out=lay_out(spec), **how)
    lowered = jax.jit(run, out_shardings=rows).lower(params, Batch(*prompts), placed(key, everywhere), limit)
    return said(compiled.compile_("rollout", lowered, mesh))

  return {"rollout": one(None), "wrong": one("fsdp")}


def matrices() -> int:
  """Numbers in everything that is split over fsdp."""
  is_shape = lambda x: isinstance(x, tuple)
  flat = jax.tree_util.tree_leaves_with_path(decoder.shapes(CFG), is_leaf=is_shape)
  return sum(math.prod(shape) for path, shape in flat if "norm" not in path[-1].key)


def said(program) -> dict[str, Any]:
  return {
    "collectives": [dataclasses.asdict(c) | {"sent": c.sent} for c in program.collectives],
    "memory": dataclasses.asdict(program.memory),
    "buffers": [dataclasses.asdict(b) | {"total": b.total} for b in program.buffers],
    "token_loops": program.token_loops,
  }


if __name__ == "__main__":
  main()
