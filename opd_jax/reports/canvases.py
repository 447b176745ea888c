"""Rollouts of masked diffusion models as grids: a row for every denoising step, a column for every position of the canvas.

What a model writes is hostile: it is escaped, see tokens.py, whose bands of divergence colour the cells.
"""

import html
from collections.abc import Sequence

from opd_jax.data.denoised import DenoisedResponse
from opd_jax.reports.tokens import band, visible

MOST_RESPONSES = 6  # of the first and of the last step that are shown
MOST_POSITIONS = 256  # of a grid; those behind are left out
HIDDEN = "·"  # a mask

LEGEND = (
  "A row is the canvas that the model read at a denoising step, a column a position; · is a mask. Above: the step that committed each position, "
  "darker the later it was. Coloured, in the bands of the page: where "
  "student and teacher were compared, by their divergence. Underlined twice: what the step committed. In italics: what the teacher was shown. Pale rows are not learned from."
)


def sections(responses: Sequence[DenoisedResponse]) -> str:
  """Write a grid for each of the first and of the last step's responses; `STYLE` has to be in the page."""
  steps = sorted({response.step for response in responses})
  shown = [r for step in dict.fromkeys((*steps[:1], *steps[-1:])) for r in _of_step(responses, step)]
  return f'<p class="legend">{html.escape(LEGEND)}</p>' + "\n".join(map(_grid, shown))


def _of_step(responses: Sequence[DenoisedResponse], step: int) -> list[DenoisedResponse]:
  return [response for response in responses if response.step == step][:MOST_RESPONSES]


def _grid(response: DenoisedResponse) -> str:
  columns = min(len(response.tokens), MOST_POSITIONS)
  rows = [_committed(response, columns)]
  for t, (compared, revealed) in enumerate(zip(response.divergence, response.revealed, strict=True)):
    cells = (_cell(response, t, i, compared, revealed) for i in range(columns))
    left_out = "" if response.counted[t] or not response.learned else ' class="left-out"'
    rows.append(f"<tr{left_out}><th>{t}</th>{''.join(cells)}</tr>")
  learned = "learned from" if response.learned else "not accepted"
  left_out = f", the first {columns} positions" if columns < len(response.tokens) else ""
  title = f"{visible(response.prompt)} (training step {response.step}, {learned}{left_out})"
  return (
    f'<h4>{html.escape(title)}</h4><div class="wide"><table class="canvas"><tbody>{"".join(rows)}</tbody></table></div>'
  )


def _committed(response: DenoisedResponse, columns: int) -> str:
  """Write the row of the steps at which positions were committed, coloured by them."""
  last = max(1, len(response.divergence) - 1)
  cells = "".join(
    f'<td style="background:hsl(205 55% {96 - 46 * at / last:.0f}%)">{at}</td>'
    for at in response.committed_at[:columns]
  )
  return f'<tr class="committed"><th>committed</th>{cells}</tr>'


def _cell(
  response: DenoisedResponse, t: int, i: int, compared: dict[int, float | None], revealed: Sequence[int]
) -> str:
  committed = response.committed_at[i]
  kinds = [f"b{band(compared[i])}"] if i in compared else []
  kinds += ["now"] if committed == t else []
  kinds += ["shown"] if i in revealed else []
  token = visible(response.tokens[i])
  text = token if committed < t or i in revealed or committed == t else HIDDEN
  value = compared.get(i)
  note = html.escape(f"{token}: {value} nats" if i in compared else token)
  return (
    f'<td class="{" ".join(kinds)}" title="{note}">{html.escape(text)}</td>'
    if kinds
    else f"<td>{html.escape(text)}</td>"
  )


STYLE = """table.canvas td { padding: .05rem .3rem; text-align: center; font-family: ui-monospace, monospace; border: 1px solid #eee; }
table.canvas td.now { text-decoration: underline double; font-weight: 600; } table.canvas td.shown { font-style: italic; color: #666; }
table.canvas tr.left-out td { opacity: .45; }
table.canvas tr.committed td { color: #111; font-size: .8em; }
table.canvas th { color: #777; font-weight: 400; }
"""
