"""Verify final answers of grade-school problems (GSM8K, Cobbe et al. 2021) and of files like them.

A response counts only when its answer can be read without a guess: a wrong response that is rewarded costs more
than a right one that is not. Numbers are compared exactly; other answers by math-verify.
"""

import functools
import re
import threading
from fractions import Fraction


def verify(response: str, answer: str) -> bool:
  """Tell whether the final answer of `response` is `answer`.

  Args:
    response: the student's text. Its final answer is the last \\boxed{...}, else the last "#### ...", else what
      follows the last "answer is", else its last number.
    answer: as GSM8K writes it ("... #### 18") or bare ("18").

  Units, currency and percent signs are ignored: 18 == $18.00 == 18 eggs. A response without a final answer, cut
  inside it, or naming two ("18 or 20") is wrong.
  """
  wanted = gold(answer)
  if not wanted:
    return False
  value = number(wanted)
  stated, unannounced = _stated(_conclusion(response), numeric=value is not None)
  if value is None:
    return stated is not None and _same_expression(stated, wanted)
  if stated is not None:
    return number(stated) == value
  return unannounced and _last_number(_conclusion(response)) == value


def extract_answer(response: str) -> str | None:
  """Find the number that a response announces as its answer (boxed, behind "####" or "answer is"); None: none."""
  stated, _ = _stated(_conclusion(response), numeric=True)
  return stated if stated is not None and number(stated) is not None else None


def gold(answer: str) -> str:
  """Find the final answer within a reference solution."""
  if "####" in answer:
    return answer.rsplit("####", 1)[1].strip()
  boxed, _ = _last_box(answer)
  return (boxed if boxed is not None else answer).strip()


def number(text: str) -> Fraction | None:
  """The number that the whole text states, up to a unit; None if it states anything else.

  Reads 1,080  $18.00  -3  .5  3/4  1 1/2  \\frac{3}{4}  1.5e3  1.5 \\times 10^3  25%  5 million  18 apples.
  """
  if len(text) > 300:
    return None
  left, _, text = _plain(text).rpartition("=")
  if _NOT_EQUATION.search(left):
    return None
  match = _NUMBER.fullmatch(_CURRENCY.sub(" ", text).lstrip(" :*_`\n").rstrip(" .:;,*_`\n"))
  if not match or not _is_unit(match["unit"], glued=match["gap"] == ""):
    return None
  try:
    value = _value(match)
  except ZeroDivisionError:
    return None
  words = match["unit"].split()
  scale = _SCALES.get(words[0].lower(), 1) if words else 1
  return (-value if match["sign"] == "-" else value) * scale


_NOT_EQUATION = re.compile(r"[,;]\s|,[A-Za-z]|\b(?:and|or)\b|[!<>≠]$")  # a = 18, b = 20
# A run of 40 digits is no answer to anything here, and long ones are slow (and past 4300 an error) to convert.
_INT = r"(?:\d{1,3}(?:,\d{3}){1,12}|\d{1,40})(?![\d])"
_NUMBER = re.compile(
  rf"""(?P<sign>[-+]?)\s*
  (?:
    (?:(?P<whole>\d{{1,40}})\s+)?(?P<over>{_INT})\s*/\s*(?P<under>{_INT})
  | (?P<decimal>{_INT}(?:\.\d{{0,40}})?|\.\d{{1,40}})
    (?:[eE](?P<e>[-+]?\d{{1,2}})|\s*(?:\\times|×|\*|x)\s*10\s*\^\s*\{{?(?P<power>[-+]?\d{{1,2}})\}}?)?
  )
  (?P<gap>\s*)(?P<unit>.*)""",
  re.VERBOSE | re.DOTALL,
)
_CURRENCY = re.compile(r"\\?\$|[€£¥₹]|\bUSD?\b(?=\s*\\?[$\d])|\bRs\.?(?=\s*\d)")
_SCALES = {
  "hundred": 10**2,
  "thousand": 10**3,
  "k": 10**3,
  "million": 10**6,
  "billion": 10**9,
  "trillion": 10**12,
}


def _value(match: re.Match) -> Fraction:
  """The value of a match of `_NUMBER`, without its sign and unit."""

  def digits(group: str) -> str:
    return match[group].replace(",", "")

  if match["over"]:
    return Fraction(int(match["whole"] or 0)) + Fraction(int(digits("over")), int(digits("under")))
  decimal = digits("decimal").removesuffix(".")
  return Fraction(decimal) * Fraction(10) ** int(match["e"] or match["power"] or 0)


