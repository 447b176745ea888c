"""Run by test_sharded.py in a process with eight devices: prints what it found as JSON."""

import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from opd_jax import mesh as meshes
from opd_jax.objectives import fused
from opd_jax.objectives.divergence import Coefficients, Objective, Readout
from tests.objectives.cases import OBJECTIVES, V, arrays, coefficients, name

B, H = 8, 5


def graded(objective, mesh):
  def run(seen, c, more):
    student, teachers, token, mask = seen
    total = lambda s: fused.weighted(objective, s, teachers, token, mask, c, **more, mesh=mesh)
    return jax.value_and_grad(total, has_aux=True)(student)

  return jax.jit(run)


def place(mesh, tree):
  """Rows over data and fsdp, heads over tensor (where it divides them) and fsdp."""

  def of(r):
    if not isinstance(r, Readout):
      return jax.device_put(r, NamedSharding(mesh, P(("data", "fsdp"))))
    fits = lambda axis, n: axis if n % mesh.shape[axis] == 0 else None
    head = P(fits("tensor", r.head.shape[0]), fits("fsdp", r.head.shape[1]))
    return Readout(
      jax.device_put(r.hidden, NamedSharding(mesh, P(("data", "fsdp")))),
      jax.device_put(r.head, NamedSharding(mesh, head)),
    )

  return jax.tree.map(of, tree, is_leaf=lambda x: isinstance(x, Readout))


def largest_collective_in_a_loop(hlo: str) -> int:
  """Elements of the largest collective's result outside the entry computation."""
  most, entry = 0, False
  for line in hlo.splitlines():
    if line.startswith(("ENTRY", "%")):
      entry = line.startswith("ENTRY")
    found = re.search(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\(", line)
    if found and not entry:
      for shape in re.findall(r"\[([\d,]*)\]", found[1]):
        most = max(most, math.prod(int(n) for n in shape.split(",") if n))
  return most


def main() -> None:
  out = {"errors": {}, "collectives": {}}
  layouts = {"tensor 8": (1, 1, 8), "2 x 2 x 2": (2, 2, 2), "data 8": (8, 1, 1)}
  for objective in (*OBJECTIVES, Objective(V, support="sampled"), Objective(V, vocab_chunk=2)):
    o = dataclasses.replace(objective, chunk=3, overlap_k=0 if objective.vocab_chunk else 2)
    seen = arrays(B, H, ids=V + 2, teachers=2, vocab=V)
    c = coefficients(B, H, divergence=o.support != "sampled", initial=True)
    more = {"teacher_weight": jnp.tile(jnp.array([[0.4, 0.6]]), (B, 1)), "initial": arrays(B, H, ids=V + 2, seed=3)[0]}
    want = graded(o, None)(seen, c, more)
    for layout, sizes in layouts.items():
      if layout != "2 x 2 x 2" and objective not in (OBJECTIVES[0], Objective(V, support="both_topk", k=3)):
        continue
      mesh = meshes.make(*sizes)
      got = graded(o, mesh)(*place(mesh, (seen, c, more)))
      errors = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), got, want)
      out["errors"][f"{name(objective)}, {layout}"] = max(jax.tree.leaves(errors))
  mesh = meshes.make(2, 2, 2)
  seen, c = arrays(B, 64, 16, 16, 1024), Coefficients(jnp.ones((B, 64)) / 512)
  for objective in (Objective(1024, chunk=8), Objective(1024, support="both_topk", k=4, chunk=8)):
    hlo = graded(objective, mesh).lower(*place(mesh, (seen, c, {}))).compile().as_text() or ""
    out["collectives"][name(objective)] = largest_collective_in_a_loop(hlo)
  print(json.dumps(out))


if __name__ == "__main__":
  main()
