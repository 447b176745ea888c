"""Problems in JSON, CSV, Parquet and Arrow files, whatever their bytes; JSONL is in test_jsonl.py."""

import gzip
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_jax.data import sources
from opd_jax.data.styles import Fields
from tests.helpers.damage import accepted_or_refused, damaged, json_bytes
from tests.helpers.fuzz import cases

RECORDS = [{"prompt": "b=3;c=7;b+c=", "answer": "10"}, {"prompt": "c=1;\n1+c=", "answer": "2"}]
CSV = b'prompt,answer\n"b=3;c=7;b+c=",10\n"c=1;\n1+c=",2\n'
ON_BAD_LINE = st.sampled_from(("refuse", "skip", "truncate"))


def read_or_refused(path, data: bytes, on_bad_line: str) -> None:
  path.write_bytes(data)
  with accepted_or_refused(path):
    examples, skipped, _ = sources.read_examples(path, Fields(), on_bad_line, need_answer=True)
    assert examples
    assert skipped == 0 or on_bad_line == "skip"
    for example in examples:
      assert example.where.startswith(f"{path}:")
      str(example).encode()


@pytest.mark.long
@cases(100)
@given(data=json_bytes(RECORDS) | json_bytes({"data": RECORDS}) | json_bytes(RECORDS[0]), on_bad_line=ON_BAD_LINE)
def test_a_json_file_is_read_or_refused_in_one_sentence(tmp_path, data, on_bad_line):
  read_or_refused(tmp_path / "problems.json", data, on_bad_line)


@cases(100)
@given(data=damaged(CSV), name=st.sampled_from(("problems.csv", "problems.tsv")), on_bad_line=ON_BAD_LINE)
def test_a_csv_file_is_read_or_refused_in_one_sentence(tmp_path, data, name, on_bad_line):
  read_or_refused(tmp_path / name, data, on_bad_line)


@cases(60)
@given(data=damaged(gzip.compress(json.dumps(RECORDS[0]).encode(), mtime=0)), on_bad_line=ON_BAD_LINE)
def test_a_compressed_file_is_read_or_refused_in_one_sentence(tmp_path, data, on_bad_line):
  read_or_refused(tmp_path / "problems.jsonl.gz", data, on_bad_line)


@pytest.fixture(scope="module")
def tables() -> list[bytes]:
  """The problems as Parquet, as an Arrow file and as an Arrow stream."""
  pa = pytest.importorskip("pyarrow")
  parquet = pytest.importorskip("pyarrow.parquet")
  table, written = pa.Table.from_pylist(RECORDS), []
  for write in (
    lambda out: parquet.write_table(table, out),
    lambda out: pa.ipc.new_file(out, table.schema),
    lambda out: pa.ipc.new_stream(out, table.schema),
  ):
    out = io.BytesIO()
    if sink := write(out):
      sink.write_table(table)
      sink.close()
    written.append(out.getvalue())
  return written


@cases(100)
@given(data=st.data(), kind=st.integers(0, 2), on_bad_line=ON_BAD_LINE)
def test_a_table_is_read_or_refused_in_one_sentence(tmp_path, tables, data, kind, on_bad_line):
  read_or_refused(tmp_path / "problems.parquet", data.draw(damaged(tables[kind])), on_bad_line)
