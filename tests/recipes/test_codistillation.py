"""Two students in one run: phases, frozen tutors, gates and comments, and runs that resume in the middle of all of them."""

import dataclasses

import jax
import numpy as np
import pytest

from opd_jax import config as configs
from opd_jax import tasks
from opd_jax.context.comments import Comment, Outcome
from opd_jax.context.tutor import Commented, Tutor
from opd_jax.data import scored
from opd_jax.errors import InputError
from opd_jax.recipes.codistillation import CoDistillation
from opd_jax.trainer import open_run, train, train_run
from tests.helpers.runs import read, recorded_contexts, without_time

pytestmark = pytest.mark.usefixtures("shared_programs", "some_are_right")
TEMPLATES = {  # of the symbols that the built-in task has
  "context.template": "{prompt}{solution}{feedback}=",
  "context.solution_template": ":{text}",
  "context.feedback_template": ">{text}",
  "comment.template": "{prompt}{response}=",
  "comment.anchor": "",
}
SIZES = {
  "batch": 4,
  "horizon.max": 8,
  "rollouts_per_prompt": 2,
  "optimizer.lr": 1e-2,
  "eval.every": 8,
  "eval.prompts": 4,
  "eval.batch": 4,
  "checkpoint.every": 1,
  "checkpoint.keep": 20,
  "log.tensorboard": False,
  "log.samples": 0,
  "compile_cache": "off",
  "log.bins": 4,
  "steps": 8,
  "data.max_prompt": 16,
  "context.max_tokens": 48,
  "context.widths": 0.0,
  "context.feedback": "always",
  "context.kind": "feedback",
  "teacher": "initial",
  "teacher_update.kind": "ema",
  "teacher_update.rate": 0.5,
  "codistillation.phase_steps": 2,
  "codistillation.gate": "always",
  "codistillation.validation_prompts": 4,
  "codistillation.validation_k": 1,
  "comment.max_tokens": 6,
  "comment.max_prompt": 32,
}


@pytest.fixture
def some_are_right(monkeypatch):
  """Random weights never answer right."""
  for name in ("chain", "operators"):
    monkeypatch.setitem(tasks.VERIFIERS, name, lambda response, answer, **_: sum(map(ord, response)) % 2 == 0)


@pytest.fixture
def config(tiny):
  def make(**changes):
    models = {"student": tiny["student"], "codistillation.peer": tiny["teacher"]}
    return configs.override(configs.default("codistillation"), models | SIZES | TEMPLATES | changes)

  return make


@pytest.mark.long
def test_students_take_turns_and_tutors_stand_still(config, tmp_path):
  states = []
  train(config(), tmp_path / "w", on_step=lambda run, experience, metrics: states.append(jax.device_get(run.state)))
  records = read(tmp_path / "w", "train")
  assert [r["model"] for r in records] == ["student", "student", "peer", "peer"] * 2
  assert [r["round"] for r in records] == [0] * 4 + [1] * 4
  assert {r["model"] for r in records[1:] if r["with_context"]} == {"student", "peer"}
  assert [("gate" in r) for r in records] == [True, False, False, False] * 2
  for before, after, record in zip(states, states[1:], records[1:], strict=False):
    idle = "peer" if record["model"] == "student" else "student"
    assert same(before["students"][idle], after["students"][idle])
    active = before["students"][record["model"]].params, after["students"][record["model"]].params
    assert same(*active) == (record["with_context"] == 0)
  for before, after, record in zip(states, states[1:], records[1:], strict=False):
    assert same(before["tutors"], after["tutors"]) == (record["step"] != 5), "copied at the beginning of a round"
  assert same(states[4]["tutors"]["peer"], states[3]["students"]["peer"].params)


@pytest.mark.long
def test_tutors_may_be_copied_at_each_phase(config, tmp_path):
  states = []
  changes = {"codistillation.snapshot": "phase", "steps": 4}
  train(config(**changes), tmp_path / "w", on_step=lambda run, *_: states.append(jax.device_get(run.state)))
  assert same(states[2]["tutors"]["student"], states[1]["students"]["student"].params)


