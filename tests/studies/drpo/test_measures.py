"""A very small study of trust regions, from its runs to its page."""

import json
import sys

import pytest

from opd_jax import study
from opd_jax.studies.drpo import arms, measures
from opd_jax.studies.verdicts import MISSING


@pytest.fixture
def little(monkeypatch):
  """Two steps of a few rollouts."""
  changes = {"steps": 2, "batch": 4, "rollouts_per_prompt": 2, "mini_batches": 2}
  changes |= {"eval.every": 1, "eval.prompts": 8, "eval.batch": 8}
  monkeypatch.setattr(arms, "ARMS", tuple(arm._replace(base=arm.base | changes) for arm in arms.ARMS))
  monkeypatch.setattr(measures, "ASKED", {"eval.prompts": 16, "eval.batch": 16})


@pytest.mark.long
def test_students_answer_sampled_and_greedy_and_nothing_is_made_twice(little, tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["study", "drpo", "--only=is,drpo-12.5,opd", "--seeds=1", f"--out={tmp_path}"])
  study.main()
  asked = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("analysis/*/seed20.json")}
  assert asked.keys() == {"asked-untrained", "asked-is", "asked-drpo-12.5", "asked-opd"}
  assert all(0 <= record[how] <= 1 for record in asked.values() for how in ("sampled", "greedy"))
  records = [
    json.loads(line) for line in (tmp_path / "runs" / "drpo-12.5" / "seed20" / "metrics.jsonl").read_text().splitlines()
  ]
  needed = {"moved", "beyond", "gradient_weight_min", "gradient_weight_max", "rare"}
  assert all(needed <= record.keys() for record in records if record["kind"] == "train")
  status = {v["claim"]: v["status"] for v in json.loads((tmp_path / "report" / "verdicts.json").read_text())}
  assert status["12.5 is no threshold"] != MISSING
  assert status["better than a tuned DPPO"] == MISSING
  assert "boundary, mu 0.02" in (tmp_path / "report" / "index.html").read_text()
  made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/seed20*") if path.suffix == ".json"}
  study.main()
  assert all(path.stat().st_mtime_ns == then for path, then in made.items())
