"""A plan as tables on the terminal, as Markdown, and as JSON.

All of them show one record, see record.py; estimates are named so wherever they stand.
"""

import dataclasses
import io
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from opd_jax.planning.amounts import (
  format_fixed,
  format_gib,
  format_number,
  format_parameters,
  format_seconds,
  format_share,
)

WIDTH = 118
GIB, MIB, KIB = 2**30, 2**20, 2**10
BUFFERS = 6  # of each program that are shown; the JSON has more
SENDERS = 3  # likewise
ESTIMATE = "estimate from published rates, not a measurement"


@dataclasses.dataclass
class Block:
  """A titled table with lines under it."""

  title: str
  head: Sequence[str] = ()
  rows: list[Sequence[str]] = dataclasses.field(default_factory=list)
  lines: list[str] = dataclasses.field(default_factory=list)


def show(blocks: Sequence[Block], console: Console | None = None) -> None:
  """Prints the blocks, on the terminal where no console is given."""
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
  """The blocks as Markdown."""
  out = io.StringIO()

  def clean(cell: str) -> str:
    return " ".join(str(cell).split()).replace("|", "\\|")

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
  """Writes plan.json and plan.md; the files written."""
  json_path, markdown_path = path / "plan.json", path / "plan.md"
  json_path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
  markdown_path.write_text(markdown(blocks), encoding="utf-8")
  return [json_path, markdown_path]


def blocks(record: dict[str, Any]) -> list[Block]:
  """Make all tables of a plan, in the order in which they are shown."""
  out = [verdict_block(record["targets"]), heading(record)]
  for target in record["targets"]:
    out.append(target_block(target))
    out += [stage_block(target, stage) for stage in target["stages"]]
    out.append(run_block(target))
  if record["targets"][1:]:
    out.append(scaling_block(record["targets"]))
  return out


def verdict_block(targets: Sequence[dict[str, Any]]) -> Block:
  """Begin with what could not be compiled, and with what becomes of each target."""
  verdicts = [target["verdict"] for target in targets]
  first, *others = [line for v in verdicts for line in v["failed"]] + [v["sentence"] for v in verdicts]
  return Block(first, lines=[*others, f"seconds are an {ESTIMATE}"])


def heading(record: dict[str, Any]) -> Block:
  """The title of the plan, its models and its command."""
  models = [f"student {record['student']['name']} ({format_parameters(record['student']['parameters'])})"]
  models += [f"teacher {t['name']} ({format_parameters(t['parameters'])})" for t in record["teachers"]]
  return Block(
    f"Plan: {', '.join(models)}",
    lines=[
      record["command"],
      f"seconds and chip-hours are an {ESTIMATE}: every rollout reaches its limit, nothing overlaps",
    ],
  )


def target_block(target: dict[str, Any]) -> Block:
  """Show one target's chip, mesh and sizes, and what is resident on each device."""
  chip = target["chip"]
  mesh = " x ".join(f"{axis} {n}" for axis, n in target["mesh"].items() if n > 1) or "one device"
  resident = target["resident"]
  return Block(
    f"{target['name']}: {target['chips']} chips, mesh {mesh}, {target['dtype']}",
    lines=[
      f"one device: {chip['flops'] / 1e12:,.4g} TFLOP/s, {chip['memory'] / 1e9:,.4g} GB/s of memory, "
      f"{chip['link'] / 1e9:,.4g} GB/s of a ring of links, {format_gib(target['capacity'])} GiB for programs "
      f"({chip['source']})",
      f"{target['batch']} prompts of {target['prompt']} tokens x {target['rollouts_per_prompt']} rollouts, "
      f"micro-batches of {target['micro_batch'] or target['rows']} rows; on each device lie "
      f"{format_gib(resident['params'])} GiB of parameters, "
      f"{format_gib(resident['optimizer'])} of the optimiser, {format_gib(resident['teachers'])} of teachers"
      + (f", {format_gib(resident['towers'])} of frozen vision towers" if resident["towers"] else ""),
      *(f"note: {note}" for note in target["notes"]),
    ],
  )


