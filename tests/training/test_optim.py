"""The optimiser chain and its schedule."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax import config
from opd_jax.planning import topology
from opd_jax.training import masks, optim
from opd_jax.training import state as states
from opd_jax.types import TrainState


def settings(**keys):
  return config.override(config.default(), {f"optimizer.{k}": v for k, v in keys.items()}).optimizer


def test_warm_up_rises_to_lr_and_stays():
  c = settings(lr=1.0, warmup=4)
  assert [optim.learning_rate(c, i) for i in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
  assert optim.learning_rate(settings(lr=1.0), 0) == 1.0
  assert optim.learning_rate(settings(lr=1.0, warmup=1), 0) == 1.0


def test_behind_the_warm_up_the_rate_falls_by_a_line_or_half_a_cosine():
  line = settings(lr=2.0, warmup=2, schedule="linear", decay_updates=4, min_lr_ratio=0.5)
  assert [optim.learning_rate(line, i) for i in range(9)] == [1.0, 2.0, 2.0, 1.75, 1.5, 1.25, 1.0, 1.0, 1.0]
  cosine = settings(lr=2.0, schedule="cosine", decay_updates=4)
  found = [optim.learning_rate(cosine, i) for i in range(6)]
  np.testing.assert_allclose(found, [2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5, 0.0, 0.0], atol=1e-12)


@pytest.mark.parametrize(
  "schedule",
  [{}, {"schedule": "linear", "decay_updates": 4, "min_lr_ratio": 0.1}, {"schedule": "cosine", "decay_updates": 3}],
)
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_the_optimiser_follows_the_schedule(kind, schedule):
  """Its first steps on a constant gradient have the length of the learning rate."""
  c = settings(kind=kind, lr=1.0, warmup=2, clip=0.0, **schedule)
  optimizer = optim.make(c)
  params = {"q": jnp.zeros(1)}
  state = optimizer.init(params)
  moved = []
  for _ in range(8):
    updates, state = optimizer.update({"q": jnp.ones(1)}, state, params)
    moved.append(-float(jax.tree.leaves(updates)[0][0]))
  np.testing.assert_allclose(moved, [optim.learning_rate(c, i) for i in range(8)], rtol=1e-4, atol=1e-6)


def update(c, params, grads):
  optimizer = optim.make(c)
  zero = jnp.int32(0)
  state = TrainState(params=params, opt_state=optimizer.init(params), step=zero, skipped=zero, empty=zero)
  return optim.apply(optimizer, state, grads, jnp.float32(1.0))


def test_gradients_are_clipped_by_their_global_norm():
  """With Adam a clipped gradient gives the same first step; its moments show the clipping."""
  params, grads = {"q": jnp.zeros(4)}, {"q": jnp.full(4, 50.0)}
  state, norm = update(settings(clip=1.0), params, grads)
  assert float(norm) == 100.0
  first = next(a for a in jax.tree.leaves(state.opt_state) if a.shape == (4,))
  np.testing.assert_allclose(first, 0.1 * 0.5, rtol=1e-5)


def test_weight_decay_spares_norms_and_biases():
  params = {"q": jnp.ones((2, 2)), "q_norm": jnp.ones(2), "q_bias": jnp.ones(2), "k": jnp.ones(1)}
  grads = jax.tree.map(jnp.zeros_like, params) | {"k": jnp.ones(1)}
  state, _ = update(settings(weight_decay=0.1, lr=1.0), params, grads)
  np.testing.assert_allclose(state.params["q"], 0.9)
  np.testing.assert_allclose(state.params["q_norm"], 1.0)
  np.testing.assert_allclose(state.params["q_bias"], 1.0)


def test_nan_leaves_parameters_and_moments():
  params = {"q": jnp.ones(3)}
  state, _ = update(settings(), params, {"q": jnp.array([1.0, jnp.nan, 1.0])})
  np.testing.assert_array_equal(state.params["q"], params["q"])
  assert all(np.isfinite(a).all() for a in jax.tree.leaves(state.opt_state))
  assert (int(state.step), int(state.skipped)) == (1, 1)


def test_nothing_to_learn_from_moves_nothing_and_is_counted():
  """Adam's momentum and the decay would."""
  params = {"q": jnp.ones(3)}
  state, _ = update(settings(weight_decay=0.1, lr=1.0), params, {"q": jnp.zeros(3)})
  np.testing.assert_array_equal(state.params["q"], params["q"])
  assert (int(state.step), int(state.skipped), int(state.empty)) == (1, 0, 1)


