"""Any value for any key is accepted or refused in one sentence, and what is accepted can be used."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_jax import checks, config
from opd_jax.errors import InputError
from opd_jax.horizon import schedule
from opd_jax.models import lora
from opd_jax.objectives import loss_config
from opd_jax.rollout.segments import Segments
from opd_jax.training import optim
from tests.helpers.fuzz import cases

KEYS = {name: key for recipe in config.recipe_names() for name, key in config.table(recipe).items()}
WORDS = sorted(
  {word for key in KEYS.values() for word in key.allowed.words} | {"opd", "ccopd", "task:chain", "gs://b/x", "~/x"}
)
NUMBERS = st.one_of(
  st.integers(-3, 70),
  st.integers(),
  st.sampled_from([0.0, -0.0, 0.5, 1.0, 1.5, 1e-30, 1e-300, 1e300, 2**31, 2**32, 2**63, 10**400]),
  st.floats(),
  st.booleans(),
)
SCALARS = st.one_of(
  NUMBERS,
  st.sampled_from(WORDS),
  st.text(max_size=8),
  st.none(),
  st.binary(max_size=3),
  NUMBERS.filter(lambda x: abs(x) < 2**31).map(np.float32),
  st.integers(-(2**31), 2**31 - 1).map(np.int64),
)
VALUES = st.one_of(
  SCALARS,
  st.lists(SCALARS, max_size=3),
  st.lists(SCALARS, max_size=3).map(tuple),
  st.dictionaries(st.text(max_size=3), SCALARS, max_size=2),
  st.sampled_from([np.zeros(2), np.array(3), object, config.default()]),
)


def near(key: config.Key) -> st.SearchStrategy:
  """Values of the key's own type, most of which it allows."""
  one = {bool: st.booleans(), int: st.integers(-1, 70), float: st.floats(-0.5, 3)}.get(
    key.allowed.kind, st.sampled_from(sorted(key.allowed.words) or WORDS)
  )
  return st.lists(one, max_size=3).map(tuple) if key.allowed.many else one


ASSIGNMENTS = st.lists(
  st.sampled_from(sorted(KEYS)).flatmap(lambda name: st.tuples(st.just(name), st.one_of(near(KEYS[name]), VALUES))),
  min_size=1,
  max_size=4,
).map(dict)
MEANT = st.lists(
  st.sampled_from(sorted(KEYS)).flatmap(lambda name: st.tuples(st.just(name), near(KEYS[name]))), min_size=1, max_size=6
).map(dict)
METHODS = st.sampled_from(["opd", "topd", "popd", "adaptive", "ccopd"])


def accepted(method: str, assignments: dict) -> config.Config | None:
  """The config, where it is accepted; a refusal has to be one sentence."""
  refused = ""
  try:
    c = config.override(config.load(method), assignments)
    checks.check(c)
    schedule.from_config(c.horizon)
  except InputError as e:
    refused = str(e)
  assert "\n" not in refused
  assert len(refused) < 700
  return None if refused else c


@pytest.mark.long
@cases(600)
@given(METHODS, ASSIGNMENTS)
def test_any_value_of_any_key_is_accepted_or_refused_in_one_sentence(method, assignments):
  c = accepted(method, assignments)
  if c is None:
    return
  assert config.different(config.from_saved(json.loads(config.to_json(c))), c) == {}
  assert config.changed(c) == config.changed(config.override(config.default(c.recipe), config.flat(c)))


@pytest.mark.long
@cases(150)
@given(METHODS, MEANT)
def test_what_is_accepted_can_be_used(method, assignments):
  """Schedule, loss, optimiser, segments and adapter are made of it, and an update of finite gradients is finite."""
  c = accepted(method, assignments)
  if c is None:
    return
  h = schedule.from_config(c.horizon)
  assert all(1 <= h.limit(step) <= h.width(step) for step in (0, c.steps // 2, c.steps - 1))
  assert len(schedule.describe(h, min(c.steps, 1000), c.batch)) >= 1
  assert Segments(c.rollout.segment, c.rollout.segments, tuple(c.rollout.shrink)).ends(c.horizon.max)[-1] > 0
  made = loss_config.from_config(c, vocab=31)
  mask = jnp.ones((2, 4), bool)
  assert np.isfinite(made.token_weights(mask, jax.random.key(c.seed), jnp.zeros(mask.shape)).trained).all()
  if not c.lora.path:
    lora.from_config(c.lora)
  optimizer = optim.make(c.optimizer)
  params = {"w": jnp.ones(3), "norm": jnp.ones(1)}
  grads = {"w": jnp.array([0.0, 1e-20, 3.0]), "norm": jnp.zeros(1)}
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(optax.apply_updates(params, updates)))
