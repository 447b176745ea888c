"""Wall-clock seconds of calls that give arrays."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

K = TypeVar("K")
T = TypeVar("T")


def giving(call: Callable[[], T]) -> tuple[float, T]:
  """Seconds from the call until every array of its result is there, and the result."""
  began = time.perf_counter()
  result = jax.block_until_ready(call())
  return time.perf_counter() - began, result


def in_turn(calls: Mapping[K, Callable[[], Any]], repeat: int, enough: float = 0.0) -> dict[K, list[float]]:
  """Seconds in `repeat` rounds over all calls: a machine that slows down slows all of them. Nothing is warmed up.

  Args:
    enough: up to ten times as many rounds while all together took fewer seconds than this.
  """
  spent = {name: [] for name in calls}
  began = time.perf_counter()
  for i in range(10 * repeat):
    if i >= repeat and time.perf_counter() - began >= enough:
      break
    for name, call in calls.items():
      spent[name].append(giving(call)[0])
  return spent


def summary(spent: list[float]) -> dict[str, float]:
  """Median and least seconds; the least is the one that other processes disturbed least."""
  return {"seconds": statistics.median(spent), "min_seconds": min(spent)}
