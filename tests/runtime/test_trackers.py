"""Trackers: what they are given, that a resumed run goes on as itself, and that no failure of theirs ends a run."""

import importlib.machinery
import json
import pathlib
import sys
import types
from typing import Any

import pytest

from opd_jax import config as configs
from opd_jax.runtime import trackers
from opd_jax.runtime.trackers import FINISHED, RunFacts, Tracker, Trackers

TRAIN = {
  "step": 3,
  "loss": 0.5,
  "seconds": {"rollout": 1.0},
  "by_position": {"edges": [0, 4], "kl": [0.25, None]},
  "kind_of": "x",
}
SAMPLES = [{"prompt": "a", "answer": "1", "correct": True}, {"prompt": "b", "answer": "2", "turns": ["x"]}]


def facts(path: pathlib.Path, first_step: int = 0, **log: Any) -> RunFacts:
  changes = {f"log.{key}": value for key, value in ({"tensorboard": False} | log).items()}
  return RunFacts("popd", path, configs.override(configs.load("popd"), changes), first_step)


def session(path: pathlib.Path, first_step: int = 0, error: type[BaseException] | None = None, **log: Any) -> list[str]:
  """A step and an evaluation; returns the warnings."""
  said: list[str] = []
  found = Trackers(facts(path, first_step, **log), said.append)
  found.record("train", TRAIN | {"step": first_step + 1})
  found.record("eval", {"step": first_step + 1, "accuracy": 0.75})
  found.samples(first_step + 1, SAMPLES)
  found.close(error)
  return said


def test_numbers_have_names_and_what_is_not_known_is_left_out():
  assert trackers.scalars("train", TRAIN) == {
    "train/loss": 0.5,
    "train/seconds/rollout": 1.0,
    "train/by_position/kl/00": 0.25,
  }


# Weights & Biases, as a module of the test's own.


@pytest.fixture
def wandb(monkeypatch):
  """A module that keeps what it is told: a list of runs."""
  runs: list[Any] = []

  class FakeRun:
    def __init__(self, **given):
      self.given, self.logged, self.ended = given, [], None
      self.config = types.SimpleNamespace(update=lambda values, allow_val_change: vars(self).update(told=values))
      runs.append(self)

    def log(self, values, step):
      self.logged.append((step, values))

    def finish(self, exit_code):
      self.ended = exit_code

  module = types.ModuleType("wandb")
  module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
  vars(module).update(init=lambda **given: FakeRun(**given), Table=lambda **table: table, runs=runs)
  monkeypatch.setitem(sys.modules, "wandb", module)
  return runs


def test_wandb_gets_config_versions_numbers_and_samples(wandb, tmp_path):
  assert session(tmp_path, wandb="project") == []
  (run,) = wandb
  assert (run.given["project"], run.given["dir"], run.given["name"]) == ("project", str(tmp_path), "popd")
  assert run.told.items() >= {"horizon.kind": "progressive", "log.wandb": "project"}.items()
  assert {"run/opd_jax", "run/jax", "run/commit", "run/devices"} <= run.told.keys()
  assert (1, {"eval/accuracy": 0.75}) in run.logged
  table = run.logged[-1][1]["samples"]
  assert table == {
    "columns": ["prompt", "answer", "correct", "turns"],
    "data": [["a", "1", True, None], ["b", "2", None, '["x"]']],
  }
  assert run.ended == 0


def test_wandb_resumes_its_run_wherever_the_workdir_is(wandb, tmp_path):
  (tmp_path / "a").mkdir()
  session(tmp_path / "a", wandb="project", error=KeyboardInterrupt)
  (tmp_path / "a").rename(tmp_path / "b")
  session(tmp_path / "b", first_step=2, wandb="project")
  session(tmp_path / "b", first_step=4, wandb="another")
  (tmp_path / "a").mkdir()
  session(tmp_path / "a", wandb="project")
  ids = [run.given["id"] for run in wandb]
  assert ids[0] == ids[1]
  assert len(set(ids)) == 3, "another project, and a new run in a directory of the same name"
  assert [run.ended for run in wandb] == [1, 0, 0, 0]
  assert all(run.given["resume"] == "allow" for run in wandb)


