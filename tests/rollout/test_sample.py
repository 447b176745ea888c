"""Sampling: exact log-probabilities, stop tokens, limits, and the independence of rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.models import decoder
from opd_jax.rollout import sample
from opd_jax.rollout.segments import PLAIN, Segments
from opd_jax.types import Batch
from tests.conftest import STUDENT

SAMPLING = sample.Sampling(stop_ids=(1, 7), pad_id=0, vocab=37)
H = 12


@functools.cache
def program(sampling=SAMPLING, response_len=H, n=1):
  return jax.jit(functools.partial(sample.rollout, cfg=STUDENT, sampling=sampling, response_len=response_len, n=n))


def run(params, batch, key=0, limit=None, **settings):
  """Roll out, up to the response length where there is no other limit."""
  limit = settings.get("response_len", H) if limit is None else limit
  return jax.device_get(program(**settings)(params, batch, jax.random.key(key), limit))


def teacher_forced(params, batch, rollout, temperature=1.0):
  """Compute the log-probabilities of the response's tokens by a forward pass over it."""
  response, mask = jnp.asarray(rollout.response), jnp.asarray(rollout.mask)
  x = decoder.response_hidden(params, STUDENT, batch.prompt, batch.prompt_mask, response, mask)
  logprob = jax.nn.log_softmax(decoder.unembed(params, x) / temperature)
  return np.take_along_axis(np.asarray(logprob), np.asarray(rollout.response)[..., None], -1)[..., 0]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_behaviour_logprob_is_the_teacher_forced_one(student, prompts, temperature):
  rollout = run(student, prompts, sampling=dataclasses.replace(SAMPLING, temperature=temperature))
  expected = teacher_forced(student, prompts, rollout, temperature)
  assert rollout.mask.sum() > 10
  np.testing.assert_allclose(rollout.behavior_logprob[rollout.mask], expected[rollout.mask], atol=1e-5)
  assert (rollout.behavior_logprob[~rollout.mask] == 0).all()


def test_frozen_rows_and_stop_tokens(student, prompts):
  """The mask is true up to and including the stop token; pad follows; a row that was cut has no stop token."""
  ended_any = cut_any = False
  for key in range(6):
    rollout = run(student, prompts, key)
    for response, mask, ended in zip(rollout.response, rollout.mask, rollout.ended, strict=True):
      length = mask.sum()
      assert (mask == (np.arange(H) < length)).all()
      assert (response[length:] == SAMPLING.pad_id).all()
      stops = np.isin(response[:length], SAMPLING.stop_ids)
      assert stops[-1] == ended
      assert not stops[:-1].any()
      assert ended or length == H
      ended_any, cut_any = ended_any or ended, cut_any or not ended
  assert ended_any
  assert cut_any, "the test needs rows of both kinds"


@pytest.mark.long
def test_pad_may_be_the_stop_token(student, prompts):
  """The stop token is trained although it is the padding too."""
  both = dataclasses.replace(SAMPLING, stop_ids=(1,), pad_id=1)
  apart = dataclasses.replace(SAMPLING, stop_ids=(1,), pad_id=0)
  a, b = run(student, prompts, 3, sampling=both), run(student, prompts, 3, sampling=apart)
  np.testing.assert_array_equal(a.mask, b.mask)
  np.testing.assert_array_equal(a.ended, b.ended)
  assert a.ended.any()
  for response, mask, ended in zip(a.response, a.mask, a.ended, strict=True):
    assert not ended or response[mask.sum() - 1] == 1


def test_a_limited_rollout_is_the_prefix_of_the_full_one(student, prompts):
  full, short = run(student, prompts, 5), run(student, prompts, 5, limit=4)
  narrow = run(student, prompts, 5, response_len=4)
  np.testing.assert_array_equal(short.mask, full.mask & (np.arange(H) < 4))
  np.testing.assert_array_equal(np.where(short.mask, short.response, 0), np.where(short.mask, full.response, 0))
  np.testing.assert_array_equal(narrow.response, short.response[:, :4])
  np.testing.assert_array_equal(narrow.mask, short.mask[:, :4])
  np.testing.assert_allclose(narrow.behavior_logprob, short.behavior_logprob[:, :4], atol=1e-5)