def stage_block(target: dict[str, Any], stage: dict[str, Any]) -> Block:
  """Show one stage: a column for each program, below it the largest buffers and senders, suggestions, remarks."""
  programs = stage["programs"]
  step = stage["estimate"]
  block = Block(
    f"stage {stage['index']}: width {stage['width']}, steps {stage['start']} to {stage['end'] - 1}, limits "
    f"{stage['first_limit']} to {stage['last_limit']}",
    head=("per device", *(p["name"] + ("" if p["width"] == stage["width"] else f" at {p['width']}") for p in programs)),
  )

  def add(name: str, cells: Iterable[str]) -> None:
    block.rows.append((name, *cells))

  def add_memory(name: str, size: Callable[[dict[str, int]], int]) -> None:
    add(name, (format_gib(size(p["memory"])) if p["memory"] else "-" for p in programs))

  capacity = target["capacity"]
  add_memory("arguments, GiB", lambda memory: memory["arguments"])
  add_memory("temporaries, GiB", lambda memory: memory["temporaries"])
  add_memory("outputs beside arguments, GiB", lambda memory: memory["outputs"] - memory["aliased"])
  add_memory("code, GiB", lambda memory: memory["code"])
  add("lies beside (optimiser, frozen models), GiB", (format_gib(p["beside"]) for p in programs))
  add("together, GiB", (format_gib(p["needs"]) for p in programs))
  shares = (format_share(p["needs"] / capacity) + ("" if p["fits"] else " DOES NOT FIT") for p in programs)
  add(f"of {format_gib(capacity)} GiB", shares)
  add("TFLOP, counted", (format_number(p["flops"] / 1e12) for p in programs))
  xla_flops = (format_number(p["xla_flops"] / 1e12) if p["xla_flops"] else "-" for p in programs)
  add("TFLOP, XLA (each loop's body once)", xla_flops)
  add("GB of memory read and written, counted", (format_number(p["bytes"] / 1e9) for p in programs))
  for kind in dict.fromkeys(kind for p in programs for kind in p["sent"] or {}):
    add(f"sent, GiB: {kind}", [_sent(p["sent"], kind, GIB) for p in programs])
  for kind in dict.fromkeys(kind for p in programs for kind in p["sent_per_token"] or {}):
    add(f"sent at every token, KiB: {kind}", [_sent(p["sent_per_token"], kind, KIB) for p in programs])
  add("token loop", map(_token_loops, programs))
  add("estimate: s of compute and memory", (format_seconds(p["roofline_seconds"]) for p in programs))
  add("estimate: s of sending", (format_seconds(p["sending_seconds"]) for p in programs))
  add("compile, s", (format_fixed(p["compile_seconds"], 0) for p in programs))
  if step:
    block.lines.append(
      f"estimate of a step at {step['limit']} {step['unit']}: {format_seconds(step['seconds'])} s "
      f"(rollout {format_seconds(step['rollout'])}, update {format_seconds(step['update'])}, sending "
      f"{format_seconds(step['sending'])}), {format_fixed(step['tokens_per_second'], 0)} generated tokens/s, "
      f"{format_fixed(step['tokens_per_second'] / target['chips'], 1)} per chip"
    )
  for p in programs:
    if p["failed"] and not (p["memory"] and not p["fits"]):
      block.lines.append(f"{p['name']} was not compiled: {p['failed']}")
    if p["sent"] is None:
      block.lines.append(f"{p['name']}: its text could not be had, so collectives and buffers are not available")
    block.lines += [f"{p['name']} holds {_buffer(b)}" for b in p["buffers"][:BUFFERS]]
    block.lines += [f"{p['name']} sends {_sender(s)}" for s in p["senders"][:SENDERS] if s["sent"] > MIB]
    block.lines += [f"{p['name']} {s}" for s in p["suggestions"]]
  block.lines += [f"note: {remark}" for remark in stage["remarks"]]
  return block


