"""Responses with every token marked by how far student and teacher are apart there: for a page, and for a terminal.

What a model writes is hostile: it is escaped, and characters that no reader would see, or that turn the text around, are
written by their number.
"""

import html
import math
import unicodedata
from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from opd_jax.data.scored import Numbers, ScoredResponse, Top

BANDS = (0.01, 0.1, 0.5, 2.0)  # nats; a token's band is the number of these that its divergence reaches
_MARKS = ("not underlined", "dotted", "dashed", "solid", "double")
_STYLES = ("", "dim underline", "underline", "bold underline", "bold reverse")  # of a terminal, by band
PLOT = (300, 84, 14)  # of the bars: pixels wide and high, and high above them for the number
MOST_BARS = 600  # positions of a picture; of a longer response several share a bar, which shows the largest
MOST_ROWS = 2000  # tokens of a table
FARTHEST = 5  # tokens that a terminal lists


def band(value: float | None) -> int:
  """The band of a divergence, 0 to 4; what is not finite is in the last."""
  return len(BANDS) if value is None else sum(value >= least for least in BANDS)


def visible(text: str) -> str:
  """Write what cannot be seen, or would turn the text around, by its number; line breaks and tabs get a sign beside them."""

  def one(c: str) -> str:
    if c in "\n\t":
      return {"\n": "⏎\n", "\t": "⇥\t"}[c]
    if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
      return f"⟨U+{ord(c):04X}⟩"
    return c

  return "".join(map(one, text))


def page(responses: Sequence[ScoredResponse], title: str, notes: Sequence[str] = (), more: str = "") -> str:
  """Write a page that needs nothing outside itself, and no script.

  Args:
    more: HTML that stands behind the responses, with its own style.
  """
  return _PAGE.format(
    title=html.escape(visible(title)),
    style=STYLE,
    notes="".join(f"<p>{html.escape(visible(note))}</p>" for note in notes),
    body=sections(responses) + more,
  )


def sections(responses: Sequence[ScoredResponse]) -> str:
  """Write the legend, and a section for each prompt with all responses to it; `STYLE` has to be in the page."""
  parts = [_legend()]
  for (prompt, _), group in groupby(responses, lambda response: (response.prompt, tuple(response.images))):
    found = list(group)
    top = max((x for response in found for x in _finite(response.divergence)), default=0.0)
    parts.append(f'<section class="prompt"><h3>Prompt</h3><pre class="response">{html.escape(visible(prompt))}</pre>')
    parts.append(_images(found[0]))
    parts += [_response(response, top) for response in found]
    parts.append("</section>")
  return "\n".join(parts)


def _images(response: ScoredResponse) -> str:
  """Write what was seen of the prompt's images, and what the teacher saw instead."""
  parts = []
  for caption, images in (("seen", response.images), ("seen by the teacher", response.teacher_images)):
    if images:
      drawn = "".join(f'<img alt="{caption}" src="{html.escape(address)}">' for address in images)
      parts.append(f"<figure>{drawn}<figcaption>{caption}</figcaption></figure>")
  return f'<div class="images">{"".join(parts)}</div>' if parts else ""


def _legend() -> str:
  edges = ["below 0.01", *(f"from {least:g}" for least in BANDS)]
  shown = " ".join(
    f'<span class="t b{i}">{html.escape(edge)} ({mark})</span>'
    for i, (edge, mark) in enumerate(zip(edges, _MARKS, strict=True))
  )
  return (
    f'<p class="legend">Divergence of student and teacher at a token, in nats, given what stood there when it was drawn: {shown}. '
    "Point at a token, or open the table, for the numbers and for what each model would have written.</p>"
  )


def _response(response: ScoredResponse, top: float) -> str:
  """Write one response: the text, the bars beside it, and the table."""
  tokens = "".join(
    f'<span class="t b{_band_at(response, i)}" title="{html.escape(_hover_text(response, i))}">{html.escape(visible(token))}</span>'
    for i, token in enumerate(response.tokens)
  )
  return (
    f"<article><h4>{html.escape(visible(response.of or 'response'))}</h4>"
    f'<p class="sum">{html.escape(summary(response))}</p>{_teacher_prompt(response)}'
    f'<div class="beside"><div class="response">{tokens}</div>{_bars(response.divergence, top)}</div>'
    f"<details><summary>Token by token</summary>{_table(response)}</details></article>"
  )


