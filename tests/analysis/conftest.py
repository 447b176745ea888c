"""A panel of brief problems, and readings made by hand."""

import dataclasses

import jax
import numpy as np
import pytest

from opd_jax import tasks
from opd_jax.analysis import panel as panels
from opd_jax.analysis.reading import Reading
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
    yield lambda **more: small_config(models, "opd", **changes | more)


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
def reading(panel, shaken) -> Reading:
  return panel.read(shaken)


def by_hand(lengths, H: int, **fields) -> Reading:
  """A reading of rows of these lengths; what is not given is 0 or false, every token known."""
  mask = np.arange(H) < np.array(lengths)[:, None]
  number, flag = np.zeros(mask.shape), np.zeros(mask.shape, bool)
  made = {f.name: flag if f.name in ("right", "decisive", "off_path") else number for f in dataclasses.fields(Reading)}
  made |= {"mask": mask, "known": mask, "correct": np.zeros(len(lengths), bool), "response": number.astype(int)}
  return Reading(**made | {name: np.asarray(value) for name, value in fields.items()})  # pyright: ignore[reportArgumentType]
