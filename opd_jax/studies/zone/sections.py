"""The page of the study of ZPPO: what it is, and the pictures and tables that its verdicts rest on."""

import functools
from collections.abc import Mapping

from matplotlib.figure import Figure

from opd_jax.reports import plotting
from opd_jax.studies import charts
from opd_jax.studies.arm_spec import UNTRAINED
from opd_jax.studies.cells import NOTHING, asked, logged_anywhere, number, percent
from opd_jax.studies.charts import picture
from opd_jax.studies.results import Missing, Results
from opd_jax.studies.statistics import interval
from opd_jax.studies.verdict_page import Section
from opd_jax.studies.zone.arms import LABELS
from opd_jax.studies.zone.claims import answered, graduated
from opd_jax.tasks.subsets import OTHER_TIERS, TIERS

TITLE = "Does a teacher in the prompt teach what a buffer of hard questions does not?"
INTRO = """The study of ZPPO on the built-in task subset-sum (python -m opd_jax.study zone), after arXiv:2606.18216. Seed by seed, all arms start
from the same student and read the same new prompts in the same order, and all generate about as many tokens.

A model of 0.6 million parameters, and a scripted teacher whose solutions look like the student's own responses. What holds here is a reason to
expect it elsewhere, and what does not hold here is a reason to look."""

ASKED = {UNTRAINED: "before training"} | LABELS
HOW = {"sampled": "temperature 1", "greedy": "greedy"}


def sections(results: Results) -> list[Section]:
  return [
    Section(
      "Accuracy after training",
      "Held-out problems without candidates, at temperature 1 (the mean of four answers) and greedy.",
      bars(results),
      accuracy_table(results),
    ),
    Section(
      "By tier",
      "The same at temperature 1, of the tiers that are trained on and of the others.",
      None,
      tier_table(results),
    ),
    Section(
      "On the way",
      "Accuracy at temperature 1 by generated tokens, on fewer problems, one answer each.",
      curves(results),
    ),
    Section(
      "Copies",
      "Means over the steps of a run. Repeats: the share of the answers that are a candidate, word for word.",
      None,
      audit_table(results),
    ),
    Section(
      "The buffer",
      "Of the questions that entered, how many have graduated when the run ends, and of those without a right rollout at their entry.",
      None,
      buffer_table(results),
    ),
    Section("What was generated", "Tokens of the whole run, and the means over its steps.", None, token_table(results)),
  ]


@picture
def bars(results: Results) -> Figure:
  """Draw a row for each arm: accuracy at temperature 1 and greedy, mean, interval and seeds."""
  return charts.accuracy_rows(asked(results, ASKED), HOW, functools.partial(answered, results))


@picture
def curves(results: Results) -> Figure:
  """Draw the accuracy on held-out problems by generated tokens, of the arms without controls."""
  names = ("grpo", "buffer", "asked", "zppo", "hint", "on-distill")
  found = charts.finished_arms(results, {name: LABELS[name] for name in names})
  figure, (ax,) = plotting.panels(8.5, 4.8, 1, 1)
  charts.accuracy_lines(ax, found, "tokens")
  plotting.legend(figure, found)
  return figure


def accuracy_table(results: Results) -> list[dict[str, str]]:
  """List what the students answer, here and on other tiers, and by how much more than before."""
  rows = []
  for arm, label in asked(results, ASKED).items():
    row = {"arm": label, "seeds": str(len(answered(results, arm)))}
    row |= {title: _percent(answered(results, arm, how)) for how, title in HOW.items()}
    row["a right one in four"] = _percent(answered(results, arm, "pass"))
    row |= {f"other tiers, {title}": _percent(answered(results, arm, how, "others")) for how, title in HOW.items()}
    rows.append(row)
  return rows


def tier_table(results: Results) -> list[dict[str, str]]:
  """List accuracy by tier."""
  tiers = [("trained", tier.name) for tier in TIERS] + [("others", tier.name) for tier in OTHER_TIERS]
  return [
    {"arm": label} | {tier: _percent(answered(results, arm, "sampled", of, tier)) for of, tier in tiers}
    for arm, label in asked(results, ASKED).items()
  ]


AUDITS = {
  "right answers to BCQs": "reward_bcq",
  "repeat the right one": "bcq_repeats_right",
  "repeat the wrong one": "bcq_repeats_wrong",
  "right answers to NCQs": "reward_ncq",
  "repeat a wrong one": "ncq_repeats_wrong",
  "right with a hint": "reward_hint",
  "right with a prefix": "reward_prefix",
  "right on the buffer's": "reward_replayed",
}


def audit_table(results: Results) -> list[dict[str, str]]:
  """List how prompts with candidates are answered."""
  rows = []
  for arm, label in results.present(LABELS).items():
    found = {head: logged_anywhere(results, arm, key) for head, key in AUDITS.items()}
    if any(found.values()):
      rows.append({"arm": label} | {head: _percent(by_seed) if by_seed else NOTHING for head, by_seed in found.items()})
  return rows


def buffer_table(results: Results) -> list[dict[str, str]]:
  """List which share of the questions has graduated, by arms that have a buffer."""
  rows = []
  for arm, label in results.present(LABELS).items():
    try:
      shares = {"of all": graduated(results, arm), "of those without a right one": graduated(results, arm, 0)}
    except Missing:
      continue
    rows.append({"arm": label} | {head: _percent(by_seed) for head, by_seed in shares.items()})
  return rows


TOKENS = {
  "plain rollouts": "plain_tokens",
  "with candidates": "reformulated_tokens",
  "teacher": "teacher_tokens",
}


def token_table(results: Results) -> list[dict[str, str]]:
  """List what each arm's runs have generated, in all and by the part of a step."""
  rows = []
  for arm, label in results.present(LABELS).items():
    row = {
      "arm": label,
      "tokens generated": number(results.totals(arm, "tokens")),
      "steps": str(results.config(arm)["steps"]),
    }
    rows.append(row | {f"{head}, a step": number(logged_anywhere(results, arm, key)) for head, key in TOKENS.items()})
  return rows


def _percent(by_seed: Mapping[int, float]) -> str:
  """Write the mean share over seeds with its interval."""
  return percent(interval(by_seed.values()))
