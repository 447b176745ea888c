"""What the pictures of a study share, on top of reports/plotting.py: dots with intervals, bands, axes of costs."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import offset_copy

from opd_jax.reports import plotting
from opd_jax.reports.comparison import Arm
from opd_jax.reports.plotting import GREY, Style
from opd_jax.reports.words import count
from opd_jax.studies.results import LAST, Missing, Results
from opd_jax.studies.statistics import IntervalEstimate, interval

Names = Mapping[str, str]  # arm -> label, in the order in which they are shown

SCORE = f"accuracy (mean of last {LAST} evaluations)"
PLAIN = Style("#222222", "-", "o", 0.0)
FULL = Style("#0072B2", "-", "o", 0.0)  # the first of plotting.styled, which full rollouts have where they come first
_BEFORE: Any = {"color": GREY, "linestyle": (0, (1, 1.6)), "linewidth": 1.5}

_PAPER: Any = {"facecolor": "white", "linewidth": 0, "pad": 0.6}  # behind what is written across lines

P = ParamSpec("P")
T = TypeVar("T")


def picture(draw: Callable[P, T]) -> Callable[P, T | None]:
  """Decorate a function that draws: in the style of the reports, and None where what it needs has not been run."""

  @functools.wraps(draw)
  def styled(*args: P.args, **kwargs: P.kwargs) -> T | None:
    with matplotlib.rc_context(plotting.RC):
      try:
        return draw(*args, **kwargs)
      except Missing:
        return None

  return styled


def present(results: Results, names: Names) -> dict[str, str]:
  """The arms with a finished seed, with their labels.

  Raises:
    Missing: none has.
  """
  if found := results.present(names):
    return found
  raise Missing(f"no run of {', '.join(names) or 'no arm'} is finished")


def finished_arms(results: Results, names: Names) -> list[Arm]:
  """The arms of `present` as plotting.py draws them: the finished runs, without a target."""
  return [Arm(label, list(results.runs(arm).values()), 0.0) for arm, label in present(results, names).items()]


def line_styles(labels: Iterable[str]) -> list[Style]:
  """Make a style for each label, the same as `plotting.legend` shows for arms in this order."""
  return [style for _, style in plotting.styled(list(labels))]


def accuracy_lines(ax: Axes, arms: Sequence[Arm], x: str) -> None:
  """Draw the accuracy at every evaluation: the mean over seeds, and each seed thin.

  Args:
    x: "elapsed", "tokens" or "step".
  """
  plotting.lines(ax, arms, lambda run: run.evals, x, "accuracy", every_point=True)
  accuracy_axis(ax)
  plotting.from_zero(ax)
  if x == "elapsed":
    plotting.time_axis(ax, arms)
  else:
    ax.set_xlabel(x)


def accuracy_axis(ax: Axes, label: str = "accuracy", zero: bool = True) -> None:
  """Label the y axis and leave room around what is drawn.

  Args:
    zero: begin at 0; else as near as what is drawn allows, so that a point more or less can be seen.
  """
  high = ax.dataLim.ymax
  low = 0.0 if zero else min(ax.dataLim.ymin, high - 0.1)
  if math.isfinite(high) and high > low:
    ax.set_ylim(max(0.0, low - 0.1 * (high - low)), high + 0.06 * (high - low))
  ax.set_ylabel(label)


def score(ax: Axes, at: float, results: Results, arm: str, style: Style = PLAIN, across: bool = False) -> float:
  """Draw a `dot` of an arm's score, and return its mean."""
  scores = results.scores(arm).values()
  estimate = interval(scores)
  dot(ax, at, estimate, scores, style, across)
  return estimate.mean