def _teacher_prompt(response: ScoredResponse) -> str:
  """Write what the teacher read, where it is not what the student did."""
  if response.teacher_prompt is None:
    return ""
  if not response.teacher_prompt:
    return '<p class="sum">There was nothing to tell the teacher: this response is not trained.</p>'
  shown = html.escape(visible(response.teacher_prompt))
  return f'<details><summary>What the teacher read</summary><pre class="response">{shown}</pre></details>'


def summary(response: ScoredResponse) -> str:
  """Write a response's length, its mean divergence and where it is largest, as one line."""
  n = len(response.tokens)
  end = "ended by a stop token" if response.ended else "cut"
  finite = _finite(response.divergence)
  if not finite:
    return f"{n} tokens, {end}"
  values = [math.inf if x is None else x for x in response.divergence or ()]
  at = values.index(max(values))
  largest = "not finite" if values[at] == math.inf else f"{values[at]:.3f}"
  return (
    f"{n} tokens, {end}; {response.kind.replace('_', ' ').replace('kl', 'KL')} {sum(finite) / len(finite):.4f} nats a token, largest {largest} at "
    f"token {at + 1}"
  )


def _band_at(response: ScoredResponse, i: int) -> int:
  return 0 if response.divergence is None else band(response.divergence[i])


def _finite(values: Numbers | None) -> list[float]:
  return [x for x in values or () if x is not None]


def _number(values: Numbers | None, i: int) -> str:
  """A number of a token; a dash where it is not finite, or not known."""
  return "–" if values is None or values[i] is None else f"{values[i]:.4g}"


def _probability(values: Numbers | None, i: int) -> str:
  value = values[i] if values is not None else None
  return "–" if value is None else f"{math.exp(min(value, 0.0)):.4f}"


def _alternatives(top: Top | None, i: int) -> str:
  return ", ".join(f"{visible(token)!r} {p:.3f}" for token, p in (top[i] if top else ()))


def _hover_text(response: ScoredResponse, i: int) -> str:
  """The text that appears where a token is pointed at."""
  lines = [
    f"token {i + 1}: {visible(response.tokens[i])!r}",
    f"divergence {_number(response.divergence, i)} nats",
    f"probability: student {_probability(response.logprob, i)}, teacher {_probability(response.teacher_logprob, i)}",
  ]
  for name, top in (("student", response.student_top), ("teacher", response.teacher_top)):
    if chosen := _alternatives(top, i):
      lines.append(f"{name}: {chosen}")
  return "\n".join(lines)


