"""What a plan comes to, in a sentence for each target: whether it fits, how full a chip is, and how long it takes."""

from typing import Any

from opd_jax.models.image_encoder import PROGRAM
from opd_jax.planning.amounts import format_share, spoken_seconds


def verdict(target: dict[str, Any]) -> dict[str, Any]:
  """Judges a target by its record (see record.py).

  Returns:
    fits: None where a program was not compiled for another reason than that it does not fit.
    failed: a sentence for each such program.
    sentence: the verdict.
  """
  programs = {(p["name"], p["width"]): p for stage in target["stages"] for p in stage["programs"]}.values()
  failed = [p for p in programs if p["failed"] and not (p["memory"] and not p["fits"])]
  sentences = [f"{target['name']}: {_named(p)} was not compiled: {p['failed']}" for p in failed]
  excess = sorted((p for p in programs if p["memory"] and not p["fits"]), key=lambda p: -p["needs"])
  if excess:
    parts = ", ".join(f"{_named(p)} needs {_share(target, p)}" for p in excess[:1])
    more = f", and {len(excess) - 1} more program(s) do not either" if excess[1:] else ""
    sentence = f"does not fit: {parts}{more}; below is what would make it fit"
  elif failed:
    sentence = f"is not known to fit: {len(failed)} of {len(programs)} programs were not compiled"
  else:
    fullest = max(programs, key=lambda p: p["needs"])
    sentence = f"fits: {_share(target, fullest)}, {_times(target)}{_part(target)}"
  fits = False if excess else None if failed else True
  return {"fits": fits, "failed": sentences, "sentence": f"{target['name']} {sentence}"}


def _named(program: dict[str, Any]) -> str:
  return f"{program['name']} at {program['width']} {'patches' if program['name'] == PROGRAM else 'tokens'}"


def _share(target: dict[str, Any], program: dict[str, Any]) -> str:
  devices = target["devices"]
  unit = "chip" if devices == target["chips"] and target["name"] != "local" else "device"
  of = f"the {unit}'s memory" if devices == 1 else f"each of {devices:,} {unit}s"
  return f"{format_share(program['needs'] / target['capacity'])} of {of}"


def _times(target: dict[str, Any]) -> str:
  """How long a step and the whole run take, by the estimate; without the run's own method a step of the last stage."""
  own = next((r for r in target["runs"] if r["own"]), None)
  if own is None:
    return f"about {spoken_seconds(target['stages'][-1]['estimate']['seconds'])} for its longest step"
  evaluating = own["evaluation_chip_hours"] * 3600 / target["chips"]
  step = own["training_seconds"] / max(own["steps"], 1)
  return f"about {spoken_seconds(step)} a step, {spoken_seconds(own['training_seconds'] + evaluating)} in all"


def _part(target: dict[str, Any]) -> str:
  compiled, of = len(target["stages"]), target["widths"]
  return f" ({compiled} of {of} stages were compiled)" if compiled < of else ""
