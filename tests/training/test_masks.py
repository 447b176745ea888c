"""Masks of coordinates: what is frozen stays bit for bit, and every kind of mask has its density and what it is named for."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax import config
from opd_jax.errors import InputError
from opd_jax.runtime import mesh as meshes
from opd_jax.training import masks, optim, selection, state
from opd_jax.training.subnetwork import Subnetwork
from opd_jax.types import MaskedAveragedTrainState, MaskedTrainState
from tests.helpers.eight_devices import json_from_eight_devices
from tests.helpers.mask_choices import KEY, PARAMS, L, moved

ADAMW = {"optimizer.lr": 1e-2, "optimizer.weight_decay": 0.1, "optimizer.clip": 1.0}
SGD = ADAMW | {"optimizer.kind": "sgd", "optimizer.momentum": 0.9}
MESH = meshes.make(devices=jax.devices()[:1])
AFTER = moved()


def configured(**changes):
  return config.override(config.default(), {"subnetwork.mask": "global", "subnetwork.density": 0.3, **changes})


def random_mask(share: float):
  """A packed mask of about this share of every parameter."""
  return jax.tree.map(
    lambda a: masks.pack(jax.random.uniform(jax.random.fold_in(KEY, a.size), a.shape) < share), PARAMS
  )


@functools.cache
def program(c_items: tuple):
  optimizer = optim.make(configured(**dict(c_items)).optimizer)
  return jax.jit(lambda s, grads: optim.apply(optimizer, s, grads, jnp.float32(1))[0])


@jax.jit
def gradient(params, seed):
  """A gradient that is nowhere zero."""
  return jax.tree.map(lambda a: a + jax.random.normal(jax.random.key(seed), a.shape) + 3, params)


def trained(settings: dict, mask=None, steps: int = 100):
  """The state before and after some updates."""
  start = state.init(
    configured(**settings, **({} if mask is not None else {"subnetwork.mask": "none", "subnetwork.density": 0.0})),
    PARAMS,
  )
  start = start if mask is None else dataclasses.replace(start, mask=mask)
  now, update = start, program(tuple(sorted(settings.items())))
  for seed in range(steps):
    now = update(now, gradient(now.params, seed))
  return start, now


def bit_equal(a, b) -> bool:
  return all(
    np.asarray(x).tobytes() == np.asarray(y).tobytes()
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


@pytest.mark.parametrize("settings", [ADAMW, SGD], ids=["adamw", "sgd"])
def test_frozen_coordinates_stay_bit_for_bit_through_decay_and_momentum(settings):
  start, now = trained(settings, random_mask(0.3))
  assert int(now.step) == 100
  mask = masks.of(now)
  for m, a, b in zip(*map(jax.tree.leaves, (mask, start.params, now.params)), strict=True):
    m, a, b = (np.asarray(x) for x in (m, a.view(jnp.uint32), b.view(jnp.uint32)))
    assert 0 < m.sum() < m.size
    np.testing.assert_array_equal(a[~m], b[~m])
    assert (a[m] != b[m]).all()
  moments = [x for x in jax.tree.leaves(now.opt_state) if x.ndim]
  assert len(moments) == len(jax.tree.leaves(PARAMS)) * (2 if settings is ADAMW else 1)
  for m, moment in zip(jax.tree.leaves(mask) * 2, moments, strict=False):
    assert not np.asarray(moment)[~np.asarray(m)].any()
    assert np.asarray(moment)[np.asarray(m)].all()


def test_a_negative_zero_that_is_frozen_keeps_its_sign():
  start, now = trained(ADAMW, random_mask(0.0), steps=1)
  assert np.signbit(np.asarray(PARAMS["norm"])[0])
  assert bit_equal(start.params, now.params)


@pytest.mark.parametrize("settings", [ADAMW, SGD], ids=["adamw", "sgd"])
def test_a_full_mask_is_none(settings):
  _, masked = trained(settings, masks.full(PARAMS), steps=20)
  _, whole = trained(settings, steps=20)
  assert isinstance(masked, MaskedTrainState)
  assert not isinstance(whole, MaskedTrainState)
  assert bit_equal((masked.params, masked.opt_state), (whole.params, whole.opt_state))


def test_an_empty_mask_changes_nothing_and_its_updates_are_counted_as_empty():
  start, now = trained(ADAMW, random_mask(0.0), steps=3)
  assert bit_equal((start.params, start.opt_state), (now.params, now.opt_state))
  assert (int(now.step), int(now.empty), int(now.skipped)) == (3, 3, 0)


def test_what_is_frozen_neither_clips_nor_skips():
  """The norm is that of the masked gradient, and a NaN at a frozen coordinate is nobody's."""
  c = configured(**{"optimizer.clip": 1.0})
  mask = {"q": masks.pack(jnp.array([True, False, False]))}
  s = dataclasses.replace(state.init(c, {"q": jnp.zeros(3)}), mask=mask)
  now, norm = optim.apply(optim.make(c.optimizer), s, {"q": jnp.array([0.5, 1e6, jnp.nan])}, jnp.float32(1))
  assert float(norm) == 0.5
  assert int(now.skipped) == 0
  first = next(a for a in jax.tree.leaves(now.opt_state) if a.shape == (3,))
  np.testing.assert_allclose(first, [0.05, 0, 0], rtol=1e-6)


