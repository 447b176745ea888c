"""A run's directory: whose it is, and what made it."""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax

from opd_jax import __version__
from opd_jax import config as configs
from opd_jax.bucket import Place
from opd_jax.config import Config
from opd_jax.errors import InputError

# A run may be resumed with other values of these: they do not change what the steps before would have done.
FREE = (
  "steps",
  "mesh.data",
  "mesh.fsdp",
  "mesh.expert",
  "mesh.tensor",
  "mesh.teacher",
  "teacher_offload",
  "compile_cache",
  "checkpoint.every",
  "checkpoint.keep",
  "log.every",
  "log.tensorboard",
  "log.wandb",
  "log.samples",
)


def check(place: Place, c: Config) -> None:
  """Refuses a workdir that belongs to another config, a file, or a place that cannot be written."""
  path = place.path
  if path.exists() and not path.is_dir():
    raise InputError(f"--workdir={path} is a file; give a directory.")
  there = next(p for p in (path.resolve(), *path.resolve().parents) if p.exists())
  if not os.access(there, os.W_OK):
    raise InputError(f"--workdir={path} cannot be written: there is no permission in {there}.")
  saved = path / "config.json"
  if saved.exists() and any((place.root / "checkpoints").glob("[0-9]*")):  # before the first checkpoint nothing is lost
    differences = configs.difference(saved.read_text(), configs.to_json(c), FREE)
    if differences:
      more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
      raise InputError(
        f"The workdir {place.name} belongs to another config: {'; '.join(differences[:5])}{more}. "
        "Give the config that it began with to resume it, or another --workdir."
      )


def digest(c: Config, source: dict[str, Any]) -> str:
  """Of everything in a config that a run may not be resumed without, and of what its prompts are."""
  of = json.dumps([configs.changed(c, FREE), source], sort_keys=True)
  return hashlib.sha256(of.encode()).hexdigest()[:16]


def open_(path: pathlib.Path, c: Config) -> None:
  """Makes the workdir and saves the config."""
  try:
    path.mkdir(parents=True, exist_ok=True)
    _write(path / "config.json", configs.to_json(c))
  except OSError as e:
    raise InputError(f"The workdir {path} cannot be written ({e.strerror}); give another --workdir.") from None


def describe(path: pathlib.Path, stages: list[dict], programs: list[dict], resumed: int) -> None:
  """run.json: stages, compiled programs, and the versions, commit and devices of every session of the run.

  Args:
    programs: compiled by this session; those of the sessions before it are kept.
    resumed: the step that this session went on from.
  """
  file = path / "run.json"
  before = json.loads(file.read_text()) if file.exists() else {}
  sessions = [s for s in before.get("sessions", []) if s["from_step"] < resumed]
  now = {"from_step": resumed, **provenance(), "programs": programs}
  every = [*sessions, now]
  made = [p for session in every for p in session["programs"]]
  _write(file, json.dumps({**provenance(), "stages": stages, "programs": made, "sessions": every}, indent=2))


def provenance() -> dict[str, Any]:
  devices = jax.devices()
  packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "grain", "ml_collections", "numpy")
  return {
    "versions": {"opd_jax": __version__, "python": platform.python_version()}
    | {name: importlib.metadata.version(name) for name in packages},
    "commit": _commit(),
    "devices": f"{len(devices)} x {devices[0].device_kind}",
    "processes": jax.process_count(),
  }


def load_config(path: pathlib.Path) -> Config:
  """The config that a workdir was made with."""
  saved = path / "config.json"
  if not saved.is_file():
    raise InputError(f"{path} is not a workdir of a run: it has no config.json.")
  c = configs.default().unlock()
  try:
    for key, value in configs.flat(json.loads(saved.read_text())).items():
      with c.ignore_type():
        c.update_from_flattened_dict({key: tuple(value) if isinstance(value, list) else value})
  except (json.JSONDecodeError, KeyError) as e:
    raise InputError(f"{saved} cannot be read as a config of this version of opd_jax ({e}).") from None
  return c.lock()


def _commit() -> str | None:
  """The checkout's commit, with '+' where files differ from it; None outside a checkout."""
  here = pathlib.Path(__file__).resolve().parent

  def git(*args: str) -> str:
    return subprocess.run(
      ["git", *args], cwd=here, capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()

  try:
    if pathlib.Path(git("rev-parse", "--show-toplevel")) != here.parent:
      return None
    return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
  except (OSError, subprocess.SubprocessError):
    return None


def _write(path: pathlib.Path, text: str) -> None:
  """Whole or not at all."""
  part = path.with_name(path.name + ".part")
  part.write_text(text, encoding="utf-8")
  part.replace(path)
