"""The student as its own teacher: contexts from the data and from rollouts, and runs that resume with them."""

import functools

import jax
import numpy as np
import pytest

from opd_jax import config as configs
from opd_jax import tasks
from opd_jax.data import scored
from opd_jax.errors import InputError
from opd_jax.recipes.self_distillation import comment
from opd_jax.tasks import gsm8k
from opd_jax.tasks.problem import Response
from opd_jax.trainer import open_run, train, train_run
from tests.helpers import own_verifiers
from tests.helpers.runs import leaves, read, recorded_contexts, without_time

pytestmark = pytest.mark.usefixtures("shared_programs")
TEMPLATES = {  # of the symbols that the built-in task has
  "context.template": "{prompt}{solution}{feedback}=",
  "context.solution_template": ":{text}",
  "context.feedback_template": ">{text}",
  "context.feedback": "none",
}


@pytest.fixture
def config(tiny):
  def make(**changes):
    c = configs.default("self_distillation")
    sizes = {"batch": 4, "horizon.max": 8, "student": tiny["student"], "teacher": "initial", "optimizer.lr": 1e-2}
    sizes |= {"eval.every": 0, "checkpoint.every": 2, "log.tensorboard": False, "compile_cache": "off", "log.bins": 4}
    return configs.override(c, sizes | TEMPLATES | {"steps": 4, "context.max_tokens": 256} | changes)

  return make


def of_rollouts(**changes):
  return {
    "context.kind": "feedback",
    "rollouts_per_prompt": 4,
    "context.max_tokens": 48,
    "context.widths": 0.0,
  } | changes


def even(response: str, answer: str, *, ended: bool = True, prompt: str = "") -> bool:
  return sum(map(ord, response)) % 2 == 0


@pytest.fixture
def some_are_right(monkeypatch):
  """Random weights never answer right."""
  monkeypatch.setitem(tasks.VERIFIERS, "chain", even)


def test_the_teacher_reads_the_solution_and_the_student_does_not(config, tmp_path):
  run = open_run(config(), tmp_path / "w")
  prompts, index = run.next_prompts(0)
  tokenizer = run.inputs.tokenizer
  for row, number in enumerate(index):
    read_by = [
      tokenizer.decode(ids[row][mask[row]]).replace(" ", "")
      for ids, mask in ((prompts.prompt, prompts.prompt_mask), (prompts.teacher_prompt, prompts.teacher_prompt_mask))
    ]
    problem, solution = run.inputs.train.prompts[number], run.inputs.train.solutions[number]
    assert read_by == [problem, f"{problem}:{solution}=".replace(" ", "")]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["frozen", "ema"])
