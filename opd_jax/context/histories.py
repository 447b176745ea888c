"""Conversations that a model has with a user who has written their turns down already.

The model answers turn by turn, all conversations at the same turn in one go; those that are over drop out. The reply to the
last turn is not among them: it is what is trained, or judged.
"""

from collections.abc import Callable, Sequence

from opd_jax.context.chat import Prompt
from opd_jax.context.conversation import Conversation

# (prompts, which turn, the numbers of their conversations) -> a reply to each
Answer = Callable[[Sequence[Prompt], int, Sequence[int]], list[str]]


def converse(conversations: Sequence[Conversation], answer: Answer) -> list[tuple[str, ...]]:
  """The assistant's turns of each conversation, but for the last."""
  replies: list[tuple[str, ...]] = [()] * len(conversations)
  for turn in range(max((len(c.turns) for c in conversations), default=1) - 1):
    going_on = [i for i, c in enumerate(conversations) if len(c.turns) > turn + 1]
    said = answer([conversations[i].raw(replies[i]) for i in going_on], turn, going_on)
    for i, reply in zip(going_on, said, strict=True):
      replies[i] = (*replies[i], reply)
  return replies
