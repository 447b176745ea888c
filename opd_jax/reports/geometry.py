"""The terminal's table and the page of `python -m opd_jax.geometry`, made of the record that it writes."""

import html
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from opd_jax.reports import geometry_figures, page, plotting
from opd_jax.reports.figures import Picture

Record = dict[str, Any]
NULLS = ("permuted", "gaussian")
UNDEFINED = "undefined"

# Statistics of the tables: their name in the record, what they are, and whether they are shares.
HEADLINES = (
  ("relative_norm", "relative norm", True),
  ("zero", "exact zeros", True),
  ("sparsity@1e-05", "|dW| <= 1e-5", True),
  ("relative_sparsity@0.001", "|dW| <= 1e-3 RMS(W0)", True),
  ("coordinate_energy@1%", "energy, top 1% of weights", True),
  ("top_energy@16", "energy, top 16 directions", True),
  ("stable_rank", "stable rank", False),
  ("entropy_rank", "entropy rank", False),
  ("numerical_rank", "numerical rank, of full", True),
  ("projection@10%", "projection 10%, joint", True),
  ("projection_left@10%", "projection 10%, outputs", True),
  ("projection_right@10%", "projection 10%, inputs", True),
  ("rotation@10%", "rotation 10%", True),
  ("principal_coverage@10%", "principal coverage 10%", True),
  ("low_coverage@10%", "low-magnitude cov. 10%", True),
  ("density>1e-05", "moved, > 1e-5", True),
  ("density_other>1e-05", "moved by the other run", True),
  ("overlap>1e-05", "of ours, by the other too", True),
  ("overlap_other>1e-05", "of the other's, by ours too", True),
  ("overlap_lift>1e-05", "overlap over chance", False),
)


def number(value: float | None, share: bool) -> str:
  """Write a statistic: shares in percent, others with three digits; what has no value is undefined."""
  if value is None:
    return UNDEFINED
  return f"{100 * value:.4g}%" if share else f"{value:.4g}"


def beyond(entry: Record, null: str, share: bool) -> str:
  """Write how far a statistic is beyond a null: 'above +3.1 (1.4x)', percentages in points, or that it is within."""
  against = entry.get(null)
  if against is None:
    return "no null"
  verdict = against["verdict"]
  if verdict in ("within", UNDEFINED):
    return verdict
  difference, ratio = against["difference"], against["ratio"]
  text = f"{(100 if share else 1) * difference:+.3g}"
  if ratio is not None and math.isfinite(ratio):
    text += f" ({ratio:.3g}x)"
  return f"{verdict} {text}" if verdict != "unknown" else text


def show(record: Record, console: Console | None = None) -> None:
  """Print the headline statistics of every kind of update beside their nulls, and what has to be known of them."""
  console = console or Console()
  width = max(80, min(console.width, 130))
  for kind in record["kinds"]:
    table = Table(
      box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), title=title_of(record, kind), title_justify="left"
    )
    table.add_column("statistic", no_wrap=True)
    for head in ("update", *(head for null in NULLS for head in (f"{null}\nnull", "beyond\nit"))):
      table.add_column(head, justify="right", overflow="fold")
    for row in rows(record["whole"][kind], ranges=False):
      table.add_row(*map(Text, row.values()))
    console.print(table, width=width)
    console.print()
  for note in notes(record):
    console.print(f"  note: {note}", soft_wrap=True, highlight=False, markup=False)


def title_of(record: Record, kind: str) -> str:
  """Say how the update of a kind is seen."""
  if kind == "fp32":
    return "fp32: the update between the weights as they are stored, not rounded"
  stored = "" if "fp32" in record["kinds"] else ", as those after it are stored"
  return f"{kind}: the weights before and after it rounded to {record['options']['mantissa']} mantissa bits{stored}"


def rows(statistics: Record, ranges: bool = True) -> list[dict[str, str]]:
  """Lay out the headline statistics that were measured, each beside its nulls, with the ranges of their draws or without."""
  measured = [line for line in HEADLINES if line[0] in statistics and _is_measured(statistics[line[0]])]
  return list(_rows(statistics, measured, ranges))


def _is_measured(entry: Record) -> bool:
  """Tell whether there is a value, or a null that has one: groups that are left out have neither."""
  return entry["value"] is not None or any(d is not None for n in NULLS for d in entry.get(n, {}).get("draws", ()))


def _rows(statistics: Record, lines: Sequence[tuple[str, str, bool]], ranges: bool) -> Iterator[dict[str, str]]:
  for name, words, share in lines:
    entry = statistics[name]
    row = {"statistic": words, "update": number(entry["value"], share)}
    for null in NULLS:
      row |= {f"{null} null": _spread(entry.get(null), share, ranges), f"beyond {null}": beyond(entry, null, share)}
    yield row


def _spread(against: Record | None, share: bool, ranges: bool) -> str:
  """Write a null's mean, and where they are asked for and can be seen the lowest and the highest of its draws."""
  if against is None:
    return "–"
  draws = [d for d in against["draws"] if d is not None]
  if against["mean"] is None:
    return UNDEFINED
  low, high = number(min(draws), share), number(max(draws), share)
  mean = number(against["mean"], share)
  return mean if low == high or not ranges else f"{mean} ({low}–{high})"


