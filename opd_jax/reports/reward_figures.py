"""The pictures of runs that learn from a verifier's reward."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from opd_jax.reports import plotting, reward
from opd_jax.reports.comparison import Arm
from opd_jax.reports.runs import Run

Arms = Sequence[Arm]
SMOOTH = (
  25  # lines are trailing means over this part of the logged steps: a step has few rollouts, and its numbers jump
)
COLUMNS = 40  # of the stacked groups, at most


def first(arms: Arms) -> list[tuple[str, str, str, Figure | None]]:
  """List the pictures of what was earned: file name, title, caption, and a figure where these arms have the data for it."""
  return [
    ("reward", "Reward", _REWARD, rewards(arms)),
    ("groups", "Groups by solve rate", _GROUPS, groups(arms)),
  ]


def second(arms: Arms) -> list[tuple[str, str, str, Figure | None]]:
  """List likewise the pictures of what became of the policy."""
  return [
    ("policy", "Entropy and distance from the start", _POLICY, policy(arms)),
    ("trust_region", "Trust region", _TRUST, trust_region(arms)),
  ]


_REWARD = (
  "Left: the mean reward of each training step's rollouts, which are sampled as in training and may be cut by the "
  f"horizon; the line is a trailing mean over 1/{SMOOTH} of the logged steps, the pale line of an arm with one run is every "
  "step. Right: accuracy on held-out problems. Where the left one rises and the right one does not, the student learns the "
  "training problems, or what the verifier lets pass. Arms without a reward have no line on the left."
)


def rewards(arms: Arms) -> Figure:
  """Draw the reward by step, and the accuracy of the evaluations beside it."""
  figure, (left, right) = plotting.panels(10.4, 4.3, 1, 2)
  for arm, style in plotting.styled(arms):
    if len(arm.runs) == 1:
      known = [(r["step"], r["reward"]) for r in arm.runs[0].train if r.get("reward") is not None]
      left.plot(*zip(*known, strict=True), color=style.color, linewidth=0.8, alpha=0.35, zorder=1.5) if known else None
  plotting.lines(left, arms, _smoothed("reward"), "step", "reward")
  plotting.lines(right, arms, lambda run: run.evals, "step", "accuracy", every_point=True)
  for ax in (left, right):
    plotting.step_axis(ax)
    plotting.low_at_zero(ax)
  left.set(ylabel="mean reward of the rollouts", title="Reward in training")
  right.set(ylabel="accuracy", title="Accuracy on held-out problems")
  plotting.legend(figure, arms)
  return figure


def _smoothed(key: str) -> plotting.Records:
  """Make what picks a run's training records with a trailing mean of this field in its place."""

  def records(run: Run) -> list[dict[str, Any]]:
    known = [r for r in run.train if r.get(key) is not None]
    window = max(1, len(known) // SMOOTH)
    values = np.array([r[key] for r in known], float)
    return [{"step": r["step"], key: np.mean(values[max(0, i + 1 - window) : i + 1])} for i, r in enumerate(known)]

  return records


_GROUPS = (
  "A group is the rollouts of one prompt. Shares of the groups, over all runs of the arm, by how many of their rollouts were "
  f"solved; at most {COLUMNS} columns, each over neighbouring steps. Hatched groups teach nothing: where all rollouts earn the "
  "same, none is better than another. Grey: none solved, the prompt is too hard or the verifier does not see the answer; "
  "white: all solved, nothing is left to learn."
)
_STYLES: Any = (
  {"facecolor": "#bdbdbd", "hatch": "///"},
  {"facecolor": "#08519c"},
  {"facecolor": "#3182bd"},
  {"facecolor": "#6baed6"},
  {"facecolor": "#bdd7e7"},
  {"facecolor": "#ffffff", "hatch": "..."},
)
_EDGE: Any = {"edgecolor": "#555555", "linewidth": 0.4}


def groups(arms: Arms) -> Figure | None:
  """Draw the shares of groups by solve rate over training, stacked, a panel per arm."""
  arms = [arm for arm in arms if any(r.get("groups_by_solve_rate") for run in arm.runs for r in run.train)]
  if not arms:
    return None
  columns = min(3, len(arms))
  rows = math.ceil(len(arms) / columns)
  width = 13 if columns == 3 else 5 * columns + 1
  figure, axes = plotting.panels(width, 3.2 * rows + 0.9, rows, columns, sharex=True, sharey=True)
  found: set[int] = set()
  last = 1.0
  for ax, arm in zip(axes, arms, strict=False):
    edges, shares = _stacked(arm)
    last = max(last, edges[-1])
    bottom = np.zeros(len(shares))
    for band, style in enumerate(_STYLES):
      height = shares[:, band]
      if height.any():
        found.add(band)
        x, low, high = (np.repeat(a, 2) for a in (edges, bottom, bottom + height))
        ax.fill_between(x[1:-1], low, high, **style, **_EDGE)
      bottom = bottom + height
    ax.set_title(plotting.wrap(arm.label, 38))
    ax.grid(False)
    ax.xaxis.set_tick_params(labelbottom=True)
  for ax in axes[len(arms) :]:
    ax.set_visible(False)
  axes[0].set(ylim=(0, 1), xlim=(0, last))
  axes[0].yaxis.set_major_formatter(PercentFormatter(1))
  axes[0].xaxis.set_major_locator(MaxNLocator(6, integer=True))
  figure.supxlabel("step", fontsize=11)
  figure.supylabel("share of groups", fontsize=11)
  handles = [Patch(**_STYLES[i], **_EDGE, label=reward.BANDS[i][0]) for i in sorted(found)]
  figure.legend(
    handles=handles,
    loc="outside upper left",
    ncols=(2, 3, 6)[columns - 1],
    title="of a group's rollouts are solved",
    alignment="left",
  )
  return figure


def _stacked(arm: Arm) -> tuple[np.ndarray, np.ndarray]:
  """Average an arm's groups over neighbouring steps.

  Returns:
    the edges of the columns, steps, one more than there are columns; the share of groups in each, [columns, bands].
  """
  by_step: dict[int, np.ndarray] = {}
  for r in (r for run in arm.runs for r in run.train if r.get("groups_by_solve_rate")):
    by_step[r["step"]] = by_step.get(r["step"], 0) + np.array(reward.bands(r))
  parts = np.array_split(np.array(sorted(by_step)), min(COLUMNS, len(by_step)))
  counts = np.array([sum(by_step[int(step)] for step in part) for part in parts])
  edges = np.array([0, *(part[-1] for part in parts)])
  return edges, counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


_POLICY = (
  "Entropy of the student's distribution at the tokens it drew: where it falls to 0, all rollouts of a prompt are alike and "
  "there is nothing left to choose between. The KL is to the student before training, where the run reads it. Rare tokens "
  f"had a probability below 0.01 when they were drawn. Lines are trailing means over 1/{SMOOTH} of the logged steps."
)


def policy(arms: Arms) -> Figure | None:
  """Draw the entropy, the KL to the student before training and the share of rare tokens."""
  return _grid(
    arms,
    [
      _line("student_entropy", "Entropy", "nats per token"),
      _line("initial_kl", "KL to the student before training", "nats per token"),
      _line("rare", "Rare tokens", "share of tokens", percent=True),
    ],
  )


_TRUST = (
  "mu is the probability that a token was drawn with, pi the one it has when it is learned from. Outside: beyond the "
  "surrogate's trust region. The gradient of a token is -A r w grad log pi, with r = pi / mu: w is 1 in a plain policy gradient, "
  "0 where a token is masked, below 0 where it is pulled back; the line is the mean over tokens, thin lines are the lowest and "
  "the highest of the step. Shift by mu: over the last tenth of the logged steps. The gap is what sampler and trainer differ by "
  f"before the first update: rounding, not learning. Shares, means and gaps are trailing means over 1/{SMOOTH} of the logged "
  "steps; weights and the highest ratio are each step's own. An arm that does not measure something has no line there."
)


def trust_region(arms: Arms) -> Figure | None:
  """Draw how far the policy has moved from the one that drew its tokens, and how its gradient is weighed there."""
  return _grid(
    arms,
    [
      _line("beyond", "Tokens outside the trust region", "share of tokens", percent=True),
      ("gradient_weight", _weights),
      _line("ratio_max", "Highest ratio pi / mu", "pi / mu", extreme=True),
      _line("moved", "Mean shift of drawn tokens", "mean |pi - mu|"),
      ("moved_by_mu", _moved_by_mu),
      _line("logprob_gap", "Gap of sampler and trainer", "mean |log pi - log mu| (nats)"),
    ],
  )


Panel = tuple[str, Callable[[Axes, Arms], None]]  # the key of a record that it needs, and what draws it


def _grid(arms: Arms, panels: Iterable[Panel]) -> Figure | None:
  """Draw those panels that any run has the data for, at most three in a row."""
  known = {key for arm in arms for run in arm.runs for r in run.train for key, value in r.items() if value is not None}
  drawn = [draw for key, draw in panels if key in known]
  if not drawn:
    return None
  columns = min(3, len(drawn)) if len(drawn) != 4 else 2
  rows = math.ceil(len(drawn) / columns)
  figure, axes = plotting.panels(13 if columns == 3 else 5 * columns + 1, 3.5 * rows + 0.6, rows, columns)
  for ax, draw in zip(axes, drawn, strict=False):
    draw(ax, arms)
  for ax in axes[len(drawn) :]:
    ax.set_visible(False)
  plotting.legend(figure, arms)
  return figure


def _line(key: str, title: str, unit: str, *, percent: bool = False, extreme: bool = False) -> Panel:
  """Make a panel of a record's field by step; an extreme is not smoothed, and on a log scale where it varies much."""

  def draw(ax: Axes, arms: Arms) -> None:
    plotting.lines(ax, arms, _train if extreme else _smoothed(key), "step", key)
    plotting.step_axis(ax)
    ax.set(ylabel=unit, title=title)
    if extreme and _spread(ax) > 20:
      _log_axis(ax)
    else:
      plotting.low_at_zero(ax)
    if percent:
      ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.4g}%"))

  return key, draw


