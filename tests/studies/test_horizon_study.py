"""The study of horizons: its arms, and a very small one from its runs to its page."""

import json
import sys

import pytest

from opd_jax import config as configs
from opd_jax import horizon as horizons
from opd_jax import study
from opd_jax.errors import RESUME, Leave
from opd_jax.studies import run
from opd_jax.studies.horizon import arms as horizon
from opd_jax.studies.horizon import claims, measures
from opd_jax.studies.verdicts import MISSING
from tests.studies.synthetic import workdir

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


def test_arms_that_are_compared_make_as_many_steps():
  steps = {arm.name: (arm.config(0).steps, arm.config(0).eval.every) for arm in horizon.ARMS}
  assert {steps[name] for name in NAMES if not name.endswith("-long")} == {(horizon.STEPS, 10)}


class TestStale:
  @pytest.fixture
  def opd(self, tmp_path):
    """Its workdir as a study leaves it."""
    (arm,) = (arm for arm in horizon.ARMS if arm.name == "opd")
    path = workdir(tmp_path / "runs" / "opd" / "seed20", 20, lambda _: 0.5, every=10)
    (path / "config.json").write_text(configs.to_json(arm.config(20)))
    (path / "checkpoints" / "60").mkdir(parents=True)
    return arm

  def test_the_same_config(self, opd, tmp_path):
    run.check_all([opd], [20, 21], tmp_path)
    run.check_all([opd], [20], tmp_path, {"compile_cache": "elsewhere"})

  @pytest.mark.parametrize("changes", [{"optimizer.lr": 5e-4}, {"steps": 30}, {"eval.every": 5}])
  def test_another_config_is_refused_before_anything_is_trained(self, opd, tmp_path, changes, monkeypatch, capsys):
    monkeypatch.setattr(horizon, "ARMS", (opd._replace(changes=opd.changes | changes),))
    monkeypatch.setattr(sys, "argv", ["study", "horizon", f"--out={tmp_path}", "--seeds=2"])
    with pytest.raises(SystemExit) as e:
      study.main()
    assert e.value.code == 2
    assert f"belongs to another config: {next(iter(changes))}:" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "runs" / "opd").iterdir()] == ["seed20"]

  def test_done(self, opd, tmp_path):
    path = tmp_path / "runs" / "opd" / "seed20"
    assert run.done(path)
    (path / "checkpoints" / "60").rmdir()
    assert not run.done(path)
    (path / "checkpoints" / "60").mkdir()
    lines = (path / "metrics.jsonl").read_text().splitlines()
    (path / "metrics.jsonl").write_text("\n".join(lines[:-1]))  # without the last evaluation
    assert not run.done(path)
    assert not run.done(tmp_path / "nowhere")

  def test_an_analysis_is_made_again_of_other_runs(self, tmp_path):
    made = []
    how = lambda: made.append(0) or {"kl": len(made)}
    measure = lambda of: run.measure(tmp_path, "drift", 20, of, how)["kl"]
    assert [measure(of) for of in ("a", "a", "b", "b", "a")] == [1, 1, 2, 2, 3]

  def test_digest(self, opd):
    of = lambda seed, **changes: run.digest([opd.config(seed, changes)])
    assert of(20) == of(20, compile_cache="elsewhere")
    assert len({of(20), of(21), of(20, steps=30), of(20, batch=8)}) == 4


@pytest.fixture
def little(tiny, monkeypatch):
  """Two steps of models without any skill."""
  changes = tiny | {"steps": 2, "eval.every": 1, "eval.prompts": 4, "eval.batch": 4, "batch": 4, "horizon.max": 24}
  half = lambda arm: arm.changes | ({"checkpoint.every": 1} if arm.name == "opd" else {})
  smaller = lambda arm: arm._replace(base=arm.base | changes, changes=half(arm))
  monkeypatch.setattr(horizon, "ARMS", tuple(map(smaller, horizon.ARMS)))
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
  assert status["TOPD is as good"] != MISSING, "of arms that its rule does not need, it makes do without"
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
    json.loads((tmp_path / "runs" / "topd-10" / f"seed{k}" / "run.json").read_text())["programs"] for k in (20, 21)
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


def test_asked_to_stop(monkeypatch, capsys, tmp_path):
  def leave(*_):
    raise Leave("asked to stop")

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
  assert [line.split(":")[0] for line in lines] == NAMES
  assert "horizon.ratio=0.1" in next(line for line in lines if line.startswith("topd-10:"))
