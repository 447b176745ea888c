"""Every test of this folder is marked `fuzz`; `pytest -m fuzz` runs each with many more cases than the test command does."""

import os
import pathlib

import pytest

MANY = 25


def pytest_configure(config):
  if config.getoption("markexpr") == "fuzz":
    os.environ.setdefault("OPD_JAX_FUZZ_FACTOR", str(MANY))


def pytest_collection_modifyitems(items):
  for item in items:
    if pathlib.Path(__file__).parent in item.path.parents:
      item.add_marker(pytest.mark.fuzz)