def test_same_key_same_tokens_other_key_other_tokens(student, prompts):
  a, b, c = (run(student, prompts, key) for key in (1, 1, 2))
  np.testing.assert_array_equal(a.response, b.response)
  assert (a.response != c.response).any()


@pytest.mark.long
def test_a_row_does_not_depend_on_its_neighbours(student, prompts):
  alone = Batch(prompt=prompts.prompt[:2], prompt_mask=prompts.prompt_mask[:2])
  np.testing.assert_array_equal(run(student, prompts, 1).response[:2], run(student, alone, 1).response)


@pytest.mark.long
def test_left_padding_changes_nothing(student, prompts):
  wider = Batch(
    prompt=jnp.pad(prompts.prompt, ((0, 0), (3, 0)), constant_values=9),
    prompt_mask=jnp.pad(prompts.prompt_mask, ((0, 0), (3, 0))),
  )
  np.testing.assert_array_equal(run(student, prompts, 1).response, run(student, wider, 1).response)


@pytest.mark.long
def test_rollouts_of_one_prompt_are_neighbours_and_differ(student, prompts):
  """n rollouts share one prefill and are those of the repeated prompts."""
  rollout = run(student, prompts, 1, n=3)
  repeated = jax.tree.map(lambda a: jnp.repeat(a, 3, axis=0), prompts)
  np.testing.assert_array_equal(rollout.response, run(student, repeated, 1).response)
  groups = rollout.response.reshape(4, 3, H)
  assert all((g[0] != g[1]).any() for g in groups)


@pytest.mark.parametrize(
  "segments", [PLAIN, pytest.param(Segments(3, shrink=(2,)), marks=pytest.mark.long)], ids=["plain", "shrinking"]
)
def test_rollouts_of_a_prompt_are_those_of_as_many_copies_of_it(segments, student, prompts):
  """They share its keys and values; the tokens are the same, and the log-probabilities to rounding."""
  settings = {"cfg": STUDENT, "sampling": SAMPLING, "response_len": H, "segments": segments}
  shared, alone = (jax.jit(functools.partial(sample.rollout, **settings, n=n)) for n in (3, 1))
  copies = jax.tree.map(lambda a: jnp.repeat(a, 3, axis=0), prompts)
  for key in range(4):
    a, b = shared(student, prompts, jax.random.key(key), H), alone(student, copies, jax.random.key(key), H)
    np.testing.assert_array_equal(a.response, b.response)
    np.testing.assert_array_equal(a.ended, b.ended)
    np.testing.assert_allclose(a.behavior_logprob, b.behavior_logprob, atol=1e-5)


def test_caches_are_of_prompts_and_of_responses(student, prompts):
  """A prompt's P slots once, and H for each of n rollouts, in place of n (P + H)."""
  batch, (p, P), n = prompts, prompts.prompt.shape, 8
  settings = {"cfg": STUDENT, "sampling": SAMPLING, "response_len": H, "n": n, "segments": PLAIN}
  jaxpr = str(jax.make_jaxpr(functools.partial(sample.rollout, **settings))(student, batch, jax.random.key(0), H))
  K, h = STUDENT.kv_heads, STUDENT.head_width
  assert f"f32[{p},{K},{P},{h}]" in jaxpr
  assert f"f32[{p * n},{K},{H},{h}]" in jaxpr
  assert f"f32[{p * n},{K},{P}" not in jaxpr
  assert f"f32[{p * n},{K},{P + H}" not in jaxpr


def test_loop_ends_when_all_rows_have(student, prompts):
  """With every id a stop token, one token is drawn and nothing after it."""
  rollout = run(student, prompts, sampling=dataclasses.replace(SAMPLING, stop_ids=tuple(range(37))))
  assert rollout.mask.sum(axis=1).tolist() == [1, 1, 1, 1]
  assert rollout.ended.all()


