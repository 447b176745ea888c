"""The same evidence at once and turn by turn (CCOPD, arXiv:2605.30251).

    FULL         user: everything, as the problem was written                               what the teacher reads
    CONCAT       user: all turns of the conversation in one message
    RAW          user: the question    assistant: ...    user: a fact    assistant: ...     what the student reads

The assistant's turns are the model's own, see histories.py.
"""

import dataclasses
import re
import zlib
from collections.abc import Sequence
from typing import Any

from opd_jax.context.chat import Prompt
from opd_jax.context.shards import Unfit, shard
from opd_jax.data.sources import Example

Message = dict[str, Any]

LEADS = (  # ours: what a user says around a fact; "{}" is the fact
  "{}",
  "Also: {}",
  "One more thing: {}",
  "I forgot to say: {}",
  "Here is something else: {}",
  "To add to that: {}",
)
GOES_ON = re.compile(r"(and|but|so|then|also|next|finally)\b", re.IGNORECASE)  # a fact that needs no lead

# Ours: how an answer is claimed by an assistant and by a user, where the data do not say it otherwise.
CLAIMS = ("The answer is {}.", "I think that the answer is {}.")


@dataclasses.dataclass(frozen=True)
class Conversation:
  """One problem.

  Attributes:
    full: the prompt that says everything; text, or messages.
    turns: what the user says, at least two; after the last of them everything has been said.
    system: messages before the first turn.
    answer: "" where there is none.
    where: "file.jsonl:12", for error messages.
  """

  full: Prompt
  turns: tuple[str, ...]
  answer: str = ""
  where: str = ""
  system: tuple[Message, ...] = ()
  claims: tuple[str, str] = CLAIMS

  def under(self, system: str) -> "Conversation":
    """With a system message before everything.

    Raises:
      Unfit: it has one.
    """
    if self.system:
      raise Unfit("it has a system message of its own, and config.data.system is another")
    first = _said("system", system)
    return dataclasses.replace(self, full=(first, *self._all()), system=(first,))

  def concat(self) -> tuple[Message, ...]:
    """All turns in one message of the user."""
    return (*self.system, _said("user", "\n".join(self.turns)))

  def raw(self, replies: Sequence[str]) -> tuple[Message, ...]:
    """The conversation up to the user's turn after these replies of the assistant."""
    messages = list(self.system)
    for turn, reply in zip(self.turns, replies, strict=False):
      messages += [_said("user", turn), _said("assistant", reply)]
    return (*messages, _said("user", self.turns[len(replies)]))

  def misled(self, answer: str) -> tuple[Message, ...]:
    """Everything at once, a wrong answer as if the assistant had given it, and the question again."""
    return (*self._all(), _said("assistant", self.claims[0].format(answer)), _said("user", self.turns[0]))

  def hinted(self, answer: str) -> tuple[Message, ...]:
    """Everything at once, with a wrong hint of the user's behind it."""
    *before, last = self._all()
    return (*before, _said("user", f"{last['content']}\n{self.claims[1].format(answer)}"))

  def _all(self) -> tuple[Message, ...]:
    return (_said("user", self.full),) if isinstance(self.full, str) else tuple(dict(m) for m in self.full)


def _said(role: str, content: str) -> Message:
  return {"role": role, "content": content}


def from_example(example: Example, user: str = "templates", max_turns: int = 0) -> Conversation:
  """A problem as a conversation; of a task that tells it turn by turn, as it is.

  Text, or messages of which one is the user's, are cut into shards. Messages of several users' turns are a
  conversation already: its assistant turns are left out, since the student gives its own, and what says everything is
  `example.canonical`, or all turns as one.

  Args:
    user: "templates" or "plain", see config.context.user.
    max_turns: of the user; 0: no limit.

  Raises:
    Unfit: it cannot be told turn by turn.
  """
  if example.turns:
    claims = example.claims or CLAIMS
    return Conversation(example.prompt, example.turns, example.answer, example.where, claims=claims)
  turns, system = [], ()
  if isinstance(example.prompt, str):
    turns = [example.prompt]
  else:
    system = tuple(dict(m) for m in example.prompt if m["role"] in ("system", "developer"))
    turns = [m["content"] for m in example.prompt if m["role"] == "user"]
    if any(m["role"] == "tool" for m in example.prompt):
      raise Unfit("a tool's message, which a new conversation would not have")
  if not turns:
    raise Unfit("no turn of the user")
  if len(turns) > 1:
    full = (*system, _said("user", example.canonical or "\n".join(turns)))
    return Conversation(full, tuple(turns), example.answer, example.where, system)
  text = turns[0]
  cut = shard(text, max_turns and max_turns - 1).turns
  told = cut if user == "plain" else tuple(phrase(turn, i, text) for i, turn in enumerate(cut))
  return Conversation(example.prompt, told, example.answer, example.where, system)


def phrase(turn: str, index: int, seed: str) -> str:
  """A shard as a sentence, with words around it that a user might say; the same for the same problem.

  Args:
    index: of the turn; the first, the question, stands alone.
    seed: chooses the words.
  """
  text = re.sub(r"\s+", " ", turn).strip()
  if text[-1] in ",;:":
    text = f"{text[:-1]}."
  text = text[:1].upper() + text[1:]
  alone = not index or GOES_ON.match(text)
  lead = "{}" if alone else LEADS[zlib.crc32(f"{seed} {index}".encode()) % len(LEADS)]
  return lead.format(text)
