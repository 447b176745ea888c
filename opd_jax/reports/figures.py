"""The pictures of a report.

Lines are means over an arm's runs at the steps that all of them have; the runs themselves are drawn thin.
"""

import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from opd_jax.reports import buffer_figures, plotting, reward, reward_figures
from opd_jax.reports.comparison import Arm, Comparison
from opd_jax.reports.runs import Run, tenth

Arms = Sequence[Arm]


class Picture(NamedTuple):
  """A picture of the page, written to a file."""

  path: pathlib.Path
  title: str
  caption: str
  width: int  # CSS pixels at which its text is as large as the page's


def draw(comparison: Comparison, folder: pathlib.Path) -> list[Picture]:
  """Write every picture that these runs have the data for."""
  arms, target = comparison.arms, comparison.target
  pictures = []
  with matplotlib.rc_context(plotting.RC):
    figures: list[tuple[str, str, str, Figure | None]] = []  # file name, title, caption
    evaluated = [arm for arm in arms if arm.evaluated]
    if evaluated:
      figures.append(("result", "Result", _RESULT, result(arms, target)))
      figures.append(("accuracy", "Accuracy against tokens and steps", _ACCURACY, accuracy(arms, target)))
    if any(run.train for run in comparison.runs):
      of_horizon = [
        ("learning", "Loss and KL by step", _LEARNING, learning(arms)),
        # Beside an accuracy the picture of the result has it.
        ("horizon", "Horizon", _HORIZON, None if evaluated else horizon(arms)),
        ("kl_by_position", "KL by position", _KL, kl_by_position(arms)),
      ]
      of_responses = [("responses", "Training responses", _RESPONSES, responses(arms))]
      if reward.rewarded(arms):  # the question is the reward, and lengths are part of the answer
        figures += [*reward_figures.first(arms), *of_responses, *reward_figures.second(arms), *of_horizon]
      else:
        figures += [*of_horizon, *of_responses]
      figures += buffer_figures.listed(arms)
    figures.append(("time", "Where the time went", _TIME, time(arms)))
    for name, title, caption, figure in figures:
      if figure is not None:
        path = folder / f"{name}.png"
        figure.savefig(path, metadata={"Software": None})
        pictures.append(Picture(path, title, caption, round(88 * figure.get_figwidth())))
  return pictures


_ACCURACY = (
  "Lines are means over an arm's runs at the steps that all of them have; thin lines are the single runs. "
  "An arm with one run shows the interval of each evaluation instead. The dashed grey line is the accuracy at which "
  "the arms are compared. Training time leaves out compiling and evaluation."
)
_HORIZON = (
  "The limit is what the student may generate at that step (thick); the width is what was compiled for it (thin, "
  "dotted, drawn where it differs from the limit)."
)
_RESULT = f"Left: accuracy on held-out problems by training time. Right: the horizon. {_HORIZON} {_ACCURACY}"


def result(arms: Arms, target: float) -> Figure:
  """Draw the README's picture: accuracy by training time, and the horizon that bought it."""
  figure, (left, right) = plotting.panels(10.4, 4.3, 1, 2, width_ratios=(1.55, 1))
  _accuracy_lines(left, arms, "elapsed")
  handles = plotting.target_line(left, target)
  plotting.time_axis(left, arms)
  left.set(ylabel="accuracy", title="Accuracy by training time")
  _horizon_lines(right, arms, widths=True)
  right.set(xlabel="step", ylabel="horizon (tokens)", title="Horizon by step")
  plotting.legend(figure, arms, [*handles, *_width_handle(arms)])
  return figure


def accuracy(arms: Arms, target: float) -> Figure:
  """Draw the accuracy against generated tokens and steps; `result` has it against training time."""
  figure, axes = plotting.panels(10.4, 4.3, 1, 2, sharey=True)
  handles = []
  for ax, x in zip(axes, ("tokens", "step"), strict=True):
    _accuracy_lines(ax, arms, x)
    handles = plotting.target_line(ax, target)
    ax.yaxis.set_tick_params(labelleft=True)
  axes[0].set(xlabel="generated tokens", ylabel="accuracy")
  axes[0].xaxis.set_major_formatter(EngFormatter(sep=""))
  axes[0].xaxis.set_major_locator(MaxNLocator(6, steps=plotting.TICKS))
  axes[1].set(xlabel="step")
  plotting.legend(figure, arms, handles)
  return figure


