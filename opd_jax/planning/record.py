"""The record of a plan: everything that is known of a target, as plain data for the tables and the JSON."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from opd_jax.config import Config, horizon_unit, response_len
from opd_jax.horizon import schedule as horizon
from opd_jax.horizon.schedule import Schedule, Stage
from opd_jax.models import roofline
from opd_jax.planning import advice, estimate, verdict
from opd_jax.planning.collectives import Collective, totals_by_kind
from opd_jax.planning.compiled import Program
from opd_jax.planning.estimate import RunEstimate
from opd_jax.planning.setup import METHODS, Setup
from opd_jax.planning.sources import operation
from opd_jax.planning.stages import image_patches

BUFFERS = 24  # of each program
SENDERS = 12  # likewise


def target(
  setup: Setup,
  stages: Sequence[Stage],
  programs: dict[int, list[Program]],
  evaluation: Program | None,
  resident: dict[str, int],
  schedules: dict[str, Schedule],
  encoding: Program | None = None,
) -> dict[str, Any]:
  """The record of one target: its stages, and the runs of several methods.

  Args:
    stages: those that were compiled.
    programs: rollout and update of each stage, by response width.
    evaluation: the compiled evaluation, where the config has one.
    resident: see `stages.resident`.
    schedules: by method.
    encoding: what encodes images, compiled, where a frozen tower does.
  """
  c = setup.c
  by_width = {width: list(compiled) for width, compiled in programs.items()}
  if evaluation:
    by_width.setdefault(_evaluation_width(c), []).append(evaluation)
  estimated = RunEstimate(setup, by_width)
  described = {d["width"]: d for d in reversed(horizon.describe(setup.schedule, c.steps, setup.rows))}
  found = {
    "name": setup.target.name,
    "chips": setup.target.chips,
    "devices": len(setup.target.devices),
    "device_kind": setup.target.devices[0].device_kind,
    "chip": dataclasses.asdict(setup.target.chip),
    "capacity": setup.target.capacity,
    "mesh": dict(setup.mesh.shape),
    "dtype": setup.dtype.name,
    "batch": c.batch,
    "rollouts_per_prompt": c.rollouts_per_prompt,
    "rows": setup.rows,
    "micro_batch": c.micro_batch,
    "prompt": setup.prompt,
    "notes": list(setup.notes),
    "resident": resident,
    "widths": len({s.width for s in setup.stages}),
    "stages": [
      described[s.width] | stage(setup, s, programs[s.width], evaluation, encoding, resident, estimated) for s in stages
    ],
    "runs": [
      {"method": method, "own": METHODS[method] == c.horizon.kind} | estimated.run(schedule)
      for method, schedule in schedules.items()
    ],
  }
  return {"verdict": verdict.verdict(found), **found}


def _evaluation_width(config: Config) -> int:
  """The response width of the evaluation, tokens."""
  return config.eval.max_tokens or response_len(config)


def stage(
  setup: Setup,
  s: Stage,
  compiled: Sequence[Program],
  evaluation: Program | None,
  encoding: Program | None,
  resident: dict[str, int],
  estimated: RunEstimate,
) -> dict[str, Any]:
  """The record of one stage: its programs, remarks on them, and a step at the stage's last limit."""
  programs = sorted(compiled, key=lambda p: p.name)  # rollout, update
  with_widths = [(s.width, p) for p in programs]
  if evaluation:
    with_widths.append((_evaluation_width(setup.c), evaluation))
  if encoding:
    with_widths.append((image_patches(setup), encoding))
  remarks = advice.remarks(setup, programs, resident)
  for p in programs:
    if p.name == "update":
      remarks += advice.link_bound(setup, p, estimated, s.width)
  limit = s.last_limit
  step = estimated.step(s.width, limit)
  return {
    "programs": [program(setup, need, estimated, resident) for need in advice.needs(setup, with_widths, resident)],
    "remarks": remarks,
    "estimate": {
      "limit": limit,
      "unit": horizon_unit(setup.c),
      "seconds": step.seconds,
      "rollout": step.rollout,
      "update": step.update,
      "sending": step.sending,
      "tokens_per_second": setup.generated(limit) / step.seconds,
    },
  }


def program(setup: Setup, need: advice.MemoryNeed, estimated: RunEstimate, resident: dict[str, int]) -> dict[str, Any]:
  """The record of one program: memory, cost, collectives, seconds, largest buffers, suggestions."""
  p, devices, tensor = need.program, setup.mesh.size, setup.mesh.shape["tensor"]
  costs = estimated.costs(p.name, need.width)
  known = p.collectives is not None
  collectives = p.collectives or []
  return {
    "name": p.name,
    "width": need.width,
    "memory": dataclasses.asdict(p.memory) if p.memory else None,
    "beside": need.others,
    "needs": need.total,
    "fits": need.fits,
    "failed": p.error,
    "flops": sum(cost.flops for cost in costs) / devices,
    "bytes": sum(cost.weight_bytes / tensor + cost.sharded_bytes / devices for cost in costs),
    "xla_flops": p.flops,
    "xla_bytes": p.bytes_accessed,
    "sent": _sent([c for c in collectives if not c.in_token_loop]) if known else None,
    "sent_per_token": _sent([c for c in collectives if c.in_token_loop]) if known else None,
    "senders": _senders(collectives),
    "token_loops": p.token_loops,
    "uncounted_loops": any(not c.trips_known for c in collectives),
    "roofline_seconds": estimated.roofline_seconds(costs),
    "sending_seconds": estimate.collective_seconds(setup, collectives).total(need.width),
    "compile_seconds": p.seconds,
    "buffers": [dataclasses.asdict(b) | {"total": b.total} for b in p.buffers[:BUFFERS]],
    "suggestions": [str(s) for s in advice.suggestions(setup, need, resident)],
  }


def _sent(collectives: Sequence[Collective]) -> dict[str, dict[str, float]]:
  """Sums executions and sent bytes by a name such as "all-gather over fsdp", of what sends anything."""
  totals = {}
  for (kind, axes), (times, sent) in totals_by_kind(collectives).items():
    if sent:
      totals[f"{kind} over {axes}" if axes else kind] = {"times": times, "bytes": sent}
  return totals


def _senders(collectives: Sequence[Collective]) -> list[dict[str, Any]]:
  """The collectives that send most, alike ones together, with their origin."""
  alike: dict[tuple, tuple[int, float]] = {}
  for c in collectives:
    key = (c.kind, c.axes, c.operand_bytes, c.in_token_loop, operation(c.origin))
    times, sent = alike.get(key, (0, 0.0))
    alike[key] = (times + c.times, sent + c.sent_bytes)
  columns = ("kind", "axes", "held", "in_token_loop", "operation")
  senders = []
  for key, (times, sent) in alike.items():
    senders.append(dict(zip(columns, key, strict=True)) | {"times": times, "sent": sent})
  return sorted(senders, key=lambda sender: -sender["sent"])[:SENDERS]


def models(setup: Setup) -> dict[str, Any]:
  """The record of the student and the teachers: names, parameters, architectures."""

  def model(name: str, cfg) -> dict[str, Any]:
    return {"name": name, "parameters": roofline.parameter_count(cfg), **cfg.to_dict()}

  names = setup.names
  return {
    "student": model(names[0], setup.student),
    "teachers": [model(name, cfg) for name, cfg in zip(names[1:], setup.teachers, strict=True)],
  }
