"""The page of the study of updates: what it is, and the pictures and tables that its verdicts rest on."""

from collections.abc import Mapping
from statistics import fmean

import numpy as np
from matplotlib.figure import Figure

from opd_jax.reports import plotting
from opd_jax.studies import charts
from opd_jax.studies.charts import picture
from opd_jax.studies.geometry.arms import COMPARED, MANTISSA, TARGET, TUNED
from opd_jax.studies.geometry.claims import EXACT, NULLS, ROUNDED, statistic, tuned
from opd_jax.studies.results import How, Missing, Results
from opd_jax.studies.statistics import interval
from opd_jax.studies.verdict_page import Section

TITLE = "Which weights does on-policy distillation move?"
INTRO = f"""The study of updates on the built-in task chain-short (python -m opd_jax.study geometry), after arXiv:2606.13657. Seed by seed,
all arms start from the same student. Updates are compared where a run first comes to an accuracy of {TARGET:g}, with weights of {MANTISSA} bits of
mantissa, which stand to these updates as bfloat16 does to those of large models at small rates; spectra are of the updates as they
are, in fp32. Every statistic stands beside what the same update permuted within each tensor, and a Gaussian one of its norm, would show.

These are models of 0.4 million parameters. What holds here is a reason to expect it elsewhere, and what does not hold here is a
reason to look."""

LABELS = {arm.name: arm.label for arm in COMPARED}
STATISTICS: dict[str, tuple[str, str]] = {  # title -> name of the statistic, and how the update is seen
  "weights that do not move": ("zero", ROUNDED),
  "moved: smallest 10%": ("low_coverage@10%", ROUNDED),
  "moved: principal 10%": ("principal_coverage@10%", ROUNDED),
  "energy of 4 singular values": ("top_energy@4", EXACT),
  "on the principal 10%": ("projection@10%", EXACT),
}
MASKS = {
  "all": "all coordinates",
  "visible": "OPD's visible ones",
  "top": "those it moved most",
  "of-topd": "TOPD's visible ones",
  "of-grpo": "GRPO's visible ones",
  "stratified-topd": "random by magnitude, as many as TOPD's",
  "stratified-grpo": "random by magnitude, as many as GRPO's",
  "lowest": "the smallest weights",
  "stratified": "random by magnitude",
  "layer": "random by layer",
  "tensor": "random by tensor",
  "global": "random",
  "sgd": "all, by SGD",
}


def sections(results: Results) -> list[Section]:
  return [
    Section(
      "What moves, beside what would move anyway",
      "Filled: the update. Its nulls, permuted (down) and Gaussian (up), are triangles. A statistic says something of a method where it lies "
      "outside of both.",
      against_nulls(results),
      statistics_table(results),
    ),
    Section(
      "Spectra",
      "The share of an update's energy in its k largest singular values, a median over the matrices, in fp32; nulls are dashed.",
      spectra(results),
    ),
    Section(
      "Training a part",
      "Accuracy after OPD on some of the coordinates alone, each at the rate that is best on the other seeds. In a seed, OPD's "
      "visible coordinates and their controls are equally many. Those of TOPD and of GRPO are as many as these moved, and have a "
      "control each, of as many in every tensor and magnitude.",
      masks(results),
      masks_table(results),
    ),
  ]


def _found(results: Results, name: str, kind: str) -> dict[str, dict[int, dict]]:
  found = {}
  for arm in LABELS:
    try:
      found[arm] = statistic(results, arm, name, kind)
    except Missing:
      continue
  return found


@picture
def against_nulls(results: Results) -> Figure:
  """Draw a panel for each statistic and a row for each arm, with the nulls' means beside the interval."""
  there = {title: _found(results, *which) for title, which in STATISTICS.items()}
  arms = [arm for arm in LABELS if any(arm in found for found in there.values())]
  if not arms:
    raise Missing("no update was measured")
  figure, axes = plotting.panels(4 + 2.6 * len(there), 1.5 + 0.5 * len(arms), 1, len(there), sharey=True)
  for ax, (title, found) in zip(axes, there.items(), strict=True):
    for row, arm in enumerate(arms):
      if arm not in found:
        continue
      charts.dot(
        ax,
        row,
        interval(e["value"] for e in found[arm].values()),
        [e["value"] for e in found[arm].values()],
        across=True,
      )
      for null, marker in zip(NULLS, "v^", strict=True):
        mean = fmean(draw for e in found[arm].values() for draw in e[null]["draws"])
        ax.plot([mean], [row], marker, color="0.35", markerfacecolor="none", markersize=6)
    ax.set(title=title)
  charts.rows(axes, [LABELS[arm] for arm in arms])
  return figure


