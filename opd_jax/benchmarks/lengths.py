"""Rows of unequal length, as a model that ends its responses makes them: what shrinking, buckets and slices are worth.

    python -m opd_jax.bench lengths --student=CONFIG.json --batch=8 --n=4 --prompt=64 --horizon=256
    python -m opd_jax.bench lengths --simulate                     waiting prompts in the place of rows that have ended

At every token a row ends by chance, so that a tenth of the rows reach the horizon T; the mean is about 0.4 T. All variants
draw the same tokens. Updates are of these rollouts, the teacher has the student's shape, and weights are random.
"""

import argparse
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax import config as configs
from opd_jax.benchmarks.subject import Case, Subject
from opd_jax.rollout import sample
from opd_jax.rollout.sample import Sampling
from opd_jax.runtime import cli, timing
from opd_jax.training.distillation import DistillationStep
from opd_jax.types import FrozenModels, Rollout

REACH = 0.1  # the share of rows that reach the horizon
STOP = 1  # token id
ROLLOUTS: dict[str, dict[str, Any]] = {
  "one segment": {"rollout.segment": 0},
  "segments": {},
  "segments of 32": {"rollout.segment": 32},
  "shrink 2": {"rollout.shrink": (2,)},
  "shrink 2, 4": {"rollout.shrink": (2, 4)},
  "shrink 2, 4, segments of 32": {"rollout.shrink": (2, 4), "rollout.segment": 32},
}


def updates(rows: int) -> dict[str, dict[str, Any]]:
  """The variants of an update of so many rows, by name: config overrides."""
  half, quarter = rows // 2, rows // 4
  return {
    "all rows at once": {},
    "half of the rows": {"micro_batch": half},
    "a quarter of the rows": {"micro_batch": quarter},
    "a quarter of the rows, 4 buckets": {"micro_batch": quarter, "buckets": 4},
    "2 buckets": {"buckets": 2},
    "remat dots": {"remat": "dots"},
    "remat layer": {"remat": "layer"},
    "logits in slices of 8 positions": {"objective.chunk": 8},
    "logits in slices of 64 positions": {"objective.chunk": 64},
  }


def costs() -> dict[str, "StepCost"]:
  """The costs of a token step that are simulated: what it is made of decides what unequal lengths cost."""
  return {"rows": StepCost(), "weights": StepCost(fixed=128), "caches": StepCost(cache=1.0)}