def notes(record: Record) -> list[str]:
  """List what the numbers are made of, and what forbids reading them as they stand."""
  options = record["options"]
  out = [
    f"{record['elements']:,} weights in {record['tensors_compared']} tensors, of which {record['matrices']} are matrices. Norms, "
    "sparsity and overlap are over all weights; the others are medians over the matrices that have an update.",
    "No nulls were drawn (--draws=0), so nothing here tells an update's structure from rounding."
    if not options["draws"]
    else f"Nulls: the update permuted within each tensor, and a Gaussian one of its norm, {options['draws']} draws each, seed "
    f"{options['seed']}, added to the weights before and rounded as they are. Beyond a null is what lies outside the 99% "
    "prediction interval of its draws; how far is told in points of percentages, and as a ratio.",
  ]
  out.extend(
    f"The run {run['name']} began with {run['start']}, and not with {record['before']['name']}: unless these hold the same weights, what "
    "is told here is not what it moved."
    for run in record["elsewhere"]
  )
  if "fp32" not in record["kinds"] and options["draws"]:
    out.append(
      "The weights after training are stored rounded, so the update before rounding is not known, however fine the weights before "
      "it are: the Gaussian null has the norm that is seen after rounding, and the permuted one permutes what is left of the update, "
      "and is rounded once more."
    )
  for kind in record["kinds"]:
    changed = record["changed"][kind]
    if not changed:
      out.append(
        f"{kind}: no weight differs. Sparsity is 1, and energies, ranks, projections, coverage and overlap of no update are undefined."
      )
    elif changed < record["tensors_compared"]:
      out.append(f"{kind}: {record['tensors_compared'] - changed} tensors have no update.")
  if record["inexact_spectra"]:
    out.append(f"The spectra of {record['inexact_spectra']} matrices are randomised estimates, within about 1%.")
  if options["draws"] == 1:
    out.append("A single draw of a null has no spread, so nothing is said to be beyond it: give --draws=3 or more.")
  return out


def write(record: Record, folder: str | pathlib.Path) -> pathlib.Path:
  """Write index.html, which holds everything, and its pictures as PNG files; return the page's path.

  Raises:
    InputError: the folder cannot be made.
  """
  folder = page.make_folder(folder)
  pictures = []
  with matplotlib.rc_context(plotting.RC):
    for name, title, caption, figure in geometry_figures.draw(record):
      path = folder / f"{name}.png"
      figure.savefig(path, metadata={"Software": None})
      pictures.append(Picture(path, title, caption, round(88 * figure.get_figwidth())))
  out = folder / "index.html"
  out.write_text(_render(record, pictures), encoding="utf-8")
  return out


def _render(record: Record, pictures: Sequence[Picture]) -> str:
  names = [record[side]["name"] + _step(record[side]) for side in ("before", "after")]
  against = f", against {record['against']['name']}{_step(record['against'])}" if record["against"] else ""
  kinds = "\n".join(
    f"<h2>{html.escape(title_of(record, kind))}</h2>\n{page.table(rows(record['whole'][kind]))}"
    for kind in record["kinds"]
  )
  return _PAGE.format(
    style=page.STYLE,
    lead=html.escape(f"From {names[0]} to {names[1]}{against}."),
    kinds=kinds,
    figures="\n".join(map(page.figure, pictures)),
    blocks="\n".join(_group_table(record, "blocks", kind, "kind of block") for kind in record["kinds"]),
    layers="\n".join(_group_table(record, "layers", kind, "layer") for kind in record["kinds"])
    if record["layers"]
    else "",
    every="\n".join(_every(record, kind) for kind in record["kinds"]),
    notes="".join(f"<li>{html.escape(note)}</li>" for note in notes(record)),
  )


def _step(source: Record) -> str:
  return f" (step {source['step']})" if source["step"] is not None else ""


_OF_GROUPS = (
  "relative_norm",
  "zero",
  "sparsity@1e-05",
  "top_energy@16",
  "stable_rank",
  "projection@10%",
  "principal_coverage@10%",
  "low_coverage@10%",
)


def _group_table(record: Record, groups: str, kind: str, head: str) -> str:
  """A row for every block or layer: values, with the permuted null's mean in brackets."""
  lines = [h for h in HEADLINES if h[0] in _OF_GROUPS]
  table = []
  for name, statistics in record[groups].items():
    row = {f"{head}, {kind}": name}
    for key, words, share in lines:
      entry = statistics[kind][key]
      if _is_measured(entry):
        mean = entry.get("permuted", {}).get("mean")
        row[words] = number(entry["value"], share) + (f" ({number(mean, share)})" if mean is not None else "")
    table.append(row)
  return page.table(table)


def _every(record: Record, kind: str) -> str:
  """All statistics of the whole model, as the record names them."""
  lines = [(name, name, "rank" not in name and "lift" not in name) for name in record["whole"][kind]]
  found = list(_rows(record["whole"][kind], [h for h in lines if _is_measured(record["whole"][kind][h[0]])], True))
  return f"<details><summary>All statistics, {html.escape(kind)}</summary>{page.table(found)}</details>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>opd_jax geometry</title>
<style>
{style}</style></head><body>
<h1>Which weights moved?</h1>
<p class="lead">{lead}</p>
{kinds}
{figures}
<h2>By kind of block</h2>
<p>In brackets: the mean of the permuted null.</p>
{blocks}
<h2>By layer</h2>
{layers}
<h2>How to read this</h2>
<ul>{notes}</ul>
{every}
</body></html>
"""
