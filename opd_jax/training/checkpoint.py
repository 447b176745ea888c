"""Checkpoints of everything that the next step depends on.

Two items per step: the train state, sharded, through orbax; and the host's position (data iterator, counters, length
of the metric files), as JSON. Saving is asynchronous; a save that was cut short is never restored.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from opd_jax.errors import InputError, first_line
from opd_jax.models import finite
from opd_jax.runtime import workdir
from opd_jax.runtime.bucket import MirroredDir
from opd_jax.runtime.json_files import is_number, is_whole
from opd_jax.runtime.outcome import Outcome
from opd_jax.types import TrainState


class Checkpoints:
  """The checkpoints of one workdir; `keep` of them."""

  def __init__(self, root: epath.Path, keep: int | None = None):
    """Opens the checkpoints.

    Args:
      root: the workdir.
      keep: how many are kept; None: only reads, so that nothing is made and nothing deleted.

    Raises:
      InputError: there are no checkpoints to read, or what is there is no directory of them.
    """
    self._path = root / "checkpoints"
    if self._path.exists() and not self._path.is_dir():
      raise InputError(f"{self._path} is a file; remove it, or give another --workdir.")
    if keep is None and not self._path.is_dir():
      raise InputError(f"{root} has no checkpoints; give the --workdir of a run that has saved one.")
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=keep is not None, read_only=keep is None)
    try:
      self._manager = ocp.CheckpointManager(self._path.resolve(), options=options)
    except Exception as e:  # what orbax raises at damaged metadata has many kinds
      raise InputError(
        f"The checkpoints in {self._path} cannot be opened ({first_line(e)}); delete the directory of the damaged one, or "
        "give a new workdir."
      ) from e

  def latest(self) -> int | None:
    """Returns the last complete step, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state: TrainState, position: dict[str, Any]) -> None:
    """Starts saving; the arrays may be donated as soon as this returns.

    Raises:
      InputError: a weight is NaN or Inf, or the disk is full.
    """
    if broken := first_broken_weights(state):
      raise InputError(
        f"The weights {broken!r} have a NaN or Inf after step {step}, so they are not saved; {self._path} keeps what it has. "
        "Lower config.optimizer.lr or add warm-up."
      )
    try:
      self._manager.save(
        step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position))
      )
    except Exception as e:
      raise explain(e, self._path) from e

  def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
    """Restores a state with the shapes and shardings of the abstract state `like`, and the host's position.

    Raises:
      InputError: there is no such checkpoint, or it cannot be read.
    """
    step = self._found(step)
    got = self._read(step, ocp.args.Composite(state=ocp.args.StandardRestore(like), position=ocp.args.JsonRestore()))
    if not _is_position(got["position"], step):
      raise damaged(self._path, step)
    return got["state"], got["position"]

  def restore_part(self, like: Any) -> Any:
    """Restores some arrays of the last checkpoint: those whose shapes and shardings nested dictionaries of names have.

    Raises:
      InputError: as `restore`.
    """
    arguments = ocp.checkpoint_utils.construct_restore_args(like)
    part = ocp.args.PyTreeRestore(like, restore_args=arguments, partial_restore=True)
    return self._read(self._found(None), ocp.args.Composite(state=part))["state"]

  def _found(self, step: int | None) -> int:
    """Returns the step of a checkpoint that there is; None: the last one's."""
    step = self.latest() if step is None else step
    if step is None:
      raise InputError(f"There is no complete checkpoint in {self._path} yet; the run saves its first later.")
    if step not in self._manager.all_steps():
      there = ", ".join(map(str, self._manager.all_steps())) or "none"
      raise InputError(f"There is no checkpoint of step {step} in {self._path}; there are: {there}.")
    return step

  def _read(self, step: int, arguments: ocp.args.Composite) -> Any:
    try:
      got = self._manager.restore(step, args=arguments)
    except Exception as e:
      if "RESOURCE_EXHAUSTED" in str(e):
        raise
      if "tree structures do not match" in str(e):
        raise InputError(
          f"The checkpoint of step {step} in {self._path} was written by another version of opd_jax, or for another "
          "optimiser; read it with the version that run.json beside it names, or give a new workdir."
        ) from e
      raise InputError(
        f"The checkpoint of step {step} in {self._path} cannot be read ({first_line(e)}); "
        f"delete {self._path / str(step)} to go on from the one before, or give a new workdir."
      ) from e
    if broken := first_broken_weights(got["state"]):
      raise InputError(
        f"The checkpoint of step {step} in {self._path} has a NaN or Inf in the weights {broken!r}, so nothing can be "
        f"learned or exported from it; name an earlier step, or delete {self._path / str(step)} to go on from the one before."
      )
    return got

  def wait(self) -> None:
    """Waits until the last save is complete."""
    try:
      self._manager.wait_until_finished()
    except Exception as e:
      raise explain(e, self._path) from e

  def close(self) -> None:
    """Waits for saves, and closes the files."""
    self._manager.close()


