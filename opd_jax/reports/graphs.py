"""Rollouts that branch as pictures: a column for every layer of steps, a line for every step, a circle for every state.

What a model writes is hostile: it is escaped. Texts stand in <title>, which browsers show where the pointer rests.
"""

import html
from collections.abc import Sequence

from opd_jax.data.branched import BranchedResponses, Step
from opd_jax.reports.tokens import visible

MOST_GRAPHS = 4  # of the first and of the last step that are shown
MOST_NODES = 400  # of a graph; those behind are left out
COLUMN, ROW, MARGIN, RADIUS = 150, 22, 24, 7  # pixels

LEGEND = (
  "A circle is the state behind a step, filled by how many of the responses behind it are right, from white (none) to dark (all); a square is a "
  "response's end. A line is a step, blue where its advantage is above 0 and red where it is below, the wider the larger. Dashed: states that "
  "are one. Rest the pointer on anything to read it."
)


def sections(graphs: Sequence[BranchedResponses]) -> str:
  """Write a picture of each of the first and of the last step's graphs; `STYLE` has to be in the page."""
  steps = sorted({graph.step for graph in graphs})
  shown = [g for step in dict.fromkeys((*steps[:1], *steps[-1:])) for g in _of_step(graphs, step)]
  return f'<p class="legend">{html.escape(LEGEND)}</p>' + "\n".join(map(_picture, shown))


def framed(graphs: Sequence[BranchedResponses]) -> str:
  """Write the same with a title and its style, for pages that have none."""
  return f"<style>{STYLE}</style><h2>First and last training rollouts, as graphs</h2>{sections(graphs)}"


def _of_step(graphs: Sequence[BranchedResponses], step: int) -> list[BranchedResponses]:
  return [graph for graph in graphs if graph.step == step][:MOST_GRAPHS]


def _picture(graph: BranchedResponses) -> str:
  steps = graph.steps[:MOST_NODES]
  x, y = _places(steps)
  lines = [_line(step, x, y, i) for i, step in enumerate(steps) if step.parent >= 0]
  same = [
    f'<path class="same" d="M{x[step.state]} {y[step.state]} Q{(x[step.state] + x[i]) / 2 + 26} {(y[step.state] + y[i]) / 2} {x[i]} {y[i]}"/>'
    for i, step in enumerate(steps)
    if step.state != i
  ]
  nodes = [_node(step, x[i], y[i]) for i, step in enumerate(steps)]
  width, height = max(x) + COLUMN // 2, max(y) + MARGIN
  ends = [step for step in steps if step.reward is not None]
  right = sum(step.reward or 0 for step in ends) / max(1, len(ends))
  left_out = f", the first {len(steps)} of {len(graph.steps)} states" if len(steps) < len(graph.steps) else ""
  title = (
    f"{visible(graph.prompt)} (training step {graph.step}, {len(ends)} responses, mean reward {right:.2f}{left_out})"
  )
  return (
    f'<h4>{html.escape(title)}</h4><div class="wide"><svg class="graph" width="{width}" height="{height}" '
    f'viewBox="0 0 {width} {height}">{"".join([*same, *lines, *nodes])}</svg></div>'
  )


def _places(steps: Sequence[Step]) -> tuple[list[int], list[float]]:
  """Choose where states stand: by depth from left to right, leaves one below the other, others in the middle of their children."""
  children: list[list[int]] = [[] for _ in steps]
  depth = [0] * len(steps)
  for i, step in enumerate(steps):
    if step.parent >= 0:
      children[step.parent].append(i)
      depth[i] = depth[step.parent] + 1
  order, waiting = [], [0]
  while waiting:
    order.append(node := waiting.pop())
    waiting += reversed(children[node])
  y = [0.0] * len(steps)
  leaves = [node for node in order if not children[node]]
  for row, node in enumerate(leaves):
    y[node] = MARGIN + row * ROW
  for node in reversed(order):
    if children[node]:
      y[node] = sum(y[child] for child in children[node]) / len(children[node])
  return [MARGIN + d * COLUMN for d in depth], y


def _line(step: Step, x: Sequence[int], y: Sequence[float], i: int) -> str:
  a, b = (x[step.parent], y[step.parent]), (x[i], y[i])
  kind = "better" if step.advantage > 0 else "worse" if step.advantage < 0 else "equal"
  note = (
    f"{visible(step.text)}\nadvantage {step.advantage:+.2f} = correctness {step.correctness:+.2f} and efficiency {step.efficiency:+.2f}\n"
    f"{step.tokens} tokens"
  )
  wide = 1 + min(4.0, 1.5 * abs(step.advantage))
  return (
    f'<line class="{kind}" x1="{a[0]}" y1="{a[1]:g}" x2="{b[0]}" y2="{b[1]:g}" stroke-width="{wide:.1f}">'
    f"<title>{html.escape(note)}</title></line>"
  )


def _node(step: Step, x: int, y: float) -> str:
  dark = 255 - round(190 * min(1.0, max(0.0, step.score)))
  note = f"{visible(step.text)}\nscore {step.score:.2f}"
  if step.reward is not None:
    note += f"\nreward {step.reward:g}, {'ended' if step.ended else 'cut'}"
  if step.summary:
    note += f"\nsummary: {visible(step.summary)}"
  fill, title = f'fill="rgb({dark},{dark},{dark})"', f"<title>{html.escape(note)}</title>"
  if step.reward is None:
    return f'<circle cx="{x}" cy="{y:g}" r="{RADIUS}" {fill}>{title}</circle>'
  return f'<rect x="{x - RADIUS}" y="{y - RADIUS:g}" width="{2 * RADIUS}" height="{2 * RADIUS}" {fill}>{title}</rect>'


STYLE = """svg.graph line.better { stroke: #1f77b4; } svg.graph line.worse { stroke: #d62728; } svg.graph line.equal { stroke: #bbb; }
svg.graph circle, svg.graph rect { stroke: #333; } svg.graph path.same { fill: none; stroke: #888; stroke-dasharray: 3 3; }
"""
