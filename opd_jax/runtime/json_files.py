"""JSON as files hold it, whoever wrote them: read in full, or refused with a reason that a person can read."""

import json
import pathlib
import re
from collections.abc import Callable
from typing import Any, TypeGuard, TypeVar

from opd_jax.errors import InputError

_HALF = re.compile(r"\\ud[89a-f]", re.IGNORECASE)  # how JSON writes half of a surrogate pair


class NotReadable(ValueError):
  """A text is no JSON that can be used; the message is the reason.

  Attributes:
    line: where, from 1; 0 where that is not known.
  """

  def __init__(self, reason: str, line: int = 0):
    super().__init__(reason)
    self.line = line


T = TypeVar("T")


def read_records(path: pathlib.Path, parsed: Callable[[Any], T], what: str) -> list[T]:
  """Read a file of JSON lines that a run writes; nothing where there is none, and not a last line that a killed run was writing.

  Args:
    parsed: makes a record of a line's value; raises ValueError, TypeError or KeyError where it is none.
    what: a record, in the words of the error.

  Raises:
    InputError: a line is no record.
  """
  if not path.is_file():
    return []
  found, lines = [], path.read_bytes().split(b"\n")
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      found.append(parsed(parse(line)))
    except (ValueError, TypeError, KeyError) as e:
      if number == len(lines):
        break
      raise InputError(f"{path} line {number} is no {what} of a run ({e}); remove the line, or the file.") from None
  return found


def parse(text: str | bytes) -> Any:
  """Parse a JSON text; a byte order mark before it is no fault.

  Raises:
    NotReadable: bytes that are not UTF-8, a text that is not JSON, that nests too deeply, or that holds an integer of
      thousands of digits or half of a surrogate pair, which nothing can write.
  """
  try:
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    value = json.loads(text)
    if _depth(value) > _DEEPEST:
      raise NotReadable("it nests too deeply")
    if _HALF.search(text):
      json.dumps(value, ensure_ascii=False).encode()
  except NotReadable:
    raise
  except UnicodeDecodeError as e:
    raise NotReadable(f"byte {e.start + 1} is not UTF-8") from None
  except UnicodeEncodeError:
    raise NotReadable("a text in it holds half of a surrogate pair") from None
  except RecursionError:
    raise NotReadable("it nests too deeply") from None
  except json.JSONDecodeError as e:
    raise NotReadable(str(e), e.lineno) from None
  except ValueError:
    raise NotReadable("an integer in it has thousands of digits") from None
  return value


_DEEPEST = 100  # levels: far above any file's of ours, and far below what recursion over a document can take


def _depth(value: Any) -> int:
  """Count the levels of a document, of which the last may be beyond `_DEEPEST`."""
  level, depth = [value], 0
  while level and depth <= _DEEPEST:
    level = [v for x in level if isinstance(x, dict | list) for v in (x.values() if isinstance(x, dict) else x)]
    depth += 1
  return depth


def load_object(path: pathlib.Path, mend: str) -> dict[str, Any]:
  """Read a JSON object from a file.

  Args:
    mend: what to do about a file that is none; the end of the message.

  Raises:
    FileNotFoundError: there is no file.
    InputError: it holds anything else.
  """
  try:
    value = parse(path.read_bytes())
  except FileNotFoundError:
    raise
  except OSError as e:
    raise InputError(f"{path} cannot be read ({e.strerror}): {mend}.") from None
  except NotReadable as e:
    raise InputError(f"{path} is not JSON ({e}): {mend}.") from None
  if not isinstance(value, dict):
    raise InputError(f"{path} holds a {type(value).__name__} where a JSON object belongs: {mend}.")
  return value


def is_number(value: Any) -> TypeGuard[int | float]:
  """Tell whether a JSON value is a finite number; true and false are none, and neither is what no float can hold."""
  return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def is_whole(value: Any, least: int = 0, most: int = 2**31 - 1) -> TypeGuard[int]:
  """Tell whether a JSON value is a whole number within bounds; true and false are none."""
  return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
