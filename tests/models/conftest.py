"""A directory of a small model, the same in many files, and PyTorch to compare with."""

import pytest

from opd_jax.models import hf
from tests.helpers.model_directories import TINY, randomised


@pytest.fixture
def directory(tmp_path):
  path = tmp_path / "model"
  hf.write(path, TINY, randomised(TINY), pad_id=0, eos_id=1, dtype="float32")
  (path / "tokenizer.json").write_text("{}")
  return path


@pytest.fixture
def many(tmp_path):
  path = tmp_path / "many"
  hf.write(path, TINY, randomised(TINY), pad_id=0, eos_id=1, dtype="float32", max_shard_bytes=1000)
  (path / "tokenizer.json").write_text("{}")
  return path


@pytest.fixture(scope="module")
def pt():
  """torch and transformers, without their chatter."""
  torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch: pip install torch")
  import transformers

  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  torch.set_num_threads(1)
  return torch, transformers
