"""How the divergence of a run falls with what it has spent: measured at its checkpoints, between them by a line."""

import itertools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from opd_jax.studies.arm_spec import UNTRAINED
from opd_jax.studies.healing.measures import EDGES
from opd_jax.studies.results import Missing, Results, crossing
from opd_jax.studies.statistics import IntervalEstimate, ratio

Axis = Literal["flops", "tokens"]


class Curve(NamedTuple):
  """A run at its beginning and at its checkpoints, C in all."""

  flops: np.ndarray  # [C], of training, counted; see studies/flops.py
  tokens: np.ndarray  # [C], generated
  kl: np.ndarray  # [C], nats a token

  def spent(self, axis: Axis = "flops") -> float:
    """What the whole run has cost."""
    return float(getattr(self, axis)[-1])

  def at(self, budget: float, axis: Axis = "flops") -> float:
    """The divergence where so much is spent; behind the last checkpoint what it was there."""
    return float(np.interp(budget, getattr(self, axis), self.kl))


# Of a mean: every token alike, or every position up to T, however few answers are so long.
Weights = Literal["tokens", "positions"]


def from_position(step: Mapping[str, Any], first: int = 0, weights: Weights = "tokens") -> float | None:
  """The mean divergence of a checkpoint's answers from a position on, which is one of EDGES; None where no answer is so long."""
  bins = [i for i, (begin, _) in enumerate(itertools.pairwise(EDGES)) if begin >= first and step["tokens"][i]]
  width = {i: step["tokens"][i] if weights == "tokens" else EDGES[i + 1] - EDGES[i] for i in bins}
  return sum(step["by_position"][i] * width[i] for i in bins) / sum(width.values()) if bins else None


def curves(results: Results, arm: str, first: int = 0, weights: Weights = "tokens") -> dict[int, Curve]:
  """Trace the finished runs of an arm that were measured, by seed.

  Args:
    first: the position from which on tokens count; of a seed that has none of them there is no curve.
    weights: of the divergence's mean.

  Raises:
    Missing: there is no run.
  """
  before, asked, found = results.analysis(f"asked-{UNTRAINED}"), results.analysis(f"asked-{arm}"), {}
  for seed in results.seeds(arm):
    if seed in before and seed in asked:
      steps = [0, *(each["step"] for each in asked[seed]["steps"])]
      train = results.runs(arm)[seed].train
      tokens = np.interp(steps, [0, *(r["step"] for r in train)], [0, *(r["tokens"] for r in train)])
      kl = [from_position(each, first, weights) for each in (*before[seed]["steps"], *asked[seed]["steps"])]
      if None not in kl:
        found[seed] = Curve(results.flops_at(arm, seed, steps), tokens, np.array(kl, float))
  if not found:
    raise Missing(f"no run of {arm} is finished and measured")
  return found


def over(
  results: Results,
  arm: str,
  than: str = "opd",
  share: float = 1.0,
  axis: Axis = "flops",
  first: int = 0,
  weights: Weights = "tokens",
) -> IntervalEstimate:
  """Estimate the divergence of an arm over that of another, paired by seed, where both have spent as much.

  Args:
    share: of what the one of the two has spent that spent less.
    first: the position from which on tokens count.
    weights: of the divergence's mean.

  Raises:
    Missing: they have no seed in common.
  """
  own, other = curves(results, arm, first, weights), curves(results, than, first, weights)
  budget = {seed: share * min(own[seed].spent(axis), other[seed].spent(axis)) for seed in own.keys() & other.keys()}
  if not budget:
    raise Missing(f"{arm} and {than} have no measured seed in common")
  at = [{seed: of[seed].at(spent, axis) for seed, spent in budget.items()} for of in (own, other)]
  return ratio(at[0], at[1])


def flops_to(results: Results, arm: str, target: dict[int, float]) -> dict[int, float]:
  """Find the FLOPs by seed at which a run first has the target divergence; all that it has spent, where it never has: it takes at least these."""
  return {
    seed: min(crossing(curve.flops, -curve.kl, -target[seed]), curve.spent())
    for seed, curve in curves(results, arm).items()
    if seed in target
  }
