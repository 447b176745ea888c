"""What is claimed of DRPO, and the rules by which the study decides it; written before the study's seeds were run.

Intervals are over seeds, at 95%, paired by seed. The area of a run is that under its accuracy by step, over the number of
steps: answers to 256 held-out problems, one each at temperature 1, at every `arms.EVERY` steps. A run has collapsed where its
last three evaluations are, in the mean, more than 10 points below its best three in a row, or more than 10 points below the student
before training.

What is tuned is tuned on other seeds than it is judged on: the area of "the best of" several arms is, for each seed, that of
the arm whose mean area over all other seeds is highest.
"""

import functools
from collections import Counter
from collections.abc import Callable
from statistics import fmean
from typing import Any

from opd_jax.studies.arm_spec import UNTRAINED
from opd_jax.studies.drpo.arms import CONDITIONS, DPPO, DRPO, LABELS, VACUOUS
from opd_jax.studies.drpo.estimates import (
  accuracy,
  area,
  best_of,
  chosen,
  collapsed,
  difference,
  largest_weight,
)
from opd_jax.studies.evidence import known, lazily, less, logged, points, times, verdict
from opd_jax.studies.results import Results
from opd_jax.studies.statistics import IntervalEstimate, interval, ratio
from opd_jax.studies.verdicts import (
  NOT_SUPPORTED,
  SUPPORTED,
  Claim,
  Evidence,
  Status,
  Verdict,
  above,
  all_of,
  at_least,
  at_most,
)

SAME = 0.05  # areas that are nearer than this are the same for practical purposes
DPPO_ARMS = tuple(f"dppo-{delta:g}" for delta in DPPO)
DRPO_ARMS = tuple(f"drpo-{delta:g}" for delta in DRPO)
PENALISED = {f"drpo-{delta:g}": delta for delta in (*DRPO, *VACUOUS)}


def share_collapsed(results: Results, arm: str) -> Evidence:
  """The share of an arm's runs that have collapsed, as evidence; its interval is none of a rule's."""
  share = fmean(collapsed(results, arm).values())
  return Evidence(f"{LABELS[arm]}, collapsed", IntervalEstimate(share, share, share, len(results.seeds(arm))), "score")


def collapses(results: Results, *arms: str) -> list[Evidence]:
  found = []
  for arm in arms:
    found += known(functools.partial(share_collapsed, results, arm))
  return found


def _over_seeds(measure: Callable[..., dict[int, float]], *args: Any) -> IntervalEstimate:
  """Estimate the mean over seeds of what `measure` finds."""
  return interval(measure(*args).values())


def _ratio_of(results: Results, a: str, b: str, key: str) -> IntervalEstimate:
  """Estimate the mean of a logged number in arm a over that in arm b."""
  return ratio(logged(results, a, key), logged(results, b, key))


def _asked(results: Results, a: str, b: str, how: str) -> IntervalEstimate:
  """Estimate the accuracy after training of arm a less that of arm b."""
  return less(accuracy(results, a, how), accuracy(results, b, how))


def _counts(by_seed: dict[int, str]) -> str:
  """The thresholds that were chosen, and by how many seeds: '0.15 (4), 0.3 (1)'."""
  return ", ".join(f"{arm.rpartition('-')[2]} ({n})" for arm, n in sorted(Counter(by_seed.values()).items()))


def stale_rollouts_hurt(results: Results) -> Verdict:
  trust = difference(results, "dppo-0.15", "is")
  return verdict(
    above(trust, 0),
    "area at 16 updates a step",
    points("DPPO 0.15 less importance weighting", trust),
    *known(
      lazily(points, "PPO clip .2/.28 less importance weighting", difference, results, "clip-higher", "is"),
      lazily(points, "the same with 1 update a step", difference, results, "u1-dppo-0.15", "u1-is"),
      lazily(points, "the same at 1.5 times the rate", difference, results, "lr3-dppo-0.15", "lr3-is"),
    ),
    *collapses(results, "is", "dppo-0.15", "lr3-is", "lr3-dppo-0.15"),
  )


def vacuous(results: Results) -> Verdict:
  """The prediction is that nothing differs: an interval above 0, however little, falsifies it."""
  found = difference(results, "drpo-12.5", "is")
  inside = all_of(at_least(found, -SAME), at_most(found, SAME))
  return verdict(
    NOT_SUPPORTED if found.low > 0 else inside,
    "area at 16 updates a step, DRPO 12.5 less importance weighting",
    points("DRPO 12.5", found),
    *known(
      lazily(points, "DRPO 2.5", difference, results, "drpo-2.5", "is"),
      lazily(points, "DRPO 1", difference, results, "drpo-1", "is"),
      lazily(Evidence, "largest |w| of DRPO 12.5", _over_seeds, largest_weight, results, "drpo-12.5"),
    ),
  )


