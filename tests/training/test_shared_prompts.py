"""A prompt that stands once for its rollouts gives the loss and the gradient of as many copies of it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.models import decoder, lora
from opd_jax.models.moe import MoE
from opd_jax.training import microbatch
from opd_jax.training.distillation import DistillationStep
from opd_jax.training.rows import Rows
from opd_jax.types import Batch, FrozenModels, Rollout
from tests.conftest import STUDENT, TEACHER
from tests.helpers.distillation import STEP, H, fresh, programs

N = 4  # rollouts of each prompt
EXPERTS = dataclasses.replace(STUDENT, moe=MoE(experts=4, per_token=2, renormalise=True))
LORA = lora.Lora(2, 4.0, ("q", "v", "down"))


@pytest.fixture(scope="module")
def rows(prompts) -> tuple[Batch, Rollout]:
  """Four prompts, padded differently, with contexts of the teacher's own, and four responses to each that end anywhere."""
  rng = np.random.default_rng(0)
  p = len(prompts.prompt)
  lengths = rng.integers(1, H + 1, (p * N, 1))
  rollout = Rollout(
    response=jnp.asarray(rng.integers(2, 37, (p * N, H)), jnp.int32),
    mask=jnp.asarray(np.arange(H) < lengths),
    behavior_logprob=jnp.full((p * N, H), -3.0),
    ended=jnp.asarray(lengths[:, 0] < H),
  )
  return prompts, rollout


def contexts(batch: Batch) -> Batch:
  wider = jnp.pad(batch.prompt, ((0, 0), (0, 3)), constant_values=5)
  mask = jnp.pad(batch.prompt_mask, ((0, 0), (0, 3)), constant_values=True)
  return dataclasses.replace(batch, teacher_prompt=wider, teacher_prompt_mask=mask)


def two_teachers(batch: Batch) -> Batch:
  share = jnp.linspace(0, 1, len(batch.prompt))
  return dataclasses.replace(batch, teacher_weight=jnp.stack([share, 1 - share], axis=1))


EVERY_TERM = dataclasses.replace(STEP.loss, reward=0.5, reference_kl=0.3)
CASES = {
  "blocks": ({"attention": "blocks"}, lambda batch: batch),
  "experts, remat": ({"student": EXPERTS, "remat": "layer"}, lambda batch: batch),
  "two teachers with contexts, reference and reward": (
    {"teachers": (TEACHER, STUDENT), "loss": EVERY_TERM},
    lambda batch: two_teachers(contexts(batch)),
  ),
}


def value_and_gradient(step: DistillationStep, params, frozen_models: FrozenModels, part: Rows):
  run = jax.jit(jax.value_and_grad(step.loss_of, has_aux=True))
  (total, (value, stats)), gradient = run(params, frozen_models, part)
  return (total, value, stats), gradient


def assert_same(found, expected):
  scale = max(float(np.abs(a).max()) for a in jax.tree.leaves(expected))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * scale), found, expected)


def parts(step: DistillationStep, batch: Batch, rollout: Rollout) -> tuple[Rows, Rows]:
  """The same rows with every prompt once, and with a copy of it for each."""
  weights = step.loss.token_weights(rollout.mask, jax.random.key(0))
  advantage = jnp.linspace(-1, 1, len(rollout.mask)) if step.loss.reward else None
  return tuple(Rows(prompts, rollout, weights, advantage) for prompts in (batch, microbatch.repeat(batch, N)))  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("case", CASES)
def test_value_gradient_and_metrics_are_those_of_copies(case, student, teacher, rows, monkeypatch):
  monkeypatch.setattr("opd_jax.models.blockwise.WORTHWHILE", 0)
  changes, of = CASES[case]
  step = dataclasses.replace(STEP, n=N, **changes)
  params = decoder.init(EXPERTS, jax.random.key(3), scale=0.3) if step.student is EXPERTS else student
  teachers = (teacher, student)[: len(step.teachers)]
  reference = student if step.loss.reference_kl else None
  once, copies = parts(step, of(rows[0]), rows[1])
  assert once.n == N
  assert copies.n == 1
  found, expected = (
    value_and_gradient(step, params, FrozenModels(teachers, reference), part) for part in (once, copies)
  )
  assert_same(found, expected)


