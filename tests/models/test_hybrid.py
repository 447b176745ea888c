"""A model with layers of the gated delta rule between those of attention: whole, token by token, padded, shared, adapted."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from opd_jax.analysis import attention_ratio
from opd_jax.models import decoder, delta_net, hf, lora, quantise, roofline, safetensors_io
from opd_jax.rollout import cache, prefix, sample
from opd_jax.rollout.segments import PLAIN, Segments
from opd_jax.types import Batch
from tests.conftest import HYBRID

H = 12
TARGETS = tuple(name for name in lora.INPUTS if name in decoder.shapes(HYBRID)["layers"])
LORA = lora.Lora(rank=3, alpha=6.0, targets=TARGETS)


@pytest.fixture(scope="module")
def model():
  """Random weights in which every norm and every trait of the rule is seen."""
  params = decoder.init(HYBRID, jax.random.key(0), scale=0.5)
  keys = iter(jax.random.split(jax.random.key(1), 64))
  return jax.tree.map(lambda a: a + 0.2 * jax.random.normal(next(keys), a.shape), params)


@functools.partial(jax.jit, static_argnames=("cfg", "remat"))
def logits(params, tokens, mask, cfg=HYBRID, remat="none"):
  return decoder.unembed(params, decoder.hidden(params, cfg, tokens, mask, remat=remat))


def tokens_of(rows: int, length: int):
  return jax.random.randint(jax.random.key(7), (rows, length), 2, HYBRID.vocab)


@pytest.mark.long
def test_parameters_are_stacked_by_the_layers_that_have_them():
  cfg = dataclasses.replace(HYBRID, layers=4)
  stacked = decoder.init(cfg, jax.random.key(0))["layers"]
  assert cfg.block == 2
  assert [cfg.holders(name) for name in ("q", "delta_qkv", "gate")] == [[1, 3], [0, 2], [0, 1, 2, 3]]
  assert {name: len(w) for name, w in stacked.items()} == {name: len(cfg.holders(name)) for name in stacked}
  layers = decoder.unstack(stacked, cfg)
  assert [("q" in w, "delta_qkv" in w, "gate" in w) for w in layers] == [(False, True, True), (True, False, True)] * 2
  np.testing.assert_array_equal(layers[2]["delta_out"], stacked["delta_out"][1])


@pytest.mark.few(1)
@pytest.mark.parametrize("order", ["dada", "dda", "add", "aadd"])
def test_layers_may_stand_in_any_order(order):
  kinds = tuple(decoder.LayerKind(mixer="delta" if letter == "d" else "attention") for letter in order)
  cfg = dataclasses.replace(HYBRID, layers=len(order), layer_kinds=kinds)
  params = decoder.init(cfg, jax.random.key(0), scale=0.5)
  tokens, mask = tokens_of(2, 9), jnp.ones((2, 9), bool)
  ropes, x = cfg.ropes(decoder.positions_of(mask)), decoder.embed(params, tokens, jnp.float32)
  for w, kind in zip(decoder.unstack(params["layers"], cfg), kinds, strict=True):
    if kind.mixer == "delta":
      x = x + decoder.gated_delta(x, w, cfg, mask)
    else:
      q, k, v, gate = decoder.qkv(x, w, cfg, ropes[0])
      x = x + decoder.project_out(decoder.attend_causal(q, k, v, mask), gate, w, cfg)
    x = x + decoder.feed_forward(x, w, cfg, mask)
  found = jax.jit(functools.partial(decoder.hidden, cfg=cfg))(params, tokens=tokens, mask=mask)
  np.testing.assert_allclose(found, decoder.norm(x, params["norm"], cfg), atol=2e-5)


@pytest.mark.few(1)
@pytest.mark.parametrize("remat", ["dots", "layer"])
def test_layers_that_run_again_have_the_same_gradient(remat, model):
  tokens, mask = tokens_of(2, 9), jnp.ones((2, 9), bool)

  def loss(params, remat):
    return jnp.sum(jnp.sin(logits(params, tokens, mask, remat=remat)))

  found, expected = (jax.grad(loss)(model, how) for how in (remat, "none"))
  largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(expected))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest), found, expected)


@pytest.mark.few(1)
@pytest.mark.parametrize("padding", [1, 3, 70])
def test_padding_on_the_left_changes_nothing(padding, model):
  tokens = tokens_of(2, 9)
  padded = jnp.pad(tokens, ((0, 0), (padding, 0)), constant_values=5)
  mask = jnp.pad(jnp.ones_like(tokens, bool), ((0, 0), (padding, 0)))

  def loss(params, tokens, mask):
    return jnp.sum(logits(params, tokens, mask)[:, -9:] ** 2)

  plain = logits(model, tokens, jnp.ones_like(tokens, bool))
  np.testing.assert_allclose(logits(model, padded, mask)[:, padding:], plain, atol=2e-5)
  found, expected = jax.grad(loss)(model, padded, mask), jax.grad(loss)(model, tokens, jnp.ones_like(tokens, bool))
  for name in ("delta_qkv", "delta_conv", "delta_log_decay", "q"):
    a, b = found["layers"][name], expected["layers"][name]
    np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(b).max()), err_msg=name)


@pytest.mark.long
def test_padding_on_the_right_leaves_the_state(model):
  """Of a response that has ended; what stands behind it is not read by anything."""
  x = decoder.embed(model, tokens_of(2, 9), jnp.float32)
  w = decoder.unstack(model["layers"], HYBRID)[0]
  assert HYBRID.delta is not None
  after = functools.partial(delta_net.mix, w=w, net=HYBRID.delta, eps=1e-6)
  padded, mask = jnp.pad(x, ((0, 0), (0, 5), (0, 0)), constant_values=3.0), jnp.arange(14) < 9
  state = after(padded, mask=jnp.broadcast_to(mask, (2, 14)))[1].state
  np.testing.assert_allclose(state, after(x)[1].state, atol=1e-5)


@pytest.mark.few(1)
@pytest.mark.parametrize("first", [1, 2, 3, 63, 64, 65])
def test_a_prompt_and_tokens_behind_it_are_the_whole(first, model):
  tokens = tokens_of(2, first + 2)
  mask = jnp.ones_like(tokens, bool).at[0, : first - 1].set(False)
  w = cache.prepare_decode_params(model, HYBRID, jnp.float32)
  x, prompts = jax.jit(lambda *a: cache.prefill(w, HYBRID, *a))(tokens[:, :first], mask[:, :first])
  states, length = [x], mask[:, :first].sum(axis=1)[:, None]
  caches = [layer.of_rows(1).grow(2) for layer in prompts.layers]
  decode = jax.jit(lambda *a: cache.decode(w, HYBRID, *a))
  for t in range(2):
    x, caches = decode(tokens[:, first + t], HYBRID.ropes(length + t), jnp.int32(t), prompts, caches)
    states.append(x)
  expected = jax.jit(functools.partial(decoder.hidden, cfg=HYBRID))(model, tokens=tokens, mask=mask)
  np.testing.assert_allclose(jnp.stack(states, axis=1), expected[:, first - 1 :], atol=5e-5)


@pytest.mark.few(1)
@pytest.mark.parametrize("segments", [PLAIN, Segments(3, shrink=(4,))], ids=["plain", "shrinking"])
@pytest.mark.parametrize("n", [1, 3])
def test_log_probabilities_of_a_rollout_are_those_of_the_whole(n, segments, model, prompts):
  """Rows end early, and go on in smaller batches; a prompt's state is copied to its rollouts."""
  sampling = sample.Sampling(stop_ids=(1, 7, 9, 12), pad_id=0, vocab=37)
  run = jax.jit(
    functools.partial(sample.rollout, cfg=HYBRID, sampling=sampling, response_len=H, n=n, segments=segments)
  )
  rollout = run(model, prompts, jax.random.key(2), jnp.int32(H))
  assert 0 < rollout.ended.sum() < 4 * n
  x = decoder.response_hidden(model, HYBRID, prompts.prompt, prompts.prompt_mask, rollout.response, rollout.mask)
  every = jax.nn.log_softmax(decoder.unembed(model, x))
  expected = np.take_along_axis(np.asarray(every), np.asarray(rollout.response)[..., None], axis=-1)[..., 0]
  mask = np.asarray(rollout.mask)
  np.testing.assert_allclose(rollout.behavior_logprob[mask], expected[mask], atol=1e-5, rtol=1e-5)


