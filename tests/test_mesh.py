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


# Whatever sorts or gathers rows does so on each device's own.
CUT = ("--config.rollout.segment=4", "--config.rollout.shrink=(2,)", "--config.micro_batch=4", "--config.buckets=2")


@pytest.mark.parametrize(
  ("mesh", "more"),
  [({"data": 8}, ()), ({"data": 2, "fsdp": 2, "tensor": 2}, CUT)],
  ids=["data 8", "data 2 x fsdp 2 x tensor 2, segments and buckets"],
)
def test_eight_devices_give_the_losses_of_one(mesh, more, alone, tiny, tmp_path):
  got = run(tiny, tmp_path / "w", 8, *(f"--config.mesh.{k}={v}" for k, v in mesh.items()), *more)
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


def test_the_weights_of_a_rollout_are_split_over_tensor_alone():
  import jax

  from opd_jax.models import decoder
  from opd_jax.rollout import cache
  from tests.conftest import TEACHER

  mesh = meshes.make(devices=jax.devices()[:1])  # every size is divisible by 1, so every rule shows
  laid = jax.eval_shape(lambda: cache.lay_out(decoder.init(TEACHER, jax.random.key(0)), TEACHER, np.dtype("float32")))
  found = {name: tuple(s.spec) for name, s in meshes.shardings(mesh, laid, "rollout").layers[0].items()}
  assert found["qkv"] == (None, "tensor", None, None)
  assert found["qkv_bias"] == ("tensor", None, None)
  assert found["out"] == ("tensor", None, None, None)
  assert found["gate_up"] == (None, None, "tensor")
  assert found["down"] == ("tensor", None)
  assert found["attn_norm"] == (None,)


def test_batch_has_to_divide(tiny, tmp_path):
  with pytest.raises(AssertionError, match=r"config\.batch is 12, which the 8 row shards"):
    run(tiny, tmp_path / "w", 8, "--config.batch=12")
  assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("sizes", [(0, 1, 1), (-1, -1, 1), (2, 1, 1), (-2, 1, 1)])
def test_meshes_that_cannot_be_made(sizes):
  import jax

  with pytest.raises(InputError, match=r"config\.mesh"):
    meshes.make(*sizes, devices=jax.devices()[:1])
