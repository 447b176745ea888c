"""Seconds, tokens and bytes of a rollout, and how its tokens slow down as the caches fill.

One program is compiled for the whole horizon. Its limit is traced, so the same program timed at several limits tells
what each stretch of tokens costs: the difference in seconds over the difference in tokens.
"""

import functools
import itertools
import time
from typing import Any

import jax
import numpy as np

from opd_jax.benchmarks.subject import Case, Subject
from opd_jax.models import roofline
from opd_jax.runtime import mesh as meshes
from opd_jax.runtime import metrics, programs, timing
from opd_jax.runtime.machine import Machine
from opd_jax.training.distillation import DistillationStep
from opd_jax.types import Params, Rollout

STRETCHES = 8  # of the horizon; two of them are a quarter
MIN_SECONDS = 10.0  # of all timed calls together: differences of short times need many repeats


def program(subject: Subject, case: Case, params: Params) -> tuple[jax.stages.Compiled, dict[str, Any]]:
  """Compiles the rollout, (params, batch, key, limit) -> Rollout, as the trainer does; returns it and its record."""
  shape = subject.shape(case)
  distillation: DistillationStep = subject.recipe(case).step  # pyright: ignore[reportAttributeAccessIssue]
  rollout = functools.partial(distillation.rollout, response_len=case.horizon)
  sampled = jax.jit(rollout, out_shardings=meshes.rows(subject.mesh))
  lowered = sampled.lower(params, subject.prompts(case), jax.random.key(0), np.int32(1))
  began = time.perf_counter()
  compiled = lowered.compile()
  return compiled, programs.record("rollout", shape, time.perf_counter() - began, compiled)


def measure(
  subject: Subject,
  case: Case,
  params: Params,
  compiled: tuple[jax.stages.Compiled, dict],
  machine: Machine,
  repeat: int,
) -> dict[str, Any]:
  """Times the rollout at every limit and gives one record for the JSON.

  Fractions are of the least seconds, as the machine's rates are the best.

  Args:
    compiled: the program, and the record of its compilation.
  """
  run, compilation = compiled
  batch, key = subject.prompts(case), jax.random.key(0)

  def rollout(limit: int) -> Rollout:
    return run(params, batch, key, np.int32(limit))

  if not np.asarray(jax.device_get(rollout(case.horizon).mask)).all():  # also warms up
    raise RuntimeError("a rollout without stop tokens ended before its limit")
  calls = {limit: functools.partial(rollout, limit) for limit in limits(case.horizon)}
  spent = timing.interleaved(calls, repeat, MIN_SECONDS)
  tokens = case.rows * case.horizon
  costs = token_costs(subject, case)
  full = timing.summary(spent[case.horizon])
  least = full["min_seconds"]
  bound = roofline_seconds(subject, machine, costs)
  return {
    **case.sizes,
    **full,
    "tokens_per_second": tokens / full["seconds"],
    "prefill_seconds": min(spent[1]),
    "compile_seconds": compilation["seconds"],
    "program_bytes": compilation["bytes"],
    "process_peak_bytes": metrics.peak_memory(),
    "flops": sum(cost.flops for cost in costs),
    "bytes": sum(cost.bytes for cost in costs),
    "flops_per_second": sum(cost.flops for cost in costs) / least,
    "bytes_per_second": sum(cost.bytes for cost in costs) / least,
    "roofline_seconds": bound,
    "fraction_of_roofline": bound / least,
    "by_prefix": by_prefix(subject, case, machine, spent),
    "last_to_first_quarter": quarters(subject, case, machine, spent),
    "limits": {str(limit): timing.summary(seconds) for limit, seconds in spent.items()},
  }


def limits(horizon: int) -> list[int]:
  """Lists the limits at which the rollout is timed: the first token, which the prompt gives, then each stretch's end."""
  return sorted({1, *(max(1, horizon * i // STRETCHES) for i in range(1, STRETCHES + 1))})


def token_costs(subject: Subject, case: Case) -> list[roofline.Cost]:
  """Computes the cost of every token of all rows; the first is the prompt's."""
  features = min(subject.most_features, case.prompt)
  sizes = {"vocab": subject.vocab, "itemsize": subject.dtype.itemsize, "features": features}
  return roofline.rollout(subject.student, case.batch, case.n, case.prompt, case.horizon, **sizes)


def roofline_seconds(subject: Subject, machine: Machine, costs: list[roofline.Cost]) -> float:
  """Sums the least seconds of the costs, one after the other, at the machine's rates."""
  return roofline.seconds(costs, machine, subject.mesh.size, subject.tensor)


def by_prefix(
  subject: Subject, case: Case, machine: Machine, spent: dict[int, list[float]]
) -> list[dict[str, float | int]]:
  """List, by stretch of tokens, the seconds that all rows together take per token, measured and at the roofline.

  `prefix` is the number of filled cache slots at the middle of the stretch. Measured seconds are a difference of two
  least times, so on a disturbed machine a stretch may even come out below zero.
  """
  costs, ends = token_costs(subject, case), sorted(spent)
  stretches = []
  for a, b in itertools.pairwise(ends):
    stretch = costs[a:b]
    stretches.append(
      {
        "from_token": a,
        "to_token": b,
        "prefix": case.prompt + (a + b - 1) / 2,
        "seconds_per_token": (min(spent[b]) - min(spent[a])) / (b - a),
        "roofline_seconds_per_token": roofline_seconds(subject, machine, stretch) / (b - a),
        "bytes_per_token": sum(cost.bytes for cost in stretch) / (b - a),
        "flops_per_token": sum(cost.flops for cost in stretch) / (b - a),
      }
    )
  return stretches


def quarters(subject: Subject, case: Case, machine: Machine, spent: dict[int, list[float]]) -> dict[str, float] | None:
  """Divides the last quarter of the tokens by the first: measured time per token, bytes, FLOPs and roofline seconds.

  None where the horizon is too short to have quarters, or the first one too short for the clock.
  """
  H, q = case.horizon, case.horizon // 4
  late = H * (STRETCHES - 2) // STRETCHES  # in `limits`, as q is
  if q < 2 or min(spent[q]) <= min(spent[1]):
    return None
  costs = token_costs(subject, case)
  first, last = costs[1:q], costs[late:H]

  def ratio(of_last: float, of_first: float) -> float:
    """Computes how much more a token of the last quarter has, from the sums over both."""
    return of_last / (H - late) / (of_first / (q - 1))

  return {
    "seconds": ratio(min(spent[H]) - min(spent[late]), min(spent[q]) - min(spent[1])),
    "bytes": ratio(sum(cost.bytes for cost in last), sum(cost.bytes for cost in first)),
    "flops": ratio(sum(cost.flops for cost in last), sum(cost.flops for cost in first)),
    "roofline": ratio(roofline_seconds(subject, machine, last), roofline_seconds(subject, machine, first)),
  }
