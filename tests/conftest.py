"""What tests share: tiny models, and one compile cache for all test processes, those that tests start included.

XLA's expensive optimisations are off, and so are its newer emitters of fused loops, which take four times as long to
compile: compiling is most of a test's time, and no test asks how fast a program is. The short runs at the end of .ci/run
go through the command line with the optimisations on.

With OPD_JAX_TYPECHECK=1 every call is checked against its annotations, the shapes of arrays included (jaxtyping, beartype).
"""

import dataclasses
import functools
import gc
import importlib.metadata
import os
import pathlib
import tempfile
import zlib

CACHE = pathlib.Path(os.environ.get("OPD_JAX_TEST_CACHE", pathlib.Path(tempfile.gettempdir()) / "opd_jax_test_cache"))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # XLA ends a process whose flags it does not know
  QUICK = {"--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"}
  os.environ["XLA_FLAGS"] = " ".join(sorted(QUICK | set(os.environ.get("XLA_FLAGS", "").split())))

if os.environ.get("OPD_JAX_TYPECHECK") == "1":  # before the package is imported
  from jaxtyping import install_import_hook

  # Where arrays are computed with. Records in types.py also carry numpy arrays and shapes, through the same fields.
  folders = ("context", "horizon", "models", "objectives", "rollout", "training")
  install_import_hook([f"opd_jax.{folder}" for folder in folders], "beartype.beartype")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from opd_jax import config, trainer  # noqa: E402
from opd_jax.data import problems  # noqa: E402
from opd_jax.models import decoder, moe  # noqa: E402
from opd_jax.types import Batch  # noqa: E402

STUDENT = decoder.DecoderConfig(
  vocab=37, d_model=16, layers=2, heads=4, kv_heads=2, head_width=8, ff_width=24, qk_norm=True, max_positions=512
)
TEACHER = decoder.DecoderConfig(
  vocab=37,
  d_model=24,
  layers=2,
  heads=2,
  kv_heads=1,
  head_width=8,
  ff_width=32,
  qkv_bias=True,
  tied=False,
  max_positions=512,
)


def pytest_addoption(parser):
  parser.addoption(
    "--part", default="0/1", help="K/N: of N parts of the tests, chosen by their names, the one of number K"
  )


@pytest.hookimpl(tryfirst=True)  # before pytest takes out what -m leaves out
def pytest_collection_modifyitems(config, items):
  for cases in _cases(items, "few"):
    kept = cases[0].get_closest_marker("few").args[0]
    for i, item in enumerate(cases):
      if i * kept // len(cases) == (i - 1) * kept // len(cases):
        item.add_marker(pytest.mark.long)
  number, parts = map(int, config.getoption("--part").split("/"))
  kept = [item for item in items if zlib.crc32(item.nodeid.encode()) % parts == number]
  if len(kept) < len(items):
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def _cases(items, marker: str) -> list[list]:
  """The cases of each function that has the marker."""
  by_function: dict = {}
  for item in items:
    if item.get_closest_marker(marker):
      by_function.setdefault((item.parent, item.originalname), []).append(item)
  return list(by_function.values())


EXPERTS = dataclasses.replace(STUDENT, moe=moe.MoE(5, 2, renormalise=False))
HYBRID = dataclasses.replace(  # Qwen3.5
  STUDENT,
  rotary_width=4,
  zero_centred_norms=True,
  gated_attention=True,
  layer_kinds=(decoder.LayerKind(mixer="delta"), decoder.LayerKind()),
  delta=decoder.DeltaNet(key_heads=2, value_heads=4, key_width=8, value_width=6),
)
gc.set_threshold(50_000, 20, 100)  # a tenth of the time went into looking through what traced programs keep for good
FEW_PROBLEMS = 64  # of a built-in task: more than any test's run takes


@pytest.fixture(scope="session", autouse=True)
def few_problems():
  """Tokenising thousands is most of what a small run takes."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(problems, "TRAIN_PROBLEMS", FEW_PROBLEMS)
    yield


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
    # A Qwen3 each; of one layer, since a rollout is compiled layer by layer.
    cfg = dataclasses.replace(cfg, vocab=len(chain.SYMBOLS), layers=1, qk_norm=True, qkv_bias=False)
    params = decoder.init(cfg, jax.random.key(seed), scale=0.4)
    hf.write(root / role, cfg, params, pad_id=0, eos_id=1, dtype="float32")
    chain.TOKENIZER.save(root / role)
  return {role: str(root / role) for role in ("student", "teacher")}


PROGRAMS: dict = {}  # by all that is static in them, see runtime/programs.py


@pytest.fixture(scope="module")
def shared_programs():
  """Lets the runs of a file share compiled programs with each other and with other files, as those of a study do.

  For files that train the same several times, and that patch nothing that is traced.
  """
  with pytest.MonkeyPatch.context() as patch:
    for function in (trainer.train, trainer.open_run):
      others = (function.__defaults__ or ())[1:]  # behind program_cache
      patch.setattr(function, "__defaults__", (PROGRAMS, *others))
    yield


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
