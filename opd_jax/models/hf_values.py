"""Values of a config.json, checked where they are read; what is wrong with one is a ValueError's sentence without its full stop."""

from typing import Any

from opd_jax.errors import brief
from opd_jax.runtime.json_files import is_number, is_whole

Json = dict[str, Any]


def positive_int(raw: Json, key: str, default: int | None = None) -> int:
  """Read a whole number above 0; null is the default too."""
  value = raw.get(key) if raw.get(key) is not None else default
  if not is_whole(value, 1):
    raise ValueError(f"{key} is {brief(value)}; it has to be a whole number above 0, and below 2**31")
  return value


def switch(raw: Json, key: str, default: bool = False) -> bool:
  """Read true or false; null is the default too."""
  value = raw.get(key)
  if value not in (None, True, False) or isinstance(value, float):
    raise ValueError(f"{key} is {brief(value)}; it has to be true or false")
  return default if value is None else bool(value)


def number(raw: Json, key: str, default: float | None = None, least: float = 1e-30) -> float:
  """Read a finite number of at least `least`; null is the default too."""
  value = default if raw.get(key) is None else raw[key]
  if value is None:
    raise ValueError(f"the rope scaling has no {key}")
  if not is_number(value) or value < least:
    raise ValueError(f"{key} is {brief(value)}; it has to be a number {'above' if least else 'of at least'} 0")
  return float(value)


def entries(raw: Json, key: str, allowed: tuple, layers: int) -> list[Any] | None:
  """Read a list with an entry for every layer; None where there is none."""
  values = raw.get(key) or None
  if values is None:
    return None
  if not isinstance(values, list):
    raise ValueError(f"{key} is {brief(values)}; it has to be a list")
  if unknown := [value for value in values if not any(value is a or value == a for a in allowed)]:
    supported = " and ".join(map(repr, allowed))
    are = "are" if len(allowed) > 1 else "is"
    raise ValueError(f"{key} has {brief(unknown[0])}; only {supported} {are} supported")
  if len(values) < layers:
    raise ValueError(f"{key} has {len(values)} entries, and num_hidden_layers is {layers}; it has to have one for each")
  return values[:layers]
