"""Eight fake devices give what one gives. In processes of their own, since a process cannot change its devices."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from opd_jax import mesh as meshes
from opd_jax.errors import InputError


def run(tiny, path, devices: int, *overrides: str) -> list[dict]:
  """A three-step POPD run through the command line; its metrics."""
  command = [
    *(sys.executable, "-m", "opd_jax.train", "--config=popd", f"--workdir={path}"),
    *(f"--config.student={tiny['student']}", f"--config.teacher={tiny['teacher']}"),
    *("--config.steps=3", "--config.batch=8", "--config.horizon.max=16", "--config.horizon.start=6"),
    *("--config.horizon.growth=5", "--config.horizon.quantum=16", "--config.eval.every=3", "--config.eval.prompts=8"),
    *("--config.eval.temperature=0.0", "--config.eval.batch=8", "--config.log.tensorboard=False"),
    *("--config.optimizer.lr=0.01", "--config.compile_cache=off", *overrides),
  ]
  env = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
  assert done.returncode == 0, done.stderr
  return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
  return run(tiny, tmp_path_factory.mktemp("mesh") / "one", 1)


@pytest.mark.parametrize(
  "mesh",
  [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}],
  ids=lambda m: " x ".join(f"{k} {v}" for k, v in m.items()),
)
def test_eight_devices_give_the_losses_of_one(mesh, alone, tiny, tmp_path):
  got = run(tiny, tmp_path / "w", 8, *(f"--config.mesh.{k}={v}" for k, v in mesh.items()))
  assert [r["kind"] for r in got] == [r["kind"] for r in alone] == ["eval", "train", "train", "train", "eval"]
  for mine, theirs in zip(got, alone, strict=True):
    if mine["kind"] == "train":
      assert mine["tokens"] == theirs["tokens"]
      np.testing.assert_allclose(mine["loss"], theirs["loss"], rtol=1e-5)
      np.testing.assert_allclose(mine["grad_norm"], theirs["grad_norm"], rtol=1e-4)
    else:
      assert mine["length"] == theirs["length"], "greedy tokens differ"
  samples = [(p / "samples.jsonl").read_text() for p in (tmp_path / "w",)]
  assert samples[0]


def test_batch_has_to_divide(tiny, tmp_path):
  with pytest.raises(AssertionError, match=r"config\.batch is 12, which the 8 row shards"):
    run(tiny, tmp_path / "w", 8, "--config.batch=12")
  assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("sizes", [(0, 1, 1), (-1, -1, 1), (2, 1, 1), (-2, 1, 1)])
def test_meshes_that_cannot_be_made(sizes):
  import jax

  with pytest.raises(InputError, match=r"config\.mesh"):
    meshes.make(*sizes, devices=jax.devices()[:1])
