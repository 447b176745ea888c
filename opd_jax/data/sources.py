"""Problems from a JSONL file: one object per line, a prompt and, where a verifier needs it, an answer.

A line that cannot be meant is never repaired. It stops the run with its number and the mend, or, where the
config says so, is left out and counted.
"""

import json
import math
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from opd_jax.config import expanded_path
from opd_jax.errors import InputError, brief, some

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Example:
  """A problem as a line of a file or a task gives it."""

  prompt: str | tuple[dict[str, Any], ...]  # plain text, or chat messages {role, content}
  answer: str  # "" where there is none
  where: str  # "file.jsonl:12", for error messages
  teacher: str = ""  # the one of several teachers that scores the response
  canonical: str = ""  # the prompt that holds all of a conversation at once
  solution: str = ""  # a response to learn
  turns: tuple[str, ...] = ()  # the user's messages in a task's conversation
  claims: tuple[str, str] | None = None  # how an answer is claimed in a task's conversation, see conversation.py
  cut: bool = False  # its prompt was longer than data.max_prompt, and lost its beginning


@dataclass(frozen=True)
class Fields:
  """The keys under which the lines of a file hold a problem; "" for what they do not hold.

  Attributes:
    prompt: the key of a string or of a list of chat messages.
    answer: the key of a string or a number; read where present.
    teacher: the key of a string or a number, which every line then needs.
    canonical: the key of a string, which every line then needs.
    solution: the key of a string, which every line then needs.
  """

  prompt: str
  answer: str
  teacher: str = ""
  canonical: str = ""
  solution: str = ""


def read_jsonl(
  path: str | pathlib.Path, fields: Fields, on_bad_line: str, need_answer: bool
) -> tuple[list[Example], int]:
  """Read the problems of a file; returns them and the number of lines left out.

  Args:
    on_bad_line: "skip" leaves bad lines out; "refuse" and "truncate" stop at the first.
    need_answer: a line without an answer is bad.

  Raises:
    InputError: a bad line that may not be skipped, no usable line at all, or a file that cannot be read.
  """
  examples: list[Example] = []
  skipped = 0
  first = None
  for number, line in _lines(path):
    where = f"{path}:{number}"
    try:
      examples.append(_example(line, fields, need_answer, where))
    except _BadLine as e:
      fault = f"{where}: {e}"
      if on_bad_line != "skip":
        raise InputError(f"{fault}, or set data.on_bad_line=skip to leave such lines out.") from None
      skipped += 1
      first = first or fault
  if first and not examples:
    raise InputError(f"None of the {skipped} lines of {path} can be used; the first fault is at {first}.")
  if not examples:
    raise InputError(f"{path} is empty; data.path needs a file with one JSON object per line.")
  return examples, skipped


class _BadLine(ValueError):
  """The fault of a line and its mend; `on_bad_line` decides what follows."""


def _lines(path: str | pathlib.Path) -> Iterator[tuple[int, str]]:
  """Read the lines of a file with their numbers, without the blank ones at the end.

  A line ends at a newline byte only, since JSON text may hold U+2028.
  """
  path = expanded_path(path)
  if path.is_dir():
    raise InputError(f"{path} is a directory; data.path needs a JSONL file, such as {path / 'train.jsonl'}.")
  if not path.exists():
    raise InputError(f"There is no file {path}; data.path names a JSONL file, or a task as task:NAME.")
  blank = []
  try:
    with path.open("rb") as file:
      for number, raw in enumerate(file, start=1):
        try:
          # Windows editors put a byte order mark before the first line.
          line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip(" \t\r\n")
        except UnicodeDecodeError as e:
          raise InputError(f"{path}:{number}: byte {e.start + 1} is not UTF-8; save the file as UTF-8.") from None
        if not line:
          blank.append(number)
          continue
        yield from ((n, "") for n in blank)
        blank.clear()
        yield number, line
  except OSError as e:
    raise InputError(f"{path} cannot be read ({e.strerror}); check data.path and its permissions.") from None


