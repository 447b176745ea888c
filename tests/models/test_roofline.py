"""What is counted, against numbers counted by hand and against XLA's own count."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from opd_jax.models import decoder, roofline, vision
from opd_jax.models.moe import MoE
from opd_jax.models.roofline import Cost
from opd_jax.rollout import cache
from opd_jax.runtime.machine import Machine, Rate, ReadRate
from opd_jax.types import Patches

# D 4, N 2, K 1, h 3, F 5, L 2: a layer has q 24, k 12, v 12, o 24 and three times 20 numbers: 132.
SMALL = decoder.DecoderConfig(vocab=10, d_model=4, layers=2, heads=2, kv_heads=1, head_width=3, ff_width=5)
# Large enough that what is not a matrix product hardly counts.
WIDE = decoder.DecoderConfig(
  vocab=256, d_model=128, layers=2, heads=4, kv_heads=2, head_width=32, ff_width=384, qk_norm=True
)
SIZES: Any = {"vocab": 8, "itemsize": 2}


def test_a_token_by_hand():
  """3 rows that see 7 slots: 2 x 264 + 4 x 2 layers x 2 heads x 3 x 7 + 2 x 8 x 4 FLOPs each."""
  cost = roofline.decode_step(SMALL, 3, 1, 2, 5, **SIZES)
  assert cost.flops == 3 * (528 + 336 + 64)
  assert cost.weight_bytes == 2 * (264 + 8 * 4)
  assert cost.sharded_bytes == 2 * 3 * 7 * 2 * 2 * 1 * 3, "keys and values of 2 layers, 1 head, 3 wide"
  assert cost.bytes == cost.weight_bytes + cost.sharded_bytes


def test_a_rollout_by_hand():
  """Two prompts of 3 tokens, read once for their two rollouts each: 6 pairs a prompt."""
  first, *rest = roofline.rollout(SMALL, 2, 2, 3, 5, **SIZES)
  assert first.flops == 2 * 3 * 528 + 2 * 6 * (4 * 2 * 2 * 3) + 4 * 64
  assert first.sharded_bytes == 2 * 3 * 12 * 2, "a cache of 3 slots for each prompt"
  assert rest == [roofline.decode_step(SMALL, 2, 2, 3, t, **SIZES) for t in (1, 2, 3, 4)]


def test_a_prompt_is_read_once_for_its_rollouts():
  """FLOPs of a token are those of as many prompts, bytes are those of one; an update reads 3 + 4 x 1 tokens a prompt."""
  shared, alone = (roofline.decode_step(SMALL, prompts, n, 3, 4, **SIZES) for prompts, n in ((2, 5), (10, 1)))
  assert shared.flops == alone.flops
  assert alone.sharded_bytes - shared.sharded_bytes == (10 - 2) * 3 * 12 * 2
  shared = roofline.update(SMALL, (), 2, 4, 3, 2, **SIZES)
  pairs = 6 + 4 * (3 + 1)  # of a prompt, and of the one token that is read of each response
  assert shared.flops == 3 * 2 * ((3 + 4) * 528 + pairs * 48 + 4 * 2 * 64)
  assert shared.bytes == roofline.update(SMALL, (), 8, 1, 3, 2, **SIZES).bytes


def test_an_update_by_hand():
  """One row of 3 + 2 tokens, of which 4 are read: 10 pairs; the teacher is as large as the student."""
  forward, logits = 4 * 528 + 10 * 48, 2 * 64
  cost = roofline.update(SMALL, (SMALL,), 1, 1, 3, 2, **SIZES)
  assert cost.flops == forward + logits + 3 * (forward + logits)
  assert cost.weight_bytes == 3 * 2 * (264 + 32)
  assert cost.sharded_bytes == 8 * 4 * (264 + 10 * 4 + 2 * 2 * 4 + 4), (
    "matrices, embedding, two norms a layer and the last"
  )
  layer, dots = (roofline.update(SMALL, (SMALL,), 1, 1, 3, 2, **SIZES, remat=remat) for remat in ("layer", "dots"))
  assert layer.flops - cost.flops == forward
  assert dots.flops - cost.flops == 10 * 48
  assert roofline.update(SMALL, (SMALL, SMALL), 1, 1, 3, 2, **SIZES).flops == cost.flops + forward + logits


def test_experts_are_held_by_all_and_used_by_few():
  """A router of 4 x 6, and 6 experts of 60 numbers, of which a token goes through 2."""
  cfg = dataclasses.replace(SMALL, moe=MoE(experts=6, per_token=2, renormalise=True))
  assert roofline.layer_parameters(cfg) == 2 * (72 + 24 + 6 * 60)
  token, dense = (roofline.decode_step(model, 3, 1, 2, 5, **SIZES) for model in (cfg, SMALL))
  assert token.flops - dense.flops == 3 * 2 * 2 * (24 + 2 * 60 - 60)
  assert token.weight_bytes - dense.weight_bytes == 2 * 2 * (24 + 5 * 60)
  params = jax.eval_shape(lambda: decoder.init(cfg, jax.random.key(0)))
  assert roofline.parameter_count(cfg) == sum(a.size for a in jax.tree.leaves(params))


def test_every_remat_is_counted():
  """One row of which 4 tokens are read, 10 pairs: "dots" saves the products with weights, "layer" saves none."""
  attention = 10 * (4 * 2 * 2 * 3)  # two products of 2 FLOPs, in 2 layers of 2 heads, 3 wide
  again = {"none": 0, "dots": attention, "layer": 4 * 528 + attention}
  assert again.keys() == set(decoder.REMAT)
  plain = roofline.update(SMALL, (), 1, 1, 3, 2, **SIZES)
  assert plain.flops == 3 * (again["layer"] + 2 * 64), "forward and twice backward, with the logits of 2 tokens"
  for remat, flops in again.items():
    cost = roofline.update(SMALL, (), 1, 1, 3, 2, **SIZES, remat=remat)
    assert cost.flops - plain.flops == flops, remat
    assert cost.bytes == plain.bytes


@pytest.mark.parametrize("changes", [{}, {"tied": False, "qk_norm": True}, {"qkv_bias": True}])
def test_parameters_are_those_of_the_model(changes):
  cfg = dataclasses.replace(SMALL, **changes)
  params = jax.eval_shape(lambda: decoder.init(cfg, jax.random.key(0)))
  assert roofline.parameter_count(cfg) == sum(a.size for a in jax.tree.leaves(params))


def xla_flops(f, *args) -> float:
  found = jax.jit(f).lower(*args).compile().cost_analysis()
  assert found is not None
  return found["flops"]


@pytest.fixture(scope="module")
def wide():
  return decoder.init(WIDE, jax.random.key(0))


@pytest.mark.parametrize("n", [1, 4])
def test_xla_counts_the_same_for_a_token(n, wide):
  B, P, t = 16, 64, 64
  w = cache.prepare_decode_params(wide, WIDE, jnp.float32)
  empty = cache.LayerCache(jnp.zeros((B, 2, 32, 0)), jnp.zeros((B, 2, 0, 32)))
  own = [empty.grow(t)] * WIDE.layers
  of_prompts = cache.LayerCache(jnp.zeros((B // n, 2, 32, P)), jnp.zeros((B // n, 2, P, 32)))
  prompts = cache.PromptCaches(jnp.ones((B // n, P), bool), [of_prompts] * WIDE.layers)
  ropes = WIDE.ropes(jnp.zeros((B, 1), jnp.int32))

  def step(w, tokens, prompts, caches):
    x, caches = cache.decode(w, WIDE, tokens, ropes, jnp.int32(t - 1), prompts, caches)
    return cache.logits(w, x, 200), caches

  counted = roofline.decode_step(WIDE, B // n, n, P, t, vocab=200, itemsize=4).flops
  assert counted == pytest.approx(xla_flops(step, w, jnp.zeros(B, jnp.int32), prompts, own), rel=0.1)


def test_xla_counts_the_same_forward_and_backward(wide):
  """XLA's program has whole squares of scores where half would do, so squares are compared."""
  B, T = 4, 64
  tokens, mask = jnp.zeros((B, T), jnp.int32), jnp.ones((B, T), bool)

  def loss(params):
    return jnp.sum(decoder.unembed(params, decoder.hidden(params, WIDE, tokens, mask)))

  forward = roofline.layer_flops(WIDE, B * T, B * T * T) + roofline.head_flops(WIDE, B * T, WIDE.vocab)
  assert forward == pytest.approx(xla_flops(loss, wide), rel=0.1)
  assert 3 * forward == pytest.approx(xla_flops(jax.grad(loss), wide), rel=0.1)


