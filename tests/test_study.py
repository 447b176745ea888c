"""The command of the studies: a very small one from its runs to its page, and what it refuses."""

import json
import signal
import sys

import pytest

from opd_jax import study
from opd_jax.errors import INTERRUPTED, RESUME, StopRequested
from opd_jax.studies.horizon import arms as horizon
from opd_jax.studies.horizon import claims, measures
from opd_jax.studies.verdicts import MISSING
from tests.helpers.synthetic_study import finished_opd


@pytest.fixture
def little(tiny, monkeypatch):
  """Two steps of models without any skill."""
  changes = tiny | {"steps": 2, "eval.every": 1, "eval.prompts": 4, "eval.batch": 4, "batch": 4, "horizon.max": 24}
  arms = []
  for arm in horizon.ARMS:
    halfway = {"checkpoint.every": 1} if arm.name == "opd" else {}
    arms.append(arm._replace(base=arm.base | changes, changes=arm.changes | halfway))
  monkeypatch.setattr(horizon, "ARMS", tuple(arms))
  monkeypatch.setattr(measures, "PROBLEMS", 8)
  monkeypatch.setattr(measures, "FROM", 2)


@pytest.mark.long
def test_a_study_is_made_once(little, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["study", "horizon", "--only=opd,topd-10", "--seeds=2", f"--out={tmp_path}"])
  study.main()
  out = capsys.readouterr().out
  assert "OPD" in out
  assert "not run" in out
  verdicts = json.loads((tmp_path / "report" / "verdicts.json").read_text())
  assert [v["claim"] for v in verdicts] == [claim.name for claim in claims.CLAIMS]
  status = {v["claim"]: v["status"] for v in verdicts}
  assert status["TOPD fails late"] == status["adaptive is safe"] == MISSING
  assert status["TOPD is as good"] != MISSING, "of arms that its rule does not need, it makes do without"
  assert all(v["rule"] for v in verdicts)
  page = (tmp_path / "report" / "index.html").read_text()
  assert "Are full rollouts necessary?" in page
  assert page.count("<img") >= 2
  made = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/*/seed*/metrics.jsonl")} | {
    p: p.stat().st_mtime_ns for p in tmp_path.glob("analysis/*/*.json")
  }
  assert {p.parent.name for p in made if p.suffix == ".json"} == {
    "advantage",
    "untrained",
    "reliability",
    "continuation",
  }
  assert len([p for p in made if p.suffix == ".jsonl"]) == 4
  programs = [
    json.loads((tmp_path / "runs" / "topd-10" / f"seed{k}" / "run.json").read_text())["programs"] for k in (20, 21)
  ]
  assert [p["seconds"] > 0 for p in programs[0] if p["name"] != "evaluate"] == [True, True]
  assert [p["seconds"] for p in programs[1] if p["name"] != "evaluate"] == [0, 0], "the second seed compiles nothing"
  study.main()
  assert all(p.stat().st_mtime_ns == then for p, then in made.items()), "what is there is not made again"


@pytest.mark.parametrize("changes", [{"optimizer.lr": 5e-4}, {"steps": 30}, {"eval.every": 5}])
def test_another_config_is_refused_before_anything_is_trained(tmp_path, changes, monkeypatch, capsys):
  opd = finished_opd(tmp_path, seed=20)
  monkeypatch.setattr(horizon, "ARMS", (opd._replace(changes=opd.changes | changes),))
  monkeypatch.setattr(sys, "argv", ["study", "horizon", f"--out={tmp_path}", "--seeds=2"])
  with pytest.raises(SystemExit) as e:
    study.main()
  assert e.value.code == 2
  assert f"belongs to another config: {next(iter(changes))}:" in capsys.readouterr().err
  assert [p.name for p in (tmp_path / "runs" / "opd").iterdir()] == ["seed20"]


def test_a_wrong_arm_is_named_in_a_sentence(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["study", "horizon", "--only=opd,topd"])
  with pytest.raises(SystemExit) as e:
    study.main()
  assert e.value.code == 2
  assert "There is no arm 'topd'" in capsys.readouterr().err


def test_asked_to_stop(monkeypatch, capsys, tmp_path):
  def leave(*_):
    raise StopRequested("asked to stop")

  monkeypatch.setattr(study, "run", leave)
  monkeypatch.setattr(sys, "argv", ["study", "horizon", f"--out={tmp_path}"])
  with pytest.raises(SystemExit) as e:
    study.main()
  assert e.value.code == RESUME
  assert "the same command goes on" in capsys.readouterr().err


def test_the_list_names_what_each_arm_changes(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["study", "horizon", "--list"])
  study.main()
  lines = capsys.readouterr().out.splitlines()
  assert [line.split(":")[0] for line in lines] == [arm.name for arm in horizon.ARMS]
  assert "horizon.ratio=0.1" in next(line for line in lines if line.startswith("topd-10:"))


def test_a_dry_run_checks_the_configs_and_lists_what_is_missing(monkeypatch, capsys, tmp_path):
  finished_opd(tmp_path, horizon.FIRST_SEED)
  before = sorted(tmp_path.rglob("*"))
  monkeypatch.setattr(
    sys, "argv", ["study", "horizon", "--only=opd,topd-10", "--seeds=2", f"--out={tmp_path}", "--dry-run"]
  )
  study.main()
  assert capsys.readouterr().out.splitlines() == [
    "topd-10, seed 20",
    "opd, seed 21",
    "topd-10, seed 21",
    f"3 of 4 runs are missing in {tmp_path}",
  ]
  assert sorted(tmp_path.rglob("*")) == before, "nothing is written"
  wrong = horizon.ARMS[0]._replace(changes={"eval.pass_at": (3,)})
  monkeypatch.setattr(horizon, "ARMS", (wrong,))
  monkeypatch.setattr(sys, "argv", ["study", "horizon", "--only=opd", f"--out={tmp_path / 'new'}", "--dry-run"])
  with pytest.raises(SystemExit):
    study.main()


def test_ctrl_c_ends_a_study_in_a_sentence(monkeypatch, capsys, tmp_path):
  def interrupt(*_):
    signal.raise_signal(signal.SIGINT)

  monkeypatch.setattr(study, "run", interrupt)
  monkeypatch.setattr(sys, "argv", ["study", "horizon", f"--out={tmp_path}"])
  with pytest.raises(SystemExit) as e:
    study.main()
  assert e.value.code == INTERRUPTED
  assert "stopped" in capsys.readouterr().err
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
