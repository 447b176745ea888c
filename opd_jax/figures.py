"""The pictures of a report. Every arm keeps its colour, line style and marker through all of them.

Lines are means over an arm's runs at the steps that all of them have; the runs themselves are drawn thin. Colours are
Okabe and Ito's, which colour-blind readers can tell apart; style, marker and hatch do the same work without colour.
"""

import math
import pathlib
import textwrap
from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

if TYPE_CHECKING:
  from opd_jax.report import Run

Arms = dict[str, list["Run"]]
Series = Sequence[Sequence[dict[str, Any]]]  # records of every run of an arm

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C510A")
_DASHES = ("-", (0, (6, 2)), (0, (6, 2, 1.5, 2)), (0, (2, 1.5)), (0, (9, 2, 1.5, 2, 1.5, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "<", "p", ">")
_GREY = "#555555"
_TICKS = [1, 2, 5, 10]
_UNTRAINED: Any = {"facecolor": "#f4f4f4", "edgecolor": "#bdbdbd", "hatch": "///", "linewidth": 0}
_TARGET: Any = {"color": _GREY, "linestyle": (0, (4, 3)), "linewidth": 0.9}
_RC: Any = {
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
# name in `seconds`, legend, colour, hatch: light fills, so that the hatch is what tells them apart in grey
_PARTS = (
  ("rollout", "rollout", "#9ecae1", ""),
  ("score", "score", "#f7c59f", "///"),
  ("update", "update", "#a8ddb5", "..."),
  ("other", "rest of the loop", "#dddddd", "xxx"),
  ("compile", "waiting for compilation", "#ffffff", "\\\\\\"),
  ("eval", "evaluation", "#ffffff", "+++"),
)


class Picture(NamedTuple):
  path: pathlib.Path
  title: str
  caption: str
  width: int  # CSS pixels at which its text is as large as the page's


class _Style(NamedTuple):
  color: str
  linestyle: Any
  marker: str
  shift: float  # of the markers along the line, so that arms on top of each other show both


def draw(arms: Arms, target: float, folder: pathlib.Path) -> list[Picture]:
  """Writes every picture that these runs have the data for."""
  pictures = []
  with matplotlib.rc_context(_RC):
    for name, title, caption, make in (
      ("result", "Result", _RESULT, lambda: result(arms, target)),
      ("accuracy", "Accuracy against time, tokens and steps", _RUNS, lambda: accuracy(arms, target)),
      ("horizon", "Horizon", _HORIZON, lambda: horizon(arms)),
      ("kl_by_position", "KL by position", _KL, lambda: kl_by_position(arms)),
      ("responses", "Training responses", _RESPONSES, lambda: responses(arms)),
      ("time", "Where the time went", _TIME, lambda: time(arms)),
    ):
      if (figure := make()) is not None:
        path = folder / f"{name}.png"
        figure.savefig(path, metadata={"Software": None})
        pictures.append(Picture(path, title, caption, round(88 * figure.get_figwidth())))
  return pictures


_RUNS = (
  "Lines are means over an arm's runs at the steps that all of them have; thin lines are the single runs. "
  "An arm with one run shows the interval of each evaluation instead. The dashed grey line is the accuracy at which "
  "the arms are compared. Training time leaves out compiling and evaluation."
)
_RESULT = (
  "Left: accuracy on held-out problems by training time. Right: how many tokens the student may generate. " + _RUNS
)
_HORIZON = (
  "The limit is what the student may generate at that step (thick); the width is what was compiled for it (thin, "
  "dotted, drawn where it differs from the limit)."
)
_KL = (
  "Mean per-token KL between student and teacher at the positions that were trained on: the mean over the first tenth "
  "of the logged steps, the tenth in the middle and the last tenth, over all runs of the arm. Hatched positions were "
  "never generated in training, so nothing is known of them here. Points of fewer than 10 tokens are left out."
)
_RESPONSES = (
  "Responses of the training rollouts: mean length, the share that ended with a stop token, and the share that the "
  "horizon cut. Evaluation is never cut."
)
_TIME = (
  "One bar per run. The first four parts are the training time of the other figures; waiting for compilation and "
  "evaluation come on top."
)


def result(arms: Arms, target: float) -> Figure:
  """The README's picture: accuracy by training time, and the horizon that bought it."""
  figure, (left, right) = _panels(10.4, 4.3, 1, 2, width_ratios=(1.55, 1))
  styles = _styles(arms)
  _accuracy_lines(left, arms, styles, "elapsed")
  _target_line(left, target)
  _time_axis(left, arms)
  left.set(ylabel="accuracy", title="Accuracy by training time")
  _horizon_lines(right, arms, styles)
  right.set(xlabel="step", ylabel="horizon (tokens)", title="Horizon by step")
  _legend(figure, arms, styles, _target_handles(target))
  return figure


def accuracy(arms: Arms, target: float) -> Figure:
  figure, axes = _panels(13, 4.5, 1, 3, sharey=True)
  styles = _styles(arms)
  for ax, x in zip(axes, ("elapsed", "tokens", "step"), strict=True):
    _accuracy_lines(ax, arms, styles, x)
    _target_line(ax, target)
  _time_axis(axes[0], arms)
  axes[0].set(ylabel="accuracy")
  axes[1].set(xlabel="generated tokens")
  axes[1].xaxis.set_major_formatter(EngFormatter(sep=""))
  axes[1].xaxis.set_major_locator(MaxNLocator(6, steps=_TICKS))
  axes[2].set(xlabel="step")
  for ax in axes:
    ax.yaxis.set_tick_params(labelleft=True)
  _legend(figure, arms, styles, _target_handles(target))
  return figure


def horizon(arms: Arms) -> Figure | None:
  if not _trained(arms):
    return None
  figure, (ax,) = _panels(8, 4.5, 1, 1)
  styles = _styles(arms)
  _horizon_lines(ax, arms, styles, widths=True)
  ax.set(xlabel="step", ylabel="horizon (tokens)")
  _legend(figure, arms, styles, [Line2D([], [], color=_GREY, linestyle=":", linewidth=1.2, label="compiled width")])
  return figure


def kl_by_position(arms: Arms) -> Figure | None:
  """One panel per arm, one line per time: early, middle, late."""
  spans = {label: _spans(runs) for label, runs in arms.items()}
  spans = {label: s for label, s in spans.items() if s}
  if not spans:
    return None
  columns = min(3, len(spans))
  rows = math.ceil(len(spans) / columns)
  width = 13 if columns == 3 else 5 * columns + 1
  figure, axes = _panels(width, 3.4 * rows + 0.9, rows, columns, sharex=True, sharey=True)
  looks = {
    "early": {"color": "#9a9a9a", "linestyle": (0, (2, 1.5)), "marker": "s"},
    "middle": {"color": "#4d9ac9", "linestyle": (0, (6, 2)), "marker": "^"},
    "late": {"color": "#08306b", "linestyle": "-", "marker": "o"},
  }
  ends, values = [], []
  for ax, (label, times) in zip(axes, spans.items(), strict=False):
    for name, (positions, kl) in times.items():
      ax.plot(positions, kl, label=name, markevery=_every(len(kl), 16), **looks[name])
      values.extend(kl[kl > 0])
    ax.set_title(_wrap(label, 38))
    ends.append((ax, *_trained_end(arms[label])))
  last = max(end for _, _, end in ends)
  for ax, trained, _ in ends:
    if trained < last:
      ax.axvspan(trained, last, **_UNTRAINED, zorder=0)
    ax.set_xlim(0, last)
  if values and max(values) / min(values) > 20:
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes[0].yaxis.set_minor_locator(NullLocator())
  else:
    axes[0].set_ylim(bottom=0)
  for i, ax in enumerate(axes):
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.xaxis.set_tick_params(labelbottom=True)
    ax.set_visible(i < len(spans))
  figure.supxlabel("position in the response (tokens)", fontsize=11)
  figure.supylabel("KL (nats per token)", fontsize=11)
  known = set().union(*spans.values())
  handles: list[Any] = [Line2D([], [], label=name, **look) for name, look in looks.items() if name in known]
  handles.append(Patch(**_UNTRAINED, label="never trained on"))
  figure.legend(handles=handles, loc="outside upper left", ncols=4)
  return figure


def _spans(runs: Sequence["Run"]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """'early' | 'middle' | 'late' -> positions and their token-weighted mean KL over all runs."""
  found = {}
  for name, place in (("early", 0.0), ("middle", 0.5), ("late", 1.0)):
    total, weight, edges, limit = 0.0, 0.0, None, 0
    for run in runs:
      records = [r for r in run.train if r.get("by_position")]
      if len(records) < 3 and name != "late":
        continue
      size = max(1, len(records) // 10)
      start = round(place * (len(records) - size)) if records else 0
      for r in records[start : start + size]:
        by = r["by_position"]
        counts, kl = np.array(by["count"], float), np.array(by["kl"], float)
        if edges is not None and len(edges) != len(by["edges"]):
          continue
        edges, limit = np.array(by["edges"], float), max(limit, r["limit"])
        good = np.isfinite(kl)
        total, weight = total + np.where(good, kl * counts, 0.0), weight + np.where(good, counts, 0.0)
    if edges is not None:
      keep = np.asarray(weight) >= 10
      centres = (edges[:-1] + np.minimum(edges[1:], np.maximum(limit, edges[:-1]))) / 2
      found[name] = centres[keep], (total / np.maximum(weight, 1))[keep]
  return found


def _trained_end(runs: Sequence["Run"]) -> tuple[float, float]:
  """Tokens up to which responses were ever generated, and the end of the position axis."""
  trained = end = 0.0
  for r in (r for run in runs for r in run.train if r.get("by_position")):
    by = r["by_position"]
    end = max(end, by["edges"][-1])
    filled = [hi for hi, n in zip(by["edges"][1:], by["count"], strict=True) if n]
    trained = max(trained, min(filled[-1], r["limit"]) if filled else 0.0)
  return trained, end


def responses(arms: Arms) -> Figure | None:
  if not _trained(arms):
    return None
  figure, axes = _panels(13, 4.2, 1, 3)
  styles = _styles(arms)
  shown = {"response_length": "Mean response length", "ended": "Ended with a stop token", "cut": "Cut by the horizon"}
  for ax, (key, title) in zip(axes, shown.items(), strict=True):
    for label, runs in arms.items():
      _lines(ax, [run.train for run in runs], "step", key, styles[label])
    ax.set(xlabel="step", title=title)
    _from_zero(ax)
    if key == "response_length":
      ax.set(ylabel="tokens")
      ax.set_ylim(bottom=0)
    else:
      ax.set(ylabel="share of responses", ylim=(-0.04, 1.04))
      ax.yaxis.set_major_formatter(PercentFormatter(1))
  _legend(figure, arms, styles)
  return figure


def time(arms: Arms) -> Figure | None:
  runs = [(label, run) for label, members in arms.items() for run in members]
  name = lambda label, run: f"seed {run.seed}" if run is not arms[label][0] else _wrap(f"{label}, seed {run.seed}", 34)
  bars = [run.seconds for _, run in runs]
  most = max(sum(b.values()) for b in bars)
  if not most:
    return None
  divisor, unit = _time_unit(most)
  figure, (ax,) = _panels(10.4, 1.5 + 0.36 * len(runs) + 0.12 * len(arms), 1, 1)
  # A gap between arms, so that the seeds of one arm read as a group.
  places = np.cumsum([1.45 if run is arms[label][0] else 1.0 for label, run in runs]) - 0.45
  left = np.zeros(len(runs))
  for part, legend, colour, hatch in _PARTS:
    size = np.array([b[part] for b in bars]) / divisor
    ax.barh(places, size, 0.74, left, color=colour, hatch=hatch, edgecolor="#333333", linewidth=0.6, label=legend)
    left += size
  for place, total in zip(places, left, strict=True):
    text = f"{total:.1f}" if total < 100 else f"{total:.0f}"
    ax.annotate(text, (total, place), (5, 0), textcoords="offset points", va="center", color=_GREY)
  ax.set_yticks(places, [name(label, run) for label, run in runs])
  ax.set(xlabel=f"time ({unit})", xlim=(0, left.max() * 1.08), ylim=(places[-1] + 0.7, 0.3))
  ax.grid(False, axis="y")
  ax.tick_params(axis="y", length=0)
  figure.legend(loc="outside upper left", ncols=3, handleheight=1.3, handlelength=2.4)
  return figure


def _accuracy_lines(ax: Axes, arms: Arms, styles: dict[str, _Style], x: str) -> None:
  for label, runs in arms.items():
    _lines(ax, [run.evals for run in runs], x, "accuracy", styles[label], every_point=True)
    if len(runs) == 1:
      at, low, high = ([e[key] for e in runs[0].evals] for key in (x, "low", "high"))
      ax.fill_between(at, low, high, color=styles[label].color, alpha=0.14, lw=0)
  ax.set_ylim(bottom=0)
  _from_zero(ax)


def _from_zero(ax: Axes) -> None:
  """Room left of 0, so that the axis does not cut the first markers."""
  right = ax.dataLim.xmax if 0 < ax.dataLim.xmax < math.inf else 1  # infinite where nothing is drawn
  ax.set_xlim(-0.025 * right, 1.04 * right)


def _lines(ax: Axes, series: Series, x: str, y: str, style: _Style, every_point: bool = False) -> None:
  """The mean over runs, and each run thin where there are several and they differ."""
  at, mean = _mean(series, x, y)
  for records in series if len(series) > 1 else ():
    columns = _columns(records, x, y)
    if columns != (at, mean):
      ax.plot(*columns, color=style.color, linewidth=0.7, alpha=0.45, zorder=1.5)
  every = 1 if every_point and len(at) <= 25 else _every(len(at), 9)
  ax.plot(at, mean, **_look(style), markevery=(int(style.shift * every), every))


def _look(style: _Style) -> dict[str, Any]:
  edge = {"markeredgecolor": "white", "markeredgewidth": 0.6}
  return {"color": style.color, "linestyle": style.linestyle, "marker": style.marker, **edge}


def _mean(series: Series, x: str, y: str) -> tuple[list[float], list[float]]:
  """Mean x and mean y over runs, at the steps that all runs have: a run that stopped early bends no mean."""
  tables = [{r["step"]: r for r in records if r.get(y) is not None} for records in series]
  common = sorted(set.intersection(*map(set, tables)))
  mean = lambda key: [float(np.mean([t[s][key] for t in tables])) for s in common]
  return mean(x), mean(y)


def _columns(records: Sequence[dict], x: str, y: str) -> tuple[list[float], list[float]]:
  kept = [r for r in records if r.get(y) is not None]
  return [r[x] for r in kept], [r[y] for r in kept]


def _horizon_lines(ax: Axes, arms: Arms, styles: dict[str, _Style], widths: bool = False) -> None:
  for label, runs in arms.items():
    series = [run.train for run in runs]
    _lines(ax, series, "step", "limit", styles[label])
    at, width = _mean(series, "step", "width")
    if widths and width != _mean(series, "step", "limit")[1]:
      ax.step(at, width, where="post", color=styles[label].color, linestyle=":", linewidth=1.2)
  ax.set_ylim(bottom=0, top=1.06 * ax.dataLim.ymax if _trained(arms) else 1)
  _from_zero(ax)


def _target_line(ax: Axes, target: float) -> None:
  if target:
    ax.axhline(target, **_TARGET, zorder=1)


def _target_handles(target: float) -> list[Line2D]:
  return [Line2D([], [], **_TARGET, label=f"matched accuracy {target:.3g}")] if target else []


def _time_axis(ax: Axes, arms: Arms) -> None:
  divisor, unit = _time_unit(max(run.elapsed for runs in arms.values() for run in runs))
  ax.set_xlabel(f"training time ({unit})")
  right = ax.get_xlim()[1]
  # Ticks are chosen in the unit shown: round minutes, not round hundreds of seconds.
  ticks = MaxNLocator(7, steps=_TICKS).tick_values(0, right / divisor)
  ticks = [t for t in ticks if 0 <= t * divisor <= right]
  ax.set_xticks([t * divisor for t in ticks], [f"{t:g}" for t in ticks])


def _time_unit(longest: float) -> tuple[float, str]:
  return (1.0, "seconds") if longest < 600 else (60.0, "minutes") if longest < 7200 else (3600.0, "hours")


def _styles(arms: Arms) -> dict[str, _Style]:
  looks = zip(cycle(_COLOURS), cycle(_DASHES), cycle(_MARKERS), strict=True)
  return {label: _Style(*look, i / len(arms)) for i, (label, look) in enumerate(zip(arms, looks, strict=False))}


def _legend(figure: Figure, arms: Arms, styles: dict[str, _Style], extra: Sequence[Any] = ()) -> None:
  """Above the axes, where it covers nothing."""
  handles: list[Any] = [Line2D([], [], label=_wrap(label, 70), **_look(styles[label])) for label in arms]
  handles += extra
  columns = _fit(figure, [str(h.get_label()) for h in handles])
  # Room for the rows after the first, so that the axes keep their size.
  figure.set_figheight(figure.get_figheight() + 0.23 * (math.ceil(len(handles) / columns) - 1))
  figure.legend(handles=handles, loc="outside upper left", ncols=columns)


def _fit(figure: Figure, labels: Sequence[str]) -> int:
  """The most legend columns whose widths, by a character's mean width, add up to the figure's."""
  for columns in range(len(labels), 1, -1):
    parts = np.array_split(np.array(labels, object), columns)  # a legend fills column by column
    inches = sum(0.78 + 0.085 * max(len(line) for text in part for line in text.splitlines()) for part in parts)
    if inches <= figure.get_figwidth() - 0.2:
      return columns
  return 1


def _panels(width: float, height: float, rows: int, columns: int, **options) -> tuple[Figure, list[Axes]]:
  figure = Figure(figsize=(width, height), layout="constrained")
  figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)  # pyright: ignore
  return figure, list(figure.subplots(rows, columns, squeeze=False, **options).flat)


def _every(points: int, shown: int) -> int:
  return max(1, round(points / shown))


def _wrap(text: str, width: int) -> str:
  return "\n".join(textwrap.wrap(text, width)).replace("$", r"\$")  # a pair of $ would be set as a formula


def _trained(arms: Arms) -> bool:
  return any(run.train for runs in arms.values() for run in runs)
