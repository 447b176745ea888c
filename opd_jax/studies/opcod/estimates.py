"""What the study's claims are decided by: accuracies of both students in both domains, what comments do, and the records of steps.

Each of the two students has an accuracy in the domain that it knew before, "own", and in the other one, "other"; "all four" is the mean
of both students and domains. Intervals are over seeds, at 95%.
"""

from collections.abc import Callable, Mapping
from typing import Any

from opd_jax.evaluation.tutoring import is_pareto_improvement
from opd_jax.reports.runs import load
from opd_jax.studies.arm_spec import UNTRAINED
from opd_jax.studies.opcod.arms import SPECIALISTS
from opd_jax.studies.results import How, Missing, Results, workdir
from opd_jax.studies.statistics import IntervalEstimate, interval

Accuracies = Mapping[str, Mapping[str, float]]  # by student, named by its specialty, and by domain
Part = Callable[[Accuracies], float]


def accuracies(results: Results, arm: str, how: How = "sampled") -> dict[int, Accuracies]:
  """Collect the accuracies of both students of an arm, by seed: of one run, or of the two runs of a single-student arm.

  Raises:
    Missing: nothing has been measured of the arm.
  """

  def of(record: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    record = record["greedy"] if how == "greedy" else record
    return {name: record[name] for name in SPECIALISTS if name in record}

  try:
    return {seed: of(record) for seed, record in results.analysis(f"asked-{arm}").items()}
  except Missing:
    parts = [results.analysis(f"asked-{arm}-{name}") for name in SPECIALISTS]
  seeds = sorted(set.intersection(*(set(part) for part in parts)))
  if not seeds:
    raise Missing(f"the two students of {arm} have no seed in common")
  return {seed: {k: v for part in parts for k, v in of(part[seed]).items()} for seed in seeds}


def all_four(found: Accuracies) -> float:
  return sum(found[student][domain] for student in found for domain in SPECIALISTS) / (2 * len(found))


def own(found: Accuracies) -> float:
  return sum(found[student][student] for student in found) / len(found)


def other(found: Accuracies) -> float:
  return sum(found[student][domain] for student in found for domain in SPECIALISTS if domain != student) / len(found)


def difference(results: Results, a: str, b: str, part: Part = all_four, how: How = "sampled") -> IntervalEstimate:
  """Estimate a number of arm a less the same number of arm b, paired by seed."""
  left, right = accuracies(results, a, how), accuracies(results, b, how)
  if not (seeds := sorted(left.keys() & right.keys())):
    raise Missing(f"{a} and {b} have no seed in common")
  return interval(part(left[seed]) - part(right[seed]) for seed in seeds)


def gain(results: Results, arm: str, part: Part = all_four, how: How = "sampled") -> IntervalEstimate:
  """Estimate a number of an arm less the same number before training."""
  return difference(results, arm, UNTRAINED, part, how)


def of_student(name: str, domain: str) -> Part:
  """One student's accuracy in one domain."""
  return lambda found: found[name][domain]


def pareto_share(results: Results, arm: str) -> IntervalEstimate:
  """Estimate the share of students of which no domain became worse, by more than 2 points of noise, and at least one better, sampled."""
  before, after = accuracies(results, UNTRAINED), accuracies(results, arm)
  return interval(
    sum(is_pareto_improvement(before[seed][name], after[seed][name], noise=0.02) for name in SPECIALISTS)
    / len(SPECIALISTS)
    for seed in sorted(before.keys() & after.keys())
  )


def commented(results: Results, arm: str, kind: str) -> dict[int, dict[str, dict[str, Any]]]:
  """Collect what comments of a kind do to an arm's students, by seed and student; see evaluation/commented.py."""
  found = results.analysis(f"asked-{arm}")
  if not all("comments" in record for record in found.values()):
    raise Missing(f"the students of {arm} were not shown comments")
  if not all(kind in record["comments"][name] for record in found.values() for name in SPECIALISTS):
    raise Missing(f"no second answers of {arm} were measured with {kind!r}")
  return {seed: {name: record["comments"][name][kind] for name in SPECIALISTS} for seed, record in found.items()}


def helped(results: Results, kind: str) -> dict[int, float]:
  """Compute by how much a comment raises a specialist's accuracy in the other domain, before training, by seed."""

  def of(name: str, record: Mapping[str, Any]) -> float:
    if "with" not in record:
      raise Missing("no comment was kept")
    return sum(record["with"][d] - record["without"][d] for d in SPECIALISTS if d != name)

  found = commented(results, UNTRAINED, kind)
  return {
    seed: sum(of(name, record) for name, record in by_name.items()) / len(by_name) for seed, by_name in found.items()
  }


def broken_share(record: Mapping[str, Any], domain: str) -> float:
  """The break rate in a domain.

  Raises:
    Missing: no comment was kept there, or no attempt was right.
  """
  rate = record.get("broken", {}).get(domain, {}).get("rate")
  if rate is None:
    raise Missing("no attempt that was right had a comment")
  return rate


def steps_of(results: Results, arm: str, seed: int) -> list[dict[str, Any]]:
  """Collect the records of all steps of a run, whichever student made them, by step."""
  models = load([workdir(results.out, arm, seed)])
  return sorted((record for model in models for record in model.train), key=lambda record: record["step"])
