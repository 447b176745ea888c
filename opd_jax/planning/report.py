"""A plan as tables on the terminal, as Markdown, and as JSON.

The record that all of them show is what `record` makes of the parts; estimates are named so wherever they stand.
"""

import dataclasses
import io
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

WIDTH = 118
GIB, MIB, KIB = 2**30, 2**20, 2**10
BUFFERS, SENDERS = 6, 3  # of each program that are shown; the JSON has more
ESTIMATE = "estimate from published rates, not a measurement"


@dataclasses.dataclass
class Block:
  """A titled table with lines under it."""

  title: str
  head: Sequence[str] = ()
  rows: list[Sequence[str]] = dataclasses.field(default_factory=list)
  lines: list[str] = dataclasses.field(default_factory=list)


def show(blocks: Sequence[Block], console: Console | None = None) -> None:
  console = console or Console(width=WIDTH, highlight=False)
  for block in blocks:
    console.print(f"\n{block.title}", markup=False, highlight=False)
    if block.rows:
      table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
      for i, head in enumerate(block.head):
        table.add_column(head, justify="left" if i == 0 else "right", no_wrap=i == 0)
      for row in block.rows:
        table.add_row(*row)
      console.print(table)
    for line in block.lines:
      console.print(f"  {line}", markup=False, highlight=False)


def markdown(blocks: Sequence[Block]) -> str:
  out = io.StringIO()
  clean = lambda cell: " ".join(str(cell).split()).replace("|", "\\|")
  for i, block in enumerate(blocks):
    out.write(f"{'#' if i == 0 else '##'} {block.title}\n\n")
    if block.rows:
      out.write("| " + " | ".join(map(clean, block.head)) + " |\n|" + "---|" * len(block.head) + "\n")
      out.writelines("| " + " | ".join(map(clean, row)) + " |\n" for row in block.rows)
      out.write("\n")
    out.writelines(f"- {clean(line)}\n" for line in block.lines)
    out.write("\n" if block.lines else "")
  return out.getvalue()


def write(record: dict[str, Any], blocks: Sequence[Block], path: pathlib.Path) -> list[pathlib.Path]:
  """plan.json and plan.md."""
  made = [path / "plan.json", path / "plan.md"]
  made[0].write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
  made[1].write_text(markdown(blocks), encoding="utf-8")
  return made


def blocks(record: dict[str, Any]) -> list[Block]:
  """Everything that a plan says, in the order in which it is read."""
  out = [heading(record)]
  for target in record["targets"]:
    out.append(target_block(target))
    out += [stage_block(target, stage) for stage in target["stages"]]
    out.append(run_block(target))
  if record["targets"][1:]:
    out.append(scaling_block(record["targets"]))
  return out


def heading(record: dict[str, Any]) -> Block:
  models = [f"student {record['student']['name']} ({record['student']['parameters'] / 1e9:,.2f}B)"]
  models += [f"teacher {t['name']} ({t['parameters'] / 1e9:,.2f}B)" for t in record["teachers"]]
  return Block(
    f"Plan: {', '.join(models)}",
    lines=[
      record["command"],
      f"seconds and chip-hours are an {ESTIMATE}: every rollout reaches its limit, nothing overlaps",
    ],
  )


def target_block(target: dict[str, Any]) -> Block:
  chip = target["chip"]
  mesh = " x ".join(f"{axis} {n}" for axis, n in target["mesh"].items() if n > 1) or "one device"
  lies = target["resident"]
  return Block(
    f"{target['name']}: {target['chips']} chips, mesh {mesh}, {target['dtype']}",
    lines=[
      f"one device: {chip['flops'] / 1e12:,.4g} TFLOP/s, {chip['memory'] / 1e9:,.4g} GB/s of memory, "
      f"{chip['link'] / 1e9:,.4g} GB/s of a ring of links, {target['capacity'] / GIB:.2f} GiB for programs ({chip['source']})",
      f"{target['batch']} prompts of {target['prompt']} tokens x {target['rollouts_per_prompt']} rollouts, micro-batches of "
      f"{target['micro_batch'] or target['rows']} rows; on each device lie {lies['params'] / GIB:.2f} GiB of parameters, "
      f"{lies['optimizer'] / GIB:.2f} of the optimiser, {lies['teachers'] / GIB:.2f} of teachers",
      *(f"note: {note}" for note in target["notes"]),
    ],
  )


