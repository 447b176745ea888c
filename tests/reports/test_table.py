"""The table on a terminal."""

import io

import pytest
from rich.console import Console

from opd_jax.reports import table
from opd_jax.reports.comparison import compare
from opd_jax.reports.runs import load


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_fits(study, width):
  out = io.StringIO()
  table.show(compare(load(study)), Console(file=out, width=width))
  text = out.getvalue()
  assert max(map(len, text.splitlines())) <= min(width, 100)
  assert "TOPD 10%" in text
  assert "…" not in text
  assert "6.0x" in text
