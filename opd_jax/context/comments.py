"""A peer's comment on a response: what the peer reads, and what of its words a student's teacher is shown (OPCoD, arXiv:2606.14368).

    the peer reads     the prompt, the response, and the request to comment
    anchor             a comment begins with a concept of the prompt, one to three words between two marks; without one it is dropped,
                       and so is one that names no word of the prompt but generic ones. The marks are removed
    leaks              letters of options in boxes or in bold, and sentences that state a final answer or the right option, are removed;
                       numbers in boxes stay, as in the paper, unless `leaks` is "answer"

A comment on a response is for the teacher of that response alone. The paper's own wording was not at hand, and that of the defaults
is ours.
"""

import dataclasses
import enum
import re
from typing import NamedTuple

from opd_jax.config import Config
from opd_jax.context.privileged import check_places, filled, rewritten
from opd_jax.data import chat
from opd_jax.errors import InputError

MOST_WORDS = 3  # of a concept
# Words that any question may have, which say nothing of this one; ours.
GENERIC = frozenset(
  [
    "a",
    "an",
    "and",
    "answer",
    "are",
    "at",
    "by",
    "can",
    "choice",
    "concept",
    "correct",
    "do",
    "does",
    "each",
    "following",
    "for",
    "from",
    "given",
    "has",
    "have",
    "how",
    "if",
    "in",
    "is",
    "it",
    "its",
    "many",
    "much",
    "not",
    "number",
    "of",
    "on",
    "one",
    "option",
    "or",
    "problem",
    "question",
    "result",
    "solution",
    "step",
    "sum",
    "that",
    "the",
    "their",
    "there",
    "these",
    "they",
    "this",
    "to",
    "total",
    "value",
    "was",
    "what",
    "when",
    "where",
    "which",
    "who",
    "why",
    "will",
    "with",
  ]
)


class Outcome(enum.Enum):
  """What becomes of a comment."""

  KEPT = "kept"
  EMPTY = "empty"  # nothing was written, or nothing is left of it
  UNANCHORED = "unanchored"  # it does not begin with a concept
  GENERIC = "generic"  # its concept has generic words alone
  FOREIGN = "foreign"  # no word of its concept stands in the prompt
  NOT_ASKED = "not_asked"  # the tutor does not comment on this domain
  TOO_LONG = "too_long"  # the peer's prompt does not fit, and it was not asked
  CUT = "cut"  # it was longer than the limit


class Comment(NamedTuple):
  """A comment as a teacher is shown it.

  Attributes:
    text: "" unless it was kept.
    stripped: whether an answer was removed from it.
  """

  text: str
  outcome: Outcome
  stripped: bool = False


@dataclasses.dataclass(frozen=True)
class Comments:
  """How comments are asked for, and which are kept.

  Attributes:
    template: what the peer reads in the place of the prompt's text; {prompt} and {response} stand for the two.
    anchor: the marks around a concept, "{text}" between them; "": no concept is asked for.
    leaks: "options" and "answer", see above; "none" keeps all.
  """

  template: str
  anchor: str
  leaks: str

  @classmethod
  def from_config(cls, config: Config) -> "Comments":
    """Reads the keys of a config.

    Raises:
      InputError: a template lacks the place of its part.
    """
    c = config.comment
    check_places("comment.template", c.template, ("prompt", "response"))
    if c.anchor and (c.anchor.count("{text}") != 1 or not all(c.anchor.split("{text}"))):
      raise InputError(
        f"config.comment.anchor is {c.anchor!r}; write a mark, {{text}} and another mark, or '' to ask for no concept."
      )
    return cls(c.template, c.anchor, c.leaks)

  def request(self, prompt: chat.Prompt, response: str) -> chat.Prompt:
    """Writes what the peer reads: text for text, and for a chat the same chat with the user's last message extended."""
    return rewritten(prompt, lambda text: filled(self.template, prompt=text, response=response))

  def sanitised(self, text: str, prompt: str, *, ended: bool = True) -> Comment:
    """Checks a comment's anchor, and removes what would give the answer away.

    Args:
      text: as the peer wrote it.
      prompt: of the student.
      ended: whether the peer came to its end.
    """
    text = text.strip()
    if not ended:
      return Comment("", Outcome.CUT)
    if not text:
      return Comment("", Outcome.EMPTY)
    if self.anchor:
      concept, text = self._concept(text)
      if outcome := _unusable(concept, prompt):
        return Comment("", outcome)
    clean = without_answers(text, self.leaks)
    stripped = clean != " ".join(text.split())
    return Comment(clean, Outcome.KEPT, stripped) if clean else Comment("", Outcome.EMPTY, stripped)

  def _concept(self, text: str) -> tuple[str, str]:
    """Splits a comment into the concept that it begins with, "" where there is none, and itself without the marks."""
    before, after = self.anchor.split("{text}")
    found = re.match(re.escape(before) + r"(.*?)" + re.escape(after), text, re.DOTALL)
    if not found:
      return "", text
    return found[1].strip(), f"{found[1].strip()}{text[found.end() :]}"


def _unusable(concept: str, prompt: str) -> Outcome | None:
  """Tells why a comment with this concept is dropped; None: it is kept."""
  words = _words(concept)
  if not words or len(words) > MOST_WORDS:
    return Outcome.UNANCHORED
  specific = [word for word in words if word not in GENERIC]
  if not specific:
    return Outcome.GENERIC
  return None if set(specific) & set(_words(prompt)) else Outcome.FOREIGN


def _words(text: str) -> list[str]:
  return re.findall(r"[^\W_]+", text.lower())


_LETTER = r"(?:\\text\s*\{)?\s*\(?\s*[A-J]\s*\)?\s*\}?"
_OPTION = re.compile(
  rf"\\f?boxed\s*\{{\s*{_LETTER}\s*\}}|\*\*\s*{_LETTER}\s*[.:]?\s*\*\*|__\s*{_LETTER}\s*[.:]?\s*__"
  r"|\*\*\s*\(?[A-J]\s*[).:]\s[^*\n]*\*\*"  # with its text
)
_BOX = re.compile(r"\\f?boxed\s*\{(?:[^{}]|\{[^{}]*\})*\}|####\s*\S+")
_IS = r"(?:is|=|:|should be|must be|would be)"
# What says how good an answer is, and not which it is.
_VERDICT = (
  r"(?:not|never|in)?(?:\s*(?:quite|only|partly|still|also|almost|therefore|thus|in|part)\b)*\s*"
  r"(?:wrong|right|correct|incorrect|sound|unsound|off|close|plausible|implausible|consistent|inconsistent|based|given|reached|derived|"
  r"obtained|found|missing|incomplete|complete|unclear|too|not)\b"
)
_STATED = re.compile(
  rf"\b(?:final|correct|right|true)\s+(?:answer|option|choice|result|value)\s*{_IS}|\bfinal\s+answer\b|\banswer\s*{_IS}(?!\s*{_VERDICT})"
  r"|\b(?:option|choice)\s+\(?[A-J]\)?\s+is\s+(?:right|correct|true)\b",
  re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


def without_answers(text: str, leaks: str = "options") -> str:
  """Removes what gives the answer of a problem away.

  Args:
    leaks: "options", letters of options in boxes or in bold and the sentences that state an answer; "answer", numbers and
      expressions in boxes too; "none", nothing.
  """
  if leaks == "none":
    return " ".join(text.split())
  text = _OPTION.sub("", text)
  if leaks == "answer":
    text = _BOX.sub("", text)
  return " ".join(" ".join(part.split()) for part in _SENTENCE.split(text) if part.strip() and not _STATED.search(part))