def stage_block(target: dict[str, Any], stage: dict[str, Any]) -> Block:
  programs = stage["programs"]
  cells = lambda f: [f(p) for p in programs]
  size = lambda key: cells(lambda p: gib(p["memory"][key]) if p["memory"] else "-")
  step = stage["estimate"]
  block = Block(
    f"stage {stage['index']}: width {stage['width']}, steps {stage['start']} to {stage['end'] - 1}, limits "
    f"{stage['first_limit']} to {stage['last_limit']}",
    head=("per device", *(p["name"] + ("" if p["width"] == stage["width"] else f" at {p['width']}") for p in programs)),
  )
  add = lambda name, values: block.rows.append((name, *values))
  add("arguments, GiB", size("arguments"))
  add("temporaries, GiB", size("temporaries"))
  add(
    "outputs beside arguments, GiB",
    cells(lambda p: gib(p["memory"]["outputs"] - p["memory"]["aliased"]) if p["memory"] else "-"),
  )
  add("code, GiB", size("code"))
  add("lies beside (optimiser, teachers), GiB", cells(lambda p: gib(p["beside"])))
  add("together, GiB", cells(lambda p: gib(p["needs"])))
  add(
    f"of {target['capacity'] / GIB:.2f} GiB",
    cells(lambda p: f"{p['needs'] / target['capacity']:.0%}" + ("" if p["fits"] else " DOES NOT FIT")),
  )
  add("TFLOP, counted", cells(lambda p: number(p["flops"] / 1e12)))
  add("TFLOP, XLA (each loop's body once)", cells(lambda p: number(p["xla_flops"] / 1e12) if p["xla_flops"] else "-"))
  add("GB of memory read and written, counted", cells(lambda p: number(p["bytes"] / 1e9)))
  kinds = dict.fromkeys(k for p in programs for k in p["sent"] or {})
  for kind in kinds:
    add(f"sent, GiB: {kind}", cells(lambda p, kind=kind: _sent(p["sent"], kind, GIB)))
  inside = dict.fromkeys(k for p in programs for k in p["sent_per_token"] or {})
  for kind in inside:
    add(f"sent at every token, KiB: {kind}", cells(lambda p, kind=kind: _sent(p["sent_per_token"], kind, KIB)))
  loops = cells(
    lambda p: (
      "-"
      if p["sent"] is None
      else "no loop"
      if not p["token_loops"]
      else f"{p['token_loops']} loops: {'nothing sent' if not p['sent_per_token'] else 'see above'}"
    )
  )
  add("token loop", loops)
  add("estimate: s of compute and memory", cells(lambda p: seconds(p["roofline_seconds"])))
  add("estimate: s of sending", cells(lambda p: seconds(p["sending_seconds"])))
  add("compile, s", cells(lambda p: f"{p['compile_seconds']:.0f}"))
  if step:
    block.lines.append(
      f"estimate of a step at {step['limit']} tokens: {seconds(step['seconds'])} s (rollout {seconds(step['rollout'])}, update "
      f"{seconds(step['update'])}, sending {seconds(step['sending'])}), {step['tokens_per_second']:,.0f} generated tokens/s, "
      f"{step['tokens_per_second'] / target['chips']:,.1f} per chip"
    )
  for p in programs:
    if p["failed"] and not (p["memory"] and not p["fits"]):
      block.lines.append(f"{p['name']} was not compiled: {p['failed']}")
    if p["sent"] is None:
      block.lines.append(f"{p['name']}: its text could not be had, so collectives and buffers are not available")
    block.lines += [f"{p['name']} holds {_buffer(b)}" for b in p["buffers"][:BUFFERS]]
    block.lines += [f"{p['name']} sends {_sender(one)}" for one in p["senders"][:SENDERS] if one["sent"] > MIB]
    block.lines += [f"{p['name']} {s}" for s in p["suggestions"]]
  block.lines += [f"note: {remark}" for remark in stage["remarks"]]
  return block


