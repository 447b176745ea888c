"""What the pictures of a study share, on top of reports/plotting.py: dots with intervals, bands, axes of costs."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import offset_copy

from opd_jax.reports import plotting
from opd_jax.reports.comparison import Arm
from opd_jax.reports.plotting import GREY, Style
from opd_jax.reports.words import count
from opd_jax.studies.results import LAST, Missing, Results
from opd_jax.studies.statistics import Estimate, interval

Names = Mapping[str, str]  # arm -> label, in the order in which they are shown

SCORE = f"accuracy (mean of last {LAST} evaluations)"
PLAIN = Style("#222222", "-", "o", 0.0)
FULL = Style("#0072B2", "-", "o", 0.0)  # the first of plotting.styled, which full rollouts have where they come first
_BEFORE: Any = {"color": GREY, "linestyle": (0, (1, 1.6)), "linewidth": 1.5}

_PAPER: Any = {"facecolor": "white", "linewidth": 0, "pad": 0.6}  # behind what is written across lines

P = ParamSpec("P")
T = TypeVar("T")


def picture(draw: Callable[P, T]) -> Callable[P, T | None]:
  """In the style of the reports; None where what it needs has not been run."""

  @functools.wraps(draw)
  def styled(*args: P.args, **kwargs: P.kwargs) -> T | None:
    with matplotlib.rc_context(plotting.RC):
      try:
        return draw(*args, **kwargs)
      except Missing:
        return None

  return styled


def present(results: Results, names: Names) -> dict[str, str]:
  """Those with a finished seed.

  Raises:
    Missing: none has.
  """
  if found := results.present(names):
    return found
  raise Missing(f"no run of {', '.join(names) or 'no arm'} is finished")


def arms_of(results: Results, names: Names) -> list[Arm]:
  """`present`, as plotting.py draws them: the finished runs, without a target."""
  return [Arm(label, list(results.runs(arm).values()), 0.0) for arm, label in present(results, names).items()]


def looks(labels: Iterable[str]) -> list[Style]:
  """One for each, the same as `plotting.legend` shows for arms in this order."""
  return [style for _, style in plotting.styled(list(labels))]


def accuracy_lines(ax: Axes, arms: Sequence[Arm], x: str) -> None:
  """Accuracy at every evaluation: the mean over seeds, and each seed thin."""
  plotting.lines(ax, arms, lambda run: run.evals, x, "accuracy", every_point=True)
  accuracy_axis(ax)
  plotting.from_zero(ax)
  if x == "elapsed":
    plotting.time_axis(ax, arms)
  else:
    ax.set_xlabel(x)


def accuracy_axis(ax: Axes, label: str = "accuracy", zero: bool = True) -> None:
  """With room around what is drawn; from 0, or as near as what is drawn allows: a point more or less is to be seen."""
  low, high = (0.0 if zero else min(ax.dataLim.ymin, ax.dataLim.ymax - 0.1)), ax.dataLim.ymax
  if math.isfinite(high) and high > low:
    ax.set_ylim(max(0.0, low - 0.1 * (high - low)), high + 0.06 * (high - low))
  ax.set_ylabel(label)


def score(ax: Axes, at: float, results: Results, arm: str, style: Style = PLAIN, across: bool = False) -> float:
  """A `dot` of an arm's score; gives its mean."""
  scores = results.scores(arm).values()
  estimate = interval(scores)
  dot(ax, at, estimate, scores, style, across)
  return estimate.mean


def dot(ax: Axes, at: float, estimate: Estimate, seeds: Iterable[float], style: Style = PLAIN, across: bool = False):
  """A mean with its interval, and the seeds faint beside it. What is not finite is left out.

  Args:
    at: its place on the other axis.
    across: values run to the right; else up.
  """
  swap = (lambda a, v: (v, a)) if across else (lambda a, v: (a, v))
  mean, color = estimate.mean, style.color
  values = [v for v in seeds if math.isfinite(v)]
  beside = offset_copy(ax.transData, ax.get_figure(), *((0, -7) if across else (8, 0)), units="points")  # pyright: ignore[reportArgumentType]
  ax.plot(*swap([at] * len(values), values), ".", color=color, alpha=0.45, markersize=5, transform=beside, zorder=2)
  if math.isfinite(mean):
    unknown = estimate.low <= 0 and math.isinf(estimate.high)
    ends = [abs(end - mean) if math.isfinite(end) and not unknown else 0.0 for end in estimate[1:3]]
    bars = {"xerr" if across else "yerr": [[end] for end in ends]} if any(ends) else {}
    look = {"markersize": 6, "elinewidth": 1.8, "capsize": 5, "capthick": 1.8, "zorder": 3}
    ax.errorbar(*swap([at], [mean]), **bars, fmt=style.marker, color=color, **look)


