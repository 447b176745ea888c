"""The notation in which a key says what values it may have, and the check against it.

    [1, 1000]                       a number in the interval, of the default's type; ( and ) leave a bound out; inf is no bound
    0 or (1, 1000]                  this number, or one in the interval
    whole numbers in [2, 64]        a tuple of them; `numbers in ...` for those that need not be whole
    one of none, fsdp, all          one of these words
    some of q, k, v                 a tuple of these words
    text, path                      a string; ~ begins a path in the home directory (paths.py)
    texts, paths                    a tuple of them
    True or False
    object                          a dict of JSON values, such as {"name": 1}

Without a notation a value has the type of its default. Numbers are finite always.
"""

import dataclasses
import functools
import math
import os
import re
import reprlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

INTERVAL = r"([\[(])\s*([^\s,]+)\s*,\s*([^\s,]+)\s*([\])])"


@dataclasses.dataclass(frozen=True)
class Interval:
  """Numbers between two bounds, each of which may be left out."""

  low: float
  high: float
  with_low: bool = True
  with_high: bool = True

  def __contains__(self, x: float) -> bool:
    above = x >= self.low if self.with_low else x > self.low
    below = x <= self.high if self.with_high else x < self.high
    return above and below

  def __str__(self) -> str:
    if self.low == self.high:
      return _number(self.low)
    low = "" if self.low == -math.inf else f"{'at least' if self.with_low else 'above'} {_number(self.low)}"
    high = "" if self.high == math.inf else f"{'at most' if self.with_high else 'below'} {_number(self.high)}"
    if self.with_low and self.with_high and low and high:
      return f"between {_number(self.low)} and {_number(self.high)}"
    return " and ".join(filter(None, (low, high)))


@dataclasses.dataclass(frozen=True)
class Allowed:
  """The values that a key may have.

  Attributes:
    kind: bool, int, float, str or dict; None: any of bool, int, float and str.
    many: a tuple of such values.
    intervals: numbers are in one of them; (): any finite number.
    words: strings are one of them; (): any string.
    path: strings name a file or a directory.
  """

  kind: type | None
  many: bool = False
  intervals: tuple[Interval, ...] = ()
  words: tuple[str, ...] = ()
  path: bool = False

  def plain(self, value: Any) -> Any:
    """Returns a value as a config keeps it: NumPy's scalars as Python's, a whole number as a float, a list as a tuple.

    Raises:
      TypeError: the value has another type.
    """
    if self.many:
      if not isinstance(value, (list, tuple)):
        raise TypeError
      return tuple(map(self._plain_one, value))
    value = self._plain_one(value)
    return float(value) if self.kind is float else value

  def _plain_one(self, value: Any) -> Any:
    if self.path and isinstance(value, os.PathLike):
      value = os.fspath(value)
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
      value = value.item()
    if not self.fits(value):
      raise TypeError
    return value

  def fits(self, value: Any) -> bool:
    """Tells whether one value, alone or of a tuple, has the type."""
    if self.kind is None:
      return any(Allowed(k).fits(value) for k in (bool, int, float, str))
    if self.kind is float:
      return isinstance(value, (int, float)) and not isinstance(value, bool)
    if self.kind is int:
      return isinstance(value, int) and not isinstance(value, bool)
    if self.kind is dict:
      return isinstance(value, (Mapping, ConfigDict))
    return isinstance(value, self.kind)

  def allows(self, value: Any) -> bool:
    """Tells whether a value may be in a config as it is."""
    if self.many:
      return isinstance(value, (list, tuple)) and all(map(self._allows_one, value))
    return self._allows_one(value)

  def _allows_one(self, value: Any) -> bool:
    if not self.fits(value):
      return False
    if isinstance(value, str):
      return _encodes(value) and not (self.path and "\0" in value) and (not self.words or value in self.words)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
      if isinstance(value, float) and not math.isfinite(value):
        return False
      return not self.intervals or any(value in interval for interval in self.intervals)
    return True

  def __str__(self) -> str:
    if self.kind is None:
      return "a tuple of values" if self.many else "a value"
    if self.kind is bool:
      return "True or False"
    if self.kind is dict:
      return "a dict of JSON values, such as {'name': 1}"
    if self.words:
      words = ", ".join(map(repr, self.words))
      if self.many:
        return f"a tuple of some of {words}"
      return words if len(self.words) == 1 else f"one of {words}"
    if self.kind is str:
      one, several = ("a path", "paths") if self.path else ("a string", "strings")
      return f"a tuple of {several}, such as ('a', 'b')" if self.many else one
    points = [str(i) for i in self.intervals if i.low == i.high]
    ranges = [str(i) for i in self.intervals if i.low != i.high]
    noun = "whole number" if self.kind is int else "number"
    if self.many:
      return " ".join([f"a tuple of {noun}s", *ranges])
    return " or ".join([*points, " ".join([f"a {'finite ' if not ranges else ''}{noun}", *ranges])])


