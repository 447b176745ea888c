"""When a run began is found again, in the same and in former workdirs."""

import datetime
import os

import pytest

from opd_jax.errors import InputError
from opd_jax.runtime import began
from opd_jax.runtime.bucket import MirroredDir

DAY = datetime.datetime(2024, 7, 26, 9, 5, 7)


def test_a_new_run_begins_now(tmp_path, monkeypatch):
  monkeypatch.setattr(began, "now", lambda: DAY)
  (tmp_path / "notes").write_text("of a directory that is older than the run")
  assert began.of_run(MirroredDir(tmp_path / "w")) == DAY
  assert began.of_run(MirroredDir(tmp_path)) == DAY
  assert not (tmp_path / "w").exists()


def test_what_is_kept_stays(tmp_path):
  began.keep(tmp_path, DAY)
  began.keep(tmp_path, DAY + datetime.timedelta(days=1))
  assert began.of_run(MirroredDir(tmp_path)) == DAY
  assert os.listdir(tmp_path) == [began.FILE]


@pytest.mark.parametrize("written", ["2024-07-26", "2024-07-26T09:05:07.5", "2024-07-26T09:05:07+02:00"])
def test_a_day_can_be_written_by_hand(written, tmp_path):
  (tmp_path / began.FILE).write_text(f'{{"began": "{written}"}}')
  assert began.of_run(MirroredDir(tmp_path)).date() == DAY.date()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"began": 7}', '{"began": "yesterday"}', "\x00"])
def test_a_damaged_file_is_told(content, tmp_path):
  (tmp_path / began.FILE).write_text(content)
  with pytest.raises(InputError, match=r"began\.json does not tell when the run began; write"):
    began.of_run(MirroredDir(tmp_path))


def test_a_former_run_began_when_its_oldest_file_was_written(tmp_path):
  (tmp_path / "checkpoints" / "4").mkdir(parents=True)
  for name, days in (("config.json", 2), ("metrics.jsonl", 0), ("run.json", 1)):
    (tmp_path / name).write_text("")
    time = (DAY + datetime.timedelta(days=days)).timestamp()
    os.utime(tmp_path / name, (time, time))
  assert began.of_run(MirroredDir(tmp_path)) == DAY
