"""Rows of tables: Parquet, Arrow, what `datasets` saves in a directory, and data sets of the Hugging Face hub.

They need the extra `data` of the package, pip install 'opd-jax[data]': pyarrow for files, datasets for the hub.
"""

import importlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from opd_jax.config.values import HUB
from opd_jax.errors import InputError, first_line, some

PARQUET, ARROW_FILE, ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".gz")

Row = tuple[int, dict[str, Any]]  # its number, from 1, and its values by column


def is_table(head: bytes) -> bool:
  """Tell whether a file that begins so is Parquet or Arrow."""
  return head.startswith((PARQUET, ARROW_FILE, ARROW_STREAM))


def file_rows(path: pathlib.Path, file: BinaryIO, head: bytes) -> Iterator[Row]:
  """Read the rows of an open Parquet or Arrow file.

  Args:
    path: for messages.
    head: its first bytes.

  Raises:
    InputError: pyarrow is not installed, or the file is damaged.
  """
  kind = "Parquet" if head.startswith(PARQUET) else "Arrow"
  pa = _library("pyarrow", f"{path} is {kind}")
  try:
    number = 0
    for batch in _batches(file, head):
      batch.validate(full=True)  # lengths of a damaged file would be taken for lengths
      for row in batch.to_pylist():
        number += 1
        yield number, row
  except (pa.ArrowException, OSError, ValueError, NotImplementedError) as e:
    raise InputError(f"{path} is a {kind} file that cannot be read ({first_line(e)}); write or copy it anew.") from None


def _batches(file: BinaryIO, head: bytes) -> Iterator[Any]:
  if head.startswith(PARQUET):
    parquet = importlib.import_module("pyarrow.parquet")
    yield from parquet.ParquetFile(file).iter_batches(batch_size=1024)
    return
  ipc = importlib.import_module("pyarrow.ipc")
  if head.startswith(ARROW_FILE):
    reader = ipc.open_file(file)
    yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
  else:
    yield from ipc.open_stream(file)


def directory_rows(path: pathlib.Path) -> Iterator[Row]:
  """Read the rows of a directory that `Dataset.save_to_disk` wrote.

  Raises:
    InputError: it is another directory, or one of several splits; names what to give instead.
  """
  if (path / "dataset_dict.json").is_file():
    splits = sorted(p.parent.name for p in path.glob("*/state.json"))
    raise InputError(
      f"{path} holds the splits {some([repr(s) for s in splits], 8) or 'of nothing'} of a data set; name one of them, such as "
      f"{path / (splits[0] if splits else 'train')}."
    )
  if not (path / "state.json").is_file():
    inside = sorted(p for p in path.rglob("*") if p.suffix in DATA_SUFFIXES and p.is_file())[:1]
    raise InputError(f"{path} is a directory; data.path needs a file, such as {(inside or [path / 'train.jsonl'])[0]}.")
  number = 0
  for file in _saved_files(path):
    for _, row in _rows_of(file):
      number += 1
      yield number, row


def _saved_files(path: pathlib.Path) -> list[pathlib.Path]:
  """The Arrow files of a saved data set, in its order."""
  try:
    listed = json.loads((path / "state.json").read_text(encoding="utf-8"))["_data_files"]
    files = [path / entry["filename"] for entry in listed]
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
    raise InputError(
      f"{path / 'state.json'} does not list the files of a data set ({first_line(e)}); save the data set anew."
    ) from None
  if lost := [file for file in files if not file.is_file()]:
    raise InputError(f"{path} lacks {lost[0].name}, which its state.json lists; copy the whole directory.")
  return files


def _rows_of(path: pathlib.Path) -> Iterator[Row]:
  try:
    with path.open("rb") as file:
      head = file.read(len(ARROW_FILE))
      file.seek(0)
      if not is_table(head):
        raise InputError(f"{path} is no Arrow file; copy the data set anew.")
      yield from file_rows(path, file, head)
  except OSError as e:
    raise InputError(f"{path} cannot be read ({e.strerror}); check its permissions.") from None


def hub_rows(name: str) -> Iterator[Row]:
  """Read the rows of a split of a data set: hub:openai/gsm8k:main:train, hub:NAME:SPLIT, hub:NAME@REVISION:SPLIT.

  Raises:
    InputError: no such name, no network, or datasets is not installed.
  """
  of, *parts = name.removeprefix(HUB).split(":")
  if not of or len(parts) not in (1, 2) or not all(parts):
    raise InputError(
      f"{name!r} names no split of a data set; write hub:NAME:SPLIT, or hub:NAME:CONFIG:SPLIT as in hub:openai/gsm8k:main:train."
    )
  of, _, revision = of.partition("@")
  datasets = _library("datasets", f"{name} is a data set of the hub")
  try:
    found = datasets.load_dataset(of, *parts[:-1], split=parts[-1], revision=revision or None)
  except Exception as e:  # of the network, of the hub's client, of the data set's own files
    raise InputError(
      f"{name} cannot be loaded ({type(e).__name__}: {first_line(e)}); check the name and the network, or download it where "
      "there is one and name its files in data.path."
    ) from None
  yield from enumerate(found, start=1)


def _library(name: str, why: str) -> Any:
  """Import a library of the extra `data`."""
  try:
    return importlib.import_module(name)
  except ImportError:
    raise InputError(
      f"{why}, which needs {name}, and that is not installed; pip install 'opd-jax[data]', or give JSONL, JSON or CSV."
    ) from None
