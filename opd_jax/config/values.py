"""A config: made with its defaults, read, overridden, and held against the table of its keys."""

import ast
import contextlib
import difflib
import functools
import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from opd_jax.config import recipes
from opd_jax.config.allowed import shown
from opd_jax.errors import InputError

Config = Any  # an ml_collections.ConfigDict, whose keys a type checker cannot know

BUILTIN = "builtin:"  # student and teacher directories that ship with the package: "builtin:student"
INITIAL = "initial"  # a teacher: the student before training
TASK = "task:"  # prompts made by a generator in opd_jax/tasks: "task:chain"
HUB = "hub:"  # prompts of a data set of the Hugging Face hub: "hub:openai/gsm8k:main:train"
MAPPINGS = tuple(name for name, key in recipes.GENERAL.items() if isinstance(key.default, dict))  # keys that hold one


def default(recipe: str = "opd") -> Config:
  """Makes the config of the main job on the built-in task; configs/*.py change what their method needs.

  Args:
    recipe: the method, whose own keys are added.
  """
  tree: dict[str, Any] = {}
  for key, (value, *_) in recipes.table(recipe).items():
    *groups, name = key.split(".")
    functools.reduce(lambda group, part: group.setdefault(part, {}), groups, tree)[name] = value
  return ConfigDict(tree | {"recipe": recipe}).lock()


def check(config: Config) -> None:
  """Holds every key against the table: it is there, it has its type, and its value is one of those that it may have.

  Raises:
    InputError: names the first key that does not, its value, and what it may be.
  """
  table = recipes.table(get(config, "recipe") if has(config, "recipe") else "opd")
  values = flat(config)
  for name, key in table.items():
    if name not in values:
      raise InputError(f"config.{name} is missing; make configs from config.default() or a file of configs/.")
    value = get(config, name)
    if not key.allowed.allows(value):
      raise _refusal(name, value, key)
  if unknown := values.keys() - table.keys():
    raise unknown_key(config, min(unknown))


def _refusal(name: str, value: Any, key: recipes.Key) -> InputError:
  """The error for a value that a key may not have: all of it, or the part of a tuple that is wrong."""
  if key.allowed.many and isinstance(value, (list, tuple)):
    wrong = next((v for v in value if not key.allowed.allows((v,))), value)
    return InputError(f"config.{name} holds {shown(wrong)}; it has to be {key.allowed}.")
  return InputError(f"config.{name} is {shown(value)}; it has to be {key.allowed}.")


def refusal(config: Config, name: str, value: Any) -> InputError:
  """Makes the error for a value that a key of a config may not have, or for a key that it does not have."""
  table = recipes.table(config.recipe)
  return _refusal(name, value, table[name]) if name in table else unknown_key(config, name)


def override(config: Config, assignments: Mapping[str, Any]) -> Config:
  """Returns a copy with dotted keys replaced, types checked and unknown keys refused.

  Raises:
    InputError: there is no such key, or the value has another type; what else a key may not be is for `check`.
  """
  config = config.copy_and_resolve_references()
  named = {k: v for k, v in assignments.items() if k in ("recipe", "context.kind") and isinstance(v, str)}
  recipe = recipes.implied_recipe({"recipe": config.recipe} | named)
  if recipe == "opd" and named.get("context.kind") == "canonical":
    recipe = "ccopd"
  if recipe != config.recipe:
    config = with_recipe(config, recipe)
  table = recipes.table(recipe)
  for name, value in assignments.items():
    if (mapping := mapping_of(name)) and name != mapping:
      name, value = mapping, {**get(config, mapping), name.removeprefix(f"{mapping}."): value}
    if name not in table:
      raise unknown_key(config, str(name))
    try:
      put(config, name, table[name].allowed.plain(value))
    except (TypeError, OverflowError):
      raise _refusal(name, value, table[name]) from None
  return config


def with_recipe(config: Config, name: str) -> Config:
  """Returns a config with another recipe: the keys of the former are dropped, those of the new one have their defaults."""
  dropped, own, new = recipes.recipe_keys(config.recipe), recipes.recipe_keys(name), default(name)
  kept = flat(new).keys() - {"recipe", *dropped, *own}
  for key in flat(config):
    if key in kept:
      put(new, key, get(config, key))
  return new


def meanings(recipe: str = "opd") -> dict[str, str]:
  """Returns what each key means."""
  return {name: key.meaning for name, key in recipes.table(recipe).items()}


