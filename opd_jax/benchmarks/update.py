"""Seconds, FLOPs and bytes of an update: the teachers and the student read the rows, and the student moves."""

import time
from typing import Any

import jax
import numpy as np

from opd_jax import mesh as meshes
from opd_jax import metrics, programs
from opd_jax.benchmarks import roofline, timing
from opd_jax.benchmarks.machine import Machine
from opd_jax.benchmarks.subject import Case, Subject
from opd_jax.types import Judges, TrainState


def measure(
  subject: Subject, case: Case, state: TrainState, judges: Judges, machine: Machine, repeat: int
) -> tuple[dict[str, Any], TrainState]:
  """One record for the JSON, and the state after the updates; the one before them is given up."""
  recipe = subject.recipe(case)
  batch, said = subject.prompts(case), subject.said(case)
  lowered = next(l for name, l in recipe.programs(case.horizon, state, judges, batch) if name == "update")
  began = time.perf_counter()
  run = lowered.compile()
  compilation = programs.record("update", programs.Shape(case.prompt, case.horizon), time.perf_counter() - began, run)
  advantage = None
  if recipe.loss.reward:
    drawn = np.random.default_rng(2).normal(size=subject.rows(case)).astype(np.float32)
    advantage = jax.device_put(drawn, meshes.rows(subject.mesh))
  spent = []
  for _ in range(repeat + 1):
    passed, (state, _) = timing.giving(lambda state=state: run(state, judges, batch, said, advantage))
    spent.append(passed)
  work = work_of(subject, case, recipe.remat, judges)
  whole, least = timing.summary(spent[1:]), min(spent[1:])
  bound = roofline.seconds(work, machine, subject.mesh.size, subject.tensor)
  record = {
    "batch": case.batch,
    "rows": subject.rows(case),
    "prompt": case.prompt,
    "horizon": case.horizon,
    "micro_batches": recipe.micro_batches,
    "remat": recipe.remat,
    **whole,
    "tokens_per_second": subject.rows(case) * case.horizon / whole["seconds"],
    "compile_seconds": compilation["seconds"],
    "program_bytes": compilation["bytes"],
    "process_peak_bytes": metrics.peak_memory(),
    "flops": work.flops,
    "bytes": work.bytes,
    "flops_per_second": work.flops / least,
    "fraction_of_matrix_rate": work.flops / least / (machine.matrix.best * subject.mesh.size),
    "roofline_seconds": bound,
    "fraction_of_roofline": bound / least,
  }
  return record, state


def work_of(subject: Subject, case: Case, remat: str, judges: Judges) -> roofline.Work:
  frozen = subject.teachers + ((subject.student,) if judges.initial is not None else ())
  return roofline.update(
    subject.student,
    frozen,
    subject.rows(case),
    case.prompt,
    case.horizon,
    vocab=subject.vocab,
    itemsize=subject.dtype.itemsize,
    remat=remat,
  )
