"""The page of the study of healing: what it is, and the pictures and tables that its verdicts rest on."""

import itertools
from collections.abc import Mapping

from matplotlib.figure import Figure

from opd_jax.reports import plotting
from opd_jax.studies import charts
from opd_jax.studies.arm_spec import UNTRAINED
from opd_jax.studies.cells import asked, number, percent
from opd_jax.studies.charts import picture
from opd_jax.studies.healing.arms import LABELS
from opd_jax.studies.healing.claims import accuracy, divergence_by_flops, measured
from opd_jax.studies.healing.measures import EDGES
from opd_jax.studies.results import Missing, Results
from opd_jax.studies.statistics import interval
from opd_jax.studies.verdict_page import Section

TITLE = "Are full rollouts necessary to heal a real language model?"
INTRO = """The study of a language model that was pruned and is healed from the original (python -m opd_jax.study healing --model=DIR), after arXiv:2605.31490.
Arms have about as many FLOPs, counted and not timed, so that runs may share the machine with other work.

All measures are of held-out prompts and of answers of full length. With one seed no interval is known, and no claim that needs one is decided."""

ASKED = {UNTRAINED: "before training"} | LABELS
MEASURES = {
  "KL, nats a token": "kl",
  "nats of the teacher's answers": "nll",
  "likeliest tokens that agree": "agreement",
  "tokens of an answer": "length",
  "answers that end": "ended",
  "tokens that are repeated": "repeated",
}


def sections(results: Results) -> list[Section]:
  return [
    Section(
      "Divergence by cost",
      "The reverse KL to the original model on own answers of full length, by the FLOPs of training: mean over seeds at the checkpoints.",
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
      "What was spent",
      "FLOPs by counting, in billions of billions, and generated tokens.",
      None,
      cost_table(results),
    ),
  ]


@picture
def by_cost(results: Results) -> Figure:
  """Draw a line for each arm: FLOPs and divergence at the checkpoints, means over seeds."""
  before, found = results.analysis(f"asked-{UNTRAINED}"), {}
  for arm, label in _trained(results).items():
    curves = [
      divergence_by_flops(results, arm, seed, before[seed], record)
      for seed, record in results.analysis(f"asked-{arm}").items()
      if seed in before and seed in results.seeds(arm)
    ]
    if curves:
      found[label] = [sum(axis) / len(curves) for axis in zip(*curves, strict=True)]
  if not found:
    raise Missing("no arm was measured")
  figure, (ax,) = plotting.panels(9, 5.2, 1, 1)
  for (label, (flops, kl)), style in zip(found.items(), charts.line_styles(found), strict=True):
    ax.plot(flops, kl, label=label, **style.line)
  ax.set_xlabel("FLOPs of training")
  ax.set_ylabel("KL to the original model, nats a token")
  ax.set_ylim(bottom=0)
  figure.legend(loc="outside upper left", ncols=3)
  return figure


@picture
def by_position(results: Results) -> Figure:
  """Draw a line for each arm: divergence by position after training, and before."""
  found = {label: _by_bin(results, arm) for arm, label in asked(results, ASKED).items()}
  if not found:
    raise Missing("no arm was measured")
  figure, (ax,) = plotting.panels(9, 5.2, 1, 1)
  middles = [(a + b) / 2 for a, b in itertools.pairwise(EDGES)]
  for (label, means), style in zip(found.items(), charts.line_styles(found), strict=True):
    ax.plot(middles, means, label=label, **style.line)
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
    row |= {head: number(measured(results, arm, key)) for head, key in MEASURES.items()}
    for how, title in (("sampled", "temperature 1"), ("greedy", "greedy")):
      row[f"word problems, {title}"] = _percent(accuracy(results, arm, how))
    rows.append(row)
  return rows


def position_table(results: Results) -> list[dict[str, str]]:
  """List the divergence by position."""
  heads = [f"{a} to {b}" for a, b in itertools.pairwise(EDGES)]
  return [
    {"arm": label} | {head: number({0: x}) for head, x in zip(heads, _by_bin(results, arm), strict=True)}
    for arm, label in asked(results, ASKED).items()
  ]


def cost_table(results: Results) -> list[dict[str, str]]:
  """List what each arm's training has cost."""
  rows = []
  for arm, label in results.present(LABELS).items():
    flops = {seed: total / 1e18 for seed, total in results.totals(arm, "flops").items()}
    row = {"arm": label, "steps": str(results.config(arm)["steps"]), "FLOPs, 1e18": number(flops)}
    rows.append(row | {"tokens generated": number(results.totals(arm, "tokens"))})
  return rows


def _percent(by_seed: Mapping[int, float]) -> str:
  return percent(interval(by_seed.values()))