@functools.cache
def parse(notation: str, kind: type | None, many: bool = False) -> Allowed:
  """Parses the values of a key.

  Args:
    kind: the default's type; of a tuple its elements', or None where it has none.
    many: the default is a tuple.

  Raises:
    ValueError: what does not belong to the notation, or not to the default.
  """
  found = _parse(notation.strip(), kind, many)
  if found.many != many or (kind and found.kind is not kind and not (many and kind is int and found.kind is float)):
    raise ValueError(f"{notation!r} does not fit the type of the default")
  return found


def _parse(text: str, kind: type | None, many: bool) -> Allowed:
  if not text:
    return Allowed(kind, many)
  if text == "True or False":
    return Allowed(bool)
  if text == "object":
    return Allowed(dict)
  if text in ("text", "texts", "path", "paths"):
    return Allowed(str, many=text.endswith("s"), path=text.startswith("path"))
  if match := re.fullmatch(r"(one|some) of (.+)", text):
    return Allowed(str, many=match[1] == "some", words=tuple(word.strip() for word in match[2].split(",")))
  if match := re.fullmatch(r"(whole numbers|numbers) in (.+)", text):
    return Allowed(int if match[1] == "whole numbers" else float, many=True, intervals=_intervals(match[2]))
  if kind not in (int, float):
    raise ValueError(f"{text!r} is for numbers")
  return Allowed(kind, many, intervals=_intervals(text))


def _intervals(text: str) -> tuple[Interval, ...]:
  out = []
  for part in text.split(" or "):
    if match := re.fullmatch(INTERVAL, part.strip()):
      out.append(Interval(_value(match[2]), _value(match[3]), match[1] == "[", match[4] == "]"))
    else:
      out.append(Interval(_value(part), _value(part)))
  return tuple(out)


def _value(text: str) -> float:
  """A bound: 3, -1, 0.5, 10**6, 10**-6, inf."""
  base, power, exponent = text.strip().partition("**")
  if not power:
    return float(base) if "." in base or "inf" in base else int(base)
  sign = -1 if base.startswith("-") else 1
  exponent = int(exponent)
  size = int(base.lstrip("-"))
  return sign * (size**exponent if exponent >= 0 else 1 / size**-exponent)


def _number(x: float) -> str:
  return str(x) if isinstance(x, int) else f"{x:g}"


def _encodes(text: str) -> bool:
  """False for half of a surrogate pair, which no file and no tokenizer takes."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


def shown(value: Any) -> str:
  """A value for an error message: short, and on one line."""
  brief = reprlib.Repr()
  brief.maxstring = brief.maxother = brief.maxlong = 80
  brief.maxtuple = brief.maxlist = brief.maxdict = 12
  try:
    return " ".join(brief.repr(value).split())
  except Exception:  # of a class of the caller's
    return f"a {type(value).__name__}"
