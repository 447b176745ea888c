"""Workdirs that version 0.1 made, before there were recipes, go on where they stopped.

`assets/workdirs_0_1.tar.gz` has what commit 35d4523 wrote for two runs of four of six steps, POPD and CCOPD, with the models that
they train and the metrics of the same runs without a stop. The numbers of a machine repeat bit for bit; those of another
processor agree as far as its rounding does.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

import jax
import numpy as np
import pytest
from etils import epath

from opd_jax import config, trainer
from opd_jax.data import problems
from opd_jax.recipes import base as recipes
from opd_jax.runtime import workdir

COMMIT = "35d4523"  # the last one that knows no recipes
ASSET = pathlib.Path(__file__).parent / "assets" / "workdirs_0_1.tar.gz"
ROOT = pathlib.Path(__file__).parents[1]
TIMES = ("seconds", "elapsed", "wall", "peak_memory")
METHODS = ("popd", "ccopd")


@pytest.fixture(scope="module", autouse=True)
def former(tmp_path_factory):
  """The directory that the runs name their models from; they had 64 problems, so that they were made in seconds."""
  directory = tmp_path_factory.mktemp("former")
  with tarfile.open(ASSET) as packed:
    packed.extractall(directory, filter="data")
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(directory)
    patch.setattr(problems, "TRAIN_PROBLEMS", 64)
    yield directory


def records(path: pathlib.Path) -> list[dict]:
  lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
  return [{k: v for k, v in line.items() if k not in TIMES} for line in lines if line["kind"] == "train"]


def resumed(path: pathlib.Path) -> trainer.Run:
  return trainer.train(config.override(workdir.load_config(path), {"steps": 6}), path)


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_a_former_workdir_goes_on(method, former):
  path = former / "stopped" / method
  history = path / "histories"
  replies = {file.name: file.read_bytes() for file in history.glob("*.jsonl")} if method == "ccopd" else {}
  run = resumed(path)
  assert run.config.recipe == {"popd": "opd", "ccopd": "ccopd"}[method]
  assert run.resumed_from == 4
  assert {name: (history / name).read_bytes() for name in replies} == replies, "generated once"
  mine, theirs = records(path), records(former / "whole" / method)
  assert [list(r) for r in mine] == [list(r) for r in theirs][:4] + [list(mine[-1])] * 2
  assert [r["step_tokens"] for r in mine] == [r["step_tokens"] for r in theirs]
  for name in ("loss", "kl", "grad_norm", "tokens", "limit", "width", "ended"):
    np.testing.assert_allclose([r[name] for r in mine], [r[name] for r in theirs], rtol=1e-4, err_msg=name)
  assert mine[-1].keys() == theirs[-1].keys()


@pytest.mark.long
def test_a_former_workdir_goes_on_bit_for_bit(tmp_path):
  """The former code makes both runs here and now, so that nothing but the code differs."""
  git = ["git", "-C", str(ROOT)]
  if subprocess.run([*git, "cat-file", "-e", f"{COMMIT}^{{commit}}"], capture_output=True, check=False).returncode:
    pytest.skip(f"the history of this checkout does not have {COMMIT}")
  code = tmp_path / "code"
  code.mkdir()
  packed = subprocess.run([*git, "archive", COMMIT, "opd_jax", "configs"], capture_output=True, check=True).stdout
  subprocess.run(["tar", "x", "-C", str(code)], input=packed, check=True)
  here = tmp_path / "runs"
  with tarfile.open(ASSET) as archive:
    archive.extractall(here, filter="data")
  for method in METHODS:
    start = json.loads((here / "stopped" / method / "config.json").read_text())
    for name, steps in (("whole", 6), ("stopped", 4)):
      shutil.rmtree(here / name / method, ignore_errors=True)
      former_code = (
        "import json, sys; from opd_jax import config, trainer; from opd_jax.data import problems; "
        "problems.TRAIN_PROBLEMS = 64; values = config.flat(json.loads(sys.argv[2])); "
        "c = config.override(config.default(), {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}); "
        "trainer.train(c, sys.argv[1])"
      )
      arguments = [f"{name}/{method}", json.dumps(start | {"steps": steps})]
      env = os.environ | {"PYTHONPATH": str(code)}
      subprocess.run([sys.executable, "-c", former_code, *arguments], cwd=here, env=env, check=True)
    with pytest.MonkeyPatch.context() as patch:
      patch.chdir(here)
      run = resumed(pathlib.Path("stopped") / method)
      uninterrupted, step = recipes.saved_state(run.recipe, epath.Path("whole") / method)
    assert step == 6
    jax.tree.map(np.testing.assert_array_equal, run.state, uninterrupted)
    assert records(here / "stopped" / method) == records(here / "whole" / method)
