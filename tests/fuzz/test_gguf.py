"""GGUF files that are damaged are converted, or refused in one sentence that names the file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_jax.data import gguf_tokenizer
from opd_jax.models import gguf_files
from tests.helpers.damage import accepted_or_refused, damaged
from tests.helpers.fuzz import cases
from tests.test_convert import write_gguf


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> bytes:
  gguf = pytest.importorskip("gguf", reason="GGUF files need the package gguf")
  path = tmp_path_factory.mktemp("gguf") / "model.gguf"
  write_gguf(gguf, path, "llama")
  return path.read_bytes()


@cases(25)
@given(data=st.data())
def test_any_gguf_file_is_read_or_refused(tmp_path, healthy, data):
  path = tmp_path / "model.gguf"
  path.write_bytes(data.draw(damaged(healthy)))
  with accepted_or_refused(path):
    file = gguf_files.File(path)
    parameters = gguf_files.parameters(file, gguf_files.described(file))
    gguf_tokenizer.write(file, tmp_path)
    parameters["layers"]["q"].astype("float32")
