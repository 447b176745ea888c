"""Every key that a run understands, and the config that is made of them.

    keys       the table: each key's default, meaning and values; read this first
    allowed    the notation of the values
    recipes    the keys that a method adds
    values     a config: default, override, check
    methods    configs/*.py, by name and scale
    saved      a config in a workdir, and how two differ
    paths      ~ in paths

A method is a file in configs/ that starts from `default()` and answers the five questions. The config is
locked: a key that does not exist is refused. It is saved in the workdir and decides whether a run may resume there.
"""

from opd_jax.config.methods import (
  at_scale,
  branching,
  configs_dir,
  load,
  policy_gradient,
  shown_to_pupil,
  taught_by_feedback,
  tutored_by_specialist,
)
from opd_jax.config.paths import expanded, expanded_path
from opd_jax.config.recipes import Key, implied_recipe, recipe_keys, recipe_module, recipe_names, table
from opd_jax.config.saved import OtherVersion, changed, different, from_saved, to_json, upgraded
from opd_jax.config.values import (
  BUILTIN,
  HUB,
  INITIAL,
  MAPPINGS,
  TASK,
  Config,
  check,
  check_fixed,
  data_paths,
  default,
  flat,
  get,
  has,
  horizon_unit,
  mapping_of,
  meanings,
  override,
  parse_mapping,
  put,
  refusal,
  response_len,
  teacher_names,
  unknown_key,
  verifies_rollouts,
  width_unit,
  with_recipe,
)

__all__ = [
  "BUILTIN",
  "HUB",
  "INITIAL",
  "MAPPINGS",
  "TASK",
  "Config",
  "Key",
  "OtherVersion",
  "at_scale",
  "branching",
  "changed",
  "check",
  "check_fixed",
  "configs_dir",
  "data_paths",
  "default",
  "different",
  "expanded",
  "expanded_path",
  "flat",
  "from_saved",
  "get",
  "has",
  "horizon_unit",
  "implied_recipe",
  "load",
  "mapping_of",
  "meanings",
  "override",
  "parse_mapping",
  "policy_gradient",
  "put",
  "recipe_keys",
  "recipe_module",
  "recipe_names",
  "refusal",
  "response_len",
  "shown_to_pupil",
  "table",
  "taught_by_feedback",
  "teacher_names",
  "to_json",
  "tutored_by_specialist",
  "unknown_key",
  "upgraded",
  "verifies_rollouts",
  "width_unit",
  "with_recipe",
]
