"""Everything that is known of a target, as plain data for the tables and the JSON."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from opd_jax import horizon
from opd_jax.benchmarks import roofline
from opd_jax.horizon import Schedule, Stage
from opd_jax.planning import advice, collectives, estimate
from opd_jax.planning.collectives import Collective
from opd_jax.planning.compiled import Program
from opd_jax.planning.estimate import Estimate
from opd_jax.planning.setup import METHODS, Setup
from opd_jax.planning.sources import operation

BUFFERS, SENDERS = 24, 12  # of each program


def target(
  setup: Setup,
  stages: Sequence[Stage],
  programs: dict[int, list[Program]],
  evaluation: Program | None,
  resident: dict[str, int],
  schedules: dict[str, Schedule],
) -> dict[str, Any]:
  """One target: its stages, and the runs of several methods.

  Args:
    stages: those that were compiled.
    programs: by width.
  """
  c = setup.c
  evaluated = {_evaluated(c): [evaluation]} if evaluation else {}
  widths = {*programs, *evaluated}
  counted = Estimate(setup, {w: [*programs.get(w, []), *evaluated.get(w, [])] for w in widths})
  described = {d["width"]: d for d in reversed(horizon.describe(setup.schedule, c.steps, setup.rows))}
  return {
    "name": setup.target.name,
    "chips": setup.target.chips,
    "devices": len(setup.target.devices),
    "device_kind": setup.target.devices[0].device_kind,
    "chip": dataclasses.asdict(setup.target.chip),
    "capacity": setup.target.capacity,
    "mesh": dict(setup.mesh.shape),
    "dtype": setup.subject.dtype.name,
    "batch": c.batch,
    "rollouts_per_prompt": c.rollouts_per_prompt,
    "rows": setup.rows,
    "micro_batch": c.micro_batch,
    "prompt": setup.prompt,
    "notes": list(setup.notes),
    "resident": resident,
    "stages": [described[s.width] | stage(setup, s, programs[s.width], evaluation, resident, counted) for s in stages],
    "runs": [
      {"method": method, "own": METHODS[method] == c.horizon.kind} | counted.run(schedule)
      for method, schedule in schedules.items()
    ],
  }


def _evaluated(c) -> int:
  """The response width of the evaluation."""
  return c.eval.max_tokens or c.horizon.max


def stage(
  setup: Setup,
  s: Stage,
  found: Sequence[Program],
  evaluation: Program | None,
  resident: dict[str, int],
  counted: Estimate,
) -> dict[str, Any]:
  c = setup.c
  order = sorted(found, key=lambda p: p.name)  # rollout, update
  every = [(s.width, p) for p in order] + ([(_evaluated(c), evaluation)] if evaluation else [])
  limit = s.last_limit
  step = counted.step(s.width, limit)
  return {
    "programs": [program(setup, need, counted, resident) for need in advice.needs(setup, every, resident)],
    "remarks": [
      *advice.remarks(setup, order, resident),
      *(said for p in order if p.name == "update" for said in advice.waiting(setup, p, counted, s.width)),
    ],
    "estimate": {
      "limit": limit,
      "seconds": step.seconds,
      "rollout": step.rollout,
      "update": step.update,
      "sending": step.sending,
      "tokens_per_second": setup.rows * limit / step.seconds,
    },
  }


def program(setup: Setup, need: advice.Need, counted: Estimate, resident: dict[str, int]) -> dict[str, Any]:
  p, devices = need.program, setup.mesh.size
  works = counted.works(p.name, need.width)
  sent = estimate.sending(setup, p.collectives or [])
  outside, inside = (
    None if p.collectives is None else _sent([c for c in p.collectives if c.in_token_loop == place])
    for place in (False, True)
  )
  return {
    "name": p.name,
    "width": need.width,
    "memory": dataclasses.asdict(p.memory) if p.memory else None,
    "beside": need.beside,
    "needs": need.total,
    "fits": need.fits,
    "failed": p.failed,
    "flops": sum(w.flops for w in works) / devices,
    "bytes": sum(w.weights / setup.mesh.shape["tensor"] + w.parts / devices for w in works),
    "xla_flops": p.flops,
    "xla_bytes": p.accessed,
    "sent": outside,
    "sent_per_token": inside,
    "senders": _senders(p.collectives or []),
    "token_loops": p.token_loops,
    "uncounted_loops": any(not c.counted for c in p.collectives or []),
    "roofline_seconds": counted.seconds(works),
    "sending_seconds": sent.once + sent.token * (need.width - 1),
    "compile_seconds": p.seconds,
    "buffers": [dataclasses.asdict(b) | {"total": b.total} for b in p.buffers[:BUFFERS]],
    "suggestions": [str(s) for s in advice.suggestions(setup, need, resident)],
  }


def _sent(found: Sequence[Collective]) -> dict[str, dict[str, float]]:
  name = lambda kind, axes: f"{kind} over {axes}" if axes else kind
  return {
    name(*key): {"times": times, "bytes": sent} for key, (times, sent) in collectives.by_kind(found).items() if sent
  }


def _senders(found: Sequence[Collective]) -> list[dict[str, Any]]:
  """The collectives that send most, alike ones together, with their origin."""
  alike: dict[tuple, tuple[int, float]] = {}
  for c in found:
    key = (c.kind, c.axes, c.held, c.in_token_loop, operation(c.origin))
    times, sent = alike.get(key, (0, 0.0))
    alike[key] = (times + c.times, sent + c.sent)
  named = ("kind", "axes", "held", "in_token_loop", "operation")
  out = [dict(zip(named, key, strict=True)) | {"times": t, "sent": sent} for key, (t, sent) in alike.items()]
  return sorted(out, key=lambda one: -one["sent"])[:SENDERS]


def models(setup: Setup) -> dict[str, Any]:
  def one(name: str, cfg) -> dict[str, Any]:
    return {"name": name, "parameters": roofline.parameters(cfg), **dataclasses.asdict(cfg)}

  names = setup.subject.names
  return {
    "student": one(names[0], setup.subject.student),
    "teachers": [one(name, cfg) for name, cfg in zip(names[1:], setup.subject.teachers, strict=True)],
  }
