"""What is claimed of the weights that distillation moves, and the rules that decide it; written before the study's seeds were run.

Intervals are over seeds, at 95%. A statistic "beyond its null" is that of the update less the mean over the draws of a null: the same
update permuted within each tensor, or a Gaussian update of the same norm, both with weights rounded as the update's are. Where a
rule names no null, both have to be exceeded. Accuracies are means of a run's last three evaluations; rules about them have to be met
sampled and greedy.
"""

import functools
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from opd_jax.studies.evidence import SampledAndGreedy, both, known, verdict
from opd_jax.studies.geometry.arms import MANTISSA, RANDOM, STRONG, TUNED
from opd_jax.studies.results import How, Missing, Results
from opd_jax.studies.statistics import IntervalEstimate, interval
from opd_jax.studies.verdicts import Claim, Evidence, Verdict, above, all_of, at_least, at_most, below

NULLS = ("permuted", "gaussian")
ROUNDED, EXACT = f"{MANTISSA} bits", "fp32"


def statistic(results: Results, arm: str, name: str, kind: str = ROUNDED) -> dict[int, dict[str, Any]]:
  """Collect a statistic of an arm's updates by seed: its "value", and the "draws" of each null.

  Raises:
    Missing: nothing was measured of the arm, or the statistic has no value.
  """
  found = {seed: record["statistics"][kind][name] for seed, record in results.analysis(f"update-{arm}").items()}
  if any(entry["value"] is None for entry in found.values()):
    raise Missing(f"{name} of {arm} has no value")
  return found


def values(results: Results, arm: str, name: str, kind: str = ROUNDED) -> dict[int, float]:
  return {seed: entry["value"] for seed, entry in statistic(results, arm, name, kind).items()}


def beyond(results: Results, arm: str, name: str, null: str, kind: str = ROUNDED) -> IntervalEstimate:
  """Estimate a statistic less the mean of a null's draws."""
  found = statistic(results, arm, name, kind)
  return interval(entry["value"] - fmean(entry[null]["draws"]) for entry in found.values())


def beyond_both(results: Results, name: str, kind: str, because: str, larger: bool) -> Verdict:
  """Decide whether OPD's statistic is larger, or smaller, than both nulls'."""
  found = {null: beyond(results, "opd", name, null, kind) for null in NULLS}
  rule = above if larger else below
  return verdict(
    all_of(*(rule(estimate, 0) for estimate in found.values())),
    because,
    Evidence("OPD", interval(values(results, "opd", name, kind).values())),
    *(Evidence(f"OPD less its null, {null}", estimate) for null, estimate in found.items()),
    *known(
      *(
        functools.partial(_value, results, arm, name, kind)
        for arm in ("k1", "topd-10", "popd", "offline", "gold", "grpo")
      )
    ),
  )


def _value(results: Results, arm: str, name: str, kind: str) -> Evidence:
  return Evidence(arm, interval(values(results, arm, name, kind).values()))


def unlike_offline(results: Results) -> Verdict:
  """Compare how concentrated the spectra of on-policy and of offline distillation are; both do not depend on the norm.

  Raises:
    Missing: there is no seed in which both came to the score at which they are compared.
  """
  seeds = sorted(_reached(results, "opd") & _reached(results, "offline"))
  if not seeds:
    raise Missing("OPD and SFT on the teacher's rollouts came to one score in no seed")
  opd, offline = (values(results, arm, "stable_rank", EXACT) for arm in ("opd", "offline"))
  ratio = interval(opd[seed] / offline[seed] for seed in seeds)
  energy_opd, energy_offline = (values(results, arm, "top_energy@4", EXACT) for arm in ("opd", "offline"))
  energy = interval(energy_opd[seed] - energy_offline[seed] for seed in seeds)
  return verdict(
    all_of(at_most(ratio, 0.9), above(energy, 0)),
    "stable rank and energy of the four largest singular values, medians over the matrices, in fp32",
    Evidence("stable rank, OPD over SFT on the teacher's rollouts", ratio),
    Evidence("energy of the four largest, OPD less SFT", energy),
  )


def _reached(results: Results, arm: str) -> set[int]:
  """The seeds in which an arm came to the score at which updates are compared."""
  return {seed for seed, record in results.analysis(f"update-{arm}").items() if record["reached"]}