def unknown_key(config: Config, key: str) -> InputError:
  """The error for a key that does not exist, with the nearest that does."""
  for recipe in recipes.recipe_names():
    if key in recipes.recipe_keys(recipe):
      return InputError(
        f"The config key {key!r} belongs to the recipe {recipe!r}, and config.recipe is {config.recipe!r}; "
        f"give --config.recipe={recipe}, or a config of that method."
      )
  near = difflib.get_close_matches(key, flat(config), n=1, cutoff=0.4)
  return InputError(f"There is no config key {shown(key)}." + (f" Did you mean {near[0]!r}?" if near else ""))


def flat(tree: Mapping | ConfigDict, prefix: str = "") -> dict[str, Any]:
  """Flattens a config, or what was saved of one, to values by dotted key; tuples become lists, as in JSON."""
  out = {}
  for k, v in tree.items():
    name = f"{prefix}{k}"
    if isinstance(v, ConfigDict):
      v = v.to_dict()
    if isinstance(v, Mapping) and name not in MAPPINGS:
      out |= flat(v, f"{name}.")
    else:
      out[name] = list(v) if isinstance(v, tuple) else v
  return out


def has(config: Config, key: str) -> bool:
  """Tells whether a dotted key exists; any name may stand in a dictionary."""
  return (mapping_of(key) or key) in flat(config)


def mapping_of(key: str) -> str:
  """Returns which of the keys whose value is a dictionary a dotted key is, or names an entry of; "" for none."""
  return next((m for m in MAPPINGS if key == m or key.startswith(f"{m}.")), "")


def parse_mapping(key: str, text: str) -> Any:
  """Reads the value of a dictionary's key from a command line, or of one entry: JSON, Python, or else text as it is.

  Raises:
    InputError: the whole is no dictionary.
  """
  value: Any = text
  for read in (json.loads, ast.literal_eval):
    with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
      value = read(text)
      break
  if key in MAPPINGS and not isinstance(value, dict):
    raise InputError(f"""config.{key} cannot be {text!r}; write --config.{key}='{{"enable_thinking": false}}'.""")
  return value


def get(config: Config, key: str) -> Any:
  """The value of a dotted key."""
  for part in key.split("."):
    config = config[part]
  return config


def check_fixed(config: Config, fixed: Mapping[str, Any]) -> None:
  """Refuses keys that the config's recipe does not follow, where they are not at the only value that it can have.

  Raises:
    InputError: names the first of them.
  """
  for key, only in fixed.items():
    if (value := get(config, key)) != only:
      raise InputError(
        f"config.{key} is {value!r}, which the recipe {config.recipe!r} does not follow; leave it {only!r}."
      )


def put(config: Config, key: str, value: Any) -> None:
  """Sets a dotted key that exists, of whatever type, in a config that may be locked."""
  group, _, name = key.rpartition(".")
  if group:
    config = get(config, group)
  value = ConfigDict(value) if isinstance(value, Mapping) else value
  # To ignore types is to walk through all that the config holds.
  as_it_is = type(value) is type(config[name])
  with config.unlocked(), contextlib.nullcontext() if as_it_is else config.ignore_type():
    config[name] = value


def data_paths(config: Config) -> tuple[str, ...]:
  """The sources of training prompts: `data.paths`, or `data.path` alone."""
  return tuple(config.data.paths) or (config.data.path,)


def verifies_rollouts(config: Config) -> bool:
  """Whether training asks a verifier about its rollouts: for a reward, for what a teacher is shown, or for which are learned from."""
  return config.mixture.reward > 0 or config.context.kind in ("feedback", "self_future")


def horizon_unit(config: Config) -> str:
  """What a horizon counts."""
  return "denoising steps" if "denoising" in config else "tokens"


def width_unit(config: Config) -> str:
  """What the second width of a step's programs counts: positions of a response, or the denoising steps that are learned from."""
  return "denoising steps" if "denoising" in config else "response"


def response_len(config: Config) -> int:
  """The most tokens of a response in training: the longest horizon's, or a canvas's where the horizon is in denoising steps."""
  return config.denoising.length if "denoising" in config else config.horizon.max


def teacher_names(config: Config) -> tuple[str, ...]:
  """The directories of all teachers: `teachers`, or `teacher` alone; () where there is none."""
  return tuple(config.teachers) or ((config.teacher,) if config.teacher else ())