def _accuracy_lines(ax: Axes, arms: Arms, x: str) -> None:
  plotting.lines(ax, arms, lambda run: run.evals, x, "accuracy", every_point=True)
  for arm, style in plotting.styled(arms):
    if len(arm.runs) == 1 and arm.evaluated:
      at, low, high = ([e[key] for e in arm.runs[0].evals] for key in (x, "low", "high"))
      ax.fill_between(at, low, high, color=style.color, alpha=0.14, lw=0)
  ax.set_ylim(bottom=0)
  plotting.from_zero(ax)


_LEARNING = (
  "Of every logged step, over all tokens that it generated: the loss, which is the objective of each run and compares only where "
  "the objectives are the same, and the KL(student || teacher) over the whole vocabulary, whatever the objective. A horizon that "
  "grows changes which tokens these are means of."
)


def learning(arms: Arms) -> Figure | None:
  """Draw loss and KL by step, each where any run has it; None where none has either."""
  titles = {"loss": "Loss", "kl": "KL to the teacher (nats per token)"}
  shown = {
    key: title
    for key, title in titles.items()
    if any(r.get(key) is not None for a in arms for run in a.runs for r in run.train)
  }
  if not shown:
    return None
  if all(_is_kl(r) for a in arms for run in a.runs for r in run.train):
    shown = {"kl": "The loss, which is the KL to the teacher (nats per token)"}
  figure, axes = plotting.panels(10.4 if len(shown) > 1 else 8, 4.1, 1, len(shown))
  for ax, (key, title) in zip(axes, shown.items(), strict=True):
    plotting.lines(ax, arms, _train, "step", key)
    values = [r[key] for a in arms for run in a.runs for r in run.train if r.get(key) is not None]
    if values and min(values) > 0 and max(values) > 20 * min(values):
      ax.set_yscale("log")
      ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
      ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
      ax.yaxis.set_minor_locator(NullLocator())
    elif values and min(values) >= 0:
      ax.set_ylim(bottom=0)
    ax.set(xlabel="step", title=title)
    plotting.from_zero(ax)
  plotting.legend(figure, arms)
  return figure


def _is_kl(record: dict) -> bool:
  """Tell whether a step's loss is its KL, but for rounding."""
  loss, kl = record.get("loss"), record.get("kl")
  return loss is not None and kl is not None and abs(loss - kl) <= 1e-3 * abs(kl)


def horizon(arms: Arms) -> Figure:
  """Draw the horizon by step, and the width that was compiled for it."""
  figure, (ax,) = plotting.panels(8, 4.5, 1, 1)
  _horizon_lines(ax, arms, widths=True)
  ax.set(xlabel="step", ylabel="horizon (tokens)")
  plotting.legend(figure, arms, _width_handle(arms))
  return figure


def _width_handle(arms: Arms) -> list[Line2D]:
  """The legend's entry for compiled widths, where any differs from its limit."""
  differ = any(r["width"] != r["limit"] for arm in arms for run in arm.runs for r in run.train)
  return [Line2D([], [], color=plotting.GREY, label="compiled width", **_WIDTH)] if differ else []


_WIDTH: Any = {"linestyle": ":", "linewidth": 1.2}


def _horizon_lines(ax: Axes, arms: Arms, widths: bool = False) -> None:
  plotting.lines(ax, arms, _train, "step", "limit")
  for arm, style in plotting.styled(arms) if widths else ():
    at, width = plotting.means(arm, _train, "step", "width")
    if (at, width) != plotting.means(arm, _train, "step", "limit"):
      ax.step(at, width, where="post", color=style.color, **_WIDTH)
  top = ax.dataLim.ymax
  ax.set_ylim(0, 1.06 * top if 0 < top < math.inf else 1)  # infinite where nothing is drawn
  plotting.from_zero(ax)


