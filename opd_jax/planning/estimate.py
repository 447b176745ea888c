"""Seconds of a step and of a run, estimated from published rates: a bound, and no measurement.

    rollout   prefill, then every token: max(FLOPs / rate, bytes / memory bandwidth) of each, one after the other
    update    max(FLOPs / rate, bytes / memory bandwidth) of the teachers' forward passes and the student's update
    + bytes sent in collectives / link rate, as if nothing overlapped with anything

FLOPs and bytes are counted in models/roofline.py; what is sent is known from the compiled programs. Every rollout is
taken to reach its limit, prompts to be full, and small messages to cost no more than their bytes.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence

from opd_jax.config import response_len
from opd_jax.horizon.schedule import Schedule
from opd_jax.models import image_encoder, roofline
from opd_jax.models.roofline import Cost
from opd_jax.planning import stages
from opd_jax.planning.collectives import Collective
from opd_jax.planning.compiled import Program
from opd_jax.planning.setup import Setup


@dataclasses.dataclass(frozen=True)
class CollectiveSeconds:
  """Seconds that the collectives of one program take.

  Attributes:
    per_call: outside the token loop.
    per_token: inside of it, for each token.
  """

  per_call: float = 0.0
  per_token: float = 0.0

  def total(self, tokens: int) -> float:
    """Sum up the seconds of a call that makes `tokens` tokens, the first of them outside the token loop."""
    return self.per_call + self.per_token * (tokens - 1)


@dataclasses.dataclass(frozen=True)
class StepSeconds:
  """The estimated seconds of one training step, by what they are spent on."""

  rollout: float
  update: float
  sending: float

  @property
  def seconds(self) -> float:
    return self.rollout + self.update + self.sending


class RunEstimate:
  """Estimated seconds of steps, evaluations and runs of one setup, from the programs compiled for it."""

  def __init__(self, setup: Setup, programs: Mapping[int, Sequence[Program]]):
    """Takes what is known of a run's programs.

    Args:
      programs: by response width; widths between them are interpolated.
    """
    self.setup = setup
    self._collectives: dict[str, dict[int, CollectiveSeconds]] = {}  # of a program, by width
    for width, compiled in programs.items():
      for program in compiled:
        seconds = collective_seconds(setup, program.collectives or [])
        self._collectives.setdefault(program.name, {})[width] = seconds

  @functools.cached_property
  def _rollout_seconds(self) -> list[float]:
    """Seconds of a rollout up to each token, index 0 being the first."""
    costs = self.costs("rollout", response_len(self.setup.c))
    return list(itertools.accumulate(map(self.roofline_seconds, costs)))

  def roofline_seconds(self, cost: Cost | Sequence[Cost]) -> float:
    """Estimate the seconds of computing and memory on the target's devices; several costs run one after the other."""
    mesh = self.setup.mesh
    return roofline.seconds(cost, self.setup.target.chip, mesh.size, mesh.shape["tensor"])

  def costs(self, name: str, width: int) -> list[Cost]:
    """The costs of one call of a program at a response width, which wait for each other.

    Args:
      name: "rollout", "update", "evaluate" or "encode", whose width is that of its patches.
    """
    s = self.setup
    if name == image_encoder.PROGRAM:
      return [stages.encoding_cost(s)]
    evaluating = name == "evaluate"
    batch = stages.evaluation_batch(s) if evaluating else s.c.batch
    n = s.c.eval.k if evaluating else s.c.rollouts_per_prompt
    return s.recipe.roofline_costs(name, batch, n, s.prompt, width)

  def step(self, compiled: int, limit: int) -> StepSeconds:
    """Estimate the seconds of a step with rollouts of `limit` tokens each, run by programs of the width `compiled`."""
    width = self.setup.update_width(compiled, limit)
    updates = self.setup.c.updates_per_rollout
    rollout, update = self.collectives("rollout", limit), self.collectives("update", width)
    return StepSeconds(
      rollout=self._rollout_seconds[limit - 1 if self.setup.recipe.cuts_rollouts else -1],
      update=updates * self.roofline_seconds(self.costs("update", width)),
      sending=rollout.total(limit) + updates * update.per_call,
    )

  def collectives(self, name: str, width: int) -> CollectiveSeconds:
    """Estimate the seconds of a program's collectives at a width, linear between the compiled widths and beyond."""
    by_width = self._collectives.get(name, {})
    widths = sorted(by_width)
    if not widths:
      return CollectiveSeconds()
    if len(widths) == 1:
      return by_width[widths[0]]
    upper = min(max(1, sum(w < width for w in widths)), len(widths) - 1)
    a, b = widths[upper - 1], widths[upper]

    def interpolated(x: float, y: float) -> float:
      return max(0.0, x + (y - x) * (width - a) / (b - a))

    low, high = by_width[a], by_width[b]
    return CollectiveSeconds(interpolated(low.per_call, high.per_call), interpolated(low.per_token, high.per_token))

  def evaluation(self) -> float:
    """Estimate the seconds of one evaluation, without the verification of the answers."""
    c = self.setup.c
    tokens = c.eval.max_tokens or response_len(c)
    calls = -(-c.eval.prompts // stages.evaluation_batch(self.setup))
    computing, sending = self.roofline_seconds(self.costs("evaluate", tokens)), self.collectives("evaluate", tokens)
    return calls * (computing + sending.per_call + sending.per_token * (tokens - 1))

  def run(self, schedule: Schedule) -> dict[str, float]:
    """Estimates a whole run under a schedule, step by step at each exact limit.

    Returns:
      Seconds, tokens and chip-hours, by the keys of the plan's JSON.
    """
    s = self.setup
    limits = [schedule.limit(k) for k in range(s.c.steps)]
    widths = {schedule.limit(k): schedule.width(k) for k in range(s.c.steps)}
    by_limit = {limit: self.step(width, limit) for limit, width in widths.items()}
    steps = [by_limit[limit] for limit in limits]
    evaluations = 0
    if every := s.c.eval.every:
      evaluated = [k for k in range(1, s.c.steps + 1) if k == s.c.steps or k % every == 0]
      evaluations = 1 + len(evaluated)  # the first before training
    training = sum(step.seconds for step in steps)
    evaluating = evaluations * self.evaluation() if evaluations else 0.0

    def chip_hours(seconds: float) -> float:
      return seconds / 3600 * s.target.chips

    return {
      "steps": s.c.steps,
      "first_limit": limits[0],
      "last_limit": limits[-1],
      "tokens": sum(map(s.generated, limits)),
      "rollout_seconds": sum(step.rollout for step in steps),
      "update_seconds": sum(step.update for step in steps),
      "sending_seconds": sum(step.sending for step in steps),
      "training_seconds": training,
      "training_chip_hours": chip_hours(training),
      "evaluations": evaluations,
      "evaluation_chip_hours": chip_hours(evaluating),
    }


def collective_seconds(setup: Setup, collectives: Sequence[Collective]) -> CollectiveSeconds:
  """Estimate the seconds of collectives over a slice's links, or over the network where a group spans slices."""
  chip = setup.target.chip

  def seconds(c: Collective) -> float:
    between_slices = setup.target.slices > 1 and "data" in c.axes.split("+")
    rate = chip.network if between_slices else chip.link
    return c.sent_bytes / rate if rate else 0.0

  return CollectiveSeconds(
    per_call=sum(seconds(c) for c in collectives if not c.in_token_loop),
    per_token=sum(seconds(c) for c in collectives if c.in_token_loop),
  )
