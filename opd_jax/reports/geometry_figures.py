"""The pictures of `python -m opd_jax.geometry`: those of arXiv:2606.13657, each beside the nulls of its update."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from opd_jax.reports import plotting
from opd_jax.reports.plotting import Style

Record = dict[str, Any]
SOURCES = ("update", "permuted null", "Gaussian null")
_KEYS = {"permuted null": "permuted", "Gaussian null": "gaussian"}


def draw(record: Record) -> Iterator[tuple[str, str, str, Figure]]:
  """Draw the pictures that the record has the data for: file name, title, caption, figure."""
  if len(record["layers"]) > 1:
    yield "sparsity", "Sparsity by layer", _SPARSITY, _by_layer(record)
  yield "norms", "Relative norm by kind of block", _NORMS, _norms(record)
  if any(record["curves"][kind]["observed"][0] for kind in record["kinds"]):
    yield "spectra", "Spectra", _SPECTRA, _spectra(record)
  if any(_has(record, kind, "low_coverage@10%") for kind in record["kinds"]):
    yield "coverage", "Coverage of principal and of low-magnitude weights", _COVERAGE, _coverage(record)
  if record["against"] and any(_has(record, kind, "overlap>1e-05") for kind in record["kinds"]):
    yield "overlap", "Overlap of two runs", _OVERLAP, _overlap(record)


_NULLS = "Lines and marks of the nulls are means over their draws; thin bars are from the lowest draw to the highest."
_SPARSITY = f"The share of a layer's weights that the update moves by at most 1e-5. {_NULLS}"
_NORMS = f"Norm of the update over the norm of the weights before it. {_NULLS}"
_SPECTRA = (
  "The share of an update's squared norm that its k largest singular values hold: the median over the matrices that have an "
  f"update. Above its nulls an update is concentrated in few directions. {_NULLS}"
)
_COVERAGE = (
  "The share of the weights that moved at all which lie among the largest of the best rank-k approximation of W0 (left) and "
  "among the smallest of W0 (right): the median over matrices. The dotted line is the share of all weights that do. Rounding "
  f"alone takes an update away from it. {_NULLS}"
)
_OVERLAP = (
  "The share of the weights moved by more than 1e-5 that the other run moved so too, and the share of the other run's; the dash "
  f"is what independent masks of the same size would share. The nulls of both runs are independent of each other. {_NULLS}"
)


def _has(record: Record, kind: str, name: str) -> bool:
  return record["whole"][kind].get(name, {}).get("value") is not None


def _entry(entry: Record, source: str) -> tuple[float, float, float]:
  """A statistic's mean and its lowest and highest draw; NaN where it has none."""
  if source == "update":
    value = np.nan if entry["value"] is None else entry["value"]
    return value, value, value
  draws = [np.nan if d is None else d for d in entry.get(_KEYS[source], {}).get("draws", ())] or [np.nan]
  low, high = min(draws), max(draws)
  return float(np.clip(np.mean(draws), low, high)), low, high  # a mean of equal values may round to less than they are


def _line(ax: Axes, x: Sequence[float], entries: Sequence[Record], source: str, style: Style) -> None:
  mean, low, high = np.array([_entry(entry, source) for entry in entries], float).T
  ax.errorbar(x, mean, [mean - low, high - mean], **style.line, elinewidth=0.9, capsize=2)


def _axes_by_kind(record: Record, width: float = 5.4) -> tuple[Figure, list[Axes]]:
  kinds = record["kinds"]
  figure, axes = plotting.panels(max(6.4, width * len(kinds)), 4.0, 1, len(kinds), sharey=False)
  for ax, kind in zip(axes, kinds, strict=True):
    ax.set_title(kind)
  return figure, axes


def _legend(figure: Figure) -> None:
  handles = [Line2D([], [], label=source, **style.line) for source, style in plotting.styled(SOURCES)]
  figure.legend(handles=handles, loc="outside upper left", ncols=3)