@pytest.mark.parametrize(
  ("keys", "params", "grads"),
  [
    ({"eps": 0.0}, [1.0, 1.0], [0.0, 1.0]),  # 0 / 0 where there is no gradient
    ({"lr": float("inf")}, [1.0, 1.0], [0.5, 1.0]),
    ({"lr": 1e38}, [3e38, 1.0], [-1.0, 1.0]),  # the sum overflows
    ({"clip": 0.0}, [1.0, 1.0], [1e25, 1.0]),  # its square is Inf
    ({"clip": float("nan")}, [1.0, 1.0], [0.5, 1.0]),
  ],
  ids=["eps", "rate", "sum", "moment", "clip"],
)
def test_an_update_that_would_not_be_finite_is_skipped(keys, params, grads):
  """Loss and gradient are; the parameters, or the optimiser's moments, would not be."""
  before = {"q": jnp.array(params)}
  state, _ = update(settings(**keys), before, {"q": jnp.array(grads)})
  np.testing.assert_array_equal(state.params["q"], before["q"])
  assert all(np.isfinite(a).all() for a in jax.tree.leaves(state.opt_state))
  assert (int(state.step), int(state.skipped), int(state.empty)) == (1, 1, 0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_its_formula(momentum):
  """m <- momentum m + g, theta <- theta - lr (m + decay theta), with warm-up, and decay of matrices alone."""
  c = settings(kind="sgd", lr=0.1, warmup=2, clip=0.0, momentum=momentum, weight_decay=0.5)
  rng, optimizer, zero = np.random.default_rng(0), optim.make(c), jnp.int32(0)
  theta = {"q": rng.normal(size=(2, 3)), "norm": rng.normal(size=3)}
  m = {name: np.zeros_like(a) for name, a in theta.items()}
  params = {name: jnp.asarray(a, jnp.float32) for name, a in theta.items()}
  state = TrainState(params=params, opt_state=optimizer.init(params), step=zero, skipped=zero, empty=zero)
  assert sum(a.ndim > 0 for a in jax.tree.leaves(state.opt_state)) == (2 if momentum else 0)
  for i in range(4):
    grads = {name: rng.normal(size=a.shape) for name, a in theta.items()}
    state, _ = optim.apply(optimizer, state, {n: jnp.asarray(g, jnp.float32) for n, g in grads.items()}, jnp.float32(1))
    for name, g in grads.items():
      m[name] = momentum * m[name] + g
      decay = 0.5 * theta[name] if name == "q" else 0.0
      theta[name] = theta[name] - optim.learning_rate(c, i) * (m[name] + decay)
  for name, want in theta.items():
    np.testing.assert_allclose(state.params[name], want, rtol=1e-5, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("masked", [False, True])
def test_how_the_optimiser_goes_with_the_gradient(masked):
  """Against NumPy in float64; frozen coordinates do not count."""
  c = config.override(config.default(), {"subnetwork.mask": "global", "subnetwork.density": 0.5} if masked else {})
  rng, optimizer = np.random.default_rng(0), optim.make(c.optimizer)
  params = {"q": jnp.ones((4, 16)), "norm": jnp.ones(8)}
  state = states.init(c, params)
  trained = {name: rng.random(a.shape) < (0.5 if masked else 2) for name, a in params.items()}
  if masked:
    state = dataclasses.replace(state, mask={name: masks.pack(jnp.asarray(m)) for name, m in trained.items()})
  flat = np.concatenate([m.ravel() for m in trained.values()])
  m = v = np.zeros(flat.sum())
  for i in range(3):
    grads = {name: rng.normal(size=a.shape) * 0.01 for name, a in params.items()}
    g = np.concatenate([a.ravel() for a in grads.values()])[flat]
    before, arrays = state, {name: jnp.asarray(a, jnp.float32) for name, a in grads.items()}
    state, _ = optim.apply(optimizer, before, arrays, jnp.float32(1))
    found = optim.diagnostics(before, state, arrays)
    v = c.optimizer.b2 * v + (1 - c.optimizer.b2) * g**2
    np.testing.assert_allclose(found["second_moment_spread"], np.sqrt(v).std() / np.sqrt(v).mean(), rtol=1e-4)
    if i:
      want = m @ g / np.linalg.norm(m) / np.linalg.norm(g)
      np.testing.assert_allclose(found["momentum_cosine"], want, rtol=1e-4)
    else:
      assert np.isnan(found["momentum_cosine"])
    m = c.optimizer.b1 * m + (1 - c.optimizer.b1) * g


def test_sgd_has_no_second_moments_and_perhaps_no_momentum():
  params = {"q": jnp.ones(3)}
  for momentum, names in ((0.9, {"momentum_cosine"}), (0.0, set())):
    c = config.override(config.default(), {"optimizer.kind": "sgd", "optimizer.momentum": momentum})
    state = states.init(c, params)
    assert optim.diagnostics(state, state, params).keys() == names


@pytest.mark.long
def test_looking_at_the_update_first_needs_no_memory_on_a_tpu():
  """It is computed twice: otherwise the new parameters and moments would wait in memory for the last of them."""
  pytest.importorskip("libtpu")
  sharding = jax.sharding.SingleDeviceSharding(topology.get("v5e:1x1").devices[0])
  optimizer, zero = optim.make(settings()), jnp.int32(0)
  shapes = {f"q{i}": jax.ShapeDtypeStruct((1024, 1024), jnp.float32) for i in range(4)}

  def step(params, grads):
    state = TrainState(params=params, opt_state=optimizer.init(params), step=zero, skipped=zero, empty=zero)
    return optim.apply(optimizer, state, grads, jnp.float32(1.0))[0]

  state = jax.eval_shape(step, shapes, shapes)

  def place(a):
    return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)

  guarded = jax.jit(lambda s, g: optim.apply(optimizer, s, g, jnp.float32(1.0)), donate_argnums=0)
  program = guarded.lower(jax.tree.map(place, state), jax.tree.map(place, shapes)).compile()
  parameters = sum(4 * a.size for a in shapes.values())
  assert program.memory_analysis().temp_size_in_bytes < parameters / 4
