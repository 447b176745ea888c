"""Problems from the records of a file: a prompt and, where a verifier needs it, an answer.

A record that cannot be meant is never repaired. It stops the run with its place and the mend, or, where the
config says so, is left out and counted. How files are read is in formats.py.
"""

import contextlib
import io
import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from opd_jax.data import formats, styles
from opd_jax.data.formats import Entry
from opd_jax.data.image_refs import ImageRef
from opd_jax.data.styles import Fields
from opd_jax.errors import InputError, brief, some
from opd_jax.runtime.json_files import NotReadable, is_number, parse
from opd_jax.types import Box

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Example:
  """A problem as a record of a file or a task gives it."""

  prompt: str | tuple[dict[str, Any], ...]  # plain text, or chat messages {role, content}
  answer: str  # "" where there is none
  where: str  # "file.jsonl:12", for error messages
  teacher: str = ""  # the one of several teachers that scores the response
  canonical: str = ""  # the prompt that holds all of a conversation at once
  solution: str = ""  # a response to learn
  turns: tuple[str, ...] = ()  # the user's messages in a task's conversation
  claims: tuple[str, str] | None = None  # how an answer is claimed in a task's conversation, see conversation.py
  cut: bool = False  # its prompt was longer than data.max_prompt, and lost its beginning
  domain: str = ""  # of several, by which evaluations count too
  images: tuple[ImageRef, ...] = ()
  record: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)  # all that the file has of it


class Reading(NamedTuple):
  """The problems of a file."""

  examples: list[Example]
  skipped: int  # records left out
  notes: tuple[str, ...] = ()  # which fields were taken from the shape of its records


def read_examples(path: str | pathlib.Path, fields: Fields, on_bad_line: str, need_answer: bool) -> Reading:
  """Read the problems of a file, of a directory that `datasets` saved, or of a data set of the hub.

  Args:
    fields: where they are as by default, and the records have not these fields but a known shape, it decides; see styles.py.
    on_bad_line: "skip" leaves bad records out; "refuse" and "truncate" stop at the first.
    need_answer: a record without an answer is bad.

  Raises:
    InputError: a bad record that may not be skipped, no usable one at all, or a file that cannot be read.
  """
  fields, notes, entries = styles.recognise(path, formats.entries(path), fields)
  return Reading(*_examples(path, entries, fields, on_bad_line, need_answer), notes)


def _examples(
  path: str | pathlib.Path, entries: Iterable[Entry], fields: Fields, on_bad_line: str, need_answer: bool
) -> tuple[list[Example], int]:
  examples: list[Example] = []
  skipped, first, unit = 0, None, "line"
  folder = pathlib.Path(path).expanduser().parent
  for entry in entries:
    unit = entry.unit
    try:
      examples.append(_example(entry, fields, need_answer, folder))
    except _BadLine as e:
      fault = f"{entry.where}: {e}"
      if on_bad_line != "skip":
        raise InputError(f"{fault}, or set data.on_bad_line=skip to leave such lines out.") from None
      skipped += 1
      first = first or fault
  if first and not examples:
    raise InputError(f"None of the {skipped} {unit}s of {path} can be used; the first fault is at {first}.")
  if not examples:
    raise InputError(f"{path} is empty; data.path needs a file of problems, such as one JSON object per line.")
  return examples, skipped


class _BadLine(ValueError):
  """The fault of a line and its mend; `on_bad_line` decides what follows."""


