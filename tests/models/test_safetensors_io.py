"""Headers of safetensors files and the index, where they are damaged."""

import json
import math

import pytest

from opd_jax.errors import InputError
from opd_jax.models import safetensors_io

TENSORS = {
  "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
  "b": {"dtype": "F32", "shape": [1], "data_offsets": [16, 20]},
}


@pytest.fixture
def refused(tmp_path):
  """Writes a file of 20 bytes of tensors under a header, and returns why it is refused."""

  def refuse(header, length: int | None = None) -> str:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + bytes(20))
    with pytest.raises(InputError, match=r"model\.safetensors") as e:
      safetensors_io.read_header(file)
    return str(e.value)

  return refuse


def test_a_good_header_is_read(tmp_path):
  text = json.dumps({"__metadata__": {}} | TENSORS).encode()
  file = tmp_path / "model.safetensors"
  file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(20))
  assert {name: t.offset - 8 - len(text) for name, t in safetensors_io.read_header(file).items()} == {"a": 0, "b": 16}


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("dtype", ["F32"]),
    ("dtype", None),
    ("shape", {"0": 4}),
    ("shape", [2.0, 2.0]),
    ("shape", [True, 4]),
    ("shape", [-2, -2]),
    ("shape", [2**70]),
    ("data_offsets", [0]),
    ("data_offsets", [0, 16, 20]),
    ("data_offsets", [16, 0]),
    ("data_offsets", [-16, 0]),
    ("data_offsets", ["0", "16"]),
    ("data_offsets", [0, math.inf]),
  ],
)
def test_an_entry_of_another_type_is_no_safetensors(refused, key, value):
  assert "has a header that is not safetensors'" in refused(TENSORS | {"a": TENSORS["a"] | {key: value}})


@pytest.mark.parametrize("header", [b"[]", b"null", b'{"a":[' * 50_000, b"\xff" * 9, {"a": None}, {"a": []}])
def test_another_document_is_no_safetensors(refused, header):
  assert "has a header that is not safetensors'" in refused(header)


def test_tensors_that_overlap_or_leave_a_hole_are_refused(refused):
  over = TENSORS | {"b": {"dtype": "F32", "shape": [2], "data_offsets": [12, 20]}}
  assert "tensor b begins at byte" in refused(over)
  hole = {"b": {"dtype": "F32", "shape": [4], "data_offsets": [4, 20]}}
  assert "tensor b begins at byte" in refused(hole)


def test_a_name_with_a_line_break_breaks_no_message(refused):
  hole = {"a\x85b\n": {"dtype": "F32", "shape": [4], "data_offsets": [4, 20]}}
  assert r"tensor a\x85b\n begins" in refused(hole)


@pytest.mark.parametrize("length", [2**60, 2**64 - 1, 10**9])
def test_a_header_longer_than_its_file_is_not_read(refused, length):
  assert "ends inside its header" in refused(TENSORS, length)


@pytest.mark.parametrize("name", [["x"], None, 3, "", "../model.safetensors", "a/b", "x" * 3000])
def test_an_index_names_files_of_its_directory(tmp_path, name):
  index = {"weight_map": {"model.norm.weight": name}}
  (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
  with pytest.raises(InputError, match=r"index\.json has .* for the file of tensor model\.norm\.weight") as e:
    safetensors_io.find_tensors(tmp_path)
  assert len(str(e.value)) < 600
