"""The pictures of runs that visit hard questions again: the buffer over the steps, and what became of the questions of each tier."""

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from opd_jax.reports import plotting
from opd_jax.reports.comparison import Arm
from opd_jax.reports.runs import Run

Arms = Sequence[Arm]
TITLES = {"there": "In the buffer", "entered": "Entered", "graduated": "Graduated", "evicted": "Evicted"}
_MARKERS = ("o", "s", "^", "D", "v", "<", "p", ">")


def listed(arms: Arms) -> list[tuple[str, str, str, Figure | None]]:
  """List the pictures: file name, title, caption, and a figure where these arms have the data for it."""
  return [
    ("buffer", "Hard questions in the buffer", _BUFFER, buffer(arms)),
    ("buffer_tiers", "Hard questions by how many rollouts were right when they entered", _TIERS, tiers(arms)),
  ]


_BUFFER = (
  "The questions in the buffer at each step, and how many have entered it, graduated from it and been evicted from it since the run "
  "began; a question that comes back counts again. Where questions enter as fast as they graduate the buffer stands still; "
  "where any are evicted it is full. Arms without a buffer have no line."
)


def buffer(arms: Arms) -> Figure | None:
  """Draw the size of the buffer and what has entered and left it, by step; None where no arm has a buffer."""
  if not _with_buffer(arms):
    return None
  figure, axes = plotting.panels(13, 3.9, 1, len(TITLES))
  for ax, (key, title) in zip(axes, TITLES.items(), strict=True):
    plotting.lines(ax, arms, _records(), "step", key)
    _finish(ax, title)
  axes[0].set_ylabel("questions")
  plotting.legend(figure, arms)
  return figure


_TIERS = (
  "The same, a row for each arm and a line for each number of a question's rollouts that were right when it entered, from dark, none, "
  "to light: means over the runs of the arm. A question keeps the tier that it entered with, and may have another when it comes back."
)


def tiers(arms: Arms) -> Figure | None:
  """Draw likewise the questions of each tier, a row of panels for each arm; None where no arm has a buffer."""
  arms = _with_buffer(arms)
  entered = sorted({tier for arm in arms for run in arm.runs for tier in _tiers(run)})
  if not entered:
    return None
  rows = len(arms)
  figure, axes = plotting.panels(13, 3.1 * rows + 0.8, rows, len(TITLES), sharex=True)
  colours = matplotlib.colormaps["viridis"]
  styles: dict[int, dict[str, Any]] = {
    tier: {
      "color": to_hex(colours(0.85 * i / max(1, len(entered) - 1))),
      "marker": _MARKERS[i % len(_MARKERS)],
      "markeredgecolor": "white",
      "markeredgewidth": 0.6,
    }
    for i, tier in enumerate(entered)
  }
  for i, arm in enumerate(arms):
    of_arm = axes[i * len(TITLES) : (i + 1) * len(TITLES)]
    for ax, (key, title) in zip(of_arm, TITLES.items(), strict=True):
      for number, tier in enumerate(entered):
        at, mean = plotting.means(arm, _records(tier), "step", key)
        every = plotting.marker_every(len(at), 7)
        ax.plot(at, mean, markevery=(number * every // len(entered), every), **styles[tier])
      _finish(ax, title)
      ax.xaxis.set_tick_params(labelbottom=True)
    of_arm[0].set_ylabel(f"{plotting.wrap(arm.label, 30)}\nquestions" if rows > 1 else "questions")
  handles = [Line2D([], [], label=f"{tier} right at entry", **style) for tier, style in styles.items()]
  figure.legend(handles=handles, loc="outside upper left", ncols=min(6, len(handles)))
  return figure


def _with_buffer(arms: Arms) -> list[Arm]:
  """Select the arms any run of which has had a question in its buffer."""
  return [arm for arm in arms if any(map(_tiers, arm.runs))]


def _tiers(run: Run) -> set[int]:
  """Tell which tiers any question has entered in."""
  return {tier for r in run.train for tier, n in enumerate((r.get("buffer_history") or {}).get("entered", ())) if n > 0}


def _records(tier: int | None = None) -> Callable[[Run], list[dict[str, Any]]]:
  """Make what picks a run's training records with the numbers of TITLES, of one tier or of all."""

  def count(history: dict[str, list[int]], name: str) -> int:
    return sum(history[name]) if tier is None else sum(history[name][tier : tier + 1])

  def records(run: Run) -> list[dict[str, Any]]:
    found = []
    for record in (record for record in run.train if record.get("buffer_history")):
      counts = {name: count(record["buffer_history"], name) for name in TITLES if name != "there"}
      there = counts["entered"] - counts["graduated"] - counts["evicted"]
      found.append({"step": record["step"], "there": there} | counts)
    return found

  return records


def _finish(ax: Axes, title: str) -> None:
  plotting.step_axis(ax)
  plotting.low_at_zero(ax)
  ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
  ax.set_title(title)
