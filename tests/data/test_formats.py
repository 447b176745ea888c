"""Files of every format give the same problems, and what no reader knows is called by its name."""

import bz2
import csv
import gzip
import io
import json
import lzma
import sqlite3
import tarfile
import zipfile

import pytest

from opd_jax.data.formats import entries
from opd_jax.data.sources import read_examples
from opd_jax.data.styles import Fields
from opd_jax.errors import InputError

RECORDS = [{"prompt": "1 + 1 =", "answer": "2"}, {"prompt": 'say "é", twice;\nthen, 3', "answer": "3"}]


def as_csv(records, delimiter=","):
  out = io.StringIO(newline="")
  rows = csv.DictWriter(out, list(records[0]), delimiter=delimiter)
  rows.writeheader()
  rows.writerows(records)
  return out.getvalue()


def read(path, on_bad_line="refuse"):
  return read_examples(path, Fields(), on_bad_line, need_answer=True)


LINES = "".join(json.dumps(r) + "\n" for r in RECORDS)
TEXTS = {
  "train.jsonl": LINES,
  "train.ndjson": LINES,
  "lines.json": LINES,
  "list.json": json.dumps(RECORDS, indent=2),
  "held.json": json.dumps({"version": 1, "tags": ["x"], "data": RECORDS}),
  "train.csv": as_csv(RECORDS),
  "semicolons.csv": as_csv(RECORDS, ";"),
  "tabs.csv": as_csv(RECORDS, "\t"),
  "train.tsv": as_csv(RECORDS, "\t"),
  "TRAIN.CSV": as_csv(RECORDS),
}


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["", "mark"])
@pytest.mark.parametrize("compressed", [False, True], ids=["", "gz"])
@pytest.mark.parametrize("name", TEXTS)
def test_every_format_gives_the_same_problems(tmp_path, name, compressed, bom):
  data = bom + TEXTS[name].encode()
  path = tmp_path / (f"{name}.gz" if compressed else name)
  path.write_bytes(gzip.compress(data) if compressed else data)
  examples, skipped, notes = read(path)
  assert [(e.prompt, e.answer) for e in examples] == [(r["prompt"], r["answer"]) for r in RECORDS]
  assert (skipped, notes) == (0, ())
  assert [dict(e.record) for e in examples] == RECORDS
  assert all(e.where.startswith(f"{path}:") for e in examples)


def test_gzip_is_known_without_its_name(tmp_path):
  path = tmp_path / "train.jsonl"
  path.write_bytes(gzip.compress(LINES.encode()))
  assert len(read(path).examples) == 2


def test_one_record_alone_is_a_json_file(tmp_path):
  """Its messages are a list of objects too."""
  path = tmp_path / "one.json"
  path.write_text(json.dumps({"prompt": [{"role": "user", "content": "1 + 1 ="}], "answer": 2}, indent=1))
  assert read(path).examples[0].answer == "2"


def test_a_row_stands_at_the_line_that_it_begins_in(tmp_path):
  path = tmp_path / "train.csv"
  path.write_text('prompt,answer\n"two\nlines",1\n\nnext,\n', newline="")
  assert [entry.where for entry in entries(path)] == [f"{path}:2", f"{path}:5"]
  with pytest.raises(InputError, match=r"train\.csv:5: the field 'answer' is blank.*data\.on_bad_line=skip"):
    read(path)
  assert read(path, "skip").skipped == 1


@pytest.mark.parametrize("header", ["ORCID", "BZh", "PK", "PAR", "Obj"])
def test_a_column_may_be_called_as_a_binary_file_begins(tmp_path, header):
  path = tmp_path / "train.csv"
  path.write_text(f"{header},prompt,answer\n1,a,2\n")
  assert read(path).examples[0].record[header] == "1"


def test_a_row_of_too_many_cells_is_a_bad_line(tmp_path):
  path = tmp_path / "train.csv"
  path.write_text("prompt,answer\na,1,2\nb,2\n")
  with pytest.raises(InputError, match=r"train\.csv:2: the row has 3 cells, and the header 2; mend it, or set"):
    read(path)
  examples, skipped, _ = read(path, "skip")
  assert ([e.prompt for e in examples], skipped) == (["b"], 1)


def test_a_cell_may_be_long(tmp_path):
  path, before = tmp_path / "train.csv", csv.field_size_limit()
  path.write_text(f"prompt,answer\n{'7 ' * 100_000},1\n")
  assert len(read(path).examples[0].prompt) == 200_000
  assert csv.field_size_limit() == before, "a setting of the whole process"


