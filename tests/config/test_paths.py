"""`~` is the home directory wherever a path is taken, and no directory of that name is made."""

import argparse
import json
import pathlib
import shutil
from collections.abc import Iterator

import pytest

from opd_jax import checks, config, inputs, make_conversations
from opd_jax.data import sources, styles
from opd_jax.errors import InputError
from opd_jax.models import lora
from opd_jax.reports import runs
from opd_jax.runtime import bucket, cli
from opd_jax.trainer import open_run

pytestmark = pytest.mark.usefixtures("shared_programs")


@pytest.fixture
def home(tmp_path, monkeypatch) -> Iterator[pathlib.Path]:
  """A home directory, and an empty working directory beside it in which no `~` may appear."""
  (tmp_path / "home").mkdir()
  (tmp_path / "cwd").mkdir()
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.chdir(tmp_path / "cwd")
  yield tmp_path / "home"
  assert list((tmp_path / "cwd").iterdir()) == []


@pytest.mark.parametrize(
  "name", ["gs://bucket/~/run", "builtin:student", "task:chain", "initial", "", "a/~/b", "/abs", "auto"]
)
def test_what_does_not_begin_with_it_stays_as_it_is(name):
  assert config.expanded(name) == name


def test_workdirs_and_outputs(home):
  assert bucket.MirroredDir("~/runs/a").path == home / "runs" / "a"
  assert bucket.MirroredDir("gs://b/~/a").name == "gs://b/~/a"
  assert cli.output_directory("~/out") == home / "out"
  assert (home / "out").is_dir()
  with pytest.raises(InputError, match=f"{home}/no"):
    runs.load(["~/no"])
  with pytest.raises(InputError, match=f"{home}/no is not a workdir"):
    cli.of_workdir(["evaluate", "--workdir=~/no"], None)


def test_config_files_data_and_adapters(home):
  (home / "mine.py").write_text("from opd_jax.config import default\ndef get_config():\n  return default()\n")
  checks.check(config.load("~/mine.py"))
  (home / "data.jsonl").write_text(
    json.dumps({"prompt": "Ann has 2 figs. Bob has 3. How many figs?", "answer": "5"}) + "\n"
  )
  assert sources.read_examples("~/data.jsonl", styles.Fields("prompt", "answer"), "refuse", True)[0][0].answer == "5"
  with pytest.raises(InputError, match=f"{home}/adapter"):
    lora.from_config(config.override(config.default(), {"lora.path": "~/adapter"}).lora)
  args = argparse.Namespace(
    data=config.expanded_path("~/data.jsonl"),
    out=config.expanded_path("~/conversations.jsonl"),
    prompt_field="prompt",
    answer_field="answer",
    first=0,
    user="plain",
    template_args="{}",
    max_turns=8,
  )
  make_conversations.run(args)
  assert (home / "conversations.jsonl").is_file()


def test_a_run_of_models_data_and_a_workdir_in_the_home_directory(home, tiny, small):
  for role in ("student", "teacher"):
    shutil.copytree(tiny[role], home / role)
  (home / "train.jsonl").write_text('{"prompt": "58+-++x3=", "answer": "1"}\n')
  paths = {"data.path": "~/train.jsonl", "eval.path": "~/train.jsonl", "compile_cache": "off"}
  run = open_run(small(student="~/student", teacher="~/teacher", **paths), "~/runs/a")
  assert run.workdir.path == home / "runs" / "a"
  assert json.loads((home / "runs" / "a" / "config.json").read_text())["student"] == "~/student", (
    "saved as it was given"
  )
  found = inputs.load(small(student=str(home / "student"), teacher="~/teacher", **paths))
  assert found.student.path == run.inputs.student.path
