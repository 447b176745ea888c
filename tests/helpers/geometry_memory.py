"""The script with which test_geometry.py measures memory: a model with a large embedding, after a small one with the same programs.

It prints by how many bytes the peak of the process's resident memory grows, as JSON.
"""

import json
import pathlib
import resource
import sys

import ml_dtypes
import numpy as np

from opd_jax import geometry
from opd_jax.models import safetensors_io

COLUMNS, BLOCK = 64, 1 << 18
MOVED = 7  # every so many-th row


def write(directory: pathlib.Path, rows: int, moved: bool) -> None:
  directory.mkdir(parents=True)
  (directory / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
  w = np.random.default_rng(0).standard_normal((rows, COLUMNS), np.float32)
  if moved:
    w[::MOVED] += 0.5
  header = safetensors_io.make_header({"model.embed_tokens.weight": w.shape}, "BF16")
  (directory / safetensors_io.FILE).write_bytes(header + w.astype(ml_dtypes.bfloat16).tobytes())


def compare(root: pathlib.Path) -> float:
  options = {"draws": 1, "groups": ("coordinates", "spectra"), "whole": 1 << 12, "block": BLOCK}
  record = geometry.compare(str(root / "before"), str(root / "after"), **options)
  return record["whole"]["bf16"]["zero"]["value"]


def peak() -> int:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
  root = pathlib.Path(sys.argv[1])
  rows = 64 * BLOCK // COLUMNS  # whole blocks, so that both sizes have the same programs
  for name, number in (("small", 4 * BLOCK // COLUMNS), ("large", rows)):
    for side in ("before", "after"):
      write(root / name / side, number, side == "after")
  compare(root / "small")
  before = peak()
  sparsity = compare(root / "large")
  print(
    json.dumps(
      {
        "embedding_bytes": 4 * rows * COLUMNS,
        "growth_bytes": peak() - before,
        "sparsity": sparsity,
        "expected_sparsity": 1 - len(range(0, rows, MOVED)) / rows,
      }
    )
  )
