"""The table of keys as docs/configuration.md has it."""

import pathlib
from collections.abc import Iterable, Iterator

from opd_jax.config.recipes import GENERAL, Key, recipe_keys, recipe_names

PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
HEADING = "## Every key\n"


def with_tables(page: str) -> str:
  """Returns the page with everything below `HEADING` made anew from the tables of keys."""
  return page.partition(HEADING)[0] + HEADING + "".join(f"\n{line}" if line else "\n" for line in _lines()) + "\n"


def _lines() -> Iterator[str]:
  yield ""
  yield "`python -m opd_jax.config` writes this from `opd_jax/config/keys.py` and the recipes; the notation is that of"
  yield "`opd_jax/config/allowed.py`. Numbers are finite, and those whose default is whole are whole."
  yield ""
  yield from _table(GENERAL.items())
  for recipe in recipe_names():
    if own := recipe_keys(recipe):
      yield ""
      yield f"Of the recipe `{recipe}` alone:"
      yield ""
      yield from _table(own.items())


def _table(keys: Iterable[tuple[str, Key]]) -> Iterator[str]:
  yield "| key | default | values | meaning |"
  yield "|---|---|---|---|"
  for name, key in keys:
    yield f"| `{name}` | `{key.default!r}` | `{key.notation}` | {key.meaning.replace('|', chr(92) + '|')} |"
