"""The demo and the report, shortened: everything that the long one does."""

import json
import subprocess
import sys

import pytest

from opd_jax.reports.runs import load


@pytest.mark.long
def test_short_demo_through_the_command_line(tmp_path):
  command = [sys.executable, "-m", "opd_jax.demo", "--short", f"--out={tmp_path / 'demo'}"]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  for label in ("OPD", "TOPD 10%", "POPD"):
    assert label in done.stdout
  page = tmp_path / "demo" / "report-chain-short" / "index.html"
  assert page.stat().st_size > 50_000
  assert (page.parent / "result.png").stat().st_size > 10_000
  programs = {}
  for method in ("opd", "topd", "popd"):
    info = json.loads((tmp_path / "demo" / f"chain-short-{method}-seed0" / "run.json").read_text())
    programs[method] = len(info["programs"])
  assert programs == {"opd": 3, "topd": 3, "popd": 5}
  for run in load(tmp_path / "demo" / f"chain-short-{method}-seed0" for method in programs):
    assert run.accuracy > 0.1, "there is nothing to see"
    assert not any("cut at" in note for note in run.notes)

  again = subprocess.run(command, capture_output=True, text=True, check=False)
  assert again.returncode == 0, again.stderr
  assert again.stderr.count("is complete: 8 of 8 steps") == 3
