"""config.json and run.json of a workdir, where they are damaged."""

import json

import pytest

from opd_jax import config as configs
from opd_jax.errors import InputError
from opd_jax.runtime import workdir
from opd_jax.runtime.bucket import MirroredDir


@pytest.fixture
def path(tmp_path):
  """The workdir of a run that has saved a checkpoint."""
  (tmp_path / "checkpoints" / "1").mkdir(parents=True)
  workdir.open_(MirroredDir(tmp_path), configs.load("popd"))
  return tmp_path


def edit(file, **changes):
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_healthy_config_comes_back(path):
  assert workdir.load_config(path).to_dict() == configs.load("popd").to_dict()
  workdir.check(MirroredDir(path), configs.load("popd"))


@pytest.mark.parametrize(
  ("changes", "why"),
  [
    ({"steps": "many"}, "config.steps is 'many'; it has to be"),
    ({"steps": True}, "steps is True"),
    ({"eval": 3}, "There is no config key 'eval'"),
    ({"eval": {"pass_at": [[1]]}}, r"eval.pass_at holds \[1\]"),
    ({"teacher_offload": 1}, "teacher_offload is 1"),
    ({"optimizer": {"lr": None}}, "optimizer.lr is None"),
    ({"recipe": 3}, "cannot be read as a config"),
    ({"recipe": "x\x00.y"}, "recipe"),
    ({"new": {"key": 1}}, "There is no config key 'new.key'"),
  ],
)
def test_a_config_of_other_types_is_refused(path, changes, why):
  edit(path / "config.json", **changes)
  with pytest.raises(InputError, match=why):
    workdir.load_config(path)
  with pytest.raises(InputError, match=why):
    workdir.check(MirroredDir(path), configs.load("popd"))


@pytest.mark.parametrize(
  "text", ["", "{", "[]", '{"a":[' * 50_000, '{"sessions": 3}', '{"sessions": [{"programs": 1}]}']
)
def test_a_damaged_run_json_is_refused_before_the_run_goes_on(path, text):
  (path / "run.json").write_text(text)
  with pytest.raises(InputError, match=r"run\.json .*: restore the file, or delete it"):
    workdir.check(MirroredDir(path), configs.load("popd"))
  (path / "run.json").unlink()
  workdir.check(MirroredDir(path), configs.load("popd"))


def test_a_difference_of_thousands_of_letters_is_shortened(path):
  edit(path / "config.json", student="x" * 5000)
  with pytest.raises(InputError, match=r"belongs to another config: student: x+") as e:
    workdir.check(MirroredDir(path), configs.load("popd"))
  assert len(str(e.value)) < 600


@pytest.mark.parametrize(
  "name", ["config.json", "run.json", "metrics.jsonl", "samples.jsonl", "rollouts.jsonl", "canvases.jsonl"]
)
def test_a_directory_in_the_place_of_a_file_is_refused(path, name):
  (path / name).unlink(missing_ok=True)
  (path / name).mkdir()
  with pytest.raises(InputError, match=f"{name} is a directory"):
    workdir.check(MirroredDir(path), configs.load("popd"))
