"""Updates by a surrogate: split over slices and mini-batches, without a teacher, with what a rollout recorded."""

import dataclasses
import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.models import rounding
from opd_jax.objectives.divergence import HiddenAndHead, Objective
from opd_jax.objectives.loss import Loss
from opd_jax.objectives.surrogates import Surrogate
from opd_jax.objectives.token_weights import TokenWeighting
from opd_jax.rollout.sample import Sampling
from opd_jax.training.rows import shuffled
from opd_jax.training.update_stats import UpdateStats
from opd_jax.types import Credit, FrozenModels
from tests.helpers.distillation import STEP, H, fresh, learn, programs

ALONE = dataclasses.replace(STEP, teachers=(), n=2)  # no teacher, two rollouts of each prompt
ADVANTAGE = jnp.array([1.0, -1.0, 0.5, -0.5, 0.0, 0.0, 2.0, -2.0])
RECORDED = dataclasses.replace(STEP.sampling, recorded=4)
SURROGATES = {
  "drpo": Surrogate("drpo", threshold=0.05),
  "without |A|": Surrogate("drpo", threshold=0.05, advantage_scale=False),
  "ppo_clip": Surrogate("ppo_clip"),
  "dppo, top-K": Surrogate("dppo", threshold=0.01, divergence="topk_kl", k=4),
}


def rewarded(surrogate: Surrogate | None, **fields):
  measured = Objective(37, topk_distance=surrogate.divergence if surrogate and surrogate.recorded_ids else "topk_tv")
  return Loss(measured, divergence=0.0, reward=1.0, surrogate=surrogate, n=2, **fields)


@pytest.fixture(scope="module")
def drawn(student, prompts):
  """Two rollouts of each prompt by a student that has moved on since."""
  before = jax.tree.map(lambda a: a + 0.02 * jnp.sin(37 * a), student)
  step = dataclasses.replace(ALONE, sampling=RECORDED, loss=rewarded(None))
  return programs(step)[0](before, prompts, jax.random.key(4), H)


@pytest.fixture(scope="module")
def rollout(student, prompts):
  return programs(STEP)[0](student, prompts, jax.random.key(4), H)


def without_records(drawn):
  return dataclasses.replace(drawn, recorded_ids=None, recorded_logprob=None)


def updated(step, student, prompts, rollout, advantage=ADVANTAGE):
  if not (step.loss.surrogate and step.loss.surrogate.recorded_ids):
    rollout = without_records(rollout)
  return learn(step, student, (), prompts, rollout, advantage=advantage)


@pytest.mark.long
@pytest.mark.parametrize("name", SURROGATES)
def test_the_loss_does_not_depend_on_how_the_rows_are_split(name, student, prompts, drawn):
  outcomes = []
  for parts in (1, 2):
    step = dataclasses.replace(ALONE, loss=rewarded(SURROGATES[name]), micro_batches=parts)
    outcomes.append(updated(step, student, prompts, drawn))
  (want, want_grads), (got, got_grads) = outcomes
  np.testing.assert_allclose(got["loss"], want["loss"], rtol=1e-4)
  assert want["grad_norm"] > 1e-3
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), got_grads, want_grads)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), got["largest"], want["largest"])
  np.testing.assert_allclose(got["sums"]["moved_by_mu"], want["sums"]["moved_by_mu"], rtol=1e-4, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("name", ["drpo", "dppo, top-K"])
def test_the_gradient_is_that_of_the_surrogate_of_the_drawn_tokens(name, student, prompts, drawn):
  """By JAX, through the log-probabilities of the drawn tokens alone."""
  surrogate = SURROGATES[name]
  step = dataclasses.replace(ALONE, loss=rewarded(surrogate))
  _, got = updated(step, student, prompts, drawn)
  mask, tokens = drawn.mask, jnp.sum(drawn.mask)

  def loss(params):
    hidden = step.forward(params, step.student, prompts, drawn)
    log = jax.nn.log_softmax(jnp.einsum("bhd,vd->bhv", hidden.hidden, hidden.head[:37]))
    now = jnp.take_along_axis(log, drawn.response[..., None], axis=-1)[..., 0]
    distance = None
    if surrogate.recorded_ids:
      then = jnp.take_along_axis(log, drawn.recorded_ids, axis=-1)
      p, q = jnp.exp(drawn.recorded_logprob), jnp.exp(then)
      other = jnp.any(drawn.recorded_ids == drawn.response[..., None], axis=-1)
      own = [jnp.where(other, 0.0, jnp.exp(x))[..., None] for x in (drawn.behavior_logprob, now)]
      p, q = (jnp.concatenate([a, b, 1 - a.sum(-1, keepdims=True) - b], -1) for a, b in zip((p, q), own, strict=True))
      distance = jnp.sum(jnp.where(p > 1e-7, p * jnp.log((p + 1e-8) / (q + 1e-8)), 0.0), -1)
    A = jnp.broadcast_to(ADVANTAGE[:, None], mask.shape)
    each = surrogate.loss(jnp.where(mask, now, 0.0), drawn.behavior_logprob, A, moved=distance)
    return jnp.sum(jnp.where(mask, each, 0.0)) / tokens

  want = jax.jit(jax.grad(loss))(student)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=3e-5), got, want)


