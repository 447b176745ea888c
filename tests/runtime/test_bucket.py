"""A workdir in a bucket, with a directory in the bucket's place: a machine that is gone leaves a run that goes on."""

import json
import os
import pathlib
import shutil
import types

import pytest
from etils import epath
from etils.epath import gpath

from opd_jax import trainer
from opd_jax.errors import InputError
from opd_jax.runtime import bucket, workdir

pytestmark = pytest.mark.usefixtures("shared_programs")

NAME = "gs://runs/popd"


@pytest.fixture
def remote(tmp_path, monkeypatch) -> pathlib.Path:
  """What stands for the bucket's gs://runs/popd; the mirror is in a directory of the test's own."""
  local = epath.Path
  there = tmp_path / "bucket"

  def at(name):
    return local(str(name).replace("gs://runs", os.fspath(there)) if str(name).startswith("gs://") else name)

  monkeypatch.setattr(bucket, "epath", types.SimpleNamespace(Path=at))
  monkeypatch.setattr(bucket.tempfile, "gettempdir", lambda: str(tmp_path / "machine"))
  return there / "popd"


@pytest.mark.long
def test_another_machine_goes_on(small, remote, tmp_path):
  trainer.train(small("topd", steps=2), NAME)
  assert {p.name for p in remote.iterdir()} == {
    "began.json",
    "checkpoints",
    "config.json",
    "run.json",
    "metrics.jsonl",
    "samples.jsonl",
  }
  first = (remote / "metrics.jsonl").read_text()
  shutil.rmtree(tmp_path / "machine")

  trainer.train(small("topd", steps=4), NAME)
  assert (remote / "metrics.jsonl").read_text().startswith(first)
  records = [json.loads(line) for line in (remote / "metrics.jsonl").read_text().splitlines()]
  assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2, 3, 4]
  assert workdir.load_config(bucket.MirroredDir(NAME).fetch()).steps == 4
  with pytest.raises(InputError, match=f"The workdir {NAME} belongs to another config: seed: 0 -> 1"):
    trainer.train(small("topd", steps=4, seed=1), NAME)


def test_only_what_changed_is_copied(remote):
  place = bucket.MirroredDir(NAME)
  (place.fetch() / "deep").mkdir()
  (place.path / "deep" / "a").write_text("one")
  (place.path / "b").write_text("two")
  place.push()
  assert (remote / "deep" / "a").read_text() == "one"
  (remote / "b").write_text("by somebody else")
  (place.path / "deep" / "a").write_text("three")
  place.push()
  assert (remote / "deep" / "a").read_text() == "three"
  assert (remote / "b").read_text() == "by somebody else", "an unchanged file was copied again"
  again = bucket.MirroredDir(NAME)
  assert (again.fetch() / "b").read_text() == "by somebody else"


def test_a_bucket_that_cannot_be_reached_is_one_sentence(monkeypatch, tmp_path):
  monkeypatch.setattr(bucket.tempfile, "gettempdir", lambda: str(tmp_path))
  monkeypatch.setattr(gpath._PREFIX_TO_BACKEND["gs"], "isdir", lambda *_: (_ for _ in ()).throw(OSError("denied")))
  with pytest.raises(InputError, match=r"The workdir gs://runs/popd cannot be used \(OSError: denied\)"):
    bucket.MirroredDir(NAME).fetch()


def test_a_local_workdir_is_itself(tmp_path):
  place = bucket.MirroredDir(tmp_path / "run")
  assert (place.path, place.fetch(), os.fspath(place.root)) == (
    tmp_path / "run",
    tmp_path / "run",
    str(tmp_path / "run"),
  )
