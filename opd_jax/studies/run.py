"""Train a study's arms one after another, and keep what is measured of them. Nothing is done twice."""

import hashlib
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from opd_jax import config as configs
from opd_jax.config import Config
from opd_jax.errors import InputError, some
from opd_jax.runtime import workdir as workdirs
from opd_jax.runtime.bucket import MirroredDir
from opd_jax.runtime.programs import ProgramCache
from opd_jax.studies.arm_spec import ArmSpec
from opd_jax.studies.results import finished, read_measurement, workdir
from opd_jax.trainer import train


def done(path: pathlib.Path) -> bool:
  """Tell whether a run is finished and its last student saved; if not, `train_all` resumes it."""
  run = finished(path)
  return run is not None and (path / "checkpoints" / str(run.steps)).is_dir()


def missing(arms: Sequence[ArmSpec], seeds: Iterable[int], out: pathlib.Path) -> list[tuple[ArmSpec, int]]:
  """List the runs that are not finished, in the order in which they are trained."""
  return [(arm, seed) for seed in seeds for arm in arms if not done(workdir(out, arm.name, seed))]


def config_of(arm: ArmSpec, seed: int, out: pathlib.Path, changes: dict[str, Any] | None = None) -> Config:
  """The config of one run of a study in `out`: the arm's, with the run that its mask comes from."""
  source = {"subnetwork.mask_from": str(workdir(out, arm.mask_from, seed).resolve())} if arm.mask_from else {}
  return arm.config(seed, source | (changes or {}))


def check_all(
  arms: Sequence[ArmSpec], seeds: Iterable[int], out: pathlib.Path, changes: dict[str, Any] | None = None
) -> None:
  """Refuse workdirs that are there and were made from another config than their arm's.

  Raises:
    InputError: names the first of them, and what differs.
  """
  for seed in seeds:
    for arm in arms:
      path = workdir(out, arm.name, seed)
      if path.exists():
        check(path, config_of(arm, seed, out, changes))


def check(path: pathlib.Path, config: Config) -> None:
  """Refuse a workdir of another config, of other steps or evaluations too: a study compares runs by them.

  Raises:
    InputError: says what differs.
  """
  workdirs.check(MirroredDir(path), config)
  if not any((path / "checkpoints").glob("[0-9]*")):
    return
  differing = configs.different(workdirs.load_config(path), config)
  if parts := [
    f"{key}: {was} -> {now}" for key, (was, now) in differing.items() if key == "steps" or key not in workdirs.UNHASHED
  ]:
    raise InputError(
      f"The workdir {path} belongs to another config: {some(parts, 5, '; ')}. Delete it, or give another --out."
    )


AfterRun = Callable[[ArmSpec, int, pathlib.Path, dict[str, Any] | None], None]  # arm, seed, out and changes of a study


def train_all(
  arms: Sequence[ArmSpec],
  seeds: Iterable[int],
  out: pathlib.Path,
  changes: dict[str, Any] | None = None,
  after_run: AfterRun | None = None,
) -> None:
  """Train the runs that are missing, and resume those that were interrupted: all arms of a seed before the next seed.

  Arms of one seed follow each other, since a machine's speed changes by the hour. Seeds share their compiled programs,
  and none is compiled while a step is timed.

  Args:
    after_run: called after each run that was missing, where checkpoints are too large to wait for the last run.
  """
  changes = {"compile_cache": str((out / ".jax_cache").resolve())} | (changes or {})
  program_cache: ProgramCache = {}
  todo = missing(arms, seeds, out)
  for i, (arm, seed) in enumerate(todo, 1):
    print(f"== {arm.name}, seed {seed}: run {i} of {len(todo)}", file=sys.stderr)
    train(config_of(arm, seed, out, changes), workdir(out, arm.name, seed), program_cache, compile_all=True)
    if after_run is not None:
      after_run(arm, seed, out, changes)


def measure(
  out: pathlib.Path, name: str, seed: int, config_digest: str, compute: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
  """Load a measurement from its file, or compute it and write the file if it was not made of the same runs.

  Args:
    out: the study's directory.
    config_digest: `digest` of the configs that it rests on; the file keeps it under "of".
  """
  path = out / "analysis" / name / f"seed{seed}.json"
  if path.is_file():
    saved = read_measurement(path)
    if saved.get("of") == config_digest:
      return saved
  path.parent.mkdir(parents=True, exist_ok=True)
  new = path.with_suffix(".new")
  new.write_text(json.dumps({"of": config_digest} | compute(), indent=1))
  new.replace(path)
  return json.loads(path.read_text())


def digest(configs_used: Iterable[Config], settings: Any = None) -> str:
  """Hash everything in these configs that the trained students depend on; 16 hex digits.

  Args:
    settings: of the measurement itself, of what JSON can hold; None: it has none that ever change.
  """
  free = tuple(key for key in workdirs.UNHASHED if key != "steps")
  dependencies = [configs.changed(config, free) for config in configs_used]
  content = dependencies if settings is None else {"configs": dependencies, "settings": settings}
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
