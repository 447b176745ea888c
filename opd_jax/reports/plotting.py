"""What the pictures of a report share: an arm's style, lines over its runs, axes and legends.

Every arm keeps its colour, line style and marker through all pictures. Colours are Okabe and Ito's, which
colour-blind readers can tell apart; style and marker do the same work without colour.
"""

import math
import textwrap
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any, NamedTuple, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from opd_jax.reports.comparison import Arm
from opd_jax.reports.runs import Run

GREY = "#555555"
TICKS = [1, 2, 5, 10]
RC: Any = {
  "font.size": 11,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "axes.axisbelow": True,
  "axes.titlesize": 11,
  "axes.titleweight": "bold",
  "axes.titlelocation": "left",
  "grid.color": "#e4e4e4",
  "grid.linewidth": 0.7,
  "legend.frameon": False,
  "legend.handlelength": 3.4,
  "legend.columnspacing": 1.6,
  "lines.linewidth": 1.9,
  "lines.markersize": 5.5,
  "hatch.linewidth": 0.6,
  "savefig.dpi": 150,
}
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C510A")
_DASHES = ("-", (0, (6, 2)), (0, (6, 2, 1.5, 2)), (0, (2, 1.5)), (0, (9, 2, 1.5, 2, 1.5, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "<", "p", ">")
_TARGET: Any = {"color": GREY, "linestyle": (0, (4, 3)), "linewidth": 0.9}

T = TypeVar("T")
Records = Callable[[Run], list[dict[str, Any]]]  # of a run: its training records, or its evaluations


class Style(NamedTuple):
  """The colour, marker and line of an arm, the same in every picture."""

  color: str
  linestyle: Any
  marker: str
  shift: float  # of the markers along the line, so that arms on top of each other show both

  @property
  def line(self) -> dict[str, Any]:
    """The style as keyword arguments of matplotlib's lines."""
    edge = {"markeredgecolor": "white", "markeredgewidth": 0.6}
    return {"color": self.color, "linestyle": self.linestyle, "marker": self.marker, **edge}


def styled(arms: Sequence[T]) -> list[tuple[T, Style]]:
  """Pair arms, or whatever is drawn, with their styles."""
  styles = zip(cycle(_COLOURS), cycle(_DASHES), cycle(_MARKERS), strict=True)
  return [(arm, Style(*style, i / len(arms))) for i, (arm, style) in enumerate(zip(arms, styles, strict=False))]


def panels(width: float, height: float, rows: int, columns: int, **options) -> tuple[Figure, list[Axes]]:
  """Make a figure of so many inches, and its axes row by row; `options` go to matplotlib's subplots."""
  figure = Figure(figsize=(width, height), layout="constrained")
  figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)  # pyright: ignore
  return figure, list(figure.subplots(rows, columns, squeeze=False, **options).flat)


def lines(ax: Axes, arms: Sequence[Arm], records: Records, x: str, y: str, every_point: bool = False) -> None:
  """Draw for each arm the mean over its runs, and each run thin where there are several and they differ.

  Args:
    records: picks a run's training records or evaluations.
    x, y: fields of a record.
    every_point: mark all points where they are few.
  """
  for arm, style in styled(arms):
    at, mean = means(arm, records, x, y)
    for run in arm.runs:
      known = [r for r in records(run) if r.get(y) is not None]
      single = [r[x] for r in known], [r[y] for r in known]
      if len(arm.runs) > 1 and single != (at, mean):
        ax.plot(*single, color=style.color, linewidth=0.7, alpha=0.45, zorder=1.5)
    every = 1 if every_point and len(at) <= 25 else marker_every(len(at), 9)
    ax.plot(at, mean, **style.line, markevery=(int(style.shift * every), every))


def means(arm: Arm, records: Records, x: str, y: str) -> tuple[list[float], list[float]]:
  """Average x and y over the runs that have them, at the steps that all of these have: a run that stopped early bends no mean."""
  tables = [{r["step"]: r for r in records(run) if r.get(y) is not None} for run in arm.runs]
  tables = [table for table in tables if table]
  common = sorted(set.intersection(*map(set, tables))) if tables else []

  def mean(key: str) -> list[float]:
    return [float(np.mean([table[step][key] for table in tables])) for step in common]

  return mean(x), mean(y)


def marker_every(points: int, shown: int) -> int:
  """The distance between markers, so that about `shown` of a line's points have one."""
  return max(1, round(points / shown))


def from_zero(ax: Axes) -> None:
  """Begin the x axis left of 0, so that the axis does not cut the first markers."""
  right = ax.dataLim.xmax if 0 < ax.dataLim.xmax < math.inf else 1  # infinite where nothing is drawn
  ax.set_xlim(-0.025 * right, 1.04 * right)


def step_axis(ax: Axes) -> None:
  """Label an x axis of steps, from 0."""
  from_zero(ax)
  ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
  ax.set_xlabel("step")


def low_at_zero(ax: Axes) -> None:
  """Begin the y axis just below 0 where nothing drawn lies below, so that the axis does not cut markers at 0."""
  low, high = ax.dataLim.ymin, ax.dataLim.ymax
  if 0 <= low <= high < math.inf:  # infinite where nothing is drawn
    top = high or 1.0
    ax.set_ylim(-0.03 * top, 1.06 * top)


def time_axis(ax: Axes, arms: Sequence[Arm]) -> None:
  """Label an x axis of training seconds in the unit that fits them."""
  divisor, unit = time_unit(max(run.elapsed for arm in arms for run in arm.runs))
  ax.set_xlabel(f"training time ({unit})")
  right = ax.get_xlim()[1]
  # Ticks are chosen in the unit shown: round minutes, not round hundreds of seconds.
  ticks = MaxNLocator(7, steps=TICKS).tick_values(0, right / divisor)
  ticks = [t for t in ticks if 0 <= t * divisor <= right]
  ax.set_xticks([t * divisor for t in ticks], [f"{t:g}" for t in ticks])


def time_unit(longest: float) -> tuple[float, str]:
  """The unit that fits so many seconds: the seconds in it, and its name."""
  if longest < 600:
    return 1.0, "seconds"
  return (60.0, "minutes") if longest < 7200 else (3600.0, "hours")


def target_line(ax: Axes, target: float) -> list[Line2D]:
  """Draw the matched accuracy, where there is one, and return the entries of a legend."""
  if not target:
    return []
  ax.axhline(target, **_TARGET, zorder=1)
  return [Line2D([], [], **_TARGET, label=f"matched accuracy {target:.3g}")]


def legend(figure: Figure, arms: Sequence[Arm], more_handles: Sequence[Line2D] = ()) -> None:
  """Draw the legend above the axes, where it covers nothing; `extra` are entries beside those of the arms."""
  handles = [Line2D([], [], label=wrap(arm.label, 70), **style.line) for arm, style in styled(arms)]
  handles += more_handles
  columns = _columns(figure, [str(h.get_label()) for h in handles])
  # Room for the rows after the first, so that the axes keep their size.
  figure.set_figheight(figure.get_figheight() + 0.23 * (math.ceil(len(handles) / columns) - 1))
  figure.legend(handles=handles, loc="outside upper left", ncols=columns)


def _columns(figure: Figure, labels: Sequence[str]) -> int:
  """The most legend columns whose widths, by a character's mean width, fit into the figure's."""
  for columns in range(len(labels), 1, -1):
    parts = np.array_split(np.array(labels, object), columns)  # a legend fills column by column
    longest = [max(len(line) for text in part for line in text.splitlines()) for part in parts]
    if sum(0.78 + 0.085 * characters for characters in longest) <= figure.get_figwidth() - 0.2:
      return columns
  return 1


def wrap(text: str, width: int) -> str:
  """Break a label into lines of at most `width` characters."""
  return "\n".join(textwrap.wrap(text, width)).replace("$", r"\$")  # a pair of $ would be set as a formula
