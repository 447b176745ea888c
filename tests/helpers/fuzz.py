"""How the tests of tests/fuzz draw their cases: a fixed number each, the same ones at every run."""

import os
from collections.abc import Callable

from hypothesis import HealthCheck, settings


def cases(number: int) -> Callable:
  """Makes hypothesis try `number` cases, times OPD_JAX_FUZZ_FACTOR, which `pytest -m fuzz` sets to 25."""
  return settings(
    max_examples=number * int(os.environ.get("OPD_JAX_FUZZ_FACTOR", "1")),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
  )
