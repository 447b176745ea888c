"""Wall-clock seconds of calls that give arrays."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

K = TypeVar("K")
T = TypeVar("T")


def timed(call: Callable[[], T]) -> tuple[float, T]:
  """Calls, and waits for every array of the result; returns the seconds of both, and the result."""
  began = time.perf_counter()
  result = jax.block_until_ready(call())
  return time.perf_counter() - began, result


def interleaved(calls: Mapping[K, Callable[[], Any]], repeat: int, min_total: float = 0.0) -> dict[K, list[float]]:
  """Times every call in `repeat` rounds over all of them, so that a machine that slows down slows all.

  Nothing is warmed up.

  Args:
    min_total: seconds; while all rounds together took fewer, up to ten times as many rounds are made.
  """
  spent = {name: [] for name in calls}
  began = time.perf_counter()
  for rounds in range(10 * repeat):
    if rounds >= repeat and time.perf_counter() - began >= min_total:
      break
    for name, call in calls.items():
      spent[name].append(timed(call)[0])
  return spent


def summary(spent: list[float]) -> dict[str, float]:
  """Summarises seconds as median and least; the least is the one that other processes disturbed least."""
  return {"seconds": statistics.median(spent), "min_seconds": min(spent)}