def dot(
  ax: Axes,
  at: float,
  estimate: IntervalEstimate,
  seeds: Iterable[float],
  style: Style = PLAIN,
  across: bool = False,
) -> None:
  """Draw a mean with its interval, and the seeds faint beside it. What is not finite is left out.

  Args:
    at: where on the other axis.
    across: values run to the right; else up.
  """

  def xy(positions: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    return (values, positions) if across else (positions, values)

  mean, color = estimate.mean, style.color
  values = [v for v in seeds if math.isfinite(v)]
  right, up = (0, -7) if across else (8, 0)
  beside = offset_copy(ax.transData, ax.get_figure(), right, up, units="points")  # pyright: ignore[reportArgumentType]
  ax.plot(*xy([at] * len(values), values), ".", color=color, alpha=0.45, markersize=5, transform=beside, zorder=2)
  if not math.isfinite(mean):
    return
  unknown = estimate.low <= 0 and math.isinf(estimate.high)
  ends = [abs(end - mean) if math.isfinite(end) and not unknown else 0.0 for end in (estimate.low, estimate.high)]
  bars: dict[str, Any] = {"xerr" if across else "yerr": [[end] for end in ends]} if any(ends) else {}
  bars |= {"markersize": 6, "elinewidth": 1.8, "capsize": 5, "capthick": 1.8, "zorder": 3}
  ax.errorbar(*xy([at], [mean]), fmt=style.marker, color=color, **bars)


def trade(ax: Axes, results: Results, arm: str, label: str, style: Style, filled: bool) -> Line2D:
  """Draw an arm's score against its training time, with the intervals of both; return the entry of a legend."""
  x, y = (interval(values.values()) for values in (results.totals(arm), results.scores(arm)))
  color = style.color if filled else PLAIN.color
  if math.isfinite(x.low):
    ax.plot([x.low, x.high], [y.mean, y.mean], color=color, linewidth=1.2, zorder=2)
  if math.isfinite(y.low):
    ax.plot([x.mean, x.mean], [y.low, y.high], color=color, linewidth=1.2, zorder=2)
  mark: Any = {"linestyle": "", "marker": style.marker, "color": color, "markersize": 8, "markeredgewidth": 1.5}
  if not filled:
    mark["markerfacecolor"] = "white"
  ax.plot(x.mean, y.mean, **mark, zorder=3)
  return Line2D([], [], **mark, label=label)


def stairs(ax: Axes, steps: Sequence[float], values: Sequence[float], style: Style, **line) -> None:
  """Draw values that hold from one step to the next; `line` goes to matplotlib."""
  ax.step(steps, values, where="post", color=style.color, **line)


def band(ax: Axes, results: Results, arm: str, style: Style, label: str) -> Patch:
  """Draw an arm's score and its interval over the whole width; return the entry of a legend."""
  estimate = interval(results.scores(arm).values())
  ax.axhline(estimate.mean, color=style.color, linewidth=1.3, zorder=1)
  if math.isfinite(estimate.low):
    ax.axhspan(estimate.low, estimate.high, color=style.color, alpha=0.16, linewidth=0, zorder=0.5)
  return Patch(facecolor=(style.color, 0.25), edgecolor=style.color, linewidth=1.3, label=label)


def before_training(ax: Axes, results: Results, arms: Iterable[str], across: bool = False) -> list[Line2D]:
  """Draw a dotted line at the untrained student's accuracy, where it was evaluated; return the entries of a legend."""
  values = {seed: value for arm in arms if results.seeds(arm) for seed, value in results.untrained(arm).items()}
  if not values:
    return []
  line = ax.axvline if across else ax.axhline
  line(interval(values.values()).mean, **_BEFORE, zorder=1)
  return [Line2D([], [], **_BEFORE, label="student before training")]


def accuracy_rows(labels: Names, how: Mapping[str, str], values: Callable[[str, str], Mapping[int, float]]) -> Figure:
  """Draw a panel for each way of answering and a row for each arm: mean, interval and seeds.

  Args:
    how: the ways, with their titles.
    values: (arm, way) -> accuracy by seed.

  Raises:
    Missing: there is no arm.
  """
  if not labels:
    raise Missing("nothing was asked")
  figure, axes = plotting.panels(10, 1.5 + 0.4 * len(labels), 1, len(how), sharey=True)
  for ax, (way, title) in zip(axes, how.items(), strict=True):
    for row, arm in enumerate(labels):
      by_seed = values(arm, way).values()
      dot(ax, row, interval(by_seed), by_seed, across=True)
    ax.set(title=title, xlabel="accuracy")
  rows(axes, list(labels.values()))
  return figure


def rows(axes: Sequence[Axes], labels: Sequence[str]) -> None:
  """Label the rows of panels that share them, from top to bottom at 0, 1, ..."""
  for ax in axes:
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
  axes[0].set_yticks(range(len(labels)), [plotting.wrap(label, 34) for label in labels])
  axes[0].set_ylim(len(labels) - 0.4, -0.6)


def cost_axis(ax: Axes, costs: Iterable[float]) -> None:
  """Scale the x axis for all costs that are drawn: from 0, or logarithmic where they lie far apart."""
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


def reached(ax: Axes, at: float, estimate: IntervalEstimate, costs: Sequence[float]) -> None:
  """Write a mean cost above its dot, and how many of the runs never got there.

  Args:
    at: the row.
    costs: of every run; inf where it never got there.
  """
  if math.isfinite(estimate.mean):
    text, where = amount(estimate.mean), (estimate.mean, at)
    ax.annotate(text, where, (0, 8), textcoords="offset points", ha="center", fontsize=9, bbox=_PAPER)
  missed = sum(math.isinf(v) for v in costs)
  if not missed:
    return
  edge: Any = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right", "bbox": _PAPER}
  all_missed = missed == len(costs)
  text = "never" if all_missed else f"never in {missed} of {len(costs)}"
  if math.isinf(estimate.mean):
    ax.annotate(text, (1, at), (-4, 0), va="center" if all_missed else "bottom", fontsize=10, **edge)
  else:
    arrow: Any = {"arrowstyle": "->", "color": GREY, "linewidth": 1.4, "shrinkA": 6, "shrinkB": 0}
    ax.annotate("", (1, at), (estimate.mean, at), ("axes fraction", "data"), "data", arrowprops=arrow)
    ax.annotate(text, (1, at), (-4, -4), va="top", fontsize=9, **edge)


def amount(value: float) -> str:
  """Write a cost in few letters: '42', '1.23M', '3.2T'."""
  for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T")):
    if value >= size:
      return f"{value / size:.3g}{unit}"
  return count(value) if value >= 1000 else f"{value:.3g}"


def ticks(ax: Axes, values: Sequence[float], labels: Sequence[str]) -> None:
  """Put ticks at these values of x and nowhere else."""
  ax.xaxis.set_minor_locator(NullLocator())
  ax.set_xticks(values, labels)


def percent(value: float) -> str:
  """Write a share in percent: 0.025 as '2.5%'."""
  return f"{100 * value:.3g}%"
