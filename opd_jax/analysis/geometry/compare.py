"""Two models compared: the record that geometry.json holds, and that the table and the page are made of."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from opd_jax.analysis.geometry import blocks, coordinates, measure, nulls, sources, summary
from opd_jax.analysis.geometry.measure import OBSERVED, Kind, Options, Raw
from opd_jax.analysis.geometry.sources import BLOCKS, Pair, Source
from opd_jax.analysis.geometry.summary import Statistics

Record = dict[str, Any]
Measured = dict[str, dict[str, list[Raw]]]  # by kind and source, the records of its draws
OnTensor = Callable[[str, int], None]  # called with a tensor's name and its elements once it is measured


def compare(
  before: Source,
  after: Source,
  other: Source | None = None,
  options: Options | None = None,
  on_tensor: OnTensor | None = None,
) -> Record:
  """Compare two models tensor by tensor, over all devices.

  Args:
    other: a run from the same start, whose moved coordinates are compared with those of `after`.

  Returns:
    A record of what JSON can hold. "elsewhere": runs that began with another model than `before`, "name" and "start". "kinds": how
    the updates are seen. "whole", "blocks" and "layers": by kind and name of a
    statistic {"value", "permuted", "gaussian"}; the last two have the null's "draws" and what `nulls.against_null` says.
    "tensors": likewise for each, with the nulls' draws alone. "curves": energies of the k largest singular values.

  Raises:
    InputError: the models are not of one architecture, or a weight is NaN or Inf.
  """
  # Accelerators would multiply fp32 with fewer bits, too few for ranks and small projections.
  with jax.default_matmul_precision("highest"):
    return _compared(before, after, other, options or Options(), on_tensor)


def _compared(
  before: Source, after: Source, other: Source | None, options: Options, on_tensor: OnTensor | None
) -> Record:
  pairs = sources.match(before, after, other)
  seen_as, mesh = measure.kinds(pairs, options), blocks.device_mesh()
  measured: list[tuple[Pair, Measured, Measured | None]] = []
  for pair in pairs:
    own = measure.measure(pair, options, seen_as, mesh)
    shared = measure.overlap(pair, options, seen_as) if other else None
    measured.append((pair, own, shared))
    if on_tensor:
      on_tensor(pair.name, pair.size)
  groups = {name: [m for m in measured if sources.block_of(m[0].name) == name] for name in BLOCKS}
  layers = sorted({layer for p in pairs if (layer := sources.layer_of(p.name)) is not None})
  by_layer = {str(layer): [m for m in measured if sources.layer_of(m[0].name) == layer] for layer in layers}
  return {
    "before": _described(before),
    "after": _described(after),
    "against": _described(other) if other else None,
    "elsewhere": [
      {"name": run.name, "start": run.start}
      for run in (after, other)
      if run is not None and run.began_elsewhere(before)
    ],
    "options": dataclasses.asdict(options) | {"groups": list(options.groups)},
    "kinds": [kind.name for kind in seen_as],
    "elements": sum(p.size for p in pairs),
    "tensors_compared": len(pairs),
    "matrices": sum(own[seen_as[0].name][OBSERVED][0]["matrix"] for _, own, _ in measured),
    "changed": {k.name: sum(bool(own[k.name][OBSERVED][0]["square"]) for _, own, _ in measured) for k in seen_as},
    "inexact_spectra": sum(_is_inexact(own, seen_as) for _, own, _ in measured),
    "thresholds": {"sparsity": list(coordinates.ABSOLUTE), "relative_sparsity": list(coordinates.RELATIVE)},
    "shares": list(coordinates.SHARES),
    "whole": _with_nulls(measured, seen_as),
    "curves": {k.name: _curves([own[k.name] for _, own, _ in measured]) for k in seen_as},
    "blocks": {name: _with_nulls(own, seen_as) for name, own in groups.items() if own},
    "layers": {name: _with_nulls(own, seen_as) for name, own in by_layer.items()},
    "tensors": [_of_tensor(m, seen_as) for m in measured],
  }


def _described(source: Source) -> Record:
  return {"name": source.name, "kind": source.kind, "step": source.step}


def _is_inexact(own: Measured, seen_as: Sequence[Kind]) -> bool:
  found = (own[k.name][OBSERVED][0]["spectrum"] for k in seen_as)
  return any(s is not None and not s.exact for s in found)


Both = tuple[Pair, Measured, Measured | None]


def _statistics(measured: Sequence[Both], kind: str, source: str, draw: int) -> Statistics:
  out = summary.summarise([own[kind][source][draw] for _, own, _ in measured])
  if all(shared is not None for _, _, shared in measured):
    out |= summary.summarise_overlap([shared[kind][source][draw] for _, _, shared in measured if shared is not None])
  return out


def _draws(measured: Sequence[Both], kind: str, source: str) -> list[Statistics]:
  return [_statistics(measured, kind, source, draw) for draw in range(len(measured[0][1][kind][source]))]


def _sources(measured: Sequence[Both], kind: str) -> Iterable[str]:
  return [source for source in nulls.NULLS if source in measured[0][1][kind]]


def _with_nulls(measured: Sequence[Both], seen_as: Sequence[Kind]) -> Record:
  """The statistics of some tensors, each beside its nulls."""
  out: Record = {}
  for kind in seen_as:
    drawn = {source: _draws(measured, kind.name, source) for source in _sources(measured, kind.name)}
    out[kind.name] = {}
    for name, value in _statistics(measured, kind.name, OBSERVED, 0).items():
      entry: Record = {"value": value}
      for source, statistics in drawn.items():
        values = [s[name] for s in statistics]
        entry[source] = {"draws": values} | nulls.against_null(value, values)
      out[kind.name][name] = entry
  return out


def _curves(measured: Sequence[dict[str, list[Raw]]]) -> Record:
  """The energy curves of the observed update, and of every draw of its nulls."""
  return {
    source: [summary.energy_curve([m[source][draw] for m in measured]) for draw in range(len(measured[0][source]))]
    for source in measured[0]
  }


def _of_tensor(one: Both, seen_as: Sequence[Kind]) -> Record:
  pair = one[0]
  out: Record = {
    "name": pair.name,
    "shape": list(pair.shape),
    "block": sources.block_of(pair.name),
    "layer": sources.layer_of(pair.name),
    "kinds": {},
  }
  for kind in seen_as:
    drawn = {source: _draws([one], kind.name, source) for source in _sources([one], kind.name)}
    out["kinds"][kind.name] = {
      name: {"value": value} | {source: [s[name] for s in statistics] for source, statistics in drawn.items()}
      for name, value in _statistics([one], kind.name, OBSERVED, 0).items()
    }
  return out
