"""The page of the study of Vision-OPD: what it is, and the pictures and tables that its verdicts rest on."""

import functools
from collections.abc import Mapping

from matplotlib.figure import Figure

from opd_jax.reports import plotting
from opd_jax.studies import charts
from opd_jax.studies.arm_spec import UNTRAINED
from opd_jax.studies.cells import asked, number, percent
from opd_jax.studies.charts import picture
from opd_jax.studies.results import Missing, Results
from opd_jax.studies.statistics import interval
from opd_jax.studies.verdict_page import Section
from opd_jax.studies.vision.arms import CURVES, LABELS
from opd_jax.studies.vision.claims import answered, region_gap

TITLE = "Does the whole picture learn what its crop shows?"
INTRO = """The study of Vision-OPD on the built-in task scenes (python -m opd_jax.study vision), after arXiv:2605.18740. Seed by seed, all arms start
from the same student and read the same questions in the same order.

Pictures of 48 pixels with digits and shapes, and a model of 1.4 million parameters in the layout of Qwen3-VL. What holds here is a reason to
expect it elsewhere, and what does not hold here is a reason to look."""

ASKED = {UNTRAINED: "before training"} | LABELS
HOW = {"sampled": "temperature 1", "greedy": "greedy"}
VIEWS = {"marked": "whole, box in red", "unmarked": "whole, no box", "crop": "crop"}
SKILLS = {"majority": "most frequent hue", "count": "how many"}


def sections(results: Results) -> list[Section]:
  return [
    Section(
      "Accuracy on whole pictures",
      "Held-out questions with the box in red, at temperature 1 (the mean of two answers) and greedy.",
      bars(results),
      accuracy_table(results),
    ),
    Section(
      "The region gap",
      "Accuracy at temperature 1 on crops (dashed) and on whole pictures by step, on fewer questions.",
      gap_curves(results),
      gap_table(results),
    ),
    Section(
      "What was not trained",
      "Questions about all of a picture, and the mean length of answers about a box, in tokens.",
      None,
      skill_table(results),
    ),
    Section("On the way", "Accuracy on whole pictures at temperature 1, by generated tokens.", curves(results)),
  ]


@picture
def bars(results: Results) -> Figure:
  """Draw a row for each arm: accuracy at temperature 1 and greedy, mean, interval and seeds."""
  return charts.accuracy_rows(asked(results, ASKED), HOW, functools.partial(answered, results))


@picture
def gap_curves(results: Results) -> Figure:
  """Draw a panel for each arm that was measured at every checkpoint: crops above, whole pictures below."""
  found = {arm: label for arm, label in asked(results, LABELS).items() if arm in CURVES}
  if not found:
    raise Missing("no arm was measured at its checkpoints")
  figure, axes = plotting.panels(9, 3.2, 1, len(found))
  for ax, (arm, label) in zip(axes, found.items(), strict=True):
    by_seed = [_with_start(results, seed, record) for seed, record in results.analysis(f"asked-{arm}").items()]
    for view, dashes in (("marked", "-"), ("crop", "--")):
      steps = [point["step"] for point in by_seed[0]]
      means = [interval(points[i][view] for points in by_seed).mean for i in range(len(steps))]
      ax.plot(steps, means, dashes, color=plotting.GREY if view == "crop" else None)
    ax.set_title(label, fontsize=9)
    ax.set_ylim(0, 1)
    ax.set_xlabel("step")
  axes[0].set_ylabel("accuracy")
  return figure


def _with_start(results: Results, seed: int, record: Mapping) -> list[Mapping]:
  """The points of one run, with the student before training at step 0."""
  before = results.analysis(f"asked-{UNTRAINED}").get(seed)
  start = [{"step": 0} | {view: before[view]["sampled"] for view in ("marked", "crop")}] if before else []
  return [*start, *record["steps"]]


@picture
def curves(results: Results) -> Figure:
  """Draw the accuracy on held-out questions by generated tokens, of the arms without variants."""
  names = ("ema", "current", "other-region", "topd-50", "sft", "grpo", "expert")
  found = charts.finished_arms(results, {name: LABELS[name] for name in names})
  figure, (ax,) = plotting.panels(8.5, 4.8, 1, 1)
  charts.accuracy_lines(ax, found, "tokens")
  plotting.legend(figure, found)
  return figure


def accuracy_table(results: Results) -> list[dict[str, str]]:
  """List what the students answer by view."""
  rows = []
  for arm, label in asked(results, ASKED).items():
    row = {"arm": label, "seeds": str(len(answered(results, arm)))}
    for of, title in VIEWS.items():
      row |= {f"{title}, {name}": _percent(answered(results, arm, how, of)) for how, name in HOW.items()}
    rows.append(row)
  return rows


def gap_table(results: Results) -> list[dict[str, str]]:
  """List the region gap."""
  return [
    {"arm": label} | {f"gap, {name}": _percent(region_gap(results, arm, how)) for how, name in HOW.items()}  # pyright: ignore[reportArgumentType]
    for arm, label in asked(results, ASKED).items()
  ]


def skill_table(results: Results) -> list[dict[str, str]]:
  """List what the students answer of what was not trained, and how long their answers are."""
  rows = []
  for arm, label in asked(results, ASKED).items():
    row = {"arm": label}
    for of, title in SKILLS.items():
      row |= {f"{title}, {name}": _percent(answered(results, arm, how, of)) for how, name in HOW.items()}
    row["tokens of an answer"] = number(answered(results, arm, "length"))
    rows.append(row)
  return rows


def _percent(by_seed: Mapping[int, float]) -> str:
  """Write the mean share over seeds with its interval."""
  return percent(interval(by_seed.values()))
