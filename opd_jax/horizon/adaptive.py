"""Rules by which a horizon is chosen among a few widths while the student trains.

    agreement   the shortest whose gradient points where the full one does (after ADWIN, arXiv:2605.28396)
    drift       as far as student and teacher agree (after Prune-OPD's cap, arXiv:2605.07804)
    saturation  longer when the divergence within it has stopped falling, shorter when its tail teaches nothing (ours)
    look        a step at full length now and then: the shortest beyond which a token teaches little more (ours)

A rule observes a step's metrics by position, keeps a memory of JSON, and knows nothing of JAX. The papers' constants
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
class StepObservation:
  """The numbers of one finished step from which a rule chooses the next horizon."""

  limit: int  # tokens, of this step
  edges: list[int]  # of the position bins, in tokens
  count: list[int]  # tokens in each bin
  means: dict[str, list[float | None]]  # by metric, in each bin: "kl", "overlap"
  cut: float  # share of the rows that the limit cut
  agreement: list[float] | None = None  # cosine of every width's gradient with the full one, where it was measured

  @classmethod
  def from_metrics(
    cls, limit: int, by_position: dict[str, list], cut: float, agreement: list[float] | None
  ) -> "StepObservation":
    """Makes the observation of a step from its metrics, see `runtime.metrics.by_position`."""
    means = {name: values for name, values in by_position.items() if name not in ("edges", "count")}
    return cls(limit, by_position["edges"], by_position["count"], means, cut, agreement)

  def mean(self, name: str, start: int, end: float = math.inf, default: float = math.nan) -> float:
    """Computes a metric's mean over the tokens of the bins that begin in [start, end); `default` without any."""
    bins = [
      (n, v)
      for at, n, v in zip(self.edges, self.count, self.means[name], strict=False)
      if start <= at < end and n and v is not None
    ]
    total = sum(n for n, _ in bins)
    return sum(n * v for n, v in bins) / total if total else default


@dataclasses.dataclass(frozen=True)
class Rule(abc.ABC):
  """A rule by which the next width is chosen; every step uses the last choice, unless it is at full length."""

  probe_every: int = 0  # steps between two measurements of the gradients' agreement; 0: never
  full_length_every: int = 0  # steps between two at full length; 0: never

  @property
  def reads(self) -> frozenset[str]:
    """The metrics by position that the rule chooses by."""
    return frozenset()

  def is_full_length(self, step: int) -> bool:
    """Tells whether a step is at full length whatever the last choice."""
    return self.full_length_every > 0 and step % self.full_length_every == 0

  def probes(self, step: int) -> bool:
    """Tells whether a step measures the gradients' agreement."""
    return self.probe_every > 0 and step % self.probe_every == 0

  @abc.abstractmethod
  def choose(
    self, widths: Sequence[int], at: int, memory: Memory, step: int, observation: StepObservation
  ) -> tuple[int, Memory]:
    """Chooses the index of the next width, and what to remember as JSON; `at` is the index of the last one."""


@dataclasses.dataclass(frozen=True)
class Agreement(Rule):
  """The shortest width whose gradient's cosine with the full one is at least `threshold`, over the probes at hand.

  At sqrt(1/2) as much of the prefix's gradient lies along the full one as across it.
  """

  threshold: float = math.sqrt(0.5)
  stale: int = 5  # steps after which a probe no longer counts

  def choose(self, widths, at, memory, step, observation):
    if observation.agreement is None:
      return at, memory
    probes = [(k, rho) for k, rho in memory.get("probes", ()) if step - k <= self.stale]
    probes.append((step, list(observation.agreement)))
    by_width = zip(*(rho for _, rho in probes), strict=True)
    mean = [fmean(rho) for rho in by_width]
    at = next((i for i, rho in enumerate(mean) if rho >= self.threshold), len(widths) - 1)
    return at, {"probes": probes}


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

  @property
  def reads(self):
    return frozenset([{"overlap": "overlap", "gap": "kl"}[self.measure]])

  def choose(self, widths, at, memory, step, observation):
    agreed = self.agreed(observation)
    shorter = widths[at - 1] if at else 0
    vote = 0
    if agreed >= observation.limit and observation.cut >= self.hit:
      vote = 1
    elif agreed < max(shorter, 1):
      vote = -1
    votes = memory.get("votes", 0)
    same_direction = vote != 0 and vote * votes >= 0
    votes = votes + vote if same_direction else vote
    if abs(votes) < self.patience:
      return at, {"votes": votes}
    return min(max(at + vote, 0), len(widths) - 1), {}

  def agreed(self, observation: StepObservation) -> float:
    """Counts the tokens from the beginning on which the batch agrees; infinite where no bin breaks it."""
    (name,) = self.reads
    gap = 0.0
    for (first, last), n, value in zip(
      itertools.pairwise(observation.edges), observation.count, observation.means[name], strict=True
    ):
      if not n or value is None:
        break
      gap += (min(last, observation.limit) - first) * value
      broken = value < self.threshold if self.measure == "overlap" else gap > self.threshold
      if broken:
        return first
    return math.inf