@pytest.mark.long
def test_rollouts_of_a_prompt_begin_with_copies_of_its_state(model, prompts):
  sampling = sample.Sampling(stop_ids=(1, 7, 9, 12), pad_id=0, vocab=37)
  run = functools.partial(sample.rollout, cfg=HYBRID, sampling=sampling, response_len=H)
  copies = jax.tree.map(lambda a: jnp.repeat(a, 3, axis=0), prompts)
  found, expected = (
    jax.jit(functools.partial(run, n=n))(model, batch, jax.random.key(2), jnp.int32(H))
    for n, batch in ((3, prompts), (1, copies))
  )
  np.testing.assert_array_equal(found.response, expected.response)


def test_a_prompt_that_stands_once_has_the_gradient_of_its_copies(model, prompts):
  """The state behind a prompt is where its responses begin, and gathers their gradients."""
  rng, n = np.random.default_rng(0), 3
  response = jnp.asarray(rng.integers(2, 37, (4 * n, 7)))
  mask = jnp.asarray(np.arange(7) < rng.integers(1, 8, (4 * n, 1)))
  copies = jax.tree.map(lambda a: jnp.repeat(a, n, axis=0), prompts)

  def loss(params, batch: Batch):
    x = decoder.response_hidden(params, HYBRID, batch.prompt, batch.prompt_mask, response, mask)
    return jnp.sum(jnp.where(mask[..., None], jnp.sin(decoder.unembed(params, x)), 0))

  (once, found), (repeated, expected) = (jax.jit(jax.value_and_grad(loss))(model, b) for b in (prompts, copies))
  np.testing.assert_allclose(once, repeated, rtol=1e-5)
  largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(expected))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5 * largest), found, expected)


