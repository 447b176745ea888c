"""How long the student may speak: full, truncated and progressive horizons (arXiv:2605.31490).

A schedule maps a step to an exact limit H_k in tokens. Compiled programs have one static width each, so the steps
fall into stages of equal width; inside a stage the limit is passed as a traced number. This file knows nothing of JAX.
"""

import dataclasses
import math

from opd_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Stage:
  """Consecutive steps that share one compiled width."""

  index: int
  width: int  # tokens, static
  start: int  # first step
  end: int  # one past the last step


@dataclasses.dataclass(frozen=True)
class Schedule:
  """H_k = min(max, start + growth * (k // every)); growth 0 is a constant horizon.

  Attributes:
    max: T, tokens.
    widths: the compiled widths, rising; a step uses the first that holds its limit.
  """

  kind: str
  max: int
  start: int
  growth: int
  every: int
  widths: tuple[int, ...]

  def limit(self, step: int) -> int:
    """H_k, the most tokens that a rollout of this step may have."""
    return min(self.max, self.start + self.growth * (step // self.every))

  def width(self, step: int) -> int:
    return next(w for w in self.widths if w >= self.limit(step))

  def stages(self, steps: int) -> list[Stage]:
    """The stages of a run of this many steps; none is empty."""
    stages: list[Stage] = []
    for step in range(steps):
      width = self.width(step)
      if stages and stages[-1].width == width:
        stages[-1] = dataclasses.replace(stages[-1], end=step + 1)
      else:
        stages.append(Stage(len(stages), width, step, step + 1))
    return stages


def full(max: int) -> Schedule:
  """OPD: every rollout may use the whole maximum."""
  return Schedule("full", max, max, 0, 1, (max,))


def truncated(max: int, length: int) -> Schedule:
  """TOPD: every rollout stops after `length` tokens."""
  return Schedule("truncated", max, length, 0, 1, (length,))


def progressive(max: int, start: int, growth: int, every: int = 1, quantum: int = 64) -> Schedule:
  """POPD: the paper's staircase, realised with compiled widths that are multiples of `quantum`, and `max`."""
  return Schedule("progressive", max, start, growth, every, (*range(quantum, max, quantum), max))


def from_config(c) -> Schedule:
  """The schedule of `config.horizon`.

  Raises:
    InputError: for a horizon of 0, a negative one, or one above the maximum.
  """

  def within(key: str, low: int, high: float, meaning: str):
    if not low <= c[key] <= high:
      bound = f"between {low} and {high}" if math.isfinite(high) else f"at least {low}"
      raise InputError(f"config.horizon.{key} is {c[key]}; {meaning} has to be {bound}.")

  within("max", 1, math.inf, "the longest rollout, in tokens,")
  if c.kind == "full":
    return full(c.max)
  if c.kind == "truncated":
    if bool(c.length) == bool(c.ratio):
      raise InputError(
        "A truncated horizon needs either config.horizon.length (tokens) or config.horizon.ratio (of horizon.max), "
        f"not {'both' if c.length else 'neither'}; length is {c.length} and ratio is {c.ratio}."
      )
    if c.ratio:
      within("ratio", 0, 1, "the fraction of horizon.max")
      return truncated(c.max, max(1, round(c.ratio * c.max)))
    within("length", 1, c.max, "the rollout length (horizon.max is the upper bound)")
    return truncated(c.max, c.length)
  if c.kind == "progressive":
    within("start", 1, c.max, "the first horizon H_0 (horizon.max is the upper bound)")
    within("growth", 0, math.inf, "the growth in tokens")
    within("every", 1, math.inf, "the number of steps between two growths")
    within("quantum", 1, math.inf, "the quantum of compiled widths")
    return progressive(c.max, c.start, c.growth, c.every, c.quantum)
  raise InputError(f"config.horizon.kind is {c.kind!r}; it can be 'full', 'truncated' or 'progressive'.")


def describe(schedule: Schedule, steps: int, rows: int) -> list[dict]:
  """The stages as they are printed and saved: steps, width, limits, and the most tokens that can be generated."""
  return [
    {
      "index": s.index,
      "width": s.width,
      "start": s.start,
      "end": s.end,
      "first_limit": schedule.limit(s.start),
      "last_limit": schedule.limit(s.end - 1),
      "tokens": rows * sum(schedule.limit(k) for k in range(s.start, s.end)),
    }
    for s in schedule.stages(steps)
  ]
