"""What a run leaves behind, as tests compare it."""

import json

import jax
import numpy as np


def read(path, kind=None):
  """The records of a workdir's metrics, of one kind or of all."""
  lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
  return [line for line in lines if kind in (None, line["kind"])]


def without_time(record):
  """A record without what differs between two runs that do the same."""
  timed = ("seconds", "elapsed", "wall", "peak_memory")
  return {k: v for k, v in record.items() if k not in timed}


def leaves(state):
  """The arrays of a training state."""
  return [np.asarray(a) for a in jax.tree.leaves((state.params, state.opt_state, state.step))]


def recorded_contexts(recipe) -> list:
  """Returns the list to which a self-distillation's contexts are added as they are made, with their metrics."""
  made, found = recipe._contexts, []

  def record(*args):
    found.append(made(*args))
    return found[-1]

  recipe._contexts = record
  return found
