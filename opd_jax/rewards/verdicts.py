"""One verifier and many responses: verdicts, whatever the verifier does.

A verifier that raises, hangs or takes its process down costs the one answer that it was about: that one is wrong, and counted.
"""

import abc
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from opd_jax.errors import first_line
from opd_jax.tasks import own
from opd_jax.tasks.problem import Response, Verifier

SOLVED = 0.5  # a verdict above it counts as right: of True and False, of 1 and 0, of 1 and -1
LARGEST = 1e30  # of a number that a verifier returns: its weighted sums are still float32


class Verdict(NamedTuple):
  """What a verifier said of one response, or what became of it."""

  value: float = 0.0  # 1 and 0 for True and False
  timed_out: bool = False
  error: str = ""  # what it raised, or how its process ended; "" where it returned
  message: str = ""  # what it says of the response, beside the number

  @property
  def solved(self) -> bool:
    """Whether the response counts as right."""
    return self.value > SOLVED


@runtime_checkable
class PendingVerdicts(Protocol):
  """Verdicts that are perhaps still being made."""

  def result(self) -> list[Verdict]:
    """Wait for all of them; one for each response, in order."""
    ...


class BatchVerifier(abc.ABC):
  """A `Verifier`, which also takes many responses at once."""

  def __init__(self, name: str):
    self.name = name
    self._told = False

  @abc.abstractmethod
  def submit(self, responses: Sequence[Response], answers: Sequence[str]) -> PendingVerdicts:
    """Begin to verify each response against its answer; returns at once."""

  def __call__(
    self,
    response: str,
    answer: str,
    *,
    ended: bool = True,
    prompt: str = "",
    record: Mapping[str, Any] | None = None,
  ) -> bool:
    """Tell whether one response counts as right; for the arguments see `Verifier` and `Response`."""
    return self.submit([Response(response, ended, prompt, record)], [answer]).result()[0].solved

  def tell(self, verdicts: Sequence[Verdict]) -> None:
    """Print what the first of its failures was, once."""
    error = next((v.error for v in verdicts if v.error), "")
    if error and not self._told:
      self._told = True
      print(f"note: the verifier {self.name!r} failed on a response, which counts as wrong ({error})", file=sys.stderr)


class InProcess(BatchVerifier):
  """A verifier that runs in this process, when its verdicts are asked for."""

  def __init__(self, name: str, verify: Verifier):
    super().__init__(name)
    self._verify = verify

  def submit(self, responses: Sequence[Response], answers: Sequence[str]) -> PendingVerdicts:
    return _Deferred(self._verify, list(zip(responses, answers, strict=True)))


class _Deferred(NamedTuple):
  verify: Verifier
  pairs: list[tuple[Response, str]]

  def result(self) -> list[Verdict]:
    return [verdict(self.verify, *pair) for pair in self.pairs]


def batched(verify: Verifier) -> BatchVerifier:
  """Return a verifier as one that takes many responses at once; a plain one runs in this process."""
  return verify if isinstance(verify, BatchVerifier) else InProcess(getattr(verify, "__name__", "verify"), verify)


def verdict(verify: Verifier, response: Response, answer: str) -> Verdict:
  """Call a verifier once; what it raises becomes a verdict. It returns a number, or a pair of a number and a message."""
  more = {"record": response.record} if own.reads_record(verify) else {}
  try:
    value = verify(response.text, answer, ended=response.ended, prompt=response.prompt, **more)
    message = ""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], str):
      value, message = value
    if value is None or isinstance(value, (str, bytes)):
      raise TypeError(f"the verifier returned {value!r}, which is neither True, False nor a number")
    value = float(value)
    if not math.isfinite(value) or abs(value) > LARGEST:
      raise ValueError(f"the verifier returned {value}")
    return Verdict(value, message=message)
  except (Exception, SystemExit) as e:
    return Verdict(error=f"{type(e).__name__}: {first_line(e)}")
