"""Compiles on eight devices for test_collectives.py, in a process of its own, and prints each analysis as JSON."""

import dataclasses
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from opd_jax.models import decoder, model_sharding
from opd_jax.planning import compiled
from opd_jax.planning.compiled import Program
from opd_jax.rollout import cache, sample
from opd_jax.rollout.sample import Sampling
from opd_jax.rollout.segments import Segments
from opd_jax.runtime import mesh as meshes
from opd_jax.types import Batch
from tests.conftest import STUDENT

CFG = dataclasses.replace(STUDENT, vocab=64, layers=1)


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

  return analysis(
    compiled.compile_program("scan", jax.jit(total, out_shardings=meshes.replicated(mesh)).lower(weights, x), mesh)
  )


def rollouts(mesh) -> dict[str, Any]:
  """A rollout with its weights as the recipe lays them out, and one as it must not."""

  def placed(a, sharding):
    return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)

  shapes = jax.eval_shape(lambda: decoder.init(CFG, jax.random.key(0)))
  params = jax.tree.map(placed, shapes, model_sharding.parameter_shardings(mesh, CFG))
  rows, everywhere = meshes.rows(mesh), meshes.replicated(mesh)
  prompts: Any = [jax.ShapeDtypeStruct((8, 6), kind, sharding=rows) for kind in (jnp.int32, jnp.bool_)]
  key, limit = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
  segments = Segments(length=8, max_segments=2, shards=8)
  static: Any = {"cfg": CFG, "sampling": Sampling((1,), 0, 64), "response_len": 16, "segments": segments}

  def prepare_decode_params(spec):
    def run(params, cfg, dtype):
      w = cache.prepare_decode_params(params, cfg, dtype)
      if spec is None:
        return meshes.constrain(mesh, w, "rollout")

      def split(a):
        return NamedSharding(mesh, P("fsdp") if a.ndim > 1 and a.shape[0] % 4 == 0 else P())

      return jax.lax.with_sharding_constraint(w, jax.tree.map(split, w))

    return run

  def rollout(spec):
    def run(params, batch, key, limit):
      prepare = prepare_decode_params(spec)
      return sample.rollout(params, batch, key, limit, prepare_decode_params=prepare, **static)

    lowered = jax.jit(run, out_shardings=rows).lower(params, Batch(*prompts), placed(key, everywhere), limit)
    return analysis(compiled.compile_program("rollout", lowered, mesh))

  return {"rollout": rollout(None), "wrong": rollout("fsdp")}


def matrices() -> int:
  """The number of parameters that are split over fsdp."""
  flat = jax.tree_util.tree_leaves_with_path(decoder.shapes(CFG), is_leaf=lambda x: isinstance(x, tuple))
  return sum(math.prod(shape) for path, shape in flat if "norm" not in path[-1].key)


def analysis(program: Program) -> dict[str, Any]:
  """The analysed parts of a program as plain data."""
  assert program.collectives is not None
  assert program.memory is not None
  return {
    "collectives": [dataclasses.asdict(c) | {"sent_bytes": c.sent_bytes} for c in program.collectives],
    "memory": dataclasses.asdict(program.memory),
    "buffers": [dataclasses.asdict(b) | {"total": b.total} for b in program.buffers],
    "token_loops": program.token_loops,
  }


if __name__ == "__main__":
  main()
