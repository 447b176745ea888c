"""Runs Python in a process with eight fake CPU devices, since a process cannot change its devices."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run_on_eight_devices(*arguments: str | pathlib.Path, optimised: bool = False) -> str:
  """Standard output of `python ARGUMENTS...`, run in the repository's root; fails with its standard error.

  Args:
    optimised: whether XLA optimises as it does outside the tests (see conftest.py).
  """
  env = os.environ | with_devices(8)
  if optimised:
    env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    env.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)
  command = [sys.executable, *map(str, arguments)]
  done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, check=False)
  assert done.returncode == 0, done.stderr
  return done.stdout


def with_devices(number: int) -> dict[str, str]:
  """What the environment of a process says for it to have so many fake CPU devices, beside its other XLA flags."""
  flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={number}"
  return {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def json_from_eight_devices(module: str, *arguments: str | pathlib.Path, optimised: bool = False) -> Any:
  """The JSON value that `python -m MODULE ARGUMENTS...` prints as its last line."""
  return json.loads(run_on_eight_devices("-m", module, *arguments, optimised=optimised).splitlines()[-1])
