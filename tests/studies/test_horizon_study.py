"""The study of horizons: its arms, and a very small one from its runs to its page."""

import json
import sys

import pytest

from opd_jax import horizon as horizons
from opd_jax import study
from opd_jax.studies import claims, horizon, measures
from opd_jax.studies.verdicts import MISSING

NAMES = [arm.name for arm in horizon.ARMS]


def test_every_arm_is_a_config_of_its_own():
  assert len(set(NAMES)) == len(NAMES)
  seen = {}
  for arm in horizon.ARMS:
    c = arm.config(seed=3)
    assert c.seed == 3
    assert isinstance(horizons.from_config(c.horizon), horizons.Horizon)
    text = json.dumps(json.loads(c.to_json_best_effort()), sort_keys=True)
    assert text not in seen, f"{arm.name} is {seen.get(text)}"
    seen[text] = arm.name
    assert c.steps % c.eval.every == 0, "the last evaluation is one of the others"


def test_lengths_are_shares_of_the_longest_response():
  limits = {arm.name: horizons.from_config(arm.config(0).horizon) for arm in horizon.ARMS}
  at = lambda name, step: limits[name].limit(step)
  assert [at(f"topd-{n}", 0) for n in ("50", "25", "10", "5", "2.5")] == [70, 35, 14, 7, 4]
  assert (at("popd", 0), at("popd", 41), at("popd", 42)) == (14, 137, 140)
  assert at("popd-paper", 0) == 11
  assert 0.36 * horizon.T < at("popd-paper", horizon.STEPS - 1) < 0.4 * horizon.T
  assert (at("popd-geometric", 0), at("popd-geometric", 46)) == (14, 140)
  assert limits["look"].widths == (14, 28, 56, 112, 140)
  assert max(task.max_response for task in (horizon_task("chain-short"), horizon_task("phase-short"))) <= horizon.T


def horizon_task(name: str):
  from opd_jax import tasks

  return tasks.generator(name)


def test_what_claims_name_is_there():
  assert {*claims.FIXED, *claims.ADAPTIVE, *horizon.SHORT, *measures.DRIFTING} <= {*NAMES, "untrained"}
  assert len({claim.name for claim in claims.CLAIMS}) == len(claims.CLAIMS)


@pytest.fixture
def little(tiny, monkeypatch):
  """Two steps of models without any skill."""
  changes = tiny | {"steps": 2, "eval.every": 1, "eval.prompts": 4, "eval.batch": 4, "batch": 4, "horizon.max": 24}
  monkeypatch.setattr(horizon, "CHAIN", horizon.CHAIN | changes)
  monkeypatch.setattr(measures, "PROBLEMS", 8)
  monkeypatch.setattr(measures, "FROM", 2)


@pytest.mark.long
def test_a_study_is_made_once(little, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["study", "horizon", "--only=opd,topd-10", "--seeds=2", f"--out={tmp_path}"])
  study.main()
  said = capsys.readouterr().out
  assert "OPD" in said
  assert "not run" in said
  verdicts = json.loads((tmp_path / "report" / "verdicts.json").read_text())
  assert [v["claim"] for v in verdicts] == [claim.name for claim in claims.CLAIMS]
  status = {v["claim"]: v["status"] for v in verdicts}
  assert status["TOPD fails late"] == status["adaptive is safe"] == MISSING
  assert all(v["rule"] for v in verdicts)
  page = (tmp_path / "report" / "index.html").read_text()
  assert "Are full rollouts necessary?" in page
  assert page.count("<img") >= 2
  made = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/*/seed*/metrics.jsonl")} | {
    p: p.stat().st_mtime_ns for p in tmp_path.glob("analysis/*/*.json")
  }
  assert {p.parent.name for p in made if p.suffix == ".json"} == {"advantage", "reliability", "continuation"}
  assert len([p for p in made if p.suffix == ".jsonl"]) == 4
  programs = [
    json.loads((tmp_path / "runs" / "topd-10" / f"seed{k}" / "run.json").read_text())["programs"] for k in (0, 1)
  ]
  assert [p["seconds"] > 0 for p in programs[0] if p["name"] != "evaluate"] == [True, True]
  assert [p["seconds"] for p in programs[1] if p["name"] != "evaluate"] == [0, 0], "the second seed compiles nothing"
  study.main()
  assert all(p.stat().st_mtime_ns == then for p, then in made.items()), "what is there is not made again"


def test_a_wrong_arm_is_said_in_a_sentence(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["study", "horizon", "--only=opd,topd"])
  with pytest.raises(SystemExit) as e:
    study.main()
  assert e.value.code == 2
  assert "There is no arm 'topd'" in capsys.readouterr().err


def test_the_list_names_what_each_arm_changes(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["study", "horizon", "--list"])
  study.main()
  lines = capsys.readouterr().out.splitlines()
  assert [line.split(":")[0] for line in lines] == NAMES
  assert "horizon.ratio=0.1" in next(line for line in lines if line.startswith("topd-10:"))