def same_boundary(results: Results) -> Verdict:
  outside = ratio(logged(results, "drpo-0.15", "beyond"), logged(results, "dppo-0.15", "beyond"))
  return verdict(
    at_most(outside, 1),
    "share of the tokens beyond |pi - mu| of 0.15, DRPO over DPPO, both at 0.15",
    times("DRPO over DPPO", outside),
    *known(
      lazily(times, "importance weighting over DPPO", _ratio_of, results, "is", "dppo-0.15", "beyond"),
      lazily(times, "E |pi - mu|, DRPO over DPPO", _ratio_of, results, "drpo-0.15", "dppo-0.15", "moved"),
      lazily(Evidence, "share beyond, DPPO", _over_seeds, logged, results, "dppo-0.15", "beyond"),
    ),
  )


def weights_explode(results: Results) -> Verdict:
  spo, drpo = largest_weight(results, "spo-0.2"), largest_weight(results, "drpo-0.15")
  found = ratio(spo, drpo)
  within = [_within(results, arm, 1 + 1 / delta) for arm, delta in PENALISED.items() if results.seeds(arm)]
  return verdict(
    all_of(at_least(found, 3), *within),
    "largest |w| of any token, SPO 0.2 over DRPO 0.15",
    times("SPO over DRPO", found),
    Evidence("SPO 0.2", interval(spo.values())),
    Evidence("DRPO 0.15 (at most 7.67)", interval(drpo.values())),
    *known(
      lazily(Evidence, "share of tokens with mu < .01", _over_seeds, logged, results, "spo-0.2", "rare"),
      lazily(points, "area, SPO 0.2 less DRPO 0.15", difference, results, "spo-0.2", "drpo-0.15"),
    ),
    *collapses(results, "spo-0.2", "spo-12.5"),
  )


def _within(results: Results, arm: str, bound: float) -> Status:
  """Whether no run of the arm has had a weight beyond the bound of its formula, but for rounding."""
  return SUPPORTED if max(largest_weight(results, arm).values()) <= bound * (1 + 1e-3) else NOT_SUPPORTED


def better_than_tuned(results: Results) -> Verdict:
  drpo, dppo = best_of(results, DRPO_ARMS), best_of(results, DPPO_ARMS)
  found = less(drpo, dppo)
  return verdict(
    above(found, 0),
    "area at 16 updates a step, each at the best of four thresholds on the other seeds",
    points("the best of DRPO less the best of DPPO", found),
    Evidence(f"DRPO at {_counts(chosen(results, DRPO_ARMS))}", interval(drpo.values()), "score"),
    Evidence(f"DPPO at {_counts(chosen(results, DPPO_ARMS))}", interval(dppo.values()), "score"),
    *known(
      lazily(points, "both at 0.15", difference, results, "drpo-0.15", "dppo-0.15"),
      *(
        lazily(points, f"both at 0.15, {label}", difference, results, f"{name}-drpo-0.15", f"{name}-dppo-0.15")
        for name, (label, _) in CONDITIONS.items()
      ),
    ),
  )


def threshold_matters(results: Results) -> Verdict:
  found = less(best_of(results, DRPO_ARMS), area(results, "drpo-12.5"))
  return verdict(
    above(found, 0),
    "area at 16 updates a step",
    points("the best of DRPO below 1 less DRPO 12.5", found),
    *known(
      *(
        lazily(points, f"{LABELS[arm]} less DRPO 12.5", difference, results, arm, "drpo-12.5")
        for arm in (*DRPO_ARMS, "drpo-1")
      )
    ),
  )


def one_above_another(results: Results, a: str, b: str, because: str) -> Verdict:
  return verdict(above(found := difference(results, a, b), 0), because, points(f"{LABELS[a]} less {LABELS[b]}", found))


def teacher_teaches(results: Results) -> Verdict:
  """The null suppresses rare tokens and knows nothing: what it gains is no merit of a teacher."""
  opd, null = area(results, "opd"), area(results, "opd-null")
  found, gained = less(opd, null), less(null, results.untrained("opd-null"))
  half = less(null, {seed: (opd[seed] + before) / 2 for seed, before in results.untrained("opd").items()})
  return verdict(
    all_of(above(found, 0), at_most(half, 0)),
    "area at equal numbers of sampled responses, OPD less its null; and the null's gain less half of OPD's",
    points("OPD less the null", found),
    points("the null's gain less half of OPD's", half),
    points("the null less the untrained student", gained),
    *known(
      lazily(points, "greedy accuracy, OPD less the null", _asked, results, "opd", "opd-null", "greedy"),
      lazily(points, "greedy accuracy, the null less before", _asked, results, "opd-null", UNTRAINED, "greedy"),
    ),
  )


def teacher_over_reward(results: Results) -> Verdict:
  found = less(area(results, "opd"), best_of(results, DRPO_ARMS))
  return verdict(
    above(found, 0),
    "area at equal numbers of sampled responses",
    points("OPD less the best of DRPO", found),
    *known(lazily(points, "OPD less PPO clip .2/.28", difference, results, "opd", "clip-higher")),
  )


def reward_on_top(results: Results) -> Verdict:
  found = difference(results, "opd-reward", "opd")
  return verdict(
    above(found, 0), "area at equal numbers of sampled responses", points("OPD and a reward less OPD", found)
  )


