"""What is not done twice: finished runs, and analyses of the same runs; and workdirs of another config."""

import hashlib
import json

import pytest

from opd_jax import config as configs
from opd_jax.errors import InputError
from opd_jax.runtime import workdir as workdirs
from opd_jax.studies import run, students
from tests.helpers.synthetic_study import finished_opd


@pytest.fixture
def opd(tmp_path):
  """The arm OPD, whose workdir stands in tmp_path as a study leaves it."""
  return finished_opd(tmp_path, seed=20)


def test_the_same_config_passes(opd, tmp_path):
  run.check_all([opd], [20, 21], tmp_path)
  run.check_all([opd], [20], tmp_path, {"compile_cache": "elsewhere"})


def test_other_evaluations_make_another_run_of_a_study(opd, tmp_path):
  """A run may change them on the way; a study compares by them."""
  with pytest.raises(InputError, match=r"belongs to another config: eval.k: 1 -> 4"):
    run.check_all([opd], [20], tmp_path, {"eval.k": 4})


def test_a_run_is_done_with_its_last_evaluation_and_checkpoint(opd, tmp_path):
  path = tmp_path / "runs" / "opd" / "seed20"
  assert run.done(path)
  (path / "checkpoints" / "60").rmdir()
  assert not run.done(path)
  (path / "checkpoints" / "60").mkdir()
  lines = (path / "metrics.jsonl").read_text().splitlines()
  (path / "metrics.jsonl").write_text("\n".join(lines[:-1]))  # without the last evaluation
  assert not run.done(path)
  assert not run.done(tmp_path / "nowhere")


def test_an_analysis_is_made_again_of_other_runs(tmp_path):
  computed = []

  def compute() -> dict[str, int]:
    computed.append(0)
    return {"kl": len(computed)}

  found = [run.measure(tmp_path, "drift", 20, digest, compute)["kl"] for digest in ("a", "a", "b", "b", "a")]
  assert found == [1, 1, 2, 2, 3]


def test_the_digest_is_of_what_students_depend_on(opd):
  def digest(seed: int, **changes: object) -> str:
    return run.digest([opd.config(seed, changes)])

  assert digest(20) == digest(20, compile_cache="elsewhere")
  assert len({digest(20), digest(21), digest(20, steps=30), digest(20, batch=8)}) == 4


def test_the_digest_is_of_a_measurement_that_has_settings_too(opd):
  config = opd.config(20)
  dependencies = [configs.changed(config, tuple(key for key in workdirs.UNHASHED if key != "steps"))]
  former = hashlib.sha256(json.dumps(dependencies, sort_keys=True).encode()).hexdigest()[:16]
  assert run.digest([config]) == former, "measurements without settings are not made again"
  found = {run.digest([config], settings) for settings in (None, {"eval.k": 2}, {"eval.k": 4}, [(0.7, 0.5)])}
  assert len(found) == 4


def test_students_are_asked_again_with_other_settings(opd, tmp_path):
  asked = []

  def ask(*_) -> dict[str, int]:
    asked.append(0)
    return {"times": len(asked)}

  for settings in ({"eval.k": 2}, {"eval.k": 2}, {"eval.k": 4}):
    students.ask_all(ask, [opd], [20], tmp_path, untrained=False, settings=settings)
  assert len(asked) == 2
