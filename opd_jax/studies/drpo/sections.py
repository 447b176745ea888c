"""The page of the study of trust regions: what it is, and the pictures and tables that its verdicts rest on."""

from opd_jax.studies.drpo import bandit, figures
from opd_jax.studies.drpo.arms import (
  DPPO,
  DRPO,
  LABELS,
  MATCHED,
  STEPS,
  SURROGATES,
  UPDATES,
  VACUOUS,
)
from opd_jax.studies.drpo.estimates import accuracy, area, collapsed, largest_weight
from opd_jax.studies.evidence import logged
from opd_jax.studies.results import Missing, Results
from opd_jax.studies.statistics import interval
from opd_jax.studies.verdict_page import Section

TITLE = "Which trust region for stale rollouts?"
INTRO = f"""The study of policy gradients on the built-in task synonyms (python -m opd_jax.study drpo), after arXiv:2606.09821 and
arXiv:2602.04879. Seed by seed, all arms start from the same student and read the same prompts in the same order; a step samples
256 responses, and {UPDATES} updates are made on disjoint parts of them where nothing else is said.

Every digit has 50 words, and many sampled tokens are rare though the student is sure of what they mean: that is where a
trust region in the ratio and one in the probability differ. These are models of half a million parameters. What holds here is a
reason to expect it elsewhere, and what does not hold here is a reason to look."""

TEACHERS = ("opd", "opd-null", "opd-reward")
ADVANTAGES = (0.1, 0.5, 1.0)


def sections(results: Results) -> list[Section]:
  label = {name: SURROGATES[name][0] for name in SURROGATES}
  return [
    Section(
      "One token",
      "No model: the probability of one token whose advantage is 0.5, by gradient steps from where it was drawn. DRPO stops where it "
      f"has moved by its threshold of {bandit.DELTA:g}, from a rare token as from a likely one; SPO where its ratio has moved by "
      f"{bandit.EPS:g}, which lets a rare token hardly move; DPPO and PPO a step beyond their boundary; importance weighting nowhere. "
      "The advantage's size moves no boundary, but where the penalty has no factor |A|.\n\n"
      "The table has the boundary at an advantage of 1, where the gradient's weight is first 0, and the probability after "
      f"{bandit.STEPS:,} steps.",
      figures.stops(),
      bandit_table(),
    ),
    Section(
      "What a token's gradient weighs",
      "By its probability now. SPO's line is steep where mu is small, and has no end as mu goes to 0.",
      figures.weights([name for name in bandit.SURROGATES if "without" not in name]),
    ),
    Section(
      "Sixteen updates a step",
      f"Every surrogate after {STEPS} steps. Area: under the accuracy's curve on held-out problems, at "
      "temperature 1. Collapsed, in the table: the share of the seeds that end more than 10 points below their best, or below the untrained student.",
      figures.bars(
        results,
        label,
        {
          "area": (area, "mean accuracy"),
          "sampled": (_sampled, "accuracy, temperature 1"),
          "greedy": (_greedy, "accuracy, greedy"),
        },
      ),
      accuracy_table(results),
    ),
    Section(
      "On the way",
      "The same runs, by step.",
      figures.curves(
        results, {name: label[name] for name in ("is", "clip-higher", "spo-0.2", "dppo-0.15", "drpo-0.15", "drpo-12.5")}
      ),
    ),
    Section(
      "The threshold",
      "Above 1 nothing can be held, and DRPO is importance weighting with a weight that is nearly 1.",
      figures.thresholds(
        results,
        {
          "DRPO": {f"drpo-{delta:g}": delta for delta in (*DRPO, *VACUOUS)},
          "DPPO": {f"dppo-{delta:g}": delta for delta in DPPO},
        },
        "is",
      ),
    ),
    Section(
      "How far tokens move",
      "Means over the updates of a run: |pi - mu| of the sampled tokens, the share of them beyond the arm's own boundary (0.15 where it "
      "has none), and the largest |w| that any token ever had.",
      figures.bars(
        results,
        label,
        {
          "moved": (_moved, "E |pi - mu|"),
          "beyond": (_beyond, "share of tokens"),
          "largest |w|": (largest_weight, "largest weight"),
        },
      ),
    ),
    Section(
      "How stale, how fast, how exact",
      "One thing at a time changes from the middle: the number of updates a step, the rate, the sampler's precision.",
      figures.conditions(
        results,
        {
          "updates a step": {"1": "u1-", "4": "u4-", "16": ""},
          "rate": {"1e-4": "lr1-", "2e-4": "", "3e-4": "lr3-"},
          "sampler": {"exact": "", "int8": "int8-"},
        },
        {name: words for name, (words, _) in MATCHED.items()},
      ),
    ),
    Section(
      "A teacher, nobody, and a reward",
      "At equal numbers of sampled responses. The null suppresses the rarest fifth of the tokens and knows nothing of the task (arXiv:2608.31046).",
      figures.curves(results, {name: LABELS[name] for name in (*TEACHERS, "drpo-0.15", "dppo-0.15")}),
    ),
  ]


def bandit_table() -> list[dict[str, str]]:
  """A row for each surrogate: where one token stops, by where it was drawn and by its advantage."""
  rows: dict[str, dict[str, str]] = {}
  for stop in bandit.stops(ADVANTAGES):
    row = rows.setdefault(stop.surrogate, {"surrogate": stop.surrogate})
    row[f"boundary, mu {stop.mu:g}"] = f"{bandit.minimiser(bandit.SURROGATES[stop.surrogate], stop.mu):.3f}"
    row[f"mu {stop.mu:g}, A {stop.advantage:g}"] = f"{stop.pi:.3f}"
  return list(rows.values())


def accuracy_table(results: Results) -> list[dict[str, str]]:
  """A row for every arm that has been run: area, accuracy sampled and greedy, and how far it moved."""
  rows = []
  for arm, label in results.present(LABELS).items():
    row = {"arm": label, "seeds": str(len(results.seeds(arm)))}
    for head, measure in NUMBERS.items():
      try:
        found = interval(measure(results, arm).values())
      except Missing:
        row[head] = ""
        continue
      row[head] = f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})" if found.n > 1 else f"{found.mean:.3f}"
    rows.append(row)
  return rows


def _sampled(results: Results, arm: str) -> dict[int, float]:
  return accuracy(results, arm, "sampled")


def _greedy(results: Results, arm: str) -> dict[int, float]:
  return accuracy(results, arm, "greedy")


def _moved(results: Results, arm: str) -> dict[int, float]:
  return logged(results, arm, "moved")


def _beyond(results: Results, arm: str) -> dict[int, float]:
  return logged(results, arm, "beyond")


NUMBERS: dict[str, figures.Measure] = {
  "area": area,
  "sampled": _sampled,
  "greedy": _greedy,
  "collapsed": collapsed,
  "E |pi - mu|": _moved,
  "beyond": _beyond,
  "largest |w|": largest_weight,
}