def run_block(target: dict[str, Any]) -> Block:
  runs = target["runs"]
  block = Block(
    f"{target['name']}: the whole run ({ESTIMATE})",
    head=(
      "method",
      "limits",
      "tokens, M",
      "rollout h",
      "update h",
      "sending h",
      "training h",
      "chip-hours",
      "times less",
      "+ evaluating",
    ),
  )
  first = runs[0]["training_chip_hours"] if runs else 0
  hours = lambda s: f"{s / 3600:,.2f}"
  for r in runs:
    limits = f"{r['first_limit']}" + (f" to {r['last_limit']}" if r["last_limit"] != r["first_limit"] else "")
    block.rows.append(
      (
        r["method"].upper(),
        limits,
        f"{r['tokens'] / 1e6:,.0f}",
        hours(r["rollout_seconds"]),
        hours(r["update_seconds"]),
        hours(r["sending_seconds"]),
        hours(r["training_seconds"]),
        f"{r['training_chip_hours']:,.0f}",
        f"{first / r['training_chip_hours']:.1f}",
        f"{r['evaluation_chip_hours']:,.0f}",
      )
    )
  if runs:
    block.lines.append(
      f"{runs[0]['steps']} steps; the last column is {runs[0]['evaluations']} evaluations in chip-hours, not in the others"
    )
  return block


def scaling_block(targets: Sequence[dict[str, Any]]) -> Block:
  block = Block(
    f"From one slice to the next ({ESTIMATE})",
    head=(
      "slice",
      "chips",
      "prompts",
      "mesh",
      "memory",
      "s per step",
      "tokens/s",
      "per chip",
      "of the first",
      "chip-hours",
    ),
  )
  at = lambda target: target["stages"][-1]["estimate"]
  base = at(targets[0])["tokens_per_second"] / targets[0]["chips"]
  for t in targets:
    step = at(t)
    each = step["tokens_per_second"] / t["chips"]
    worst = max(p["needs"] for s in t["stages"] for p in s["programs"] if p["name"] != "evaluate")
    own = next((r for r in t["runs"] if r["own"]), t["runs"][0] if t["runs"] else None)
    block.rows.append(
      (
        t["name"],
        f"{t['chips']:,}",
        f"{t['batch']:,}",
        " ".join(f"{axis}={n}" for axis, n in t["mesh"].items() if n > 1),
        f"{worst / t['capacity']:.0%}",
        seconds(step["seconds"]),
        f"{step['tokens_per_second']:,.0f}",
        f"{each:,.1f}",
        f"{each / base:.0%}",
        f"{own['training_chip_hours']:,.0f}" if own else "-",
      )
    )
  step = at(targets[0])
  block.lines.append(
    f"a step of {step['limit']} tokens; memory of rollout and update; chip-hours of a whole run of the config's own method"
  )
  return block


def gib(size: float) -> str:
  return f"{size / GIB:.2f}"


def number(x: float) -> str:
  return f"{x:.3g}" if abs(x) < 1000 else f"{x:,.0f}"


def seconds(s: float) -> str:
  return f"{s:.4f}" if s < 0.1 else f"{s:.2f}" if s < 100 else f"{s:,.0f}"


def _sent(found: dict[str, dict] | None, kind: str, unit: int) -> str:
  if not found or kind not in found:
    return "-"
  return f"{number(found[kind]['bytes'] / unit)} ({found[kind]['times']:,} x)"


def _buffer(b: dict[str, Any]) -> str:
  many = f"{b['count']} x " if b["count"] > 1 else ""
  where = f", {b['source']}" if b["source"] else ""
  return f"{b['total'] / GIB:.2f} GiB: {many}{b['array']} of {b['operation']}{where}"


def _sender(one: dict[str, Any]) -> str:
  where = " at every token" if one["in_token_loop"] else ""
  over = f" over {one['axes']}" if one["axes"] else ""
  return (
    f"{one['sent'] / GIB:.2f} GiB{where}: {one['times']:,} x {one['kind']}{over} of {one['held'] / MIB:.3g} MiB, "
    f"{one['operation'] or 'of no traced operation'}"
  )
