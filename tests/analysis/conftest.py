"""A panel of brief problems, and a student measured on it."""

import dataclasses

import jax
import pytest

from opd_jax import tasks
from opd_jax.analysis import panel as panels
from opd_jax.analysis.measurements import Measurements
from opd_jax.tasks import chain
from tests.conftest import small_config

BRIEF = dataclasses.replace(chain.CHAIN, name="chain-brief", rounds=(1, 2))
PROBLEMS = 12  # eight at a time: the last part is half empty


@pytest.fixture(scope="session")
def config_of():
  """A config on the brief task, which the shipped teacher solves nine times in ten; it is its own student here."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(tasks.GENERATORS, BRIEF.name, BRIEF)
    patch.setitem(tasks.VERIFIERS, BRIEF.name, BRIEF.verify)
    patch.setattr(panels, "AT_A_TIME", 8)
    models = {"student": "builtin:teacher", "teacher": "builtin:teacher"}
    changes = {"data.path": f"task:{BRIEF.name}", "horizon.max": BRIEF.max_response}

    def config(**more):
      return small_config(models, "opd", **changes | more)

    yield config


@pytest.fixture(scope="session")
def panel(config_of) -> panels.Panel:
  return panels.Panel(config_of(), PROBLEMS)


@pytest.fixture(scope="session")
def shaken(panel):
  """A student that knows less than its teacher: the same weights with noise, laid out as before."""
  params = panel.untrained()
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(0), len(leaves))
  noisy = [a * (1 + 0.2 * jax.random.normal(k, a.shape)) for a, k in zip(leaves, keys, strict=True)]
  return jax.device_put(jax.tree.unflatten(tree, noisy), jax.tree.map(lambda a: a.sharding, params))


@pytest.fixture(scope="session")
def measured(panel, shaken) -> Measurements:
  return panel.measure(shaken)
