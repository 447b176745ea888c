"""One synthetic study for all tests, as small as the pictures allow."""

import pytest

from opd_jax.studies.results import Results
from tests.helpers import synthetic_study


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> Results:
  """Three seeds of every arm, 40 steps each."""
  out = synthetic_study.study(tmp_path_factory.mktemp("study"), seeds=range(3), steps=40)
  return Results(out, range(3))