def test_the_average_of_a_masked_student_has_a_mask_too():
  keys = {"teacher": "initial", "teacher_update.kind": "ema"}
  assert isinstance(state.init(configured(**keys), PARAMS), MaskedAveragedTrainState)


def test_packing_is_undone():
  mask = jax.random.bernoulli(KEY, 0.5, (3, 13))
  packed = masks.pack(mask)
  assert (packed.shape, packed.dtype) == ((3, 2), jnp.uint8)
  np.testing.assert_array_equal(masks.unpack(packed, 13), mask)


# How coordinates are chosen.


def found(mask: str, after=AFTER, **more):
  """The mask of a kind as bool arrays."""
  packed = Subnetwork(mask, **more).find(MESH, PARAMS, after, KEY)
  return jax.tree.map(lambda bits, a: np.asarray(masks.unpack(bits, a.shape[-1])), packed, PARAMS)


@functools.cache
def visible():
  return found("visible")


def total(mask) -> int:
  return sum(int(m.sum()) for m in jax.tree.leaves(mask))


def by_tensor(mask) -> list[int]:
  """Counts of every tensor of every layer."""
  stacked = [m.reshape(L, -1).sum(1) for m in jax.tree.leaves(mask["layers"])]
  return np.concatenate([*stacked, [mask["embed"].sum()], [mask["norm"].sum()]]).tolist()


def by_layer(mask) -> list[int]:
  layers = np.sum([m.reshape(L, -1).sum(1) for m in jax.tree.leaves(mask["layers"])], axis=0)
  return [*layers, mask["embed"].sum(), mask["norm"].sum()]


SIZE = sum(a.size for a in jax.tree.leaves(PARAMS))


def test_visible_is_what_bfloat16_shows():
  def in_bf16(x):
    return np.asarray(x.astype(jnp.bfloat16).astype(jnp.float32))

  def moved_in_bf16(a, b):
    return np.abs(in_bf16(in_bf16(a) + (b - a)) - in_bf16(a)) > 1e-5

  want = jax.tree.map(moved_in_bf16, PARAMS, AFTER)
  assert bit_equal(visible(), want)
  assert 0.02 < total(visible()) / SIZE < 0.9
  fine = found("visible", mantissa=23)
  assert bit_equal(
    fine, jax.tree.map(lambda a, b: np.abs(np.asarray(b) - np.asarray(a)) > np.float32(1e-5), PARAMS, AFTER)
  )
  assert total(fine) > total(visible())


