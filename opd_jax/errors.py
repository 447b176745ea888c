"""The exceptions that a user is meant to see."""

import reprlib
from collections.abc import Sequence
from typing import Any

RESUME = (
  75  # status of a process that did not finish, and would go on if it were started again (sysexits.h: EX_TEMPFAIL)
)
INTERRUPTED = 130  # status after Ctrl-C, saved or not: launchers do not start the process again
NOTHING_LEARNED = 3  # status of a training run that is complete, and whose every update was skipped or empty


class InputError(ValueError):
  """A wrong input: the message names the file, the field and the mend, in one sentence.

  Entry points print the message without a traceback and leave with status 2.
  """


class StopRequested(Exception):
  """The run was asked to stop and has saved; entry points print the message and leave with the status.

  Attributes:
    status: RESUME, or INTERRUPTED after Ctrl-C.
  """

  def __init__(self, message: str, status: int = RESUME):
    super().__init__(message)
    self.status = status


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100
_SHORT.maxlong, _SHORT.maxlevel = 40, 3


def brief(value: Any) -> str:
  """Writes a value of a file for a message: as repr does, but shortened where it is long or deep."""
  return _SHORT.repr(value)


def some(names: Sequence[str], limit: int = 3, between: str = ", ") -> str:
  """Writes the first of some names, each shortened where it is long, and how many more there are."""
  others = f" and {len(names) - limit} more" if len(names) > limit else ""
  first = [n if n.isprintable() else repr(n)[1:-1] for n in names[:limit]]  # a line break in one would be the message's
  return between.join(n if len(n) <= 120 else f"{n[:70]}...{n[-40:]}" for n in first) + others


def first_line(e: BaseException, limit: int = 200) -> str:
  """Writes the first line of another library's error for a message, or its kind where it says nothing."""
  text = " ".join((str(e).strip() or type(e).__name__).splitlines()[0].split())
  return text if len(text) <= limit else f"{text[:limit]}..."
