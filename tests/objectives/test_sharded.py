"""A head whose vocabulary lies on several devices. In a process of its own, which has eight of them."""

import json
import os
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def found():
  env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, "-m", "tests.objectives.sharded"]
  done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
def test_eight_devices_give_what_one_gives(found):
  """Sum, readings and gradients of every objective; nine ids on two and on eight devices, which neither divides."""
  assert len(found["errors"]) > 20
  assert max(found["errors"].values()) < 2e-5, found["errors"]


@pytest.mark.long
def test_no_chunk_moves_logits_or_a_heads_gradient(found):
  """Eight tokens a chunk and 512 ids a device: inside the loop only numbers per token travel, and chosen ids."""
  assert found["collectives"].keys() == {"chunk=8", "support=both_topk k=4 chunk=8"}
  assert 0 < max(found["collectives"].values()) <= 8 * 4 * 2 * 2, found["collectives"]
