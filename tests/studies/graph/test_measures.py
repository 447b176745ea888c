"""A very small study of GraphPO, from its runs to its page."""

import json
import sys

import pytest

from opd_jax import study
from opd_jax.studies.graph import arms, measures, simulation
from opd_jax.studies.verdicts import MISSING


@pytest.fixture
def little(monkeypatch):
  """Two steps of a few rollouts."""
  changes = {"steps": 2, "batch": 2, "eval.every": 1, "eval.prompts": 8, "eval.batch": 8}
  monkeypatch.setattr(arms, "ARMS", tuple(arm._replace(base=arm.base | changes) for arm in arms.ARMS))
  monkeypatch.setattr(measures, "ASKED", measures.ASKED | {"eval.prompts": 16, "eval.batch": 16})
  monkeypatch.setattr(simulation, "PROBLEMS", 8)


@pytest.mark.long
def test_students_are_asked_and_credits_simulated_and_nothing_is_made_twice(little, tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["study", "graph", "--only=grpo-tokens,graph", "--seeds=1", f"--out={tmp_path}"])
  study.main()
  found = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("analysis/*/seed20.json")}
  assert found.keys() == {"simulation", "asked-untrained", "asked-grpo-tokens", "asked-graph"}
  for name in found.keys() - {"simulation"}:
    assert found[name].keys() - {"of"} == {"sampled", "greedy", "pass", "length"}
    assert 0 <= found[name]["sampled"] <= found[name]["pass"] <= 1
    assert 0 < found[name]["length"] <= arms.BASE["horizon.max"]
  lines = (tmp_path / "runs" / "graph" / "seed20" / "metrics.jsonl").read_text().splitlines()
  trained = [record for record in map(json.loads, lines) if record["kind"] == "train"]
  needed = {"step_tokens", "responses", "states", "joined", "teaching_steps", "steps_sampled", "response_length"}
  assert all(needed <= record.keys() for record in trained)
  status = {v["claim"]: v["status"] for v in json.loads((tmp_path / "report" / "verdicts.json").read_text())}
  assert status["better than GRPO at equal tokens"] != MISSING
  assert status["it is the states"] == MISSING
  assert "a graph" in (tmp_path / "report" / "index.html").read_text()
  made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/seed*.json")}
  study.main()
  assert made
  assert all(path.stat().st_mtime_ns == then for path, then in made.items())
