"""A very small study of Vision-OPD, from its runs to its page."""

import json
import sys

import pytest

from opd_jax import study
from opd_jax.studies.verdicts import MISSING
from opd_jax.studies.vision import arms, measures


@pytest.fixture
def little(monkeypatch):
  """Two steps of a few rollouts."""
  few = {"eval.prompts": 12, "eval.batch": 12}
  changes = {"steps": 2, "batch": 8, "eval.every": 1, "checkpoint.every": 1} | few
  small = tuple(arm._replace(changes=arm.changes | changes) for arm in arms.ARMS)
  for module in (arms, measures):
    monkeypatch.setattr(module, "ARMS", small)
  monkeypatch.setattr(measures, "EVERY", 1)
  monkeypatch.setattr(measures, "ASKED", measures.ASKED | few)
  monkeypatch.setattr(measures, "BRIEFLY", measures.BRIEFLY | few)


@pytest.mark.long
def test_students_are_asked_by_view_and_nothing_is_made_twice(little, tmp_path, monkeypatch):
  monkeypatch.setattr(
    sys, "argv", ["study", "vision", "--only=ema,frozen-tower,grpo", "--seeds=1", f"--out={tmp_path}"]
  )
  study.main()
  found = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("analysis/*/seed20.json")}
  assert found.keys() == {"asked-untrained", "asked-ema", "asked-frozen-tower", "asked-grpo"}
  for record in found.values():
    for of in (*measures.VIEWS, *measures.SKILLS):
      assert 0 <= record[of]["sampled"] <= 1
      assert 1 <= record[of]["length"] <= arms.HORIZON
  assert [point["step"] for point in found["asked-ema"]["steps"]] == [1, 2]
  assert "steps" not in found["asked-grpo"]
  before = found["asked-untrained"]
  assert before["crop"]["greedy"] > before["marked"]["greedy"], "there is a gap to close"
  status = {v["claim"]: v["status"] for v in json.loads((tmp_path / "report" / "verdicts.json").read_text())}
  assert status["the tower has to learn"] != MISSING
  assert status["better than SFT"] == MISSING
  made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/seed*.json")}
  study.main()
  assert made
  assert all(path.stat().st_mtime_ns == then for path, then in made.items())
