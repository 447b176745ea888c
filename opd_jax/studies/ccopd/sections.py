"""The page of the study of CCOPD: what it is, and the pictures that its verdicts rest on."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from opd_jax.reports import plotting
from opd_jax.studies import charts
from opd_jax.studies.arm_spec import UNTRAINED
from opd_jax.studies.ccopd.arms import ARMS, OUT_OF_DOMAIN
from opd_jax.studies.ccopd.claims import measured
from opd_jax.studies.charts import picture
from opd_jax.studies.results import Missing, Results
from opd_jax.studies.statistics import interval
from opd_jax.studies.verdict_page import Section

TITLE = "The same evidence, the same answer?"
INTRO = """The study of conversations on the built-in task relay (python -m opd_jax.study ccopd), after arXiv:2605.30251.
Seed by seed, all arms start from the same student and read the same problems in the same order. FULL is a problem told at
once, CONCAT all turns in one message, RAW turn by turn in a conversation that the student itself has.

The student's habit of falling back on an earlier guess was put there by its pretraining. What holds here is a reason to
expect it elsewhere, and what does not hold here is a reason to look."""

LABELS = {UNTRAINED: "before training"} | {arm.name: arm.label for arm in ARMS}


def sections(results: Results) -> list[Section]:
  forms = {f"{form.upper()}": ("relay", form) for form in ("full", "concat", "raw")}
  other = {f"RAW, {name}": (name, "raw") for name in OUT_OF_DOMAIN}
  polluted = {"a wrong solution": ("pollution", "solution"), "a wrong hint": ("pollution", "hint")}
  guesses = {"share of wrong guesses repeated": ("anchored", "kept"), "attention, user over own (log)": ("looks",)}
  deviations = {"deviation": ("deviation", "psi"), "own turns' share": ("deviation", "own_turn")}
  return [
    Section("Told at once, and turn by turn", "Accuracy after training, on held-out problems.", bars(results, forms)),
    Section(
      "Greedy",
      "The same where the student says its likeliest tokens in every turn.",
      bars(results, {title: ("greedy", *path) for title, path in forms.items()}),
    ),
    Section("Out of domain", "A sign that training did not show, and longer chains.", bars(results, other)),
    Section(
      "Polluted",
      "Everything told at once, behind it a wrong solution in the assistant's name or a wrong hint.",
      bars(results, polluted),
    ),
    Section(
      "Deviation",
      "KL of the reply in the conversation from the same reply told at once (nats a token), and how much of it goes when the "
      "student's own turns are replaced by a placeholder.",
      bars(results, deviations, "nats a token"),
    ),
    Section(
      "Own guesses",
      "Of the conversations in which the student's last guess is wrong, the share whose last reply repeats it. And what the "
      "last reply attends to: the log of its attention to a token of the user's over that to one of its own earlier turns, a "
      "mean over layers.",
      bars(results, guesses, ""),
    ),
  ]


@picture
def bars(results: Results, numbers: Mapping[str, Sequence[str]], unit: str = "accuracy") -> Figure:
  """Draw a panel for each number and a row for each arm: mean, interval and seeds. Accuracies share one scale.

  Args:
    numbers: title of the panel -> keys of the number, as `claims.measured` takes them.
  """
  by_arm = {}
  for arm in LABELS:
    try:
      by_arm[arm] = {title: measured(results, arm, *path) for title, path in numbers.items()}
    except Missing:
      continue
  if not by_arm:
    raise Missing("nothing was asked")
  size = 4 + 3 * len(numbers), 1.5 + 0.5 * len(by_arm)
  figure, axes = plotting.panels(*size, 1, len(numbers), sharey=True, sharex=unit == "accuracy")
  for ax, title in zip(axes, numbers, strict=True):
    for row, found in enumerate(by_arm.values()):
      values = found[title].values()
      charts.dot(ax, row, interval(values), values, across=True)
    ax.set(title=title, xlabel=unit)
  charts.rows(axes, [LABELS[arm] for arm in by_arm])
  return figure