def _bars(values: Numbers | None, top: float) -> str:
  """Draw the divergence by position, up to the largest of all responses to the prompt."""
  if not values or top <= 0:
    return ""
  width, height, above = PLOT
  step = -(-len(values) // MOST_BARS)
  largest = [max((top if x is None else x) for x in values[i : i + step]) for i in range(0, len(values), step)]
  each = width / len(largest)
  bars = []
  for i, x in enumerate(largest):
    tall = max(0.0, min(x / top, 1.0)) * (height - above)
    bars.append(
      f'<rect class="f{band(x)}" x="{i * each:.2f}" y="{height - tall:.2f}" width="{max(each * 0.86, 0.3):.2f}" '
      f'height="{tall:.2f}"><title>token {i * step + 1}: {x:.4g} nats</title></rect>'
    )
  return (
    f'<svg role="img" aria-label="divergence by position" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    f'<text x="0" y="10">up to {top:.3g} nats, by position</text>{"".join(bars)}'
    f'<line x1="0" y1="{height}" x2="{width}" y2="{height}"/></svg>'
  )


def _table(response: ScoredResponse) -> str:
  heads = ("token", "text", "divergence", "p student", "p teacher", "entropy student", "entropy teacher")
  heads += ("student's likeliest", "teacher's likeliest")
  rows = []
  for i, token in enumerate(response.tokens[:MOST_ROWS]):
    cells = (
      str(i + 1),
      repr(visible(token)),
      _number(response.divergence, i),
      _probability(response.logprob, i),
      _probability(response.teacher_logprob, i),
      _number(response.student_entropy, i),
      _number(response.teacher_entropy, i),
      _alternatives(response.student_top, i),
      _alternatives(response.teacher_top, i),
    )
    rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
  more = len(response.tokens) - len(rows)
  rest = f"<p>{more} more tokens are in the file.</p>" if more else ""
  head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
  return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>{rest}'


def show(responses: Sequence[ScoredResponse], console: Console | None = None) -> None:
  """Print responses with their tokens marked, and of each the tokens where the models are farthest apart."""
  console = console or Console(highlight=False)
  edges = ("below 0.01", *(f"from {least:g}" for least in BANDS))
  legend = Text("nats: ")
  for edge, style in zip(edges, _STYLES, strict=True):
    legend.append(edge, style).append("  ")
  console.print(legend)
  for prompt, group in groupby(responses, lambda response: response.prompt):
    console.print(Text(f"\nprompt: {visible(prompt)}"))
    for response in group:
      _show_one(response, console)


def _show_one(response: ScoredResponse, console: Console) -> None:
  console.print(Text(f"\n{visible(response.of)}", "bold").append(f"  {summary(response)}", "not bold"))
  text = Text("  ")
  for i, token in enumerate(response.tokens):
    text.append(visible(token), _STYLES[_band_at(response, i)])
  console.print(text)
  values = response.divergence or []
  order = sorted(range(len(values)), key=lambda i: -math.inf if values[i] is None else -values[i])[:FARTHEST]  # pyright: ignore[reportOptionalOperand]
  if not order:
    return
  table = Table(box=None, padding=(0, 2, 0, 2))
  for head in ("token", "text", "nats", "student", "teacher"):
    table.add_column(head, justify="right" if head in ("token", "nats") else "left", overflow="fold")
  for i in order:
    tops = (_alternatives(top and [top[i][:2]], 0) for top in (response.student_top, response.teacher_top))
    table.add_row(str(i + 1), *map(Text, (repr(visible(response.tokens[i])), _number(values, i), *tops)))
  console.print(table)


STYLE = """.t { unicode-bidi: isolate; border-radius: 2px; }
.b1 { background: #fff6cf; text-decoration: underline dotted; }
.b2 { background: #ffe2a0; text-decoration: underline dashed; }
.b3 { background: #ffbd7d; text-decoration: underline solid; }
.b4 { background: #ff9a86; text-decoration: underline double; }
.f0, .f1 { fill: #c9b458; } .f2 { fill: #d99a1e; } .f3 { fill: #d5661b; } .f4 { fill: #b3261e; }
.response { font: .9rem/1.7 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
.beside { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start; }
.beside > .response { flex: 1 1 28rem; min-width: 0; } .beside > svg { flex: 0 0 auto; max-width: 100%; }
svg text { font: 11px system-ui, sans-serif; fill: #444; } svg line { stroke: #888; }
.images { display: flex; flex-wrap: wrap; gap: 1rem; } .images figure { margin: .4rem 0; } .images figcaption { font-size: .8rem; color: #444; }
.images img { display: block; min-width: 144px; image-rendering: pixelated; border: 1px solid #ccc; }
section.prompt { border-top: 2px solid #888; margin: 1.6rem 0; } h3, h4 { margin: .9rem 0 .2rem; font-size: 1rem; }
.sum, .legend { font-size: .85rem; color: #444; margin: .1rem 0 .5rem; }
details td, details th { text-align: left; white-space: pre-wrap; overflow-wrap: break-word; }
"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; }} summary {{ cursor: pointer; font-size: .85rem; }} .wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .2rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; }}
{style}</style></head><body>
<h1>{title}</h1>
{notes}
{body}
</body></html>
"""