@pytest.mark.usefixtures("some_are_right")
def test_killed_and_resumed_is_uninterrupted(kind, config, tmp_path):
  changes = of_rollouts() if kind == "ema" else {}
  changes |= {"teacher_update.kind": kind, "teacher_update.rate": 0.5}
  whole = train(config(**changes), tmp_path / "whole")
  train(config(steps=2, **changes), tmp_path / "parts")
  again = open_run(config(**changes), tmp_path / "parts")
  assert again.resumed_from == 2
  train_run(again)
  records = [without_time(r) for r in read(tmp_path / "whole", "train")]
  assert [without_time(r) for r in read(tmp_path / "parts", "train")] == records
  assert any(r["loss"] > 0 for r in records)
  for a, b in zip(leaves(whole.state), leaves(again.state), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.long
@pytest.mark.usefixtures("some_are_right")
def test_rows_are_told_what_others_of_their_group_found(config, tmp_path):
  run = open_run(config(steps=1, **of_rollouts()), tmp_path / "w")
  contexts = recorded_contexts(run.recipe)
  seen = []
  train_run(run, on_step=lambda run, experience, metrics: seen.append(experience))
  (context, told), (experience,) = contexts[0], seen
  tokenizer, n = run.inputs.tokenizer, 4
  texts = [
    tokenizer.decode(response[mask], skip_special_tokens=True).replace(" ", "")
    for response, mask in zip(*map(np.asarray, (experience.rollout.response, experience.rollout.mask)), strict=True)
  ]
  prompts = [run.inputs.train.prompts[i] for i in experience.index]
  for row in range(16):
    shown = tokenizer.decode(np.asarray(context.prompt)[row][np.asarray(context.prompt_mask)[row]]).replace(" ", "")
    if not context.taught[row]:
      assert shown == ""
      continue
    group = range(row // n * n, row // n * n + n)
    others = [f"{prompts[row // n]}:{texts[i]}=" for i in group if i != row]
    assert shown in others
  assert told["with_context"] == told["with_demonstration"] == np.asarray(context.taught).mean()


@pytest.mark.long
def test_where_nothing_can_be_told_nothing_moves_and_it_is_counted(config, tmp_path, monkeypatch):
  monkeypatch.setitem(tasks.VERIFIERS, "chain", lambda response, answer, **_: False)
  run = train(config(steps=2, **of_rollouts()), tmp_path / "w")
  assert int(run.state.empty) == 2
  assert run.outcome.learned_nothing
  start = open_run(config(steps=2, **of_rollouts()), tmp_path / "new").state.params
  jax.tree.map(np.testing.assert_array_equal, run.state.params, start)


@pytest.mark.long
@pytest.mark.usefixtures("some_are_right")
def test_programs_are_known_before_the_run(config, tmp_path):
  run = open_run(config(steps=1, **of_rollouts(**{"context.widths": 2.0, "data.max_prompt": 16})), tmp_path / "w")
  shapes = run.recipe.shapes(run, 0)
  assert [shape.context for shape in shapes if shape.kind == "update"] == [16, 24, 48]
  assert {shape.kind for shape in shapes} == {"step", "update"}
  train_run(run)
  compiled = {(record["name"], record["prompt"], record["width"]) for record in run.compiled.compiled}
  assert {name for name, _, _ in compiled} == {"rollout", "update"}


@pytest.mark.usefixtures("some_are_right")
def test_written_rollouts_have_what_their_teacher_read(config, tmp_path):
  """And the weights are those of a run that writes none."""
  runs = {}
  for rollouts in (0, 1000):
    run = open_run(config(steps=2, **of_rollouts(**{"log.rollouts": rollouts})), tmp_path / str(rollouts))
    contexts = recorded_contexts(run.recipe)
    train_run(run)
    runs[rollouts] = leaves(run.state)
  for a, b in zip(runs[0], runs[1000], strict=True):
    np.testing.assert_array_equal(a, b)
  found = scored.read(tmp_path / "1000" / scored.ROLLOUTS)
  assert [response.step for response in found] == [1] * 16 + [2] * 16
  decode = functools.partial(run.inputs.tokenizer.decode, skip_special_tokens=False)
  read_by_teachers = [
    decode(row[mask])
    for context, _ in contexts
    for row, mask in zip(*map(np.asarray, (context.prompt, context.prompt_mask)), strict=True)
  ]
  assert [response.teacher_prompt for response in found] == read_by_teachers
  for record in read(tmp_path / "1000", "train"):
    of_step = [response for response in found if response.step == record["step"]]
    taught = [response for response in of_step if response.teacher_prompt]
    assert len(taught) == record["with_context"] * 16
    assert record["step"] > 1 or 0 < len(taught) < 16
    assert all(response.divergence is None for response in of_step if not response.teacher_prompt)
    values = [x for response in taught for x in response.divergence or () if x is not None]
    assert sum(values) / max(1, len(values)) == pytest.approx(record["divergence"], rel=1e-3)


def test_what_a_verifier_finds_is_said_in_a_sentence():
  def said(text: str, ended: bool = True) -> str:
    return comment(Response(text, ended), gsm8k.extract_answer)

  assert said("so #### 17") == "Its final answer, 17, is wrong."
  assert said("I do not know.") == "It has no final answer."
  assert said("I think that", ended=False) == "It was cut before it came to an answer."
  assert comment(Response("x"), None) == "It has no final answer."


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (of_rollouts(rollouts_per_prompt=1), "config.rollouts_per_prompt is 1"),
    (of_rollouts(**{"rollout.ahead": True}), "config.rollout.ahead is True"),
    ({"context.template": "solve it"}, r"has no \{prompt\}"),
    ({"context.max_tokens": 8}, "config.context.max_tokens=8"),
  ],
)
def test_what_cannot_be_meant_is_refused(changes, message, config, tmp_path):
  with pytest.raises(InputError, match=message):
    open_run(config(**changes), tmp_path / "w")


def test_a_teacher_is_shown_what_a_verifier_says(config, tmp_path, monkeypatch):
  """Of right responses too; where it says nothing, a sentence about the final answer."""
  name = own_verifiers.write(
    tmp_path, monkeypatch, "own_reasons", "def verify(response, answer):\n  return (len(response) % 2, '12')\n"
  )
  changes = of_rollouts(
    **{"context.demonstration": False, "context.feedback": "always", "data.verifier": f"{name}:verify"}
  )
  run = open_run(config(steps=1, **changes), tmp_path / "w")
  contexts = recorded_contexts(run.recipe)
  train_run(run)
  context, shares = contexts[0]
  texts = [
    run.inputs.tokenizer.decode(row[mask]).replace(" ", "")
    for row, mask in zip(np.asarray(context.prompt), np.asarray(context.prompt_mask), strict=True)
  ]
  assert all(text.endswith(">12=") for text in texts)
  assert shares["with_feedback"] == 1.0
