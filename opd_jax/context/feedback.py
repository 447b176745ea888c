"""Contexts that are made of rollouts: for each response of a group a demonstration by another one, and feedback on it (SDPO).

    demonstration   the group's first right response, but never the row's own (unless `own`): its text behind the thoughts
    feedback        the verifier's comment on the row's own response

A row to which neither applies gets no context, and teaches nothing.

Dimensions: p prompts, n rollouts of each, B = p n rows; a prompt's rollouts stand together.
"""

import dataclasses
from collections.abc import Sequence

from opd_jax.config import Config

FEEDBACK = ("none", "without_demonstration", "always")


@dataclasses.dataclass(frozen=True)
class Feedback:
  """What a row's teacher is shown.

  Attributes:
    demonstration: whether it is shown a right response of the group.
    own: whether that may be the row's own.
    feedback: one of FEEDBACK: when it is shown the comment on the response.
  """

  demonstration: bool = True
  own: bool = False
  feedback: str = "without_demonstration"

  @classmethod
  def from_config(cls, config: Config) -> "Feedback":
    """Read the keys of a config."""
    c = config.context
    return cls(c.demonstration, c.own, c.feedback)

  def of_group(self, texts: Sequence[str], solved: Sequence[bool], comments: Sequence[str]) -> list[tuple[str, str]]:
    """Choose the demonstration and the feedback of each row of a group; "" for what it is not given.

    Args:
      texts: what each response says behind its thoughts; "" where it says nothing.
      solved: which are right.
      comments: on each response; "" for none.
    """
    shown = []
    for row, comment in enumerate(comments):
      right = (i for i, good in enumerate(solved) if good and texts[i] and (self.own or i != row))
      demonstration = texts[i] if self.demonstration and (i := next(right, None)) is not None else ""
      with_comment = self.feedback == "always" or (self.feedback == "without_demonstration" and not demonstration)
      shown.append((demonstration, comment if with_comment else ""))
    return shown