def run_block(target: dict[str, Any]) -> Block:
  """The whole runs of several methods on one target, a row for each."""
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
  for r in runs:
    limits = f"{r['first_limit']}"
    if r["last_limit"] != r["first_limit"]:
      limits += f" to {r['last_limit']}"
    block.rows.append(
      (
        r["method"].upper(),
        limits,
        format_fixed(r["tokens"] / 1e6, 0),
        _hours(r["rollout_seconds"]),
        _hours(r["update_seconds"]),
        _hours(r["sending_seconds"]),
        _hours(r["training_seconds"]),
        format_fixed(r["training_chip_hours"], 0),
        format_fixed(first / r["training_chip_hours"], 1),
        format_fixed(r["evaluation_chip_hours"], 0),
      )
    )
  if runs:
    block.lines.append(
      f"{runs[0]['steps']} steps; the last column is {runs[0]['evaluations']} evaluations in chip-hours, "
      "not in the others"
    )
  return block


def scaling_block(targets: Sequence[dict[str, Any]]) -> Block:
  """The targets beside each other, a row for each, by a step of the last stage."""
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
  steps = [target["stages"][-1]["estimate"] for target in targets]
  base = steps[0]["tokens_per_second"] / targets[0]["chips"]
  for t, step in zip(targets, steps, strict=True):
    per_chip = step["tokens_per_second"] / t["chips"]
    worst = max(p["needs"] for s in t["stages"] for p in s["programs"] if p["name"] != "evaluate")
    own = next((r for r in t["runs"] if r["own"]), t["runs"][0] if t["runs"] else None)
    block.rows.append(
      (
        t["name"],
        f"{t['chips']:,}",
        f"{t['batch']:,}",
        " ".join(f"{axis}={n}" for axis, n in t["mesh"].items() if n > 1),
        format_share(worst / t["capacity"]),
        format_seconds(step["seconds"]),
        format_fixed(step["tokens_per_second"], 0),
        format_fixed(per_chip, 1),
        format_share(per_chip / base),
        format_fixed(own["training_chip_hours"], 0) if own else "-",
      )
    )
  block.lines.append(
    f"a step of {steps[0]['limit']} {steps[0]['unit']}; memory of rollout and update; chip-hours of a whole run of the "
    "config's own method"
  )
  return block


def _hours(s: float) -> str:
  return format_fixed(s / 3600, 2)


def _token_loops(program: dict[str, Any]) -> str:
  """The number of a program's token loops, and whether anything is sent inside of them."""
  if program["sent"] is None:
    return "-"
  if not program["token_loops"]:
    return "no loop"
  return f"{program['token_loops']} loops: {'see above' if program['sent_per_token'] else 'nothing sent'}"


def _sent(totals: dict[str, dict] | None, kind: str, unit: int) -> str:
  if not totals or kind not in totals:
    return "-"
  return f"{format_number(totals[kind]['bytes'] / unit)} ({totals[kind]['times']:,} x)"


def _buffer(b: dict[str, Any]) -> str:
  many = f"{b['count']} x " if b["count"] > 1 else ""
  where = f", {b['source']}" if b["source"] else ""
  return f"{format_gib(b['total'])} GiB: {many}{b['array']} of {b['operation']}{where}"


def _sender(sender: dict[str, Any]) -> str:
  where = " at every token" if sender["in_token_loop"] else ""
  over = f" over {sender['axes']}" if sender["axes"] else ""
  return (
    f"{format_gib(sender['sent'])} GiB{where}: {sender['times']:,} x {sender['kind']}{over} of "
    f"{sender['held'] / MIB:.3g} MiB, {sender['operation'] or 'of no traced operation'}"
  )
