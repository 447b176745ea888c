"""Where a workdir lies: a local directory, or a bucket (gs://BUCKET/RUN) that every host of a slice reaches.

Checkpoints go to a bucket directly, from every host. The small files (config, metrics, TensorBoard) grow line by line,
which a bucket cannot: they are written to a local mirror, and copied in full at every evaluation and checkpoint.
"""

import hashlib
import os
import pathlib
import tempfile

from etils import epath

from opd_jax.config import expanded
from opd_jax.errors import InputError


class MirroredDir:
  """A workdir by name.

  Attributes:
    path: the directory of the small files on this machine.
    root: where checkpoints and the compile cache go; the same directory, unless it is in a bucket.
  """

  def __init__(self, name: str | os.PathLike):
    self.name = expanded(name)
    self.root = epath.Path(self.name)
    self.remote = "://" in self.name
    self._copied: dict[str, tuple[int, int]] = {}  # size and time of each file that the bucket has
    if not self.remote:
      self.path = pathlib.Path(self.name)
      return
    digest = hashlib.sha256(self.name.encode()).hexdigest()[:12]
    self.path = pathlib.Path(tempfile.gettempdir()) / "opd_jax" / f"{self.root.name}-{digest}"

  def fetch(self) -> pathlib.Path:
    """Fills the local directory with the small files as the bucket has them, and returns it; older files there go.

    Raises:
      InputError: the bucket cannot be reached.
    """
    if not self.remote:
      return self.path
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      for old in self.path.rglob("*"):
        if old.is_file():
          old.unlink()
      if self.root.is_dir():
        self._fetch(self.root, self.path)
    except Exception as e:
      raise self._unreachable(e) from e
    return self.path

  def push(self) -> None:
    """Copies what has changed since the last time into the bucket."""
    if not self.remote:
      return
    try:
      for file in sorted(p for p in self.path.rglob("*") if p.is_file()):
        name, stat = file.relative_to(self.path).as_posix(), file.stat()
        if self._copied.get(name) != (stat.st_size, stat.st_mtime_ns):
          target = self.root / name
          target.parent.mkdir(parents=True, exist_ok=True)
          target.write_bytes(file.read_bytes())
          self._copied[name] = (stat.st_size, stat.st_mtime_ns)
    except Exception as e:
      raise self._unreachable(e) from e

  def _fetch(self, source: epath.Path, target: pathlib.Path) -> None:
    for entry in source.iterdir():
      if entry.name == "checkpoints":
        continue
      if entry.is_dir():
        (target / entry.name).mkdir(exist_ok=True)
        self._fetch(entry, target / entry.name)
      else:
        file = target / entry.name
        file.write_bytes(entry.read_bytes())
        self._copied[file.relative_to(self.path).as_posix()] = (file.stat().st_size, file.stat().st_mtime_ns)

  def _unreachable(self, e: Exception) -> InputError:
    mend = "pip install gcsfs" if isinstance(e, ImportError) else "check its name and the permissions of this account"
    return InputError(
      f"The workdir {self.name} cannot be used ({type(e).__name__}: {' '.join(str(e).split())[:200]}); {mend}."
    )
