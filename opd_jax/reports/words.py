"""A comparison in words: its finding in one sentence, and its numbers as a table shows them."""

from collections.abc import Callable, Sequence

from opd_jax.reports.comparison import Arm, Comparison, Spread


def headline(comparison: Comparison) -> str:
  """Write the finding in one sentence, made of the comparison and of nothing else."""
  arms, baseline, target = comparison.arms, comparison.baseline, comparison.target
  if not any(arm.evaluated for arm in arms):
    return "No run is evaluated: the curves tell what was learned, and accuracies need eval.every above 0."
  if not target:
    return f"No run of {baseline.label} ended with an accuracy above 0: give a --target to compare the arms at."
  there = [(took, arm) for arm in arms if (took := arm.seconds_to_target.median) is not None]
  there.sort(key=lambda pair: (pair[1] is baseline, pair[0]))
  parts = []
  if there:
    reached = [_reached(comparison, arm, took, first=arm is there[0][1]) for took, arm in there]
    parts.append(f"An accuracy of {target:.3g} was reached after {_join(reached)}")
  for arm in arms:
    if arm.seconds_to_target.median is None:
      parts.append(_missed(arm, "it" if parts else f"an accuracy of {target:.3g}"))
  return f"{'; '.join(parts)} ({_basis(arms)})."


def _reached(comparison: Comparison, arm: Arm, took: float, first: bool) -> str:
  """Write '20.0 s of training by TOPD 10% (speed-up 6.0x, 2 of 3 runs)'; only the first says what the numbers are."""
  aside = []
  if (speedup := comparison.speedup(arm)) and arm is not comparison.baseline:
    aside.append(f"{'speed-up ' if first else ''}{times(speedup)}")
  if arm.reached < len(arm.runs):
    aside.append(f"{arm.reached} of {len(arm.runs)} runs")
  text = f"{seconds(took)} s {'of training ' if first else ''}by {arm.label}"
  return f"{text} ({', '.join(aside)})" if aside else text


def _missed(arm: Arm, goal: str) -> str:
  if arm.reached:
    return f"{arm.label} reached {goal} in only {arm.reached} of {len(arm.runs)} runs"
  if arm.finished:
    return f"{arm.label} did not reach {goal} in {seconds(arm.train_seconds)} s of training"
  return f"{arm.label} has not reached {goal} by {steps(arm)}"


def _basis(arms: Sequence[Arm]) -> str:
  """Write what the sentence is based on: one run, or medians over several."""
  fewest, most = min(len(arm.runs) for arm in arms), max(len(arm.runs) for arm in arms)
  if most == 1:
    return "one run each" if len(arms) > 1 else "one run"
  kind = "runs" if any(arm.repeated for arm in arms) else "seeds"
  number = most if fewest == most else f"{fewest} to {most}"
  return f"medians over {number} {kind}"


def _join(items: Sequence[str]) -> str:
  return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def seconds(value: float) -> str:
  """Write seconds: '8.1', '1,234'."""
  return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def count(value: float) -> str:
  """Write a number in few letters: 1234567 as '1.23M'."""
  for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
    if value >= size:
      return f"{value / size:.3g}{unit}"
  return f"{value:.0f}"


def times(value: float | None) -> str:
  """Write a ratio: '6.0x', or a dash for None."""
  return "–" if value is None else f"{value:.1f}x"


def spread(found: Spread, show: Callable[[float], str]) -> str:
  """Write a median with its range: '8.1 (7.9–8.4)', and 'not reached' wherever that is what happened."""
  middle, low, high = ("not reached" if v is None else show(v) for v in (found.median, found.min, found.max))
  return middle if found.runs == 1 or found.min is None else f"{middle} ({low}–{high})"


def accuracy(arm: Arm) -> str:
  """Write an arm's accuracy with its interval: '0.930 (0.910–0.950)', and the greedy one where all have it; a dash for none."""
  if not arm.evaluated:
    return "–"
  low, high = arm.interval
  greedy = [run.evals[-1]["greedy"]["accuracy"] for run in arm.evaluated if "greedy" in run.evals[-1]]
  beside = f", greedy {sum(greedy) / len(greedy):.3f}" if len(greedy) == len(arm.evaluated) else ""
  return f"{arm.accuracy:.3f} ({low:.3f}–{high:.3f}){beside}"


def steps(arm: Arm) -> str:
  """Write an arm's steps: '100', or how far it has come, 'step 10–20 of 100'."""
  if arm.finished:
    return f"{arm.steps}"
  least, most = min(run.step for run in arm.runs), max(run.step for run in arm.runs)
  reached = f"{least}" if least == most else f"{least}–{most}"
  return f"step {reached} of {arm.steps}"
