"""JSON as files hold it."""

import pytest

from opd_jax.errors import InputError
from opd_jax.runtime import json_files


@pytest.mark.parametrize(
  ("text", "why"),
  [
    (b"", "Expecting value"),
    (b'{"a": ', "Expecting value"),
    (b"\xff\xfe{}", "byte 1 is not UTF-8"),
    (b'{"a":[' * 50_000, "nests too deeply"),
    (b"[" * 300 + b"]" * 300, "nests too deeply"),  # a parser takes it, and what walks the document may not
    (b"9" * 5000, "thousands of digits"),
    (rb'{"a": "\ud800"}', "half of a surrogate pair"),
    (rb'{"\uDFFF": 1}', "half of a surrogate pair"),
  ],
)
def test_what_cannot_be_used_has_a_reason(text, why):
  with pytest.raises(json_files.NotReadable, match=why):
    json_files.parse(text)


def test_a_byte_order_mark_and_a_whole_pair_are_no_faults():
  assert json_files.parse(b"\xef\xbb\xbf" + rb'["\ud83d\ude00"]') == ["\U0001f600"]


def test_a_fault_has_its_line():
  with pytest.raises(json_files.NotReadable) as e:
    json_files.parse('{\n"a": 1,\n}')
  assert e.value.line == 3


def test_an_object_is_loaded_from_a_file_that_is_one(tmp_path):
  file = tmp_path / "a.json"
  file.write_text('{"a": 1}')
  assert json_files.load_object(file, "write it again") == {"a": 1}
  for text, why in (("[1]", "holds a list where a JSON object belongs: write it"), ("{", "is not JSON .*: write it")):
    file.write_text(text)
    with pytest.raises(InputError, match=f"a.json {why} again"):
      json_files.load_object(file, "write it again")
  with pytest.raises(InputError, match="cannot be read"):
    json_files.load_object(tmp_path, "write it again")
  with pytest.raises(FileNotFoundError):
    json_files.load_object(tmp_path / "b.json", "write it again")


def test_numbers_are_finite_and_no_booleans():
  assert all(map(json_files.is_number, (0, -1, 2.5)))
  assert not any(map(json_files.is_number, (True, None, "1", float("nan"), float("inf"), 10**400)))
  assert json_files.is_whole(3, 1)
  assert not any(json_files.is_whole(x, 1) for x in (0, True, 1.0, "1", 2**31))
