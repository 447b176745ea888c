"""One small comparison for all tests of reports."""

import pytest

from tests.helpers.report_runs import workdir


@pytest.fixture(scope="session")
def study(tmp_path_factory):
  """Three arms of three seeds; targets at 0.95 x 0.96 = 0.912."""
  root = tmp_path_factory.mktemp("study")
  opd = {"seconds": 4.0, "tokens": 1000}
  topd = {"seconds": 1.0, "tokens": 100, "kind": "truncated", "ratio": 0.1}
  popd = {"seconds": 2.0, "tokens": 400, "kind": "progressive", "start": 10}
  return [
    workdir(root / "t0", [0.1, 0.5, 0.92, 0.93], seed=0, **topd),
    workdir(root / "t1", [0.1, 0.95, 0.90, 0.91], seed=1, **topd),
    workdir(root / "t2", [0.1, 0.5, 0.6, 0.915], seed=2, **topd),
    workdir(root / "o0", [0.1, 0.5, 0.8, 0.92], seed=0, **opd),
    workdir(root / "o1", [0.1, 0.5, 0.93, 0.96], seed=1, **opd),
    workdir(root / "o2", [0.1, 0.5, 0.90, 0.94], seed=2, **opd),
    workdir(root / "p0", [0.1, 0.92, 0.93, 0.94], seed=0, **popd),
    workdir(root / "p1", [0.1, 0.3, 0.6, 0.9], seed=1, **popd),
    workdir(root / "p2", [0.1, 0.3, 0.6, 0.9], seed=2, **popd),
  ]
