"""A run's directory: whose it is, and what made it."""

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Sequence
from typing import Any

import jax

from opd_jax import config as configs
from opd_jax.config import Config
from opd_jax.errors import InputError, brief, some
from opd_jax.runtime import began, hosts, json_files
from opd_jax.runtime.bucket import MirroredDir
from opd_jax.runtime.outcome import Outcome
from opd_jax.runtime.version import __version__

# What a digest of a run's rollouts leaves out. Digests stand on disk, so a key of finished runs neither comes nor goes here.
UNHASHED = (
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
  "log.mlflow",
  "log.samples",
  "log.rollouts",
  "reward.workers",
  "reward.timeout",
)
# A run may be resumed with other values of these: they change no step, neither those that are done nor those to come.
FREE = (
  *UNHASHED,
  "eval.every",
  "eval.path",
  "eval.prompts",
  "eval.k",
  "eval.pass_at",
  "eval.max_tokens",
  "eval.temperature",
  "eval.greedy",
  "eval.batch",
  "optimizer.max_skipped",
  "allow_mismatch",
  "data.image_cache",
)
BREAKS = ("eval.every", "checkpoint.every")  # with rollout.ahead no rollout begins before these, so they change steps
SOURCE = ("data.", "batch", "seed")  # with another one of these the prompts begin anew
REPLIES = ("data.", "context.", "sampling.", "seed")  # what the replies of saved conversations are made by
SCHEDULES = ("full", "truncated", "progressive", "geometric")  # horizons that remember nothing
FIXED = {  # what a run cannot go on with, by the beginning of the key
  "recipe": "another method trains another state",
  "student": "the checkpoint holds the weights of that model",
  "lora.": "the checkpoint holds the weights of that adapter",
  "subnetwork.": "the checkpoint holds the mask of the coordinates that are trained",
  "optimizer.kind": "the checkpoint holds the state of that optimiser",
}

Change = dict[str, Any]  # of a key: "step" from which on, "key", "from", "to"


def check(directory: MirroredDir, config: Config, allow: Sequence[str] = ()) -> list[Change]:
  """Refuses a workdir that belongs to another config, a file, or a path that cannot be written.

  Args:
    allow: keys, or names of groups, that may differ from the config that the workdir has, beside those of FREE.

  Returns:
    What differs and may.
  """
  path = directory.path
  if path.exists() and not path.is_dir():
    raise InputError(f"--workdir={path} is a file; give a directory.")
  existing = next(p for p in (path.resolve(), *path.resolve().parents) if p.exists())
  if not os.access(existing, os.W_OK):
    raise InputError(f"--workdir={path} cannot be written: there is no permission in {existing}.")
  for name in (
    "config.json",
    "run.json",
    "metrics.jsonl",
    "samples.jsonl",
    "rollouts.jsonl",
    "canvases.jsonl",
    "graphs.jsonl",
    began.FILE,
  ):
    if (path / name).is_dir():
      raise InputError(
        f"{path / name} is a directory, where a run writes a file; remove it, or give another --workdir."
      )
  allowed = _keys_of(config, allow)
  step = last_checkpoint(directory)
  if step is None or not (path / "config.json").exists():  # before the first checkpoint nothing is lost
    return []
  read_info(path)
  differing = configs.different(load_config(path), config)
  ahead = config.rollout.ahead or "rollout.ahead" in differing
  kinds = {config.horizon.kind, *differing.get("horizon.kind", ())}
  free = {
    key for key, pair in differing.items() if (key in FREE and not (ahead and key in BREAKS)) or _same_path(*pair)
  }
  fixed = {key: why for key in differing.keys() - free if (why := _why_fixed(key, kinds))}
  if named := sorted(fixed.keys() & allowed):
    was, now = differing[named[0]]
    raise InputError(
      f"config.{named[0]} cannot change from {brief(was)} to {brief(now)} in the workdir {directory.name}: {fixed[named[0]]}; "
      "give the former value, or another --workdir."
    )
  if refused := [key for key in differing if key not in free and key not in allowed]:
    parts = [f"{key}: {differing[key][0]} -> {differing[key][1]}" for key in refused]
    way = "" if fixed else f"--allow-change={','.join(refused[:5])} to go on with other values from step {step} on, "
    raise InputError(
      f"The workdir {directory.name} belongs to another config: {some(parts, 5, '; ')}. "
      f"Give the config that it began with to resume it, {way}or another --workdir."
    )
  return [{"step": step, "key": key, "from": was, "to": now} for key, (was, now) in differing.items()]


