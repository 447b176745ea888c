"""What a verifier's reward did to a run, in numbers: of its first and of its last steps, for tables and pictures.

A group is the rollouts of one prompt; it teaches where they do not all earn the same. mu is the probability that a token
was drawn with, pi the one that it has when it is learned from.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Any

from opd_jax.reports.comparison import Arm
from opd_jax.reports.runs import Run, tenth

# Groups by the share of their rollouts that are solved: name, and the largest share in it. The first and last teach nothing.
BANDS = (
  ("none", 0.0),
  ("up to 1/4", 0.25),
  ("above 1/4, up to 1/2", 0.5),
  ("above 1/2, up to 3/4", 0.75),
  ("above 3/4, not all", 1 - 1e-9),
  ("all", 1.0),
)
MU_EDGES = tuple(i / 10 for i in range(11))  # of `moved_by_mu`


def learns_from_reward(run: Run) -> bool:
  """Tell whether a run's records have a reward."""
  return any(r.get("reward") is not None for r in run.train)


def rewarded(arms: Sequence[Arm]) -> list[Arm]:
  """Select the arms that learn from a reward."""
  return [arm for arm in arms if any(map(learns_from_reward, arm.runs))]


def bands(record: dict[str, Any]) -> list[float]:
  """Count a step's groups by `BANDS`."""
  counts = record["groups_by_solve_rate"]
  n = len(counts) - 1
  out = [0.0] * len(BANDS)
  for solved, groups in enumerate(counts):
    out[next(i for i, (_, most) in enumerate(BANDS) if solved / n <= most)] += groups
  return out


def band_shares(records: Sequence[dict[str, Any]]) -> list[float] | None:
  """Compute the share of the groups of these steps in each of `BANDS`; None without groups."""
  counts = [bands(r) for r in records if r.get("groups_by_solve_rate")]
  total = sum(map(sum, counts))
  return [sum(band) / total for band in zip(*counts, strict=True)] if total else None


def moved_by_mu(records: Sequence[dict[str, Any]]) -> list[float | None]:
  """Average the shift of drawn tokens by mu over steps; None in the tenths of mu that no token had."""
  known = [r["moved_by_mu"] for r in records if r.get("moved_by_mu")]
  columns = [[v for v in column if v is not None] for column in zip(*known, strict=True)]
  return [fmean(column) if column else None for column in columns] or [None] * (len(MU_EDGES) - 1)


def of_arm(arm: Arm, at_share: float) -> list[dict[str, Any]]:
  """Collect the records of a tenth of every run's logged steps, of the first at share 0 and of the last at share 1."""
  return [r for run in arm.runs for r in tenth(run.train, at_share)]


Values = Callable[[Sequence[dict[str, Any]]], float | None]  # of some steps, one number


def _mean(key: str) -> Values:
  def value(records: Sequence[dict[str, Any]]) -> float | None:
    known = [r[key] for r in records if r.get(key) is not None]
    return fmean(known) if known else None

  return value


def _band(index: int) -> Values:
  def value(records: Sequence[dict[str, Any]]) -> float | None:
    shares = band_shares(records)
    return None if shares is None else shares[index]

  return value


def _moved(index: int) -> Values:
  return lambda records: moved_by_mu(records)[index]


def _number(value: float) -> str:
  return f"{value:.3g}"


def _percent(value: float) -> str:
  return f"{100 * value:.1f}%" if 0 < abs(value) < 0.0995 else f"{100 * value:.0f}%"


# A row of the table: what it is with its unit, its value over some steps, how that is written.
_ROWS: tuple[tuple[str, Values, Callable[[float], str]], ...] = (
  ("reward, mean over rollouts", _mean("reward"), _number),
  ("groups that teach", _mean("teaching_groups"), _percent),
  *((f"groups of which {name} are solved", _band(i), _percent) for i, (name, _) in enumerate(BANDS)),
  ("prompts drawn besides, per step", _mean("resampled"), _number),
  ("verifications that timed out or raised, per step", _mean("verifier_timeouts"), _number),
  ("response length (tokens)", _mean("response_length"), _number),
  ("responses cut by the horizon", _mean("cut"), _percent),
  ("entropy (nats per token)", _mean("student_entropy"), _number),
  ("KL to the student before training (nats per token)", _mean("initial_kl"), _number),
  ("tokens with mu below 0.01", _mean("rare"), _percent),
  ("tokens outside the trust region", _mean("beyond"), _percent),
  ("gradient weight: mean", _mean("gradient_weight"), _number),
  ("gradient weight: lowest, mean over steps", _mean("gradient_weight_min"), _number),
  ("gradient weight: highest, mean over steps", _mean("gradient_weight_max"), _number),
  ("ratio pi / mu: mean", _mean("ratio"), _number),
  ("ratio pi / mu: highest, mean over steps", _mean("ratio_max"), _number),
  ("|pi - mu|: mean", _mean("moved"), _number),
  *(
    (f"|pi - mu| of tokens with mu {low:g} to {high:g}", _moved(i), _number)
    for i, (low, high) in enumerate(itertools.pairwise(MU_EDGES))
  ),
  ("log-probability gap of sampler and trainer (nats)", _mean("logprob_gap"), _number),
)

# Columns of the terminal's table, the most important first: head, and the row that it shows.
SHORT = {
  "reward": "reward, mean over rollouts",
  "groups\nthat teach": "groups that teach",
  "response\nlength": "response length (tokens)",
  "entropy\n(nats)": "entropy (nats per token)",
  "outside\nregion": "tokens outside the trust region",
  "KL to the\nstart": "KL to the student before training (nats per token)",
}


def changes(arm: Arm) -> Iterator[tuple[str, str]]:
  """List what is known of an arm: a name with its unit, and 'first tenth → last tenth' of the logged steps."""
  first, last = of_arm(arm, 0.0), of_arm(arm, 1.0)
  for name, value, show in _ROWS:
    before, after = value(first), value(last)
    if after is not None:
      yield name, show(after) if before is None else f"{show(before)} → {show(after)}"


def table_rows(arms: Sequence[Arm]) -> list[dict[str, str]]:
  """Lay out the numbers of all arms that learn from a reward: a row for each quantity, a column for each arm."""
  found = {arm.label: dict(changes(arm)) for arm in rewarded(arms)}
  names = [name for name, _, _ in _ROWS if any(name in known for known in found.values())]
  return [{"": name} | {label: known.get(name, "–") for label, known in found.items()} for name in names]
