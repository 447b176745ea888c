"""A problem with its answer and solution, and what a built-in task has to offer."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable


class Response(NamedTuple):
  """A response as a verifier is given it."""

  text: str  # with the marks of its thoughts, without what ended it
  ended: bool = True  # by a stop token; False: a limit cut it
  prompt: str = ""  # the end of what it goes on from, where a chat template may have opened a thought
  record: Mapping[str, Any] | None = None  # of its problem, where a verifier takes it


@runtime_checkable
class Verifier(Protocol):
  """Tells whether a response's answer is the right one."""

  def __call__(self, response: str, answer: str, *, ended: bool = True, prompt: str = "") -> bool | float:
    """Verify a response against the reference `answer`; for the other arguments see `Response`.

    A number is a reward; evaluations count the response as right where it is above one half.
    """
    ...


@runtime_checkable
class AnswerExtractor(Protocol):
  """Finds the answer that a response claims, right or wrong."""

  def __call__(self, response: str, *, ended: bool = True, prompt: str = "") -> str | None:
    """Return the claimed answer, or None; for the arguments see `Response`."""
    ...


@dataclasses.dataclass(frozen=True)
class Problem:
  """A problem of a built-in task.

  Attributes:
    solution: the response of somebody who knows, or half-knows, the facts.
    turns: the user's messages, the question first, where the task can be told turn by turn.
    claims: how the assistant and the user claim an answer there, which stands for "{}".
    domain: of several in one task, by which evaluations count too; "" where it has one.
    image: a picture that the prompt is about, as the file's bytes; `box` the region of it, left, top, right and bottom in pixels.
  """

  prompt: str
  answer: str
  solution: str
  turns: tuple[str, ...] = ()
  claims: tuple[str, str] | None = None
  domain: str = ""
  image: bytes = b""
  box: tuple[int, int, int, int] | None = None


@runtime_checkable
class Task(Protocol):
  """A generator and a verifier of problems."""

  @property
  def name(self) -> str: ...

  @property
  def max_response(self) -> int:
    """The number of tokens of the longest right response, its stop token included."""
    ...

  def problems(self, n: int, seed: int, held_out: bool = False) -> list[Problem]:
    """Draw n problems from the training or the held-out part, the same for the same arguments."""
    ...

  def verify(self, response: str, answer: str, *, ended: bool = True, prompt: str = "") -> bool:
    """Tell whether the response's answer is `answer`; for the other arguments see `Response`."""
    ...
