"""Trains a study's arms one after another, and measures what came of them. What is there already is not done again."""

import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from opd_jax.errors import InputError
from opd_jax.programs import Kept
from opd_jax.reports import runs
from opd_jax.studies.horizon import Arm
from opd_jax.trainer import Trainer


def workdir(out: pathlib.Path, arm: str, seed: int) -> pathlib.Path:
  return out / "runs" / arm / f"seed{seed}"


def finished(path: pathlib.Path) -> bool:
  try:
    return runs.load([path])[0].finished
  except InputError:
    return False


def train_all(
  arms: Sequence[Arm], seeds: Iterable[int], out: pathlib.Path, changes: dict[str, Any] | None = None
) -> None:
  """The runs that are missing, or that were interrupted: all arms of a seed before the next seed.

  Arms of one seed follow each other, since a machine's speed changes by the hour. Seeds share their compiled programs, and
  none is compiled while a step is timed.
  """
  changes = {"compile_cache": str((out / ".jax_cache").resolve())} | (changes or {})
  kept: Kept = {}
  todo = [(arm, seed) for seed in seeds for arm in arms if not finished(workdir(out, arm.name, seed))]
  for i, (arm, seed) in enumerate(todo, 1):
    print(f"== {arm.name}, seed {seed}: run {i} of {len(todo)}", file=sys.stderr)
    trainer = Trainer(arm.config(seed, changes), workdir(out, arm.name, seed), kept)
    trainer.compile()
    trainer.run()


def measure(out: pathlib.Path, name: str, seed: int, how: Callable[[], dict[str, Any]]) -> dict[str, Any]:
  """A measurement's result, from its file where it has been made."""
  path = out / "analysis" / name / f"seed{seed}.json"
  if not path.is_file():
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(how(), indent=1))
    new.replace(path)
  return json.loads(path.read_text())
