"""Runs whose loss has more than one term or teacher: what reaches the update, and what the record says of it."""

import json

import jax
import numpy as np
import pytest

from opd_jax import tasks
from opd_jax.errors import InputError
from opd_jax.objectives import advantage
from opd_jax.rollout.generate import decode
from opd_jax.trainer import open_run, train, train_run
from tests.helpers.runs import read, without_time

pytestmark = pytest.mark.usefixtures("shared_programs")

ALL_TERMS = {
  "horizon.ratio": 0.5,
  "eval.every": 0,
  "rollouts_per_prompt": 2,
  "updates_per_rollout": 2,
  "objective.support": "sampled",
  "objective.discount": 0.9,
  "mixture.reward": 0.5,
  "mixture.initial": 0.1,
  "weights.kind": "gap",
}


@pytest.fixture
def even_is_right(monkeypatch):
  """Random weights never answer right, so here a response that is `even` with its answer is."""
  monkeypatch.setitem(tasks.VERIFIERS, "chain", even)


def even(response: str, answer: str, *, ended: bool = True, prompt: str = "") -> bool:
  return (len(response) + sum(map(ord, answer))) % 2 == 0


@pytest.mark.long
@pytest.mark.usefixtures("even_is_right")
def test_every_term_at_once_and_resumed(small, tmp_path):
  """Divergence, reward and initial student with importance weights; a run that stopped goes on bit for bit."""
  whole = open_run(small("topd", steps=4, **ALL_TERMS), tmp_path / "whole")
  train_run(whole)
  records = read(tmp_path / "whole", "train")
  assert any(0 < r["reward"] < 1 for r in records)
  assert all(r["importance"] > 0 and r["weight"] > 1 and r["initial_kl"] >= 0 for r in records)
  assert int(whole.state.step) == 4 * 2
  assert records[-1]["initial_kl"] > 1e-4
  train(small("topd", steps=2, **ALL_TERMS), tmp_path / "parts")
  again = open_run(small("topd", steps=4, **ALL_TERMS), tmp_path / "parts")
  train_run(again)
  assert [without_time(r) for r in read(tmp_path / "parts", "train")] == [without_time(r) for r in records]
  jax.tree.map(np.testing.assert_array_equal, again.state.params, whole.state.params)


@pytest.mark.long
@pytest.mark.parametrize("std", [False, True])
@pytest.mark.usefixtures("even_is_right")
def test_advantages_are_relative_to_the_other_rollouts_of_a_prompt(std, small, tmp_path, monkeypatch):
  given, experiences, of_rewards = [], [], advantage.of_rewards

  def recorded(*args, **kwargs):
    given.append(of_rewards(*args, **kwargs))
    return given[-1]

  monkeypatch.setattr(advantage, "of_rewards", recorded)
  config = small("topd", steps=1, **ALL_TERMS | {"mixture.reward_std": std})
  run = train(config, tmp_path / "w", on_step=lambda run, experience, metrics: experiences.append(experience))
  (experience,) = experiences
  rollout, tokenizer = experience.rollout, run.inputs.tokenizer
  texts = decode(tokenizer, np.asarray(rollout.response), np.asarray(rollout.mask), run.inputs.sampling.stop_ids)
  answers = [run.inputs.train.answers[i] for i in experience.index for _ in range(2)]
  right = np.array([even(*pair) for pair in zip(texts, answers, strict=True)], float).reshape(4, 2)
  assert 0 < right.mean() < 1
  spread = right.std(axis=1, keepdims=True) + 1e-6 if std else 1
  want = (right - right.mean(axis=1, keepdims=True)) / spread
  np.testing.assert_allclose(given[0], want.reshape(-1), rtol=1e-6)


@pytest.fixture
def problems(tmp_path):
  """Eight prompts that name their teachers."""
  path = tmp_path / "train.jsonl"
  lines = [{"prompt": f"1:{i % 10}+1=", "answer": "1", "who": "teacher" if i % 2 else "0"} for i in range(8)]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return str(path)


def of_two(tiny, path, **changes):
  teachers = (tiny["student"], tiny["teacher"])
  return {"teachers": teachers, "data.path": path, "data.chat_template": False, "eval.every": 0} | changes


@pytest.mark.long
def test_every_example_has_the_teacher_that_its_line_names(small, tiny, problems, tmp_path):
  chosen = {"data.teacher_field": "who", "horizon.ratio": 0.5}
  run = open_run(small("topd", steps=2, **of_two(tiny, problems, **chosen)), tmp_path / "w")
  assert run.inputs.teacher_weight is not None
  np.testing.assert_array_equal(run.inputs.teacher_weight, [[1, 0], [0, 1]] * 4)
  experiences = []
  train_run(run, on_step=lambda run, experience, metrics: experiences.append(experience))
  last = experiences[-1]
  np.testing.assert_array_equal(last.prompts.teacher_weight, run.inputs.teacher_weight[last.index])
  assert all(r["kl"] > 0 for r in read(tmp_path / "w", "train"))


@pytest.mark.long
def test_mixed_teachers(small, tiny, problems, tmp_path):
  kl = {}
  for weights in ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0)):
    changes = of_two(tiny, problems, teacher_weights=weights, **{"horizon.ratio": 0.5})
    train(small("topd", steps=1, **changes), tmp_path / str(weights))
    kl[weights] = read(tmp_path / str(weights), "train")[0]["kl"]
  assert abs(kl[1.0, 0.0]) < 1e-6 < kl[0.5, 0.5] < kl[0.0, 1.0]


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"data.teacher_field": "teacher"}, r"no field 'teacher'.*data.teacher_field"),
    ({"data.teacher_field": "who", "teacher_weights": (0.5, 0.5)}, "set only one of the two"),
    ({"data.teacher_field": "who", "data.path": "task:chain"}, "whose problems name no teacher"),
    ({"teacher_weights": (1.0, -1.0)}, "teacher_weights holds -1.0; it has to be"),
    ({"teacher_weights": (1.0,)}, "one weight of 0 or more for each of the 2"),
  ],
)
def test_teachers_that_do_not_fit(changes, says, small, tiny, problems, tmp_path):
  with pytest.raises(InputError, match=says):
    open_run(small("topd", **of_two(tiny, problems, **changes, **{"horizon.ratio": 0.5})), tmp_path / "w")
  assert not (tmp_path / "w").exists()


def test_teacher_that_no_directory_has(small, tiny, tmp_path):
  path = tmp_path / "one.jsonl"
  path.write_text(json.dumps({"prompt": "1:1+1=", "answer": "2", "who": "nobody"}) + "\n")
  with pytest.raises(InputError, match=r"the teacher 'nobody'.*0 \(student\), 1 \(teacher\)"):
    open_run(small("topd", **of_two(tiny, str(path), **{"data.teacher_field": "who"})), tmp_path / "w")


def test_reward_needs_answers(small, tmp_path):
  path = tmp_path / "one.jsonl"
  path.write_text(json.dumps({"prompt": "1+1="}) + "\n")
  changes = {"data.path": str(path), "mixture.reward": 1.0, "rollouts_per_prompt": 2, "eval.every": 0}
  with pytest.raises(InputError, match=r"one.jsonl:1: there is no field 'answer'"):
    open_run(small("topd", **changes), tmp_path / "w")