def _example(entry: Entry, fields: Fields, need_answer: bool, folder: pathlib.Path) -> Example:
  if entry.fault:
    raise _BadLine(entry.fault)
  record, unit = entry.record, entry.unit
  if not isinstance(record, dict):
    mend = f"write it as {{{json.dumps(fields.prompt)}: ...}}"
    raise _BadLine(f"the {unit} is {_kind(record)}, not a JSON object; {mend}")

  prompt = _prompt(_field(record, fields.prompt, "prompt", unit), fields.prompt)
  answer = ""
  if need_answer or styles.find(record, fields.answer) is not styles.MISSING:
    try:
      value = _field(record, fields.answer, "answer", unit)
      answer = (_json if fields.json_answers else _answer)(value, fields.answer)
    except _BadLine:
      if need_answer:
        raise
  teacher = _answer(_field(record, fields.teacher, "teacher", unit), fields.teacher) if fields.teacher else ""
  canonical = _string(record, fields.canonical, "canonical", unit) if fields.canonical else ""
  solution = _string(record, fields.solution, "solution", unit) if fields.solution else ""
  domain = _answer(_field(record, fields.domain, "domain", unit), fields.domain) if fields.domain else ""
  images = ()
  if fields.image and styles.find(record, fields.image) not in (styles.MISSING, None, []):
    images = _images(
      record[fields.image] if fields.image in record else styles.find(record, fields.image), fields.image, folder
    )
  if fields.box:
    boxes = _boxes(_field(record, fields.box, "box", unit), fields.box)
    if not images:
      raise _BadLine(f"the field {fields.box!r} has a box, and there is no image; set data.image_field")
    images = (images[0]._replace(boxes=boxes), *images[1:])
  more = {"domain": domain, "images": images, "record": record}
  return Example(prompt, answer, entry.where, teacher, canonical, solution, **more)


def _images(value: Any, name: str, folder: pathlib.Path) -> tuple[ImageRef, ...]:
  """Read paths, bytes, or what `datasets` makes of images: an object with one of the two."""
  found = []
  for one in value if isinstance(value, list | tuple) else [value]:
    if isinstance(one, dict):
      one = one.get("bytes") or one.get("path")
    if isinstance(one, bytes):
      found.append(ImageRef(one))
    elif isinstance(one, str) and one.strip():
      found.append(ImageRef(str(folder / pathlib.Path(one).expanduser())))
    elif callable(save := getattr(one, "save", None)):  # decoded by `datasets`
      written = io.BytesIO()
      save(written, "PNG")
      found.append(ImageRef(written.getvalue()))
    else:
      raise _BadLine(f"the field {name!r} has {_kind(one)} for an image; write a path or the file's bytes")
  return tuple(found)


def _boxes(value: Any, name: str) -> tuple[Box, ...]:
  """Read a box or a list of boxes; a cell of a table holds either as JSON text."""
  if isinstance(value, str):
    with contextlib.suppress(NotReadable):
      value = parse(value)
  boxes = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
  for box in boxes:
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
      raise _BadLine(f"the field {name!r} has {brief(box)} for a box; write [left, top, right, bottom] in pixels")
  return tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in boxes)


def _string(record: dict, field: str, role: str, unit: str) -> str:
  value = _field(record, field, role, unit)
  if not isinstance(value, str):
    raise _BadLine(f"the field {field!r} is {_kind(value)}; make it a string")
  return _text(value, f"the field {field!r}", blank=False)


def _field(record: dict, name: str, role: str, unit: str) -> Any:
  """The value under a key, which `data.{role}_field` sets."""
  value = styles.find(record, name)
  if value is styles.MISSING:
    present = some([brief(key) for key in record], 8) or "none"
    raise _BadLine(
      f"there is no field {name!r} (fields of the {unit}: {present}); add it, or set data.{role}_field to the right one"
    )
  return value


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


def _json(value: Any, field: str) -> str:
  """An answer as JSON; text is JSON already."""
  if isinstance(value, str):
    return _answer(value, field)
  try:
    return json.dumps(value, allow_nan=False)
  except (TypeError, ValueError):
    raise _BadLine(
      f"the field {field!r} is {_kind(value)}, which JSON does not have; make it text that is JSON"
    ) from None


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
  numbers = isinstance(value, int | float)
  return names.get(type(value)) or ("a number" if numbers else f"a {type(value).__name__}")
