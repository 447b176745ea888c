"""Verify final answers of grade-school problems (GSM8K, Cobbe et al. 2021) and of files like them.

A response counts only when its answer can be read without a guess: a wrong response that is rewarded costs more
than a right one that is not. How numbers are read is in numbers.py, how other answers are compared in expressions.py.
"""

import re
import time
from collections.abc import Sequence
from fractions import Fraction

from opd_jax.tasks import thoughts
from opd_jax.tasks.expressions import is_comparable, is_constant, same_answer
from opd_jax.tasks.numbers import SCALES, number, plain, western


def verify(response: str, answer: str, *, ended: bool = True, prompt: str = "") -> bool:
  """Tell whether the final answer of `response` is `answer`.

  Args:
    response: the student's text. Its final answer is the last \\boxed{...}, else the last "#### ...", else what
      follows the last "answer is", else its last number.
    answer: the reference, as GSM8K writes it ("... #### 18"), bare ("18"), or as a response states it, see `gold`.
    ended: by a stop token. Of a response that a limit cut counts only what reads the same whatever would have followed: a
      closed box; a line of "####" or an answer in words with the end of its line behind it; a number behind "answer is" with
      the end of its sentence or line. Its last number never counts, and nothing does where another announcement has begun.
    prompt: the end of what the response goes on from; a thought that is opened there or in the response and has no end has
      no answer.

  Units, currency and percent signs are ignored: 18 == $18.00 == 18 eggs. A response without a final answer, cut
  inside it, or naming two ("18 or 20") is wrong.
  """
  wanted = gold(answer)
  if not wanted:
    return False
  value = number(wanted)
  text = _conclusion(response, ended, prompt, numeric=value is not None)
  stated, unannounced = _stated(text, numeric=value is not None)
  if value is None:
    if unannounced:
      return ended and not _unanswered(text) and _is_whole(text, wanted)
    return stated is not None and same_answer(stated, wanted)
  if stated is not None and number(stated) is not None:
    return number(stated) == value
  expression, _ = _stated(_conclusion(response, ended, prompt, numeric=False), numeric=False)
  if expression is not None and is_constant(expression) and same_answer(expression, wanted):
    return True  # \sqrt{4} is 2, too
  return ended and unannounced and not _unanswered(text) and _last_number(text) == value


def _is_whole(text: str, wanted: str) -> bool:
  """Tell whether an answer that is no number is all that a response says, or as a constant, its last number."""
  if same_answer(_trim(_markup(text)), wanted):
    return True
  last = _last_number(text) if is_constant(wanted) else None
  return last is not None and same_answer(str(last), wanted)


def extract_answer(response: str, *, ended: bool = True, prompt: str = "") -> str | None:
  """Find the number that a response announces as its answer (boxed, behind "####" or "answer is"); None: none.

  For `ended` and `prompt` see `verify`.
  """
  stated, _ = _stated(_conclusion(response, ended, prompt, numeric=True), numeric=True)
  return stated if stated is not None and number(stated) is not None else None


def announced(response: str, *, ended: bool = True, prompt: str = "") -> str | None:
  """Find the text that a response announces as its answer (boxed, behind "####" or "answer is"); None: none.

  For `ended` and `prompt` see `verify`.
  """
  return _stated(_conclusion(response, ended, prompt, numeric=False), numeric=False)[0]


def gold(answer: str) -> str:
  """Find the final answer within a reference, by the rules of a response; a text that announces none is the answer.

  It is what stands behind the last "####", in the last \\boxed{...}, or behind the last "answer is"; tokens of control
  at the end are no part of it. The final answer of a final answer is itself.
  """
  text = western(_conclusion(answer, True, "", numeric=False)).strip()
  while len(final := _final(text)) < len(text):
    text = final
  return text if number(text) is None else text.rstrip(". \n")


def _final(text: str) -> str:
  """Read a reference once; a piece of the text, or all of it."""
  lines = _marked_lines(text)
  if lines:
    return lines[-1].strip()
  announced, _ = _stated(text, numeric=True)
  if announced is None or number(announced) is None:
    announced, _ = _stated(text, numeric=False)
  return _without_end_tokens(text) if announced is None else announced.strip()


def _without_end_tokens(text: str) -> str:
  """Remove the tokens of control at the end of a text: <|im_end|>, </s>."""
  text = text.rstrip()
  while token := _END_TOKEN.search(text, max(0, len(text) - 50)):
    text = text[: token.start()].rstrip()
  return text.strip()


_END_TOKEN = re.compile(r"(?:<\|[^|<>\n]{1,40}\|>|</?[A-Za-z][\w-]{0,20}>)\Z")


def unmatched(references: Sequence[str], seconds: float = 5.0) -> tuple[list[int], int]:
  """Find the references that a response matches in the very same words at best: neither numbers nor expressions.

  Names and other words are what they are; words with a number in them, long texts, and answers that are cut are found.

  Args:
    seconds: after these no more references are examined.

  Returns:
    the numbers of such references, and how many were examined.
  """
  found, end = [], time.monotonic() + seconds
  for i, reference in enumerate(references):
    if time.monotonic() > end:
      return found, i
    final = gold(reference)
    if not (_can_be_stated(final) and verify(reference, final) and verify(f"The answer is {final}.", final)):
      found.append(i)
  return found, len(references)


