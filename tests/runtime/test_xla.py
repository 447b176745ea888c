"""Flags for accelerators: the user's environment wins, and a machine without a GPU is left alone."""

import os
import subprocess
import sys

import pytest

from opd_jax.runtime import xla


@pytest.fixture
def environment(monkeypatch):
  for name in ("XLA_FLAGS", "OPD_JAX_XLA", "JAX_PLATFORMS", *xla.GPU_ENVIRONMENT):
    monkeypatch.setenv(name, "")
    monkeypatch.delenv(name)
  monkeypatch.setattr(xla, "has_gpu", lambda: True)
  return monkeypatch


def test_what_the_user_says_stays(environment):
  environment.setenv("XLA_FLAGS", "--xla_gpu_enable_latency_hiding_scheduler=false --xla_other=1")
  environment.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
  xla.configure()
  assert os.environ["XLA_FLAGS"] == "--xla_gpu_enable_latency_hiding_scheduler=false --xla_other=1"
  assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5"


@pytest.mark.parametrize("name", ["OPD_JAX_XLA=off", "JAX_PLATFORMS=cpu"])
def test_nothing_is_set_where_it_is_not_wanted(name, environment):
  environment.setenv(*name.split("="))
  xla.configure()
  assert "XLA_FLAGS" not in os.environ


def test_xla_knows_every_flag(environment):
  """XLA ends a process whose flags it does not know."""
  xla.configure()
  assert "latency_hiding" in os.environ["XLA_FLAGS"]
  command = "import jax; jax.config.update('jax_platforms', 'cpu'); print(jax.numpy.ones(2).sum())"
  done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, env=os.environ, check=False)
  assert done.stdout.strip() == "2.0", done.stderr
