"""The comparison of arms on a terminal, and what a reward did to them."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from opd_jax.reports import reward
from opd_jax.reports.comparison import Arm, Comparison
from opd_jax.reports.words import accuracy, count, headline, seconds, spread, steps, times

MIN_WIDTH, WIDE, MAX_WIDTH = 60, 96, 100  # columns of the terminal; below WIDE the table leaves out three of its own


def show(comparison: Comparison, console: Console | None = None) -> None:
  """Print the table and the headline, in at most 100 columns, and what has to be known of single runs."""
  console = console or Console()
  width = max(MIN_WIDTH, min(console.width, MAX_WIDTH))
  console.print(_table([_cells(comparison, arm, width >= WIDE) for arm in comparison.arms]), width=width)
  if rewarded := _reward_cells(comparison.arms, len(reward.SHORT) if width >= WIDE else 4):
    console.print(_table(rewarded), width=width)
    console.print(_BY_TENTHS, width=width, highlight=False)
  console.print(headline(comparison) + "\n", width=width, highlight=False, markup=False)
  for note in (f"  note: {run.path}: {note}" for run in comparison.runs for note in run.notes):
    console.print(note, soft_wrap=True, highlight=False, markup=False)


_BY_TENTHS = "Of the reward: means over the first → the last tenth of the logged steps.\n"


def _table(rows: Sequence[dict[str, str]]) -> Table:
  table = Table(box=box.SIMPLE_HEAD, show_edge=False, show_lines=True, padding=(0, 1, 0, 0))
  for head in rows[0]:
    table.add_column(head, justify="left" if head == "arm" else "right", overflow="fold")
  for row in rows:
    table.add_row(*map(Text, row.values()))  # a label may hold brackets, which are no markup
  return table


def _reward_cells(arms: Sequence[Arm], columns: int) -> list[dict[str, str]]:
  """The rows of the arms that learn from a reward, with the first so many columns that any of them has."""
  found = {arm.label: dict(reward.changes(arm)) for arm in reward.rewarded(arms)}
  heads = [head for head, name in reward.SHORT.items() if any(name in known for known in found.values())][:columns]

  def cell(known: dict[str, str], head: str) -> str:
    return known.get(reward.SHORT[head], "–").replace(" → ", "\n→ ")

  return [{"arm": label} | {head: cell(known, head) for head in heads} for label, known in found.items()]


def _cells(comparison: Comparison, arm: Arm, wide: bool) -> dict[str, str]:
  goal = f"{comparison.target:.3g}"
  runs = f"{len(arm.runs)} run{'s' if len(arm.runs) > 1 else ''}"
  evaluated = any(each.evaluated for each in comparison.arms)
  cells = {"final\naccuracy": accuracy(arm)} if evaluated else {}
  cells["training\ns"] = seconds(arm.train_seconds)
  if evaluated:
    cells |= {
      f"training s\nto {goal}": spread(arm.seconds_to_target, seconds),
      "speed-up": times(comparison.speedup(arm)),
    }
  if wide:
    cells["tokens"] = count(arm.tokens)
    cells["compile s\n(programs)"] = f"{seconds(arm.compile_seconds)} ({arm.programs})"
    cells |= {f"tokens\nto {goal}": spread(arm.tokens_to_target, count)} if evaluated else {}
  name = {"arm": f"{arm.label}\n{runs}, {steps(arm)}{' steps' if arm.finished else ''}"}
  return name | {head: text.replace(" (", "\n(") for head, text in cells.items()}
