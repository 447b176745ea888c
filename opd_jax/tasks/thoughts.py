"""Marks around a reasoning model's thought, which is no part of its answer.

A thought begins where the response writes an opening mark, or where the chat template has written one at the end of the prompt, and
ends at the closing mark of the same kind. What stands behind the last thought is the conclusion; a thought without an end leaves none.
"""

import re
from typing import NamedTuple

MARKS = (  # opening and closing, as models write them
  ("<think>", "</think>"),
  ("<thinking>", "</thinking>"),
  ("<thought>", "</thought>"),
  ("<reasoning>", "</reasoning>"),
  ("<seed:think>", "</seed:think>"),
  ("[THINK]", "[/THINK]"),
  ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)


def conclusion(response: str, prompt: str = "") -> str | None:
  """The text behind the thoughts of a response; None where the last thought has no end.

  Args:
    response: with its marks.
    prompt: what the response goes on from, or its end.
  """
  found = _scan(response, prompt)
  return None if found.opening else response[found.end :]


def opened_by(prompt: str) -> str:
  """The opening mark that a prompt ends with, and the white space behind it; "" where it ends otherwise."""
  match = _OPENED.search(prompt[-_LONGEST:])
  return match[0] if match else ""


def unclosed(text: str) -> tuple[str, str]:
  """The opening mark of a last thought that has no end, "" where there is none, and the text before it."""
  found = _scan(text, "")
  return (found.opening, text[: found.start]) if found.opening else ("", text)


def kinds(text: str) -> set[str]:
  """The opening marks of all kinds of thoughts whose marks, opening or closing, stand in a text."""
  return {_OPENING_OF[_bare(match[0])] for match in _MARK.finditer(text)}


class _Scan(NamedTuple):
  opening: str  # mark of the thought that has no end; "" for none
  start: int  # where that thought begins
  end: int  # where the last thought that has an end ends


def _scan(text: str, prompt: str) -> _Scan:
  opening, start, end = _bare(opened_by(prompt)), 0, 0
  for match in _MARK.finditer(text):
    mark = _bare(match[0])
    if _OPENING_OF[mark] == mark:
      opening, start = (opening, start) if opening else (mark, match.start())
    elif opening in ("", _OPENING_OF[mark]):  # another kind's closing mark is what the thought is about
      opening, end = "", match.end()
  return _Scan(opening, start, end)


def _bare(mark: str) -> str:
  return re.sub(r"\s", "", mark)


def _spaced(mark: str) -> str:
  """A pattern of a mark of several tokens, between which some decoders write spaces."""
  return r"\s?".join(map(re.escape, re.findall(r"<\|\w+\|>|[^<]+|<[^|>]+>", mark)))


_OPENING_OF = {mark: opening for opening, closing in MARKS for mark in (opening, closing)}
_MARK = re.compile("|".join(_spaced(mark) for pair in MARKS for mark in pair))
_OPENED = re.compile(f"(?:{'|'.join(_spaced(opening) for opening, _ in MARKS)})\\s*\\Z")
_LONGEST = 80  # characters of a mark and the white space behind it
