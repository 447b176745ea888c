"""The distillation step: what is trained, what the loss may not depend on, and when nothing may move."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from opd_jax.models import decoder
from opd_jax.objectives.divergence import Objective
from opd_jax.objectives.loss import Loss
from opd_jax.objectives.token_weights import TokenWeighting
from opd_jax.training.distillation import DistillationStep
from opd_jax.training.microbatch import repeat
from opd_jax.training.rows import Rows
from opd_jax.types import Batch, FrozenModels, Rollout
from tests.conftest import STUDENT, TEACHER
from tests.helpers.distillation import STEP, H, by_hand, fresh, learn, programs


@pytest.fixture(scope="module")
def rollout(student, prompts) -> Rollout:
  rollout = programs(STEP)[0](student, prompts, jax.random.key(4), H)
  lengths = rollout.mask.sum(axis=1).tolist()
  assert min(lengths) < H, "the test needs a row that ends early"
  assert max(lengths) == H, "and one that does not"
  return rollout


def test_loss_is_the_mean_over_generated_tokens(student, teacher, prompts, rollout):
  stats, _ = learn(STEP, student, teacher, prompts, rollout)
  np.testing.assert_allclose(stats["loss"], by_hand(student, teacher, prompts, rollout), rtol=1e-5)
  assert int(stats["tokens"]) == int(rollout.mask.sum()) == int(stats["sums"]["count"].sum())
  np.testing.assert_allclose(stats["sums"]["loss"].sum() / stats["tokens"], stats["loss"], rtol=1e-5)
  np.testing.assert_allclose(stats["sums"]["kl"], stats["sums"]["loss"], rtol=1e-4)


def widen(rollout: Rollout, by: int) -> Rollout:
  def pad(a):
    return jnp.pad(a, ((0, 0), (0, by)))

  return Rollout(pad(rollout.response), pad(rollout.mask), pad(rollout.behavior_logprob), rollout.ended)


def permute(tree, order):
  return jax.tree.map(lambda a: a[order], tree)


def wider_prompts(batch: Batch) -> Batch:
  def pad(a, value):
    return jnp.pad(a, ((0, 0), (5, 0)), constant_values=value)

  return Batch(prompt=pad(batch.prompt, 11), prompt_mask=pad(batch.prompt_mask, False))


@pytest.mark.few(3)
@pytest.mark.parametrize(
  "change",
  [
    lambda r, b, s: (r, b, widen(s, 10)),
    pytest.param(lambda r, b, s: (dataclasses.replace(r, micro_batches=2), b, s), marks=pytest.mark.long),
    lambda r, b, s: (dataclasses.replace(r, micro_batches=4), b, s),
    lambda r, b, s: (r, wider_prompts(b), s),
    lambda r, b, s: (r, permute(b, np.array([2, 0, 3, 1])), permute(s, np.array([2, 0, 3, 1]))),
    lambda r, b, s: (dataclasses.replace(r, loss=Loss(Objective(37, chunk=3))), b, s),
    lambda r, b, s: (dataclasses.replace(r, remat="layer"), b, s),
    lambda r, b, s: (dataclasses.replace(r, remat="dots"), b, s),
    pytest.param(lambda r, b, s: (dataclasses.replace(r, buckets=3), b, s), marks=pytest.mark.long),
    lambda r, b, s: (dataclasses.replace(r, buckets=3, micro_batches=2), b, widen(s, 5)),
  ],
  ids=(
    "width",
    "2 micro-batches",
    "4 micro-batches",
    "padding",
    "order",
    "chunk",
    "remat",
    "remat but for dots",
    "buckets",
    "buckets and micro-batches",
  ),
)
def test_loss_and_gradient_do_not_depend_on(change, student, teacher, prompts, rollout):
  want, want_grads = learn(STEP, student, teacher, prompts, rollout)
  got, got_grads = learn(change(STEP, prompts, rollout)[0], student, teacher, *change(STEP, prompts, rollout)[1:])
  np.testing.assert_allclose(got["loss"], want["loss"], rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), got_grads, want_grads)


def test_truncation_is_a_mask(student, teacher, prompts, rollout):
  """TOPD at 4 tokens is the full-width step with later positions masked out."""

  def cut(a):
    return a[:, :4]

  short = Rollout(cut(rollout.response), cut(rollout.mask), cut(rollout.behavior_logprob), rollout.ended)
  masked = dataclasses.replace(rollout, mask=rollout.mask & (jnp.arange(H) < 4))
  a, grads_a = learn(STEP, student, teacher, prompts, short)
  b, grads_b = learn(STEP, student, teacher, prompts, masked)
  np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-5), grads_a, grads_b)


@pytest.mark.parametrize("support", ["full", "student_topk", "sampled"])
def test_student_that_is_its_own_teacher_does_not_move(support, student, prompts, rollout):
  step = dataclasses.replace(STEP, teachers=(STUDENT,), loss=Loss(Objective(37, support=support, k=4)))
  stats, grads = learn(step, student, student, prompts, rollout)
  assert float(stats["loss"]) == 0.0
  assert float(stats["grad_norm"]) == 0.0
  assert not any(np.any(g) for g in jax.tree.leaves(grads))


def test_first_response_token_is_trained_and_nothing_after_the_stop_token(student, teacher, prompts, rollout):
  first = dataclasses.replace(rollout, mask=rollout.mask & (jnp.arange(H) < 1))
  stats, grads = learn(STEP, student, teacher, prompts, first)
  assert int(stats["tokens"]) == 4
  assert float(stats["loss"]) > 0
  assert any(np.any(g) for g in jax.tree.leaves(grads))
  # What stands behind the stop token can be anything.
  other = dataclasses.replace(rollout, response=jnp.where(rollout.mask, rollout.response, 23))
  want, want_grads = learn(STEP, student, teacher, prompts, rollout)
  got, got_grads = learn(STEP, student, teacher, prompts, other)
  assert float(got["loss"]) == float(want["loss"])
  jax.tree.map(np.testing.assert_array_equal, got_grads, want_grads)


def test_the_stop_token_itself_is_trained(student, teacher, prompts, rollout):
  row = int(np.argmin(rollout.mask.sum(axis=1)))
  last = int(rollout.mask[row].sum()) - 1
  assert int(rollout.response[row, last]) == 1
  only = dataclasses.replace(rollout, mask=jnp.zeros_like(rollout.mask).at[row, last].set(True))
  stats, grads = learn(STEP, student, teacher, prompts, only)
  assert int(stats["tokens"]) == 1
  assert any(np.any(g) for g in jax.tree.leaves(grads))


@pytest.mark.long
def test_rollouts_of_one_prompt_share_it(student, teacher, prompts):
  """n = 2 gives the loss of the same rows with every prompt written twice."""
  step = dataclasses.replace(STEP, n=2)
  rollout = programs(step)[0](student, prompts, jax.random.key(4), H)
  assert rollout.response.shape == (8, H)
  twice = jax.tree.map(lambda a: jnp.repeat(a, 2, axis=0), prompts)
  a, _ = learn(step, student, teacher, prompts, rollout)
  b, _ = learn(STEP, student, teacher, twice, rollout)
  np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-6)


def test_a_broken_update_is_skipped_and_counted(student, teacher, prompts, rollout):
  broken = jax.tree.map(lambda a: a, teacher) | {"norm": teacher["norm"] * jnp.nan}
  update = programs(STEP)[1]
  broken, sound = FrozenModels((broken,)), FrozenModels((teacher,))
  state, stats = update(fresh(student), broken, prompts, rollout, None)
  assert np.isnan(stats["loss"])
  assert int(state.skipped) == 1
  jax.tree.map(np.testing.assert_array_equal, state.params, student)
  state, stats = update(state, sound, prompts, rollout, None)
  assert int(state.skipped) == 0
  assert int(state.step) == 2


def test_batch_without_a_token_moves_nothing(student, teacher, prompts, rollout):
  empty = dataclasses.replace(rollout, mask=jnp.zeros_like(rollout.mask))
  stats, grads = learn(STEP, student, teacher, prompts, empty)
  assert float(stats["loss"]) == 0.0
  assert not any(np.any(g) for g in jax.tree.leaves(grads))


@pytest.mark.long
def test_counts_are_exact_beyond_what_bf16_can_hold(student, teacher, prompts, rollout):
  """bfloat16 compute: 300 tokens are counted as 300, and the loss is a number near the fp32 one."""
  many = jax.tree.map(lambda a: jnp.repeat(a, 16, axis=0), (prompts, rollout))
  want, _ = learn(STEP, student, teacher, *many)
  got, _ = learn(dataclasses.replace(STEP, dtype=jnp.bfloat16), student, teacher, *many)
  assert int(got["tokens"]) == int(many[1].mask.sum()) > 256
  assert float(got["sums"]["count"].sum()) == float(many[1].mask.sum())
  np.testing.assert_allclose(got["loss"], want["loss"], rtol=0.05)


def test_position_bins_hold_every_token_once(student, teacher, prompts, rollout):
  stats, _ = learn(STEP, student, teacher, prompts, rollout)
  per_position = np.asarray(rollout.mask).sum(axis=0)
  np.testing.assert_array_equal(stats["sums"]["count"], [per_position[i : i + 4].sum() for i in range(0, 20, 4)])


LOSSES = {
  "constant": {"normaliser": "constant", "constant": 20},
  "last 2": {"weights": TokenWeighting("last", tokens=2)},
  "random 2": {"weights": TokenWeighting("random", tokens=2)},
  "gap": {"weights": TokenWeighting("gap", mean_one=True), "normaliser": "sequence"},
  "sampled, discounted, importance": {
    "objective": Objective(37, support="sampled"),
    "discount": 0.9,
    "importance": "truncated",
    "level": "prefix",
  },
  "all terms": {"reward": 0.5, "reference_kl": 0.3, "token_clip": 2.0},
}
FEW = ("random 2", "sampled, discounted, importance", "all terms")  # the others are compiled with the long tests
EACH = pytest.mark.parametrize(
  "loss", [pytest.param(loss, id=name, marks=() if name in FEW else pytest.mark.long) for name, loss in LOSSES.items()]
)


def with_loss(loss: dict, step: DistillationStep = STEP, **changes) -> DistillationStep:
  return dataclasses.replace(step, loss=dataclasses.replace(step.loss, **loss), **changes)


@pytest.fixture(scope="module")
def judged(student, prompts):
  """What every loss can ask for, an initial student and a reward; sampled by a student that is no longer the same."""
  other = jax.tree.map(lambda a: a * 1.05, student)
  return {"initial": other, "advantage": jnp.array([1.0, -0.5, 0.25, -0.75])}


def without(judged: dict, step: DistillationStep) -> dict:
  """Only what the loss has terms for, as in a run."""
  wanted = {"initial": step.loss.reference_kl, "advantage": step.loss.reward}
  return {name: value for name, value in judged.items() if wanted[name]}


@pytest.mark.long
@EACH
def test_no_loss_depends_on_how_the_batch_is_split(loss, student, teacher, prompts, rollout, judged):
  outcomes = []
  for parts in (1, 4):
    step = with_loss(loss, micro_batches=parts)
    outcomes.append(learn(step, student, teacher, prompts, rollout, **without(judged, step)))
  (want, want_grads), (got, got_grads) = outcomes
  np.testing.assert_allclose(got["loss"], want["loss"], rtol=1e-4)
  assert want["grad_norm"] > 1e-3
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), got_grads, want_grads)


@pytest.mark.long
@EACH
def test_no_loss_moves_anything_without_a_token(loss, student, teacher, prompts, rollout, judged):
  step = with_loss(loss)
  empty = dataclasses.replace(rollout, mask=rollout.mask & False)
  stats, grads = learn(step, student, teacher, prompts, empty, **without(judged, step))
  assert float(stats["loss"]) == 0.0
  assert (int(stats["trained"]), int(stats["empty"]), int(stats["skipped"])) == (0, 1, 0)
  assert not any(np.any(g) for g in jax.tree.leaves(grads))


def test_segment_that_no_row_reaches_moves_nothing(student, teacher, prompts, rollout):
  step = with_loss({"weights": TokenWeighting("segment", start=H, tokens=3)})
  stats, grads = learn(step, student, teacher, prompts, rollout)
  assert (int(stats["tokens"]), int(stats["trained"]), int(stats["empty"])) == (int(rollout.mask.sum()), 0, 1)
  assert not any(np.any(g) for g in jax.tree.leaves(grads))


@pytest.mark.long
def test_nothing_left_to_learn_is_left_out_and_what_is_left_is_not(student, teacher, prompts, rollout):
  """All tokens clipped: the momentum must not move the weights. No token for the teacher, but a reward: it does."""
  clipped, _ = learn(with_loss({"token_clip": 1e-9}), student, teacher, prompts, rollout)
  assert (float(clipped["grad_norm"]), int(clipped["empty"])) == (0.0, 1)
  step = with_loss({"weights": TokenWeighting("segment", start=H, tokens=3), "reward": 1.0})
  stats, grads = learn(step, student, teacher, prompts, rollout, advantage=jnp.array([1.0, 0.0, -1.0, 0.0]))
  assert (int(stats["trained"]), int(stats["empty"])) == (int(stats["tokens"]), 0)
  assert any(np.any(g) for g in jax.tree.leaves(grads))


def test_rollouts_of_nobody_are_not_the_students():
  with pytest.raises(ValueError, match="behavior 'peer' is not one of"):
    dataclasses.replace(STEP, behavior="peer")


def test_random_tokens_are_others_at_the_next_step(student, teacher, prompts, rollout):
  step = with_loss({"weights": TokenWeighting("random", tokens=2)})
  update, frozen_models = programs(step)[1], FrozenModels((teacher,))

  def at(step):
    return update(dataclasses.replace(fresh(student), step=jnp.int32(step)), frozen_models, prompts, rollout, None)[1][
      "loss"
    ]

  assert len({float(at(step)) for step in range(3)}) == 3


@pytest.mark.long
def test_first_tokens_as_a_weight_are_a_short_horizon(student, teacher, prompts, rollout):
  """Loss and gradient of TOPD at 4 tokens, from a full rollout of which the rest is masked."""

  def cut(a):
    return a[:, :4]

  short = Rollout(cut(rollout.response), cut(rollout.mask), cut(rollout.behavior_logprob), rollout.ended)
  a, grads_a = learn(with_loss({"weights": TokenWeighting("first", tokens=4)}), student, teacher, prompts, rollout)
  b, grads_b = learn(STEP, student, teacher, prompts, short)
  np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-5), grads_a, grads_b)


def test_importance_is_one_on_the_rollout_that_was_just_sampled(student, teacher, prompts, rollout):
  """Behaviour and trained log-probabilities agree token by token, at a temperature that is not 1."""
  sampling = dataclasses.replace(STEP.sampling, temperature=0.7)
  objective = Objective(37, sampling_temperature=0.7)
  step = with_loss({"objective": objective, "importance": "truncated", "level": "sequence"}, sampling=sampling)
  drawn = programs(step)[0](student, prompts, jax.random.key(4), H)
  stats, _ = learn(step, student, teacher, prompts, drawn)
  np.testing.assert_allclose(stats["sums"]["importance"].sum() / stats["tokens"], 1, rtol=1e-4)


@pytest.mark.long
def test_reward_alone_raises_what_was_rewarded(student, teacher, prompts, rollout):
  """One small step of pure policy gradient: the rewarded row becomes more likely, the punished one less."""
  step = with_loss({"divergence": 0.0, "reward": 1.0}, optimizer=optax.sgd(1e-3))
  advantage = jnp.array([1.0, 0.0, -1.0, 0.0])
  _, grads = learn(step, student, teacher, prompts, rollout, advantage=advantage)
  stepped = jax.tree.map(lambda p, g: p - g, student, grads)

  def likelihood(params):
    x = decoder.unembed(
      params,
      decoder.response_hidden(params, STUDENT, prompts.prompt, prompts.prompt_mask, rollout.response, rollout.mask),
    )
    at = jnp.take_along_axis(jax.nn.log_softmax(x), rollout.response[..., None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(rollout.mask, at, 0.0), axis=1)

  change = likelihood(stepped) - likelihood(student)
  assert change[0] > 0 > change[2]


def test_staying_near_the_initial_student(student, teacher, prompts, rollout, judged):
  """The term alone: nothing at the initial student itself, a pull where the student has left it."""
  step = with_loss({"divergence": 0.0, "reward": 1e-30, "reference_kl": 1.0})
  still = jnp.zeros(4)
  at_home, _ = learn(step, student, teacher, prompts, rollout, initial=student, advantage=still)
  away, _ = learn(step, student, teacher, prompts, rollout, initial=judged["initial"], advantage=still)
  assert float(at_home["grad_norm"]) == 0.0
  assert float(away["loss"]) > 1e-4
  assert float(away["grad_norm"]) > 1e-3


@pytest.mark.long
def test_each_row_can_have_a_teacher_of_its_own(student, teacher, prompts, rollout):
  """Two teachers, the second the student itself: rows that choose it add nothing, the others what they added alone."""
  step = dataclasses.replace(STEP, teachers=(TEACHER, STUDENT))
  share = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
  stats, grads = learn(step, student, (teacher, student), prompts.replace(teacher_weight=share), rollout)
  only = dataclasses.replace(rollout, mask=rollout.mask & (share[:, :1] > 0))
  want, want_grads = learn(STEP, student, teacher, prompts, only)
  scale = float(only.mask.sum() / rollout.mask.sum())
  np.testing.assert_allclose(stats["loss"], want["loss"] * scale, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b * scale, rtol=1e-3, atol=2e-5), grads, want_grads)


@pytest.mark.long
def test_the_probe_is_the_gradient_of_a_map_before_the_head(student, teacher, prompts):
  """Cosines by differentiating the whole loss of every shorter rollout by a map M = 1 between states and head."""
  widths = (3, 6, H)
  step = dataclasses.replace(STEP, n=2)
  few = jax.tree.map(lambda a: a[:2], prompts)
  probe = jax.jit(functools.partial(step.probe, widths=widths, prompts=2))
  found = probe(fresh(student), FrozenModels((teacher,)), prompts, jax.random.key(4))
  rollout = jax.jit(functools.partial(step.rollout, response_len=H))(student, few, jax.random.key(4), H)
  assert int(found["tokens"]) == int(rollout.mask.sum())

  @functools.partial(jax.jit, static_argnums=1)
  def gradient(M, width):
    def loss(M):
      mask = rollout.mask & (jnp.arange(H) < width)
      cut = dataclasses.replace(rollout, mask=mask)
      part = Rows(repeat(few, 2), cut, step.loss.token_weights(mask, jax.random.key(0)), None)
      predicted = step.forward(student, STUDENT, part.batch, part.rollout)
      return step.compare(predicted._replace(hidden=predicted.hidden @ M), FrozenModels((teacher,)), part)[0]

    return jax.grad(loss)(M)

  grads = [np.asarray(gradient(jnp.eye(STUDENT.d_model), w), np.float64) for w in widths]
  cosine = [np.sum(g * grads[-1]) / np.linalg.norm(g) / np.linalg.norm(grads[-1]) for g in grads]
  np.testing.assert_allclose(found["agreement"], cosine, rtol=1e-4)
  assert cosine[0] < 0.999, "else the test sees nothing"
