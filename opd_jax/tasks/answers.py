"""Verify answers of other kinds than numbers: the same words, what a pattern finds, a choice, JSON.

As in gsm8k.py, thoughts are no part of a response, and of one that a limit cut counts only what is finished.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from opd_jax.errors import InputError, first_line
from opd_jax.tasks import gsm8k, thoughts
from opd_jax.tasks.numbers import number


def exact(response: str, answer: str, *, ended: bool = True, prompt: str = "") -> bool:
  """Tell whether a response says `answer` and nothing else, white space around it aside."""
  text = thoughts.conclusion(response, prompt)
  return ended and text is not None and bool(answer.strip()) and text.strip() == answer.strip()


class Pattern:
  """A verifier that finds the answer in a response by a regular expression, see `data.answer_pattern`.

  The last match counts: its first group, or all of it where there is none. It is compared with the reference as text, and as a
  number where both are one. Of a response that a limit cut a match at its very end does not count, which might go on.
  """

  def __init__(self, pattern: str = ""):
    self._pattern = re.compile(pattern) if pattern else None

  def of(self, pattern: str) -> "Pattern":
    """The verifier with a pattern.

    Raises:
      InputError: it is empty, or no regular expression.
    """
    if not pattern:
      raise InputError(
        "A verifier is 'regex', and config.data.answer_pattern is empty; give the pattern that finds the answer in a response, "
        r"such as 'Answer: *(\S+)'."
      )
    try:
      return Pattern(pattern)
    except (re.error, RecursionError, OverflowError) as e:
      raise InputError(
        f"config.data.answer_pattern is {pattern!r}, which is no regular expression ({first_line(e)}); mend it."
      ) from None

  def __call__(self, response: str, answer: str, *, ended: bool = True, prompt: str = "") -> bool:
    assert self._pattern, "made by `of`"
    text = thoughts.conclusion(response, prompt)
    if text is None or not answer.strip():
      return False
    matches = list(self._pattern.finditer(text))
    if not matches or (not ended and matches[-1].end() == len(text)):
      return False
    found = (matches[-1][1] if self._pattern.groups else matches[-1][0]) or ""
    value = number(answer.strip())
    return found.strip() == answer.strip() or (value is not None and number(found.strip()) == value)


def multiple_choice(response: str, answer: str, *, ended: bool = True, prompt: str = "") -> bool:
  """Tell whether a response chooses the letter of the reference: "B", "(B)", "B. Paris", "The answer is B".

  What a response announces counts (boxed, behind "####", "answer is" or "Answer:"); without an announcement its last line, where
  that is a letter alone, and a response of one line that begins with one ("B) Paris"). Two letters ("A or B") are none.
  """
  wanted = choice(answer)
  if not wanted:
    return False
  announced = gsm8k.announced(response, ended=ended, prompt=prompt)
  if announced is not None:
    return _letter(announced) == wanted
  text = thoughts.conclusion(response, prompt)
  lines = (text or "").strip().splitlines()
  if not lines or not ended:
    return False
  return (_letter(lines[-1]) if len(lines) == 1 or _ALONE.fullmatch(lines[-1]) else "") == wanted


def choice(reference: str) -> str:
  """The letter of a reference; "" where it has none."""
  final = gsm8k.gold(reference)
  return _letter(final) or _letter(reference)


def _letter(text: str) -> str:
  """The letter that a text begins with as a choice, in upper case; "" for none or several."""
  match = _CHOICE.match(text)
  if not match or _ANOTHER.match(text[match.end() :]):
    return ""
  return match[1].upper()


_LEAD = r"[\s*_\"'`$({\[]*(?:(?i:option|choice|answer)\b[\s:*_(\[]*)?(?:\\(?:text|mathrm|textbf|mathbf)\s*\{)?[\s(*]*"
_SHOWN = r"(?=[\s*_\"'`$)}\].!]*\Z|[).:,;\]}*](?![A-Za-z])|\s+(?:because|since|as|is)\b|\n)"
# A letter that is shown to be a choice by what follows, or any capital before a space, but for the words A and I.
_CHOICE = re.compile(_LEAD + rf"([A-Za-z]{_SHOWN}|[B-HJ-Z](?=\s))")
_ALONE = re.compile(_LEAD + r"[A-Za-z][\s*_\"'`$)}\].!]*")
_ANOTHER = re.compile(r"[\s)\]}.*]*(?:or|and|/|,|&)\s*[(\[*]*[A-Z](?![A-Za-z])")


def no_choice(references: Sequence[str]) -> tuple[list[int], int]:
  """Find the references that name no letter; returns their numbers, and how many were examined."""
  return [i for i, reference in enumerate(references) if not choice(reference)], len(references)


def same_json(response: str, answer: str, *, ended: bool = True, prompt: str = "") -> bool:
  """Tell whether a response is the JSON value of the reference: numbers by value, objects in any order of their keys.

  The value is all of the response, or its last fenced block. Of a response that a limit cut only a closed block counts.
  """
  try:
    wanted = _parse(answer)
  except ValueError:
    return False
  found = _values(response, ended, prompt)
  return bool(found) and _same(found[0], wanted)


def valid_json(response: str, answer: str = "", *, ended: bool = True, prompt: str = "") -> bool:
  """Tell whether a response is JSON, or its last fenced block is; the reference is not looked at."""
  del answer
  return bool(_values(response, ended, prompt))


def not_json(references: Sequence[str]) -> tuple[list[int], int]:
  """Find the references that are no JSON; returns their numbers, and how many were examined."""

  def is_json(text: str) -> bool:
    try:
      _parse(text)
    except ValueError:
      return False
    return True

  return [i for i, reference in enumerate(references) if not is_json(reference)], len(references)


def _values(response: str, ended: bool, prompt: str) -> list[Any]:
  """The JSON value of a response in a list, which is empty where there is none."""
  text = thoughts.conclusion(response, prompt)
  if text is None:
    return []
  blocks = _FENCED.findall(text)
  for part in [text] * ended + blocks[-1:]:
    try:
      return [_parse(part)]
    except ValueError:
      continue
  return []


_FENCED = re.compile(r"^```[ \t]*(?:json[c5]?|JSON)?[ \t]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


def _parse(text: str) -> Any:
  """Parse JSON as its standard has it, without NaN.

  Raises:
    ValueError: it is none.
  """

  def refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")

  try:
    return json.loads(text.strip(), parse_constant=refuse)
  except RecursionError as e:
    raise ValueError("nested too deeply") from e


def _same(a: Any, b: Any) -> bool:
  if isinstance(a, bool) or isinstance(b, bool):
    return a is b
  if isinstance(a, dict) and isinstance(b, dict):
    return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
  if isinstance(a, list) and isinstance(b, list):
    return len(a) == len(b) and all(map(_same, a, b))
  return a == b