@pytest.mark.long
def test_the_first_update_of_a_rollout_is_the_same_for_every_surrogate(student, prompts):
  """Nothing has moved yet."""
  step = dataclasses.replace(ALONE, loss=rewarded(None))
  rollout = programs(step)[0](student, prompts, jax.random.key(4), H)
  _, plain = updated(step, student, prompts, rollout)
  for name in ("drpo", "ppo_clip"):
    stats, grads = updated(dataclasses.replace(ALONE, loss=rewarded(SURROGATES[name])), student, prompts, rollout)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), grads, plain)
    assert float(stats["sums"]["beyond"].sum()) == 0
    np.testing.assert_allclose(stats["sums"]["ratio"].sum() / stats["tokens"], 1, rtol=1e-4)
    assert float(stats["sums"]["log_moved"].sum()) / float(stats["tokens"]) < 1e-4


def test_mini_batches_are_disjoint_and_hold_whole_groups(student, prompts, drawn):
  """Both updates from the same weights: their losses, weighed by tokens, are that of all rows."""
  whole = dataclasses.replace(ALONE, loss=rewarded(SURROGATES["drpo"]))
  step = dataclasses.replace(whole, mini_batches=2)
  update, rollout = programs(step)[1], without_records(drawn)
  credit = Credit(ADVANTAGE, jnp.ones(8, bool))
  parts = [update(fresh(student), FrozenModels(()), prompts, rollout, credit, jnp.int32(i))[1] for i in range(2)]
  all_rows, _ = updated(whole, student, prompts, drawn)
  tokens = [int(part["tokens"]) for part in parts]
  groups = np.asarray(drawn.mask).reshape(4, 2, -1)
  assert tokens == [groups[::2].sum(), groups[1::2].sum()]
  weighed = sum(float(p["loss"]) * t for p, t in zip(parts, tokens, strict=True)) / sum(tokens)
  np.testing.assert_allclose(weighed, all_rows["loss"], rtol=1e-4)
  seen = UpdateStats()
  seen.begin_pass()
  for part in parts:
    seen.add(jax.device_get(part))
  assert seen.tokens == int(all_rows["tokens"])
  for name, total in all_rows["sums"].items():
    if not name.endswith("_by_mu"):
      np.testing.assert_allclose(seen.sums[name], total, rtol=1e-4, atol=1e-5, err_msg=name)
  assert seen.moves["gradient_weight_min"] == pytest.approx(
    -float(all_rows["largest"]["minus_gradient_weight_min"]), abs=1e-5
  )