@pytest.mark.long
@pytest.mark.parametrize(
  ("adapters", "stops"),
  [
    (False, (3,)),
    pytest.param(False, (4, 5), marks=pytest.mark.long),
    pytest.param(True, (3,), marks=pytest.mark.long),
  ],
)
def test_killed_and_resumed_is_uninterrupted(adapters, stops, config, tmp_path):
  """In the middle of a phase, before a round's scoring, and behind it."""
  changes = {"lora.rank": 2, "lora.alpha": 4.0} if adapters else {}
  whole = train(config(**changes), tmp_path / "whole")
  records = [without_time(r) for r in read(tmp_path / "whole", "train")]
  for stop in stops:
    path = tmp_path / f"until {stop}"
    train(config(steps=stop, **changes), path)
    again = open_run(config(**changes), path)
    assert again.resumed_from == stop
    train_run(again)
    assert again.recipe.history == whole.recipe.history
    assert [without_time(r) for r in read(path, "train")] == records
    assert same(whole.state, again.state)


@pytest.mark.long
def test_a_comment_reaches_the_row_that_it_is_about(config, tmp_path, monkeypatch):
  """Row i is shown comment i, another prompt's only with `shuffle`, another of its prompt's with `shuffle_within`."""
  shown = {}

  def numbered(self, params, prompts, responses, key, wanted=None):
    return Commented([Comment(str(i), Outcome.KEPT) for i in range(len(prompts))], 0)

  monkeypatch.setattr(Tutor, "__call__", numbered)
  for key in ("none", "shuffle", "shuffle_within"):
    changes = {"context.demonstration": False} | ({f"codistillation.{key}": True} if "shuffle" in key else {})
    run = open_run(config(steps=1, **changes), tmp_path / key)
    contexts = recorded_contexts(run.recipe.students["student"])
    train_run(run)
    context, tokenizer = contexts[0][0], run.inputs.tokenizer
    prompt, mask = np.asarray(context.prompt), np.asarray(context.prompt_mask)
    texts = [tokenizer.decode(row[m]).replace(" ", "") for row, m in zip(prompt, mask, strict=True)]
    shown[key] = [int(text.rsplit(">", 1)[1].rstrip("=")) for text in texts]
  assert shown == {
    "none": list(range(8)),
    "shuffle": [6, 7, 0, 1, 2, 3, 4, 5],
    "shuffle_within": [1, 0, 3, 2, 5, 4, 7, 6],
  }


@pytest.mark.long
def test_each_gate_is_the_tutors_own(config, tmp_path, monkeypatch):
  """The one that is behind is silent, and the other one comments."""
  monkeypatch.setattr(
    "opd_jax.recipes.codistillation.CoDistillation._score",
    lambda self, run, name, params: {"": {"student": 1.0, "peer": 0.5}[name]},
  )
  changes = {"codistillation.gate": "gap", "codistillation.tau": 0.2, "log.every": 2}
  train(config(steps=4, **changes), tmp_path / "w")
  first, second = read(tmp_path / "w", "train")
  assert first["gate"]["open"] == {"student": True, "peer": False}
  assert first["gate"]["gap"] == {"student": 0.0, "peer": 0.5}
  assert "gate" not in second, "it stands in the first record of its round"
  assert (first["model"], sum(first["comments"].values())) == ("student", 0)
  assert (second["model"], sum(second["comments"].values())) == ("peer", 8)


@pytest.mark.long
@pytest.mark.parametrize(
  ("changes", "is_open"),
  [
    ({"codistillation.gate": "never"}, (False, False)),
    ({"codistillation.gate": "always"}, (True, True)),
    ({"codistillation.gate": "gap", "codistillation.tau": 1000.0}, (True, True)),
  ],
)
def test_closed_gates_let_nothing_through(changes, is_open, config, tmp_path):
  run = train(config(steps=4, **changes), tmp_path / "w")
  assert tuple(run.recipe.history[0]["open"].values()) == is_open
  for record in read(tmp_path / "w", "train"):
    assert sum(record["comments"].values()) == (8 if all(is_open) else 0)
    assert all(record["comments"].get(outcome.value, 0) <= 8 for outcome in Outcome)
    assert (record["with_feedback"] > 0) == (record["comments"].get("kept", 0) > 0)


@pytest.mark.long
def test_both_are_evaluated_and_named(config, tmp_path):
  run = train(config(steps=4), tmp_path / "w")
  assert [(r["step"], r["model"]) for r in read(tmp_path / "w", "eval")] == [
    (s, m) for s in (0, 4) for m in ("student", "peer")
  ]
  specs = {name: run.recipe.spec(name) for name in run.models()}
  assert specs["peer"].name == run.config.codistillation.peer


