"""What a workdir may be resumed with: keys that change no step, keys that are named, and what is written of them."""

import importlib
import json
import types
from typing import Any

import pytest
from ml_collections import ConfigDict

from opd_jax import config, trainer
from opd_jax.errors import InputError
from opd_jax.horizon import adaptive, schedule
from opd_jax.runtime import cli, outcome, workdir
from opd_jax.runtime.bucket import MirroredDir

SOURCE = {"digest": "of the prompts"}


def of(method: str = "popd", /, **changes: Any) -> config.Config:
  return config.override(config.load(method), changes)


@pytest.fixture
def resume(tmp_path):
  """Opens a workdir whose last checkpoint is of step 4 under another config; returns the changes by key."""
  directory = MirroredDir(tmp_path / "w")

  def go(now: config.Config, *allow: str, step: int = 4) -> dict:
    (tmp_path / "w" / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
    workdir.open_(directory, now, workdir.changes(directory, workdir.check(directory, now, allow)))
    return {c["key"]: (c["step"], c["from"], c["to"]) for c in workdir.changes(directory)}

  workdir.open_(directory, of(), workdir.check(directory, of()))
  return go


OTHER = {
  bool: lambda v: not v,
  int: lambda v: v + 1,
  float: lambda v: v + 0.5,
  str: lambda v: v + "x",
  tuple: lambda v: (*v, 2),
  ConfigDict: lambda v: {"enable_thinking": False},
}


@pytest.mark.parametrize("key", workdir.FREE)
def test_keys_that_change_no_step_are_free_and_recorded(key, resume):
  old = config.get(of(), key)
  new = {"allow_mismatch": ("eos",), "mesh.teacher": "all"}.get(key, OTHER[type(old)](old))
  assert resume(of(**{key: new})) == {key: (4, *json.loads(json.dumps([old, new])))}


@pytest.mark.few(3)
@pytest.mark.parametrize("key", sorted(config.table().keys() - {*workdir.FREE}))
def test_every_other_key_has_to_be_named_or_stays(key, resume):
  """Those of the checkpoint's state stay even if they are named, with the reason."""
  old = config.get(of(), key)
  c = of().copy_and_resolve_references()
  config.put(c, key, "geometric" if key == "horizon.kind" else OTHER[type(old)](old))
  if key == "recipe":
    c = of("ccopd")
  with pytest.raises(InputError, match=rf"belongs to another config: .*{'context' if key == 'recipe' else key}"):
    resume(c)
  if key in ("recipe", "student", "optimizer.kind") or key.startswith(("lora.", "subnetwork.")):
    with pytest.raises(InputError, match=rf"config.{key} cannot change from .*: (the checkpoint|another method)"):
      resume(c, key)
  else:
    assert list(resume(c, key)) == [key]


def test_a_group_can_be_named_and_a_name_that_is_no_key_is_refused(resume):
  with pytest.raises(InputError, match=r"no config key 'optimiser.lr'. Did you mean 'optimizer.lr'"):
    resume(of(**{"optimizer.lr": 1.0}), "optimiser.lr")
  with pytest.raises(InputError, match=r"lr: .* --allow-change=optimizer.b1,optimizer.lr to go on .* from step 4 on"):
    resume(of(**{"optimizer.lr": 1.0, "optimizer.b1": 0.5}))
  assert resume(of(**{"optimizer.lr": 1.0, "optimizer.b1": 0.5}), "optimizer").keys() == {
    "optimizer.lr",
    "optimizer.b1",
  }


def test_the_changed_config_is_the_runs_own_from_then_on(resume, tmp_path):
  changed = of(**{"optimizer.lr": 0.5})
  assert resume(changed, "optimizer.lr") == {"optimizer.lr": (4, 1e-4, 0.5)}
  assert resume(changed, step=6) == {"optimizer.lr": (4, 1e-4, 0.5)}
  assert workdir.load_config(tmp_path / "w").optimizer.lr == 0.5
  with pytest.raises(InputError, match=r"optimizer.lr: 0.5 -> 0.0001"):
    resume(of(), step=6)
  assert len(resume(of(), "optimizer.lr", step=6)) == 1, "another change, back to what it was"
  assert [c["step"] for c in workdir.changes(MirroredDir(tmp_path / "w"))] == [4, 6]


def test_a_change_that_is_taken_back_before_another_checkpoint_is_none(resume):
  resume(of(**{"optimizer.lr": 0.5}), "optimizer.lr")
  assert resume(of(), "optimizer.lr") == {}


def test_the_command_line_names_keys_with_commas_or_one_after_another(monkeypatch):
  given = {}

  def train_with(config, path, **more):
    given.update(more)
    return types.SimpleNamespace(outcome=outcome.Outcome())

  monkeypatch.setattr(trainer, "train", train_with)
  argv = ["train", "--workdir=w", "--allow-change=optimizer.lr, batch", "--allow-change=data"]
  train = importlib.import_module("opd_jax.train")
  train.run(*cli.parse(argv, "", train.define, cli.of_method))
  assert given == {"allow_change": ["optimizer.lr", "batch", "data"]}


def test_before_the_first_checkpoint_nothing_is_a_change(tmp_path):
  directory = MirroredDir(tmp_path / "new")
  workdir.open_(directory, of(), workdir.check(directory, of()))
  other = of(student="builtin:phase-student")
  workdir.open_(directory, other, workdir.changes(directory, workdir.check(directory, other)))
  assert workdir.changes(directory) == []


def test_rollouts_that_begin_ahead_wait_for_evaluations(tmp_path, resume):
  ahead = of(**{"rollout.ahead": True})
  assert resume(ahead, "rollout.ahead")
  with pytest.raises(InputError, match=r"eval.every: 10 -> 7"):
    resume(of(**{"rollout.ahead": True, "eval.every": 7}))


def test_a_horizon_that_remembers_cannot_change(tmp_path):
  assert set(workdir.SCHEDULES) == set(schedule.KINDS) - adaptive.RULES.keys()
  directory = MirroredDir(tmp_path / "w")
  workdir.open_(directory, of("adaptive"))
  (tmp_path / "w" / "checkpoints" / "4").mkdir(parents=True)
  with pytest.raises(InputError, match=r"horizon.kind cannot change .*remembers"):
    workdir.check(directory, of("adaptive", **{"horizon.kind": "full"}), ["horizon.kind"])


def test_the_digest_is_that_of_the_beginning_unless_the_replies_change(resume, tmp_path):
  directory = MirroredDir(tmp_path / "w")
  began = workdir.digest(of(), SOURCE)
  for key, value in (("optimizer.lr", 0.5), ("eval.k", 4), ("student", "builtin:student")):
    c = of(**{key: value})
    resume(c, key)
    assert workdir.digest(c, SOURCE, workdir.changes(directory)) == began
    resume(of(), key)
  c = of(**{"sampling.temperature": 0.5})
  resume(c, "sampling")
  assert workdir.digest(c, SOURCE, workdir.changes(directory)) != began


def test_a_path_from_the_home_directory_and_in_full_is_one(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  directory = MirroredDir(tmp_path / "w")
  one, other = of(student="~/s", **{"data.path": "~/d"}), of(student=f"{tmp_path}/s", **{"data.path": f"{tmp_path}/d"})
  workdir.open_(directory, one)
  (tmp_path / "w" / "checkpoints" / "4").mkdir(parents=True)
  workdir.open_(directory, other, workdir.changes(directory, workdir.check(directory, other)))
  assert workdir.digest(other, SOURCE, workdir.changes(directory)) == workdir.digest(one, SOURCE)


def test_digests_of_former_workdirs_stay():
  """Their saved conversations are found by them."""
  assert workdir.digest(of("ccopd", **{"eval.k": 2}), SOURCE) == "2c91ba7c7bd6a7bc"
