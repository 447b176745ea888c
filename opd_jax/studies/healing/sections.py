"""The page of the study of healing: what it is, and the pictures and tables that its verdicts rest on."""

import itertools
from collections.abc import Mapping
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opd_jax.reports import plotting
from opd_jax.studies import charts
from opd_jax.studies.arm_spec import UNTRAINED
from opd_jax.studies.cells import asked, number, percent
from opd_jax.studies.charts import picture
from opd_jax.studies.healing.arms import LABELS, SHORT
from opd_jax.studies.healing.claims import FIXED, accuracy, measured
from opd_jax.studies.healing.curves import Axis, Curve, curves, from_position
from opd_jax.studies.healing.measures import EDGES
from opd_jax.studies.results import Missing, Results
from opd_jax.studies.statistics import interval
from opd_jax.studies.verdict_page import Section

TITLE = "Are full rollouts necessary to heal a real language model?"
INTRO = """The study of a language model that was pruned and is healed from the original (python -m opd_jax.study healing --model=DIR), after arXiv:2605.31490.
Arms have about as many FLOPs, counted and not timed, so that runs may share the machine with other work; claims compare two arms where both have spent as much.

All measures are of held-out prompts and of answers of full length. With one seed no interval is known, and no claim that needs one is decided."""

SHARES = (0.5, 1.0)  # of OPD's budget
UNIT = 1e12  # FLOPs
NEARLY = 0.85  # of a budget: an arm that spent so much is read at its end; .95 until a seed had been seen
ASKED = {UNTRAINED: "before training"} | LABELS
MEASURES = {
  "on the original's answers": "forward_kl",
  "likeliest tokens that agree": "agreement",
  "tokens of an answer": "length",
  "answers that end": "ended",
  "tokens that are repeated": "repeated",
}


def sections(results: Results) -> list[Section]:
  return [
    Section(
      "Divergence by cost",
      "The reverse KL to the original model on own answers of full length, by the FLOPs of training (means over seeds at the checkpoints, and the seeds), "
      "and how much less likely the original's answers are to a student after training than to the original.",
      by_cost(results),
      table(results),
    ),
    Section(
      "Where in an answer",
      "The same after training, by position.",
      by_position(results),
      position_table(results),
    ),
    Section(
      "The best horizon by budget",
      "The divergence where a share of OPD's FLOPs is spent, between checkpoints by a line; a dash where an arm spent clearly less.",
      None,
      budget_table(results, "flops"),
    ),
    Section(
      "The same by generated tokens",
      "As above, of OPD's generated tokens.",
      None,
      budget_table(results, "tokens"),
    ),
    Section(
      "What was spent",
      "FLOPs by counting, and generated tokens.",
      None,
      cost_table(results),
    ),
  ]


@picture
def by_cost(results: Results) -> Figure:
  """Draw divergence on own answers against FLOPs for the arms of `SHORT`, and that on the original's answers after training for all."""
  trained = _trained(results)
  shown = {arm: label for arm, label in trained.items() if arm in SHORT}
  if not shown:
    raise Missing(f"none of {', '.join(SHORT)} was measured")
  rows = asked(results, ASKED)
  figure, (own, originals) = plotting.panels(11, max(4.4, 1.4 + 0.27 * len(rows)), 1, 2)
  for (arm, label), style in zip(shown.items(), charts.line_styles(shown), strict=True):
    _curve(own, list(curves(results, arm).values()), label, style)
  own.set(title="KL to the original on own answers", xlabel="FLOPs of training, 1e12", ylabel="nats a token")
  own.set_ylim(bottom=0)
  own.legend()
  for row, arm in enumerate(rows):
    by_seed = measured(results, arm, "forward_kl").values()
    charts.dot(originals, row, interval(by_seed), by_seed if len(by_seed) > 1 else (), across=True)
  originals.set(title="on the original's answers, after training", xlabel="nats a token")
  charts.rows([originals], list(rows.values()))
  return figure


def _curve(ax: Axes, of_seeds: list[Curve], label: str, style: plotting.Style) -> None:
  """Draw the mean over seeds, and where there are several each of them thin."""
  for curve in of_seeds if len(of_seeds) > 1 else ():
    ax.plot(curve.flops / UNIT, curve.kl, color=style.color, linewidth=0.7, alpha=0.45)
  flops, kl = (np.mean([getattr(curve, name) for curve in of_seeds], axis=0) for name in ("flops", "kl"))
  ax.plot(flops / UNIT, kl, label=label, **style.line)


