"""A very small study of students that tutor each other, from its runs to its page."""

import json
import sys

import pytest

from opd_jax import study
from opd_jax.studies.opcod import arms, measures
from opd_jax.studies.verdicts import MISSING


@pytest.fixture
def little(monkeypatch):
  """A round of two steps, of a few rollouts."""
  small = {"batch": 2, "rollouts_per_prompt": 2, "eval.every": 2, "eval.prompts": 8, "eval.batch": 8}
  two = {"steps": 2, "codistillation.phase_steps": 1, "codistillation.validation_prompts": 8}
  made = [a._replace(base=a.base | small | (two if a.method == "opcod" else {"steps": 2})) for a in arms.ARMS]
  monkeypatch.setattr(arms, "ARMS", tuple(made))
  monkeypatch.setattr(measures, "ASKED", {"eval.prompts": 16, "eval.batch": 16})
  monkeypatch.setattr(measures, "COMMENTED_ASKED", {"eval.prompts": 8, "eval.batch": 16, "eval.k": 2})


@pytest.mark.long
def test_both_students_are_asked_and_shown_comments(little, tmp_path, monkeypatch):
  monkeypatch.setattr(
    sys, "argv", ["study", "opcod", "--only=opcod,grpo-sums,grpo-differences", "--seeds=1", f"--out={tmp_path}"]
  )
  study.main()
  asked = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("analysis/*/seed20.json")}
  assert asked.keys() == {f"asked-{name}" for name in ("untrained", "opcod", "grpo-sums", "grpo-differences")}
  assert asked["asked-grpo-sums"].keys() - {"of"} == {"sums", "greedy"}
  for name in ("untrained", "opcod"):
    record = asked[f"asked-{name}"]
    assert record["sums"].keys() == record["differences"].keys() == set(arms.SPECIALISTS)
    assert record["comments"]["sums"].keys() == {"peer", "own", "oracle", "shuffled", "again"}
  before = asked["asked-untrained"]
  assert before["cooler"].keys() == {"0.7", "0.5"}
  assert before["sums"]["sums"] > before["sums"]["differences"]
  status = {v["claim"]: v["status"] for v in json.loads((tmp_path / "report" / "verdicts.json").read_text())}
  assert status["comments are used"] != MISSING
  assert status["better than SDPO"] == MISSING
  page = (tmp_path / "report" / "index.html").read_text()
  assert "sums student behind by" in page
