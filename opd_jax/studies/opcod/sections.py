"""The page of the study of OPCoD: what it is, and the pictures and tables that its verdicts rest on."""

import collections
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from opd_jax.reports import plotting
from opd_jax.studies import charts
from opd_jax.studies.arm_spec import UNTRAINED
from opd_jax.studies.cells import percent
from opd_jax.studies.charts import picture
from opd_jax.studies.opcod.arms import ARMS, COMMENTED, OF_MODEL, SPECIALISTS
from opd_jax.studies.opcod.estimates import accuracies, all_four, commented, other, own, steps_of
from opd_jax.studies.results import How, Missing, Results
from opd_jax.studies.statistics import interval
from opd_jax.studies.verdict_page import Section

TITLE = "Can two students tutor each other?"
INTRO = """The study of co-distillation on the built-in task operators (python -m opd_jax.study opcod), after arXiv:2606.14368. One
student knows sums, the other differences; of the other's operator each holds a quarter of the facts firmly wrong. Seed by seed, all
arms start from the same two students.

The format of comments was put there by pretraining, and so was that a student follows them. These are models of 0.4 million
parameters: what holds here is a reason to expect it elsewhere, and what does not hold here is a reason to look."""

LABELS = {UNTRAINED: "before training"} | {
  arm.name.removesuffix(f"-{domain}"): arm.label.removesuffix(f", of {domain}")
  for arm in ARMS
  for domain in SPECIALISTS
  if arm.method == "opcod" or arm.name.endswith(f"-{domain}")
}
KINDS = {
  "again": "nobody: a fresh attempt",
  "oracle": "never wrong",
  "peer": "the peer",
  "own": "itself",
  "shuffled": "the peer, shuffled",
}


def sections(results: Results) -> list[Section]:
  return [
    Section(
      "Two students, two domains",
      "Accuracy after training, on held-out problems, at temperature 1; the table has both students in both domains.",
      bars(results, "sampled"),
      two_by_two(results, "sampled"),
    ),
    Section("Greedy", "The same of the likeliest tokens.", bars(results, "greedy"), two_by_two(results, "greedy")),
    Section(
      "What a comment does",
      "Second answers of students that are shown a comment on their first, by who comments; and of the first answers that were right the "
      "share that the comment spoils, where the tutor knows the domain and where it does not.",
      None,
      comments_table(results),
    ),
    Section(
      "What it spoils, by difficulty",
      "Break rates by how many of four first answers to a problem were right: fewer is harder.",
      None,
      difficulty_table(results),
    ),
    Section(
      "Gates and comments",
      "By round: how far each student is behind, whether it comments, and of training the share of comments that were kept.",
      None,
      gates_table(results),
    ),
  ]


def _found(results: Results, how: How) -> dict[str, dict[int, Any]]:
  """The accuracies of the arms that are there, by seed."""
  found = {}
  for arm in LABELS:
    try:
      found[arm] = accuracies(results, arm, how)
    except Missing:
      continue
  if not found:
    raise Missing("nothing was asked")
  return found


@picture
def bars(results: Results, how: How) -> Figure:
  """Draw a panel for both domains, the own and the other one, and a row for each arm: mean, interval and seeds."""
  found = _found(results, how)
  parts = {"all four": all_four, "own domain": own, "other domain": other}
  figure, axes = plotting.panels(4 + 3 * len(parts), 1.5 + 0.4 * len(found), 1, len(parts), sharey=True, sharex=True)
  for ax, (title, part) in zip(axes, parts.items(), strict=True):
    for row, by_seed in enumerate(found.values()):
      values = [part(each) for each in by_seed.values()]
      charts.dot(ax, row, interval(values), values, across=True)
    ax.set(title=title, xlabel="accuracy")
  charts.rows(axes, [LABELS[arm] for arm in found])
  return figure


def two_by_two(results: Results, how: How) -> list[dict[str, str]]:
  """List both students' accuracies in both domains, with intervals over seeds."""
  try:
    found = _found(results, how)
  except Missing:
    return []
  return [
    {"arm": LABELS[arm]}
    | {
      f"{student} student, {domain}": percent(interval(each[student][domain] for each in by_seed.values()))
      for student in SPECIALISTS
      for domain in SPECIALISTS
    }
    for arm, by_seed in found.items()
  ]