def main(argv: Sequence[str] | None = None) -> int:
  """Prints a table of each part; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m opd_jax.bench lengths", description=(__doc__ or "").split("\n", 1)[0]
  )
  parser.add_argument(
    "--student", default="builtin:student", help="a model directory, or a config.json; the teacher's too"
  )
  for name, default, text in (
    ("batch", 8, "prompts"),
    ("n", 4, "rollouts of each"),
    ("prompt", 64, "tokens of a prompt"),
    ("horizon", 256, "T, tokens of a response"),
    ("repeat", 5, "timed rounds over all variants"),
  ):
    parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (%(default)s)")
  parser.add_argument(
    "--simulate", action="store_true", help="only the simulation of 1,024 prompts, 128 rows at a time"
  )
  args = parser.parse_args(argv)
  with cli.reporting_the_end():
    if args.simulate:
      for name, cost in costs().items():
        print_table(name, "row-steps", simulate(args.horizon, -(-args.horizon // 8), cost=cost))
      return 0
    config = configs.override(configs.load("opd"), {"student": args.student, "teacher": args.student})
    case = Case(args.batch, args.prompt, args.horizon, args.n)
    rollouts, rollout = measure_rollouts(config, case, args.repeat)
    lengths = np.asarray(rollout.mask).sum(axis=1)
    print(
      f"{lengths.size} rows, mean length {lengths.mean() / args.horizon:.2f} T, {np.mean(lengths == args.horizon):.2f} at T"
    )
    print_table("rollout", "seconds", rollouts)
    print_table("update", "seconds", measure_updates(config, case, rollout, args.repeat))
  return 0


def print_table(what: str, unit: str, found: dict[str, float]) -> None:
  """Prints every variant's number, and what it is of the first's."""
  first = next(iter(found.values()))
  for name, number in found.items():
    print(f"{what:10s} {name:34s} {number:12.3f} {unit}  {first / number:5.2f} times the first")


def measure_rollouts(config: configs.Config, case: Case, repeat: int) -> tuple[dict[str, float], Rollout]:
  """Times every variant of the rollout; medians in seconds by name, and the rollout that all of them make."""
  calls: dict[str, Callable[[], Rollout]] = {}
  for name, changes in ROLLOUTS.items():
    subject = Subject.load(configs.override(config, changes))
    calls[name] = rollout_with_ends(subject, case)
  made = {name: call() for name, call in calls.items()}
  first = next(iter(made.values()))
  for name, rollout in made.items():
    if not np.array_equal(rollout.response, first.response):
      raise RuntimeError(f"{name!r} draws other tokens")
  return medians(calls, repeat), first


def rollout_with_ends(subject: Subject, case: Case) -> Callable[[], Rollout]:
  """Compiles the rollout of a step whose rows end by chance."""
  step: DistillationStep = subject.recipe(case).step  # pyright: ignore[reportAttributeAccessIssue]
  hazard = -math.log(REACH) / case.horizon
  program = functools.partial(
    sample.rollout,
    cfg=step.student,
    sampling=dataclasses.replace(step.sampling, stop_ids=(STOP,), never=((STOP, STOP + 1),)),
    response_len=case.horizon,
    n=step.n,
    dtype=step.dtype,
    segments=step.segments,
    sample_fn=functools.partial(draw_or_end, hazard),
  )
  run, params, prompts = jax.jit(program), subject.params(), subject.prompts(case)
  return lambda: run(params, prompts, jax.random.key(0), np.int32(case.horizon))


def draw_or_end(hazard: float, keys: jax.Array, logits: jax.Array, sampling: Sampling) -> tuple[jax.Array, jax.Array]:
  """Draws a token as `sample.draw`, and in its place the stop token with this probability."""
  token, logprob = sample.draw(keys, logits, sampling)
  ends = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)) < hazard)(keys)
  return jnp.where(ends, STOP, token), logprob


def measure_updates(config: configs.Config, case: Case, rollout: Rollout, repeat: int) -> dict[str, float]:
  """Times every variant of the update of these rollouts; medians in seconds by name."""
  calls = {}
  for name, changes in updates(case.rows).items():
    subject = Subject.load(configs.override(config, changes))
    recipe = subject.recipe(case)
    step: DistillationStep = recipe.step  # pyright: ignore[reportAttributeAccessIssue]
    state, frozen = recipe.init(), FrozenModels((subject.params(),))
    calls[name] = functools.partial(jax.jit(step.update), state, frozen, subject.prompts(case), rollout)
  return medians(calls, repeat)


def medians(calls: dict[str, Callable[[], Any]], repeat: int) -> dict[str, float]:
  """Compiles and times calls, in turn with each other."""
  for call in calls.values():
    jax.block_until_ready(call())
  return {name: timing.summary(spent)["seconds"] for name, spent in timing.interleaved(calls, repeat).items()}


class StepCost(NamedTuple):
  """What a token step of some rows costs, in row-steps without a cache.

  Attributes:
    fixed: beside its rows, in rows: the reading of the weights.
    cache: of a row that reads T slots of its cache, over the rest of a row.
  """

  fixed: float = 0.0
  cache: float = 0.0

  def __call__(self, rows: int, filled: float) -> float:
    """The cost of a step of so many rows whose caches have `filled` T slots."""
    return self.fixed + rows * (1 + self.cache * filled)


def simulate(
  T: int, segment: int = 64, prompts: int = 1024, rows: int = 128, cost: StepCost | None = None
) -> dict[str, float]:
  """Counts what the token loop of an evaluation costs under lengths with a long tail.

  Replacement keeps a batch full: at segment ends, waiting prompts take the place of rows that have ended; as its rows are at
  different tokens, all caches have their full length from the beginning. Segment by segment, all prompts are answered up to
  the end of a segment, and the rows that live are then put together in full batches, which keeps the caches of all of them.

  Args:
    segment: tokens between two segment ends; elsewhere caches end where a segment does.
    prompts: in all, answered `rows` at a time.
  """
  cost = cost or StepCost()
  rng = np.random.default_rng(0)
  lengths = np.minimum(T, np.ceil(rng.exponential(T / -math.log(REACH), prompts))).astype(int)
  batches = lengths.reshape(-1, rows)

  def in_batches(divisors: Sequence[int]) -> float:
    return sum(shrunk(batch, segment, T, divisors, cost) for batch in batches)

  return {
    "every batch to its longest row": in_batches(()),
    "shrink 2": in_batches((2,)),
    "shrink 2, 4": in_batches((2, 4)),
    "shrink 2, 4, 8, 16": in_batches((2, 4, 8, 16)),
    "replacement": replaced(lengths, rows, segment, (), cost),
    "replacement, then shrink 2, 4": replaced(lengths, rows, segment, (2, 4), cost),
    "segment by segment over all batches": compacted(lengths, rows, segment, T, cost),
  }


def shrunk(lengths: np.ndarray, segment: int, T: int, divisors: Sequence[int], cost: StepCost) -> float:
  """The cost of one batch whose live rows are gathered into the smallest batch that holds them, at segment ends."""
  total = 0.0
  for start, end in segment_ends(int(lengths.max()), segment):
    size = smallest(len(lengths), int((lengths > start).sum()), divisors)
    total += (end - start) * cost(size, min(start + segment, T) / T)
  return total


def replaced(lengths: np.ndarray, rows: int, segment: int, divisors: Sequence[int], cost: StepCost) -> float:
  """The cost of all rows where a batch is filled up from those that wait, at segment ends; its last rows may shrink."""
  waiting, left, total = list(lengths[rows:]), lengths[:rows].astype(int), 0.0
  while len(left):
    steps = min(segment, int(left.max()))
    size = rows if waiting else smallest(rows, len(left), divisors)
    total += steps * cost(size, 1.0)
    left = left[left > steps] - steps
    free = rows - len(left)
    left, waiting = np.concatenate([left, np.array(waiting[:free], int)]), waiting[free:]
  return total


def compacted(lengths: np.ndarray, rows: int, segment: int, T: int, cost: StepCost) -> float:
  """The cost of all rows where every segment is run for all that live, in full batches, before the next begins."""
  total = 0.0
  for start, end in segment_ends(int(lengths.max()), segment):
    batches = -(-int((lengths > start).sum()) // rows)
    total += (end - start) * batches * cost(rows, min(start + segment, T) / T)
  return total


def smallest(rows: int, live: int, divisors: Sequence[int]) -> int:
  """The smallest batch that holds the live rows."""
  return min(rows // d for d in (1, *divisors) if rows // d >= live)


def segment_ends(longest: int, segment: int) -> Iterator[tuple[int, int]]:
  """The first token of every segment and the one behind its last."""
  return ((start, min(start + segment, longest)) for start in range(0, longest, segment))
