"""Seconds, FLOPs and bytes of an update: forward passes of all models, and a step of the student's optimiser."""

import functools
import time
from typing import Any

import numpy as np

from opd_jax.benchmarks.subject import Case, Subject
from opd_jax.models import roofline
from opd_jax.runtime import metrics, programs, timing
from opd_jax.runtime.machine import Machine
from opd_jax.training.distillation import DistillationStep
from opd_jax.types import FrozenModels, TrainState


def measure(
  subject: Subject, case: Case, state: TrainState, frozen_models: FrozenModels, machine: Machine, repeat: int
) -> tuple[dict[str, Any], TrainState]:
  """Times the updates of a pass over all rows; one record for the JSON, and the state after them. The given state is donated."""
  recipe = subject.recipe(case)
  distillation: DistillationStep = recipe.step  # pyright: ignore[reportAttributeAccessIssue]
  batch, responses, shape = subject.prompts(case), subject.responses(case), subject.shape(case)
  lowered = dict(recipe.lower(shape))["update"]
  began = time.perf_counter()
  run = lowered.compile()
  compilation = programs.record("update", shape, time.perf_counter() - began, run)
  credit = subject.credit(case)
  parts = list(map(np.int32, range(distillation.mini_batches))) if distillation.mini_batches > 1 else [None]

  def a_pass(state: TrainState) -> TrainState:
    for part in parts:
      state, _ = run(state, frozen_models, batch, responses, credit, part)
    return state

  spent = []
  for _ in range(repeat + 1):
    seconds, state = timing.timed(functools.partial(a_pass, state))
    spent.append(seconds)
  cost = update_cost(subject, case, distillation.remat)
  summary = timing.summary(spent[1:])
  least = summary["min_seconds"]
  bound = roofline.seconds(cost, machine, subject.mesh.size, subject.tensor)
  record = {
    **case.sizes,
    "micro_batches": distillation.micro_batches,
    "remat": distillation.remat,
    **summary,
    "tokens_per_second": case.rows * case.horizon / summary["seconds"],
    "compile_seconds": compilation["seconds"],
    "program_bytes": compilation["bytes"],
    "process_peak_bytes": metrics.peak_memory(),
    "flops": cost.flops,
    "bytes": cost.bytes,
    "flops_per_second": cost.flops / least,
    "fraction_of_matrix_rate": cost.flops / least / (machine.matrix.best * subject.mesh.size),
    "roofline_seconds": bound,
    "fraction_of_roofline": bound / least,
  }
  return record, state


def update_cost(subject: Subject, case: Case, remat: str) -> roofline.Cost:
  """The cost of one update, the frozen models' forward passes included."""
  return roofline.update(
    subject.student,
    subject.specs.scoring,
    case.batch,
    case.n,
    case.prompt,
    case.horizon,
    vocab=subject.vocab,
    itemsize=subject.dtype.itemsize,
    remat=remat,
    features=min(subject.most_features, case.prompt),
  )
