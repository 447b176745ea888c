"""Where a training command's config comes from."""

import importlib

import pytest

from opd_jax import config as configs
from opd_jax.runtime import cli, workdir
from opd_jax.runtime.bucket import MirroredDir

train = importlib.import_module("opd_jax.train")  # the command; the package has a function of this name


@pytest.fixture
def saved(tmp_path):
  """A workdir of TOPD with a batch of its own."""
  path = tmp_path / "run"
  workdir.open_(MirroredDir(path), configs.override(configs.load("topd"), {"batch": 7}))
  return path


def parsed(*arguments: str):
  return cli.parse(["train", *arguments], "", train.define, cli.of_run)[1]


def test_a_workdir_alone_brings_its_config_and_overrides_come_on_top(saved, capsys):
  config = parsed(f"--workdir={saved}", "--config.steps=9")
  assert (config.horizon.kind, config.batch, config.steps) == ("truncated", 7, 9)
  assert f"config of {saved}, since there is no --config" in capsys.readouterr().err


def test_a_config_that_is_given_is_the_one(saved):
  assert parsed(f"--workdir={saved}", "--config=opd").batch == configs.load("opd").batch


def test_a_new_workdir_is_popds(tmp_path):
  assert parsed("--workdir", str(tmp_path / "new")).horizon.kind == "progressive"
