"""Workdirs whose files are damaged: a run goes on from them, or is refused and leaves them as they were."""

import gc
import importlib
import io
import json
import pathlib
import shutil
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_jax import config as configs
from opd_jax import trainer
from opd_jax.data import tokenizer
from opd_jax.data.conversation import Conversation
from opd_jax.models import hf
from opd_jax.runtime import cli, workdir
from tests.conftest import small_config
from tests.helpers.conversation_runs import saved_histories
from tests.helpers.damage import accepted_or_refused, assert_one_sentence, contents, damaged, json_bytes
from tests.helpers.fuzz import cases

export = importlib.import_module("opd_jax.export")  # the command; the package has a function of this name

# Where one of its reads fails, orbax leaves the others behind.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def without_what_orbax_leaves():
  yield
  gc.collect()


@pytest.fixture(scope="module")
def healthy(tiny, tmp_path_factory) -> pathlib.Path:
  """The workdir of a run of two of four steps, with a checkpoint of each."""
  path = tmp_path_factory.mktemp("runs") / "run"
  changes: dict[str, Any] = {
    "horizon.start": 8,
    "horizon.growth": 0,
    "eval.every": 0,
    "checkpoint.every": 1,
  }  # one shape
  trainer.train(small_config(tiny, steps=2, **changes), path)
  return path


@pytest.fixture
def copied(healthy, tmp_path):
  """Makes a copy of the workdir to damage, in the place of the last case's."""

  def copy() -> pathlib.Path:
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    return pathlib.Path(shutil.copytree(healthy, tmp_path / "runs" / "run"))

  return copy


@pytest.mark.long
@cases(100)
@given(data=st.data())
def test_a_config_of_a_workdir_is_loaded_or_refused(tmp_path, healthy, data):
  saved = tmp_path / "config.json"
  saved.write_bytes(data.draw(json_bytes(json.loads((healthy / "config.json").read_bytes()))))
  with accepted_or_refused(saved, "There is no recipe"):
    config = workdir.load_config(tmp_path)
    usual = configs.flat(configs.default(config.recipe).to_dict())
    assert configs.flat(config.to_dict()).keys() == usual.keys()
    configs.changed(config)


# What is read when a run goes on, but for its arrays.
JSON = ("config.json", "run.json", "checkpoints/2/position/metadata", "checkpoints/2/_CHECKPOINT_METADATA")


def some_damage(draw: st.DrawFn, path: pathlib.Path) -> None:
  """Damages one file or directory of a workdir."""
  kind = draw(st.sampled_from(("json", "json", "json", "lines", "array", "any", "gone", "empty", "odd")))
  files = sorted(p for p in path.rglob("*") if p.is_file())
  if kind == "json":
    file = path / draw(st.sampled_from(JSON))
    file.write_bytes(draw(json_bytes(json.loads(file.read_bytes()))))
  elif kind == "lines":
    file = path / draw(st.sampled_from(("metrics.jsonl", "samples.jsonl")))
    file.write_bytes(draw(damaged(file.read_bytes(), sizes=False)))
  elif kind in ("array", "any"):
    file = draw(st.sampled_from([p for p in files if kind == "any" or "state" in p.parts]))
    file.write_bytes(draw(damaged(file.read_bytes(), sizes=False)))
  elif kind in ("gone", "empty"):
    gone = draw(
      st.sampled_from([*files, path / "checkpoints/2", path / "checkpoints/2/state", path / "checkpoints/2/position"])
    )
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    if kind == "empty":
      gone.mkdir()
  else:
    name = draw(
      st.sampled_from(("checkpoints/3", "checkpoints/999999999999999999999", "checkpoints/x", "histories", "4"))
    )
    (path / name).mkdir()


@pytest.mark.long
@cases(30)
@given(data=st.data())
def test_a_run_goes_on_from_a_workdir_or_leaves_it_as_it_was(copied, healthy, data):
  path, cwd = copied(), pathlib.Path.cwd()
  some_damage(data.draw, path)
  config = configs.override(workdir.load_config(healthy), {"steps": 4})
  before, beside = contents(path), sorted(path.parent.iterdir())
  with accepted_or_refused(path) as refusals:
    run = trainer.open_run(config, path)
    with run.running():
      assert run.step in (0, 1, 2)
      run._describe([])
      run.log.say("it goes on")
  if refusals:
    assert contents(path) == before
  assert sorted(path.parent.iterdir()) == beside
  assert pathlib.Path.cwd() == cwd


@pytest.mark.long
@cases(30)
@given(data=st.data())
def test_the_student_of_a_workdir_is_exported_whole_or_not_at_all(copied, data):
  """Through the command, whose flags are given."""
  path = copied()
  some_damage(data.draw, path)
  out, before, errors, status = path.parent / "out", contents(path), io.StringIO(), 0
  flags = SimpleNamespace(workdir=str(path), out=str(out), step=None, merge=False, dtype="float32")
  with accepted_or_refused(), redirect_stderr(errors), redirect_stdout(io.StringIO()):
    try:
      with cli.reporting_the_end():
        export.run(cast(Any, flags), workdir.load_config(path))
    except SystemExit as e:
      status = e.code
  if status:
    assert status == cli.INPUT_ERROR
    assert_one_sentence(
      errors.getvalue().removeprefix("error: ").removesuffix("\n"), path, "There is no recipe", "config."
    )
    assert sorted(path.parent.iterdir()) == [path]
  else:
    hf.load(out)
    assert sorted(path.parent.iterdir()) == [out, path]
  assert contents(path) == before


@pytest.fixture(scope="module")
def talker():
  return tokenizer.load(hf.resolve("builtin:talker"))


CONVERSATIONS = tuple(Conversation("a b c", ("a", "b", "c")) for _ in range(3))


@cases(100)
@given(data=st.data())
def test_replies_of_conversations_are_read_or_refused(tmp_path, talker, data):
  lines = [{"of": "digest"}, *({"problem": i, "replies": ["x", "yes"]} for i in range(3))]
  texts = [json.dumps(line).encode() for line in lines]
  if data.draw(st.booleans()):
    at = data.draw(st.integers(0, 3))
    texts[at] = data.draw(json_bytes(lines[at]))
  whole = b"".join(text + b"\n" for text in texts)
  file = tmp_path / "00000000.jsonl"
  file.write_bytes(data.draw(damaged(whole)) if data.draw(st.booleans()) else whole)
  histories = saved_histories(CONVERSATIONS, talker, tmp_path)
  with accepted_or_refused(file):
    ids = histories.prompts(0, {}, [0, 1, 2], 1, lambda done, total: None)
    assert all(ids[i] for i in range(3))
