"""Trains a study's arms one after another, and measures what came of them. What is there already is not done again."""

import hashlib
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from opd_jax import config as configs
from opd_jax import workdir as workdirs
from opd_jax.bucket import Place
from opd_jax.config import Config
from opd_jax.errors import InputError
from opd_jax.programs import Kept
from opd_jax.studies.arms import Arm
from opd_jax.studies.results import finished, workdir
from opd_jax.trainer import Trainer


def done(path: pathlib.Path) -> bool:
  """Whether a run is finished and its last student saved; else it is taken up again."""
  run = finished(path)
  return run is not None and (path / "checkpoints" / str(run.steps)).is_dir()


def check_all(
  arms: Sequence[Arm], seeds: Iterable[int], out: pathlib.Path, changes: dict[str, Any] | None = None
) -> None:
  """Refuses workdirs that are there and were made from another config than their arm's.

  Raises:
    InputError: names the first of them, and what differs.
  """
  for seed in seeds:
    for arm in arms:
      path = workdir(out, arm.name, seed)
      if path.exists():
        check(path, arm.config(seed, changes))


def check(path: pathlib.Path, c: Config) -> None:
  """`workdir.check`, and that steps are equal too: a study compares runs after equally many."""
  workdirs.check(Place(path), c)
  began = any((path / "checkpoints").glob("[0-9]*"))
  if began and (steps := workdirs.load_config(path).steps) != c.steps:
    raise InputError(
      f"The workdir {path} belongs to another config: steps: {steps} -> {c.steps}. Delete it, or give another --out."
    )


def train_all(
  arms: Sequence[Arm], seeds: Iterable[int], out: pathlib.Path, changes: dict[str, Any] | None = None
) -> None:
  """The runs that are missing, or that were interrupted: all arms of a seed before the next seed.

  Arms of one seed follow each other, since a machine's speed changes by the hour. Seeds share their compiled programs, and
  none is compiled while a step is timed.
  """
  changes = {"compile_cache": str((out / ".jax_cache").resolve())} | (changes or {})
  kept: Kept = {}
  todo = [(arm, seed) for seed in seeds for arm in arms if not done(workdir(out, arm.name, seed))]
  for i, (arm, seed) in enumerate(todo, 1):
    print(f"== {arm.name}, seed {seed}: run {i} of {len(todo)}", file=sys.stderr)
    trainer = Trainer(arm.config(seed, changes), workdir(out, arm.name, seed), kept)
    trainer.run(compiled=True)


def measure(out: pathlib.Path, name: str, seed: int, of: str, how: Callable[[], dict[str, Any]]) -> dict[str, Any]:
  """A measurement's result, from its file where it has been made of the same runs.

  Args:
    of: `digest` of the configs that it rests on; the file keeps it.
  """
  path = out / "analysis" / name / f"seed{seed}.json"
  if path.is_file() and (found := json.loads(path.read_text())).get("of") == of:
    return found
  path.parent.mkdir(parents=True, exist_ok=True)
  new = path.with_suffix(".new")
  new.write_text(json.dumps({"of": of} | how(), indent=1))
  new.replace(path)
  return json.loads(path.read_text())


def digest(all_of: Iterable[Config]) -> str:
  """Of everything in these configs that the trained students depend on."""
  free = tuple(key for key in workdirs.FREE if key != "steps")
  kept = [configs.changed(c, free) for c in all_of]
  return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]