def test_where_a_weight_lies_between_two_that_can_be_stored_does_not_matter():
  """The mask of an update is that of the rounded weight, as runs have it that begin with a bf16 checkpoint."""
  on = jax.random.normal(KEY, (64, 64)).astype(jnp.bfloat16).astype(jnp.float32)
  cell = 2.0 ** (jnp.floor(jnp.log2(jnp.abs(on))) - 7)
  off = on + 0.24 * cell * jax.random.uniform(jax.random.fold_in(KEY, 1), on.shape, minval=-1)
  update = 1e-3 * jax.random.normal(jax.random.fold_in(KEY, 2), on.shape)
  (seen,), (there,) = (selection.moved_visibly([w], [w + update], 0.0, 7) for w in (on, off))
  assert 0.1 < float(seen.mean()) < 0.9
  assert int((seen != there).sum()) <= 1  # off + update is rounded to fp32, which may pass a boundary


@pytest.mark.long
@pytest.mark.parametrize("kind", ["top", "lowest", "stratified", "layer", "tensor", "global"])
def test_every_kind_has_exactly_the_visible_density(kind):
  mask = found(kind)
  assert total(mask) == total(visible())
  assert not bit_equal(mask, visible())
  assert bit_equal(mask, found(kind)), "the same every time"


@pytest.mark.long
@pytest.mark.parametrize(
  ("kind", "density"),
  [("top", 0.01), ("lowest", 0.9), ("stratified", 0.5), ("layer", 0.01), ("tensor", 0.7), ("global", 1.0)],
)
def test_or_the_one_that_is_asked_for(kind, density):
  assert total(found(kind, density=density)) == round(density * SIZE)


@pytest.mark.parametrize("kind", ["lowest", "layer", "tensor", "global"])
def test_a_density_needs_no_other_run(kind):
  mask = found(kind, after=None, density=0.25)
  assert total(mask) == round(0.25 * SIZE)
  if kind == "tensor":
    sizes = by_tensor(jax.tree.map(lambda a: np.ones(a.shape, bool), PARAMS))
    assert all(abs(got - size / 4) < 1 for got, size in zip(by_tensor(mask), sizes, strict=True))


def test_top_is_what_moved_most_in_fp32():
  delta = np.concatenate(
    [np.abs(np.asarray(b - a)).ravel() for a, b in zip(*map(jax.tree.leaves, (PARAMS, AFTER)), strict=True)]
  )
  mask = np.concatenate([m.ravel() for m in jax.tree.leaves(found("top"))])
  assert delta[mask].min() >= delta[~mask].max()


def test_lowest_has_the_smallest_of_every_tensor():
  mask = found("lowest")
  assert by_tensor(mask) == by_tensor(visible())
  for m, w in zip(*map(jax.tree.leaves, (mask["layers"], PARAMS["layers"])), strict=True):
    for of_layer, weights in zip(m, np.abs(np.asarray(w)), strict=True):
      if 0 < of_layer.sum() < of_layer.size:
        assert weights[of_layer].max() <= weights[~of_layer].min()


def test_equal_magnitudes_are_chosen_among_at_random():
  """In bfloat16 many weights are as large; the first of a matrix are not preferred."""
  params = {"embed": jnp.ones((64, 64))}
  packed = Subnetwork("lowest", density=0.25).find(MESH, params, None, KEY)
  rows = np.asarray(masks.unpack(packed["embed"], 64)).sum(axis=1)
  assert rows.sum() == 1024
  assert rows.max() < 32


def test_equal_scores_are_taken_from_the_first_place_on():
  tensors = selection.Tensors([jnp.zeros((2, 3, 5)), jnp.zeros(7)], (True, False))

  def equal():
    return [jnp.full(a.shape, 5, jnp.uint32) for a in tensors.arrays]

  one, other = selection.largest(tensors, [equal], np.array([0, 0, 1]), np.array([17, 3]))
  assert np.flatnonzero(one).tolist() == list(range(17))
  assert np.flatnonzero(other).tolist() == [0, 1, 2]