@dataclasses.dataclass(frozen=True)
class Saturation(Rule):
  """Longer when the divergence within the window has stopped falling, shorter when its tail teaches nothing.

  Stopped: the second half of the last `window` steps at this width has a mean no lower than (1 - `fall`) of the first's.
  The tail is what the next shorter width would leave out; nothing: its mean is below `least` of that before it.
  """

  window: int = 8
  fall: float = 0.05
  least: float = 0.25

  @property
  def reads(self):
    return frozenset({"kl"})

  def choose(self, widths, at, memory, step, observation):
    shorter = widths[at - 1] if at else 0
    spans = ((0, math.inf), (0, shorter), (shorter, math.inf))
    now = [observation.mean("kl", *span, default=0.0) for span in spans]
    past = [*memory.get("kl", ()), now][-self.window :]
    if len(past) < self.window:
      return at, {"kl": past}
    half = self.window // 2

    def mean(steps, span: int) -> float:
      return fmean(kl[span] for kl in steps)

    if at and mean(past, 2) < self.least * mean(past, 1):
      return at - 1, {}
    if at + 1 < len(widths) and mean(past[half:], 0) >= (1 - self.fall) * mean(past[:half], 0):
      return at + 1, {}
    return at, {"kl": past}


@dataclasses.dataclass(frozen=True)
class FullLengthProbe(Rule):
  """The shortest width beyond which the divergence of a token is at most `ratio` of that within.

  Every `full_length_every`-th step generates to the full length and is learned from like any other.
  """

  full_length_every: int = 10
  ratio: float = 1.5

  @property
  def reads(self):
    return frozenset({"kl"})

  def choose(self, widths, at, memory, step, observation):
    if not self.is_full_length(step):
      return at, memory
    for i, width in enumerate(widths[:-1]):
      beyond, within = observation.mean("kl", width), observation.mean("kl", 0, width)
      if not beyond > self.ratio * within:  # beyond is NaN where no row went so far
        return i, memory
    return len(widths) - 1, memory


RULES: dict[str, type[Rule]] = {
  "agreement": Agreement,
  "drift": Drift,
  "saturation": Saturation,
  "look": FullLengthProbe,
}


def from_config(config) -> Rule:
  """Makes the rule of `config.horizon`; a threshold of 0 is the rule's own.

  Raises:
    InputError: a number that the rule cannot work with.
  """

  def at_least(key: str, low: float, meaning: str) -> None:
    if config[key] < low:
      raise InputError(f"config.horizon.{key} is {config[key]}; {meaning} has to be at least {low}.")

  def not_for(key: str, default: float) -> None:
    if config[key] != default:
      raise InputError(
        f"config.horizon.{key} is {config[key]}, which horizon.kind {config.kind!r} does not use; leave it at "
        f"{default}."
      )

  at_least("threshold", 0, "the threshold of an adaptive horizon (0: the rule's own)")
  own = {"threshold": config.threshold} if config.threshold else {}
  match config.kind:
    case "agreement":
      at_least("every", 1, "the number of steps between two probes")
      at_least("probes", 1, "the number of prompts that a probe continues to full length")
      if config.threshold > 1:
        raise InputError(f"config.horizon.threshold is {config.threshold}; a cosine is at most 1.")
      return Agreement(probe_every=config.every, **own)
    case "drift":
      if config.measure not in ("overlap", "gap"):
        raise InputError(f"config.horizon.measure is {config.measure!r}; it can be 'overlap' or 'gap'.")
      if config.measure == "gap" and not config.threshold:
        raise InputError("config.horizon.threshold is 0; with measure 'gap' it is a number of nats.")
      not_for("every", 1)
      return Drift(measure=config.measure, **own)
    case "saturation":
      at_least("window", 2, "the number of steps between which the divergence is compared")
      not_for("every", 1)
      not_for("threshold", 0.0)
      return Saturation(window=config.window)
    case "look":
      at_least("every", 1, "the number of steps between two at full length")
      return FullLengthProbe(
        full_length_every=config.every, **({"ratio": config.threshold} if config.threshold else {})
      )
  raise ValueError(f"{config.kind!r} is not one of {', '.join(RULES)}")
