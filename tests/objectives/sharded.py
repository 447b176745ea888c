"""The script that test_sharded.py runs in a process with eight devices; it prints errors and collectives as JSON."""

import dataclasses
import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from opd_jax.objectives import fused
from opd_jax.objectives.divergence import Coefficients, HiddenAndHead, Objective
from opd_jax.runtime import mesh as meshes
from tests.objectives.cases import OBJECTIVES, V, name, random_coefficients, random_inputs

B, H = 8, 5


def graded(objective, mesh):
  """Compile ((sum, statistics), gradient by the student)."""
  return jax.jit(jax.value_and_grad(functools.partial(fused.weighted_sum, objective, mesh=mesh), has_aux=True))


def shard(mesh, tree):
  """Put rows over data and fsdp, heads over tensor (where it divides them) and fsdp."""
  rows = NamedSharding(mesh, P(("data", "fsdp")))

  def put(leaf):
    if not isinstance(leaf, HiddenAndHead):
      return jax.device_put(leaf, rows)

    def fits(axis, n):
      return axis if n % mesh.shape[axis] == 0 else None

    head = P(fits("tensor", leaf.head.shape[0]), fits("fsdp", leaf.head.shape[1]))
    return HiddenAndHead(jax.device_put(leaf.hidden, rows), jax.device_put(leaf.head, NamedSharding(mesh, head)))

  return jax.tree.map(put, tree, is_leaf=lambda x: isinstance(x, HiddenAndHead))


def largest_collective_in_a_loop(hlo: str) -> int:
  """Count the elements of the largest collective's result outside the entry computation."""
  most, entry = 0, False
  for line in hlo.splitlines():
    if line.startswith(("ENTRY", "%")):
      entry = line.startswith("ENTRY")
    match = re.search(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\(", line)
    if match and not entry:
      for shape in re.findall(r"\[([\d,]*)\]", match[1]):
        most = max(most, math.prod(int(n) for n in shape.split(",") if n))
  return most


def main() -> None:
  result = {"errors": {}, "collectives": {}}
  layouts = {"tensor 8": (1, 1, 8), "2 x 2 x 2": (2, 2, 2), "data 8": (8, 1, 1)}
  for objective in (*OBJECTIVES, Objective(V, support="sampled"), Objective(V, vocab_chunk=2)):
    o = dataclasses.replace(objective, chunk=3, overlap_k=0 if objective.vocab_chunk else 2)
    student, inputs = random_inputs(B, H, ids=V + 2, teachers=2, vocab=V)
    reference, _ = random_inputs(B, H, ids=V + 2, seed=3)
    inputs = inputs._replace(teacher_weight=jnp.tile(jnp.array([[0.4, 0.6]]), (B, 1)), reference=reference)
    coefficients = random_coefficients(B, H, divergence=o.support != "sampled", reference_kl=True)
    arguments = (student, inputs, coefficients)
    want = graded(o, None)(*arguments)
    for layout, sizes in layouts.items():
      if layout != "2 x 2 x 2" and objective not in (OBJECTIVES[0], Objective(V, support="both_topk", k=3)):
        continue
      mesh = meshes.make(*sizes)
      got = graded(o, mesh)(*shard(mesh, arguments))
      errors = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), got, want)
      result["errors"][f"{name(objective)}, {layout}"] = max(jax.tree.leaves(errors))
  mesh = meshes.make(2, 2, 2)
  arguments = shard(mesh, (*random_inputs(B, 64, 16, 16, 1024), Coefficients(jnp.ones((B, 64)) / 512)))
  for objective in (Objective(1024, chunk=8), Objective(1024, support="both_topk", k=4, chunk=8)):
    hlo = graded(objective, mesh).lower(*arguments).compile().as_text() or ""
    result["collectives"][name(objective)] = largest_collective_in_a_loop(hlo)
  print(json.dumps(result))


if __name__ == "__main__":
  main()
