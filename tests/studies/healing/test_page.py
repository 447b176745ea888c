"""The table of docs/healing.md says what was measured: studies/healing/measured.json has the numbers of every run."""

import json
import pathlib
from statistics import fmean

import pytest

import opd_jax
from opd_jax.studies.healing import sections
from opd_jax.studies.healing.curves import from_position

PACKAGE = pathlib.Path(opd_jax.__file__).parent
MEASURED = json.loads((PACKAGE / "studies" / "healing" / "measured.json").read_text(encoding="utf-8"))
LATE = 64


def rows() -> list[dict[str, str]]:
  lines = (PACKAGE / "docs" / "healing.md").read_text(encoding="utf-8").splitlines()
  first = next(i for i, line in enumerate(lines) if line.startswith("| arm | seeds |"))
  cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[first:] if line.startswith("|")]
  return [dict(zip(cells[0], row, strict=True)) for row in cells[2 : 2 + len(MEASURED)]]


def mean(cell: str) -> float:
  """The mean that a cell begins with; an interval may follow."""
  return float(cell.split(" ")[0].replace(",", ""))


def test_the_table_has_every_arm_that_was_measured():
  names = {label: name for name, label in sections.ASKED.items()}
  assert [names[row["arm"]] for row in rows()] == list(MEASURED)
  assert [int(row["seeds"]) for row in rows()] == [len(by_seed) for by_seed in MEASURED.values()]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["arm"])
def test_a_row_says_what_was_measured(row):
  names = {label: name for name, label in sections.ASKED.items()}
  runs = list(MEASURED[names[row["arm"]]].values())
  last = [run["steps"][-1] for run in runs]
  found = {
    "own answers": fmean(step["kl"] for step in last),
    "from token 64": fmean(from_position(step, LATE) or 0 for step in last),
    "original's answers": fmean(step["forward_kl"] for step in last),
    "likeliest agree, %": 100 * fmean(step["agreement"] for step in last),
    "answers that end, %": 100 * fmean(step["ended"] for step in last),
  }
  if row["steps"]:
    found |= {
      "own answers, half-way": fmean(run["steps"][0]["kl"] for run in runs),
      "steps": fmean(step["step"] for step in last),
      "FLOPs, 1e12": fmean(run["flops"][-1] for run in runs) / 1e12,
      "tokens generated": fmean(run["generated_tokens"][-1] for run in runs),
    }
  for head, value in found.items():
    digits = len(row[head].split(" ")[0].partition(".")[2])
    assert mean(row[head]) == pytest.approx(value, abs=0.51 * 10**-digits + 1e-3 * abs(value)), head
