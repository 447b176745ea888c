"""How long the student may generate: full, truncated, progressive and adaptive horizons.

A schedule maps a step to an exact limit H_k in tokens (arXiv:2605.31490). Compiled programs have one static width each,
so the steps fall into stages of equal width; inside a stage the limit is passed as a traced number. An adaptive horizon
chooses among its widths while the run goes on, by the rules of `adaptive.py`. This file knows nothing of JAX.
"""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from opd_jax.errors import InputError
from opd_jax.horizon import adaptive

KINDS = ("full", "truncated", "progressive", "geometric", *adaptive.RULES)


@dataclasses.dataclass(frozen=True)
class Stage:
  """Consecutive steps that share one compiled width."""

  index: int
  width: int  # tokens, static
  start: int  # first step
  end: int  # one past the last step
  first_limit: int  # tokens, of its first step
  last_limit: int
  tokens: int  # the most that a row of each step together can have


@dataclasses.dataclass(frozen=True)
class Schedule:
  """H_k = min(max, start + growth * (k // every)), or start * factor ** (k // every) where there is a factor.

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
  factor: float = 0.0

  def limit(self, step: int) -> int:
    """Returns H_k, the most tokens that a rollout of this step may have."""
    n = step // self.every
    if not self.factor:
      return min(self.max, self.start + self.growth * n)
    enough = math.log(self.max / self.start) / math.log(self.factor)  # beyond it the power may overflow
    return self.max if n >= enough else round(self.start * self.factor**n)

  def width(self, step: int) -> int:
    return self.widths[bisect.bisect_left(self.widths, self.limit(step))]

  def possible_widths(self, step: int) -> tuple[int, ...]:
    """The compiled widths that a step may have, before the run."""
    return (self.width(step),)

  def stages(self, steps: int) -> list[Stage]:
    """The stages of a run of this many steps; none is empty."""
    stages: list[Stage] = []
    for step in range(steps):
      width, limit = self.width(step), self.limit(step)
      if stages and (last := stages[-1]).width == width:
        stages[-1] = dataclasses.replace(last, end=step + 1, last_limit=limit, tokens=last.tokens + limit)
      else:
        stages.append(Stage(len(stages), width, step, step + 1, limit, limit, limit))
    return stages

  def lines(self, stages: Sequence[dict[str, Any]], unit: str = "tokens") -> Iterator[str]:
    """Describes the stages of a run (see `describe`), a line each."""
    for s in stages:
      limits = f"{s['first_limit']}" + (f" to {s['last_limit']}" if s["last_limit"] != s["first_limit"] else "")
      yield (
        f"  stage {s['index']}: steps {s['start']} to {s['end'] - 1}, width {s['width']}, limit {limits} {unit}, "
        f"at most {s['tokens']:,} {unit}"
      )

  @property
  def measured(self) -> bool:
    """True where some steps measure the gradients' agreement; a schedule chooses nothing, so never."""
    return False

  def probes(self, step: int) -> bool:
    """Tells whether a step measures the gradients' agreement; a schedule's steps never do."""
    return False

  def observe(self, step: int, observation: adaptive.StepObservation) -> None:
    """Ignores what a step has shown: a schedule is fixed before the run."""

  def state(self) -> dict[str, Any]:
    return {}

  def restore(self, state: dict[str, Any]) -> None:
    pass


class Adaptive:
  """A horizon chosen among a few widths by what the steps show.

  Attributes:
    widths: the compiled widths, rising, the last of them `max`.
    rule: how the next is chosen.
  """

  def __init__(self, rule: adaptive.Rule, widths: tuple[int, ...]):
    self.rule, self.widths, self.max = rule, widths, widths[-1]
    self._at, self._memory = 0, {}

  def limit(self, step: int) -> int:
    """Returns the horizon of the coming step, in tokens; at some steps the rule asks for the full length."""
    return self.max if self.rule.is_full_length(step) else self.widths[self._at]

  width = limit

  def possible_widths(self, step: int) -> tuple[int, ...]:
    """The compiled widths that a step may have, before the run: any of them."""
    return self.widths

  def lines(self, stages: Sequence[dict[str, Any]], unit: str = "tokens") -> Iterator[str]:
    """Describes the candidates and the rule, in one line."""
    yield f"  widths {', '.join(map(str, self.widths))}, chosen by {self.rule}"

  @property
  def measured(self) -> bool:
    """True where some steps measure the gradients' agreement."""
    return self.rule.probe_every > 0

  def probes(self, step: int) -> bool:
    """Tells whether a step measures the gradients' agreement."""
    return self.rule.probes(step)

  def observe(self, step: int, observation: adaptive.StepObservation) -> None:
    """Chooses the next width from what a step has shown.

    A step whose rollouts began ahead, at a width that has been left since, is ignored, and so is one without a number that
    the rule chooses by: a run without a teacher has no divergence from one.
    """
    if not self.rule.reads <= observation.means.keys():
      return
    if observation.limit != self.limit(step) and observation.agreement is None:
      return
    self._at, self._memory = self.rule.choose(self.widths, self._at, self._memory, step, observation)

  def state(self) -> dict[str, Any]:
    """Returns what a checkpoint saves, as JSON."""
    return {"at": self._at, "memory": self._memory}

  def restore(self, state: dict[str, Any]) -> None:
    if state["at"] not in range(len(self.widths)) or not isinstance(state["memory"], dict):
      raise ValueError("no state of a horizon")
    self._at, self._memory = int(state["at"]), state["memory"]

  def stages(self, steps: int) -> list[Stage]:
    """Lists a stage for every width, each as if it were used throughout, since any of them may be at any step."""
    return [Stage(i, width, 0, steps, width, width, width * steps) for i, width in enumerate(self.widths)]


