"""A student with experts: its rollout, prefill and decode are its forward pass."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.models import decoder, moe
from opd_jax.rollout import cache, sample
from opd_jax.rollout.segments import PLAIN
from tests.conftest import EXPERTS
from tests.helpers.rollout_hlo import WIDE, compiled, writes_in_loops

H = 8
SAMPLING = sample.Sampling(stop_ids=(1,), pad_id=0, vocab=37, temperature=0.0)


@pytest.fixture(scope="module")
def model():
  return decoder.init(EXPERTS, jax.random.key(0), scale=0.6)


@pytest.mark.long
def test_greedy_tokens_are_the_likeliest_of_the_teacher_forced_logits(model, prompts):
  run = jax.jit(functools.partial(sample.rollout, cfg=EXPERTS, sampling=SAMPLING, response_len=H))
  rollout = jax.device_get(run(model, prompts, jax.random.key(3), H))

  @jax.jit
  def of_responses(response, mask):
    x = decoder.response_hidden(model, EXPERTS, prompts.prompt, prompts.prompt_mask, response, mask)
    return jax.nn.log_softmax(decoder.unembed(model, x))

  logprob = np.asarray(of_responses(rollout.response, rollout.mask))
  own = np.take_along_axis(logprob, rollout.response[..., None], -1)[..., 0]
  assert rollout.mask.sum() > 15
  np.testing.assert_allclose(rollout.behavior_logprob[rollout.mask], own[rollout.mask], atol=1e-5)
  np.testing.assert_array_equal(rollout.response[rollout.mask], logprob.argmax(-1)[rollout.mask])


@pytest.mark.long
def test_prefill_and_decode_take_any_moe_fn(model, prompts, monkeypatch):
  """Token by token in blocks of pairs, against the whole sequence at once in the reference."""
  monkeypatch.setitem(moe.BLOCK, "cpu", 4)
  calls = []

  def blocks(x, w, cfg, mask):
    calls.append((x.shape[1], mask is not None))
    return moe.feed_forward(None, x, w, cfg, mask, kind="blocks")

  B, P = prompts.prompt.shape
  tokens = jnp.asarray(np.random.default_rng(0).integers(2, 37, (B, 3)))
  w = cache.prepare_decode_params(model, EXPERTS, jnp.dtype("float32"))
  prefill = jax.jit(lambda *a: cache.prefill(w, EXPERTS, *a, moe_fn=blocks))
  decode = jax.jit(lambda *a: cache.decode(w, EXPERTS, *a, moe_fn=blocks))
  x, of_prompts = prefill(prompts.prompt, prompts.prompt_mask)
  states, caches = [x], [c.of_rows(1).grow(3) for c in of_prompts.layers]
  length = prompts.prompt_mask.sum(axis=1)[:, None]
  for t in range(2):
    ropes = EXPERTS.ropes(length + t)
    x, caches = decode(tokens[:, t], ropes, jnp.int32(t), of_prompts, caches)
    states.append(x)
  mask = jnp.ones_like(tokens, bool)
  respond = jax.jit(lambda *arrays: decoder.response_hidden(model, EXPERTS, *arrays))
  expected = respond(prompts.prompt, prompts.prompt_mask, tokens, mask)
  np.testing.assert_allclose(jnp.stack(states, axis=1), expected, atol=2e-5)
  assert calls == [(P, True)] * EXPERTS.layers + [(1, False)] * EXPERTS.layers


@pytest.mark.long
def test_no_copy_of_an_experts_matrix_in_the_token_loop():
  cfg = dataclasses.replace(WIDE, moe=moe.MoE(8, 2, True))
  assert writes_in_loops(compiled(PLAIN, cfg), cfg.d_model * cfg.ff_width) == []
