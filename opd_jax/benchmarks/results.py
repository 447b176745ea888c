"""The measurements as tables, JSON and a picture.

The record that all of them show is what bench.py collects; see `rollout.measure`, `update.measure` and
`against.TransformersModel.measure` and `against_trl.compare` for its parts.
"""

import io
import json
import pathlib
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich import box
from rich.console import Console
from rich.table import Table

from opd_jax.benchmarks.subject import label
from opd_jax.reports import plotting

WIDTH = 118
MIB = 2**20
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # as in reports/plotting.py
MARKERS = ("o", "s", "^", "D")
MARKER_EDGE: Any = {"markeredgecolor": "white", "markeredgewidth": 0.6}


def write(record: dict[str, Any], path: pathlib.Path) -> list[pathlib.Path]:
  """Writes bench.json, bench.txt and, where a rollout was measured, prefix.png; returns the files written."""
  (path / "bench.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
  text = io.StringIO()
  show(record, Console(file=text, width=WIDTH))
  (path / "bench.txt").write_text(text.getvalue(), encoding="utf-8")
  written = [path / "bench.json", path / "bench.txt"]
  if any(r["by_prefix"] for r in record.get("rollout", [])):
    written.append(path / "prefix.png")
    with matplotlib.rc_context(plotting.RC):
      prefix_figure(record).savefig(written[-1])
  return written


def show(record: dict[str, Any], console: Console | None = None) -> None:
  """Prints the record, on the terminal where no console is given."""
  console = console or Console(width=WIDTH, highlight=False)
  for line in heading(record):
    console.print(line, highlight=False, markup=False, soft_wrap=False)
  console.print(programs_table(record))
  for line in remarks(record):
    console.print(line, highlight=False, markup=False, soft_wrap=False)


def heading(record: dict[str, Any]) -> list[str]:
  """Makes the lines that name the models, the device, and the rates that were measured on it."""
  machine = record["machine"]
  reads = ", ".join(f"{r['best'] / 1e9:.1f} ({_size(r['size'])})" for r in machine["reads"])
  return [
    f"student {record['student']['name']} ({record['student']['parameters'] / 1e6:,.2f}M), "
    + " and ".join(f"teacher {t['name']} ({t['parameters'] / 1e6:,.2f}M)" for t in record["teachers"])
    + f", {record['dtype']}",
    f"{record['devices']}, {record['processor']}, {record['cores']} cores",
    f"one device: reads {reads}, copies {machine['copy']['best'] / 1e9:.1f} GB/s read and written, "
    f"multiplies {machine['matrix']['best'] / 1e9:,.0f} GFLOP/s",
  ]


def programs_table(record: dict[str, Any]) -> Table:
  """Makes a table with a row for each measured rollout and update, for each step of both, and for each step of TRL."""
  table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
  several = any(r["n"] > 1 for name in ("rollout", "update", "programs") for r in record.get(name, []))
  table.add_column(f"prompts x{' rollouts x' if several else ''}\n(prompt + horizon)", no_wrap=True)
  for head in (
    "s\nmedian",
    "s\nleast",
    "tokens/s",
    "GFLOP",
    "GFLOP/s",
    "GB",
    "roofline\ns",
    "of the\nroofline",
    "program\nMiB",
    "compile\ns",
  ):
    table.add_column(head, justify="right", no_wrap=True)
  for name in ("rollout", "update"):
    for r in record.get(name, []):
      table.add_row(
        f"{name} {label(r)}",
        _seconds(r["seconds"]),
        _seconds(r["min_seconds"]),
        f"{r['tokens_per_second']:,.0f}",
        _number(r["flops"] / 1e9),
        _number(r["flops_per_second"] / 1e9),
        _number(r["bytes"] / 1e9),
        _seconds(r["roofline_seconds"]),
        f"{r['fraction_of_roofline']:.1%}",
        f"{r['program_bytes'] / MIB:,.0f}",
        f"{r['compile_seconds']:.1f}",
      )
  for r in record.get("programs", []):
    costs = (f"{r['program_bytes'] / MIB:,.0f}", f"{r['compile_seconds']:.1f}")
    seconds = (_seconds(r["seconds"]), _seconds(r["min_seconds"]))
    table.add_row(f"{r['name']} {label(r)}", *seconds, *[""] * 6, *costs)
  for r in record.get("step", []):
    table.add_row(
      f"step {label(r)}",
      _seconds(r["seconds"]),
      _seconds(r["min_seconds"]),
      f"{r['tokens_per_second']:,.0f}",
      *[""] * 3,
      _seconds(r["roofline_seconds"]),
      f"{r['fraction_of_roofline']:.1%}",
      *[""] * 2,
    )
  for r in of_library(record, "trl"):
    theirs = r["theirs"]
    seconds = (_seconds(theirs["seconds"]), _seconds(theirs["min_seconds"]))
    table.add_row(f"trl step {label(r)}", *seconds, f"{theirs['tokens_per_second']:,.0f}", *[""] * 7)
  return table


def of_library(record: dict[str, Any], name: str) -> list[dict[str, Any]]:
  """The records beside this library."""
  return [r for r in record.get("against", []) if r["against"] == name]


def remarks(record: dict[str, Any]) -> list[str]:
  """Makes the lines below the table: slowdown along the horizon, matrix rate, other libraries, peak memory."""
  out = []
  for r in record.get("rollout", []):
    if ratio := r["last_to_first_quarter"]:
      out.append(
        f"rollout {label(r)}: a token of the last quarter takes {ratio['seconds']:.2f} times one of the first; "
        f"bytes {ratio['bytes']:.2f}, roofline {ratio['roofline']:.2f}"
      )
  for r in record.get("update", []):
    out.append(f"update {label(r)}: {r['fraction_of_matrix_rate']:.1%} of the matrix rate")
  for what, library in (("rollout", "transformers"), ("step", "trl")):
    for r in of_library(record, library):
      out.append(
        f"{what} {label(r)}: {library} {r['versions'][library]} on {r['device']} (threads: {r['threads']}) "
        f"{_seconds(r['theirs']['seconds'])} s, ours {_seconds(r['ours']['seconds'])} s: {r['ratio']:.1f} times"
      )
  return [*out, f"the process held at most {record['process_peak_bytes'] / MIB:,.0f} MiB"]


def prefix_figure(record: dict[str, Any]) -> Figure:
  """Draws milliseconds per token against filled slots.

  A panel for each batch and rollouts of each prompt; a colour and a marker for each prompt and horizon.
  """
  rollouts = [r for r in record["rollout"] if r["by_prefix"]]
  batches = sorted({(r["batch"], r["n"]) for r in rollouts})
  kinds = sorted({(r["prompt"], r["horizon"]) for r in rollouts}, key=lambda pair: (pair[1], pair[0]))
  columns = min(3, len(batches))
  rows = -(-len(batches) // columns)
  figure, axes = plotting.panels(2.2 + 4.4 * columns, 0.9 + 3.3 * rows, rows, columns)
  for ax in axes[len(batches) :]:
    ax.remove()
  for ax, (batch, n) in zip(axes, batches, strict=False):
    for r in (r for r in rollouts if (r["batch"], r["n"]) == (batch, n)):
      color, marker = _style(kinds.index((r["prompt"], r["horizon"])))
      at = [p["prefix"] for p in r["by_prefix"]]
      measured = [1e3 * p["seconds_per_token"] for p in r["by_prefix"]]
      bound = [1e3 * p["roofline_seconds_per_token"] for p in r["by_prefix"]]
      ax.plot(at, measured, color=color, marker=marker, **MARKER_EDGE)
      ax.plot(at, bound, color=color, linestyle=(0, (4, 2)), linewidth=1.4)
    ax.set_title(f"{batch} x {n} rows" if n > 1 else f"{batch} rows")
    ax.set_ylim(bottom=0)
    ax.set_xlim(left=0)
    ax.set_xlabel("filled cache slots (prompt + tokens so far)")
  for ax in axes[: len(batches) : columns]:
    ax.set_ylabel("ms per token, all rows")
  handles = _legend(kinds)
  in_a_row = int(figure.get_figwidth() / 3.2)
  figure.set_figheight(figure.get_figheight() + 0.23 * (-(-len(handles) // in_a_row) - 1))  # the axes keep their size
  figure.legend(handles=handles, loc="outside upper left", ncols=in_a_row)
  return figure


def _style(kind: int) -> tuple[str, str]:
  """Chooses a colour and a marker; where the colours begin again, they meet other markers."""
  colours, markers = len(COLOURS), len(MARKERS)
  return COLOURS[kind % colours], MARKERS[(kind + kind // colours) % markers]


def _legend(kinds: list[tuple[int, int]]) -> list[Line2D]:
  measured = []
  for i, (P, H) in enumerate(kinds):
    color, marker = _style(i)
    text = f"measured, prompt {P}, horizon {H}"
    measured.append(Line2D([], [], color=color, marker=marker, label=text, **MARKER_EDGE))
  roofline = Line2D(
    [], [], color=plotting.GREY, linestyle=(0, (4, 2)), linewidth=1.4, label="roofline (bytes or FLOPs)"
  )
  return [*measured, roofline]


def _seconds(s: float) -> str:
  if s < 0.1:
    return f"{s:.4f}"
  return f"{s:.3f}" if s < 10 else f"{s:,.1f}"


def _number(x: float) -> str:
  return f"{x:.3g}" if x < 100 else f"{x:,.0f}"


def _size(n: int) -> str:
  return f"{n // MIB} MiB" if n < 2**30 else f"{n // 2**30} GiB"
