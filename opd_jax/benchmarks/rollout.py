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

from opd_jax import mesh as meshes
from opd_jax import metrics, programs
from opd_jax.benchmarks import roofline, timing
from opd_jax.benchmarks.machine import Machine
from opd_jax.benchmarks.subject import Case, Subject
from opd_jax.types import Params

STRETCHES = 8  # of the horizon; two of them are a quarter
ENOUGH = 10.0  # seconds: differences of short times need many repeats


def program(subject: Subject, case: Case, params: Params) -> tuple[jax.stages.Compiled, dict[str, Any]]:
  """(params, batch, key, limit) -> Rollout, as the trainer compiles it, and the record of its compilation."""
  rollout = functools.partial(subject.recipe(case).rollout, horizon=case.horizon)
  sampled = jax.jit(rollout, out_shardings=meshes.rows(subject.mesh))
  lowered = sampled.lower(params, subject.prompts(case), jax.random.key(0), np.int32(1))
  began = time.perf_counter()
  compiled = lowered.compile()
  return compiled, programs.record(
    "rollout", programs.Shape(case.prompt, case.horizon), time.perf_counter() - began, compiled
  )


def measure(
  subject: Subject,
  case: Case,
  params: Params,
  compiled: tuple[jax.stages.Compiled, dict],
  machine: Machine,
  repeat: int,
) -> dict[str, Any]:
  """One record for the JSON. Fractions are of the least seconds, as the machine's rates are the best.

  Args:
    compiled: what `program` gave.
  """
  run, compilation = compiled
  batch, key = subject.prompts(case), jax.random.key(0)
  said = lambda limit: run(params, batch, key, np.int32(limit))
  if not np.asarray(jax.device_get(said(case.horizon).mask)).all():  # also warms up
    raise RuntimeError("a rollout without stop tokens ended before its limit")
  spent = timing.in_turn({limit: functools.partial(said, limit) for limit in limits(case.horizon)}, repeat, ENOUGH)
  rows, tokens = subject.rows(case), subject.rows(case) * case.horizon
  works = works_of(subject, case)
  whole, least = timing.summary(spent[case.horizon]), min(spent[case.horizon])
  bound = seconds(subject, machine, works)
  return {
    "batch": case.batch,
    "rows": rows,
    "prompt": case.prompt,
    "horizon": case.horizon,
    **whole,
    "tokens_per_second": tokens / whole["seconds"],
    "prefill_seconds": min(spent[1]),
    "compile_seconds": compilation["seconds"],
    "program_bytes": compilation["bytes"],
    "process_peak_bytes": metrics.peak_memory(),
    "flops": sum(w.flops for w in works),
    "bytes": sum(w.bytes for w in works),
    "flops_per_second": sum(w.flops for w in works) / least,
    "bytes_per_second": sum(w.bytes for w in works) / least,
    "roofline_seconds": bound,
    "fraction_of_roofline": bound / least,
    "by_prefix": by_prefix(subject, case, machine, spent),
    "last_to_first_quarter": quarters(subject, case, machine, spent),
    "limits": {str(limit): timing.summary(each) for limit, each in spent.items()},
  }


def limits(horizon: int) -> list[int]:
  """Of the timed calls: the first token, which comes with the prompt, then each stretch's end."""
  return sorted({1, *(max(1, horizon * i // STRETCHES) for i in range(1, STRETCHES + 1))})


def works_of(subject: Subject, case: Case) -> list[roofline.Work]:
  """Of every token; the first is the prompt's."""
  n, how = subject.c.rollouts_per_prompt, {"vocab": subject.vocab, "itemsize": subject.dtype.itemsize}
  return roofline.rollout(subject.student, case.batch, n, case.prompt, case.horizon, **how)


def seconds(subject: Subject, machine: Machine, works: list[roofline.Work]) -> float:
  return roofline.seconds(works, machine, subject.mesh.size, subject.tensor)


def by_prefix(
  subject: Subject, case: Case, machine: Machine, spent: dict[int, list[float]]
) -> list[dict[str, float | int]]:
  """For each stretch of tokens, seconds that all rows together take per token, measured and at the roofline.

  `prefix` is the number of filled cache slots at the middle of the stretch. Measured seconds are a difference of two
  least times, so on a disturbed machine a stretch may even come out below zero.
  """
  works, ends = works_of(subject, case), sorted(spent)
  out = []
  for a, b in itertools.pairwise(ends):
    mine = works[a:b]
    out.append(
      {
        "from_token": a,
        "to_token": b,
        "prefix": case.prompt + (a + b - 1) / 2,
        "seconds_per_token": (min(spent[b]) - min(spent[a])) / (b - a),
        "roofline_seconds_per_token": seconds(subject, machine, mine) / (b - a),
        "bytes_per_token": sum(w.bytes for w in mine) / (b - a),
        "flops_per_token": sum(w.flops for w in mine) / (b - a),
      }
    )
  return out


def quarters(subject: Subject, case: Case, machine: Machine, spent: dict[int, list[float]]) -> dict[str, float] | None:
  """The last quarter of the tokens over the first: measured time per token, bytes, FLOPs and roofline seconds.

  None where the horizon is too short to have quarters, or the first one too short for the clock.
  """
  H, q = case.horizon, case.horizon // 4
  late = H * (STRETCHES - 2) // STRETCHES  # in `limits`, as q is
  if q < 2 or min(spent[q]) <= min(spent[1]):
    return None
  works = works_of(subject, case)
  ratio = lambda f: f(late, H) / (H - late) / (f(1, q) / (q - 1))
  return {
    "seconds": ratio(lambda a, b: min(spent[b]) - min(spent[a])),
    "bytes": ratio(lambda a, b: sum(w.bytes for w in works[a:b])),
    "flops": ratio(lambda a, b: sum(w.flops for w in works[a:b])),
    "roofline": ratio(lambda a, b: seconds(subject, machine, works[a:b])),
  }