def _weights(ax: Axes, arms: Arms) -> None:
  """Draw the mean gradient weight by step, with a band from the lowest to the highest."""
  for arm, style in plotting.styled(arms):
    at, low = plotting.means(arm, _train, "step", "gradient_weight_min")
    also, high = plotting.means(arm, _train, "step", "gradient_weight_max")
    if at == also and at:
      if len(arms) <= 3:  # more would only mix their colours
        ax.fill_between(at, low, high, color=style.color, alpha=0.13, lw=0)
      for bound in (low, high):
        ax.plot(at, bound, color=style.color, linestyle=style.linestyle, linewidth=0.8, alpha=0.7)
  plotting.lines(ax, arms, _train, "step", "gradient_weight")
  plotting.step_axis(ax)
  ax.set(ylabel="w: mean, lowest and highest", title="Weight of a token's gradient")


def _moved_by_mu(ax: Axes, arms: Arms) -> None:
  """Draw the shift of drawn tokens by the probability that they were drawn with, over the last steps."""
  centres = [(low + high) / 2 for low, high in itertools.pairwise(reward.MU_EDGES)]
  for arm, style in plotting.styled(arms):
    moved = reward.moved_by_mu(reward.of_arm(arm, 1.0))
    known = [(x, y) for x, y in zip(centres, moved, strict=True) if y is not None]
    if known:
      ax.plot(*zip(*known, strict=True), **style.line)
  plotting.low_at_zero(ax)
  ax.set(xlabel="mu, the probability it was drawn with", ylabel="mean |pi - mu|", title="Shift by mu", xlim=(0, 1))


def _train(run: Run) -> list[dict[str, Any]]:
  return run.train


def _spread(ax: Axes) -> float:
  low, high = ax.dataLim.ymin, ax.dataLim.ymax
  return high / low if 0 < low <= high < math.inf else 1.0


def _log_axis(ax: Axes) -> None:
  ax.set_yscale("log")
  ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
  ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
  ax.yaxis.set_minor_locator(NullLocator())