def _train(run: Run) -> list[dict]:
  return run.train


_KL = (
  "Mean per-token KL between student and teacher at the positions that were trained on: the mean over the first tenth "
  "of the logged steps, the tenth in the middle and the last tenth, over all runs of the arm. Hatched positions were "
  "never generated in training, so nothing is known of them here. Points of fewer than 10 tokens are left out."
)
# name, share of the logged steps before it from 0 to 1, line style
_TIMES: Any = (
  ("early", 0.0, {"color": "#9a9a9a", "linestyle": (0, (2, 1.5)), "marker": "s"}),
  ("middle", 0.5, {"color": "#4d9ac9", "linestyle": (0, (6, 2)), "marker": "^"}),
  ("late", 1.0, {"color": "#08306b", "linestyle": "-", "marker": "o"}),
)
_UNTRAINED: Any = {"facecolor": "#f4f4f4", "edgecolor": "#bdbdbd", "hatch": "///", "linewidth": 0}


def kl_by_position(arms: Arms) -> Figure | None:
  """Draw the KL by position in the response, a panel per arm and a line per time: early, middle, late."""
  arms = [arm for arm in arms if any(map(_by_position, arm.runs))]
  if not arms:
    return None
  columns = min(3, len(arms))
  rows = math.ceil(len(arms) / columns)
  width = 13 if columns == 3 else 5 * columns + 1
  figure, axes = plotting.panels(width, 3.4 * rows + 0.9, rows, columns, sharex=True, sharey=True)
  last = max(r["by_position"]["edges"][-1] for arm in arms for run in arm.runs for r in _by_position(run))
  handles: dict[str, Any] = {}
  values = []
  for ax, arm in zip(axes, arms, strict=False):
    for name, at_share, style in _TIMES:
      positions, kl = _mean_kl(arm, at_share)
      if len(kl):
        ax.plot(positions, kl, markevery=plotting.marker_every(len(kl), 16), **style)
        handles[name] = Line2D([], [], label=name, **style)
        values.extend(kl[kl > 0])
    trained = _trained_end(arm)
    if trained < last:
      ax.axvspan(trained, last, **_UNTRAINED, zorder=0)
    ax.set_title(plotting.wrap(arm.label, 38))
    ax.xaxis.set_tick_params(labelbottom=True)
  for ax in axes[len(arms) :]:
    ax.set_visible(False)
  # What follows holds for all panels: they share both axes.
  axes[0].set_xlim(0, last)
  axes[0].xaxis.set_major_locator(MaxNLocator(6, integer=True))
  if values and max(values) / min(values) > 20:
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes[0].yaxis.set_minor_locator(NullLocator())
  else:
    axes[0].set_ylim(bottom=0)
  figure.supxlabel("position in the response (tokens)", fontsize=11)
  figure.supylabel("KL (nats per token)", fontsize=11)
  order = [handles[name] for name, _, _ in _TIMES if name in handles]
  figure.legend(handles=[*order, Patch(**_UNTRAINED, label="never trained on")], loc="outside upper left", ncols=4)
  return figure


def _by_position(run: Run) -> list[dict]:
  """The training records that have the divergence by position."""
  return [r for r in run.train if "kl" in (r.get("by_position") or {})]


def _mean_kl(arm: Arm, at_share: float) -> tuple[np.ndarray, np.ndarray]:
  """Average the KL by position over the tokens of a tenth of every run's logged steps: the last tenth at share 1.

  Returns:
    the centres of the bins, and their KL in nats per token.
  """
  records = [r for run in arm.runs for r in tenth(_by_position(run), at_share)]
  if not records:
    return np.zeros(0), np.zeros(0)
  bins = [r["by_position"] for r in records]
  kl = np.array([b["kl"] for b in bins], float)  # records by bins; NaN where nothing was generated
  tokens = np.where(np.isfinite(kl), [b["count"] for b in bins], 0)
  total = tokens.sum(0)
  mean = np.nansum(kl * tokens, 0) / np.maximum(total, 1)
  left, right = np.array(bins[0]["edges"][:-1]), np.array(bins[0]["edges"][1:])
  centres = (left + np.clip(max(r["limit"] for r in records), left, right)) / 2  # of the part below the limit
  return centres[total >= 10], mean[total >= 10]


