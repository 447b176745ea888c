"""Which fields of a record hold a problem: those that the config names, or those of a known data set's shape.

    GSM8K   {"question": text, "answer": "... #### 18"}
    MATH    {"problem": text, "solution": "... \\boxed{18}"}
    AIME    {"problem" or "Problem": text, "answer" or "Answer": 18}
    DAPO    {"prompt": messages or text, "reward_model": {"ground_truth": "18"}}          also verl's own files

A shape counts only for fields that the config leaves as they are by default and that the records do not have: `prompt` and
`answer` are read where they are. The file's first record decides.
"""

import itertools
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from opd_jax.data.formats import Entry
from opd_jax.errors import InputError

MISSING = object()  # what `find` returns where there is nothing


@dataclass(frozen=True)
class Fields:
  """The keys under which the records of a file hold a problem; "" for what they do not hold.

  A dotted key that no record has as it is leads into objects: `reward_model.ground_truth`.

  Attributes:
    prompt: the key of a string or of a list of chat messages.
    answer: the key of a string or a number; read where present.
    teacher: the key of a string or a number, which every record then needs.
    canonical: the key of a string, which every record then needs.
    solution: the key of a string, which every record then needs.
    domain: the key of a string or a number, which every record then needs.
    image: the key of a path, of bytes, or of a list of such.
    box: the key of four numbers, or of a list of such, which every record then needs.
    json_answers: answers that are no text are taken as JSON, of any kind.
  """

  prompt: str = "prompt"
  answer: str = "answer"
  teacher: str = ""
  canonical: str = ""
  solution: str = ""
  domain: str = ""
  image: str = ""
  box: str = ""
  json_answers: bool = False


DEFAULT = Fields()


class Style(NamedTuple):
  """The shape of a data set's records."""

  name: str
  prompt: str
  answer: str
  fits: Callable[[Any], bool]  # of an answer

  def __str__(self) -> str:
    return f"{self.name}-style ({self.prompt!r} and {self.answer!r})"


def _marked(answer: Any) -> bool:
  return isinstance(answer, str) and "####" in answer


def _boxed(answer: Any) -> bool:
  return isinstance(answer, str) and re.search(r"\\f?boxed\b", answer) is not None


def _whole(answer: Any) -> bool:
  is_text = isinstance(answer, str) and re.fullmatch(r"\s*[-+]?\d{1,20}\s*", answer) is not None
  return is_text or (isinstance(answer, int | float) and not isinstance(answer, bool) and answer == answer // 1)


def _scalar(answer: Any) -> bool:
  return isinstance(answer, str | int | float) and not isinstance(answer, bool)


STYLES = (
  Style("GSM8K", "question", "answer", _marked),
  Style("MATH", "problem", "solution", _boxed),
  Style("AIME", "problem", "answer", _whole),
  Style("AIME", "Problem", "Answer", _whole),
  Style("DAPO", "prompt", "reward_model.ground_truth", _scalar),
)
PROMPTS = tuple(dict.fromkeys(style.prompt for style in STYLES))


def find(record: dict[str, Any], key: str) -> Any:
  """The value under a key, or under a dotted one that leads into objects; MISSING where there is none."""
  if key in record or "." not in key:
    return record.get(key, MISSING)
  value: Any = record
  for part in key.split("."):
    value = value.get(part, MISSING) if isinstance(value, dict) else MISSING
  return value


def recognise(
  path: str | pathlib.Path, entries: Iterator[Entry], fields: Fields
) -> tuple[Fields, tuple[str, ...], Iterable[Entry]]:
  """Find out where the records of a file hold their problems.

  Args:
    path: for messages.

  Returns:
    The fields, a note where they are another shape's than the config's, and all entries, the first of which had to be read.

  Raises:
    InputError: the first record has the fields of several shapes.
  """
  read = []
  for entry in entries:
    read.append(entry)
    if isinstance(entry.record, dict):
      break
  everything = itertools.chain(read, entries)
  if not read or not isinstance(read[-1].record, dict):
    return fields, (), everything
  style = _style(read[-1], fields)
  if style is None:
    return fields, (), everything
  note = (
    f"{path} has {style.name}-style records: the prompt is read from {style.prompt!r}, the answer from {style.answer!r}"
  )
  return replace(fields, prompt=style.prompt, answer=style.answer), (note,), everything


def _style(entry: Entry, fields: Fields) -> Style | None:
  """The shape of a record whose fields are not all where the config says; None where it is none that is known."""
  record = entry.record
  has_prompt, has_answer = (find(record, name) is not MISSING for name in (fields.prompt, fields.answer))
  if has_prompt and has_answer:
    return None
  fitting = [
    style
    for style in STYLES
    if (style.prompt == fields.prompt or (fields.prompt == DEFAULT.prompt and not has_prompt))
    and (style.answer == fields.answer or (fields.answer == DEFAULT.answer and not has_answer))
    and isinstance(record.get(style.prompt), str | list)
    and style.fits(find(record, style.answer))
  ]
  if not fitting:
    return None
  others = [name for name in PROMPTS if not has_prompt and name in record and name != fitting[0].prompt]
  if len(fitting) > 1 or others:
    may = (
      " or ".join(map(str, fitting)) if len(fitting) > 1 else f"{fitting[0]}, and it has the field {others[0]!r} too"
    )
    raise InputError(
      f"{entry.where}: the {entry.unit} may be {may}; name the fields that are meant in data.prompt_field and data.answer_field."
    )
  return fitting[0]
