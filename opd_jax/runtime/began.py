"""When a run began: the moment that chat templates read as the present, in every session of the run.

A template may write the day's date into every prompt. It is the day of the first start, kept in the workdir as began.json, so that
a run can be resumed, continued and evaluated on any other.
"""

import datetime
import json
import pathlib

import numpy as np

from opd_jax.errors import InputError
from opd_jax.runtime import hosts, json_files
from opd_jax.runtime.bucket import MirroredDir

FILE = "began.json"


def of_run(directory: MirroredDir) -> datetime.datetime:
  """Fetches a workdir, and finds when its run began, in the local time of where it did; a new one begins now.

  A workdir from before this was kept has files as old as the run. Every process gets the first one's answer.

  Raises:
    InputError: the bucket cannot be reached, or the file is damaged.
  """
  found = [now()]

  def find() -> None:
    path = directory.fetch()
    found[0] = _read(path / FILE) or (_oldest(path) if _has_run(directory) else None) or found[0]

  hosts.on_first(find)
  return _same_everywhere(found[0])


def of_process() -> datetime.datetime:
  """Returns the first process's present, on every process."""
  return _same_everywhere(now())


def now() -> datetime.datetime:
  """Returns the local time, in whole seconds."""
  return datetime.datetime.now().replace(microsecond=0)


def keep(path: pathlib.Path, moment: datetime.datetime) -> None:
  """Writes a run's moment into its workdir, where none is kept.

  Raises:
    OSError: the file cannot be written.
  """
  if not (path / FILE).exists():
    part = path / f"{FILE}.part"
    part.write_text(json.dumps({"began": moment.isoformat()}) + "\n", encoding="utf-8")
    part.replace(path / FILE)


def _read(file: pathlib.Path) -> datetime.datetime | None:
  """Reads what was kept; None where nothing was."""
  try:
    if not file.is_file():
      return None
    moment = datetime.datetime.fromisoformat(json_files.parse(file.read_bytes())["began"])
    return moment.replace(microsecond=0, tzinfo=None)
  except (ValueError, KeyError, TypeError, OSError):
    raise InputError(
      f'{file} does not tell when the run began; write {{"began": "2026-01-31T12:00:00"}} into it, with the day of its first start.'
    ) from None


def _has_run(directory: MirroredDir) -> bool:
  """Whether a run has saved a checkpoint here."""
  return (directory.path / "config.json").is_file() and any((directory.root / "checkpoints").glob("[0-9]*"))


def _oldest(path: pathlib.Path) -> datetime.datetime | None:
  """Returns when the oldest file of a workdir was last written; None where there is none."""
  try:
    times = [file.stat().st_mtime for file in path.rglob("*") if file.is_file()] if path.is_dir() else []
  except OSError:
    return None
  return datetime.datetime.fromtimestamp(min(times)).replace(microsecond=0) if times else None


def _same_everywhere(moment: datetime.datetime) -> datetime.datetime:
  """Returns the first process's moment on every process."""
  since = moment - datetime.datetime.min
  days, seconds = hosts.from_first(np.array([since.days, since.seconds], np.int32))
  return datetime.datetime.min + datetime.timedelta(int(days), int(seconds))