def trade(ax: Axes, results: Results, arm: str, label: str, style: Style, filled: bool) -> Line2D:
  """An arm's score against its training time, with the intervals of both; gives what a legend shows of it."""
  x, y = (interval(values.values()) for values in (results.totals(arm), results.scores(arm)))
  color = style.color if filled else PLAIN.color
  for low, high, at, across in ((x.low, x.high, y.mean, True), (y.low, y.high, x.mean, False)):
    if math.isfinite(low):
      ax.plot(*([[low, high], [at, at]] if across else [[at, at], [low, high]]), color=color, linewidth=1.2, zorder=2)
  look: Any = {"linestyle": "", "marker": style.marker, "color": color, "markersize": 8, "markeredgewidth": 1.5}
  look |= {} if filled else {"markerfacecolor": "white"}
  ax.plot(x.mean, y.mean, **look, zorder=3)
  return Line2D([], [], **look, label=label)


def stairs(ax: Axes, steps: Sequence[float], values: Sequence[float], style: Style, **look) -> None:
  """What holds from one step to the next."""
  ax.step(steps, values, where="post", color=style.color, **look)


def band(ax: Axes, results: Results, arm: str, style: Style, label: str) -> Patch:
  """An arm's score and its interval over the whole width; gives what a legend shows of it."""
  estimate = interval(results.scores(arm).values())
  ax.axhline(estimate.mean, color=style.color, linewidth=1.3, zorder=1)
  if math.isfinite(estimate.low):
    ax.axhspan(estimate.low, estimate.high, color=style.color, alpha=0.16, linewidth=0, zorder=0.5)
  return Patch(facecolor=(style.color, 0.25), edgecolor=style.color, linewidth=1.3, label=label)


def before_training(ax: Axes, results: Results, arms: Iterable[str], across: bool = False) -> list[Line2D]:
  """A dotted line at the untrained student's accuracy, where it was evaluated; gives what a legend shows of it."""
  values = {seed: value for arm in arms if results.seeds(arm) for seed, value in results.untrained(arm).items()}
  if not values:
    return []
  (ax.axvline if across else ax.axhline)(interval(values.values()).mean, **_BEFORE, zorder=1)
  return [Line2D([], [], **_BEFORE, label="student before training")]


def rows(axes: Sequence[Axes], labels: Sequence[str]) -> None:
  """Arms from top to bottom, at 0, 1, ..., of panels that share them."""
  ax = axes[0]
  for each in axes:
    each.grid(False, axis="y")
    each.tick_params(axis="y", length=0)
  ax.set_yticks(range(len(labels)), [plotting.wrap(label, 34) for label in labels])
  ax.set_ylim(len(labels) - 0.4, -0.6)


def cost_axis(ax: Axes, costs: Iterable[float]) -> None:
  """Of all costs that are drawn: from 0, or logarithmic where they lie far apart."""
  finite = [v for v in costs if 0 < v < math.inf]
  low, high = min(finite, default=1.0), max(finite, default=1.0)
  if high > 8 * low:
    ax.set_xscale("log")
    ax.set_xlim(low / 1.6, high * 2.4)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 3) if high < 100 * low else (1,)))
    ax.xaxis.set_minor_locator(NullLocator())
  else:
    ax.set_xlim(0, 1.3 * high)
    ax.xaxis.set_major_locator(MaxNLocator(4, steps=plotting.TICKS))
  ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: amount(v)))


def reached(ax: Axes, at: float, estimate: Estimate, costs: Sequence[float]) -> None:
  """Writes a mean above its dot, and says of how many runs it is not true that they got there."""
  missed = sum(math.isinf(v) for v in costs)
  if math.isfinite(estimate.mean):
    said, where = amount(estimate.mean), (estimate.mean, at)
    ax.annotate(said, where, (0, 8), textcoords="offset points", ha="center", fontsize=9, bbox=_PAPER)
  if missed:
    edge: Any = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right", "bbox": _PAPER}
    said = "never" if missed == len(costs) else f"never in {missed} of {len(costs)}"
    if math.isinf(estimate.mean):
      ax.annotate(said, (1, at), (-4, 0), va="center" if missed == len(costs) else "bottom", fontsize=10, **edge)
    else:
      to: Any = {"arrowstyle": "->", "color": GREY, "linewidth": 1.4, "shrinkA": 6, "shrinkB": 0}
      ax.annotate("", (1, at), (estimate.mean, at), ("axes fraction", "data"), "data", arrowprops=to)
      ax.annotate(said, (1, at), (-4, -4), va="top", fontsize=9, **edge)


def amount(value: float) -> str:
  """'42', '1.23M', '3.2T'."""
  for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T")):
    if value >= size:
      return f"{value / size:.3g}{unit}"
  return count(value) if value >= 1000 else f"{value:.3g}"


def ticks(ax: Axes, values: Sequence[float], labels: Sequence[str]) -> None:
  """At these values of x and nowhere else."""
  ax.xaxis.set_minor_locator(NullLocator())
  ax.set_xticks(values, labels)


def percent(value: float) -> str:
  return f"{100 * value:.3g}%"
