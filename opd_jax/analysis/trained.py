"""Training from Python: what `python -m opd_jax.train` does, with a record of the run in the end."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from opd_jax import trainer
from opd_jax.analysis import loaded
from opd_jax.analysis.loaded import Model
from opd_jax.config import Config
from opd_jax.runtime import hosts, json_files
from opd_jax.runtime.outcome import Outcome
from opd_jax.runtime.programs import ProgramCache
from opd_jax.runtime.run import Run
from opd_jax.runtime.trackers import OnRecord
from opd_jax.trainer import OnStep


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedRun:
  """A run that has made its last step. Optimiser and teachers are no longer on the devices.

  Attributes:
    config: of the run.
    workdir: as it was named; the same call goes on from it, and `load_model` and the commands take it.
    step: how many steps were made, by this call and those before it.
    history: the records of all logged steps, oldest first; their keys are in docs/metrics.md.
    evaluations: the records of all evaluations, likewise.
    models: what was trained, by name, mostly "student" alone: for `generate`, `evaluate`, `score` and `export`.
    outcome: what became of the updates.
  """

  config: Config = dataclasses.field(repr=False)
  workdir: str
  step: int
  history: list[dict[str, Any]] = dataclasses.field(repr=False)
  evaluations: list[dict[str, Any]] = dataclasses.field(repr=False)
  models: dict[str, Model] = dataclasses.field(repr=False)
  outcome: Outcome


def train(
  config: Config,
  path: str | os.PathLike,
  program_cache: ProgramCache | None = None,
  *,
  allow_change: Sequence[str] = (),
  compile_all: bool = False,
  on_step: OnStep | None = None,
  on_record: OnRecord | None = None,
) -> TrainedRun:
  """Trains, or goes on training, in a workdir.

  Args:
    path: the workdir; made if missing. A run that was stopped there goes on from its last checkpoint, and one that is
      complete is returned as it is.
    program_cache: compiled programs, which runs can share; None: those of this process.
    allow_change: config keys with which a workdir may go on, from its last checkpoint on, though it had other values.
    compile_all: compiles every program before the first step; otherwise the first steps begin sooner.
    on_step: called after every step with (run, experience, metrics); what it raises ends the run.
    on_record: called with ("train", record) for every logged step and ("eval", record) for every evaluation, as metrics.jsonl
      has them, those of evaluations with `samples`; where it raises, that is reported and it is called no more, and the run goes on.

  Raises:
    InputError: anything about the config, the models, the data or the workdir that cannot work.
    StopRequested: the run was asked to stop by SIGTERM, and has saved.
  """
  cache = loaded.PROGRAMS if program_cache is None else program_cache
  run = trainer.open_run(config, path, cache, allow_change)
  if on_record:
    run.log.track(on_record)
  trainer.train_run(run, compile_all=compile_all, on_step=on_step)
  records = _records(run)
  return TrainedRun(
    config=config,
    workdir=run.workdir.name,
    step=run.step,
    history=[record for record in records if record["kind"] == "train"],
    evaluations=[record for record in records if record["kind"] == "eval"],
    models=loaded.of_recipe(run.recipe, run.models(), run.workdir, run.step),
    outcome=run.outcome,
  )


def _records(run: Run) -> list[dict[str, Any]]:
  """Reads the metrics that the first process has written; every process gets them."""
  text = (run.workdir.path / "metrics.jsonl").read_text(encoding="utf-8") if hosts.first() else ""
  return [json_files.parse(line) for line in hosts.text_of_first(text).splitlines()]