def _can_be_stated(final: str) -> bool:
  if number(final) is not None:
    return True
  if len(final) > 200 or re.search(r"[a-z]{3}[.!?]\s+[A-Z]", final):  # sentences
    return False
  return not re.search(r"\d", final) or is_comparable(final)


def _conclusion(response: str, ended: bool, prompt: str, numeric: bool) -> str:
  """The text behind the thoughts, without control tokens, and of a cut response as far as it is finished."""
  # A space in their place, so that nothing on their two sides becomes one number.
  text = _CONTROL.sub(" ", thoughts.conclusion(response, prompt) or "")
  text = text.replace("</answer>", "\n")  # the answer in it ends there, like a line
  return text if ended else _finished(text, numeric)


_CONTROL = re.compile(
  r"<[|｜][^|｜<>\n]{1,40}[|｜]>|</?s>|<(?:bos|eos|pad|unk|(?:start|end)_of_turn)>"
  r"|\[/?(?:INST|SYSTEM_PROMPT|TOOL_(?:CALLS|RESULTS)|AVAILABLE_TOOLS|CLS|SEP|PAD|UNK|MASK|gMASK|BOS|EOS)\]"
)


def _finished(text: str, numeric: bool) -> str:
  """The beginning of a cut text that reads the same whatever would have followed; "" where an announcement has begun."""
  end = line = text.rfind("\n") + 1
  if numeric and not re.match(r"[ \t]*####", text[line:]):  # "#### 3." may become the heading "#### 3. Add up"
    end = max((match.end() for match in _SENTENCE.finditer(text, line)), default=line)
  box, _ = _last_box(text)
  if box is not None:
    begin = _BOX.match(text, max(text.rfind("\\boxed"), text.rfind("\\fbox")))
    assert begin
    end = max(end, begin.end() + len(box) + 1)
  return "" if _BEGUN.search(text, end) else text[:end]


_SENTENCE = re.compile(r"[.?](?=\s)")  # not "!": 5! = 120
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{?")
_BEGUN = re.compile(r"#|\\|answer", re.IGNORECASE)  # what may become another announcement


def _unanswered(text: str) -> bool:
  """Tell whether a text ends with the announcement of an answer that does not come."""
  bare = text.rstrip(" \t\n*_:$([{`")
  announced = [match.end() for match in _ANNOUNCED.finditer(text)]
  return bare.endswith("####") or bool(announced and len(bare) <= announced[-1])


def _stated(text: str, numeric: bool) -> tuple[str | None, bool]:
  """The answer that the text announces, or None and whether its last number may stand for it."""
  text = western(text)
  box, complete = _last_box(text)
  if not complete:
    return None, False
  if box is not None:
    return box, False
  for line in reversed(_marked_lines(text)):
    if not numeric or number(line) is not None:
      return line, False
    break
  announced = [match.end() for match in _ANNOUNCED.finditer(text)]
  if not announced:
    return None, True
  line = _trim(_markup(text[announced[-1] :]), one_line=True)
  if not numeric:
    return line, False
  if _SEVERAL.match(line[:200]):
    return None, False  # (1, 2) does not state 1
  return _first(plain(line).lstrip(" $([{"))


def _marked_lines(text: str) -> list[str]:
  """The lines behind "####", without those that only head what follows: "#### 3. Add up", "#### Final answer"."""
  lines = map(_markup, re.findall(r"(?<!#)####(?!#)[ \t]*+(?:\n[ \t]*+)?(\S(?:(?!####)[^\n])*)", text))
  return [line for line in lines if not _HEADING.match(line)]


_HEADING = re.compile(r"\d+[.):]\s+\w|\W*(?:final\s)?answer\W*\Z", re.IGNORECASE)


def _trim(text: str, one_line: bool = False) -> str:
  """Remove what only marks an answer: $, \\( and \\[, asterisks, quotes, and brackets that were opened before it."""
  text = re.sub(r"\\?\$|(?<!\\)\\[()\[\]]", " ", text).lstrip(' \t\n*_:`"“')
  text = (text.split("\n", 1)[0] if one_line else text).rstrip(_AROUND)
  closed_before = len(re.findall(r"[)\]}]", text)) - len(re.findall(r"[(\[{]", text))
  for _ in range(min(closed_before, 9)):
    text = (text[:-1] if text.endswith((")", "]", "}")) else text).rstrip(_AROUND)
  return text


_AROUND = ' \t\n.*_`"”'
_SEVERAL = re.compile(
  r"\\?[(\[{](?:(?!(?<!\\)\b[A-Za-z]{2,})[^()\[\]{}])*(?:;|,(?!\d{3}))(?:(?!(?<!\\)\b[A-Za-z]{2,})[^()\[\]{}])*[)\]}]"
)


_ANNOUNCED = re.compile(
  r"<answer>|答案\s*(?:是|为|為|[:=])|\banswer\b[^\w\s]{0,4}\s{0,2}(?:\bis\b|\bwould be\b|[:=])"
  r"|^[#*\s]{0,8}(?:final\s)?answer[*:]{0,4}\s*?\n",
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
    return None, not re.match(r"not\b", sentence, re.IGNORECASE)
  rest = sentence[match.end() :]
  if (
    _HEDGE.match(rest) or re.match(r"\s*,\s*[-$€£¥₹\\]*\d", rest) or re.search(r"\b(?:or|and|to)\s+[-$€£¥₹\\]*\d", rest)
  ):
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
  text = plain(text[-2000:] if len(text) <= 2000 else " " + text[-2000:].partition(" ")[2])
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
  if after in SCALES:
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