@picture
def by_position(results: Results) -> Figure:
  """Draw a line for each arm: divergence by position after training; and before, in grey."""
  trained = asked(results, LABELS)
  if not trained:
    raise Missing("no arm was measured")
  styles = dict(zip(trained, charts.line_styles(trained.values()), strict=True))
  figure, (ax,) = plotting.panels(9, 5.2, 1, 1)
  middles = [(a + b) / 2 for a, b in itertools.pairwise(EDGES)]
  for arm, label in asked(results, ASKED).items():
    style = styles.get(arm, plotting.Style(plotting.GREY, "-", "o", 0.0))
    ax.plot(middles, _by_bin(results, arm), label=label, **style.line)
  ax.set_xlabel("position in the answer, tokens")
  ax.set_ylabel("KL to the original model, nats a token")
  ax.set_ylim(bottom=0)
  figure.legend(loc="outside upper left", ncols=3)
  return figure


def _trained(results: Results) -> dict[str, str]:
  return {arm: label for arm, label in asked(results, LABELS).items() if results.seeds(arm)}


def _by_bin(results: Results, arm: str) -> list[float]:
  """The mean divergence of every bin over seeds; NaN where no answer is so long."""
  rows = [record["steps"][-1]["by_position"] for record in results.analysis(f"asked-{arm}").values()]
  return [interval(x for x in column if x is not None).mean for column in zip(*rows, strict=True)]


def table(results: Results) -> list[dict[str, str]]:
  """List what was measured after training, of every arm and before."""
  rows = []
  for arm, label in asked(results, ASKED).items():
    row = {"arm": label, "seeds": str(len(measured(results, arm)))}
    row["KL, nats a token"] = number(measured(results, arm))
    row["all positions alike"] = number(_alike(results, arm))
    row |= {head: number(measured(results, arm, key)) for head, key in MEASURES.items()}
    for how, title in (("sampled", "temperature 1"), ("greedy", "greedy")):
      row[f"word problems, {title}"] = _percent(accuracy(results, arm, how))
    rows.append(row)
  return rows


def _alike(results: Results, arm: str) -> dict[int, float]:
  last = {seed: record["steps"][-1] for seed, record in results.analysis(f"asked-{arm}").items()}
  found = {seed: from_position(step, weights="positions") for seed, step in last.items()}
  return {seed: kl for seed, kl in found.items() if kl is not None}


def position_table(results: Results) -> list[dict[str, str]]:
  """List the divergence by position."""
  heads = [f"{a} to {b}" for a, b in itertools.pairwise(EDGES)]
  return [
    {"arm": label} | {head: number({0: x}) for head, x in zip(heads, _by_bin(results, arm), strict=True)}
    for arm, label in asked(results, ASKED).items()
  ]


def budget_table(results: Results, axis: Axis) -> list[dict[str, str]]:
  """List the divergence of OPD and of the fixed horizons at shares of what OPD has spent, means over seeds, and name the lowest."""
  try:
    opd = curves(results, "opd")
  except Missing:
    return []
  arms = {arm: curves(results, arm) for arm in _trained(results) if arm in ("opd", *FIXED)}
  rows = []
  for share in SHARES:
    means = {LABELS[arm]: _at_share(of, opd, share, axis) for arm, of in arms.items()}
    known = {label: mean for label, mean in means.items() if mean is not None}
    numbers = {label: "–" if mean is None else number({0: mean}) for label, mean in means.items()}
    rows.append({"share": f"{100 * share:g}%"} | numbers | {"lowest": min(known, key=lambda label: known[label])})
  return rows


def _at_share(of: dict[int, Curve], opd: dict[int, Curve], share: float, axis: Axis) -> float | None:
  """The mean over the seeds that both have; None where there is none, or where one of them spent clearly less."""
  budgets = {seed: share * opd[seed].spent(axis) for seed in of.keys() & opd.keys()}
  if not budgets or any(of[seed].spent(axis) < NEARLY * budget for seed, budget in budgets.items()):
    return None
  return fmean(of[seed].at(budget, axis) for seed, budget in budgets.items())


def cost_table(results: Results) -> list[dict[str, str]]:
  """List what each arm's training has cost."""
  rows = []
  for arm, label in results.present(LABELS).items():
    flops = {seed: total / UNIT for seed, total in results.totals(arm, "flops").items()}
    row = {"arm": label, "steps": str(results.config(arm)["steps"]), "FLOPs, 1e12": number(flops)}
    rows.append(row | {"tokens generated": number(results.totals(arm, "tokens"))})
  return rows


def _percent(by_seed: Mapping[int, float]) -> str:
  return percent(interval(by_seed.values()))