def test_a_workdir_from_before_ids_were_kept_goes_on_as_its_run(wandb, tmp_path):
  import hashlib

  session(tmp_path, first_step=2, wandb="project")
  assert wandb[0].given["id"] == hashlib.sha256(str(tmp_path.resolve()).encode()).hexdigest()[:12]


@pytest.mark.parametrize(
  "damage", ["", "[]", '{"wandb": 3}', '{"wandb": {"id": 7}}', '{"wandb": {"id": "x", "project": "p"}']
)
def test_a_damaged_file_of_ids_is_written_anew(wandb, tmp_path, damage):
  (tmp_path / trackers.FILE).write_text(damage)
  assert session(tmp_path, wandb="project") == []
  assert json.loads((tmp_path / trackers.FILE).read_text())["wandb"]["id"] == wandb[0].given["id"]


# Failures.


def test_a_tracker_that_cannot_begin_is_told_of_once(wandb, tmp_path, monkeypatch):
  monkeypatch.setattr(sys.modules["wandb"], "init", lambda **_: 1 / 0)
  (said,) = session(tmp_path, wandb="project")
  assert (
    said
    == "  warning: Weights & Biases failed and gets nothing more of this run, which goes on (ZeroDivisionError: division by zero)"
  )
  assert not (tmp_path / trackers.FILE).exists()


@pytest.mark.parametrize("method", ["record", "samples", "close"])
def test_a_tracker_that_fails_later_is_told_of_once_and_the_others_go_on(tmp_path, method):
  calls, said = [], []

  class Other(Tracker):
    def record(self, kind, record):
      calls.append(kind)

    def close(self, end):
      calls.append(end)

  class Broken(Tracker):
    pass

  def fail(self, *_):
    raise ConnectionError("away")

  setattr(Broken, method, fail)
  found = Trackers(facts(tmp_path), said.append)
  found.add("broken", Broken())
  found.add("other", Other())
  for _ in range(2):
    found.record("train", TRAIN)
    found.samples(3, SAMPLES)
  found.close()
  assert calls == ["train", "train", FINISHED]
  assert len(said) == 1
  assert said[0].startswith("  warning: broken failed and gets nothing more")


# The real ones, where they are installed.


def test_wandb_offline(tmp_path, monkeypatch):
  pytest.importorskip("wandb")
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_SILENT", "true")
  assert session(tmp_path, wandb="project") == []
  assert session(tmp_path, first_step=2, wandb="project") == []
  run_id = json.loads((tmp_path / trackers.FILE).read_text())["wandb"]["id"]
  written = [path for path in (tmp_path / "wandb").iterdir() if path.is_dir() and path.name.startswith("offline-run-")]
  assert written
  assert {path.name.rpartition("-")[2] for path in written} == {run_id}
  assert list(tmp_path.glob("wandb/offline-run-*/files/media/table/samples*.table.json"))


def test_mlflow_with_files(tmp_path, monkeypatch):
  mlflow = pytest.importorskip("mlflow")
  monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "server").as_uri())
  monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
  (tmp_path / "run").mkdir()
  assert session(tmp_path / "run", mlflow="experiment", error=KeyboardInterrupt) == []
  client, run_id = mlflow.MlflowClient(), json.loads((tmp_path / "run" / trackers.FILE).read_text())["mlflow"]["id"]
  assert client.get_run(run_id).info.status == "KILLED"
  assert session(tmp_path / "run", first_step=2, mlflow="experiment") == []
  run = client.get_run(run_id)
  assert run.info.status == "FINISHED"
  assert run.data.params["horizon.kind"] == "progressive"
  assert "run.jax" in run.data.params
  assert [(m.step, m.value) for m in client.get_metric_history(run_id, "eval/accuracy")] == [(1, 0.75), (3, 0.75)]
  (table,) = [json.loads(path.read_text()) for path in tmp_path.rglob("samples/step_1.json")]
  assert table["data"][0] == ["a", "1", True, None]
  assert len(client.search_runs([client.get_experiment_by_name("experiment").experiment_id])) == 1
