"""Seconds of a step and of a run, estimated from published rates: a bound, and no measurement.

    rollout   prefill, then every token: max(FLOPs / rate, bytes / memory bandwidth) of each, one after the other
    update    max(FLOPs / rate, bytes / memory bandwidth) of teachers' reading and student's reading and update
    + bytes sent in collectives / link rate, as if nothing overlapped with anything

FLOPs and bytes are counted in benchmarks/roofline.py; what is sent is read from the compiled programs. Every rollout is
taken to reach its limit, prompts to be full, and small messages to cost no more than their bytes.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence

from opd_jax.benchmarks import roofline
from opd_jax.benchmarks.roofline import Work
from opd_jax.horizon import Schedule
from opd_jax.planning import stages
from opd_jax.planning.collectives import Collective
from opd_jax.planning.compiled import Program
from opd_jax.planning.setup import Setup


@dataclasses.dataclass(frozen=True)
class Sent:
  """Seconds of collectives of one program.

  Attributes:
    once: of a call, outside the token loop.
    token: of each token.
  """

  once: float = 0.0
  token: float = 0.0


@dataclasses.dataclass(frozen=True)
class Step:
  """Seconds."""

  rollout: float
  update: float
  sending: float

  @property
  def seconds(self) -> float:
    return self.rollout + self.update + self.sending


class Estimate:
  """Of one setup, from the programs that were compiled for it."""

  def __init__(self, setup: Setup, programs: Mapping[int, Sequence[Program]]):
    """
    Args:
      programs: by response width; widths between them are interpolated.
    """
    self.setup = setup
    self._sent = {
      width: {p.name: sending(setup, p.collectives or []) for p in of_width} for width, of_width in programs.items()
    }

  @functools.cached_property
  def _tokens(self) -> list[float]:
    """Seconds of a rollout up to each token, index 0 being the first."""
    how = self._how
    s = self.setup
    first = roofline.prefill(s.subject.student, s.c.batch, s.c.rollouts_per_prompt, s.prompt, **how)
    each = (roofline.token(s.subject.student, s.rows, s.prompt + t, **how) for t in range(1, s.c.horizon.max))
    return list(itertools.accumulate(map(self.seconds, (first, *each))))

  @property
  def _how(self) -> dict[str, int]:
    return {"vocab": self.setup.subject.vocab, "itemsize": self.setup.subject.dtype.itemsize}

  def seconds(self, work: Work | Sequence[Work]) -> float:
    mesh = self.setup.mesh
    return roofline.seconds(work, self.setup.target.chip, mesh.size, mesh.shape["tensor"])

  def works(self, name: str, width: int) -> list[Work]:
    """What one call of a program has to do at a width, as works that wait for each other."""
    s, how = self.setup, self._how
    student = s.subject.student
    if name == "update":
      frozen = s.subject.teachers + ((student,) if s.c.mixture.initial else ())
      return [roofline.update(student, frozen, s.rows, s.prompt, width, remat=s.c.remat, **how)]
    evaluating = name == "evaluate"
    batch = stages.evaluation_batch(s) if evaluating else s.c.batch
    n = s.c.eval.k if evaluating else s.c.rollouts_per_prompt
    return roofline.rollout(student, batch, n, s.prompt, width, **how)

  def step(self, compiled: int, limit: int) -> Step:
    """A step whose rollouts have `limit` tokens each, run by programs of the width `compiled`."""
    width = self.setup.read_at(compiled, limit)
    updates = self.setup.c.updates_per_rollout
    rollout, update = self.sent("rollout", limit), self.sent("update", width)
    return Step(
      rollout=self._tokens[limit - 1],
      update=updates * self.seconds(self.works("update", width)),
      sending=rollout.once + rollout.token * (limit - 1) + updates * update.once,
    )

  def sent(self, name: str, width: int) -> Sent:
    """Seconds of a program's collectives at a width, between the compiled ones by its length."""
    known = sorted((w, of[name]) for w, of in self._sent.items() if name in of)
    if not known:
      return Sent()
    if len(known) == 1:
      return known[0][1]
    after = min(max(1, sum(w < width for w, _ in known)), len(known) - 1)
    (a, low), (b, high) = known[after - 1], known[after]
    at = lambda x, y: max(0.0, x + (y - x) * (width - a) / (b - a))
    return Sent(at(low.once, high.once), at(low.token, high.token))

  def evaluation(self) -> float:
    """Seconds of one evaluation, without judging the answers."""
    c = self.setup.c
    tokens = c.eval.max_tokens or c.horizon.max
    sent = self.sent("evaluate", tokens)
    calls = -(-c.eval.prompts // stages.evaluation_batch(self.setup))
    return calls * (self.seconds(self.works("evaluate", tokens)) + sent.once + sent.token * (tokens - 1))

  def run(self, schedule: Schedule) -> dict[str, float]:
    """A whole run under a schedule, step by step at each exact limit; seconds, tokens, and hours of chips."""
    s = self.setup
    limits = [schedule.limit(k) for k in range(s.c.steps)]
    each = {schedule.limit(k): schedule.width(k) for k in range(s.c.steps)}
    by_limit = {limit: self.step(width, limit) for limit, width in each.items()}
    steps = [by_limit[limit] for limit in limits]
    every = s.c.eval.every
    evaluations = 1 + sum(k == s.c.steps or k % every == 0 for k in range(1, s.c.steps + 1)) if every else 0
    training = sum(step.seconds for step in steps)
    evaluating = evaluations * self.evaluation() if evaluations else 0.0
    hours = lambda seconds: seconds / 3600 * s.target.chips
    return {
      "steps": s.c.steps,
      "first_limit": limits[0],
      "last_limit": limits[-1],
      "tokens": s.rows * sum(limits),
      "rollout_seconds": sum(step.rollout for step in steps),
      "update_seconds": sum(step.update for step in steps),
      "sending_seconds": sum(step.sending for step in steps),
      "training_seconds": training,
      "training_chip_hours": hours(training),
      "evaluations": evaluations,
      "evaluation_chip_hours": hours(evaluating),
    }


def sending(setup: Setup, found: Sequence[Collective]) -> Sent:
  """Seconds of collectives over the links of a slice, or over the network where a group spans several slices."""
  chip = setup.target.chip

  def seconds(c: Collective) -> float:
    between_slices = setup.target.slices > 1 and "data" in c.axes.split("+")
    rate = chip.network if between_slices else chip.link
    return c.sent / rate if rate else 0.0

  inside = sum(seconds(c) for c in found if c.in_token_loop)
  return Sent(sum(seconds(c) for c in found if not c.in_token_loop), inside)