def test_seconds_are_of_what_binds():
  reads = (ReadRate(100, Rate(40.0, 20.0)), ReadRate(10_000, Rate(10.0, 5.0)))
  machine = Machine(reads, copy=Rate(20.0, 10.0), matrix=Rate(1000.0, 500.0))
  assert roofline.seconds(Cost(5000, 100, 300), machine) == 400 / machine.bandwidth(400)
  assert roofline.seconds(Cost(50_000, 100, 300), machine) == 50
  assert roofline.seconds([Cost(50_000), Cost(1000)], machine) == 51, "one after the other"
  assert roofline.seconds(Cost(0, 400, 800), machine, devices=8, tensor=4) == 200 / machine.bandwidth(200)


def test_bandwidth_is_that_of_an_array_as_large():
  reads = tuple(ReadRate(size, Rate(best, best)) for size, best in ((100, 30.0), (1000, 40.0), (10_000, 10.0)))
  machine = Machine(reads, copy=Rate(1.0, 1.0), matrix=Rate(1.0, 1.0))
  assert machine.bandwidth(1e9) == machine.bandwidth(10_000) == 10
  assert machine.bandwidth(1) == machine.bandwidth(100) == 40, "a smaller array is read at least as fast"
  assert machine.bandwidth(3162.2776) == pytest.approx(25, rel=1e-3)


