"""Whether two answers are the same mathematics, by math-verify, and within a bounded time.

It is asked only about what is short and is soon compared: see `_ENDLESS` and `_TOIL`.
"""

import functools
import re
import threading

from opd_jax.tasks.numbers import CURRENCY, number, plain, unwrap, western


def same_answer(stated: str, wanted: str) -> bool:
  """Tell whether two answers are the same number, the same text, or the same mathematics; the order does not matter."""
  a, b = number(stated), number(wanted)
  if a is not None and b is not None:
    return a == b
  if b is not None and not is_constant(stated):
    return False
  return _same_expression(stated if a is None else str(a), wanted if b is None else str(b))


def is_constant(text: str) -> bool:
  """Tell whether a text is an expression of numbers alone, such as 2\\sqrt{2}/\\sqrt{2}, and quickly computed."""
  text = western(text).strip()
  _, _, right = text.rpartition("=")
  name = text[: len(text) - len(right)].removesuffix("=").strip(" $")
  return bool(
    len(text) <= 100
    and (not name or re.fullmatch("[A-Za-z]", name))
    and _CONSTANT.fullmatch(right)
    and not _JUXTAPOSED.search(right)
    and len(re.findall(r"\\(?:sqrt|sin|cos|tan)", right)) <= 4
  )


def is_comparable(text: str) -> bool:
  """Tell whether math-verify may be asked about an answer; one that it may not is equal to the same text only."""
  raw, text = western(text), _normal(text)
  if len(text) > 200 or _ENDLESS.search(text) or _UNREAD.search(text) or _JUXTAPOSED.search(raw):
    return False
  if re.search(r"(?<![\\A-Za-z])[A-Za-z]{2,}", text):
    return False  # to LaTeX, words are products of letters: Mary would be the same as army
  return len(_TOIL.findall(text)) <= 6 and _is_closed(text)


_CONSTANT = re.compile(
  r"(?:(?:\d+(?:\.\d*)?|\.\d+)(?![\d.])|\\(?:[dt]?frac|sqrt|sin|cos|tan|pi|cdot|times|div|left|right)(?![a-z])"
  r"|\\[,!;: $]|[-+*/^(){}\[\]\s$])+"
)
_JUXTAPOSED = re.compile(r"[\d.]\s+[\d.]")  # to math-verify, 1 2 is 1 + 2
_UNREAD = re.compile(r"\\overline|^[*/^]|(?:[-+*/^=]|\\(?:cdot|times|div|pm))\s*$")  # math-verify reads something else
# Many of these in a quotient or a product take minutes to compare, and so do many brackets within each other.
_TOIL = re.compile(r"\\(?:sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp)")
_DEEP = 6

_sympy = threading.Lock()  # its caches and math-verify's are not made for threads
_SECONDS = 5
# Each of these lets a short text ask for minutes of work, where no alarm interrupts it: in a thread, or inside one long
# multiplication. Factorials, sums, long integers, high powers, powers of powers, sums to a high power.
_ENDLESS = re.compile(
  r"!|\\(?:sum|prod|int|lim|binom)|\d{13}|\^\s*\{?[^\s{}^]*\d{3}|\^\s*(?:\{[^{}]*|\w+\s*)\^"
  r"|[)}\]]\s*\^.*[)}\]]\s*\^|[)}\]]\s*\^\s*\{?[^\s{}^]*\d{2}"
)


def _same_expression(stated: str, wanted: str) -> bool:
  """Tell whether two answers that are not both numbers are the same text, or the same mathematics."""
  a, b = map(_normal, (stated, wanted))
  if a == b:
    return True
  if not (is_comparable(stated) and is_comparable(wanted)):
    return False
  # Answers in other variables are not equal, and take longest to compare.
  letters = [set(re.sub(r"\\[a-z]+|^[a-z]\s*=", " ", t)) & set("abcdfghjklmnopqrstuvwxyz") for t in (a, b)]
  if not letters[0] <= letters[1]:
    return False
  import math_verify  # half a second, and only needed here
  from math_verify.errors import TimeoutException

  # Its timeouts are signals, which only the main thread may set.
  limit = _SECONDS if threading.current_thread() is threading.main_thread() else None
  with _sympy:
    _silence_math_verify()
    try:
      latex = [f"${' '.join(western(text).strip('$ ').split())}$" for text in (wanted, stated)]
      parse = functools.partial(math_verify.parse, parsing_timeout=limit)  # pyright: ignore[reportArgumentType]
      expected, found = map(parse, latex)
      return bool(expected and found and math_verify.verify(expected, found, timeout_seconds=limit))
    except (Exception, TimeoutException):
      return False


def prepare() -> None:
  """Import what compares expressions, which takes half a second and is otherwise done when it is first needed."""
  import math_verify  # noqa: F401


def _normal(text: str) -> str:
  """Write a text as it is compared, whatever its case and spaces, currency, and brackets around all of it."""
  text = " ".join(CURRENCY.sub(" ", plain(text)).strip(" .").casefold().split())
  return unwrap(re.sub(r" ?([-+*/^=<>,;()\[\]{}|]) ?", r"\1", text))


def _is_closed(text: str) -> bool:
  """Tell whether the brackets of a text close, few within each other; an interval's need not be alike."""
  depth = 0
  for c in text:
    depth += (c in "([{") - (c in ")]}")
    if not 0 <= depth <= _DEEP:
      return False
  return not depth


def _silence_math_verify() -> None:
  """Silence math-verify's warning that a thread has no timeout, whose place `_ENDLESS` takes."""
  import logging

  for name in ("math_verify.parser", "math_verify.grader", "math_verify.utils"):
    logging.getLogger(name).setLevel(logging.ERROR)