def _trained_end(arm: Arm) -> float:
  """The position up to which responses were ever generated; tokens."""
  ends = [0.0]
  for r in (r for run in arm.runs for r in _by_position(run)):
    bins = zip(r["by_position"]["edges"][1:], r["by_position"]["count"], strict=True)
    ends += [min(edge, r["limit"]) for edge, tokens in bins if tokens]
  return max(ends)


_RESPONSES = (
  "Responses of the training rollouts: mean length, the share that ended with a stop token, and the share that the "
  "horizon cut. Evaluation is never cut."
)


def responses(arms: Arms) -> Figure:
  """Draw the mean length of training responses, and the shares that ended and that were cut."""
  figure, axes = plotting.panels(13, 4.2, 1, 3)
  shown = {"response_length": "Mean response length", "ended": "Ended with a stop token", "cut": "Cut by the horizon"}
  for ax, (key, title) in zip(axes, shown.items(), strict=True):
    plotting.lines(ax, arms, _train, "step", key)
    ax.set(xlabel="step", title=title)
    plotting.from_zero(ax)
  length, *shares = axes
  length.set(ylabel="tokens")
  length.set_ylim(bottom=0)
  for ax in shares:
    ax.set(ylabel="share of responses", ylim=(-0.04, 1.04))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
  plotting.legend(figure, arms)
  return figure


_TIME = (
  "One bar per run. The first five parts are the training time of the other figures; waiting for compilation and "
  "evaluation come on top."
)
# name in Run.seconds, legend, colour, hatch: light fills, so that the hatch is what tells them apart in grey
_PARTS = (
  ("rollout", "rollout", "#9ecae1", ""),
  ("verify", "verifying", "#f7c59f", "///"),
  ("probe", "probing the horizon", "#c5b0d5", "||"),
  ("update", "update", "#a8ddb5", "..."),
  ("other", "rest of the loop", "#dddddd", "xxx"),
  ("compile", "waiting for compilation", "#ffffff", "\\\\\\"),
  ("eval", "evaluation", "#ffffff", "+++"),
)


def time(arms: Arms) -> Figure | None:
  """Draw where the time of every run went; None where no time has passed."""
  bars = [run.seconds for arm in arms for run in arm.runs]
  longest = max(sum(parts.values()) for parts in bars)
  if not longest:
    return None
  divisor, unit = plotting.time_unit(longest)
  figure, (ax,) = plotting.panels(10.4, 1.5 + 0.36 * len(bars) + 0.12 * len(arms), 1, 1)
  names, steps = [], []
  for arm in arms:
    seeds = [f"seed {run.seed}" for run in arm.runs]
    names += [plotting.wrap(f"{arm.label}, {seeds[0]}", 34), *seeds[1:]]
    steps += [1.45] + [1.0] * (len(seeds) - 1)  # a gap between arms, so that the seeds of one read as a group
  heights = np.cumsum(steps) - 0.45
  left = np.zeros(len(bars))
  for part, legend, colour, hatch in _PARTS:
    size = np.array([parts[part] for parts in bars]) / divisor
    ax.barh(heights, size, 0.74, left, color=colour, hatch=hatch, edgecolor="#333333", linewidth=0.6, label=legend)
    left += size
  for height, total in zip(heights, left, strict=True):
    text = f"{total:.1f}" if total < 100 else f"{total:.0f}"
    ax.annotate(text, (total, height), (5, 0), textcoords="offset points", va="center", color=plotting.GREY)
  ax.set_yticks(heights, names)
  ax.set(xlabel=f"time ({unit})", xlim=(0, left.max() * 1.08), ylim=(heights[-1] + 0.7, 0.3))
  ax.grid(False, axis="y")
  ax.tick_params(axis="y", length=0)
  figure.legend(loc="outside upper left", ncols=3, handleheight=1.3, handlelength=2.4)
  return figure