_UNIT = re.compile(
  r"(?:[^\W\d_]|[\s.'’°%¢()]|/(?=\s*[^\W\d_])|(?<=[^\W\d_])-(?=[^\W\d_])|\^\s*\{?(?:2|3|\\circ)\}?|[²³]|\\circ\b)*"
)
_SHORT_UNIT = re.compile(
  "[mghsLlCFWVJNkK]|[kmcd]?[gmlL]|[kK]g|lbs?|oz|ft|in|yd|mi|hrs?|mins?|secs?|mph|kph|kmh|gal|pt|qt|[ap]m"
)
# Words after which the number is no longer the answer: 18 or nineteen, 18 and a half, 5 squared, 3 over 4.
_NOT_UNIT = re.compile("or|and|to|not|plus|minus|times|over|squared|cubed|point|pi|half|e|i", re.IGNORECASE)


def _is_unit(text: str, glued: bool) -> bool:
  """Tell whether what follows a number leaves its value alone; a variable does not (5x, 5 x)."""
  if len(text) > 80 or not _UNIT.fullmatch(text):
    return False
  words = re.findall(r"[^\W\d_]+", text)
  if not words:
    return True
  if any(map(_NOT_UNIT.fullmatch, words)):
    return False
  if _SHORT_UNIT.fullmatch(words[0]):
    return True
  if glued and text[0].isalpha():
    return len(words[0]) > 3  # 18apples, but not 2ab or 2nd
  return len(words[0]) > 1 or words[0] in "aA"  # 18 a day


def _conclusion(response: str) -> str:
  """The text behind the model's thinking; "" if the thinking was cut."""
  _, _, after = response.rpartition("</think>")
  return "" if "<think>" in after else after


def _stated(text: str, numeric: bool) -> tuple[str | None, bool]:
  """The answer that the text announces, or None and whether its last number may stand for it."""
  box, complete = _last_box(text)
  if not complete:
    return None, False
  if box is not None:
    return box, False
  for line in reversed(re.findall(r"^[ \t]*####(?!#)[ \t]*(\S[^\n]*)", text, re.MULTILINE)):
    # "#### 3. Add up" is a heading, "#### 18" the answer.
    line = _markup(line)
    if not numeric or (number(line) is not None and not re.match(r"\d+[.):]\s+\w", line)):
      return line, False
    break
  announced = [match.end() for match in _ANNOUNCED.finditer(text)]
  if not announced:
    return None, True
  line = _plain(_markup(text[announced[-1] :])).lstrip(" \t\n*_:$([{").split("\n", 1)[0]
  return _first(line) if numeric else (line.strip(" .*_`$"), False)


_ANNOUNCED = re.compile(
  r"<answer>|\banswer\b[^\w\s]{0,4}\s{0,2}(?:\bis\b|\bwould be\b|[:=])|^[#*\s]{0,8}(?:final\s)?answer[*:]{0,4}\s*?\n",
  re.IGNORECASE | re.MULTILINE,
)


def _first(sentence: str) -> tuple[str | None, bool]:
  """The number at the start of what follows "answer is"; the last number of the response if none stands there."""
  sentence = re.split(r"[.!?;](?=\s|$)", sentence, maxsplit=1)[0]
  sentence = re.sub(r"^(?:approximately|about|exactly|only|just|simply)\s+", "", sentence.strip(), flags=re.IGNORECASE)
  match = _LEADING.match(sentence)
  if "=" in sentence and (not match or _HEDGE.match(sentence[match.end() :])):  # 9 * 2 = 18, x = 18
    sentence = sentence.rsplit("=", 1)[1].strip()
    match = _LEADING.match(sentence)
  if not match:
    return None, True
  rest = sentence[match.end() :]
  if _HEDGE.match(rest) or re.search(r"\b(?:or|and|to)\s+[-$€£¥₹\\]*\d", rest):
    return None, False
  # Words after the number may go on for a while: $18 a day at the market with 4 stalls.
  words = re.split(
    r"[,(}\])\"]|\band\b(?!\s+(?:an?|half)\b)|\b(?:for|in|per|each|every|because|since|from|after|with|by|at|on|of)\b",
    rest,
    maxsplit=1,
  )[0]
  return match[0] + words, False


_LEADING = re.compile(
  r"[-+]?\s*\\?[$€£¥₹]?\s*[-+]?(?:\d(?:[\d,]*\d)?(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+|\s+\d+/\d+|[eE][-+]?\d+)?"
)
_HEDGE = re.compile(r"\s*(?:[-+*/^×÷–—]|\\times|\\cdot|\\div|x\s)\s*[($\\]*\d")