def _by_layer(record: Record) -> Figure:
  figure, axes = _axes_by_kind(record)
  layers = list(record["layers"])
  for ax, kind in zip(axes, record["kinds"], strict=True):
    for source, style in plotting.styled(SOURCES):
      entries = [record["layers"][layer][kind]["sparsity@1e-05"] for layer in layers]
      _line(ax, [int(layer) for layer in layers], entries, source, style)
    ax.set(xlabel="layer", ylabel="weights that move by at most 1e-5")
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
  _legend(figure)
  return figure


def _norms(record: Record) -> Figure:
  figure, axes = _axes_by_kind(record)
  for ax, kind in zip(axes, record["kinds"], strict=True):
    _bars(ax, [statistics[kind]["relative_norm"] for statistics in record["blocks"].values()], list(record["blocks"]))
    ax.set_ylabel("relative norm")
  _legend(figure)
  return figure


def _bars(ax: Axes, entries: Sequence[Record], labels: Sequence[str]) -> None:
  """Draw a bar for every source beside each other, for each entry."""
  for i, (source, style) in enumerate(plotting.styled(SOURCES)):
    mean, low, high = np.array([_entry(entry, source) for entry in entries], float).T
    at = np.arange(len(entries)) + (i - 1) * 0.27
    ax.bar(at, mean, 0.25, color=style.color, yerr=[mean - low, high - mean], error_kw={"elinewidth": 0.9})
  ax.set_xticks(range(len(entries)), labels)
  ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))


def _spectra(record: Record) -> Figure:
  figure, axes = _axes_by_kind(record)
  for ax, kind in zip(axes, record["kinds"], strict=True):
    for source, style in plotting.styled(SOURCES):
      key = {"update": "observed"}.get(source) or _KEYS[source]
      curves = [curve for curve in record["curves"][kind].get(key, ()) if curve]
      if curves:
        mean = np.mean(curves, axis=0)
        k = np.arange(1, len(mean) + 1)
        ax.plot(k, mean, **style.line, markevery=plotting.marker_every(len(mean), 9))
        ax.fill_between(k, np.min(curves, axis=0), np.max(curves, axis=0), color=style.color, alpha=0.2, linewidth=0)
    ax.set(xlabel="k largest singular values", ylabel="energy", ylim=(0, None))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
  _legend(figure)
  return figure


def _coverage(record: Record) -> Figure:
  kinds, shares = record["kinds"], record["shares"]
  figure, axes = plotting.panels(10.4, 3.8 * len(kinds), len(kinds), 2)
  for row, kind in enumerate(kinds):
    for ax, name in zip(axes[2 * row : 2 * row + 2], ("principal", "low"), strict=True):
      entries = [record["whole"][kind][f"{name}_coverage@{100 * rho:g}%"] for rho in shares]
      for source, style in plotting.styled(SOURCES):
        _line(ax, shares, entries, source, style)
      ax.plot(shares, shares, color=plotting.GREY, linestyle=":", linewidth=1)
      words = "largest weights of the rank-k part" if name == "principal" else "smallest weights"
      ax.set(xlabel=f"share of the {words}", ylabel="share of the moved weights", title=kind)
      ax.set_xticks(shares, [f"{100 * rho:g}%" for rho in shares])
      ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
  _legend(figure)
  return figure


def _overlap(record: Record) -> Figure:
  figure, axes = _axes_by_kind(record)
  for ax, kind in zip(axes, record["kinds"], strict=True):
    whole = record["whole"][kind]
    _bars(ax, [whole["overlap>1e-05"], whole["overlap_other>1e-05"]], ["of this run's", "of the other run's"])
    for at, name in enumerate(("density_other>1e-05", "density>1e-05")):
      for i, source in enumerate(SOURCES):
        level = _entry(whole[name], source)[0]
        x = at + (i - 1) * 0.27
        ax.plot([x - 0.13, x + 0.13], [level, level], color="black", linewidth=1.6)
    ax.set_ylabel("share that both moved")
  _legend(figure)
  return figure
