"""The page of the study of GraphPO: what it is, and the pictures and tables that its verdicts rest on."""

import functools
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from opd_jax.reports import plotting
from opd_jax.studies import charts
from opd_jax.studies.arm_spec import UNTRAINED
from opd_jax.studies.cells import NOTHING, asked, logged_anywhere, number, percent
from opd_jax.studies.charts import picture
from opd_jax.studies.evidence import less
from opd_jax.studies.graph import simulation
from opd_jax.studies.graph.arms import LABELS
from opd_jax.studies.graph.claims import answered, simulated
from opd_jax.studies.results import Missing, Results
from opd_jax.studies.statistics import interval
from opd_jax.studies.verdict_page import Section

TITLE = "What does a graph of states add to a tree?"
INTRO = """The study of GraphPO on the built-in task countdown-4 (python -m opd_jax.study graph), after arXiv:2606.18954. Seed by seed, all
arms start from the same student and read the same prompts in the same order. First nothing is trained: credits of single steps are
compared with what the steps are worth, which is known there.

A model of 0.6 million parameters, and countdowns of three steps, which it solves one time in seven before training. What holds here is a
reason to expect it elsewhere, and what does not hold here is a reason to look."""

ASKED = {UNTRAINED: "before training"} | LABELS
HOW = {"sampled": "temperature 1", "greedy": "greedy"}


def sections(results: Results) -> list[Section]:
  return [
    Section(
      "Credit without training",
      "A fixed policy on countdowns with four numbers, and the credit of every step that it takes: of chains, trees and graphs of as many "
      "steps, beside what the step is worth. False: the share of the nodes that join a state that is another one besides. Biases are "
      "small beside the errors.",
      errors_by_weight(results),
      simulation_table(results),
    ),
    Section(
      "Accuracy after training",
      "Held-out problems, at temperature 1 (the mean of eight answers) and greedy.",
      bars(results),
      accuracy_table(results),
    ),
    Section(
      "On the way",
      "Accuracy at temperature 1 by step, on fewer problems, one answer each.",
      curves(results),
    ),
    Section(
      "What was sampled",
      "Means over the steps of a run; tokens are of the whole run. Joined: the share of the steps that joined a state. States: of a prompt "
      "batch. Taught: the share of the steps with an advantage. Hidden states are read again, on top of what is generated.",
      None,
      samples_table(results),
    ),
  ]


@picture
def errors_by_weight(results: Results) -> Figure:
  """Draw the mean squared error by w, a line for each share of false joins, and those of a tree and of chains across."""
  figure, (ax,) = plotting.panels(8.5, 4.8, 1, 1)
  handles = []
  shares = {f"{100 * share:g}% false joins": share for share in simulation.FALSE}
  for (label, share), style in zip(shares.items(), charts.line_styles(shares), strict=True):
    weights = simulation.WEIGHTS if not share else simulation.WEIGHTS[1:]
    found = [simulated(results, method_name(w, share), "mse").values() for w in weights]
    for w, values in zip(weights, found, strict=True):
      charts.dot(ax, w, interval(values), values, style)
    means = [interval(values).mean for values in found]
    ax.plot(weights, means, color=style.color, linestyle=style.linestyle)
    handles.append(Line2D([], [], **style.line, label=label))
  for method, label, dashes in (("tree", "a tree", "-"), ("chain", "chains", ":")):
    line: Any = {"color": plotting.GREY, "linewidth": 1.5, "linestyle": dashes}
    ax.axhline(interval(simulated(results, method, "mse").values()).mean, **line)
    handles.append(Line2D([], [], **line, label=label))
  charts.ticks(ax, simulation.WEIGHTS, [f"{w:g}" for w in simulation.WEIGHTS])
  ax.set_xlabel("w, the weight of a state's other nodes")
  ax.set_ylabel("mean squared error of a step's credit")
  ax.set_ylim(bottom=0)
  figure.legend(handles=handles, loc="outside upper left", ncols=3)
  return figure


def method_name(weight: float, share: float) -> str:
  """The name of a graph in the simulation's records."""
  return f"graph {weight:g}" + (f", false {share:g}" if share else "")


def simulation_table(results: Results) -> list[dict[str, str]]:
  """List error, bias and correlation by method, w and share of false joins."""
  graphs = [(w, share) for share in simulation.FALSE for w in simulation.WEIGHTS if w or not share]
  methods: list[tuple[str, dict[str, str]]] = [
    ("chain", {"method": "chains", "w": "", "false joins": ""}),
    ("tree", {"method": "a tree", "w": "", "false joins": ""}),
    *(
      (method_name(w, share), {"method": "a graph", "w": f"{w:g}", "false joins": f"{100 * share:g}%"})
      for w, share in graphs
    ),
  ]
  rows = []
  for method, row in methods:
    try:
      found = {key: simulated(results, method, key) for key in ("mse", "bias", "correlation", "steps")}
    except Missing:
      return []
    rows.append(row | {key: number(by) for key, by in found.items()})
  return rows


@picture
def bars(results: Results) -> Figure:
  """Draw a row for each arm: accuracy at temperature 1 and greedy, mean, interval and seeds."""
  return charts.accuracy_rows(asked(results, ASKED), HOW, functools.partial(answered, results))


@picture
def curves(results: Results) -> Figure:
  """Draw the accuracy on held-out problems by step, of the arms without variants."""
  names = ("grpo-tokens", "grpo-responses", "tree", "graph", "random", "hidden")
  found = charts.finished_arms(results, {name: LABELS[name] for name in names})
  figure, (ax,) = plotting.panels(8.5, 4.8, 1, 1)
  charts.accuracy_lines(ax, found, "step")
  plotting.legend(figure, found)
  return figure


def accuracy_table(results: Results) -> list[dict[str, str]]:
  """List what the students answer, and by how much more than before."""
  rows = []
  for arm, label in asked(results, ASKED).items():
    of = {key: answered(results, arm, key) for key in (*HOW, "pass", "length")}
    row = {"arm": label, "seeds": str(len(of["sampled"]))}
    row |= {HOW[how]: percent(interval(of[how].values())) for how in HOW}
    row |= {
      "a right one in eight": percent(interval(of["pass"].values())),
      "tokens of an answer": number(of["length"]),
    }
    if arm != UNTRAINED:
      row |= {f"gained, {title}": _gained(results, arm, how) for how, title in HOW.items()}
    rows.append(row)
  return rows


def _gained(results: Results, arm: str, how: str) -> str:
  try:
    return percent(less(answered(results, arm, how), answered(results, UNTRAINED, how)))
  except Missing:
    return ""


def samples_table(results: Results) -> list[dict[str, str]]:
  """List what each arm's runs have sampled and how much of it was one state."""
  rows = []
  for arm, label in results.present(LABELS).items():
    config = results.config(arm)
    chains = {seed: float(config["batch"] * config["rollouts_per_prompt"]) for seed in results.seeds(arm)}
    row = {
      "arm": label,
      "tokens generated": number(results.totals(arm, "tokens")),
      "responses a step": number(logged_anywhere(results, arm, "responses") or chains),
    }
    for head, key in (("steps sampled", "steps_sampled"), ("states", "states"), ("read again", "state_tokens")):
      row[head] = number(logged_anywhere(results, arm, key))
    for head, key in (("joined", "joined"), ("taught", "teaching_steps")):
      found = logged_anywhere(results, arm, key)
      row[head] = f"{percent(interval(found.values()))}%" if found else NOTHING
    rows.append(row | {"tokens of a response": number(logged_anywhere(results, arm, "response_length"))})
  return rows
