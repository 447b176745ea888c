"""What tests share: tiny models, and one compile cache for all test processes, those that tests start included.

XLA's expensive optimisations are off: compiling is most of a test's time, and no test asks how fast a program is. The
short runs at the end of .ci/run go through the command line with the optimisations on.
"""

import dataclasses
import functools
import os
import pathlib
import tempfile

CACHE = pathlib.Path(os.environ.get("OPD_JAX_TEST_CACHE", pathlib.Path(tempfile.gettempdir()) / "opd_jax_test_cache"))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from opd_jax import config  # noqa: E402
from opd_jax.models import decoder  # noqa: E402
from opd_jax.types import Batch  # noqa: E402

STUDENT = decoder.DecoderConfig(
  vocab=37, width=16, layers=2, heads=4, kv_heads=2, head_width=8, ff_width=24, qk_norm=True, max_positions=512
)
TEACHER = decoder.DecoderConfig(
  vocab=37,
  width=24,
  layers=2,
  heads=2,
  kv_heads=1,
  head_width=8,
  ff_width=32,
  qkv_bias=True,
  tied=False,
  max_positions=512,
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


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> dict[str, str]:
  """Directories of a student and a teacher of a few thousand random weights that read the built-in task."""
  from opd_jax.models import hf
  from opd_jax.tasks import chain

  root = tmp_path_factory.mktemp("tiny")
  for role, cfg, seed in (("student", STUDENT, 0), ("teacher", TEACHER, 1)):
    cfg = dataclasses.replace(cfg, vocab=len(chain.SYMBOLS), qk_norm=True, qkv_bias=False)  # a Qwen3 each
    params = decoder.init(cfg, jax.random.key(seed), scale=0.4)
    hf.write(root / role, cfg, params, pad_id=0, eos_id=1, dtype="float32")
    chain.save_tokenizer(root / role)
  return {role: str(root / role) for role in ("student", "teacher")}


def small_config(tiny: dict[str, str], method: str = "popd", **changes):
  """A six-step run of four rollouts a step; POPD goes through three widths."""
  base = {
    "student": tiny["student"],
    "teacher": tiny["teacher"],
    "steps": 6,
    "batch": 4,
    "horizon.max": 20,
    "eval.every": 3,
    "eval.prompts": 4,
    "eval.batch": 4,
    "checkpoint.every": 2,
    "compile_cache": "off",  # the tests share a cache of their own
    "optimizer.lr": 1e-2,
    "log.bins": 5,
    "log.tensorboard": False,
  }
  if method == "popd":
    base |= {"horizon.start": 4, "horizon.growth": 3, "horizon.quantum": 8}
  return config.override(config.load(method), base | changes)


@pytest.fixture
def small(tiny):
  """`small_config` of the tiny models: small("topd", steps=4, **{"horizon.max": 24})."""
  return functools.partial(small_config, tiny)
