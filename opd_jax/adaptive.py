"""Rules by which a horizon is chosen among a few widths while the student trains.

    agreement   the shortest whose gradient points where the full one does (after ADWIN, arXiv:2605.28396)
    drift       as far as student and teacher agree (after Prune-OPD's cap, arXiv:2605.07804)
    saturation  longer when the divergence within it has stopped falling, shorter when its tail teaches nothing (ours)
    look        a look at the full length now and then: the shortest beyond which a token teaches little more (ours)

A rule sees what a step has shown by position, keeps a memory of JSON, and knows nothing of JAX. The papers' constants
are not all published: those of `drift` and the cadences are ours.
"""

import abc
import dataclasses
import itertools
import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from opd_jax.errors import InputError

Memory = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Seen:
  """What a step has shown."""

  limit: int  # tokens, of this step
  edges: list[int]  # of the position bins, in tokens
  count: list[int]  # tokens in each bin
  means: dict[str, list[float | None]]  # by metric, in each bin: "kl", "overlap"
  cut: float  # share of the rows that the limit cut
  agreement: list[float] | None = None  # cosine of every width's gradient with the full one, where it was measured

  def mean(self, name: str, start: int, end: float = math.inf, default: float = math.nan) -> float:
    """Over the tokens of the bins that begin at `start` or later and below `end`; `default` without any."""
    of = [
      (n, v)
      for at, n, v in zip(self.edges, self.count, self.means[name], strict=False)
      if start <= at < end and n and v is not None
    ]
    total = sum(n for n, _ in of)
    return sum(n * v for n, v in of) / total if total else default


def seen(limit: int, by_position: dict[str, list], cut: float, agreement: list[float] | None) -> Seen:
  """Of a step's record, see `metrics.by_position`."""
  means = {name: values for name, values in by_position.items() if name not in ("edges", "count")}
  return Seen(limit, by_position["edges"], by_position["count"], means, cut, agreement)


@dataclasses.dataclass(frozen=True)
class Rule(abc.ABC):
  """Every step as far as the last choice, unless it looks."""

  probe_every: int = 0  # steps between two measurements of the gradients' agreement; 0: never
  look_every: int = 0  # steps between two at full length; 0: never

  def looks(self, step: int) -> bool:
    return self.look_every > 0 and step % self.look_every == 0

  def probes(self, step: int) -> bool:
    return self.probe_every > 0 and step % self.probe_every == 0

  @abc.abstractmethod
  def choose(self, widths: Sequence[int], at: int, memory: Memory, step: int, seen: Seen) -> tuple[int, Memory]:
    """The index of the next width, and what to remember."""


@dataclasses.dataclass(frozen=True)
class Agreement(Rule):
  """The shortest width whose gradient's cosine with the full one is at least `threshold`, over the probes at hand.

  At sqrt(1/2) as much of the prefix's gradient lies along the full one as across it.
  """

  threshold: float = math.sqrt(0.5)
  stale: int = 5  # steps after which a probe no longer counts

  def choose(self, widths, at, memory, step, seen):
    if seen.agreement is None:
      return at, memory
    kept = [(k, rho) for k, rho in memory.get("probes", ()) if step - k <= self.stale]
    kept.append((step, list(seen.agreement)))
    mean = [fmean(rho) for rho in zip(*(rho for _, rho in kept), strict=True)]
    at = next((i for i, rho in enumerate(mean) if rho >= self.threshold), len(widths) - 1)
    return at, {"probes": kept}


@dataclasses.dataclass(frozen=True)
class Drift(Rule):
  """One width longer after `patience` steps of agreement to the limit, one shorter after as many in which it ends so early
  that the next shorter width would hold it.

  A batch agrees up to the first bin of positions whose mean overlap falls under `threshold`, or, by "gap", up to where
  the divergence summed from the beginning rises over it.
  """

  measure: str = "overlap"  # share of the top-k in common; or "gap", nats
  threshold: float = 0.7
  patience: int = 3
  hit: float = 0.1  # share of the rows that has to reach the limit before it grows

  def choose(self, widths, at, memory, step, seen):
    agreed = self.agreed(seen)
    shorter = widths[at - 1] if at else 0
    vote = 1 if agreed >= seen.limit and seen.cut >= self.hit else -1 if agreed < max(shorter, 1) else 0
    votes = memory.get("votes", 0)
    votes = votes + vote if vote * votes >= 0 and vote else vote
    if abs(votes) < self.patience:
      return at, {"votes": votes}
    return min(max(at + vote, 0), len(widths) - 1), {}

  def agreed(self, seen: Seen) -> float:
    """Tokens from the beginning; infinite where nothing breaks it."""
    name = "overlap" if self.measure == "overlap" else "kl"
    gap = 0.0
    for (first, last), n, value in zip(itertools.pairwise(seen.edges), seen.count, seen.means[name], strict=True):
      if not n or value is None:
        break
      gap += (min(last, seen.limit) - first) * value
      if value < self.threshold if self.measure == "overlap" else gap > self.threshold:
        return first
    return math.inf


