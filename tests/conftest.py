"""What tests share: tiny models, and one compile cache for all test processes."""

import os
import pathlib
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
CACHE = pathlib.Path(os.environ.get("OPD_JAX_TEST_CACHE", pathlib.Path(tempfile.gettempdir()) / "opd_jax_test_cache"))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from opd_jax.models import decoder  # noqa: E402
from opd_jax.types import Batch  # noqa: E402

jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

STUDENT = decoder.DecoderConfig(
  vocab=37, width=16, layers=2, heads=4, kv_heads=2, head_width=8, ff_width=24, qk_norm=True, max_positions=512
)
TEACHER = decoder.DecoderConfig(
  vocab=37, width=24, layers=2, heads=2, kv_heads=1, head_width=8, ff_width=32, qkv_bias=True, tied=False, max_positions=512
)


@pytest.fixture(scope="session")
def student():
  """Random weights large enough that the distributions are far from uniform."""
  return decoder.init(STUDENT, jax.random.key(0), scale=0.6)


@pytest.fixture(scope="session")
def teacher():
  return decoder.init(TEACHER, jax.random.key(1), scale=0.5)


@pytest.fixture(scope="session")
def prompts() -> Batch:
  """Four prompts of 5, 3, 1 and 4 tokens in six columns."""
  rng = np.random.default_rng(0)
  mask = np.zeros((4, 6), bool)
  for row, length in enumerate((5, 3, 1, 4)):
    mask[row, -length:] = True
  return Batch(prompt=jnp.asarray(np.where(mask, rng.integers(2, 37, mask.shape), 0)), prompt_mask=jnp.asarray(mask))