@pytest.mark.long
def test_an_adapter_learns_the_same(student, teacher, rows):
  cfg = dataclasses.replace(STUDENT, adapter_scale=LORA.scale)
  adapter = jax.tree.map(lambda a: a + 0.1, lora.init(STUDENT, LORA, jax.random.key(2)))
  step = dataclasses.replace(STEP, n=N, student=cfg)
  found, expected = (
    value_and_gradient(step, adapter, FrozenModels((teacher,), base=student), part) for part in parts(step, *rows)
  )
  assert_same(found, expected)


@pytest.mark.long
@pytest.mark.parametrize(("micro_batches", "buckets"), [pytest.param(4, 2, marks=pytest.mark.long), (8, 1)])
def test_micro_batches_are_of_whole_prompts_and_change_nothing(micro_batches, buckets, student, teacher, rows):
  """Beyond one for every prompt, a prompt stands in each that has rows of it."""
  one = dataclasses.replace(STEP, n=N)
  several = dataclasses.replace(one, micro_batches=micro_batches, buckets=buckets)
  frozen_models = FrozenModels((teacher,))
  arguments = fresh(student), frozen_models, *rows, None
  states, stats = zip(*(programs(step)[1](*arguments) for step in (one, several)), strict=True)
  assert_same(states[1].params, states[0].params)
  assert_same(stats[1]["sums"], stats[0]["sums"])
  shapes = jax.eval_shape(several.split, parts(one, *rows)[0])
  copies = max(1, micro_batches // len(rows[0].prompt))
  assert shapes.batch.prompt.shape[:2] == (micro_batches, len(rows[0].prompt) * copies // micro_batches)
  assert shapes.rollout.mask.shape[:2] == (micro_batches, len(rows[1].mask) // micro_batches)


@pytest.mark.long
def test_the_rows_of_a_prompt_stay_with_it(rows):
  """Sorted by the longest of its rows, where micro-batches are to be of like length."""
  step = dataclasses.replace(STEP, n=N, micro_batches=2, buckets=2)
  batch, rollout = rows
  numbered = dataclasses.replace(batch, number=jnp.arange(len(batch.prompt)))
  marked = dataclasses.replace(
    rollout, response=jnp.repeat(jnp.arange(len(batch.prompt)), N)[:, None] + 0 * rollout.response
  )
  split = step.split(parts(step, numbered, marked)[0])
  assert split.batch.number is not None
  np.testing.assert_array_equal(jnp.repeat(split.batch.number, N, axis=1), split.rollout.response[:, :, 0])
  longest = split.rollout.mask.sum(axis=2).reshape(2, -1, N).max(axis=2)
  assert longest[0].max() <= longest[1].min()


@pytest.mark.parametrize(
  ("prompts", "n", "micro_batches", "copies"), [(4, 4, 1, 1), (4, 4, 4, 1), (4, 4, 8, 2), (2, 6, 4, 2), (1, 6, 3, 3)]
)
def test_a_prompt_stands_as_often_as_it_has_to(prompts, n, micro_batches, copies):
  assert microbatch.prompt_copies(prompts, n, micro_batches) == copies


@pytest.mark.long
def test_an_update_holds_no_copies_of_prompts():
  """Compiled memory of eight rollouts behind a long prompt: less than a third of what rows of their own would take."""
  step = dataclasses.replace(STEP, teachers=(STUDENT,))

  def shape(rows: int, width: int, dtype: Any) -> Any:
    return jax.ShapeDtypeStruct((rows, width), dtype)

  def temporaries(p: int, n: int) -> int:
    params = jax.eval_shape(lambda: decoder.init(STUDENT, jax.random.key(0)))
    batch, B = Batch(prompt=shape(p, 256, jnp.int32), prompt_mask=shape(p, 256, jnp.bool_)), p * n
    ended: Any = jax.ShapeDtypeStruct((B,), jnp.bool_)
    rollout = Rollout(shape(B, 16, jnp.int32), shape(B, 16, jnp.bool_), shape(B, 16, jnp.float32), ended)
    run = jax.jit(dataclasses.replace(step, n=n).update)
    arguments = jax.eval_shape(fresh, params), FrozenModels((params,)), batch, rollout, None
    return run.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

  assert 3 * temporaries(2, 8) < temporaries(16, 1)
