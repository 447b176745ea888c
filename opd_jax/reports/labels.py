"""What tells runs apart: the keys in which their configs differ, and the names that arms get from them.

A config is a flat dict here, with dotted keys.
"""

import math
from collections.abc import Sequence
from typing import Any

Config = dict[str, Any]

# Keys that tell two runs apart without changing what they learn or how fast.
FREE = ("seed", "workdir", "compile_cache", "checkpoint.", "log.tensorboard", "log.wandb", "log.mlflow", "log.samples")


def arm_labels(configs: Sequence[Config]) -> list[str]:
  """Name each config's arm: 'OPD', 'TOPD 10%', 'POPD', 'RLVR' without a teacher, and the keys that differ where needed."""
  configs = [{k: v for k, v in config.items() if not k.startswith(FREE)} for config in configs]
  methods = [_method(config) for config in configs]
  labels = []
  for method, config in zip(methods, configs, strict=True):
    keys = differing([c for m, c in zip(methods, configs, strict=True) if m == method])
    labels.append(", ".join([method, *(f"{_short(k, config)} {show(config.get(k))}" for k in keys)]))
  return labels


def _method(config: Config) -> str:
  recipe = str(config.get("recipe") or "opd")
  if recipe not in ("opd", "policy_gradient"):  # which the horizon, and having no teacher, tell apart
    name = recipe.rpartition(".")[2].replace("_", "-")
    return name if config["horizon.kind"] == "full" else f"{name}, {_distillation(config)}"
  if config.get("teacher") != "" or config.get("teachers"):
    return _distillation(config)
  source = "RLVR" if config.get("mixture.reward") else "no teacher"  # reinforcement learning with verifiable rewards
  return source if config["horizon.kind"] == "full" else f"{source}, {_distillation(config)}"


def _distillation(config: Config) -> str:
  kind = config["horizon.kind"]
  if kind != "truncated":
    return {"full": "OPD", "progressive": "POPD"}.get(kind, str(kind))
  if ratio := config.get("horizon.ratio"):
    return f"TOPD {100 * ratio:g}%"
  length, longest = config.get("horizon.length", 0), config.get("horizon.max", 0)
  return f"TOPD {100 * length // longest}%" if longest and 100 * length % longest == 0 else f"TOPD {length} tokens"


def _short(key: str, config: Config) -> str:
  """The last part of a dotted key, unless another key ends in the same; the horizon's keys need no parent."""
  leaf = key.rpartition(".")[2]
  unique = [k.rpartition(".")[2] for k in config].count(leaf) == 1
  return leaf if unique or key.startswith("horizon.") else key


def differing(configs: Sequence[Config]) -> list[str]:
  """The keys that do not have the same value in all configs."""
  keys = sorted({k for config in configs for k in config})
  return [k for k in keys if len({show(config.get(k)) for config in configs}) > 1]


def show(value: Any) -> str:
  """Write a value of a config as a reader would; small numbers as 1e-4."""
  if not isinstance(value, float) or not math.isfinite(value):
    return str(value)
  mantissa, exponent = f"{value:.9e}".split("e")
  return f"{float(mantissa):g}e{int(exponent)}" if value and int(exponent) < -2 else f"{value:.9g}"
