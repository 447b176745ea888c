"""The table on a terminal."""

import io

import pytest
from rich.console import Console

from opd_jax.reports import table
from opd_jax.reports.comparison import compare
from opd_jax.reports.runs import load
from tests.helpers.report_runs import workdir


def test_runs_without_evaluations_have_no_column_of_accuracies(tmp_path):
  path = workdir(tmp_path / "a", [0.1, 0.9])
  lines = [line for line in (path / "metrics.jsonl").read_text().splitlines() if '"kind": "train"' in line]
  (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
  out = io.StringIO()
  table.show(compare(load([path])), Console(file=out, width=100))
  assert "accuracy" not in out.getvalue().partition("No run is evaluated")[0]


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_fits(study, width):
  out = io.StringIO()
  table.show(compare(load(study)), Console(file=out, width=width))
  text = out.getvalue()
  assert max(map(len, text.splitlines())) <= min(width, 100)
  assert "TOPD 10%" in text
  assert "…" not in text
  assert "6.0x" in text
