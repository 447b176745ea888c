"""Contexts that are made of rollouts: to each response of a group, what the others found and what was said of it (SDPO).

    demonstration   the group's first right response, but never the row's own (unless `own`): its text behind the thoughts
    feedback        what the verifier said of the row's own response

A row to which neither applies gets no context, and teaches nothing.

Dimensions: p prompts, n rollouts of each, B = p n rows; a prompt's rollouts stand together.
"""

import dataclasses
from collections.abc import Sequence

from opd_jax.config import Config

FEEDBACK = ("none", "without_demonstration", "always")


@dataclasses.dataclass(frozen=True)
class Feedback:
  """What a row's teacher is told.

  Attributes:
    demonstration: whether it is shown a right response of the group.
    own: whether that may be the row's own.
    feedback: one of FEEDBACK: when it is told what was said of the response.
  """

  demonstration: bool = True
  own: bool = False
  feedback: str = "without_demonstration"

  @classmethod
  def from_config(cls, config: Config) -> "Feedback":
    """Read the keys of a config."""
    c = config.context
    return cls(c.demonstration, c.own, c.feedback)

  def of_group(self, texts: Sequence[str], solved: Sequence[bool], said: Sequence[str]) -> list[tuple[str, str]]:
    """Choose the demonstration and the feedback of each row of a group; "" for what it is not given.

    Args:
      texts: what each response says behind its thoughts; "" where it says nothing.
      solved: which are right.
      said: what was said of each; "" for nothing.
    """
    shown = []
    for row, comment in enumerate(said):
      right = (i for i, good in enumerate(solved) if good and texts[i] and (self.own or i != row))
      demonstration = texts[i] if self.demonstration and (i := next(right, None)) is not None else ""
      told = self.feedback == "always" or (self.feedback == "without_demonstration" and not demonstration)
      shown.append((demonstration, comment if told else ""))
    return shown
