"""The rules by which the study decides what is claimed of adaptive horizons; of all other claims, see claims.py.

A claim is of the best of several rules, so that each interval has the level that keeps all of them together at 95%.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import TypeVar

from opd_jax.studies.evidence import (
  POINT,
  both,
  difference,
  known,
  lazily,
  points,
  speedup,
  speedup_halfway,
  times,
  verdict,
)
from opd_jax.studies.results import Missing, Results
from opd_jax.studies.statistics import IntervalEstimate
from opd_jax.studies.verdicts import MISSING, Status, Verdict, any_of, at_least

T = TypeVar("T")
ADAPTIVE = ("agreement", "drift", "saturation", "look")
ONE_OF_FOUR = 1 - 0.05 / len(ADAPTIVE)  # level of each interval where one of the rules is enough (Bonferroni)
FIXED = (
  "topd-50",
  "topd-25",
  "topd-10",
  "topd-5",
  "topd-2.5",
  "topd-10-long",
  "topd-25-long",
  "popd",
  "popd-paper",
  "popd-geometric",
)


def adaptive_is_fastest(results: Results) -> Verdict:
  """Compare each rule with the fixed or scheduled arm that came to the target soonest, chosen in hindsight."""
  best, best_speedup = best_fixed(results)
  by_rule = of_adaptive_rules(lambda arm: speedup(results, arm, than=best, level=ONE_OF_FOUR))
  return verdict(
    one_of_rules({arm: at_least(estimate, 0.9) for arm, estimate in by_rule.items()}),
    f"ratio of times to OPD's score less a point, against {best}",
    *(times(f"{arm} sooner than {best}", estimate) for arm, estimate in by_rule.items()),
    times(f"{best} sooner than OPD", best_speedup),
    *known(*(lazily(points, f"{arm} less OPD", difference, results, arm, "opd") for arm in ADAPTIVE)),
  )


def best_fixed(results: Results) -> tuple[str, IntervalEstimate]:
  """Find the fixed or scheduled arm with the largest speed-up over OPD; OPD with its own, 1, where none has more."""
  best, most = "opd", IntervalEstimate(1.0, 1.0, 1.0, len(results.runs("opd")))
  for arm in results.present({arm: arm for arm in FIXED}):
    with contextlib.suppress(Missing):
      sooner = speedup(results, arm)
      if sooner.mean > most.mean:  # a NaN, of which nothing is known, is not
        best, most = arm, sooner
  return best, most


def of_adaptive_rules(estimate: Callable[[str], T]) -> dict[str, T]:
  """Estimates by arm, for the adaptive rules that have been run.

  Raises:
    Missing: none has.
  """
  found = {}
  for arm in ADAPTIVE:
    with contextlib.suppress(Missing):
      found[arm] = estimate(arm)
  if not found:
    raise Missing(f"no run of {', '.join(ADAPTIVE)} is finished")
  return found


def one_of_rules(status_by_rule: Mapping[str, Status]) -> Status:
  """Decide whether one of the rules meets the bound; a rule that was not run may be the one."""
  return any_of(*(status_by_rule.get(arm, MISSING) for arm in ADAPTIVE))


def adaptive_is_safe(results: Results) -> Verdict:
  by_rule = of_adaptive_rules(lambda arm: both(difference, results, f"phase-{arm}", "phase-opd", ONE_OF_FOUR))
  return verdict(
    one_of_rules({arm: estimate.decided(at_least, -POINT) for arm, estimate in by_rule.items()}),
    "paired difference of scores on the phase task",
    *(evidence for arm, estimate in by_rule.items() for evidence in estimate.points(f"{arm} less OPD")),
    *known(
      *(
        lazily(times, f"{arm} sooner than OPD half way up", speedup_halfway, results, f"phase-{arm}", "phase-opd")
        for arm in ADAPTIVE
      ),
    ),
  )