def _keys_of(config: Config, names: Sequence[str]) -> set[str]:
  """The config keys that --allow-change names, each by itself or with its group."""
  keys = configs.flat(config)
  found = {name: {key for key in keys if key == name or key.startswith(f"{name}.")} for name in names}
  if unknown := [name for name, own in found.items() if not own]:
    raise configs.unknown_key(config, unknown[0])
  return set().union(*found.values())


def last_checkpoint(directory: MirroredDir, local: bool = False) -> int | None:
  """Finds the step of the last complete checkpoint; None where there is none.

  Args:
    local: looks on this machine alone, which a bucket's answer is not waited for.
  """
  found = ((directory.path if local else directory.root) / "checkpoints").glob("[0-9]*")
  return max((int(entry.name) for entry in found if entry.name.isdigit()), default=None)


def _same_path(was: Any, now: Any) -> bool:
  """Whether two values name the same file: one in full, one from the home directory."""
  return isinstance(was, str) and isinstance(now, str) and configs.expanded(was) == configs.expanded(now)


def _why_fixed(key: str, kinds: set[str]) -> str | None:
  """Why a run cannot go on with another value of a key; None where it can."""
  if key.startswith("horizon.") and not kinds <= set(SCHEDULES):
    return "a horizon that is chosen while training remembers what it saw under the former one"
  return next(
    (why for start, why in FIXED.items() if key == start or (start[-1] == "." and key.startswith(start))), None
  )


def kept(directory: MirroredDir) -> str:
  """Makes the sentence for a run that ends before its time: what of it is saved."""
  if directory.remote:  # a bucket may take longer to ask than the user has
    return f"stopped: the same command goes on from the last checkpoint in {directory.name}, if there is one"
  step = last_checkpoint(directory, local=True)
  if step is None:
    return f"stopped: nothing is saved in {directory.name} yet, and the same command begins anew"
  return f"stopped: step {step} is kept in {directory.name}, and the same command goes on from there"


def changes(directory: MirroredDir, new: Sequence[Change] = ()) -> list[Change]:
  """Lists what has changed since the run began, the same on every process; without a checkpoint, nothing has.

  Changes of a key at the same step are one.

  Args:
    new: what `check` has found on the first process beside what is recorded.
  """
  found = []
  if hosts.first() and last_checkpoint(directory) is not None:
    found = _joined([*read_info(directory.path).get("changes", []), *new])
  return json.loads(hosts.text_of_first(json.dumps(found)))


def prompts_begin_anew(changes: Sequence[Change], step: int) -> bool:
  """Tells whether a key that the order of prompts depends on has changed since the checkpoint of this step."""
  return any(c["step"] >= step and c["key"].startswith(SOURCE) for c in changes)


def digest(config: Config, source: dict[str, Any], changes: Sequence[Change] = ()) -> str:
  """Hashes everything in a config that a run may not be resumed without, and the fingerprint of its prompts.

  A run whose config was changed on purpose keeps the digest that it began with, unless what its replies are made by changed.
  """
  for change in reversed(changes):
    lasting = change["key"].startswith(REPLIES) and not _same_path(change["from"], change["to"])
    if not lasting and configs.has(config, change["key"]):
      config = configs.override(config, {change["key"]: change["from"]})
  content = json.dumps([configs.changed(config, UNHASHED), source], sort_keys=True)
  return hashlib.sha256(content.encode()).hexdigest()[:16]