def statistics_table(results: Results) -> list[dict[str, str]]:
  """List every statistic of every arm beside the means of its nulls."""
  rows: dict[str, dict[str, str]] = {}
  for title, which in STATISTICS.items():
    for arm, found in _found(results, *which).items():
      nulls = " and ".join(f"{fmean(d for e in found.values() for d in e[null]['draws']):.3f}" for null in NULLS)
      mean = fmean(e["value"] for e in found.values())
      rows.setdefault(arm, {"arm": LABELS[arm]})[title] = f"{mean:.3f} (nulls {nulls})"
  for arm, row in rows.items():
    records = results.analysis(f"update-{arm}").values()
    row["steps"] = ", ".join(str(r["step"]) + ("" if r["reached"] else " (never there)") for r in records)
  return list(rows.values())


@picture
def spectra(results: Results) -> Figure:
  """Draw the energy curves of the updates, means over seeds, and those of the nulls of OPD's."""
  figure, (ax,) = plotting.panels(7, 4.5, 1, 1)
  drawn = False
  for arm, style in zip(("opd", "topd-10", "offline", "grpo"), charts.line_styles(LABELS), strict=False):
    try:
      curves = [r["curves"][EXACT]["observed"][0] for r in results.analysis(f"update-{arm}").values()]
    except Missing:
      continue
    mean = np.mean(curves, axis=0)
    ax.plot(range(1, len(mean) + 1), mean, label=LABELS[arm], color=style.color, linestyle=style.linestyle)
    drawn = True
  if not drawn:
    raise Missing("no update was measured")
  for null in NULLS:
    try:
      records = results.analysis("update-opd").values()
    except Missing:
      break
    mean = np.mean([curve for r in records for curve in r["curves"][EXACT][null]], axis=0)
    ax.plot(range(1, len(mean) + 1), mean, "--", color="0.5", label=f"OPD's null, {null}")
  ax.set(xlabel="k", ylabel="share of the energy", xscale="log")
  ax.legend(frameon=False)
  return figure


@picture
def masks(results: Results) -> Figure:
  """Draw the accuracy of every mask, sampled and greedy."""
  panels: Mapping[str, How] = {"accuracy, temperature 1": "sampled", "accuracy, greedy": "greedy"}
  there = [name for name in MASKS if _tuned(results, name, "sampled")]
  if not there:
    raise Missing("no mask was trained")
  figure, axes = plotting.panels(10, 1.5 + 0.45 * len(there), 1, len(panels), sharey=True)
  for ax, (title, how) in zip(axes, panels.items(), strict=True):
    for row, name in enumerate(there):
      scores = _tuned(results, name, how).values()
      charts.dot(ax, row, interval(scores), scores, across=True)
    ax.set(title=title)
  charts.rows(axes, [MASKS[name] for name in there])
  return figure


def masks_table(results: Results) -> list[dict[str, str]]:
  """List the accuracies of every mask by rate."""
  rows = []
  for name, label in MASKS.items():
    cells = {}
    for arm in TUNED[name]:
      try:
        sampled, greedy = (fmean(results.scores(arm, how).values()) for how in ("sampled", "greedy"))
      except Missing:
        continue
      cells[arm] = f"{100 * sampled:.1f}; {100 * greedy:.1f}"
    if cells:
      rows.append(
        {"coordinates": label, "by rate, sampled; greedy": ", ".join(f"{arm}: {c}" for arm, c in cells.items())}
      )
  return rows


def _tuned(results: Results, name: str, how: How) -> dict[int, float]:
  try:
    return tuned(results, name, how)
  except Missing:
    return {}