def _last_number(text: str) -> Fraction | None:
  """The value of the last word with a digit in it, if that word is a number and not a part of something longer."""
  text = _plain(text[-2000:] if len(text) <= 2000 else " " + text[-2000:].partition(" ")[2])
  words = _ENUMERATOR.sub("", _markup(text)).split()
  at = next((i for i in reversed(range(len(words))) if re.search(r"\d", words[i])), None)
  if at is None:
    return None
  word = words[at].rsplit("=", 1)[-1]
  before = words[at - 1] if at and "=" not in words[at] else ""
  after = words[at + 1].strip(".,;:!?*").lower() if at + 1 < len(words) else ""
  if re.fullmatch(r"[-+*/^×÷x–]|\\times|\\cdot|\\div", before) or re.fullmatch(r"[-+*/^×÷]", after):
    return None
  word = word.strip(".,;:!?()[]{}\"'*_`~≈")
  if re.fullmatch(r"\d+/\d+", word) and re.fullmatch(r"[-$]*\d+", before):
    word = f"{before} {word}"  # 1 1/2
  elif re.fullmatch(r"\d{3}", word) and re.fullmatch(r"[-$]*\d{1,3}", before):
    return None  # 1 000, or two numbers
  if after in _SCALES:
    word = f"{word} {after}"
  elif after == "and" and at + 2 < len(words) and words[at + 2].lower() == "a":
    return None  # 18 and a half
  return number(word)


_ENUMERATOR = re.compile(r"^[#*\s>-]*(?:step\s+)?\d{1,2}[.):]\s+(?=\S)", re.IGNORECASE | re.MULTILINE)


def _last_box(text: str) -> tuple[str | None, bool]:
  """Find what is inside the last \\boxed{...}, or None, and False if the text ends inside it."""
  start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
  if start < 0:
    return None, True
  inside = re.compile(r"\\(?:boxed|fbox)\s*").match(text, start)
  assert inside
  start = inside.end()
  if text[start : start + 1] != "{":
    word = re.compile(r"[^\s$]+(?=[\s$])").match(text, start)  # \boxed 18
    return (word[0], True) if word else (None, False)
  depth = 0
  for i in range(start, len(text)):
    depth += {"{": 1, "}": -1}.get(text[i], 0)
    if depth == 0:
      return text[start + 1 : i], True
  return None, False


def _markup(text: str) -> str:
  """Remove calculator notes <<2*9=18>>, tags and tokens of control."""
  return re.sub(r"<\|[^|<>\n]{1,40}\|>|</?[A-Za-z][\w-]{0,20}>", " ", re.sub(r"<<[^<>\n]{0,200}>>", "", text))


_FORMATTED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textrm|mbox|operatorname)\s*\{([^{}]*)\}")
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d)(\d))")
_SPACING = re.compile(r"\\[,!;:](?=\s*\d{3}(?!\d))")  # 10\,000


def _plain(text: str) -> str:
  """Rewrite LaTeX's ways to write a number as plain text."""
  text = text.replace("−", "-").replace("\u2013", "-").replace("\u00a0", " ").replace("\u202f", " ")
  text = _SPACING.sub("", text.replace("{,}", ","))
  text = re.sub(r"\\(?:left|right|displaystyle)\b|\\[,!;:() \[\]]|~", " ", text)
  text = _FORMATTED.sub(r" \1 ", text)
  text = _FRACTION.sub(lambda m: f" {m[1] or m[3]}/{m[2] or m[4]} ", text)
  return re.sub(r"-\s+(?=\d+/\d)", "-", text.replace("\\%", "%").replace("\\approx", "=").replace("≈", "="))


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
  a, b = (" ".join(_CURRENCY.sub(" ", _plain(text)).strip(" .").casefold().split()) for text in (stated, wanted))
  if a == b:
    return True
  # To LaTeX, words are products of letters: Mary would be the same as army.
  if any(len(t) > 200 or _ENDLESS.search(t) or re.search(r"(?<![\\A-Za-z])[A-Za-z]{2,}", t) for t in (a, b)):
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
      latex = [f"${text.strip('$ ')}$" for text in (wanted, stated)]
      parse = functools.partial(math_verify.parse, parsing_timeout=limit)  # pyright: ignore[reportArgumentType]
      expected, found = map(parse, latex)
      return bool(expected and found and math_verify.verify(expected, found, timeout_seconds=limit))
    except (Exception, TimeoutException):
      return False


def _silence_math_verify() -> None:
  """Silence math-verify's warning that a thread has no timeout, whose place `_ENDLESS` takes."""
  import logging

  for name in ("math_verify.parser", "math_verify.grader", "math_verify.utils"):
    logging.getLogger(name).setLevel(logging.ERROR)
