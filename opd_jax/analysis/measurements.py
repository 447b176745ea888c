"""What student and teacher make of a student's answers, token by token, and what would have been right there.

What is right at a position depends on what was written before it: after a wrong result the right symbols are those of
somebody who takes it for granted (`tasks.chain.Chain.right`). A prefix with a mistake in it is *off the path*; the
mistake itself still stands on the path.

Dimensions: N problems, H response positions.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from opd_jax.tasks import chain


@dataclasses.dataclass(frozen=True)
class Measurements:
  """Measurements of one answer to every problem.

  Nats and log-probabilities are at temperature 1, and 0 outside the mask.
  """

  response: Int[np.ndarray, "N H"]  # token ids, pad after the last
  mask: Bool[np.ndarray, "N H"]  # up to and including the stop token
  correct: Bool[np.ndarray, " N"]  # by the task's verifier
  kl: Float[np.ndarray, "N H"]  # KL(student || teacher), full vocabulary
  forward_kl: Float[np.ndarray, "N H"]  # KL(teacher || student), full vocabulary
  student_entropy: Float[np.ndarray, "N H"]
  teacher_entropy: Float[np.ndarray, "N H"]
  logprob: Float[np.ndarray, "N H"]  # log s(y) of the drawn token
  teacher_logprob: Float[np.ndarray, "N H"]  # log t(y)
  known: Bool[np.ndarray, "N H"]  # the format has not been left before: there is a right symbol
  right: Bool[np.ndarray, "N H"]  # the drawn token is it; false where not known
  student_right: Float[np.ndarray, "N H"]  # log s(right symbol); NaN where not known
  teacher_right: Float[np.ndarray, "N H"]  # log t(right symbol); NaN where not known
  decisive: Bool[np.ndarray, "N H"]  # something has to be known: the right symbol is a result digit or a letter
  off_path: Bool[np.ndarray, "N H"]  # an earlier symbol of the row was wrong, given what was written before it
  overlap: Float[np.ndarray, "N H"] | None = None  # of the top log.overlap_k; None where that is 0

  @property
  def length(self) -> Int[np.ndarray, " N"]:
    """Tokens of each response, its stop token included."""
    return self.mask.sum(axis=1)

  @property
  def log_ratio(self) -> Float[np.ndarray, "N H"]:
    """The reward r = log t(y) - log s(y) of a drawn token (arXiv:2605.31490); 0 outside the mask."""
    return self.teacher_logprob - self.logprob


class Truth(NamedTuple):
  """The right symbol at every token of some answers, as the task's oracle knows it."""

  token: Int[np.ndarray, "N H"]  # id of the right symbol; 0 where not known
  known: Bool[np.ndarray, "N H"]
  right: Bool[np.ndarray, "N H"]
  decisive: Bool[np.ndarray, "N H"]
  off_path: Bool[np.ndarray, "N H"]


def truth(
  task: chain.Chain,
  prompts: Sequence[str],
  response: Int[np.ndarray, "N H"],
  mask: Bool[np.ndarray, "N H"],
  ids: Mapping[str, int],
) -> Truth:
  """Ask the task's oracle what would have been right at every token.

  Args:
    prompts: of the N problems.
    ids: token ids of the task's symbols; a token that is none of them leaves the format.
  """
  symbols = {ids[s]: s for s in chain.SYMBOLS}
  token = np.zeros(mask.shape, np.int32)
  known, decisive = np.zeros(mask.shape, bool), np.zeros(mask.shape, bool)
  for row, prompt in enumerate(prompts):
    written = [symbols.get(int(t), chain.PAD) for t in response[row, mask[row]]]
    expected = task.right(prompt, written)
    token[row, : len(expected)] = [ids[s] for s in expected]
    known[row, : len(expected)] = True
    decisive[row, : len(expected)] = [
      now in chain.LETTERS or (now.isdigit() and before == "=")
      for before, now in zip(["", *expected], expected, strict=False)
    ]
  right = known & (token == response)
  wrong = mask & ~right
  off_path = mask & (np.cumsum(wrong, axis=1) > wrong)
  return Truth(token, known, right, decisive, off_path)


def survivors(measured: Measurements, tokens: int) -> Bool[np.ndarray, " N"]:
  """Select the rows that have at least so many tokens: the same ones at every position below.

  Late positions hold long responses only. A mean over all rows that are still there mixes that selection with what the
  position itself does; over survivors it does not.
  """
  return measured.length >= tokens
