"""The command of the reports."""

import subprocess
import sys

import pytest

from opd_jax import report
from opd_jax.reports import figures
from tests.helpers.report_runs import workdir


def test_writes_the_page_and_prints_where(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(figures, "draw", lambda *_: [])
  paths = [workdir(tmp_path / name, [0.1, 0.9], seed=seed) for seed, name in enumerate("ab")]
  assert report.main([*map(str, paths), f"--out={tmp_path / 'r'}", "--target=0.5"]) == 0
  assert (tmp_path / "r" / "index.html").is_file()
  assert "index.html" in capsys.readouterr().out


def test_a_directory_above_runs_is_reported_with_what_was_left_out(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(figures, "draw", lambda *_: [])
  workdir(tmp_path / "runs" / "a", [0.1, 0.9])
  empty = workdir(tmp_path / "runs" / "b", [0.1, 0.9])
  (empty / "metrics.jsonl").write_text("")
  assert report.main([str(tmp_path / "runs"), f"--out={tmp_path / 'r'}"]) == 0
  assert f"left out: {empty} has no record" in capsys.readouterr().out


def test_mistake_is_one_sentence(tmp_path, capsys):
  with pytest.raises(SystemExit) as stopped:
    report.main([str(tmp_path / "gone")])
  assert stopped.value.code == 2
  captured = capsys.readouterr()
  assert captured.err.count("\n") == 1
  assert "gone" in captured.err
  assert "Traceback" not in captured.err


def test_reports_of_runs_and_of_studies_import_neither_jax_nor_transformers():
  modules = "import sys, opd_jax.report, opd_jax.studies.verdict_page"
  code = f"{modules}; print([m for m in ('jax', 'transformers') if m in sys.modules])"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == "[]"