@dataclasses.dataclass(frozen=True)
class Saturation(Rule):
  """Longer when the divergence within the window has stopped falling, shorter when its tail teaches nothing.

  Stopped: the second half of the last `window` steps at this width has a mean no lower than (1 - `fall`) of the first's.
  The tail is what the next shorter width would leave out; nothing: its mean is below `least` of the rest's.
  """

  window: int = 8
  fall: float = 0.05
  least: float = 0.25

  def choose(self, widths, at, memory, step, seen):
    shorter = widths[at - 1] if at else 0
    spans = ((0, math.inf), (0, shorter), (shorter, math.inf))
    past = [*memory.get("kl", ()), [seen.mean("kl", *span, default=0.0) for span in spans]][-self.window :]
    if len(past) < self.window:
      return at, {"kl": past}
    half = self.window // 2
    mean = lambda part, i: fmean(step[i] for step in part)
    if at and mean(past, 2) < self.least * mean(past, 1):
      return at - 1, {}
    if at + 1 < len(widths) and mean(past[half:], 0) >= (1 - self.fall) * mean(past[:half], 0):
      return at + 1, {}
    return at, {"kl": past}


@dataclasses.dataclass(frozen=True)
class Look(Rule):
  """The shortest width beyond which the divergence of a token is at most `ratio` of that within.

  Every `look_every`-th step speaks to the full length and is learned from like any other.
  """

  look_every: int = 10
  ratio: float = 1.5

  def choose(self, widths, at, memory, step, seen):
    if not self.looks(step):
      return at, memory
    for i, width in enumerate(widths[:-1]):
      beyond, within = seen.mean("kl", width), seen.mean("kl", 0, width)
      if not beyond > self.ratio * within:  # beyond is NaN where no row went so far
        return i, memory
    return len(widths) - 1, memory


RULES: dict[str, type[Rule]] = {"agreement": Agreement, "drift": Drift, "saturation": Saturation, "look": Look}


def from_config(c) -> Rule:
  """The rule of `config.horizon`; a threshold of 0 is the rule's own.

  Raises:
    InputError: a number that the rule cannot work with.
  """

  def at_least(key: str, low: float, meaning: str) -> None:
    if c[key] < low:
      raise InputError(f"config.horizon.{key} is {c[key]}; {meaning} has to be at least {low}.")

  def not_for(key: str, default: float) -> None:
    if c[key] != default:
      raise InputError(
        f"config.horizon.{key} is {c[key]}, which horizon.kind {c.kind!r} does not use; leave it at {default}."
      )

  at_least("threshold", 0, "the threshold of an adaptive horizon (0: the rule's own)")
  own = {"threshold": c.threshold} if c.threshold else {}
  match c.kind:
    case "agreement":
      at_least("every", 1, "the number of steps between two probes")
      at_least("probes", 1, "the number of prompts that a probe continues to full length")
      if c.threshold > 1:
        raise InputError(f"config.horizon.threshold is {c.threshold}; a cosine is at most 1.")
      return Agreement(probe_every=c.every, **own)
    case "drift":
      if c.measure not in ("overlap", "gap"):
        raise InputError(f"config.horizon.measure is {c.measure!r}; it can be 'overlap' or 'gap'.")
      if c.measure == "gap" and not c.threshold:
        raise InputError("config.horizon.threshold is 0; with measure 'gap' it is a number of nats.")
      not_for("every", 1)
      return Drift(measure=c.measure, **own)
    case "saturation":
      at_least("window", 2, "the number of steps between which the divergence is compared")
      not_for("every", 1)
      not_for("threshold", 0.0)
      return Saturation(window=c.window)
    case "look":
      at_least("every", 1, "the number of steps between two at full length")
      return Look(look_every=c.every, **({"ratio": c.threshold} if c.threshold else {}))
  raise ValueError(f"{c.kind!r} is not one of {', '.join(RULES)}")
