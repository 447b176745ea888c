"""What a generator of problems makes."""

import dataclasses
from typing import Protocol


@dataclasses.dataclass(frozen=True)
class Problem:
  prompt: str
  answer: str
  solution: str  # the response of somebody who knows (or half-knows) the facts
  turns: tuple[str, ...] = ()  # of a task that can be told turn by turn: what the user says, the question first
  claims: tuple[str, str] | None = None  # how an answer, "{}", is claimed there by the assistant and by the user


class Task(Protocol):
  """A generator and a verifier of problems."""

  @property
  def name(self) -> str: ...

  @property
  def max_response(self) -> int:
    """Tokens of the longest right response, its stop token included."""
    ...

  def problems(self, n: int, seed: int, held_out: bool = False) -> list[Problem]: ...

  def verify(self, response: str, answer: str) -> bool: ...