def open_(
  directory: MirroredDir,
  config: Config,
  changes: Sequence[Change] = (),
  moment: datetime.datetime | None = None,
) -> None:
  """Makes the workdir, and saves the config, what has changed in it since the run began, and when that was."""
  path = directory.path
  try:
    path.mkdir(parents=True, exist_ok=True)
    record = read_info(path)
    if list(changes) != record.get("changes", []):
      _write(path / "run.json", json.dumps(record | {"changes": changes}, indent=2))
    _write(path / "config.json", configs.to_json(config))
    began.keep(path, moment or began.now())
  except OSError as e:
    raise InputError(f"The workdir {path} cannot be written ({e.strerror}); give another --workdir.") from None
  directory.push()


def _joined(changes: Sequence[Change]) -> list[Change]:
  """Makes one change of those of a key at the same step, and none of one that was taken back."""
  joined: dict[tuple, Change] = {}
  for change in changes:
    at = change["step"], change["key"]
    joined[at] = change | {"from": joined.get(at, change)["from"]}
  return [change for change in joined.values() if change["from"] != change["to"]]


def describe(
  path: pathlib.Path, stages: list[dict], programs: list[dict], resumed: int, outcome: dict[str, int]
) -> None:
  """Writes run.json: stages, compiled programs, and the versions, commit and devices of every session of the run.

  Args:
    programs: compiled by this session; those of the sessions before it stay.
    resumed: the step that this session went on from.
    outcome: counts of what became of the updates so far, see runtime/outcome.py.
  """
  file = path / "run.json"
  before = read_info(path)
  earlier = [s for s in before.get("sessions", []) if s["from_step"] < resumed]
  now = {"from_step": resumed, **provenance(), "programs": programs}
  sessions = [*earlier, now]
  compiled = [p for session in sessions for p in session["programs"]]
  changed = {"changes": before["changes"]} if before.get("changes") else {}
  found = {"stages": stages, "outcome": outcome, "programs": compiled, "sessions": sessions}
  _write(file, json.dumps(provenance() | found | changed, indent=2))


def outcome(path: pathlib.Path) -> Outcome:
  """Reads the counts that `describe` wrote; of a run from before there were any, none."""
  return Outcome(**read_info(path).get("outcome", {}))


def read_info(path: pathlib.Path) -> dict[str, Any]:
  """Reads run.json of a workdir, as `describe` has written it; empty where there is none.

  Raises:
    InputError: it holds anything else.
  """
  file = path / "run.json"
  mend = "restore the file, or delete it, which loses what it says of earlier sessions"
  try:
    info = json_files.load_object(file, mend)
  except FileNotFoundError:
    return {}
  sessions = info.get("sessions", [])
  if not isinstance(sessions, list) or not all(
    isinstance(s, dict) and json_files.is_whole(s.get("from_step")) and isinstance(s.get("programs"), list)
    for s in sessions
  ):
    raise InputError(f"{file} has sessions that no run has written: {mend}.")
  counts, changed = info.get("outcome", {}), info.get("changes", [])
  if not isinstance(counts, dict) or counts.keys() - _COUNTS or not all(map(json_files.is_whole, counts.values())):
    raise InputError(f"{file} has an outcome that no run has written: {mend}.")
  if not isinstance(changed, list) or not all(map(_is_change, changed)):
    raise InputError(f"{file} has changes of the config that no run has written: {mend}.")
  return info


_COUNTS = {field.name for field in dataclasses.fields(Outcome)}


def _is_change(change: Any) -> bool:
  """Tells whether an entry of run.json is a `Change`."""
  return (
    isinstance(change, dict)
    and change.keys() == {"step", "key", "from", "to"}
    and json_files.is_whole(change["step"])
    and isinstance(change["key"], str)
  )


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
    return configs.from_saved(json_files.load_object(saved, "restore it"))
  except configs.OtherVersion as e:
    raise InputError(f"{saved} cannot be read as a config of this version of opd_jax ({e}); restore it.") from None


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
