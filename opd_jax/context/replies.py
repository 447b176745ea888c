"""How a reply that a model generated stands in its conversation.

Thoughts are left to the chat template, which drops or keeps them. One that was cut has no end for the template to find: it goes the
way of the others, so that a conversation never reads half a thought as an answer.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from opd_jax.data import chat
from opd_jax.data.rendering import Message, Rendering
from opd_jax.tasks import thoughts
from opd_jax.tasks.problem import Response


@dataclasses.dataclass(frozen=True)
class ReplyForm:
  """What becomes of a reply's thoughts and control tokens under one tokenizer and its chat template.

  Attributes:
    dropped: opening marks of the thoughts that the template leaves out of an earlier turn.
    refused: opening marks of those that it does not take within a turn's text.
    control: special tokens, without the marks of thoughts.
  """

  dropped: frozenset[str]
  refused: frozenset[str]
  control: tuple[str, ...]

  @classmethod
  def of(cls, tokenizer: Any, rendering: Rendering, opening: Sequence[Message] = ()) -> "ReplyForm":
    """Find out what the template does by rendering turns with a thought.

    Args:
      opening: the messages that stand before a conversation's first turn, where there are any.
    """
    shown = {mark: chat.shows_thought(tokenizer, mark, closing, rendering, opening) for mark, closing in thoughts.MARKS}
    return cls(
      frozenset(mark for mark, how in shown.items() if how == "dropped"),
      frozenset(mark for mark, how in shown.items() if how == "refused"),
      control_tokens(tokenizer),
    )

  def turn(self, response: Response) -> tuple[str, bool]:
    """Make the assistant's turn of a generated reply; returns its text, and whether its thought was cut.

    The mark with which the prompt opened a thought is put back, so that the template finds it. Control tokens that the model
    wrote are left out: in a conversation they would end turns and begin others.
    """
    text = without(self.control, thoughts.opened_by(response.prompt) + response.text)
    opening, before = thoughts.unclosed(text)
    if self.refused & thoughts.kinds(text):
      return thoughts.conclusion(text) or "", bool(opening)
    return before if opening in self.dropped else text, bool(opening)


def control_tokens(tokenizer: Any) -> tuple[str, ...]:
  """The special tokens of a tokenizer that are no marks of thoughts, longest first."""
  marks = [mark for pair in thoughts.MARKS for mark in pair]
  added = getattr(tokenizer, "added_tokens_decoder", {}).values()
  special = {str(token) for token in added if token.special} | set(tokenizer.all_special_tokens)
  found = (token for token in special if token and not any(token in mark for mark in marks))
  return tuple(sorted(found, key=lambda token: (-len(token), token)))


def without(control: tuple[str, ...], text: str) -> str:
  """Remove tokens from a text, also those that removing others joins."""
  pattern = re.compile("|".join(map(re.escape, control)) or r"(?!)")
  while (removed := pattern.sub("", text)) != text:
    text = removed
  return text


def final_text(response: Response, control: tuple[str, ...]) -> str:
  """The text of a whole response behind its thoughts, without control tokens; "" where a limit cut it."""
  text = thoughts.conclusion(response.text, response.prompt) if response.ended else None
  return without(control, text or "")
