"""Teacher and student read prompts of their own: alignment by the response's index, and whose words move what."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.models import lora
from opd_jax.objectives.divergence import Objective
from opd_jax.objectives.loss import Loss
from opd_jax.types import Batch, FrozenModels
from tests.conftest import STUDENT
from tests.helpers.distillation import STEP, H, by_hand, fresh, learn, programs

SELF = dataclasses.replace(STEP, teachers=(STUDENT,))
CANONICAL = Batch(  # three more columns than the students' prompts, other tokens, other lengths
  prompt=jnp.asarray(np.random.default_rng(3).integers(2, 37, (4, 9))),
  prompt_mask=jnp.asarray(np.arange(9) >= np.array([2, 7, 0, 4])[:, None]),
)


def with_teacher_prompts(prompts: Batch, canonical: Batch) -> Batch:
  return dataclasses.replace(prompts, teacher_prompt=canonical.prompt, teacher_prompt_mask=canonical.prompt_mask)


@pytest.fixture(scope="module")
def rollout(student, prompts):
  return programs(STEP)[0](student, prompts, jax.random.key(4), H)


@pytest.mark.long
def test_the_same_words_under_the_same_prompt_teach_nothing(student, prompts, rollout):
  """CCOPD's first test: c = h and the initial weights. Exactly zero, loss and gradient."""
  stats, grads = learn(SELF, student, student, with_teacher_prompts(prompts, prompts), rollout)
  assert float(stats["loss"]) == 0.0
  assert not any(g.any() for g in jax.tree.leaves(grads))


@pytest.mark.long
@pytest.mark.parametrize("more", [pytest.param(1, marks=pytest.mark.long), 5])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_padding_of_either_prompt_changes_nothing(side, more, student, teacher, prompts, rollout):
  def pad(a):
    return jnp.pad(a, ((0, 0), (more, 0)))

  def padded(b):
    return Batch(prompt=pad(b.prompt), prompt_mask=pad(b.prompt_mask))

  mine, theirs = (padded(prompts), CANONICAL) if side == "student" else (prompts, padded(CANONICAL))
  stats, grads = learn(STEP, student, teacher, with_teacher_prompts(mine, theirs), rollout)
  plain, wanted = learn(STEP, student, teacher, with_teacher_prompts(prompts, CANONICAL), rollout)
  np.testing.assert_allclose(stats["loss"], plain["loss"], rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), grads, wanted)


@pytest.mark.long
def test_each_side_reads_its_own_prompt(student, teacher, prompts, rollout):
  """Against one row and one token at a time, each model under its own prompt and nothing else."""
  stats, _ = learn(STEP, student, teacher, with_teacher_prompts(prompts, CANONICAL), rollout)
  wanted = by_hand(student, teacher, prompts, rollout, of_teacher=CANONICAL)
  np.testing.assert_allclose(stats["loss"], wanted, rtol=1e-5)
  assert abs(wanted - by_hand(student, teacher, prompts, rollout)) > 1e-2 * wanted


def test_the_student_never_sees_the_canonical_prompt(student, teacher, prompts, rollout):
  """What the student predicts does not move with it; the loss does."""
  other = dataclasses.replace(CANONICAL, prompt=(CANONICAL.prompt + 1) % 35 + 2)
  drawn = dataclasses.replace(STEP, loss=Loss(Objective(37, support="sampled", kind="forward_kl"), estimator="nll"))
  found = [learn(drawn, student, teacher, with_teacher_prompts(prompts, c), rollout)[0] for c in (CANONICAL, other)]
  np.testing.assert_array_equal(found[0]["sums"]["logprob"], found[1]["sums"]["logprob"])
  assert (np.asarray(found[0]["sums"]["kl"]) != np.asarray(found[1]["sums"]["kl"])).any()
  run = programs(STEP)[0]
  first, second = (run(student, with_teacher_prompts(prompts, c), jax.random.key(4), H) for c in (CANONICAL, other))
  np.testing.assert_array_equal(first.response, second.response)


@pytest.mark.long
def test_micro_batches_take_their_own_prompts(student, teacher, prompts, rollout):
  batch = with_teacher_prompts(prompts, CANONICAL)
  whole = learn(STEP, student, teacher, batch, rollout)[0]["loss"]
  halves = learn(dataclasses.replace(STEP, micro_batches=2), student, teacher, batch, rollout)[0]["loss"]
  np.testing.assert_allclose(halves, whole, rtol=1e-5)


ADAPTER = lora.Lora(rank=2, alpha=4.0, targets=("q", "v", "down"))
THROUGH = dataclasses.replace(SELF, student=dataclasses.replace(STUDENT, adapter_scale=ADAPTER.scale))


@functools.cache
def through():
  return jax.jit(THROUGH.update)


@pytest.mark.long
def test_an_adapter_is_all_that_moves_and_the_base_teaches(student, prompts, rollout):
  """The teacher is the base itself: zero where both read the same, not where they do not; and only B moves at first."""
  new = lora.init(STUDENT, ADAPTER, jax.random.key(0))
  frozen_models = FrozenModels((None,), None, student)
  state, stats = through()(fresh(new), frozen_models, with_teacher_prompts(prompts, prompts), rollout, None)
  assert float(stats["loss"]) == 0.0
  state, stats = through()(fresh(new), frozen_models, with_teacher_prompts(prompts, CANONICAL), rollout, None)
  assert float(stats["loss"]) > 0
  assert jax.tree.structure(state.params) == jax.tree.structure(new)
  moved = {n: bool((np.asarray(a) != np.asarray(new["layers"][n])).any()) for n, a in state.params["layers"].items()}
  assert moved == {n: n.endswith("_b") for n in moved}


@pytest.mark.long
def test_the_gradient_of_an_adapter_is_that_of_the_merged_weights(student, prompts, rollout):
  """By the chain rule: dA = scale dW B^T and dB = scale A^T dW."""
  new = lora.init(STUDENT, ADAPTER, jax.random.key(0))
  new = {"layers": {n: a + 0.05 for n, a in new["layers"].items()}}
  batch = with_teacher_prompts(prompts, CANONICAL)
  state, _ = through()(fresh(new), FrozenModels((student,), None, student), batch, rollout, None)
  merged = lora.merge(lora.join(student, new), ADAPTER.scale)
  _, grads = learn(SELF, merged, student, batch, rollout)
  a, b = new["layers"]["down_a"], new["layers"]["down_b"]
  dw = grads["layers"]["down"]
  da, db = (np.asarray(new["layers"][n] - state.params["layers"][n]) for n in ("down_a", "down_b"))
  np.testing.assert_allclose(da, ADAPTER.scale * np.einsum("lfd,lrd->lfr", dw, b), rtol=2e-3, atol=2e-6)
  np.testing.assert_allclose(db, ADAPTER.scale * np.einsum("lfr,lfd->lrd", a, dw), rtol=2e-3, atol=2e-6)
