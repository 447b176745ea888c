"""A config as it is saved in the workdir, and how two of them differ."""

import json
from typing import Any

from opd_jax.config.recipes import implied_recipe, recipe_keys
from opd_jax.config.values import Config, default, flat


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


def difference(saved: str, now: str, free: tuple[str, ...] = ()) -> list[str]:
  """Lists keys whose values differ between two saved configs, as 'key: saved -> now', without those in `free`."""
  pairs = different(saved, now).items()
  return [f"{key}: {was} -> {is_now}" for key, (was, is_now) in pairs if key not in free]


def different(saved: str, now: str) -> dict[str, tuple[Any, Any]]:
  """Returns the keys whose values differ between two saved configs, with both values; "absent" where there is none.

  A key that did not exist when the first was saved had the value that it has by default now.
  """
  a, b = upgraded(flat(json.loads(saved))), flat(json.loads(now))
  a = {k: v for k, v in flat(json.loads(to_json(default(a["recipe"])))).items() if k in b} | a
  pairs = {k: (a.get(k, "absent"), b.get(k, "absent")) for k in sorted(a.keys() | b.keys())}
  return {k: pair for k, pair in pairs.items() if pair[0] != pair[1]}
