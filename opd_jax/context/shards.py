"""A problem cut into what a conversation tells turn by turn: its question first, then fact after fact.

After arXiv:2605.30251, without a model, so that the same text always gives the same shards: cut at punctuation; where that
leaves a single fact, at connectives; the question is the last sentence with a question mark (ours: or else that asks to calculate), and comes first. What a shard
is, is our choice too: a stretch of the text, so that every word is in exactly one. A condition that the question is asked
under ("If she sells two, how many ...") is a fact and not part of the question.

    How much does she earn?  |  Weng earns $12 an hour for babysitting.  |  Yesterday, she did 50 minutes of it.

`fault` looks at shards without knowing how they were made.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple


class Shards(NamedTuple):
  """Stretches of one text."""

  question: str
  facts: tuple[str, ...]  # in the text's order, at least one

  @property
  def turns(self) -> tuple[str, ...]:
    return (self.question, *self.facts)


class Unfit(ValueError):
  """Why a text cannot be told turn by turn."""


def shard(text: str, max_facts: int = 0) -> Shards:
  """Cuts a problem.

  Args:
    max_facts: of more, the neighbours that are shortest together are joined; 0: no limit.

  Raises:
    Unfit: no question, no fact beside it, or a question that tells facts and cannot be cut.
  """
  sentences = _sentences(text)
  asked = [i for i, s in enumerate(sentences) if "?" in s] or [i for i, s in enumerate(sentences) if _REQUEST.search(s)]
  if not asked:
    raise Unfit("no question")
  at = asked[-1]
  before, question, after = _question(sentences[at])
  facts = [*sentences[:at], *before, *after, *sentences[at + 1 :]]
  if len(facts) == 1:
    facts = _clauses(facts[0])
  if not facts:
    raise Unfit("no fact beside the question")
  while max_facts and len(facts) > max_facts:
    i = min(range(len(facts) - 1), key=lambda i: len(facts[i]) + len(facts[i + 1]))
    facts[i : i + 2] = [f"{facts[i]} {facts[i + 1]}"]
  shards = Shards(question, tuple(facts))
  if why := fault(text, shards.turns):
    raise Unfit(why)
  return shards


def fault(text: str, turns: Sequence[str]) -> str:
  """Why these turns do not tell the text, the question first and one fact after the other; "" where they do."""
  told, whole = Counter(w for turn in turns for w in _words(turn)), Counter(_words(text))
  if lost := whole - told:
    return f"{next(iter(lost))!r} is lost"
  if more := told - whole:
    return f"{next(iter(more))!r} is not in the text as often"
  if "?" not in turns[0] and not _REQUEST.search(turns[0]):
    return "the first turn asks nothing"
  if any(not _words(turn) for turn in turns):
    return "a turn without a word"
  if len(_sentences(turns[0])) > 1 or _CONDITION.search(turns[0]):
    return "the first turn tells a fact"
  flat = " ".join(["", *_words(text), ""])
  at = 0
  for turn in turns[1:]:
    stretch = " ".join(["", *_words(turn), ""])
    at = flat.find(stretch, at)
    if at < 0:
      return "facts out of order, or no stretch of the text"
    at += len(stretch) - 1
  return ""


_TITLES = ("Mr", "Mrs", "Ms", "Dr", "St", "Prof", "Lt", "Mt", "vs", "approx", "No", "e.g", "i.e")
_UNITS = ("a.m", "p.m", "etc", "oz", "lb", "lbs", "ft", "in", "min", "hr", "hrs", "Inc", "Co", "Jr", "Sr")
_END = r"[.!?][\"'”’)\]]*"
_BOUNDARY = re.compile(rf"({_END})(\s+)|\n+")


def _sentences(text: str) -> list[str]:
  """Stretches that end at punctuation or at a line's end; abbreviations and decimals go on."""
  out, start = [], 0
  for match in _BOUNDARY.finditer(text):
    if match[1] and text[match.start()] == "." and _goes_on(text, match.start(), match.end()):
      continue
    if piece := text[start : match.end()].strip():
      out.append(piece)
    start = match.end()
  if piece := text[start:].strip():
    out.append(piece)
  return out


_REQUEST = re.compile(r"\b(?:calculate|compute|determine|find|work out)\b", re.IGNORECASE)


def _goes_on(text: str, stop: int, after: int) -> bool:
  """Whether the full stop there ends an abbreviation and not a sentence."""
  *before, word = text[:stop].split() or [""]
  word = word.lstrip("(\"'“‘$")
  if word in _TITLES:
    return True
  if word in _UNITS:
    return not text[after : after + 1].isupper()
  return bool(re.fullmatch("[A-Z]", word)) and not (before and before[-1].islower())  # J. K. Rowling, but jar A.


_ASKS = (
  r"(?:(?:and|so|then|but)\s+)?(?:(?:at|by|for|in|on|to|of|from|with|after|about|during|per|on average,?)\s+)?(?:how|what|which|who|whom|whose|when|where|why)\b"
  r"|(?:calculate|compute|determine|find|work out)\b"
  r"|(?:(?:and|so|then|but)\s+)?(?:is|are|was|were|do|does|did|can|could|will|would|should|has|have|had)\s+\w"
)
_BEFORE = re.compile(rf"^(?P<facts>.+?[,;:])\s+(?P<question>(?:{_ASKS}).*)$", re.IGNORECASE | re.DOTALL)
_CONDITION = re.compile(r"(?<!as)\b(?:if|given that|assuming|suppose|supposing|considering)\b", re.IGNORECASE)

_UNDER = re.compile(
  r"^(?P<facts>.+?)\s+(?P<question>(?:how|what|which|who|whose|when|where)\b.*)$", re.IGNORECASE | re.DOTALL
)


def _question(sentence: str) -> tuple[list[str], str, list[str]]:
  """Facts before the question of a sentence, the question, and a condition behind it."""
  before, question, after = [], sentence, []
  if not re.match(_ASKS, sentence, re.IGNORECASE) and (match := _BEFORE.match(sentence)):
    before, question = [match["facts"]], match["question"]
  if match := _CONDITION.search(question):
    if match.start():
      question, condition = question[: match.start()].rstrip(" ,"), question[match.start() :]
      after = [condition.replace("?", ".")]
      question = question if "?" in question else f"{question}?"
    elif match := _UNDER.match(question):
      before, question = [match["facts"]], match["question"]
  return before, question, after


_JOINTS = re.compile(
  r"(?<=;)\s+"
  r"|(?<=,)\s+(?=(?:and|but|then|while|whereas|so|which|who|after|before)\b)"
  r"|\s+(?=and\s+(?:then|he|she|they|it|the|his|her|their|each|another)\b)"
)


def _clauses(fact: str) -> list[str]:
  """A fact cut at connectives, where both sides say something countable."""
  out, start = [], 0
  for match in _JOINTS.finditer(fact):
    head, tail = fact[start : match.start()], fact[match.end() :]
    if all(len(_words(side)) >= 3 and _COUNT.search(side) for side in (head, tail)):
      out.append(head.strip())
      start = match.end()
  return [*out, fact[start:].strip()]


_COUNT = re.compile(
  r"\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|dozen|half|twice|thrice|double|third|quarter|another|times)\b",
  re.IGNORECASE,
)


def _words(text: str) -> list[str]:
  """Words and numbers, lower case; a number keeps its decimals and its thousands."""
  return re.findall(r"\d+(?:[.,]\d+)*|[^\W\d_]+", text.lower())
