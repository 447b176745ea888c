"""A problem in one message and turn by turn, with the same evidence in each form (CCOPD, arXiv:2605.30251).

    FULL         user: everything, as the problem was written                               what the teacher reads
    CONCAT       user: all turns of the conversation in one message
    RAW          user: the question    assistant: ...    user: a fact    assistant: ...     what the student reads

The assistant's turns are the model's own, see context/canonical.py; context/split_problem.py cuts problems into turns.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from opd_jax.data.chat import Prompt
from opd_jax.data.rendering import with_suffix

Message = dict[str, Any]

# How an assistant and a user claim an answer, where the data do not give the words; these are ours.
CLAIMS = ("The answer is {}.", "I think that the answer is {}.")


class CannotSplit(ValueError):
  """A problem cannot be told turn by turn; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Conversation:
  """One problem in all its forms.

  Attributes:
    full: the prompt that holds everything; text, or messages.
    turns: the user's messages, at least two, which together hold everything.
    answer: "" where there is none.
    where: "file.jsonl:12", for error messages.
    system: messages before the first turn.
    claims: how the assistant and the user claim an answer, which stands for "{}".
  """

  full: Prompt
  turns: tuple[str, ...]
  answer: str = ""
  where: str = ""
  system: tuple[Message, ...] = ()
  claims: tuple[str, str] = CLAIMS

  def with_system(self, system: str) -> "Conversation":
    """Add a system message before everything.

    Raises:
      CannotSplit: it has one.
    """
    if self.system:
      raise CannotSplit("it has a system message of its own, and config.data.system is another")
    first = message("system", system)
    return dataclasses.replace(self, full=(first, *self._full_messages()), system=(first,))

  def with_suffix(self, suffix: str) -> "Conversation":
    """Put a suffix behind the user's last turn, and behind everything where it is told at once."""
    *before, last = self._full_messages()
    full = with_suffix(last["content"], suffix)
    messages = full if isinstance(self.full, str) else (*before, {**last, "content": full})
    return dataclasses.replace(self, full=messages, turns=(*self.turns[:-1], with_suffix(self.turns[-1], suffix)))

  def concat(self) -> tuple[Message, ...]:
    """Join all turns to one message of the user."""
    return (*self.system, message("user", "\n".join(self.turns)))

  def raw(self, replies: Sequence[str]) -> tuple[Message, ...]:
    """The messages of the conversation up to the user's turn behind these replies of the assistant."""
    messages = list(self.system)
    for turn, reply in zip(self.turns, replies, strict=False):
      messages += [message("user", turn), message("assistant", reply)]
    return (*messages, message("user", self.turns[len(replies)]))

  def with_wrong_answer(self, answer: str) -> tuple[Message, ...]:
    """The messages of FULL, a wrong answer as if the assistant had given it, and the question again."""
    return (*self._full_messages(), message("assistant", self.claims[0].format(answer)), message("user", self.turns[0]))

  def with_wrong_hint(self, answer: str) -> tuple[Message, ...]:
    """The messages of FULL, with a wrong hint of the user's at the end of the last."""
    *before, last = self._full_messages()
    return (*before, message("user", f"{last['content']}\n{self.claims[1].format(answer)}"))

  def _full_messages(self) -> tuple[Message, ...]:
    """The messages of FULL."""
    if isinstance(self.full, str):
      return (message("user", self.full),)
    return tuple(dict(m) for m in self.full)


def message(role: str, content: str) -> Message:
  """Make one message of a chat."""
  return {"role": role, "content": content}
