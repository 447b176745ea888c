"""Runs with a verifier of the user's own: what it costs that it hangs, and what is left of it."""

import json
import pathlib
import re
import sys

import numpy as np
import pytest

import opd_jax
from opd_jax import config, inputs
from opd_jax.errors import InputError
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


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
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


BY_RECORD = """
from dataclasses import dataclass

@dataclass
class Test:
  at_least: "int"

def verify(response, answer, record):
  assert record["prompt"].endswith("=") and answer == str(record["answer"])
  return len(response) >= Test(**record["test"]).at_least
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_verifier_in_a_file_reads_the_records_of_the_problems(small, tmp_path, monkeypatch, programs, workers):
  """In rewards of training and in its evaluations, in the process that trains and in others."""
  monkeypatch.setattr(sys, "path", list(sys.path))
  (tmp_path / "by-record.py").write_text(BY_RECORD)
  data = tmp_path / "data.json"
  records = [{"prompt": f"1:1+{i}=", "answer": i, "test": {"at_least": 0 if i % 2 else 999}} for i in range(4)]
  data.write_text(json.dumps(records))
  changes = {"data.verifier": f"{tmp_path / 'by-record.py'}:verify", "reward.workers": workers, "eval.every": 1}
  paths = {"data.path": str(data), "eval.path": str(data)}
  run = train(small("opd", steps=1, **REWARDED | changes | paths), tmp_path / "w", programs)
  (step,), evaluations = read(tmp_path / "w", "train"), read(tmp_path / "w", "eval")
  assert (step["reward"], step["verifier_errors"]) == (0.5, 0)
  assert step["groups_by_solve_rate"] == [2, 0, 2], "by the problem, whatever the responses say"
  assert [r["accuracy"] for r in evaluations] == [0.5, 0.5]
  assert "verifier_errors" not in evaluations[0]
  saved = json.loads((tmp_path / "w" / "config.json").read_text())
  assert saved["data"]["verifier"] == changes["data.verifier"]
  run.inputs.close()


@pytest.mark.parametrize("workers", [-1, 0, 1])
def test_a_run_says_so_where_a_verifier_could_take_it_down(small, tmp_path, monkeypatch, workers):
  name = own_verifiers.write(tmp_path, monkeypatch, "own_even", EVEN)
  for changes in (REWARDED | {"eval.every": 0}, {"eval.every": 1}):
    found = inputs.load(small("opd", **changes, **{"data.verifier": f"{name}:verify", "reward.workers": workers}))
    told = [w for w in found.warnings if "runs in the process that trains" in w]
    assert len(told) == (workers == 0)
  assert not [w for w in inputs.load(small("opd", **REWARDED)).warnings if "runs in the process" in w]


def test_records_are_kept_where_a_verifier_reads_them_alone(small, tmp_path):
  data = tmp_path / "data.json"
  data.write_text('[{"prompt": "1:1+1=", "answer": "2", "picture": "..."}]')
  found = inputs.load(small("opd", **REWARDED | {"data.path": str(data), "eval.path": str(data)}))
  assert (found.train.records, found.evaluation.problems.records) == ((), ())


def test_the_pattern_of_a_config_reaches_the_processes(small, tmp_path):
  data = tmp_path / "data.jsonl"
  data.write_text('{"prompt": "1:1+1=", "answer": "2"}\n')
  regex = {"data.verifier": "regex", "data.answer_pattern": r"(\d+)!", "reward.workers": 1}
  found = inputs.load(small("opd", **regex | {"data.path": str(data), "eval.path": str(data)}))
  assert [found.evaluation.verify(text, "2") for text in ("1! 2!", "2! 3!")] == [True, False]
  found.close()
  with pytest.raises(InputError, match=r"config\.data\.answer_pattern is set, and no verifier reads it"):
    inputs.load(small("opd", **{"data.answer_pattern": "x"}))


def test_an_answer_that_is_json_is_compared_as_that(small, tmp_path):
  data = tmp_path / "data.jsonl"
  data.write_text('{"prompt": "1:1+1=", "answer": {"x": [1, true]}}\n{"prompt": "1:1+2=", "answer": "[2]"}\n')
  found = inputs.load(small("opd", **{"data.verifier": "json", "data.path": str(data), "eval.path": str(data)}))
  assert found.evaluation.problems.answers == ['{"x": [1, true]}', "[2]"]
  assert found.evaluation.verify('{"x": [1.0, true]}', found.evaluation.problems.answers[0])
  assert not [w for w in found.warnings if "can be right" in w]


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


def test_a_resumed_run_may_have_other_processes_and_another_time_limit():
  """Their number changes no step."""
  assert {"reward.workers", "reward.timeout"} <= set(workdir.FREE)
  c = config.default()
  assert workdir.digest(c, {}) == workdir.digest(config.override(c, {"reward.workers": 3}), {})
