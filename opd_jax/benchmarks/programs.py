"""Seconds and bytes of the programs of any recipe, called with arguments made of their shapes alone.

The rollout and the update of a distillation step are measured more closely, in rollout.py and update.py.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.benchmarks.subject import Case, Subject
from opd_jax.runtime import programs, timing


def measure(subject: Subject, case: Case, repeat: int) -> list[dict[str, Any]]:
  """Measures every program of a step of the case's sizes: one record for each, for the JSON."""
  shape, records = subject.shape(case), []
  for name, lowered in subject.recipe(case).lower(shape):
    began = time.perf_counter()
    program = lowered.compile()
    compilation = programs.record(name, shape, time.perf_counter() - began, program)
    seconds = [_call(program, lowered, subject, case) for _ in range(repeat + 1)]
    costs = {"compile_seconds": compilation["seconds"], "program_bytes": compilation["bytes"]}
    records.append({"name": name} | case.sizes | timing.summary(seconds[1:]) | costs)
  return records


def _call(program: jax.stages.Compiled, lowered: jax.stages.Lowered, subject: Subject, case: Case) -> float:
  """Times one call; its arguments are made anew, since a program may take them over."""
  args, kwargs = synthetic(program, lowered, subject.vocab, case.horizon)
  return timing.timed(lambda: program(*args, **kwargs))[0]


def synthetic(
  program: jax.stages.Compiled, lowered: jax.stages.Lowered, vocab: int, horizon: int
) -> tuple[tuple, dict]:
  """Makes arguments for a program: small positive numbers, random ids below `vocab`, masks that are true.

  A single whole number is taken for a limit, so it is the horizon.
  """
  rng = np.random.default_rng(0)

  def make(info: Any) -> jax.Array:
    if jnp.issubdtype(info.dtype, jax.dtypes.prng_key):
      return jax.random.key(0) if not info.shape else jax.random.split(jax.random.key(0), info.shape)
    if jnp.issubdtype(info.dtype, jnp.bool_):
      return jnp.ones(info.shape, bool)
    if jnp.issubdtype(info.dtype, jnp.integer):
      return jnp.asarray(rng.integers(0, vocab, info.shape) if info.shape else horizon, info.dtype)
    return jnp.asarray(np.abs(rng.normal(0, 0.02, info.shape)), info.dtype)

  arguments = jax.tree.map(make, lowered.args_info, is_leaf=lambda x: isinstance(x, jax.stages.ArgInfo))
  return jax.device_put(arguments, program.input_shardings)
