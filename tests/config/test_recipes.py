"""The keys that a recipe declares: with values or without, and what is no declaration."""

import sys

import pytest

from opd_jax import config
from opd_jax.errors import InputError


@pytest.fixture
def declares(tmp_path, monkeypatch):
  """Writes a module with this text as KEYS, and names it."""
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.delitem(sys.modules, "methods_of_a_test", raising=False)

  def write(keys: str) -> str:
    package = tmp_path / "methods_of_a_test"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").touch()
    (package / "mine.py").write_text(f"KEYS = {keys}\n")
    return "methods_of_a_test.mine"

  return write


def test_values_of_a_recipes_key_are_held(declares):
  c = config.default(
    declares("{'my.share': (0.5, 'a share', '[0, 1]'), 'my.size': (8, 'a size'), 'my.names': ((), 'names')}")
  )
  config.check(c)
  config.check(config.override(c, {"my.size": 10**9, "my.names": ("a", 1)}))
  with pytest.raises(InputError, match=r"config.my.share is 2.0; it has to be a number between 0 and 1"):
    config.check(config.override(c, {"my.share": 2.0}))
  with pytest.raises(InputError, match=r"config.my.size is 'big'; it has to be a finite whole number|a whole number"):
    config.override(c, {"my.size": "big"})


@pytest.mark.parametrize(
  "keys",
  [
    "5",
    "{'a': 1}",
    "{'a': (1,)}",
    "{'a': (1, 'm', '[0, 1')}",
    "{'a': (5, 'm', '[0, 1]')}",
    "{'a': ('x', 'm', '[0, 1]')}",
  ],
)
def test_what_is_no_declaration_is_named(keys, declares):
  with pytest.raises(InputError, match=r"KEYS of the recipe 'methods_of_a_test\.mine'"):
    config.default(declares(keys))


@pytest.mark.parametrize("name", ["opd_", "..", ".", "os.path", "a..b", "opd_jax.recipes.nothing", "sys.x"])
def test_a_recipe_that_does_not_exist_is_named(name):
  with pytest.raises(InputError, match="There is no recipe"):
    config.default(name)
