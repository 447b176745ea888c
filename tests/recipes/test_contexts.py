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
from opd_jax.types import Batch, Judges
from tests.conftest import STUDENT
from tests.recipes.test_distill import RECIPE, H, by_hand, fresh, learn, programs

SELF = dataclasses.replace(RECIPE, teachers=(STUDENT,))
CANONICAL = Batch(  # three more columns than the students' prompts, other tokens, other lengths
  prompt=jnp.asarray(np.random.default_rng(3).integers(2, 37, (4, 9))),
  prompt_mask=jnp.asarray(np.arange(9) >= np.array([2, 7, 0, 4])[:, None]),
)


def told(prompts: Batch, canonical: Batch) -> Batch:
  return dataclasses.replace(prompts, teacher_prompt=canonical.prompt, teacher_prompt_mask=canonical.prompt_mask)


@pytest.fixture(scope="module")
def said(student, prompts):
  return programs(RECIPE)[0](student, prompts, jax.random.key(4), H)


def test_the_same_words_under_the_same_prompt_teach_nothing(student, prompts, said):
  """CCOPD's first test: c = h and the initial weights. Exactly zero, loss and gradient."""
  stats, grads = learn(SELF, student, student, told(prompts, prompts), said)
  assert float(stats["loss"]) == 0.0
  assert not any(g.any() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("more", [1, 5])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_padding_of_either_prompt_changes_nothing(side, more, student, teacher, prompts, said):
  pad = lambda a: jnp.pad(a, ((0, 0), (more, 0)))
  padded = lambda b: Batch(prompt=pad(b.prompt), prompt_mask=pad(b.prompt_mask))
  mine, theirs = (padded(prompts), CANONICAL) if side == "student" else (prompts, padded(CANONICAL))
  stats, grads = learn(RECIPE, student, teacher, told(mine, theirs), said)
  plain, wanted = learn(RECIPE, student, teacher, told(prompts, CANONICAL), said)
  np.testing.assert_allclose(stats["loss"], plain["loss"], rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), grads, wanted)


def test_each_side_reads_its_own_prompt(student, teacher, prompts, said):
  """Against one row and one token at a time, each model under its own prompt and nothing else."""
  stats, _ = learn(RECIPE, student, teacher, told(prompts, CANONICAL), said)
  wanted = by_hand(student, teacher, prompts, said, of_teacher=CANONICAL)
  np.testing.assert_allclose(stats["loss"], wanted, rtol=1e-5)
  assert abs(wanted - by_hand(student, teacher, prompts, said)) > 1e-2 * wanted


def test_the_student_never_sees_the_canonical_prompt(student, teacher, prompts, said):
  """What the student predicts does not move with it; the loss does."""
  other = dataclasses.replace(CANONICAL, prompt=(CANONICAL.prompt + 1) % 35 + 2)
  drawn = dataclasses.replace(RECIPE, loss=Loss(Objective(37, support="sampled", kind="forward_kl"), estimator="nll"))
  found = [learn(drawn, student, teacher, told(prompts, c), said)[0] for c in (CANONICAL, other)]
  np.testing.assert_array_equal(found[0]["sums"]["logprob"], found[1]["sums"]["logprob"])
  assert (np.asarray(found[0]["sums"]["kl"]) != np.asarray(found[1]["sums"]["kl"])).any()
  run = programs(RECIPE)[0]
  first, second = (run(student, told(prompts, c), jax.random.key(4), H) for c in (CANONICAL, other))
  np.testing.assert_array_equal(first.response, second.response)


def test_micro_batches_take_their_own_prompts(student, teacher, prompts, said):
  batch = told(prompts, CANONICAL)
  whole = learn(RECIPE, student, teacher, batch, said)[0]["loss"]
  halves = learn(dataclasses.replace(RECIPE, micro_batches=2), student, teacher, batch, said)[0]["loss"]
  np.testing.assert_allclose(halves, whole, rtol=1e-5)


ADAPTER = lora.Lora(rank=2, alpha=4.0, targets=("q", "v", "down"))
THROUGH = dataclasses.replace(SELF, student=dataclasses.replace(STUDENT, adapter_scale=ADAPTER.scale))


@functools.cache
def through():
  return jax.jit(THROUGH.update)


def test_an_adapter_is_all_that_moves_and_the_base_teaches(student, prompts, said):
  """The teacher is the base itself: zero where both read the same, not where they do not; and only B moves at first."""
  new = lora.init(STUDENT, ADAPTER, jax.random.key(0))
  judges = Judges((None,), None, student)
  state, stats = through()(fresh(new), judges, told(prompts, prompts), said, None)
  assert float(stats["loss"]) == 0.0
  state, stats = through()(fresh(new), judges, told(prompts, CANONICAL), said, None)
  assert float(stats["loss"]) > 0
  assert jax.tree.structure(state.params) == jax.tree.structure(new)
  moved = {n: bool((np.asarray(a) != np.asarray(new["layers"][n])).any()) for n, a in state.params["layers"].items()}
  assert moved == {n: n.endswith("_b") for n in moved}


def test_the_gradient_of_an_adapter_is_that_of_the_merged_weights(student, prompts, said):
  """By the chain rule: dA = scale dW B^T and dB = scale A^T dW."""
  new = lora.init(STUDENT, ADAPTER, jax.random.key(0))
  new = {"layers": {n: a + 0.05 for n, a in new["layers"].items()}}
  batch = told(prompts, CANONICAL)
  state, _ = through()(fresh(new), Judges((student,), None, student), batch, said, None)
  merged = lora.merge(lora.join(student, new), ADAPTER.scale)
  _, grads = learn(SELF, merged, student, batch, said)
  a, b = new["layers"]["down_a"], new["layers"]["down_b"]
  dw = grads["layers"]["down"]
  da, db = (np.asarray(new["layers"][n] - state.params["layers"][n]) for n in ("down_a", "down_b"))
  np.testing.assert_allclose(da, ADAPTER.scale * np.einsum("lfd,lrd->lfr", dw, b), rtol=2e-3, atol=2e-6)
  np.testing.assert_allclose(db, ADAPTER.scale * np.einsum("lfr,lfd->lrd", a, dw), rtol=2e-3, atol=2e-6)