def test_stratified_has_as_many_of_every_magnitude():
  mask, seen = found("stratified"), visible()
  assert by_tensor(mask) == by_tensor(seen)
  for name, w in PARAMS["layers"].items():
    for of_layer, of_visible, weights in zip(
      mask["layers"][name], seen["layers"][name], np.abs(np.asarray(w)), strict=True
    ):
      octave = weights.view(np.uint32) >> 21
      lowest = octave >= (np.abs(np.asarray(w)).view(np.uint32) >> 21).max() - 62  # the last stratum is open
      np.testing.assert_array_equal(
        np.bincount(octave[of_layer & lowest], minlength=1024), np.bincount(octave[of_visible & lowest], minlength=1024)
      )
  assert by_tensor(found("tensor")) == by_tensor(seen)
  assert not bit_equal(mask, found("tensor"))


def test_layer_matches_layers_and_tensor_tensors_and_global_neither():
  seen = visible()
  layer, tensor, anywhere = found("layer"), found("tensor"), found("global")
  assert by_layer(layer) == by_layer(seen)
  assert by_tensor(layer) != by_tensor(seen)
  assert by_tensor(tensor) == by_tensor(seen)
  assert by_layer(anywhere) != by_layer(seen)
  for m in (layer, tensor, anywhere):
    assert not bit_equal(m, seen)


def test_a_scaled_profile_keeps_its_shape():
  half = np.array(by_layer(found("layer", density=0.5 * total(visible()) / SIZE)))
  np.testing.assert_allclose(half, np.array(by_layer(visible())) / 2, atol=1)


@pytest.mark.parametrize(("way", "share"), [("trained", 1.0), ("frozen", 0.0)])
def test_embeddings_and_norms_may_be_left_out(way, share):
  mask = found("global", density=0.5, embeddings=way, norms=way)
  assert mask["embed"].mean() == share
  assert mask["norm"].mean() == share
  assert mask["layers"]["q_norm"].mean() == share
  assert mask["layers"]["q_bias"].mean() == share
  rest = [mask["layers"][name] for name in ("q", "gate")]
  assert sum(m.sum() for m in rest) == round(0.5 * sum(m.size for m in rest))


def test_a_mask_of_nothing_is_refused():
  with pytest.raises(
    InputError, match=r"No coordinate of config.subnetwork.mask_from moved by more than .*threshold=1e-05"
  ):
    found("visible", after=PARAMS)
  with pytest.raises(InputError, match=r"config.subnetwork.density is 1e-09"):
    found("global", after=None, density=1e-9)


@pytest.mark.parametrize(
  ("weights", "sizes", "total", "want"),
  [
    ([3, 1, 0], [10, 10, 10], 4, [3, 1, 0]),
    ([3, 1, 0], [10, 10, 10], 8, [6, 2, 0]),
    ([3, 1, 0], [4, 10, 10], 8, [4, 4, 0]),
    ([3, 1, 0], [4, 10, 10], 18, [4, 10, 4]),
    ([1, 1, 1], [5, 5, 5], 7, [3, 2, 2]),
    ([0, 0, 0], [2, 4, 2], 4, [1, 2, 1]),
    ([5, 5], [5, 5], 0, [0, 0]),
  ],
)
def test_a_total_is_divided_in_proportion(weights, sizes, total, want):
  assert selection.apportion(np.array(weights), np.array(sizes), total).tolist() == want


def test_parts_are_counted_apart():
  mask = masks.full(PARAMS)
  mask["embed"] = jnp.zeros_like(mask["embed"])
  counts = masks.counts(mask, PARAMS)
  assert list(counts) == ["embeddings", "norms", "attention", "MLP"]
  assert counts["embeddings"] == (0, PARAMS["embed"].size)
  assert all(trained == size > 0 for name, (trained, size) in counts.items() if name != "embeddings")
  assert sum(size for _, size in counts.values()) == SIZE


@pytest.mark.long
def test_on_eight_devices_the_same_coordinates_are_chosen_and_trained():
  """By every kind, over fsdp and tensor axes; masks lie as their weights do."""
  alone, several = json_from_eight_devices("tests.helpers.mask_choices")
  assert alone == several["found"]
  assert several["split"], "packed bits are split over the devices"
