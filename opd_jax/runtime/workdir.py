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

from opd_jax import config as configs
from opd_jax.config import Config
from opd_jax.errors import InputError
from opd_jax.runtime.bucket import MirroredDir
from opd_jax.runtime.version import __version__

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


def check(directory: MirroredDir, config: Config) -> None:
  """Refuses a workdir that belongs to another config, a file, or a path that cannot be written."""
  path = directory.path
  if path.exists() and not path.is_dir():
    raise InputError(f"--workdir={path} is a file; give a directory.")
  existing = next(p for p in (path.resolve(), *path.resolve().parents) if p.exists())
  if not os.access(existing, os.W_OK):
    raise InputError(f"--workdir={path} cannot be written: there is no permission in {existing}.")
  saved = path / "config.json"
  has_checkpoint = any((directory.root / "checkpoints").glob("[0-9]*"))
  if saved.exists() and has_checkpoint:  # before the first checkpoint nothing is lost
    differences = configs.difference(saved.read_text(), configs.to_json(config), FREE)
    if differences:
      others = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
      raise InputError(
        f"The workdir {directory.name} belongs to another config: {'; '.join(differences[:5])}{others}. "
        "Give the config that it began with to resume it, or another --workdir."
      )


def digest(config: Config, source: dict[str, Any]) -> str:
  """Hashes everything in a config that a run may not be resumed without, and the fingerprint of its prompts."""
  content = json.dumps([configs.changed(config, FREE), source], sort_keys=True)
  return hashlib.sha256(content.encode()).hexdigest()[:16]


def open_(path: pathlib.Path, config: Config) -> None:
  """Makes the workdir and saves the config."""
  try:
    path.mkdir(parents=True, exist_ok=True)
    _write(path / "config.json", configs.to_json(config))
  except OSError as e:
    raise InputError(f"The workdir {path} cannot be written ({e.strerror}); give another --workdir.") from None


def describe(path: pathlib.Path, stages: list[dict], programs: list[dict], resumed: int) -> None:
  """Writes run.json: stages, compiled programs, and the versions, commit and devices of every session of the run.

  Args:
    programs: compiled by this session; those of the sessions before it stay.
    resumed: the step that this session went on from.
  """
  file = path / "run.json"
  before = json.loads(file.read_text()) if file.exists() else {}
  earlier = [s for s in before.get("sessions", []) if s["from_step"] < resumed]
  now = {"from_step": resumed, **provenance(), "programs": programs}
  sessions = [*earlier, now]
  compiled = [p for session in sessions for p in session["programs"]]
  _write(file, json.dumps({**provenance(), "stages": stages, "programs": compiled, "sessions": sessions}, indent=2))


def provenance() -> dict[str, Any]:
  """Lists the versions, the commit, the devices and the number of processes."""
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
  """Loads the config that a workdir was made with.

  Raises:
    InputError: there is none, or it is of another version.
  """
  saved = path / "config.json"
  if not saved.is_file():
    raise InputError(f"{path} is not a workdir of a run: it has no config.json.")
  try:
    values = configs.upgraded(configs.flat(json.loads(saved.read_text())))
    c = configs.default(values["recipe"]).unlock()
    for key, value in values.items():
      with c.ignore_type():
        c.update_from_flattened_dict({key: tuple(value) if isinstance(value, list) else value})
  except (json.JSONDecodeError, KeyError) as e:
    raise InputError(f"{saved} cannot be read as a config of this version of opd_jax ({e}).") from None
  return c.lock()


def _commit() -> str | None:
  """Returns the checkout's commit, with '+' where files differ from it; None outside a checkout."""
  here = pathlib.Path(__file__).resolve().parents[1]

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
  """Writes a file so that it appears complete or not at all."""
  part = path.with_name(path.name + ".part")
  part.write_text(text, encoding="utf-8")
  part.replace(path)
