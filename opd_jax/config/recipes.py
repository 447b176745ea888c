"""Which recipes there are, and the keys that each of them adds to the table."""

import ast
import functools
import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from opd_jax.config.allowed import Allowed, parse, shown
from opd_jax.config.keys import KEYS
from opd_jax.errors import InputError


class Key(NamedTuple):
  """What the table says of a key."""

  default: Any
  meaning: str
  notation: str = ""  # see allowed.py

  @property
  def allowed(self) -> Allowed:
    """The values that it may have."""
    many = isinstance(self.default, tuple)
    kinds = {type(v) for v in self.default} if many else {type(self.default)}
    return parse(self.notation, kinds.pop() if len(kinds) == 1 else None, many)


GENERAL = {name: Key(*entry) for name, entry in KEYS.items()}


def table(recipe: str = "opd") -> dict[str, Key]:
  """Lists every key of a method's configs: those that all methods have, and its own.

  Raises:
    InputError: there is no such recipe, or its KEYS cannot be read.
  """
  return GENERAL | recipe_keys(recipe)


def recipe_module(name: str) -> str:
  """Returns the module of a recipe: a file of opd_jax/recipes by its name, any other by its dotted path."""
  return name if "." in name else f"opd_jax.recipes.{name}"


def recipe_keys(name: str) -> dict[str, Key]:
  """Reads the config keys that a recipe declares for itself, as KEYS: {key: (default, meaning)} or (default, meaning, values).

  With KEYS_OF = "NAME" it has those of another recipe too. The module is not imported, since a config is parsed before JAX may
  be there; so both have to be literals.

  Raises:
    InputError: there is no such recipe, or its KEYS cannot be read.
  """
  file = _recipe_file(name)
  if file is None:
    known = ", ".join(recipe_names())
    raise InputError(
      f"There is no recipe {shown(name)}; the recipes are {known}, and another is named by the dotted path of its module."
    )
  return _keys_of(name, file, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _keys_of(name: str, file: pathlib.Path, changed: int) -> dict[str, Key]:
  where = f"KEYS of the recipe {name!r} ({file})"
  try:
    body = ast.parse(file.read_text(encoding="utf-8")).body
  except (SyntaxError, ValueError) as e:
    raise InputError(f"The recipe {name!r} ({file}) is no Python source: {' '.join(str(e).split())}.") from None
  base = _literal(body, "KEYS_OF", where)
  inherited = {} if base is None else recipe_keys(base)
  entries = _literal(body, "KEYS", where)
  try:
    return inherited | {key: _key(*entry) for key, entry in ({} if entries is None else entries).items()}
  except (AttributeError, TypeError, ValueError) as e:
    raise InputError(
      f"{where} is to be a dict of key: (default, meaning) or (default, meaning, values) as in "
      f"opd_jax/config/keys.py, and is not ({e})."
    ) from None


def _literal(body: list[ast.stmt], name: str, where: str) -> Any:
  """Returns the value that a module gives to a name; None where it gives none."""
  for node in body:
    if isinstance(node, ast.Assign) and [t.id for t in node.targets if isinstance(t, ast.Name)] == [name]:
      try:
        return ast.literal_eval(node.value)
      except (ValueError, TypeError):
        raise InputError(f"{where} is not a literal.") from None
  return None


def _key(default: Any, meaning: str, notation: str = "") -> Key:
  """Makes a recipe's key, whose default has to be a value that it allows."""
  key = Key(default, meaning, notation)
  if not key.allowed.allows(default):
    raise ValueError(f"{default!r} is not {key.allowed}")
  return key


def _recipe_file(name: Any) -> pathlib.Path | None:
  """The source file of a recipe; None where there is none."""
  if not isinstance(name, str):
    return None
  if "." not in name:
    file = _recipes() / f"{name}.py"
    return file if name in recipe_names() else None
  try:
    found = importlib.util.find_spec(name)
  except Exception:  # whatever the packages above it do when they are imported
    return None
  file = pathlib.Path(found.origin) if found and found.origin else None
  return file if file and file.suffix == ".py" and file.is_file() else None


def recipe_names() -> tuple[str, ...]:
  """Lists the recipes of the package."""
  return tuple(sorted(p.stem for p in _recipes().glob("*.py") if p.stem not in ("__init__", "base")))


def _recipes() -> pathlib.Path:
  return pathlib.Path(__file__).resolve().parents[1] / "recipes"


def implied_recipe(values: Mapping[str, Any]) -> str:
  """Returns the recipe of flat config values that may be from before there were recipes."""
  return values.get("recipe") or ("ccopd" if values.get("context.kind") == "canonical" else "opd")