def _example(line: str, fields: Fields, need_answer: bool, where: str) -> Example:
  if not line:
    raise _BadLine("the line is empty; remove it")
  try:
    record = json.loads(line)
  except json.JSONDecodeError as e:
    raise _BadLine(
      f"the line is not JSON ({e.msg} at column {e.colno}); write one complete JSON object on it"
    ) from None
  except (RecursionError, ValueError) as e:  # nested too deeply, or an integer of thousands of digits
    raise _BadLine(f"the line is JSON that cannot be read ({e}); write one plain JSON object on it") from None
  if not isinstance(record, dict):
    raise _BadLine(f"the line is {_kind(record)}, not a JSON object; write it as {{{json.dumps(fields.prompt)}: ...}}")

  prompt = _prompt(_field(record, fields.prompt, "prompt"), fields.prompt)
  answer = ""
  if need_answer or fields.answer in record:
    try:
      answer = _answer(_field(record, fields.answer, "answer"), fields.answer)
    except _BadLine:
      if need_answer:
        raise
  teacher = _answer(_field(record, fields.teacher, "teacher"), fields.teacher) if fields.teacher else ""
  canonical = _string(record, fields.canonical, "canonical") if fields.canonical else ""
  solution = _string(record, fields.solution, "solution") if fields.solution else ""
  return Example(prompt, answer, where, teacher, canonical, solution)


def _string(record: dict, field: str, role: str) -> str:
  value = _field(record, field, role)
  if not isinstance(value, str):
    raise _BadLine(f"the field {field!r} is {_kind(value)}; make it a string")
  return _text(value, f"the field {field!r}", blank=False)


def _field(record: dict, name: str, role: str) -> Any:
  """The value under a key, which `data.{role}_field` sets."""
  if name not in record:
    present = some([brief(key) for key in record], 8) or "none"
    raise _BadLine(
      f"there is no field {name!r} (fields of the line: {present}); add it, or set data.{role}_field to the right one"
    )
  return record[name]


def _prompt(value: Any, field: str) -> str | tuple[dict[str, Any], ...]:
  if isinstance(value, str):
    return _text(value, f"the field {field!r}", blank=False)
  if not isinstance(value, list):
    raise _BadLine(f"the field {field!r} is {_kind(value)}; make it a string or a list of chat messages")
  if not value:
    raise _BadLine(f"the field {field!r} is an empty list; give it at least one chat message")
  for i, message in enumerate(value):
    name = f"message {i + 1} of the field {field!r}"
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
      fault = _kind(message) if not isinstance(message, dict) else "without one of them"
      raise _BadLine(f"{name} is {fault}; make it an object with the keys 'role' and 'content'")
    if message["role"] not in ROLES:
      raise _BadLine(f"{name} has the role {brief(message['role'])}; it can be {', '.join(map(repr, ROLES))}")
    if not isinstance(message["content"], str):
      raise _BadLine(f"{name} has a content that is {_kind(message['content'])}; make it a string")
    _text(message["content"], name, blank=i + 1 < len(value))
  if value[-1]["role"] == "assistant":
    raise _BadLine(f"the field {field!r} ends with the assistant's message; end it where the student has to answer")
  return tuple(value)


def _answer(value: Any, field: str) -> str:
  if isinstance(value, str):
    return _text(value, f"the field {field!r}", blank=False)
  # Many sets write 18 rather than "18". JSON's true is an int to Python, and its NaN a float.
  if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
    return str(value)
  raise _BadLine(f"the field {field!r} is {_kind(value)}; make it a string or a number")


def _text(value: str, name: str, blank: bool) -> str:
  if not blank and not value.strip():
    raise _BadLine(f"{name} is blank; write its text")
  try:
    value.encode()
  except UnicodeEncodeError:
    raise _BadLine(f"{name} holds half of a surrogate pair, which no tokenizer reads; remove it") from None
  return value


def _kind(value: Any) -> str:
  """The JSON type of a value, in words."""
  if isinstance(value, float) and not math.isfinite(value):
    return "not a finite number"
  names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
  return names.get(type(value), "a number")
