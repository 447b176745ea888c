"""Does OPD distil, or does it sharpen? The rules by which the study decides it, after arXiv:2608.31046.

What OPD gains at temperature 1 could also come from a lower temperature, from a loss that has no teacher, or from a teacher
that says nothing about the token. Every control has the advantage: of several temperatures, rates and evaluations it is given
the best, seed by seed, and OPD's score is that of its last evaluations.
"""

from collections.abc import Iterable

from opd_jax.studies.evidence import (
  SampledAndGreedy,
  both,
  by_seed,
  difference,
  known,
  lazily,
  lazily_both,
  points,
  verdict,
)
from opd_jax.studies.results import How, Missing, Results
from opd_jax.studies.statistics import IntervalEstimate, interval
from opd_jax.studies.verdicts import Claim, Verdict, above, all_of, at_most

NULLS = ("null", "null-slow")
PHASE_NULLS = ("phase-null", "phase-null-slow")


def sharpened(results: Results, task: str) -> dict[int, float]:
  """The accuracy of the student before training at the best of its temperatures, by seed; see `measures.sharpened`."""
  return {seed: max(found[task].values()) for seed, found in results.analysis("untrained").items()}


def less_sharpened(results: Results, arm: str, task: str, how: How) -> IntervalEstimate:
  """Estimate an arm's score less the accuracy before training at the best of all temperatures."""
  start, scores = sharpened(results, task), results.scores(arm, how)
  if not (seeds := sorted(start.keys() & scores.keys())):
    raise Missing(f"{arm} and the untrained student have no seed in common")
  return interval(scores[seed] - start[seed] for seed in seeds)


def less_best(results: Results, arm: str, controls: Iterable[str], how: How) -> IntervalEstimate:
  """Estimate an arm's score less the best three evaluations in a row of any of these controls, paired by seed."""
  controls = tuple(controls)
  seeds, scores = results.common(arm, *controls), results.scores(arm, how)
  best = [results.best(control, how) for control in controls]
  return interval(scores[seed] - max(of_control[seed] for of_control in best) for seed in seeds)


def _controls(results: Results, arm: str) -> dict[str, SampledAndGreedy]:
  """What an arm of the chain task has more than each control, by the control's name."""
  return {
    "the untrained student at its best temperature": both(less_sharpened, results, arm, "chain"),
    "the null at its best": both(less_best, results, arm, NULLS),
    "a permuted teacher at its best": both(less_best, results, arm, ("shuffled",)),
  }


def opd_distils(results: Results) -> Verdict:
  found = _controls(results, "opd")
  return verdict(
    all_of(*(estimate.decided(above, 0) for estimate in found.values())),
    "OPD's score less each control's best, chain",
    *(evidence for name, estimate in found.items() for evidence in estimate.points(f"OPD less {name}")),
    *known(
      *lazily_both("null less OPD, last evaluations", difference, results, "null", "opd"),
      *(
        lazily(points, f"untrained, temperature {t} less temperature 1", _temperature, results, "chain", t)
        for t in ("0.7", "0.5", "0")
      ),
    ),
  )


def topd_distils(results: Results) -> Verdict:
  found = _controls(results, "topd-10")
  return verdict(
    all_of(*(estimate.decided(above, 0) for estimate in found.values())),
    "the score of TOPD 10% less each control's best, chain",
    *(evidence for name, estimate in found.items() for evidence in estimate.points(f"TOPD 10% less {name}")),
  )


def phase_needs_a_teacher(results: Results) -> Verdict:
  """Check the task: the student before training lacks the trait, so that nothing but a teacher can show it."""
  sharper = by_seed(results, "untrained", lambda found: max(found["phase"].values()) - found["phase"]["1"])
  null, shuffled = (both(_best_gain, results, controls) for controls in (PHASE_NULLS, ("phase-shuffled",)))
  return verdict(
    all_of(at_most(sharper, 0.05), null.decided(at_most, 0.05), shuffled.decided(at_most, 0.05)),
    "what each control gains at its best over the student before training, phase",
    points("untrained, best temperature less temperature 1", sharper),
    *null.points("the null at its best less untrained"),
    *shuffled.points("a permuted teacher at its best less untrained"),
  )


def _best_gain(results: Results, controls: Iterable[str], how: How) -> IntervalEstimate:
  """Estimate the best three evaluations in a row of any of these controls, less the accuracy before training."""
  controls = tuple(controls)
  start, best = results.untrained(controls[0], how), [results.best(control, how) for control in controls]
  return interval(max(of[seed] for of in best) - start[seed] for seed in results.common(*controls))


def _temperature(results: Results, task: str, temperature: str) -> IntervalEstimate:
  return by_seed(results, "untrained", lambda found: found[task][temperature] - found[task]["1"])


CONTROLS = (
  Claim(
    "OPD distils",
    "OPD's gain is distilled, and not what a lower temperature, a loss without a teacher, or a teacher of other tokens would gain (ours, "
    "after arXiv:2608.31046)",
    "OPD's score is above the untrained student at the best of temperatures 1, .7, .5 and greedy, above the null at its best rate and best "
    "three evaluations in a row, and above a permuted teacher at its best three; at temperature 1 and greedy",
    opd_distils,
  ),
  Claim(
    "TOPD distils",
    "the same of TOPD at 10% of T (ours, after arXiv:2608.31046)",
    "the same rule",
    topd_distils,
  ),
  Claim(
    "phase needs a teacher",
    "no control learns the trait of the phase task, which the student before training lacks (ours, after arXiv:2608.31046)",
    "no control at its best gains more than 5 points over the untrained student at temperature 1; the null and the permuted teacher "
    "neither greedy, over greedy",
    phase_needs_a_teacher,
  ),
)
