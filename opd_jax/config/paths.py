"""Paths as a user writes them: ~ is the home directory, wherever a path is taken."""

import os
import pathlib


def expanded(path: str | os.PathLike) -> str:
  """Returns a path with a leading ~ or ~NAME replaced by the home directory; builtin:, task: and bucket URLs have none.

  A shell does it for words that begin with ~ alone, and so for none behind an equals sign.
  """
  return os.path.expanduser(os.fspath(path))


def expanded_path(path: str | os.PathLike) -> pathlib.Path:
  """Makes the path of `expanded`, e.g. as the type of a command line's argument."""
  return pathlib.Path(expanded(path))
