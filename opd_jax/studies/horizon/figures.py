"""The pictures of the study of horizons.

Each function takes the results and the names of arms, and returns None where none of these has been run. Dots and thick
lines are means over seeds, bars their 95% intervals, faint dots and thin lines single seeds. Of costs the means are
geometric; where a run never arrives, dot and bar are the median and all that was found (statistics.py).
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from opd_jax.reports import plotting
from opd_jax.reports.labels import show
from opd_jax.reports.plotting import GREY
from opd_jax.studies import charts
from opd_jax.studies.charts import PLAIN, Names, picture
from opd_jax.studies.results import Missing, Results
from opd_jax.studies.statistics import geometric, interval


@picture
def horizon(results: Results, full: str, truncated: Iterable[str], shown: Names) -> Figure:
  """Draw the score by how far the student generates, and the accuracy by training time.

  Args:
    full: OPD, drawn as a band.
    truncated: TOPD arms; their ratios come from their configs.
    shown: whose accuracy is drawn against time.
  """
  arms = charts.finished_arms(results, shown)
  figure, (left, right) = plotting.panels(11.5, 4.6, 1, 2, width_ratios=(1, 1.15))
  handles: list[Any] = []
  if results.seeds(full):
    styles = {arm.label: style for arm, style in plotting.styled(arms)}
    style = styles.get(shown.get(full, ""), PLAIN)
    handles.append(charts.band(left, results, full, style, "whole rollouts (OPD)"))
    handles += charts.before_training(left, results, [full])
  arm_by_ratio = _by_ratio(results, truncated)
  if arm_by_ratio:
    ratios = list(arm_by_ratio)
    means = [charts.score(left, ratio, results, arm) for ratio, arm in arm_by_ratio.items()]
    left.plot(ratios, means, color=PLAIN.color, lw=1.2)
    handles.insert(0, Line2D([], [], **PLAIN.line, label="truncated rollouts (TOPD)"))
    left.set_xscale("log")
    left.set_xlim(ratios[0] / 1.4, ratios[-1] * 1.4)
    charts.ticks(left, ratios, [charts.percent(ratio) for ratio in ratios])
  left.set(xlabel="horizon (share of the longest response)", title="Score by horizon")
  charts.accuracy_axis(left, charts.SCORE, zero=False)
  charts.accuracy_lines(right, arms, "elapsed")
  right.set_title("Accuracy by training time")
  plotting.legend(figure, arms, handles)
  return figure


_COSTS = {
  "elapsed": "Training time (s)",
  "tokens": "Generated tokens",
  "flops": "Model FLOPs",
  "step": "Steps",
}


@picture
def cost(results: Results, arms: Names, reference: str, margin: float = 0.01) -> Figure:
  """Draw what each arm spends until it is first at the reference's score less the margin, seed by seed."""
  targets = {seed: score - margin for seed, score in results.scores(reference).items()}
  shown = charts.present(results, arms)
  figure, axes = plotting.panels(13, 1.4 + 0.52 * len(shown), 1, 4, sharey=True)
  styles = charts.line_styles(shown)
  for ax, (x, title) in zip(axes, _COSTS.items(), strict=True):
    found = {arm: list(results.seconds_to(arm, targets, x).values()) for arm in shown}
    estimates = {arm: geometric(costs) for arm, costs in found.items()}
    charts.cost_axis(ax, [v for arm, costs in found.items() for v in (*costs, *estimates[arm][:3])])
    for row, (arm, style) in enumerate(zip(shown, styles, strict=True)):
      charts.dot(ax, row, estimates[arm], found[arm], style, across=True)
      charts.reached(ax, row, estimates[arm], found[arm])
    if reference in shown:
      ax.axvline(estimates[reference].mean, color="#a8a8a8", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    ax.set(title=title)
  charts.rows(axes, list(shown.values()))
  return figure


@picture
def segments(results: Results, tenths: Names, others: Names, full: str | None = None) -> Figure:
  """Draw the score by which part of the response was trained.

  Args:
    tenths: arms that trained one stretch each, from the beginning to the end -> which.
    others: as few tokens chosen in other ways, to the right of them.
    full: the arm that trained all tokens, as a band.
  """
  left, right = charts.present(results, tenths), results.present(others)
  figure, (ax,) = plotting.panels(10.4, 4.6, 1, 1)
  places = [*range(len(left)), *(len(left) + 0.7 + i for i in range(len(right)))]
  handles: list[Any] = [Line2D([], [], **{**PLAIN.line, "linestyle": ""}, label="trained on these tokens only")]
  for at, arm in zip(places, (*left, *right), strict=True):
    charts.score(ax, at, results, arm)
  if right:
    ax.axvline(len(left) - 0.15, color="#999999", linewidth=0.9)
  if full is not None and results.seeds(full):
    handles.append(charts.band(ax, results, full, charts.FULL, "trained on all tokens"))
  handles += charts.before_training(ax, results, (*left, *right))
  charts.ticks(ax, places, [plotting.wrap(label, 8) for label in (*left.values(), *right.values())])
  ax.grid(False, axis="x")
  ax.set(xlabel="which tokens of the response were trained", xlim=(-0.6, places[-1] + 0.6))
  charts.accuracy_axis(ax, charts.SCORE, zero=False)
  figure.legend(handles=handles, loc="outside upper left", ncols=3)
  return figure


@picture
def continuation(results: Results, analysis: str, students: Names, truncated: Iterable[str] = ()) -> Figure:
  """Draw the accuracy where the teacher wrote the beginning of the response, by how much of it.

  Args:
    analysis: its name; records are {student: {share: accuracy}}.
    students: of the analysis -> label.
    truncated: TOPD arms, drawn at their ratio: what training on such a prefix gave, without any help.
  """
  found = results.analysis(analysis)
  figure, (ax,) = plotting.panels(8, 4.8, 1, 1)
  handles: list[Any] = []
  shares: set[float] = set()
  for (student, label), style in zip(students.items(), charts.line_styles(students), strict=True):
    measured = [record[student] for record in found.values() if student in record]
    if not measured:
      continue
    by_share = {float(share): [record[share] for record in measured] for share in measured[0]}  # of all seeds
    for share, accuracies in by_share.items():
      charts.dot(ax, share, interval(accuracies), accuracies, style)
    in_order = sorted(by_share)
    means = [np.mean(by_share[share]) for share in in_order]
    ax.plot(in_order, means, color=style.color, linestyle=style.linestyle)
    handles.append(Line2D([], [], **style.line, label=label))
    shares |= by_share.keys()
  arm_by_ratio = _by_ratio(results, truncated)
  if arm_by_ratio:
    style = PLAIN._replace(marker="D")
    for ratio, arm in arm_by_ratio.items():
      charts.score(ax, ratio, results, arm, style)
    handles.append(Line2D([], [], **{**style.line, "linestyle": ""}, label="trained with this horizon, no prefix"))
  ax.set_xscale("function", functions=(_root, lambda v: np.sign(v) * v**2))
  every = sorted({*shares, *arm_by_ratio})
  ax.set_xlim(-0.0004, every[-1] * 1.06)
  charts.ticks(ax, every, [charts.percent(share) for share in every])
  ax.set_xlabel("response written by the teacher (share of the longest; square-root scale)")
  charts.accuracy_axis(ax)
  plotting.legend(figure, [], handles)
  return figure


def _root(value: np.ndarray) -> np.ndarray:
  """The square root, continued to negative values as an odd function."""
  return np.sign(value) * np.abs(value) ** 0.5


_TIMES: Any = (
  {"color": "#9a9a9a", "linestyle": (0, (2, 1.5)), "marker": "s"},
  {"color": "#7fb8da", "linestyle": (0, (6, 2)), "marker": "^"},
  {"color": "#2f7fbc", "linestyle": (0, (6, 2, 1.5, 2)), "marker": "D"},
  {"color": "#08306b", "linestyle": "-", "marker": "o"},
)


@picture
def positions(results: Results, analysis: str, metrics: Names, steps: Names) -> Figure:
  """Draw what a response is like by position, at several times of training.

  Args:
    analysis: its name; records are {"edges": [bins + 1], step: {metric: [bins]}}. Edges are tokens, and None stands
      where nothing is known.
    metrics: of the analysis -> label with its unit; a panel each.
    steps: of the analysis -> label, at most four, in order.
  """
  found = results.analysis(analysis).values()
  edges = np.array(next(iter(found))["edges"], float)
  known = {step: label for step, label in steps.items() if any(step in record for record in found)}
  if not known:
    raise Missing(f"the analysis {analysis} has none of the steps {', '.join(steps)}")
  columns = min(2, len(metrics))
  rows = math.ceil(len(metrics) / columns)
  figure, axes = plotting.panels(5.2 * columns + 0.6, 3.1 * rows + 0.7, rows, columns, sharex=True)
  styles = dict(zip(known, _TIMES[-len(known) :], strict=True))
  for ax, (metric, label) in zip(axes, metrics.items(), strict=False):
    for step, style in styles.items():
      values = [record[step][metric] for record in found if metric in record.get(step, ())]
      if values:
        mean = np.ma.masked_invalid(np.array(values, float)).mean(0).filled(np.nan)  # over seeds
        every = plotting.marker_every(len(mean), 10)
        ax.plot((edges[:-1] + edges[1:]) / 2, mean, **style, markersize=5, markevery=every)
    ax.set_title(label)
  for ax in axes[len(metrics) :]:
    ax.set_visible(False)
  axes[0].set_xlim(0, edges[-1])
  axes[0].xaxis.set_major_locator(MaxNLocator(8, integer=True))
  figure.supxlabel("position in the response (tokens)", fontsize=11)
  plotting.legend(figure, [], [Line2D([], [], **style, label=known[step]) for step, style in styles.items()])
  return figure


@picture
def accuracy(results: Results, arms: Names, x: str = "elapsed", title: str = "") -> Figure:
  """Draw the accuracy by training time ("elapsed") or by step ("step")."""
  shown = charts.finished_arms(results, arms)
  figure, (ax,) = plotting.panels(8, 4.5, 1, 1)
  charts.accuracy_lines(ax, shown, x)
  ax.set_title(title)
  plotting.legend(figure, shown)
  return figure


@picture
def scores(results: Results, arms: Names, title: str = "", before: bool = True) -> Figure:
  """Draw the scores of arms, from top to bottom.

  Args:
    before: show the untrained student too; without it, scores near each other are told apart.
  """
  shown = charts.present(results, arms)
  figure, (ax,) = plotting.panels(8, 1.5 + 0.5 * len(shown), 1, 1)
  for row, (arm, style) in enumerate(zip(shown, charts.line_styles(shown), strict=True)):
    mean = charts.score(ax, row, results, arm, style, across=True)
    values = results.scores(arm).values()
    beyond = max(v for v in (interval(values).high, *values) if math.isfinite(v))
    ax.annotate(f"{mean:.3f}", (beyond, row), (9, 0), textcoords="offset points", va="center", fontsize=10)
  handles = charts.before_training(ax, results, shown, across=True) if before else []
  charts.rows([ax], list(shown.values()))
  low, high = ax.dataLim.intervalx
  room = max(0.1, high - low)
  ax.set(xlabel=charts.SCORE, xlim=(max(0.0, low - 0.1 * room), high + 0.15 * room), title=title)
  if handles:
    figure.legend(handles=handles, loc="outside upper left")
  return figure


@picture
def drift(results: Results, grid: Iterable[str], shown: Names) -> Figure:
  """Draw the score by learning rate and horizon, and the accuracy of some arms by step.

  Args:
    grid: arms of one fixed horizon each; learning rates come from their configs.
    shown: whose accuracy is drawn by step.
  """
  arms = results.present(dict.fromkeys(grid))
  cells = {(results.config(arm)["optimizer.lr"], _horizon(results, arm)): results.scores(arm) for arm in arms}
  if not cells:
    raise Missing("no arm of the grid is finished")
  rates, lengths = (sorted(set(values)) for values in zip(*cells, strict=True))
  figure, (left, right) = plotting.panels(12, 4.8, 1, 2, width_ratios=(1, 1.15))
  table = np.ma.masked_all((len(lengths), len(rates)))
  means = [interval(found.values()).mean for found in cells.values()]
  scale = Normalize(min(*means, max(means) - 0.3), max(means))  # differences of noise keep one colour
  for (rate, length), found in cells.items():
    mean, low, high, _ = interval(found.values())
    row, column = lengths.index(length), rates.index(rate)
    table[row, column] = mean
    text = f"{mean:.2f}" + (f"\n±{(high - low) / 2:.2f}" if math.isfinite(low) else "")
    ink = "white" if scale(mean) < 0.5 else "black"
    left.annotate(text, (column + 0.5, row + 0.5), ha="center", va="center", color=ink)
  for row, column in zip(*np.nonzero(table.mask), strict=True):
    left.annotate("not run", (column + 0.5, row + 0.5), ha="center", va="center", color=GREY, fontsize=9)
  image = left.pcolormesh(table, cmap="cividis", norm=scale, edgecolors="white", linewidth=2)
  left.grid(False)
  left.set_xticks(np.arange(len(rates)) + 0.5, [show(rate) for rate in rates])
  left.set_yticks(np.arange(len(lengths)) + 0.5, [str(length) for length in lengths])
  left.tick_params(length=0)
  left.set(xlabel="learning rate", ylabel="horizon (tokens)", title="Score by learning rate and horizon")
  figure.colorbar(image, ax=left, label=charts.SCORE, pad=0.02)
  drifting = charts.finished_arms(results, shown)
  charts.accuracy_lines(right, drifting, "step")
  right.set_title("Accuracy by step")
  right.legend(handles=[Line2D([], [], **style.line, label=arm.label) for arm, style in plotting.styled(drifting)])
  return figure


def _by_ratio(results: Results, arms: Iterable[str]) -> dict[float, str]:
  """The finished arms by the ratio of their horizon to the longest response, from the smallest to the largest."""
  arm_by_ratio = {_ratio(results, arm): arm for arm in arms if results.seeds(arm)}
  return dict(sorted(arm_by_ratio.items()))


def _horizon(results: Results, arm: str) -> int:
  """The horizon of an arm's first step; tokens."""
  return next(iter(results.runs(arm).values())).train[0]["limit"]


def _ratio(results: Results, arm: str) -> float:
  config = results.config(arm)
  return config.get("horizon.ratio") or _horizon(results, arm) / config["horizon.max"]


@picture
def adaptive(results: Results, chosen: Names, others: Names) -> Figure:
  """Draw how far each rule let the student generate, and its score and training time, beside other horizons.

  Args:
    chosen: arms whose horizon is chosen while training; a panel each, and filled marks.
    others: fixed and scheduled horizons; hollow marks.
  """
  rules = charts.finished_arms(results, chosen)
  columns = min(2, len(rules))
  rows = math.ceil(len(rules) / columns)
  figure = Figure(figsize=(13, max(4.4, 2.2 * rows + 0.7)), layout="constrained")
  grid = figure.add_gridspec(rows, columns + 1, width_ratios=[1] * columns + [0.9 * columns])
  longest = max(r["limit"] for arm in rules for run in arm.runs for r in run.train)
  ax = None
  for i, (arm, style) in enumerate(plotting.styled(rules)):
    row, column = divmod(i, columns)
    ax = figure.add_subplot(grid[row, column], sharex=ax, sharey=ax)
    for run in arm.runs:
      steps, limits = [r["step"] for r in run.train], [r["limit"] for r in run.train]
      charts.stairs(ax, steps, limits, style, linewidth=0.8, alpha=0.5)
    charts.stairs(ax, *plotting.means(arm, lambda run: run.train, "step", "limit"), style, linewidth=2.2)
    ax.set(title=arm.label, ylabel="" if column else "horizon (tokens)")
    ax.set_xlabel("" if i + columns < len(rules) else "step")
    ax.set_ylim(0, 1.06 * longest)
  ax = figure.add_subplot(grid[:, -1])
  handles = []
  for names, filled in ((results.present(chosen), True), (results.present(others), False)):
    for (arm, label), style in zip(names.items(), charts.line_styles(names), strict=True):
      handles.append(charts.trade(ax, results, arm, label, style, filled))
  plotting.from_zero(ax)
  plotting.time_axis(ax, charts.finished_arms(results, {**chosen, **others}))
  ax.set_title("Score by training time of the whole run")
  charts.accuracy_axis(ax, charts.SCORE, zero=False)
  with matplotlib.rc_context({"legend.handlelength": 1.2}):  # marks alone
    plotting.legend(figure, [], handles)
  return figure


@picture
def credit(results: Results, teachers: Mapping[str, Iterable[str]]) -> Figure:
  """Draw the score by how much a token answers for later ones, under several teachers.

  Args:
    teachers: label -> arms; their discounts come from their configs.
  """
  lines = {
    label: {results.config(arm)["objective.discount"]: arm for arm in arms if results.seeds(arm)}
    for label, arms in teachers.items()
  }
  discounts = sorted({discount for line in lines.values() for discount in line})
  if not discounts:
    raise Missing("no arm with a discount is finished")
  figure, (ax,) = plotting.panels(8, 4.6, 1, 1)
  handles: list[Any] = []
  for i, ((label, line), style) in enumerate(zip(lines.items(), charts.line_styles(lines), strict=True)):
    shift = 0.2 * (i - (len(lines) - 1) / 2)  # so that intervals stand beside each other
    at = [discounts.index(d) + shift for d in sorted(line)]
    means = [charts.score(ax, x, results, line[d], style) for x, d in zip(at, sorted(line), strict=True)]
    ax.plot(at, means, color=style.color, linestyle=style.linestyle, linewidth=1.4)
    handles.append(Line2D([], [], **style.line, label=label))
  handles += charts.before_training(ax, results, [arm for line in lines.values() for arm in line.values()])
  charts.ticks(ax, range(len(discounts)), [_discount(d) for d in discounts])
  ax.set(xlabel="discount of later tokens' rewards", xlim=(-0.5, len(discounts) - 0.5))
  charts.accuracy_axis(ax, charts.SCORE, zero=False)
  figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
  return figure


def _discount(value: float) -> str:
  levels = {0.0: "\n(token level)", 1.0: "\n(sequence level)"}
  return f"{value:g}{levels.get(value, '')}"
