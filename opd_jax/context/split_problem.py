"""Cuts a problem into the turns of a conversation: its question first, then fact after fact.

This follows CCOPD (arXiv:2605.30251), which calls the parts shards, but without a model, so that the same text always
gives the same parts. A text is cut at punctuation and, where that leaves a single fact, at connectives. The question,
which comes first, is the last sentence with a question mark. Three choices are ours: without a question mark it is the
last sentence that asks to calculate; a part is a stretch of the text, so that every word is in exactly one; and a
condition of the question ("If she sells two, how many ...") is a fact and not part of the question.

    How much does she earn?  |  Weng earns $12 an hour for babysitting.  |  Yesterday, she did 50 minutes of it.

`fault` checks parts without knowing how they were made.
"""

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from opd_jax.data.conversation import CLAIMS, CannotSplit, Conversation, message
from opd_jax.data.sources import Example

LEADS = (  # the words of a user around a fact, which stands for "{}"; ours
  "{}",
  "Also: {}",
  "One more thing: {}",
  "I forgot to say: {}",
  "Here is something else: {}",
  "To add to that: {}",
)
GOES_ON = re.compile(r"(and|but|so|then|also|next|finally)\b", re.IGNORECASE)  # a fact that needs no lead


class Facts(NamedTuple):
  """The question and the facts of a problem, each a stretch of its text."""

  question: str
  facts: tuple[str, ...]  # in the text's order, at least one

  @property
  def turns(self) -> tuple[str, ...]:
    """The question and the facts in the order in which a conversation tells them."""
    return (self.question, *self.facts)


def split(text: str, max_facts: int = 0) -> Facts:
  """Cut a problem into its question and its facts.

  Args:
    max_facts: where there are more, the neighbours that are shortest together are joined; 0: no limit.

  Raises:
    CannotSplit: no question, no fact beside it, or a question that tells facts and cannot be cut.
  """
  sentences = _sentences(text)
  questions = [i for i, sentence in enumerate(sentences) if "?" in sentence]
  requests = [i for i, sentence in enumerate(sentences) if _REQUEST.search(sentence)]
  if not questions and not requests:
    raise CannotSplit("no question")
  last = (questions or requests)[-1]
  before, question, after = _question(sentences[last])
  facts = [*sentences[:last], *before, *after, *sentences[last + 1 :]]
  if len(facts) == 1:
    facts = _clauses(facts[0])
  if not facts:
    raise CannotSplit("no fact beside the question")
  while max_facts and len(facts) > max_facts:
    i = min(range(len(facts) - 1), key=lambda i: len(facts[i]) + len(facts[i + 1]))
    facts[i : i + 2] = [f"{facts[i]} {facts[i + 1]}"]
  parts = Facts(question, tuple(facts))
  if reason := fault(text, parts.turns):
    raise CannotSplit(reason)
  return parts


def from_example(example: Example, user: str = "templates", max_turns: int = 0) -> Conversation:
  """Make a conversation of a problem.

  A problem of a task that tells it turn by turn keeps its turns. Text, or messages of which one is the user's, are cut
  by `split`. Messages of which several are the user's are a conversation already: the assistant's are left out, since
  the student gives its own, and its FULL is `example.canonical`, or all turns as one message.

  Args:
    user: "templates" or "plain", see config.context.user.
    max_turns: of the user; 0: no limit.

  Raises:
    CannotSplit: the problem cannot be told turn by turn.
  """
  if example.turns:
    claims = example.claims or CLAIMS
    return Conversation(example.prompt, example.turns, example.answer, example.where, claims=claims)
  if isinstance(example.prompt, str):
    turns, system = [example.prompt], ()
  else:
    system = tuple(dict(m) for m in example.prompt if m["role"] in ("system", "developer"))
    turns = [m["content"] for m in example.prompt if m["role"] == "user"]
    if any(m["role"] == "tool" for m in example.prompt):
      raise CannotSplit("a tool's message, which a new conversation would not have")
  if not turns:
    raise CannotSplit("no turn of the user")
  if len(turns) > 1:
    full = (*system, message("user", example.canonical or "\n".join(turns)))
    return Conversation(full, tuple(turns), example.answer, example.where, system)
  text = turns[0]
  parts = split(text, max_turns and max_turns - 1).turns
  if user != "plain":
    parts = tuple(phrase(part, i, text) for i, part in enumerate(parts))
  return Conversation(example.prompt, parts, example.answer, example.where, system)


def phrase(turn: str, index: int, seed: str) -> str:
  """Make a sentence of a part, with words around it that a user might use.

  Args:
    turn: a part of the problem's text.
    index: of the turn; the first, the question, gets no words around it.
    seed: chooses the words, the same for the same seed and index.
  """
  text = re.sub(r"\s+", " ", turn).strip()
  if text[-1] in ",;:":
    text = f"{text[:-1]}."
  text = text[:1].upper() + text[1:]
  if not index or GOES_ON.match(text):
    return text
  lead = LEADS[zlib.crc32(f"{seed} {index}".encode()) % len(LEADS)]
  return lead.format(text)


