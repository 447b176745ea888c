"""The pictures of the study of trust regions.

Each function takes the results and returns None where nothing of what it shows has been run; `stops` and `weights` need no run.
Dots and thick lines are means over seeds, bars their 95% intervals, faint dots and thin lines single seeds.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from opd_jax.reports import plotting
from opd_jax.studies import charts
from opd_jax.studies.charts import Names, picture
from opd_jax.studies.drpo import bandit
from opd_jax.studies.drpo.estimates import area
from opd_jax.studies.results import Missing, Results
from opd_jax.studies.statistics import interval

Measure = Callable[[Results, str], Mapping[int, float]]  # a number of an arm, by seed


@picture
def bars(results: Results, arms: Names, numbers: Mapping[str, tuple[Measure, str]], share: bool = False) -> Figure:
  """Draw a panel for each number and a row for each arm: mean, interval and seeds.

  Args:
    numbers: title of the panel -> the number, and the label of its axis; where an arm has none, its row is empty.
    share: the panels share one scale.
  """
  shown = charts.present(results, arms)
  size = 4 + 3 * len(numbers), 1.5 + 0.42 * len(shown)
  figure, axes = plotting.panels(*size, 1, len(numbers), sharey=True, sharex=share)
  for ax, (title, (measure, label)) in zip(axes, numbers.items(), strict=True):
    for row, arm in enumerate(shown):
      try:
        values = measure(results, arm).values()
      except Missing:
        continue
      charts.dot(ax, row, interval(values), values, across=True)
    ax.set(title=title, xlabel=label)
  charts.rows(axes, list(shown.values()))
  return figure


@picture
def curves(results: Results, arms: Names) -> Figure:
  """Draw the accuracy on held-out problems by step."""
  found = charts.finished_arms(results, arms)
  figure, (ax,) = plotting.panels(8.5, 4.8, 1, 1)
  charts.accuracy_lines(ax, found, "step")
  plotting.legend(figure, found)
  return figure


@picture
def thresholds(results: Results, families: Mapping[str, Mapping[str, float]], reference: str) -> Figure:
  """Draw the area by threshold, a line for each family of arms, and the reference arm across.

  Args:
    families: label -> arm -> threshold.
  """
  if not any(results.present(arms) for arms in families.values()):
    raise Missing("no threshold has been run")
  figure, (ax,) = plotting.panels(8.5, 4.6, 1, 1)
  handles = []
  for (label, arms), style in zip(families.items(), charts.line_styles(families), strict=True):
    present = results.present(arms)
    means = [interval(area(results, arm).values()).mean for arm in present]
    for arm, delta in present.items():
      values = area(results, arm).values()
      charts.dot(ax, delta, interval(values), values, style)
    ax.plot(list(present.values()), means, color=style.color, linestyle=style.linestyle)
    handles.append(Line2D([], [], **style.line, label=label))
  if results.seeds(reference):
    estimate = interval(area(results, reference).values())
    ax.axhline(estimate.mean, color=plotting.GREY, linewidth=1.5)
    handles.append(Line2D([], [], color=plotting.GREY, linewidth=1.5, label="importance weighting"))
  every = sorted({delta for arms in families.values() for delta in arms.values()})
  ax.set_xscale("log")
  charts.ticks(ax, every, [f"{delta:g}" for delta in every])
  ax.set_xlabel("threshold (log scale; above 1 no probability can pass it)")
  charts.accuracy_axis(ax, "area under the accuracy's curve", zero=False)
  figure.legend(handles=handles, loc="outside upper left", ncols=3)
  return figure


@picture
def conditions(results: Results, panels: Mapping[str, Mapping[str, str]], arms: Names) -> Figure:
  """Draw the area by condition, a line for each arm.

  Args:
    panels: title -> label of a condition -> prefix of its arms' names.
    arms: in the condition whose prefix is "".
  """
  if not any(results.seeds(prefix + arm) for where in panels.values() for prefix in where.values() for arm in arms):
    raise Missing("no condition has been run")
  figure, axes = plotting.panels(4.2 * len(panels), 4.4, 1, len(panels), sharey=True)
  styles = charts.line_styles(arms)
  for ax, (title, where) in zip(axes, panels.items(), strict=True):
    for shift, (arm, style) in enumerate(zip(arms, styles, strict=True)):
      at = {x: prefix + arm for x, prefix in enumerate(where.values()) if results.seeds(prefix + arm)}
      xs = [x + 0.08 * (shift - (len(arms) - 1) / 2) for x in at]
      found = [list(area(results, name).values()) for name in at.values()]
      for x, values in zip(xs, found, strict=True):
        charts.dot(ax, x, interval(values), values, style)
      ax.plot(xs, [np.mean(values) for values in found], color=style.color, linestyle=style.linestyle)
    charts.ticks(ax, list(range(len(where))), list(where))
    ax.set_title(title)
  low, high = min(ax.dataLim.ymin for ax in axes), max(ax.dataLim.ymax for ax in axes)  # they share the axis
  axes[0].set_ylim(max(0.0, low - 0.05), high + 0.05)
  axes[0].set_ylabel("area under the accuracy's curve")
  labels = [Line2D([], [], **style.line, label=label) for label, style in zip(arms.values(), styles, strict=True)]
  figure.legend(handles=labels, loc="outside upper left", ncols=4)
  return figure


@picture
def stops(advantage: float = 0.5) -> Figure:
  """Draw how one token's probability moves under each surrogate, from three starts."""
  figure, axes = plotting.panels(12.5, 4.4, 1, len(bandit.MU), sharey=True)
  names = list(bandit.SURROGATES)
  styles = charts.line_styles(names)
  mu = np.array(bandit.MU)
  for name, style in zip(names, styles, strict=True):
    pi = bandit.path(bandit.SURROGATES[name], mu, np.full_like(mu, advantage))
    steps = np.unique(np.geomspace(1, len(pi), 200).astype(int))
    for ax, by_step in zip(axes, pi.T, strict=True):
      ax.plot(steps, by_step[steps - 1], color=style.color, linestyle=style.linestyle)
  for ax, start in zip(axes, bandit.MU, strict=True):
    ax.axhline(min(1.0, start + bandit.DELTA), color=plotting.GREY, linewidth=1, linestyle=(0, (1, 1.6)))
    ax.set(title=f"mu = {start:g}", xscale="log", xlabel="step", ylim=(0, 1.02))
  axes[0].set_ylabel("probability of the token")
  handles = [
    Line2D([], [], color=style.color, linestyle=style.linestyle, label=name)
    for name, style in zip(names, styles, strict=True)
  ]
  figure.legend(handles=handles, loc="outside upper left", ncols=3)
  return figure


@picture
def weights(shown: Sequence[str], advantage: float = 1.0) -> Figure:
  """Draw the weight w of a token's gradient by its probability, for a rare and a likely token."""
  starts = (bandit.MU[0], bandit.MU[-1])
  figure, axes = plotting.panels(10, 4.2, 1, len(starts), sharey=True)
  styles = charts.line_styles(shown)
  pi = np.linspace(1e-3, 0.999, 999)
  for ax, mu in zip(axes, starts, strict=True):
    for name, style in zip(shown, styles, strict=True):
      ax.plot(pi, bandit.SURROGATES[name](pi, np.array(mu), np.array(advantage)), color=style.color, ls=style.linestyle)
    ax.axvline(mu, color=plotting.GREY, linewidth=1, linestyle=(0, (1, 1.6)))
    ax.set(title=f"mu = {mu:g}", xlabel="probability now", ylim=(-8, 8))
  axes[0].set_ylabel("weight of the gradient (A > 0)")
  handles = [
    Line2D([], [], color=style.color, linestyle=style.linestyle, label=name)
    for name, style in zip(shown, styles, strict=True)
  ]
  figure.legend(handles=handles, loc="outside upper left", ncols=3)
  return figure
