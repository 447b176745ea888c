"""Runs with a verifier of the user's own: what it costs that it hangs, and what is left of it."""

import pathlib
import re

import numpy as np
import pytest

import opd_jax
from opd_jax import config, inputs
from opd_jax.evaluation.single_turn import verify_all
from opd_jax.runtime import workdir
from opd_jax.runtime.programs import ProgramCache
from opd_jax.tasks.problem import Response
from opd_jax.trainer import open_run, train, train_run
from tests.helpers import own_verifiers
from tests.helpers.runs import read, without_time

REWARDED = {"rollouts_per_prompt": 2, "mixture.reward": 0.5}
HANGS = """
import os, pathlib, time

def verify(response, answer):
  with open("calls", "a") as f:
    f.write(f"{os.getpid()}\\n")
  calls = len(pathlib.Path("calls").read_text().split())
  if calls in (1, 4 + 3):  # one of the evaluation's four answers, one of the first step's eight
    time.sleep(1000)
  if calls == 4 + 5:
    os._exit(1)
  return (len(response) + sum(map(ord, answer))) % 2 == 0
"""
EVEN = """
def verify(response, answer):
  return (len(response) + sum(map(ord, answer))) % 2 == 0

def brief(response, answer, *, ended):
  return 0.5 - len(response) / 64 if ended else -0.5
"""


@pytest.fixture(scope="module")
def programs() -> ProgramCache:
  """The runs differ by nothing that is compiled."""
  return {}


def test_a_run_survives_a_verifier_that_hangs_and_ends(small, tmp_path, monkeypatch, capfd, programs):
  name = own_verifiers.write(tmp_path, monkeypatch, "own_hangs", HANGS)
  changes = {"data.verifier": f"{name}:verify", "reward.workers": 1, "reward.timeout": 1.0, "eval.every": 2}
  train(small("opd", steps=2, **REWARDED | changes), tmp_path / "w", programs)
  first, last = read(tmp_path / "w", "train")
  assert (first["verifier_timeouts"], first["verifier_errors"]) == (1, 1)
  assert (last["verifier_timeouts"], last["verifier_errors"]) == (0, 0)
  before, after = read(tmp_path / "w", "eval")
  assert before["verifier_timeouts"] == 1
  assert "verifier_timeouts" not in after
  assert (
    capfd.readouterr().err.count("failed on a response, which counts as wrong (its process ended with status 1)") == 1
  )
  pids = set((tmp_path / "calls").read_text().split())
  assert len(pids) == 4, "one, and one after each that was killed or ended"
  assert not [pid for pid in pids if pathlib.Path(f"/proc/{pid}").exists()]


def test_processes_change_no_bit_of_a_run(small, tmp_path, monkeypatch, programs):
  name = own_verifiers.write(tmp_path, monkeypatch, "own_even", EVEN)
  both = {"reward.verifiers": (f"{name}:verify", f"{name}:brief"), "reward.weights": (1.0, 0.25)}
  runs, records = [], []
  for workers in (0, 2):
    changes = {"data.verifier": f"{name}:verify", "reward.workers": workers, "eval.every": 2}
    runs.append(train(small("opd", steps=2, **REWARDED | both | changes), tmp_path / str(workers), programs))
    records.append([without_time(r) for r in read(tmp_path / str(workers))])
  assert records[0] == records[1]
  np.testing.assert_array_equal(runs[0].state.params["embed"], runs[1].state.params["embed"])
  step = next(r for r in records[0] if r["kind"] == "train")
  assert step["reward"] == pytest.approx(step[f"reward/{name}:verify"] + 0.25 * step[f"reward/{name}:brief"], abs=1e-6)
  assert 0 < step[f"reward/{name}:verify"] < 1


def test_masked_rows_are_left_out_of_the_mean_of_the_reward(small, tmp_path, monkeypatch, programs):
  name = own_verifiers.write(tmp_path, monkeypatch, "own_even", EVEN)
  changes = {"data.verifier": f"{name}:verify", "reward.overlong": "mask", "eval.every": 0}
  run, credits, experiences = open_run(small("opd", steps=1, **REWARDED | changes), tmp_path / "w", programs), [], []
  credit_of = run.recipe._credit_of

  def recorded(*args):
    credits.append(credit_of(*args)[0])
    return credit_of(*args)

  monkeypatch.setattr(run.recipe, "_credit_of", recorded)
  train_run(run, on_step=lambda run, experience, metrics: experiences.append(experience))
  ended = np.asarray(experiences[0].rollout.ended)
  assert 0 < ended.mean() < 1
  np.testing.assert_array_equal(credits[0].counted, ended)
  assert np.asarray(credits[0].advantage)[~ended].any(), "they count for the others of their group"


def example() -> str:
  """The module of the page."""
  page = (pathlib.Path(opd_jax.__file__).parent / "docs" / "own_models_and_data.md").read_text(encoding="utf-8")
  found = re.search(r"In `length.py`[\s\S]*?\n\n((?:    .*\n|\n)+)", page)
  assert found
  return found[1]


def test_the_verifier_of_the_page_works_in_an_evaluation(small, tmp_path, monkeypatch):
  own_verifiers.write(tmp_path, monkeypatch, "length", example())
  problems = tmp_path / "test.jsonl"
  problems.write_text('{"prompt": "1:1+1=", "answer": "so #### 2"}\n' * 2)
  c = small("opd", **{"data.verifier": "length:verify", "eval.path": str(problems), "data.chat_template": False})
  found = inputs.load(c).evaluation
  assert found is not None
  assert found.problems.answers == ["so #### 2"] * 2, "as they are written"
  texts = ("It is 2.", "Well, " * 60 + "it is 2.", "It is 3.")
  assert verify_all(found.verify, [Response(text) for text in texts], ["2"] * 3).correct.tolist() == [
    True,
    False,
    False,
  ]


def test_a_resumed_run_may_have_other_processes():
  """Their number changes no step."""
  assert "reward.workers" in workdir.FREE
  c = config.default()
  assert workdir.digest(c, {}) == workdir.digest(config.override(c, {"reward.workers": 3}), {})
