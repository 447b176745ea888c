"""A config as it is saved in the workdir, and how two of them differ."""

import json
from collections.abc import Mapping
from typing import Any

from opd_jax.config.recipes import implied_recipe, recipe_keys
from opd_jax.config.values import Config, default, flat, override
from opd_jax.errors import InputError


def to_json(config: Config) -> str:
  """The whole config, as it is saved in the workdir."""
  return json.dumps(json.loads(config.to_json_best_effort()), indent=2, sort_keys=True)


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
  """Brings the flat values of a saved config up to date: those from before there were recipes have CCOPD's keys always."""
  if "recipe" in values:
    return values
  recipe = implied_recipe(values)
  unused = recipe_keys("ccopd").keys() - recipe_keys(recipe).keys() - {"context.kind"}
  return {k: v for k, v in values.items() if k not in unused} | {"recipe": recipe}


def changed(config: Config, free: tuple[str, ...] = ()) -> dict[str, Any]:
  """Returns the keys with other values than by default, without those in `free`.

  So a new key changes no config from before it, and no key says twice what the method is.
  """
  usual, own = (flat(json.loads(to_json(config))) for config in (default(config.recipe), config))
  if own.pop("recipe") != implied_recipe({"context.kind": own["context.kind"]}):
    own["recipe"] = config.recipe
  if config.recipe == "ccopd":
    usual["context.kind"] = "same"  # as before there were recipes
  return {k: v for k, v in own.items() if k not in free and (k not in usual or usual[k] != v)}


class OtherVersion(Exception):
  """What was saved is no config of this version; the message says why."""


def from_saved(tree: Mapping[str, Any]) -> Config:
  """Makes the config that was saved; a key that did not exist then has the value that it has by default.

  Raises:
    OtherVersion: a key that does not exist, or a value of another type.
  """
  try:
    return override(default(), upgraded(flat(tree)))
  except InputError as e:
    raise OtherVersion(str(e).rstrip(".")) from None


def different(saved: Config, now: Config) -> dict[str, tuple[Any, Any]]:
  """Returns the keys whose values differ between two configs, with both values; "absent" where there is none."""
  a, b = (flat(json.loads(to_json(config))) for config in (saved, now))
  pairs = {k: (a.get(k, "absent"), b.get(k, "absent")) for k in sorted(a.keys() | b.keys())}
  return {k: pair for k, pair in pairs.items() if pair[0] != pair[1]}
