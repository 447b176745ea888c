"""The page of the study of d-OPSD: what it is, and the pictures and tables that its verdicts rest on."""

from collections.abc import Iterable
from statistics import fmean

from matplotlib.figure import Figure

from opd_jax.reports import plotting
from opd_jax.studies import charts
from opd_jax.studies.arm_spec import UNTRAINED
from opd_jax.studies.cells import percent
from opd_jax.studies.charts import picture
from opd_jax.studies.diffusion.arms import LABELS, RHO
from opd_jax.studies.evidence import both, gain
from opd_jax.studies.results import Missing, Results
from opd_jax.studies.statistics import interval
from opd_jax.studies.verdict_page import Section

TITLE = "Does it help to be shown one's own future?"
INTRO = """The study of self-distillation of masked diffusion models on 4 x 4 sudokus (python -m opd_jax.study diffusion), after
arXiv:2606.18195. Seed by seed, all arms start from the same student and read the same prompts in the same order; a step samples 128 answers.

These are models of half a million parameters, and puzzles of twenty tokens. What holds here is a reason to expect it elsewhere, and what
does not hold here is a reason to look."""

SUDOKU = [name for name in LABELS if not name.startswith("long")]
PAST = ("long", "long-clip")


def sections(results: Results) -> list[Section]:
  return [
    Section(
      "What a shown future is worth",
      "Before training: the student finishes its own right answers, of which a share of positions is given, and what it puts into empty cells that "
      "are not given is compared with what stood there.",
      None,
      check_table(results),
    ),
    Section(
      "Sudoku",
      "Mean accuracy of the last three evaluations, at temperature 1 and greedy.",
      bars(results, SUDOKU),
      table(results, SUDOKU),
    ),
    Section(
      "On the way, and past it",
      "Accuracy at temperature 1 by step, over twice as many.",
      curves(results, {name: LABELS[name] for name in PAST}),
      table(results, PAST),
    ),
    Section(
      "Several answers",
      "pass@k of eight answers to each problem, at temperature 1.",
      None,
      several_table(results),
    ),
  ]


@picture
def bars(results: Results, arms: Iterable[str]) -> Figure:
  """Draw a row for each arm: the score at temperature 1 and greedy, mean, interval and seeds."""
  found = results.present({arm: LABELS[arm] for arm in arms})
  if not found:
    raise Missing("no run is finished")
  figure, axes = plotting.panels(10, 1.5 + 0.35 * len(found), 1, 2, sharey=True, sharex=True)
  for ax, how in zip(axes, ("sampled", "greedy"), strict=True):
    for row, arm in enumerate(found):
      values = list(results.scores(arm, how).values())
      charts.dot(ax, row, interval(values), values, across=True)
    ax.set(title={"sampled": "temperature 1", "greedy": "greedy"}[how], xlabel="accuracy")
  charts.rows(axes, list(found.values()))
  return figure


@picture
def curves(results: Results, arms: dict[str, str]) -> Figure:
  """Draw the accuracy on held-out problems by step."""
  found = charts.finished_arms(results, arms)
  figure, (ax,) = plotting.panels(8.5, 4.8, 1, 1)
  charts.accuracy_lines(ax, found, "step")
  plotting.legend(figure, found)
  return figure


def table(results: Results, arms: Iterable[str]) -> list[dict[str, str]]:
  """List scores and gains, and what a step has cost."""
  rows = []
  for arm, label in results.present({arm: LABELS[arm] for arm in arms}).items():
    gained, runs = both(gain, results, arm), results.runs(arm)
    rows.append(
      {
        "arm": label,
        "seeds": str(len(runs)),
        "temperature 1": percent(interval(results.scores(arm).values())),
        "greedy": percent(interval(results.scores(arm, "greedy").values())),
        "gained": percent(gained.sampled),
        "gained, greedy": percent(gained.greedy),
        "accepted prompts": _mean(runs, "accepted"),
        "canvases a step": _mean(runs, "canvases"),
        "rollout forwards": _mean(runs, "rollout_forwards"),
        "update forwards": _mean(runs, "update_forwards"),
      }
    )
  return rows


def _mean(runs: dict, key: str) -> str:
  values = [r[key] for run in runs.values() for r in run.train if key in r]
  if not values:
    return "–"
  mean = fmean(values)
  return f"{100 * mean:.0f}%" if key == "accepted" else f"{mean:,.0f}"


def check_table(results: Results) -> list[dict[str, str]]:
  """List the teacher check, by the share that is given."""
  rows = []
  try:
    found = results.analysis("teacher-check")
  except Missing:
    return rows
  for rho in RHO:
    of_share = [record["shares"][f"{rho:g}"] for record in found.values()]
    rows.append(
      {
        "given": f"{100 * rho:g}%",
        "accuracy at empty cells": percent(interval(each["not_given"] for each in of_share)),
        "answers that are right": percent(interval(each["right"] for each in of_share)),
        "pass@1 before": percent(interval(record["pass"]["1"] for record in found.values())),
        "pass@8 before": percent(interval(record["pass"]["8"] for record in found.values())),
      }
    )
  return rows


def several_table(results: Results) -> list[dict[str, str]]:
  """List pass@1 and pass@8 of the students that were asked."""
  rows = []
  for arm, label in {UNTRAINED: "before training", **{arm: LABELS[arm] for arm in (*SUDOKU, *PAST)}}.items():
    try:
      found = results.analysis(f"asked-{arm}")
    except Missing:
      continue
    by_k = {k: interval(record["pass"][k] for record in found.values()) for k in ("1", "8")}
    rows.append({"arm": label} | {f"pass@{k}": percent(estimate) for k, estimate in by_k.items()})
  return rows
