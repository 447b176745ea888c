"""Teachers that follow the student: what each predicts, when an average moves, and that a run resumes with it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.checks import check
from opd_jax.errors import InputError
from opd_jax.objectives.divergence import HiddenAndHead
from opd_jax.trainer import open_run, train, train_run
from opd_jax.training.teacher_update import TeacherUpdate
from opd_jax.types import AveragedTrainState, FrozenModels
from tests.conftest import STUDENT
from tests.helpers.conversation_runs import small as conversations
from tests.helpers.conversation_runs import write_talker
from tests.helpers.distillation import STEP, H, fresh, programs
from tests.helpers.runs import leaves, read, without_time

pytestmark = pytest.mark.usefixtures("shared_programs")


SFT = {
  "objective.support": "sampled",
  "objective.kind": "forward_kl",
  "objective.estimator": "nll",
  "mixture.reward": 0.0,
}
SFT |= {"objective.teacher_temperature": 0.9}


@pytest.fixture(scope="module")
def talker(tmp_path_factory) -> str:
  return write_talker(tmp_path_factory.mktemp("talker") / "model")


@pytest.fixture(scope="module")
def rollout(student, prompts):
  return programs(STEP)[0](student, prompts, jax.random.key(4), H)


def step_of(kind: str, rate: float = 0.25):
  update = TeacherUpdate(kind, rate)
  return dataclasses.replace(STEP, teachers=(STUDENT,) if update.needs_initial else (), teacher_update=update)


def averaged(params, teacher) -> AveragedTrainState:
  """A train state whose average is `teacher`."""
  return AveragedTrainState(**vars(fresh(params)), teacher=teacher)


def update(step, params, prompts, rollout, initial=None, teacher=None):
  """One update of a step with a moving teacher: its next state and statistics."""
  state = fresh(params) if teacher is None else averaged(params, teacher)
  return programs(step)[1](state, FrozenModels(() if initial is None else (initial,)), prompts, rollout, None)


def test_a_current_teacher_that_reads_the_same_teaches_nothing(student, prompts, rollout):
  state, stats = update(step_of("current"), student, prompts, rollout)
  assert float(stats["loss"]) == 0
  assert int(state.empty) == 1
  jax.tree.map(np.testing.assert_array_equal, state.params, student)


@pytest.mark.long
def test_a_current_teacher_that_reads_more_teaches_and_has_no_gradient_of_its_own(student, prompts, rollout):
  other = dataclasses.replace(
    prompts, teacher_prompt=prompts.prompt[::-1], teacher_prompt_mask=prompts.prompt_mask[::-1]
  )
  state, stats = update(step_of("current"), student, other, rollout)
  frozen, frozen_stats = update(step_of("frozen"), student, other, rollout, student)
  assert float(stats["loss"]) > 0
  assert float(stats["loss"]) == pytest.approx(float(frozen_stats["loss"]), rel=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.params, frozen.params)


@pytest.mark.long
@pytest.mark.parametrize(("rate", "same"), [(0.0, "frozen"), (1.0, "current")])
def test_a_mix_has_the_two_as_its_ends(student, prompts, rollout, rate, same):
  initial = jax.tree.map(lambda a: 0.9 * a, student)
  mixed, stats = update(step_of("mix", rate), student, prompts, rollout, initial)
  alone, expected = update(step_of(same), student, prompts, rollout, initial if same == "frozen" else None)
  assert float(stats["loss"]) == pytest.approx(float(expected["loss"]), abs=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), mixed.params, alone.params)


def test_a_mix_is_of_logits():
  """Of (.5, .3, .2) and (.7, .2, .1) at a half: (.605, .251, .145); a mix of probabilities would be (.6, .25, .15)."""

  def predicts(*probabilities: float) -> HiddenAndHead:
    return HiddenAndHead(jnp.ones((1, 1, 1)), jnp.log(jnp.array(probabilities))[:, None])

  mixed = TeacherUpdate("mix", 0.5).predict(predicts(0.5, 0.3, 0.2), predicts(0.7, 0.2, 0.1))
  probabilities = jax.nn.softmax(mixed.hidden[0, 0] @ mixed.head.T)
  np.testing.assert_allclose(probabilities, (0.6049, 0.2505, 0.1446), atol=1e-4)


def test_an_average_has_gone_its_share_of_the_way_after_k_updates():
  ema = TeacherUpdate("ema", 0.05)
  state = averaged({"w": jnp.ones(3)}, {"w": jnp.zeros(3)})
  for _ in range(7):
    state = ema.follow(state, jnp.bool_(True))
    assert isinstance(state, AveragedTrainState)
  np.testing.assert_allclose(state.teacher["w"], 1 - 0.95**7, rtol=1e-6)
  assert state.teacher["w"].dtype == jnp.float32


@pytest.mark.long
def test_an_average_follows_updates_that_moved_the_weights_and_no_others(student, prompts, rollout):
  step, behind = step_of("ema"), jax.tree.map(lambda a: 0.9 * a, student)
  state, stats = update(step, student, prompts, rollout, teacher=behind)
  assert bool(stats["updated"])
  jax.tree.map(
    lambda old, new, params: np.testing.assert_allclose(new, old + 0.25 * (params - old), atol=1e-6),
    behind,
    state.teacher,
    state.params,
  )
  empty, stats = update(step, student, prompts, rollout, teacher=student)  # which predicts the same
  assert not bool(stats["updated"])
  jax.tree.map(np.testing.assert_array_equal, empty.teacher, student)
  broken, stats = update(step, jax.tree.map(lambda a: a * jnp.nan, student), prompts, rollout, teacher=behind)
  assert int(stats["skipped"]) == 1
  jax.tree.map(np.testing.assert_array_equal, broken.teacher, behind)


@pytest.mark.long
@pytest.mark.parametrize(
  "kind", ["ema", pytest.param("current", marks=pytest.mark.long), pytest.param("mix", marks=pytest.mark.long)]
)
def test_killed_and_resumed_is_uninterrupted(kind, talker, tmp_path):
  """Through an adapter, whose average is an adapter."""
  changes = {"teacher_update.kind": kind, "teacher_update.rate": 0.5, "eval.every": 0, "log.rollouts": 1}
  whole = train(conversations(talker, **changes), tmp_path / "whole")
  train(conversations(talker, **changes, steps=2), tmp_path / "parts")
  again = open_run(conversations(talker, **changes), tmp_path / "parts")
  assert again.resumed_from == 2
  train_run(again)
  records = [without_time(r) for r in read(tmp_path / "whole", "train")]
  assert [without_time(r) for r in read(tmp_path / "parts", "train")] == records
  assert any(r["loss"] > 0 for r in records)
  scored = [json.loads(line) for line in (tmp_path / "whole" / "rollouts.jsonl").read_text().splitlines()]
  assert any(sum(response["divergence"]) > 0 for response in scored), "rollouts are read by the teacher that moves"
  for a, b in zip(leaves(whole.state), leaves(again.state), strict=True):
    np.testing.assert_array_equal(a, b)
  if kind == "ema":
    jax.tree.map(np.testing.assert_array_equal, again.state.teacher, whole.state.teacher)
    assert jax.tree.map(jnp.shape, whole.state.teacher) == jax.tree.map(jnp.shape, whole.state.params)
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), whole.state.teacher, whole.state.params)
    assert max(jax.tree.leaves(moved)) > 0
  else:
    assert not isinstance(whole.state, AveragedTrainState)


@pytest.mark.long
def test_all_weights_have_an_average_that_starts_as_they_do(talker, tmp_path):
  changes = {"teacher_update.kind": "ema", "lora.rank": 0, "eval.every": 0}
  run = open_run(conversations(talker, **changes), tmp_path / "w")
  jax.tree.map(np.testing.assert_array_equal, run.state.teacher, run.state.params)
  train_run(run)
  assert all(np.isfinite(a).all() for a in jax.tree.leaves(run.state.teacher))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"teacher": "builtin:teacher"}, "set config.teacher=initial"),
    ({}, "nothing is ever learned"),
    (SFT | {"rollout.by": "teacher"}, "leave config.rollout.by 'student'"),
    (
      {"mixture.reward": 1.0, "rollouts_per_prompt": 2, "teacher_precision": "int8"},
      "leave config.teacher_precision 'compute'",
    ),
  ],
)
def test_what_cannot_move_is_refused(changes, message, small):
  config = small("opd", **{"teacher": "initial", "teacher_update.kind": "ema"} | changes)
  with pytest.raises(InputError, match=message):
    check(config)