@pytest.mark.long
def test_ids_beyond_the_vocabulary_are_never_drawn(student, prompts):
  rollout = run(student, prompts, sampling=dataclasses.replace(SAMPLING, vocab=20, stop_ids=()), n=4)
  assert rollout.response.max() < 20


@pytest.mark.long
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"top_k": 30}], ids=str)
def test_ids_without_a_token_are_never_drawn(settings, student, prompts):
  """Neither the tail of a padded embedding nor a hole, and the log-probability is that of the draw."""
  never = ((3, 5), (9, 10), (20, 37))
  sampling = dataclasses.replace(SAMPLING, stop_ids=(), never=never, **settings)
  rollout = run(student, prompts, sampling=sampling, n=4)
  drawn = set(rollout.response.ravel().tolist())
  assert not drawn & {i for first, end in never for i in range(first, end)}
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(2000, 37)), jnp.float32)
  keys = jax.random.split(jax.random.key(1), 2000)
  token, logprob = sample.draw(keys, sample.leave_out(logits, never), SAMPLING)
  allowed = np.ones(37, bool)
  for first, end in never:
    allowed[first:end] = False
  expected = jax.nn.log_softmax(jnp.where(allowed, logits, -jnp.inf))
  np.testing.assert_allclose(
    logprob, np.take_along_axis(np.asarray(expected), np.asarray(token)[:, None], 1)[:, 0], atol=1e-5
  )
  assert set(token.tolist()) == set(np.flatnonzero(allowed).tolist())


def test_nothing_is_computed_where_every_id_has_a_token():
  """So that former runs have the program, and the tokens, that they had."""
  assert not jax.make_jaxpr(functools.partial(sample.leave_out, never=()))(jnp.zeros((2, 37))).eqns


def test_greedy_takes_the_most_likely(student, prompts):
  rollout = run(student, prompts, sampling=dataclasses.replace(SAMPLING, temperature=0.0))
  response, mask = jnp.asarray(rollout.response), jnp.asarray(rollout.mask)
  x = decoder.response_hidden(student, STUDENT, prompts.prompt, prompts.prompt_mask, response, mask)
  best = np.argmax(np.asarray(decoder.unembed(student, x)), axis=-1)
  np.testing.assert_array_equal(np.where(rollout.mask, rollout.response, 0), np.where(rollout.mask, best, 0))


def test_top_k_and_top_p_keep_the_likely_ones():
  logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))

  def allowed(**settings):
    restricted = sample.restrict(logits, dataclasses.replace(SAMPLING, **settings))
    return jnp.isfinite(restricted)[0].tolist()

  assert allowed(top_k=2) == [True, True, False, False]
  assert allowed(top_p=0.5) == [True, False, False, False]
  assert allowed(top_p=0.81) == [True, True, True, False]
  assert allowed(top_k=3, top_p=0.999) == [True, True, True, False]
  assert allowed() == [True] * 4


@pytest.mark.long
def test_draws_follow_the_distribution():
  """10,000 draws at temperature 2: frequencies within 5 standard errors, log-probabilities of the tempered law."""
  probs = np.array([0.6, 0.25, 0.1, 0.05])
  tempered = probs**0.5 / (probs**0.5).sum()
  keys = jax.random.split(jax.random.key(0), 10_000)
  logits = jnp.tile(jnp.log(probs), (10_000, 1))
  token, logprob = sample.draw(keys, logits, dataclasses.replace(SAMPLING, temperature=2.0))
  share = np.bincount(np.asarray(token), minlength=4) / 10_000
  assert (abs(share - tempered) < 5 * np.sqrt(tempered / 10_000)).all()
  np.testing.assert_allclose(logprob, np.log(tempered)[token], rtol=1e-5)


def test_no_sort_of_the_vocabulary_when_truncation_is_off(student, prompts):
  text = program().lower(student, prompts, jax.random.key(0), H).as_text()
  assert "stablehlo.sort" not in text
  assert "top_k" not in text
  truncated = program(sampling=dataclasses.replace(SAMPLING, top_p=0.9)).lower(student, prompts, jax.random.key(0), H)
  assert "stablehlo.sort" in truncated.as_text()