def comments_table(results: Results) -> list[dict[str, str]]:
  """List what each kind of comment does, before training and after."""
  rows = []
  for arm in (UNTRAINED, *COMMENTED):
    for kind, label in KINDS.items():
      try:
        found = commented(results, arm, kind)
      except Missing:
        continue
      records = [(name, record) for by_name in found.values() for name, record in by_name.items()]
      rows.append({"students": LABELS[arm], "who comments": label} | _effects(records))
  return rows


def _effects(records: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, str]:
  records = list(records)

  def mean(values: Iterable[float | None]) -> str:
    there = [value for value in values if value is not None]
    return f"{100 * fmean(there):.1f}%" if there else "–"

  def of_domain(key: str, own_domain: bool) -> list[float]:
    return [r[key][d] for name, r in records for d in SPECIALISTS if (d == name) == own_domain and d in r.get(key, {})]

  def broken(tutor_knows: bool) -> list[float | None]:
    return [
      r["broken"][d]["rate"]
      for name, r in records
      for d in SPECIALISTS
      if (d != name) == tutor_knows and d in r.get("broken", {})
    ]

  outcomes: collections.Counter[str] = collections.Counter()
  for _, record in records:
    outcomes.update(record["comments"])
  kept = outcomes["kept"] / max(1, sum(outcomes.values()))
  return {
    "other domain, without": mean(of_domain("without", False)),
    "with": mean(of_domain("with", False)),
    "own domain, without": mean(of_domain("without", True)),
    "with it": mean(of_domain("with", True)),
    "spoilt where the peer knows": mean(broken(True)),
    "spoilt where it does not": mean(broken(False)),
    "kept": f"{100 * kept:.0f}%",
    "dropped": ", ".join(f"{name} {n}" for name, n in outcomes.most_common() if name != "kept") or "none",
  }


def difficulty_table(results: Results) -> list[dict[str, str]]:
  """List the break rates of the peer's comments by how many attempts at a problem were right."""
  rows = []
  for arm in (UNTRAINED, *COMMENTED):
    try:
      found = commented(results, arm, "peer")
    except Missing:
      continue
    by_solved: dict[str, list[tuple[float, int]]] = collections.defaultdict(list)
    for by_name in found.values():
      for record in by_name.values():
        for solved, rate in record.get("broken_by_solved", {}).items():
          if rate["rows"]:
            by_solved[solved].append((rate["rate"], rate["rows"]))
    cells = {
      f"{solved} of 4 right": f"{100 * sum(r * n for r, n in found) / sum(n for _, n in found):.1f}% of {sum(n for _, n in found)}"
      for solved, found in sorted(by_solved.items(), reverse=True)
    }
    rows.append({"students": LABELS[arm]} | cells)
  return rows


def gates_table(results: Results) -> list[dict[str, str]]:
  """List the gates of each arm of two students by round: shortfalls as means over seeds, and how many seeds were open."""
  rows = []
  for arm in (arm for arm in ARMS if arm.method == "opcod"):
    try:
      runs = results.runs(arm.name)
    except Missing:
      continue
    rounds: dict[int, list[dict]] = collections.defaultdict(list)
    outcomes: dict[int, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for seed in runs:
      for record in steps_of(results, arm.name, seed):
        outcomes[record["round"]].update(record.get("comments", {}))
        if "gate" in record:
          rounds[record["round"]].append(record["gate"])
    for number, gates in sorted(rounds.items()):
      counts = outcomes[number]
      row = {"arm": LABELS[arm.name], "round": str(number)}
      for name, specialist in OF_MODEL.items():
        row[f"{specialist} student behind by"] = f"{fmean(gate['gap'][name] for gate in gates):.2f}"
        row[f"{specialist} comments"] = f"{sum(gate['open'][name] for gate in gates)} of {len(gates)}"
      total = sum(counts.values())
      row["comments kept"] = f"{100 * counts['kept'] / total:.0f}% of {total:,}" if total else "–"
      rows.append(row)
  return rows