def fault(text: str, turns: Sequence[str]) -> str:
  """Find the reason why these turns do not tell the text, the question first and then its facts in order.

  Returns "" where they do.
  """
  in_turns = Counter(word for turn in turns for word in _words(turn))
  in_text = Counter(_words(text))
  if lost := in_text - in_turns:
    return f"{next(iter(lost))!r} is lost"
  if added := in_turns - in_text:
    return f"{next(iter(added))!r} is not in the text as often"
  if "?" not in turns[0] and not _REQUEST.search(turns[0]):
    return "the first turn asks nothing"
  if any(not _words(turn) for turn in turns):
    return "a turn without a word"
  if len(_sentences(turns[0])) > 1 or _CONDITION.search(turns[0]):
    return "the first turn tells a fact"
  text_words = " ".join(["", *_words(text), ""])
  position = 0
  for turn in turns[1:]:
    turn_words = " ".join(["", *_words(turn), ""])
    position = text_words.find(turn_words, position)
    if position < 0:
      return "facts out of order, or no stretch of the text"
    position += len(turn_words) - 1
  return ""


_TITLES = ("Mr", "Mrs", "Ms", "Dr", "St", "Prof", "Lt", "Mt", "vs", "approx", "No", "e.g", "i.e")
_UNITS = ("a.m", "p.m", "etc", "oz", "lb", "lbs", "ft", "in", "min", "hr", "hrs", "Inc", "Co", "Jr", "Sr")
_END = r"[.!?][\"'”’)\]]*"
_BOUNDARY = re.compile(rf"({_END})(\s+)|\n+")


def _sentences(text: str) -> list[str]:
  """Cut a text at punctuation and at line ends, but not at abbreviations and decimals."""
  sentences, start = [], 0
  for match in _BOUNDARY.finditer(text):
    if match[1] and text[match.start()] == "." and _goes_on(text, match.start(), match.end()):
      continue
    if sentence := text[start : match.end()].strip():
      sentences.append(sentence)
    start = match.end()
  if sentence := text[start:].strip():
    sentences.append(sentence)
  return sentences


_REQUEST = re.compile(r"\b(?:calculate|compute|determine|find|work out)\b", re.IGNORECASE)


def _goes_on(text: str, stop: int, after: int) -> bool:
  """Tells whether the full stop at `stop` ends an abbreviation, not a sentence; `after` is where the text goes on."""
  *before, word = text[:stop].split() or [""]
  word = word.lstrip("(\"'“‘$")
  if word in _TITLES:
    return True
  if word in _UNITS:
    return not text[after : after + 1].isupper()
  return bool(re.fullmatch("[A-Z]", word)) and not (before and before[-1].islower())  # J. K. Rowling, but jar A.


_ASKS = (
  r"(?:(?:and|so|then|but)\s+)?"
  r"(?:(?:at|by|for|in|on|to|of|from|with|after|about|during|per|on average,?)\s+)?"
  r"(?:how|what|which|who|whom|whose|when|where|why)\b"
  r"|(?:calculate|compute|determine|find|work out)\b"
  r"|(?:(?:and|so|then|but)\s+)?(?:is|are|was|were|do|does|did|can|could|will|would|should|has|have|had)\s+\w"
)
_BEFORE = re.compile(rf"^(?P<facts>.+?[,;:])\s+(?P<question>(?:{_ASKS}).*)$", re.IGNORECASE | re.DOTALL)
_CONDITION = re.compile(r"(?<!as)\b(?:if|given that|assuming|suppose|supposing|considering)\b", re.IGNORECASE)

_UNDER = re.compile(
  r"^(?P<facts>.+?)\s+(?P<question>(?:how|what|which|who|whose|when|where)\b.*)$", re.IGNORECASE | re.DOTALL
)


def _question(sentence: str) -> tuple[list[str], str, list[str]]:
  """Cut a sentence into the facts before its question, the question, and the condition behind it."""
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
  """Cut a fact at connectives where both sides hold a count."""
  clauses, start = [], 0
  for match in _JOINTS.finditer(fact):
    head, tail = fact[start : match.start()], fact[match.end() :]
    if all(len(_words(side)) >= 3 and _COUNT.search(side) for side in (head, tail)):
      clauses.append(head.strip())
      start = match.end()
  return [*clauses, fact[start:].strip()]


_COUNT = re.compile(
  r"\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|dozen|half|twice|thrice|double|third|quarter"
  r"|another|times)\b",
  re.IGNORECASE,
)


def _words(text: str) -> list[str]:
  """The words and numbers of a text in lower case; a number keeps its decimals and its thousands."""
  return re.findall(r"\d+(?:[.,]\d+)*|[^\W\d_]+", text.lower())
