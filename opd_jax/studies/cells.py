"""What stands in the cells of a study's tables, and which rows there are."""

from collections.abc import Mapping

from opd_jax.studies.evidence import logged
from opd_jax.studies.results import Missing, Results
from opd_jax.studies.statistics import IntervalEstimate, interval

NOTHING = "–"


def percent(estimate: IntervalEstimate) -> str:
  """Write a share in percent, with its interval where there are several seeds: '41.3 (38.0 to 44.6)'."""
  mean, low, high, n = estimate
  return f"{100 * mean:.1f}" + (f" ({100 * low:.1f} to {100 * high:.1f})" if n > 1 else "")


def number(by_seed: Mapping[int, float]) -> str:
  """Write the mean over seeds, in three digits or to the unit; a dash for none."""
  if not by_seed:
    return NOTHING
  mean = interval(by_seed.values()).mean
  return f"{mean:,.0f}" if abs(mean) >= 1000 else f"{mean:.3g}"


def logged_anywhere(results: Results, arm: str, key: str) -> dict[int, float]:
  """The mean of a number of the training records by seed, as `evidence.logged`; {} where no step has it."""
  try:
    return logged(results, arm, key)
  except Missing:
    return {}


def asked(results: Results, labels: Mapping[str, str]) -> dict[str, str]:
  """The arms whose students were asked after training, with their labels."""
  found = {}
  for arm, label in labels.items():
    try:
      results.analysis(f"asked-{arm}")
    except Missing:
      continue
    found[arm] = label
  return found