Horizon = Schedule | Adaptive


def full(max: int) -> Schedule:
  """OPD: every rollout may use the whole maximum."""
  return Schedule("full", max, max, 0, 1, (max,))


def truncated(max: int, length: int) -> Schedule:
  """TOPD: every rollout stops after `length` tokens."""
  return Schedule("truncated", max, length, 0, 1, (length,))


def progressive(max: int, start: int, growth: int, every: int = 1, quantum: int = 64) -> Schedule:
  """POPD: the paper's staircase, realised with compiled widths that are multiples of `quantum`, and `max`."""
  return Schedule("progressive", max, start, growth, every, _multiples(quantum, max))


def geometric(max: int, start: int, factor: float, every: int = 1, quantum: int = 64) -> Schedule:
  """Makes a horizon that grows by a factor, so that it stays short for longer."""
  return Schedule("geometric", max, start, 0, every, _multiples(quantum, max), factor)


def doubling(max: int, start: int) -> tuple[int, ...]:
  """Lists widths from `start` on, each twice the one before, and `max`."""
  shorter = itertools.takewhile(lambda w: w < max, (start << i for i in itertools.count()))
  return (*shorter, max)


def from_config(config) -> Horizon:
  """The horizon of `config.horizon`.

  Raises:
    InputError: for a horizon of 0, a negative one, or one above the maximum.
  """

  def within(key: str, low: int, high: float, meaning: str):
    if not low <= config[key] <= high:
      bound = f"between {low} and {high}" if math.isfinite(high) else f"at least {low}"
      raise InputError(f"config.horizon.{key} is {config[key]}; {meaning} has to be {bound}.")

  within("max", 1, math.inf, "the longest rollout, in tokens,")
  if config.kind == "full":
    return full(config.max)
  if config.kind == "truncated":
    if bool(config.length) == bool(config.ratio):
      raise InputError(
        "A truncated horizon needs either config.horizon.length (tokens) or config.horizon.ratio (of horizon.max), "
        f"not {'both' if config.length else 'neither'}; length is {config.length} and ratio is {config.ratio}."
      )
    if config.ratio:
      within("ratio", 0, 1, "the fraction of horizon.max")
      return truncated(config.max, max(1, round(config.ratio * config.max)))
    within("length", 1, config.max, "the rollout length (horizon.max is the upper bound)")
    return truncated(config.max, config.length)
  if config.kind in ("progressive", "geometric"):
    within("start", 1, config.max, "the first horizon H_0 (horizon.max is the upper bound)")
    within("every", 1, math.inf, "the number of steps between two growths")
    within("quantum", 1, math.inf, "the quantum of compiled widths")
  if config.kind == "progressive":
    within("growth", 0, math.inf, "the growth in tokens")
    return progressive(config.max, config.start, config.growth, config.every, config.quantum)
  if config.kind == "geometric":
    if not config.factor > 1:
      raise InputError(f"config.horizon.factor is {config.factor}; a geometric horizon grows by a factor above 1.")
    return geometric(config.max, config.start, config.factor, config.every, config.quantum)
  if config.kind in adaptive.RULES:
    widths = tuple(config.widths)
    if widths and not all(isinstance(w, int) and 1 <= w < config.max for w in widths):
      raise InputError(
        f"config.horizon.widths is {widths}; it holds whole numbers of tokens from 1 to below "
        f"horizon.max={config.max}, "
        "which is always a candidate."
      )
    if not widths:
      within("start", 1, config.max, "the shortest horizon, from which the widths double,")
    return Adaptive(
      adaptive.from_config(config), (*sorted(set(widths)), config.max) if widths else doubling(config.max, config.start)
    )
  raise InputError(
    f"config.horizon.kind is {config.kind!r}; it can be {', '.join(map(repr, KINDS[:-1]))} or {KINDS[-1]!r}."
  )


def describe(schedule: Horizon, steps: int, rows: int) -> list[dict]:
  """The stages as they are printed and saved; tokens of all rows."""
  return [dataclasses.asdict(s) | {"tokens": rows * s.tokens} for s in schedule.stages(steps)]


def _multiples(quantum: int, max: int) -> tuple[int, ...]:
  return (*range(quantum, max, quantum), max)
