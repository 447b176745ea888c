"""A very small study of ZPPO, from its runs to its page."""

import json
import sys

import pytest

from opd_jax import study
from opd_jax.studies.verdicts import MISSING
from opd_jax.studies.zone import arms, measures


@pytest.fixture
def little(monkeypatch):
  """Two steps of a few rollouts."""
  changes = {"steps": 2, "batch": 8, "eval.every": 1, "eval.prompts": 12, "eval.batch": 12}
  small = tuple(arm._replace(changes=arm.changes | changes) for arm in arms.ARMS)
  monkeypatch.setattr(arms, "ARMS", small)
  monkeypatch.setattr(measures, "ASKED", measures.ASKED | {"eval.prompts": 12, "eval.batch": 12})


@pytest.mark.long
def test_students_are_asked_by_tier_and_nothing_is_made_twice(little, tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["study", "zone", "--only=buffer,zppo", "--seeds=1", f"--out={tmp_path}"])
  study.main()
  found = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("analysis/*/seed20.json")}
  assert found.keys() == {"asked-untrained", "asked-buffer", "asked-zppo"}
  for record in found.values():
    for name, task in measures.PROBLEMS.items():
      assert 0 <= record[name]["sampled"] <= record[name]["pass"] <= 1
      assert record[name]["tiers"].keys() == {tier.name for tier in task.tiers}
  lines = (tmp_path / "runs" / "zppo" / "seed20" / "metrics.jsonl").read_text().splitlines()
  trained = [record for record in map(json.loads, lines) if record["kind"] == "train"]
  needed = {"buffer_history", "plain_tokens", "reformulated_tokens", "teacher_tokens", "bcq_repeats_right"}
  assert any(needed <= record.keys() for record in trained)
  assert trained[-1]["teacher_tokens"] > 0
  status = {v["claim"]: v["status"] for v in json.loads((tmp_path / "report" / "verdicts.json").read_text())}
  assert status["ZPPO learns"] != MISSING
  assert status["better than GRPO"] == MISSING
  made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/seed*.json")}
  study.main()
  assert made
  assert all(path.stat().st_mtime_ns == then for path, then in made.items())
