"""The teacher begins and the student ends: at the extremes it is one of them alone, in between it is both."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.analysis.continuation import continuation, joined, prefixed
from opd_jax.data import pipeline
from opd_jax.rollout import sample
from opd_jax.rollout.generate import decode
from opd_jax.types import Rollout

SHARES = (0.1, 0.36, 0.5)  # the same in every test: a prefix that is longer makes the program wider
LENGTHS = [6, 20, 28]


@pytest.fixture(scope="module")
def alone(panel):
  """Roll out straight from the sampler: (params, purpose, prompts, tokens) -> host arrays, part by part."""

  def run(params, purpose, prompts, tokens):
    static = {"cfg": panel.inputs.student.cfg, "sampling": panel.student_generator.sampling, "response_len": tokens}
    rollout = jax.jit(functools.partial(sample.rollout, **static))
    parts = []
    for first in range(0, len(panel.ids), panel.rows):
      part = (prompts[first:] + prompts)[: panel.rows]
      key = jax.random.fold_in(jax.random.fold_in(panel._key, purpose), first)
      parts.append(jax.device_get(rollout(params, pipeline.pad(part, len(part[0]), 0), key, jnp.int32(tokens))))
    return jax.tree.map(lambda *a: np.concatenate(a)[: len(panel.ids)], *parts)

  return run


@pytest.mark.long
def test_extremes_are_the_student_and_the_teacher(panel, shaken, measured, alone):
  found = continuation(panel, shaken, (0, 1.0))
  assert found[0] == measured.correct.mean()
  rolled_out = alone(panel.teacher, 1, panel.ids, panel.horizon)
  texts = decode(
    panel.inputs.tokenizer, rolled_out.response, rolled_out.mask, panel.student_generator.sampling.stop_ids
  )
  own = np.mean([panel.task.verify(*pair) for pair in zip(texts, panel.answers, strict=True)])
  assert found[1.0] == own > found[0]


@pytest.mark.long
def test_a_continuation_is_the_students_after_that_prefix(panel, shaken, alone):
  """Prompt and prefix, which another share makes wider in the panel's program, are read as if they were the prompt."""
  n, rollout, teachers = LENGTHS[1], prefixed(panel, shaken, LENGTHS)[1], panel.teacher_rollout
  assert teachers.mask[:, n].all(), "a row that has ended would need the other test's rule"
  np.testing.assert_array_equal(rollout.response[:, :n], teachers.response[:, :n])
  prompts = [[*ids, *row[:n].tolist()] for ids, row in zip(panel.ids, teachers.response, strict=True)]
  end = alone(shaken, 2, prompts, panel.horizon - n)
  assert rollout.mask.shape == (len(panel.ids), panel.horizon)
  np.testing.assert_array_equal(rollout.mask[:, n:], end.mask)
  np.testing.assert_array_equal(rollout.response[:, n:], end.response)
  assert (rollout.response != teachers.response).any()


def test_accuracies_lie_on_the_shares_that_were_asked_for(panel, shaken):
  accuracies = [panel.verify(rollout).mean() for rollout in prefixed(panel, shaken, LENGTHS)]
  assert continuation(panel, shaken, SHARES) == dict(zip(SHARES, accuracies, strict=True))


def test_one_program_serves_all_shares_and_students(panel, shaken):
  """Beside the rollout of the panel, which is the teacher's too where both are one architecture, as here."""
  for params in (shaken, panel.untrained()):
    continuation(panel, params, SHARES)
  widths = [width for name, _, _, width, *_ in panel.program_cache if name == "analysis rollout"]
  assert sorted(widths) == [panel.width, panel.width + LENGTHS[-1]]


def test_a_row_that_the_teacher_has_ended_stands_as_it_is():
  """Of three rows one ends before the third token, one with it, and one goes on."""
  mask = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
  beginning = host_rollout(np.where(mask, 7, 0), mask, [True, True, False])
  end = host_rollout(np.full((3, 4), 8), np.array([[1, 1, 0, 0]] * 3, bool), [True, True, True])
  rollout = joined(beginning, end, 3)
  np.testing.assert_array_equal(rollout.response, [[7, 7, 0, 0, 0], [7, 7, 7, 0, 0], [7, 7, 7, 8, 8]])
  np.testing.assert_array_equal(rollout.mask, rollout.response != 0)
  np.testing.assert_array_equal(rollout.ended, [True, True, True])


def host_rollout(response, mask, ended) -> Rollout:
  fields = {"response": response, "mask": mask, "behavior_logprob": np.zeros(mask.shape), "ended": np.array(ended)}
  return Rollout(**fields)
