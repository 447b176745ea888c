"""The records of a data file, whatever its format: JSONL, JSON, CSV and TSV here, tables and the hub in tables.py.

    .json                  a list of objects, an object that holds one such list, or JSONL
    .csv, .tsv             a header and rows; cells are text
    PAR1, ARROW1, a directory of `save_to_disk`, hub:NAME:SPLIT           tables.py, whatever the name is
    every other name       JSONL: one object per line

Each may be compressed by gzip. What a file is, its first bytes say before its name does: a reader that is the wrong one would
blame the text.
"""

import csv
import gzip
import io
import json
import pathlib
import threading
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from opd_jax.config import expanded_path
from opd_jax.data import tables
from opd_jax.data.tables import HUB
from opd_jax.errors import InputError, first_line, some

GZIP = b"\x1f\x8b"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
# The first bytes of files that hold no text, what these files are, and what to do about it.
FOREIGN = (
  (b"PK\x03\x04", "a zip archive or an Excel workbook", "unzip it, or save the sheet as CSV"),
  (b"\x28\xb5\x2f\xfd", "compressed by zstd", "decompress it with zstd -d, or compress it by gzip"),
  *(
    (b"BZh%d1AY&SY" % level, "compressed by bzip2", "decompress it with bunzip2, or compress it by gzip")
    for level in range(1, 10)
  ),
  (b"\xfd7zXZ\x00", "compressed by xz", "decompress it with xz -d, or compress it by gzip"),
  (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
  (b"SQLite format 3\x00", "an SQLite database", "export the table as CSV or JSON"),
  (b"\x89HDF\r\n", "an HDF5 file", "export its records as JSONL or Parquet"),
  (b"\x93NUMPY", "a NumPy array", "write its records as JSONL"),
  (b"Obj\x01", "an Avro file", "convert it to Parquet or JSONL"),
  (b"%PDF", "a PDF document", "write its problems as JSONL"),
  (
    b"GGUF",
    "a model in GGUF and no problems",
    "convert it with python -m opd_jax.convert, and name it as config.student",
  ),
  (b"\x80\x04\x95", "a Python pickle", "write its records as JSONL"),
  (b"\x80\x05\x95", "a Python pickle", "write its records as JSONL"),
  (
    b"version https://git-lfs",
    "a pointer of Git LFS and not the file itself",
    "run git lfs pull, or download the file",
  ),
  (b"<!DOCTYPE html", "a web page", "download the file itself"),
  (b"<!doctype html", "a web page", "download the file itself"),
  (b"<html", "a web page", "download the file itself"),
)
TAR = slice(257, 262)  # where "ustar" stands in the archive's first header
HEAD = 512  # bytes that are looked at
DELIMITERS = {".csv": ",", ".tsv": "\t"}

_csv_limit = threading.Lock()  # the longest cell is a setting of the whole process


class Entry(NamedTuple):
  """A record of a file, or why it is none."""

  where: str  # "file.jsonl:12", "file.parquet:row 12", for messages
  record: Any = None  # its value, an object where it can be used
  fault: str = ""  # of a text that holds no value: what is wrong, and the mend
  unit: str = "line"  # what it is in its file, for messages


def entries(path: str | pathlib.Path) -> Iterator[Entry]:
  """Read the records of a file, a directory or a data set of the hub, one after another.

  Raises:
    InputError: there is no such file, it cannot be read, or it is of no kind that is read.
  """
  if str(path).startswith(HUB):
    return (Entry(f"{path}:row {n}", row, unit="row") for n, row in tables.hub_rows(str(path)))
  path = expanded_path(path)
  if path.is_dir():
    return (Entry(f"{path}:row {n}", row, unit="row") for n, row in tables.directory_rows(path))
  if not path.exists():
    raise InputError(
      f"There is no file {path}; data.path names a file of problems (JSONL, JSON, CSV, Parquet, Arrow), a data set as "
      "hub:NAME:SPLIT, or a task as task:NAME."
    )
  return _of_file(path)


def _of_file(path: pathlib.Path) -> Iterator[Entry]:
  suffixes = [s.lower() for s in path.suffixes]
  try:
    with path.open("rb") as file:
      head = file.read(HEAD)
      file.seek(0)
      if not head.startswith(GZIP):
        yield from _of_content(path, file, head, suffixes[-1:])
        return
      with gzip.open(file) as inner:
        head = inner.read(HEAD)
        inner.seek(0)
        yield from _of_content(path, inner, head, [s for s in suffixes if s != ".gz"][-1:])  # pyright: ignore[reportArgumentType]
  except (gzip.BadGzipFile, EOFError, zlib.error) as e:
    raise InputError(f"{path} is compressed by gzip and damaged ({first_line(e)}); copy it anew.") from None
  except OSError as e:
    raise InputError(f"{path} cannot be read ({e.strerror}); check data.path and its permissions.") from None


def _of_content(path: pathlib.Path, file: BinaryIO, head: bytes, suffix: list[str]) -> Iterator[Entry]:
  """Read an open file by what its first bytes are, and by its name where they are text."""
  if tables.is_table(head):
    yield from (Entry(f"{path}:row {n}", row, unit="row") for n, row in tables.file_rows(path, file, head))
    return
  _refuse_foreign(path, head)
  if suffix == [".json"]:
    yield from _json(path, file)
  elif suffix and suffix[0] in DELIMITERS:
    yield from _csv(path, file, DELIMITERS[suffix[0]])
  else:
    yield from _jsonl(path, file)


def _refuse_foreign(path: pathlib.Path, head: bytes) -> None:
  """Refuse what is no text, or text of an encoding that is not read, by name."""
  for start, kind, mend in FOREIGN:
    if head.startswith(start):
      raise InputError(f"{path} is {kind}; {mend}.")
  if head[TAR] == b"ustar":
    raise InputError(f"{path} is a tar archive; unpack it.")
  zeros = [byte == 0 for byte in head[:4]]
  if head.startswith(UTF16) or zeros in ([False, True] * 2, [True, False] * 2):
    raise InputError(f"{path} is text in UTF-16, as Windows programs write it; save it as UTF-8.")
  if b"\0" in head and head.lstrip()[:1] not in (b"{", b"["):
    raise InputError(f"{path} is no text, and of no format that is read; give JSONL, JSON, CSV, Parquet or Arrow.")


def _text(path: pathlib.Path, number: int, raw: bytes) -> str:
  """Decode a part of a file that begins in this line."""
  try:
    # Windows editors put a byte order mark before the first line.
    return raw.decode("utf-8-sig" if number == 1 else "utf-8")
  except UnicodeDecodeError as e:
    if number == 1 and b"\0" in raw[:HEAD]:
      raise InputError(
        f"{path} is no text, and of no format that is read; give JSONL, JSON, CSV, Parquet or Arrow."
      ) from None
    before = raw[: e.start]
    line, at = number + before.count(b"\n"), e.start - (before.rfind(b"\n") + 1)
    raise InputError(f"{path}:{line}: byte {at + 1} is not UTF-8; save the file as UTF-8.") from None


def _jsonl(path: pathlib.Path, file: BinaryIO) -> Iterator[Entry]:
  """Read the lines of a file, without the blank ones at the end.

  A line ends at a newline byte only, since JSON text may hold U+2028.
  """
  blank = []
  for number, raw in enumerate(file, start=1):
    line = _text(path, number, raw).strip(" \t\r\n")
    if not line:
      blank.append(number)
      continue
    yield from (Entry(f"{path}:{n}", fault="the line is empty; remove it") for n in blank)
    blank.clear()
    yield _of_line(f"{path}:{number}", line)


def _of_line(where: str, line: str) -> Entry:
  try:
    return Entry(where, json.loads(line))
  except json.JSONDecodeError as e:
    mend = "write one complete JSON object on it"
    if where.endswith(":1") and line in ("[", "{", "[{"):
      mend = "name a file that is one JSON list .json, or write one complete JSON object on it"
    return Entry(where, fault=f"the line is not JSON ({e.msg} at column {e.colno}); {mend}")
  except (RecursionError, ValueError) as e:  # nested too deeply, or an integer of thousands of digits
    return Entry(where, fault=f"the line is JSON that cannot be read ({e}); write one plain JSON object on it")


def _json(path: pathlib.Path, file: BinaryIO) -> Iterator[Entry]:
  """Read a list of records, an object that holds one, or lines of objects, as many files of this name have."""
  text = _text(path, 1, file.read())
  try:
    value = json.loads(text)
  except json.JSONDecodeError as e:
    if _is_lines(text):
      yield from _jsonl(path, io.BytesIO(text.encode()))
      return
    raise InputError(
      f"{path}:{e.lineno}: the file is not JSON ({e.msg} at column {e.colno}); write a list of objects, or one object per line."
    ) from None
  except (RecursionError, ValueError) as e:
    raise InputError(f"{path} is JSON that cannot be read ({first_line(e)}); write a list of plain objects.") from None
  for n, record in enumerate(_list_in(path, value), start=1):
    yield Entry(f"{path}:record {n}", record, unit="record")


def _is_lines(text: str) -> bool:
  """Tell whether the first line of a text is an object of its own."""
  try:
    return isinstance(json.loads(text.lstrip().partition("\n")[0]), dict)
  except (RecursionError, ValueError):
    return False


def _list_in(path: pathlib.Path, value: Any) -> list[Any]:
  """The list of records that a JSON document is or holds; of an object without one, the object itself."""
  if isinstance(value, list):
    return value
  if not isinstance(value, dict):
    raise InputError(f"{path} holds neither a list of records nor an object; write a list of objects.")
  lists = {key: v for key, v in value.items() if isinstance(v, list)}
  of_records = [key for key, v in lists.items() if v and all(isinstance(r, dict) and "role" not in r for r in v)]
  if len(of_records) == 1:
    return value[of_records[0]]
  if of_records:
    raise InputError(
      f"{path} holds several lists of records ({some([repr(k) for k in of_records], 5)}); write the one that is meant as a "
      "file of its own."
    )
  if len(lists) == len(value) > 1:
    raise InputError(
      f"{path} holds columns ({some([repr(k) for k in lists], 5)}) and no records; write a list of objects, one for each problem."
    )
  return [value]


def _csv(path: pathlib.Path, file: BinaryIO, delimiter: str) -> Iterator[Entry]:
  """Read the rows below a header as objects of text; a row is at the line that it begins in."""
  text = _text(path, 1, file.read())
  header_line = text.partition("\n")[0]
  if delimiter == "," and "," not in header_line:  # as spreadsheets write it where a comma is in numbers
    delimiter = next((d for d in (";", "\t") if d in header_line), ",")
  rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
  header, begin = _next(path, rows), rows.line_num
  if header is None:
    return
  names = [name.strip() for name in header]
  if repeated := [name for i, name in enumerate(names) if name in names[:i]]:
    raise InputError(f"{path}:1: the header names {repeated[0]!r} twice; give every column a name of its own.")
  while (row := _next(path, rows)) is not None:
    where, begin = f"{path}:{begin + 1}", rows.line_num
    if not row:
      continue  # a blank line, which separates nothing in CSV
    if len(row) != len(names):
      yield Entry(where, fault=f"the row has {len(row)} cells, and the header {len(names)}; mend it", unit="row")
      continue
    yield Entry(where, dict(zip(names, row, strict=True)), unit="row")


def _next(path: pathlib.Path, rows: Any) -> list[str] | None:
  """The next row, or None behind the last."""
  with _csv_limit:
    before = csv.field_size_limit(2**31 - 1)
    try:
      return next(rows, None)
    except csv.Error as e:
      raise InputError(f"{path}:{rows.line_num}: the row is not CSV ({first_line(e)}); mend its quotes.") from None
    finally:
      csv.field_size_limit(before)
