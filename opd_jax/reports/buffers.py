"""What became of hard questions, of runs that visit them until they are mastered: the buffer's history, and the prompts with candidates."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from opd_jax.data.replay import COUNTS
from opd_jax.reports.comparison import Arm
from opd_jax.reports.runs import Run, tenth

HISTORY = (
  "Questions enter the buffer when fewer of their plain rollouts are right than the threshold asks for, graduate when as many are, and are "
  "evicted where there is no room. Sums over the runs of the arm, by how many of a question's rollouts were right when it entered."
)
ASKED = (
  "Prompts with candidates, and what the other parts of a step cost: means over the first and the last tenth of the logged steps, first → last. An "
  "answer that repeats a candidate's may be copied: the score is the accuracy on plain prompts."
)


def history_rows(arms: Sequence[Arm]) -> list[dict[str, str]]:
  """Lay out the history of the arms that have a buffer: a row for each tier of an arm that any question entered in."""
  rows = []
  for arm in arms:
    found = [_history(run) for run in arm.runs]
    tables = [of_run for of_run in found if of_run]
    for tier in range(max((len(of_run["entered"]) for of_run in tables), default=0)):
      sums = {name: sum(of_run[name][tier] for of_run in tables if tier < len(of_run[name])) for name in COUNTS}
      if sums["entered"]:
        rows.append({"arm": arm.label, "right at entry": str(tier)} | _cells(sums))
  return rows


def _history(run: Run) -> dict[str, list[int]] | None:
  known = [record["buffer_history"] for record in run.train if record.get("buffer_history")]
  return known[-1] if known else None


def _cells(sums: dict[str, int]) -> dict[str, str]:
  entered, graduated, evicted, visits = (sums[name] for name in COUNTS)
  return {
    "entered": f"{entered:,}",
    "graduated": f"{graduated:,} ({100 * graduated / entered:.0f}%)",
    "evicted": f"{evicted:,}",
    "still there": f"{entered - graduated - evicted:,}",
    "visits of one, mean": f"{visits / entered:.2f}",
  }


def _number(value: float) -> str:
  return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _percent(value: float) -> str:
  return f"{100 * value:.0f}%"


_ROWS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
  ("hard questions of a step", "hard", _number),
  ("questions in the buffer", "buffer", _number),
  ("reward of the buffer's questions", "reward_replayed", _number),
  ("right responses of the teacher", "teacher_right", _percent),
  ("BCQ prompts of a step", "prompts_bcq", _number),
  ("reward of BCQs", "reward_bcq", _number),
  ("answers to BCQs that are the right candidate's", "bcq_repeats_right", _percent),
  ("answers to BCQs that are the wrong candidate's", "bcq_repeats_wrong", _percent),
  ("NCQ prompts of a step", "prompts_ncq", _number),
  ("reward of NCQs", "reward_ncq", _number),
  ("answers to NCQs that are listed as wrong", "ncq_repeats_wrong", _percent),
  ("tokens of a step: plain rollouts", "plain_tokens", _number),
  ("tokens of a step: rollouts on prompts with candidates", "reformulated_tokens", _number),
  ("tokens of a step: responses of the teacher", "teacher_tokens", _number),
  ("tokens of a step: candidates made short", "compression_tokens", _number),
)


def asked_rows(arms: Sequence[Arm]) -> list[dict[str, str]]:
  """Lay out what the prompts with candidates came to: a row for each quantity, a column for each arm that has a buffer."""
  with_buffer = [arm for arm in arms if any(map(_history, arm.runs))]
  rows = []
  for name, key, show in _ROWS:
    cells = {arm.label: _change(arm, key, show) for arm in with_buffer}
    if any(cells.values()):
      rows.append({"": name} | {label: cell or "–" for label, cell in cells.items()})
  return rows


def _change(arm: Arm, key: str, show: Callable[[float], str]) -> str:
  """Write the mean over the first and over the last tenth; "" where neither is known."""
  means = [_mean([record for run in arm.runs for record in tenth(run.train, share)], key) for share in (0.0, 1.0)]
  return (
    " → ".join("–" if value is None else show(value) for value in means) if any(v is not None for v in means) else ""
  )


def _mean(records: Sequence[dict[str, Any]], key: str) -> float | None:
  known = [record[key] for record in records if record.get(key) is not None]
  return fmean(known) if known else None