@pytest.mark.parametrize("gated", [False, True])
def test_xla_counts_the_same_of_a_tower(gated):
  tower = vision.VisionConfig(
    layers=1,
    width=64,
    heads=2,
    ff_width=160,
    out_width=96,
    patch=8,
    gated=gated,
    grid=None if gated else 4,
    taps=() if gated else (0,),
  )
  params = vision.init(tower, jax.random.key(0))
  at = jnp.broadcast_to(jnp.arange(64), (3, 64))
  patches = Patches(jnp.ones((3, 64, tower.pixels)), at // 8, at % 8, jnp.full((3, 64, 2), 8), at * 0)
  counted = roofline.tower_flops(tower, 3, 16)
  assert counted == pytest.approx(xla_flops(lambda w: vision.encode(w, tower, patches), params), rel=0.1)


def test_a_tower_counts_where_it_is_trained():
  tower = vision.VisionConfig(layers=2, width=16, heads=2, ff_width=40, out_width=8, patch=4)
  seeing = dataclasses.replace(SMALL, tower=tower)
  one = roofline.tower_flops(tower, 2, 6)
  first, *rest = roofline.rollout(seeing, 2, 4, 8, 3, **SIZES, features=6)
  blind = roofline.rollout(SMALL, 2, 4, 8, 3, **SIZES, features=6)
  assert (first.flops, rest) == (blind[0].flops + one, blind[1:]), "an image is seen once for all rollouts"
  for remat, times in (("none", 3), ("layer", 4)):
    flops = [roofline.update(cfg, (), 2, 4, 8, 3, **SIZES, features=6, remat=remat).flops for cfg in (seeing, SMALL)]
    assert flops[0] - flops[1] == pytest.approx(times * one)