def test_rows_cannot_go_back_in_a_state():
  assert prefix.supports(dataclasses.replace(HYBRID, delta=None, layer_kinds=()), 64)
  assert not prefix.supports(HYBRID, 64)


@pytest.mark.long
def test_adapters_are_merged_written_and_read(model, tmp_path):
  new = lora.init(HYBRID, LORA, jax.random.key(5))
  keys = iter(jax.random.split(jax.random.key(6), 64))
  adapter = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(next(keys), a.shape), new)
  tokens, cfg = tokens_of(2, 9), dataclasses.replace(HYBRID, adapter_scale=LORA.scale)
  joined = lora.join(model, adapter)
  found = logits(joined, tokens, jnp.ones_like(tokens, bool), cfg=cfg)
  merged = lora.merge(joined, LORA.scale)
  np.testing.assert_allclose(found, logits(merged, tokens, jnp.ones_like(tokens, bool)), atol=1e-4)
  assert all((merged["layers"][name] != model["layers"][name]).any() for name in TARGETS)
  lora.write(tmp_path, HYBRID, LORA, adapter, "BASE")
  assert lora.read_config(tmp_path) == LORA
  jax.tree.map(np.testing.assert_array_equal, lora.load(tmp_path, HYBRID, LORA), adapter)


@pytest.mark.long
def test_matrices_of_both_kinds_of_layers_are_quantised(model):
  small = quantise.quantise(model)
  assert {name for name, w in small["layers"].items() if not isinstance(w, jax.Array)} >= {
    "delta_qkv",
    "delta_out",
    "q",
  }
  tokens = tokens_of(2, 9)
  mask = jnp.ones_like(tokens, bool)
  plain = logits(model, tokens, mask)
  assert 0 < float(jnp.std(logits(small, tokens, mask) - plain)) < 0.1 * float(jnp.std(plain))


@pytest.mark.long
def test_what_a_token_attends_to_is_asked_of_layers_with_attention(model):
  tokens = tokens_of(2, 9)
  mask = jnp.ones_like(tokens, bool)
  everything = jnp.stack([mask, jnp.arange(9) < jnp.full((2, 1), 4)], axis=-1)
  mass = attention_ratio.attention_mass(model, tokens, mask, everything, cfg=HYBRID)
  assert mass.shape == (1, 2, 9, 2)
  np.testing.assert_allclose(mass[..., 0], 1.0, atol=1e-5)
  assert (mass[:, :, 5:, 1] < 1).all()


def test_parameters_and_states_are_counted():
  params = jax.eval_shape(lambda: decoder.init(HYBRID, jax.random.key(0)))
  assert roofline.parameter_count(HYBRID) == sum(a.size for a in jax.tree.leaves(params))
  _, prompts = jax.eval_shape(
    lambda params, tokens: cache.prefill(
      cache.prepare_decode_params(params, HYBRID, jnp.float32), HYBRID, tokens, tokens > 0
    ),
    params,
    jnp.zeros((3, 11), jnp.int32),
  )
  assert roofline.cache_bytes(HYBRID, 3, 11, 4) == 4 * sum(a.size for a in jax.tree.leaves(prompts.layers))


def test_a_model_born_here_is_read_back(model, tmp_path):
  hf.write(tmp_path / "out", HYBRID, model, pad_id=0, eos_id=1, dtype="float32")
  jax.tree.map(np.testing.assert_array_equal, hf.load(tmp_path / "out", HYBRID), model)


def test_decays_and_norms_of_the_rule_are_written_exactly(model, tmp_path):
  hf.write(tmp_path / "out", HYBRID, model, pad_id=0, eos_id=1, dtype="bfloat16", max_shard_bytes=4000)
  kinds = {name: t.dtype for name, t in safetensors_io.find_tensors(tmp_path / "out").items()}
  exact = {name for name, kind in kinds.items() if kind == "F32"}
  assert exact == {name for name in kinds if name.endswith(("linear_attn.A_log", "linear_attn.norm.weight"))}
  assert exact
  again = hf.load(tmp_path / "out", HYBRID)
  for name in ("delta_log_decay", "delta_norm"):
    np.testing.assert_array_equal(again["layers"][name], model["layers"][name])
  np.testing.assert_array_equal(again["embed"], model["embed"].astype(jnp.bfloat16))
  for file in (tmp_path / "out").glob("*.safetensors"):
    assert safetensors.numpy.load_file(file)