def coarse_sampler(results: Results) -> Verdict:
  found = difference(results, "int8-drpo-0.15", "drpo-0.15")
  return verdict(
    at_least(found, -SAME),
    "area with an int8 sampler less the same with an exact one",
    points("DRPO 0.15", found),
    *known(
      lazily(
        Evidence,
        "log-probability gap of sampler and trainer, DRPO 0.15 (nats)",
        _over_seeds,
        logged,
        results,
        "int8-drpo-0.15",
        "logprob_gap",
      ),
      lazily(points, "DPPO 0.15", difference, results, "int8-dppo-0.15", "dppo-0.15"),
      lazily(points, "importance weighting", difference, results, "int8-is", "is"),
      lazily(points, "PPO clip .2/.28", difference, results, "int8-clip-higher", "clip-higher"),
    ),
  )


def updates_pay(results: Results) -> Verdict:
  found = difference(results, "drpo-0.15", "u1-drpo-0.15")
  return verdict(
    above(found, 0),
    "area of DRPO 0.15, 16 updates a step less 1",
    points("16 less 1", found),
    *known(
      lazily(points, "16 less 4", difference, results, "drpo-0.15", "u4-drpo-0.15"),
      lazily(points, "importance weighting, 16 less 1", difference, results, "is", "u1-is"),
    ),
  )


CLAIMS = (
  Claim(
    "stale rollouts need a trust region",
    "16 updates on one batch of rollouts go wrong without a trust region (arXiv:2602.04879); what the others rest on",
    "the area of DPPO 0.15 is above that of importance weighting alone",
    stale_rollouts_hurt,
  ),
  Claim(
    "12.5 is no threshold",
    "DRPO at its published threshold of 12.5 is plain importance weighting: a probability cannot move so far (ours)",
    "areas differ by at most 5 points either way; not supported, too, where DRPO 12.5 is above importance weighting at all",
    vacuous,
  ),
  Claim(
    "the same boundary, no overshoot",
    "DRPO 0.15 holds tokens within the boundary of DPPO 0.15, since it pulls back what is beyond (arXiv:2606.09821)",
    "the share of tokens beyond 0.15 is at most DPPO's",
    same_boundary,
  ),
  Claim(
    "SPO's weights explode",
    "a penalty in the ratio gives rare tokens weights without bound, one in the probability does not (arXiv:2606.09821)",
    "the largest |w| of SPO 0.2 is at least three times that of DRPO 0.15, and no DRPO arm passes 1 + 1/delta",
    weights_explode,
  ),
  Claim(
    "better than a tuned DPPO",
    "a penalty that pulls back is better than a mask (arXiv:2606.09821), where both are tuned (ours)",
    "the area of DRPO at the best of four thresholds below 1 is above that of DPPO at the best of four, 16 updates a step",
    better_than_tuned,
  ),
  Claim(
    "a threshold that can be reached is better",
    "the mechanism of arXiv:2606.09821 needs a threshold below 1, which it did not try (ours)",
    "the area of DRPO at the best of four thresholds below 1 is above that of DRPO 12.5",
    threshold_matters,
  ),
  Claim(
    "|A| belongs to the penalty",
    "without the factor |A| the boundary moves with the advantage, and less is learned (arXiv:2606.09821)",
    "the area of DRPO 0.15 is above that of the same without |A|",
    functools.partial(one_above_another, a="drpo-0.15", b="drpo-unscaled", because="area at 16 updates a step"),
  ),
  Claim(
    "correction beyond the boundary helps",
    "a mask that also pulls back is better than one that only lets go: Mask-DRPO against DPPO (arXiv:2606.09821)",
    "the area of Mask-DRPO 0.15 is above that of DPPO 0.15",
    functools.partial(one_above_another, a="mask-drpo", b="dppo-0.15", because="area at 16 updates a step"),
  ),
  Claim(
    "a coarse sampler costs nothing",
    "with the sampler's own probabilities as the anchor, int8 rollouts are as good (arXiv:2602.04879)",
    "the area of DRPO 0.15 with an int8 sampler less that with an exact one is at least -5 points",
    coarse_sampler,
  ),
  Claim(
    "more updates a rollout pay",
    "with a trust region, 16 updates on a batch of rollouts teach more than one (ours)",
    "the area of DRPO 0.15 with 16 updates a step is above that with one, at the same rate",
    updates_pay,
  ),
  Claim(
    "a teacher teaches more than its null",
    "what OPD gains is not what suppressing rare tokens gains without any teacher (ours, after arXiv:2608.31046)",
    "the area of OPD is above its null's, and the null gains at most half as much",
    teacher_teaches,
  ),
  Claim(
    "a teacher teaches more than a reward",
    "at equal numbers of sampled responses an exact teacher on every token beats a verdict on the answer (ours)",
    "the area of OPD is above that of DRPO at the best of four thresholds",
    teacher_over_reward,
  ),
  Claim(
    "a reward on top of a teacher helps",
    "the sum of both losses is better than the teacher's alone (ours)",
    "the area of OPD with a reward is above that of OPD",
    reward_on_top,
  ),
)
