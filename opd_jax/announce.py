"""What a run says of itself before its first step: models, horizon, programs, warnings."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax

from opd_jax import horizon, hosts
from opd_jax.config import Config
from opd_jax.inputs import Inputs
from opd_jax.programs import Shape
from opd_jax.types import Judges, Params


def lines(
  c: Config,
  i: Inputs,
  student: Params,
  judges: Judges,
  stages: Sequence[dict[str, Any]],
  shapes: Sequence[Shape],
  workdir: str,
) -> Iterator[str]:
  """One after another; `student` and `judges` are counted, and `shapes` are what programs will be compiled for."""
  low = [a for name, a in student["layers"].items() if name[-2:] in ("_a", "_b")]
  adapter = f", of which {_millions({'layers': low})} are trained" if low else ""
  names = zip(tuple(c.teachers) or (c.teacher,), judges.teaching, strict=True)
  teachers = " and ".join(f"teacher {name} ({_millions(params)})" for name, params in names)
  yield (
    f"{c.horizon.kind} horizon, {c.objective.kind} ({c.objective.support}), student {c.student} "
    f"({_millions(student)}{adapter}), {teachers}, {c.steps} steps of "
    f"{c.batch} x {c.rollouts_per_prompt} rollouts, {len(i.train.ids):,} prompts of at most {i.prompt_widths[-1]} tokens, "
    f"{_mesh(i.mesh)}, {i.dtype}, workdir {workdir}"
  )
  if isinstance(i.schedule, horizon.Adaptive):
    yield f"  widths {', '.join(map(str, i.schedule.widths))}, chosen by {i.schedule.rule}"
  else:
    yield from map(_stage, stages)
  evaluations = " and 1 for evaluation" if c.eval.every else ""
  listed = ", ".join(f"{s.prompt} + {s.width}" for s in shapes)
  probes = " and 1 to probe for each prompt width" if i.schedule.measured else ""
  yield f"  {len(shapes)} shape(s) x 2 programs (rollout, update){probes}{evaluations}; prompt + response: {listed}"
  yield from (f"  note: {warning}" for warning in i.warnings)


def _stage(s: dict[str, Any]) -> str:
  limits = f"{s['first_limit']}" + (f" to {s['last_limit']}" if s["last_limit"] != s["first_limit"] else "")
  return (
    f"  stage {s['index']}: steps {s['start']} to {s['end'] - 1}, width {s['width']}, limit {limits} tokens, "
    f"at most {s['tokens']:,} tokens"
  )


def _mesh(mesh: jax.sharding.Mesh) -> str:
  axes = " x ".join(f"{name} {n}" for name, n in mesh.shape.items() if n > 1)
  processes = f" in {jax.process_count()} processes" if hosts.several() else ""
  return f"{mesh.size} device(s){f' ({axes})' if axes else ''}{processes}"


def _millions(params: Params) -> str:
  return f"{sum(a.size for a in jax.tree.leaves(params)) / 1e6:.2f}M"
