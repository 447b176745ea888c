"""The training loop: one for all methods.

    for every step:
      collect experience          the student's rollouts, and what is made of them
      learn from it               one update or several

What a method does in the two is its recipe (recipes/); what moves is the run's (runtime/run.py).
"""

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from opd_jax import config as configs
from opd_jax import inputs
from opd_jax.config import Config
from opd_jax.recipes import base as recipes
from opd_jax.recipes.base import Recipe
from opd_jax.runtime import began, hosts, workdir
from opd_jax.runtime import mesh as meshes
from opd_jax.runtime.bucket import MirroredDir
from opd_jax.runtime.programs import ProgramCache, use_cache
from opd_jax.runtime.run import Run
from opd_jax.runtime.version import __version__
from opd_jax.training import checkpoint

OnStep = Callable[[Run, Any, dict[str, Any]], None]  # (run, experience, metrics) of a step that is finished


def train(
  config: Config,
  path: str | os.PathLike,
  program_cache: ProgramCache | None = None,
  *,
  allow_change: Sequence[str] = (),
  compile_all: bool = False,
  on_step: OnStep | None = None,
) -> Run:
  """Trains, or goes on training, in a workdir.

  Args:
    path: the workdir; made if missing, resumed if it holds a checkpoint of the same config.
    program_cache: compiled programs, which runs of one process can share.
    allow_change: config keys with which a workdir may go on, from its last checkpoint on, though it had other values.
    compile_all: compiles every program before the first step; otherwise the first steps begin sooner.
    on_step: called after every step.

  Raises:
    InputError: anything about the config, the models, the data or the workdir that cannot work.
    StopRequested: the run was asked to stop, and has saved.
  """
  run = open_run(config, path, program_cache, allow_change)
  train_run(run, compile_all=compile_all, on_step=on_step)
  return run


def train_run(run: Run, *, compile_all: bool = False, on_step: OnStep | None = None) -> None:
  """Trains from a run's last checkpoint, or from the beginning, to the last step; arguments as of `train`."""
  recipe: Recipe = run.recipe
  with run.running(), checkpoint.explaining_full_disk(run.workdir.path):
    run.begin(compile_all=compile_all)
    ahead = None
    for step in range(run.step, run.config.steps):
      run.stop_if_asked(step)
      experience = run.wait(ahead or recipe.collect(run, step))
      ahead = recipe.collect(run, step + 1) if run.may_run_ahead(step) else None
      metrics = recipe.learn(run, step, experience)
      run.finish_step(step, metrics)
      if on_step:
        on_step(run, experience, metrics)
    run.finish()


def open_run(
  config: Config,
  path: str | os.PathLike,
  program_cache: ProgramCache | None = None,
  allow_change: Sequence[str] = (),
) -> Run:
  """Reads and checks everything, before the workdir is made and before any step is compiled; arguments as of `train`."""
  directory = MirroredDir(path)
  loaded = inputs.load(config, began.of_run(directory))
  recipe = recipes.make(loaded)
  empty = recipe.abstract_state()
  checked: list[workdir.Change] = []
  hosts.on_first(lambda: checked.extend(_check_workdir(directory, config, allow_change, checkpoint.size(empty))))
  changes = workdir.changes(directory, checked)
  row_sharding = meshes.rows(loaded.mesh)
  prompts = loaded.prompts(hosts.rows_of(row_sharding, config.batch))
  same = json.dumps([configs.to_json(config), prompts.fingerprint, __version__])
  hosts.assert_same_on_all_hosts("configs, prompts or versions", same)
  state, position = checkpoint.resume(directory.root, empty, prompts, recipe, changes)
  state = recipe.begin() if position is None else state
  # All has been read, and nothing is refused from here on.
  hosts.on_first(lambda: workdir.open_(directory, config, changes, loaded.rendering.moment))
  use_cache(config.compile_cache, directory.root)
  checkpoints, frozen = checkpoint.Checkpoints(directory.root, config.checkpoint.keep), recipe.frozen()
  return Run(
    config=config,
    recipe=recipe,
    inputs=loaded,
    workdir=directory,
    prompts=prompts,
    row_sharding=row_sharding,
    checkpoints=checkpoints,
    state=state,
    frozen=frozen,
    position=position,
    digest=workdir.digest(config, prompts.fingerprint, changes),
    program_cache={} if program_cache is None else program_cache,
  )


def _check_workdir(
  directory: MirroredDir, config: Config, allow: Sequence[str], state_bytes: int
) -> list[workdir.Change]:
  changes = workdir.check(directory, config, allow)
  checkpoint.check_space(directory, state_bytes, config.checkpoint.keep)
  return changes