def tuned(results: Results, name: str, how: How = "sampled") -> dict[int, float]:
  """The score of what is tuned, by seed, each at the arm that is best on the other seeds, sampled.

  Raises:
    Missing: fewer than two seeds have finished all of its arms.
  """
  arms = TUNED[name]
  seeds = results.common(*arms)
  if len(seeds) < 2:
    raise Missing(f"tuning {name} needs two seeds of all of its arms")
  sampled = {arm: results.scores(arm) for arm in arms}

  def elsewhere(seed: int, arm: str) -> float:
    return fmean(sampled[arm][s] for s in seeds if s != seed)

  chosen = {seed: max(arms, key=functools.partial(elsewhere, seed)) for seed in seeds}
  return {seed: results.scores(arm, how)[seed] for seed, arm in chosen.items()}


def less(results: Results, a: str, b: str, how: How = "sampled") -> IntervalEstimate:
  """Estimate the tuned score of a less that of b, paired by seed."""
  left, right = tuned(results, a, how), tuned(results, b, how)
  if not (seeds := sorted(left.keys() & right.keys())):
    raise Missing(f"{a} and {b} have no seed in common")
  return interval(left[seed] - right[seed] for seed in seeds)


def recovers(results: Results) -> Verdict:
  found = both(less, results, "visible", "all")
  return verdict(
    found.decided(at_least, -0.02),
    "OPD on its visible coordinates alone less OPD, each at its best rate",
    *found.points("visible less all"),
    Evidence("share of the coordinates that have moved where updates are compared", _density(results)),
  )


def _density(results: Results) -> IntervalEstimate:
  """Estimate the share of all coordinates that OPD has moved visibly at the checkpoint that is compared, see measures.py.

  Masks are made of the run's end, and hold more.
  """
  return interval(1 - value for value in values(results, "opd", "zero").values())


def beats(results: Results, controls: Sequence[str]) -> Verdict:
  found: dict[str, SampledAndGreedy] = {name: both(less, results, "visible", name) for name in controls}
  return verdict(
    all_of(*(estimate.decided(above, 0) for estimate in found.values())),
    "OPD on its visible coordinates less OPD on as many others, each at its best rate",
    *(evidence for name, estimate in found.items() for evidence in estimate.points(f"visible less {name}")),
  )


def no_ranking_needed(results: Results) -> Verdict:
  found = both(less, results, "top", "visible")
  return verdict(found.decided(at_most, 0.01), "each at its best rate, paired", *found.points("top less visible"))


def serves(results: Results, mask: str, control: str, label: str) -> Verdict:
  """Decide whether another method's coordinates serve OPD as its own do, and better than as many of the same magnitudes."""
  found, chance = both(less, results, mask, "visible"), both(less, results, mask, control)
  return verdict(
    all_of(found.decided(at_least, -0.01), chance.decided(above, 0)),
    "OPD on these coordinates less OPD on its own visible ones, and on as many as these at random by magnitude, each at its best rate",
    *found.points(f"{label} less OPD's"),
    *chance.points(f"{label} less random by magnitude"),
  )


def overlaps(results: Results) -> Verdict:
  """Compare the share of moved coordinates that OPD and GRPO have in common with that of independent updates.

  Raises:
    Missing: nothing was measured, or one of them has moved nothing visibly.
  """
  found = {
    seed: record["statistics"][ROUNDED]["overlap_lift"] for seed, record in results.analysis("shared-grpo").items()
  }
  if any(entry["value"] is None for entry in found.values()):
    raise Missing("one of the two has moved nothing visibly")
  lift = interval(entry["value"] for entry in found.values())
  excess = {null: interval(entry["value"] - fmean(entry[null]["draws"]) for entry in found.values()) for null in NULLS}
  return verdict(
    all_of(*(above(estimate, 0) for estimate in excess.values())),
    "how many times chance the coordinates are that both moved visibly, less that of two updates that know nothing of each other",
    Evidence("times chance", lift),
    *(Evidence(f"less its null, {null}", estimate) for null, estimate in excess.items()),
  )


def adamw_wins(results: Results) -> Verdict:
  found = both(less, results, "all", "sgd")
  return verdict(
    found.decided(above, 0),
    "each at its best rate, paired",
    *found.points("AdamW less SGD"),
    *known(*(functools.partial(_tuned, results, name) for name in TUNED)),
  )