def test_rows_that_do_not_count_are_left_out_of_the_mean(student, prompts, drawn):
  step = dataclasses.replace(ALONE, loss=rewarded(SURROGATES["drpo"]))
  update, rollout = programs(step)[1], without_records(drawn)
  counted = jnp.arange(8) < 4
  _, some = update(fresh(student), FrozenModels(()), prompts, rollout, Credit(ADVANTAGE, counted))
  first = jax.tree.map(lambda a: a[:2], prompts), jax.tree.map(lambda a: a[:4], rollout)
  _, alone = update(fresh(student), FrozenModels(()), *first, Credit(ADVANTAGE[:4], counted[:4]))
  np.testing.assert_allclose(some["grad_norm"], alone["grad_norm"], rtol=1e-4)
  np.testing.assert_allclose(some["loss"], alone["loss"], rtol=1e-4)


@pytest.mark.long
def test_the_null_makes_unlikely_tokens_less_likely_and_asks_no_teacher(student, prompts):
  loss = Loss(
    Objective(37, kind="suppress", support="sampled"),
    TokenWeighting("rare", fraction=0.2),
    estimator="suppress",
    suppressing=(-0.5, 0.0),
  )
  step = dataclasses.replace(STEP, teachers=(), loss=loss)
  rollout = programs(step)[0](student, prompts, jax.random.key(4), H)
  stats, grads = learn(step, student, (), prompts, rollout)
  lengths = np.asarray(rollout.mask.sum(axis=1))
  assert int(stats["trained"]) == sum(np.ceil(0.2 * lengths - 1e-4))
  rare = loss.weights.choose(rollout.mask, jax.random.key(0), rollout.behavior_logprob)

  def likelihood(params):
    hidden = step.forward(params, step.student, prompts, rollout)
    log = jax.nn.log_softmax(jnp.einsum("bhd,vd->bhv", hidden.hidden, hidden.head[:37]))
    return jnp.sum(jnp.where(rare, jnp.take_along_axis(log, rollout.response[..., None], axis=-1)[..., 0], 0.0))

  stepped = jax.tree.map(lambda p, g: p - 1e-3 * g, student, grads)
  assert likelihood(stepped) < likelihood(student)


@pytest.mark.long
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_most_likely_ids_are_recorded_with_what_they_were_drawn_from(temperature, student, prompts):
  sampling = dataclasses.replace(RECORDED, temperature=temperature)
  step = dataclasses.replace(STEP, sampling=sampling)
  rollout = programs(step)[0](student, prompts, jax.random.key(4), H)
  plain = programs(dataclasses.replace(step, sampling=dataclasses.replace(sampling, recorded=0)))
  np.testing.assert_array_equal(rollout.response, plain[0](student, prompts, jax.random.key(4), H).response)
  hidden = step.forward(student, step.student, prompts, rollout)
  log = jax.nn.log_softmax(jnp.einsum("bhd,vd->bhv", hidden.hidden, hidden.head[:37]) / temperature)
  want, ids = jax.lax.top_k(log, 4)
  mask = np.asarray(rollout.mask)
  np.testing.assert_array_equal(rollout.recorded_ids[mask], ids[mask])
  np.testing.assert_allclose(rollout.recorded_logprob[mask], want[mask], atol=2e-5)


def test_shuffled_predictions_are_those_of_other_tokens_each_once(rollout):
  mask = np.asarray(rollout.mask)
  hidden = jnp.arange(mask.size, dtype=jnp.float32).reshape(*mask.shape, 1)
  order = jax.random.uniform(jax.random.key(0), mask.shape)
  got = np.asarray(shuffled(HiddenAndHead(hidden, jnp.ones((1, 1))), rollout.mask, order).hidden)[..., 0]
  want = np.asarray(hidden)[..., 0]
  assert sorted(got[mask]) == sorted(want[mask])
  assert np.mean(got[mask] == want[mask]) < 0.3
  np.testing.assert_array_equal(got[~mask], want[~mask])


def test_a_shuffled_teacher_is_another_one(student, teacher, prompts, rollout):
  as_it_is, _ = learn(STEP, student, teacher, prompts, rollout)
  stats, _ = learn(dataclasses.replace(STEP, shuffle_teacher=True), student, teacher, prompts, rollout)
  assert abs(float(stats["loss"]) / float(as_it_is["loss"]) - 1) > 1e-3