def test_a_bad_record_of_a_list_has_its_number(tmp_path):
  path = tmp_path / "train.json"
  path.write_text(json.dumps([RECORDS[0], 3, {"prompt": "x"}]))
  with pytest.raises(InputError, match=r"train\.json:record 2: the record is a number, not a JSON object"):
    read(path)
  assert read(path, "skip").skipped == 2


REFUSED = {
  "columns.json": (json.dumps({"prompt": ["a"], "answer": ["1"]}), r"holds columns \('prompt', 'answer'\)"),
  "several.json": (
    json.dumps({"train": RECORDS, "test": RECORDS}),
    r"several lists of records \('train', 'test'\); write the one",
  ),
  "number.json": ("3", "neither a list of records nor an object"),
  "broken.json": ('[\n{"prompt": "a"},\n{"prompt": }]', r"broken\.json:3: the file is not JSON \(.* at column 12\)"),
  "deep.json": ("[" * 100_000, "cannot be read"),
  "list.jsonl": ("[\n{}]", r"list\.jsonl:1: the line is not JSON .*one JSON list \.json"),
  "twice.csv": ("prompt,prompt\na,b\n", r"twice\.csv:1: the header names 'prompt' twice"),
  "quotes.csv": ('prompt,answer\n"a,1\n', "the row is not CSV"),
  "empty.csv": ("", r"empty\.csv is empty"),
  "header.csv": ("prompt,answer\n", r"header\.csv is empty"),
  "empty.json": ("[]", r"empty\.json is empty"),
  "latin.csv": ("prompt,answer\na,1\né,2\n".encode("latin-1"), r"latin\.csv:3: byte 1 is not UTF-8"),
  "latin.json": ('[{"prompt":\n "é"}]'.encode("latin-1"), r"latin\.json:2: byte 3 is not UTF-8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_refused_in_one_sentence(tmp_path, name):
  data, says = REFUSED[name]
  path = tmp_path / name
  path.write_bytes(data if isinstance(data, bytes) else data.encode())
  with pytest.raises(InputError, match=says) as refused:
    read(path)
  assert "\n" not in str(refused.value)
  assert str(path) in str(refused.value)


def archive_of(kind):
  out = io.BytesIO()
  if kind == "zip":
    with zipfile.ZipFile(out, "w") as z:
      z.writestr("train.jsonl", LINES)
  else:
    with tarfile.open(fileobj=out, mode="w") as t:
      t.addfile(tarfile.TarInfo("train.jsonl"))
  return out.getvalue()


def database(tmp_path):
  with sqlite3.connect(tmp_path / "db") as connection:
    connection.execute("create table problems (prompt text)")
  connection.close()
  return (tmp_path / "db").read_bytes()


FOREIGN = {
  "zip": (lambda _: archive_of("zip"), "a zip archive or an Excel workbook; unzip it"),
  "tar": (lambda _: archive_of("tar"), "is a tar archive"),
  "sqlite": (database, "is an SQLite database"),
  "zstd": (lambda _: b"\x28\xb5\x2f\xfd\x24\x00", "compressed by zstd"),
  "bzip2": (lambda _: bz2.compress(LINES.encode()), "compressed by bzip2"),
  "xz": (lambda _: lzma.compress(LINES.encode()), "compressed by xz"),
  "utf-16": (lambda _: LINES.encode("utf-16"), "text in UTF-16"),
  "utf-16 without a mark": (lambda _: LINES.encode("utf-16-le"), "text in UTF-16"),
  "lfs": (lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "run git lfs pull"),
  "page": (lambda _: b"<!DOCTYPE html><html></html>", "is a web page"),
  "gguf": (lambda _: b"GGUF\x03\x00\x00\x00\n\xff", "is a model in GGUF"),
  "zeros in the first line": (lambda _: b"abc\x00\n\xff\xfe", "is no text, and of no format that is read"),
  "anything": (lambda _: b"\x01\x00\x00\xfe\xff" * 50, "is no text, and of no format that is read"),
  "half gzip": (lambda _: gzip.compress(LINES.encode() * 99)[:60], "compressed by gzip and damaged"),
}


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.json", "x.parquet"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_another_kind_is_called_by_its_name(tmp_path, kind, name):
  content, says = FOREIGN[kind]
  path = tmp_path / name
  path.write_bytes(content(tmp_path))
  with pytest.raises(InputError, match=says) as refused:
    read(path, "skip")
  assert "UTF-8;" not in str(refused.value)