def _tuned(results: Results, name: str) -> Evidence:
  return Evidence(name, interval(tuned(results, name).values()), "score")


CLAIMS = (
  Claim(
    "sparse beyond the null",
    "OPD moves fewer weights visibly than an update without structure would (arXiv:2606.13657)",
    "the share of weights that stay exactly the same, rounded, is above that of both nulls",
    functools.partial(
      beyond_both, name="zero", kind=ROUNDED, because="share of weights that do not move, rounded", larger=True
    ),
  ),
  Claim(
    "small weights beyond the null",
    "OPD moves small weights rather than large ones (arXiv:2606.13657)",
    "coverage of the smallest 10% of the weights is above that of both nulls",
    functools.partial(
      beyond_both,
      name="low_coverage@10%",
      kind=ROUNDED,
      because="share of the moved coordinates among the smallest 10%",
      larger=True,
    ),
  ),
  Claim(
    "off the principal weights beyond the null",
    "OPD avoids the weights of the principal subspaces (arXiv:2606.13657)",
    "coverage of the largest 10% of the rank-10% approximation is below that of both nulls",
    functools.partial(
      beyond_both,
      name="principal_coverage@10%",
      kind=ROUNDED,
      because="share of the moved coordinates among the principal 10%",
      larger=False,
    ),
  ),
  Claim(
    "concentrated beyond the null",
    "OPD's update has few large singular values (arXiv:2606.13657)",
    "the energy of the four largest singular values is above that of both nulls, in fp32",
    functools.partial(
      beyond_both, name="top_energy@4", kind=EXACT, because="median over the matrices, in fp32", larger=True
    ),
  ),
  Claim(
    "off the principal subspaces",
    "OPD's update lies outside the principal subspaces of the weights (arXiv:2606.13657)",
    "its projection on the first 10% of singular directions is below that of both nulls, in fp32",
    functools.partial(
      beyond_both, name="projection@10%", kind=EXACT, because="median over the matrices, in fp32", larger=False
    ),
  ),
  Claim(
    "unlike offline distillation",
    "an on-policy update is more concentrated than an offline one that comes to the same score (arXiv:2606.13657)",
    "its stable rank is at most .9 times, and its four largest singular values have more of the energy, in the seeds in which both come "
    "to the score",
    unlike_offline,
  ),
  Claim(
    "the visible subnetwork suffices",
    "training the coordinates that a first run moved visibly recovers it (arXiv:2606.13657)",
    "OPD on its visible coordinates less OPD is at least -2 points",
    recovers,
  ),
  Claim(
    "better than random coordinates",
    "these coordinates are better than as many random ones (arXiv:2606.13657)",
    "above as many at random among all",
    functools.partial(beats, controls=RANDOM),
  ),
  Claim(
    "better than strong controls",
    "they are better than controls that know magnitudes, tensors or layers (ours: without this the mask says nothing of OPD)",
    "above the smallest weights, and above random ones by magnitude, by tensor and by layer",
    functools.partial(beats, controls=STRONG),
  ),
  Claim(
    "visible is enough of a ranking",
    "what is visible is as good a choice as the largest updates in fp32 (ours)",
    "the largest fp32 updates less the visible ones is at most 1 point",
    no_ranking_needed,
  ),
  Claim(
    "a short horizon finds them",
    "the coordinates that TOPD moves serve a run of full rollouts (ours)",
    "OPD on TOPD's coordinates less OPD on its own is at least -1 point, and it is above as many at random by magnitude",
    functools.partial(serves, mask="of-topd", control="stratified-topd", label="TOPD's"),
  ),
  Claim(
    "a reward finds them",
    "the coordinates that a policy gradient moves serve distillation (arXiv:2606.13657)",
    "OPD on GRPO's coordinates less OPD on its own is at least -1 point, and it is above as many at random by magnitude",
    functools.partial(serves, mask="of-grpo", control="stratified-grpo", label="GRPO's"),
  ),
  Claim(
    "shared beyond the null",
    "distillation and reward move the same coordinates (arXiv:2606.13657)",
    "their overlap over chance is above that of updates that know nothing of each other",
    overlaps,
  ),
  Claim(
    "AdamW beats SGD",
    "AdamW is better than SGD at its best rate (arXiv:2606.13657)",
    "OPD by AdamW is above OPD by SGD, each at its best rate",
    adamw_wins,
  ),
)