@pytest.mark.long
def test_a_sampler_of_lower_precision_records_its_own_probabilities(student, prompts):
  errors = []
  for precision in rounding.PRECISIONS:
    step = dataclasses.replace(ALONE, loss=rewarded(SURROGATES["ppo_clip"]), sampler_precision=precision)
    rollout = programs(step)[0](student, prompts, jax.random.key(4), H)
    stats, _ = updated(step, student, prompts, rollout)
    errors.append(float(stats["sums"]["log_moved"].sum()) / float(stats["tokens"]))
  exact, bf16, f8, i8 = errors
  assert exact < 1e-5 < bf16 < i8 < f8


def test_the_layers_matrices_are_rounded_by_output_channel_and_nothing_else(student):
  rounded = rounding.round_weights(student, "int8")
  layers, now = student["layers"], rounded["layers"]
  changed = {name for name in layers if not np.array_equal(layers[name], now[name])}
  assert changed == {name for name in ("q", "k", "v", "o", "gate", "up", "down") if name in layers}
  assert all(rounded[name] is student[name] for name in student if name != "layers")
  channel = np.asarray(now["o"][0, :, :, 3])  # of [L, N, h, D]: what one number of the output sums over
  scale = np.abs(np.asarray(layers["o"][0, :, :, 3])).max() / 127
  np.testing.assert_allclose(channel / scale, np.round(channel / scale), atol=1e-4)
  assert rounding.round_weights(student, "compute") is student


def test_a_bandit_is_solved():
  """Twenty rollout batches by DRPO make the rewarded token of a bandit the likeliest, and by no more than it may a round."""
  surrogate = Surrogate("drpo", threshold=0.15)
  logits = jnp.log(jnp.array([0.7, 0.2, 0.1]))

  @functools.partial(jax.jit, static_argnums=2)
  def step(logits, anchor, _):
    return logits - 0.5 * jax.grad(
      lambda x: jnp.sum(jnp.exp(anchor) * surrogate.loss(jax.nn.log_softmax(x), anchor, jnp.array([-1.0, -1.0, 1.0])))
    )(logits)

  for _ in range(20):
    anchor = jax.nn.log_softmax(logits)
    for _ in range(40):
      logits = step(logits, anchor, 0)
    moved = jnp.abs(jax.nn.softmax(logits) - jnp.exp(anchor))
    assert float(moved.max()) < 0.3
  assert float(jax.nn.softmax(logits)[2]) > 0.9


def test_greedy_sampling_has_log_probabilities_to_record(student, prompts):
  step = dataclasses.replace(STEP, sampling=Sampling(stop_ids=(1,), pad_id=0, vocab=37, temperature=0.0, recorded=2))
  rollout = programs(step)[0](student, prompts, jax.random.key(0), H)
  mask = np.asarray(rollout.mask)
  np.testing.assert_array_equal(rollout.recorded_ids[..., 0][mask], np.asarray(rollout.response)[mask])
  np.testing.assert_allclose(
    rollout.recorded_logprob[..., 0][mask], np.asarray(rollout.behavior_logprob)[mask], atol=1e-5
  )


def test_scores_of_a_prompt_are_refused_where_a_slice_holds_some_of_its_rollouts(tiny):
  """Slices of eight rows over eight devices hold one rollout of each of eight prompts."""
  script = f"""
import dataclasses
from opd_jax import config
from opd_jax.training import specs
from opd_jax.training.distillation import DistillationStep
keys = {{"objective.support": "sampled", "objective.standardise": True, "rollouts_per_prompt": 4, "batch": 8, "student": {tiny["student"]!r}}}
for micro_batch in (32, 8):
  c = config.override(config.default(), keys | {{"teacher": {tiny["teacher"]!r}, "micro_batch": micro_batch}})
  DistillationStep.from_specs(specs.from_architectures(c))
"""
  flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
  done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | flags)
  assert done.stderr.rstrip().endswith("raise it to 32 or more, or set it to 0."), done.stderr