@pytest.mark.long
def test_written_rollouts_name_their_student_and_what_its_teacher_read(config, tmp_path, monkeypatch):
  def every(self, params, prompts, responses, key, wanted=None):
    return Commented([Comment("7", Outcome.KEPT) for _ in prompts], 0)

  monkeypatch.setattr(Tutor, "__call__", every)
  train(config(steps=4, **{"log.rollouts": 1, "log.every": 2, "context.demonstration": False}), tmp_path / "w")
  found = scored.read(tmp_path / "w" / scored.ROLLOUTS)
  assert [response.of for response in found] == ["student, training step 2", "peer, training step 4"]
  assert all(response.teacher_prompt.replace(" ", "").endswith(">7=") for response in found)


def test_two_of_one_architecture_share_their_programs(config, tiny, tmp_path):
  run = open_run(config(**{"codistillation.peer": tiny["student"]}), tmp_path / "same")
  other = open_run(config(), tmp_path / "other")
  assert {shape.model for shape in run.recipe.shapes(run, 0)} == {"student"}
  assert {shape.model for shape in other.recipe.shapes(other, 0)} == {"student", "peer"}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"codistillation.peer": ""}, "config.codistillation.peer is empty"),
    ({"teacher": "builtin:teacher", "teacher_update.kind": "frozen"}, "each student is its own teacher"),
    ({"comment.template": "{prompt}"}, "config.comment.template has no {response}"),
    ({"comment.anchor": "<c>"}, "config.comment.anchor is '<c>'"),
    ({"codistillation.shuffle": True, "batch": 1}, "there is no other comment to give a row"),
    ({"codistillation.shuffle_within": True, "rollouts_per_prompt": 1}, "there is no other comment to give a row"),
  ],
)
def test_configs_that_cannot_be_meant(changes, message, config, tmp_path):
  with pytest.raises(InputError, match=message.replace("{", r"\{")):
    open_run(config(**changes), tmp_path / "w")


@pytest.mark.long
def test_a_tutor_of_one_domain_comments_there_alone(config, tmp_path):
  """Which domain is whose is for the scores of the round to say."""
  changes = {
    "data.path": "task:operators",
    "codistillation.gate": "domain",
    "steps": 2,
    "codistillation.phase_steps": 1,
  }
  changes |= {"codistillation.validation_prompts": 16, "comment.max_prompt": 48, "context.max_tokens": 64}
  run = train(config(**changes), tmp_path / "w")
  (now,) = run.recipe.history
  assert set(now["scores"]["student"]) == {"sums", "differences"}
  for record in read(tmp_path / "w", "train"):
    tutor = "peer" if record["model"] == "student" else "student"
    better = {d for d, score in now["scores"][tutor].items() if score >= now["scores"][record["model"]][d]}
    assert (record["comments"].get("not_asked", 0) == 0) == (len(better) == 2)
    assert (record["comments"].get("not_asked", 0) == 8) == (now["open"][tutor] and not better)


def test_a_gate_by_domain_needs_domains(config, tmp_path):
  with pytest.raises(InputError, match="the problems to score by have no domains"):
    train(config(**{"codistillation.gate": "domain"}), tmp_path / "w")


def test_too_few_problems_to_choose_by(config, tmp_path, monkeypatch):
  data = tmp_path / "data.jsonl"
  data.write_text('{"prompt": "1:1+1=", "answer": "2"}\n' * 6)
  changes = {"data.path": str(data), "eval.path": str(data), "data.verifier": "exact"}
  with pytest.raises(InputError, match="6 problems, and 4 to choose by are wanted behind the first 4"):
    train(config(**changes), tmp_path / "w")


def test_one_adapter_is_not_two(config, tmp_path):
  specs = open_run(config(steps=1), tmp_path / "w").recipe.specs
  c = configs.override(specs.config, {"lora.path": "somewhere", "lora.rank": 2})
  with pytest.raises(InputError, match="two students would have it"):
    CoDistillation(dataclasses.replace(specs, config=c))


def test_problems_to_choose_by_are_asked_for(config, tmp_path):
  data = tmp_path / "data.jsonl"
  data.write_text('{"prompt": "1:1+1=", "answer": "2"}\n' * 6)
  with pytest.raises(InputError, match=r"config.codistillation.validation is empty"):
    train(config(**{"data.path": str(data), "data.verifier": "exact", "eval.every": 0}), tmp_path / "w")


def test_a_directorys_mask_is_not_the_peers(config, tiny, tmp_path):
  with pytest.raises(InputError, match=r"name the peer's own in config.codistillation.peer_mask_from"):
    open_run(config(**{"subnetwork.mask": "top", "subnetwork.mask_from": tiny["teacher"]}), tmp_path / "w")


def same(a, b) -> bool:
  return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
