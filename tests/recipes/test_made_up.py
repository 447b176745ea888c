"""A method of the tests' own (made_up.py) is trained, killed, resumed, evaluated, exported, planned and benchmarked.

Nothing of the package knows of it: it is one file, named by its dotted path.
"""

import importlib
import json
import pathlib
import sys

import jax
import numpy as np
import pytest

from opd_jax import bench, config, plan
from opd_jax.data import problems
from opd_jax.errors import InputError
from opd_jax.models import hf
from opd_jax.runtime import cli
from opd_jax.trainer import open_run, train, train_run
from tests.conftest import FEW_PROBLEMS
from tests.helpers.eight_devices import run_on_eight_devices

pytestmark = pytest.mark.usefixtures("shared_programs")

# The commands; the package has functions of these names.
evaluate, export = map(importlib.import_module, ("opd_jax.evaluate", "opd_jax.export"))

METHOD = pathlib.Path(__file__).with_name("made_up.py")
CONFIG = """
from opd_jax import config


def get_config(scale="cpu"):
  c = config.at_scale(scale, recipe="tests.recipes.made_up")
  c.student = "{student}"
  c.teacher = "initial"
  c.steps, c.batch, c.horizon.max, c.eval.every, c.checkpoint.every = 4, 8, 8, 2, 2
  c.eval.prompts = c.eval.batch = 8
  c.optimizer.lr, c.compile_cache, c.log.tensorboard, c.log.bins = 1e-2, "off", False, 4
  c.memory.size = 6
  return c
"""


@pytest.fixture(scope="module")
def file(tiny, tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp("configs") / "made_up.py"
  path.write_text(CONFIG.format(student=tiny["student"]))
  return path


@pytest.fixture(scope="module")
def finished(file, tmp_path_factory):
  """The workdir and the run of four steps that were never interrupted."""
  path = tmp_path_factory.mktemp("runs") / "whole"
  return path, train(config.load(str(file)), path)


def test_it_is_one_short_file():
  assert len(METHOD.read_text().splitlines()) <= 80


def test_its_steps_have_two_updates_and_a_memory(finished):
  path, run = finished
  records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
  steps = [r for r in records if r["kind"] == "train"]
  assert [r["remembered"] for r in steps] == [6] * 4, "random models do not end, and six prompts are kept"
  assert int(run.state["student"].step) == 8
  evaluations = [r for r in records if r["kind"] == "eval"]
  assert [(r["step"], r["model"]) for r in evaluations] == [(s, m) for s in (0, 2, 4) for m in ("student", "teacher")]


@pytest.mark.long
def test_killed_and_resumed_it_is_the_run_that_never_stopped(finished, file, tmp_path):
  def die(run, experience, metrics):
    if run.step == 3:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    train(config.load(str(file)), tmp_path / "w", on_step=die)
  again = open_run(config.load(str(file)), tmp_path / "w")
  assert again.resumed_from == 2
  train_run(again)
  jax.tree.map(np.testing.assert_array_equal, again.state, finished[1].state)
  assert again.recipe.remembered == finished[1].recipe.remembered


def test_it_is_evaluated_and_exported(finished, tmp_path):
  path, run = finished
  values, c = cli.parse(["evaluate", f"--workdir={path}"], "", evaluate.define, cli.of_workdir)
  evaluate.run(values, c)
  written = json.loads((path / "evaluation.json").read_text())
  assert set(written) == {"student", "teacher"}
  arguments = ["export", f"--workdir={path}", f"--out={tmp_path / 'out'}", "--dtype=float32"]
  values, c = cli.parse(arguments, "", export.define, cli.of_workdir)
  export.run(values, c)
  for name, params in run.models().items():
    jax.tree.map(np.testing.assert_array_equal, hf.load(tmp_path / "out" / name), params)


@pytest.mark.long
def test_it_is_planned_and_benchmarked(file, tmp_path, capsys):
  assert plan.main([f"--config={file}", "--stages=last", "--prompt=16", "--methods=opd", f"--out={tmp_path}"]) == 0
  planned = json.loads((tmp_path / "plan.json").read_text())
  assert {p["name"] for s in planned["targets"][0]["stages"] for p in s["programs"]} >= {"rollout", "update"}
  assert bench.main([f"--config={file}", "--prompt=8", "--repeat=1", f"--out={tmp_path}"]) == 0
  measured = json.loads((tmp_path / "bench.json").read_text())
  assert {p["name"]: p["seconds"] > 0 for p in measured["programs"]} == {"rollout": True, "update": True}


def test_it_is_not_compared_with_other_libraries(file, capsys):
  """They have no such step."""
  with pytest.raises(SystemExit):
    bench.main([f"--config={file}", "--prompt=8", "--against=trl", "--against-python=python"])
  assert "has others; leave it out" in capsys.readouterr().err


def test_its_keys_are_its_own(file, capsys):
  with pytest.raises(SystemExit):
    cli.parse(["train", f"--config={file}", "--help"], "", lambda values: None, cli.of_method)
  assert "prompts that are remembered" in capsys.readouterr().out
  _, c = cli.parse(["train", f"--config={file}", "--config.memory.size=3"], "", lambda v: None, cli.of_method)
  assert c.memory.size == 3
  with pytest.raises(InputError, match=r"There is no config key .memory\.size."):
    config.override(config.load("opd"), {"memory.size": 3})


@pytest.mark.long
def test_on_eight_devices_too(file, finished, tmp_path):
  """On data 2 x fsdp 2 x tensor 2 it is trained, killed and resumed bit for bit, evaluated, planned and benchmarked.

  The first rollouts are those of one device. Later ones are not: the teacher begins as the student, so the first gradient is
  rounding alone, which AdamW makes as large as any other.
  """
  run_on_eight_devices("-m", "tests.recipes.test_made_up", str(file), str(tmp_path))
  whole, parts, alone = map(train_records, (tmp_path / "whole", tmp_path / "parts", finished[0]))
  assert whole[0]["step_tokens"] == alone[0]["step_tokens"]
  assert [r["loss"] for r in whole] == [r["loss"] for r in parts]
  assert set(json.loads((tmp_path / "whole" / "evaluation.json").read_text())) == {"student", "teacher"}


def train_records(path: pathlib.Path) -> list[dict]:
  lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
  return [line for line in lines if line["kind"] == "train"]


def on_eight_devices(file: str, directory: str) -> None:
  """What the test above asks of a process that has eight devices."""
  assert jax.device_count() == 8
  problems.TRAIN_PROBLEMS = FEW_PROBLEMS
  mesh = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
  c = config.override(config.load(file), mesh)
  whole = train(c, f"{directory}/whole")
  train(config.override(c, {"steps": 2}), f"{directory}/parts")
  again = train(c, f"{directory}/parts")
  assert again.resumed_from == 2
  jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, (again.state, whole.state)))
  values, c = cli.parse(["evaluate", f"--workdir={directory}/whole"], "", evaluate.define, cli.of_workdir)
  evaluate.run(values, c)
  assert plan.main([f"--config={file}", "--mesh=fsdp=4,tensor=2", "--stages=last", "--prompt=16", "--methods=opd"]) == 0
  assert bench.main([f"--config={file}", "--prompt=8", "--repeat=1", "--config.mesh.fsdp=8"]) == 0


if __name__ == "__main__":
  on_eight_devices(*sys.argv[1:])
