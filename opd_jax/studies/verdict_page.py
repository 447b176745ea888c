"""The page of a study: the verdicts first, then what they rest on; also as JSON and on a terminal."""

import base64
import collections
import html
import json
import math
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from opd_jax.reports import page as report_page
from opd_jax.reports import plotting
from opd_jax.studies.verdicts import MISSING, NOT_SUPPORTED, SUPPORTED, UNDECIDED, Status, Verdict

MARKS: dict[Status, str] = {SUPPORTED: "✓", NOT_SUPPORTED: "✗", UNDECIDED: "?", MISSING: "–"}
MAX_WIDTH = 110  # columns of the terminal
NOTE = (
  "Intervals are over n seeds, at 95% where the rule names no other level. Of times, where a run never arrives, they go "
  "from the smallest to the largest instead: of five these hold the median with 94%."
)


class Section(NamedTuple):
  """A part of the page: a text, with empty lines between its paragraphs, a picture, where one could be drawn, and a table."""

  title: str
  text: str
  figure: Figure | None = None
  rows: Sequence[dict[str, str]] = ()  # of the table, by the heads of its columns


def write(
  title: str, intro: str, verdicts: Sequence[Verdict], sections: Sequence[Section], folder: str | pathlib.Path
) -> pathlib.Path:
  """Write index.html, which holds everything, the pictures beside it, and verdicts.json; return the page's path.

  Raises:
    InputError: the folder cannot be made.
  """
  folder = report_page.make_folder(folder)
  (folder / "verdicts.json").write_text(json.dumps([_record(v) for v in verdicts], indent=2, ensure_ascii=False))
  page = folder / "index.html"
  page.write_text(
    _PAGE.format(
      title=html.escape(title),
      style=report_page.STYLE,
      intro=_paragraphs(intro),
      count=html.escape(tally(verdicts)),
      note=html.escape(NOTE),
      verdicts=report_page.table([_cells(v) for v in verdicts], "text verdicts"),
      sections="\n".join(_section(s, folder) for s in sections),
    ),
    encoding="utf-8",
  )
  return page


def tally(verdicts: Sequence[Verdict]) -> str:
  """Count the verdicts: 'Of 6 claims: 3 supported, 1 not supported, 2 undecided.'"""
  found = collections.Counter(v.status for v in verdicts)
  counts = [f"{found[status]} {status}" for status in MARKS if found[status]]
  return f"Of {len(verdicts)} claims: {', '.join(counts)}." if counts else "No claim was judged."


def terminal(verdicts: Sequence[Verdict], console: Console | None = None) -> None:
  """Print the verdicts as a table."""
  console = console or Console()
  width = min(console.width, MAX_WIDTH)
  table = Table(box=box.SIMPLE_HEAD, show_edge=False, show_lines=True, padding=(0, 1, 0, 0))
  for head, ratio in (("claim", 4), ("verdict", None), ("numbers (intervals)", 7)):
    table.add_column(head, overflow="fold", ratio=ratio, no_wrap=ratio is None)
  for v in verdicts:
    table.add_row(v.statement or v.claim, _verdict(v), _numbers(v))
  console.print(table, width=width, markup=False, highlight=False)
  console.print(f"{tally(verdicts)}\n{NOTE}\n", width=width, markup=False, highlight=False)


def _verdict(v: Verdict) -> str:
  return f"{MARKS[v.status]} {v.status}"


def _numbers(v: Verdict) -> str:
  """The sentence of a verdict, and a line for each of its numbers."""
  return "\n".join([v.because, *(f"• {e.label}: {e.text}" for e in v.evidence)])


def _cells(v: Verdict) -> dict[str, str]:
  return {
    "claim": v.statement or v.claim,
    "verdict": _verdict(v),
    "numbers (intervals, n seeds)": _numbers(v),
    "rule": v.rule,
  }


def _record(v: Verdict) -> dict:
  """Convert a verdict for JSON, which has no infinity: 'inf', '-inf' and 'nan' are strings."""
  evidence = []
  for e in v.evidence:
    estimate = {key: x if math.isfinite(x) else str(x) for key, x in e.estimate._asdict().items()}
    evidence.append({"label": e.label, "unit": e.unit} | estimate)
  keys = ("claim", "statement", "status", "because", "rule")
  return {key: getattr(v, key) for key in keys} | {"evidence": evidence}


def _section(section: Section, folder: pathlib.Path) -> str:
  parts = [f"<h2>{html.escape(section.title)}</h2>", _paragraphs(section.text)]
  if section.figure is not None:
    parts.append(_image(section.title, section.figure, folder))
  if section.rows:
    parts.append(report_page.table(section.rows))
  return "\n".join(parts)


def _image(title: str, figure: Figure, folder: pathlib.Path) -> str:
  path = folder / f"{re.sub(r'[^a-z0-9]+', '_', title.lower()).strip('_')}.png"
  with matplotlib.rc_context(plotting.RC):
    figure.savefig(path, metadata={"Software": None})
  data, width = base64.b64encode(path.read_bytes()).decode(), round(88 * figure.get_figwidth())
  return f'<figure><img alt="{html.escape(title)}" width="{width}" src="data:image/png;base64,{data}"></figure>'


def _paragraphs(text: str) -> str:
  return "\n".join(f"<p>{html.escape(part.strip())}</p>" for part in re.split(r"\n\s*\n", text) if part.strip())


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}
p {{ max-width: 60rem; }}
.verdicts td {{ white-space: pre-line; }}
.verdicts td:nth-child(2) {{ white-space: nowrap; font-weight: 600; }}
.verdicts td:nth-child(3) {{ min-width: 22rem; max-width: 32rem; }}
</style></head><body>
<h1>{title}</h1>
{intro}
<h2>Verdicts</h2>
<p class="lead">{count}</p>
<p>{note}</p>
{verdicts}
{sections}
</body></html>
"""