def first_broken_weights(state: Any) -> str | None:
  """Names the first array of a train state that has a NaN or Inf, an optimiser's moments left out; None: there is none."""

  def weights(path: Any, a: Any) -> Any:
    return None if "opt_state" in jax.tree_util.keystr(path) else a

  return finite.first_broken(jax.tree_util.tree_map_with_path(weights, state))


def resume(
  root: epath.Path, like: TrainState, prompts: Any, recipe: Any, changes: Sequence[workdir.Change] = ()
) -> tuple[TrainState | None, dict | None]:
  """Restores the last checkpoint of a workdir, with the position of the prompts and what the recipe remembers.

  Nothing is written, so that a run that cannot go on leaves its workdir as it was.

  Args:
    changes: of the config since the run began; other prompts, on purpose, begin with their first batch.

  Returns:
    The state and the host's position; two Nones where there is no checkpoint.

  Raises:
    InputError: the checkpoint cannot be read, or belongs to other prompts.
  """
  if not (root / "checkpoints").exists():
    return None, None
  checkpoints = Checkpoints(root)
  try:
    if checkpoints.latest() is None:
      return None, None
    state, position = checkpoints.restore(like)
  finally:
    checkpoints.close()
  try:
    step = position["step"]
    prompts.restore(position["prompts"], step if workdir.prompts_begin_anew(changes, step) else None)
    recipe.load_state_dict(position)
  except InputError as e:
    raise InputError(f"The run in {root} cannot go on where it stopped: {e}") from None
  except (AttributeError, LookupError, TypeError, ValueError) as e:
    raise damaged(root / "checkpoints", position["step"]) from e
  return state, position


def damaged(path: epath.Path, step: int) -> InputError:
  """Makes the error of a checkpoint whose position is not what a run saves."""
  return InputError(
    f"The checkpoint of step {step} in {path} is damaged: its position ({path / str(step) / 'position'}) is not what a run "
    f"saves; delete {path / str(step)} to go on from the one before, or give a new workdir."
  )


def _is_position(position: Any, step: int) -> bool:
  """Tells whether the host's position has what every run's has."""
  if not isinstance(position, dict) or position.get("step") != step or not is_whole(position.get("tokens"), most=2**62):
    return False
  lengths, seconds = position.get("lengths"), position.get("seconds")
  if not isinstance(lengths, dict) or not isinstance(seconds, dict):
    return False
  if not Outcome.is_saved(position.get("outcome", {})):
    return False
  return all(is_whole(v, most=2**62) for v in lengths.values()) and all(map(is_number, seconds.values()))


def check_space(directory: MirroredDir, state_bytes: int, keep: int) -> None:
  """Refuses to start where `keep` checkpoints and the one being written do not fit beside what is there already."""
  if directory.remote:
    return
  workdir = directory.path
  saved = [p for p in (workdir / "checkpoints").glob("[0-9]*") if p.name.isdigit()]
  existing = next(p for p in (workdir.resolve(), *workdir.resolve().parents) if p.exists())
  needed, free = state_bytes * max(1, keep + 1 - len(saved)), shutil.disk_usage(existing).free
  if free < needed:
    raise InputError(
      f"{existing} has {_size(free)} free, but the run needs {_size(needed)} for checkpoints ({keep} are kept while "
      f"another is written); "
      "free some space, lower config.checkpoint.keep, or give another --workdir."
    )


@contextlib.contextmanager
def explaining_full_disk(path: os.PathLike) -> Iterator[None]:
  """Turns the error of a full disk, raised inside, into one sentence."""
  try:
    yield
  except OSError as e:
    explained = explain(e, path)
    if explained is e:
      raise
    raise explained from e


def size(tree) -> int:
  """Counts the bytes of all leaves together."""
  return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))


def explain(e: Exception, path: os.PathLike) -> Exception:
  """Turns the error of a full disk into an InputError of one sentence; returns any other error as it is."""
  cause: BaseException | None = e
  while cause:
    if (isinstance(cause, OSError) and cause.errno == errno.ENOSPC) or "No space left" in str(cause):
      return InputError(
        f"No space is left on the device while writing to {path}; the checkpoints that are complete stay intact. "
        "Free some space and run the same command again."
      )
    cause = cause.__cause__ or cause.__context__
  return e


def _size(n: float) -> str:
  for unit in ("B", "KiB", "MiB", "GiB"):
    if n < 1024:
      return f"{n:.0f} {unit}"
    n /= 1024
  return f"{n:.1f} TiB"
