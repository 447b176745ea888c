"""Rewards of responses: a weighted sum of verdicts, and what becomes of responses that a limit cut.

    pending = rewards.submit(responses, answers, lengths, limit)     returns at once; processes begin to verify
    found = pending.result()                                         waits for the verdicts

A response that was cut at the limit has no stop token (`overlong`):

    judge   a verifier gets ended=False and decides; those of the package count an answer that was stated to its end
    wrong   it is 0 of every verifier
    mask    its row is to be left out of the loss (overlong filtering, DAPO, arXiv:2503.14476, section 3.4)
    soft    the reward falls over the last `buffer` tokens before the limit, by `penalty` at the limit (ibid., equation 13)

Dimensions: B responses, V verifiers.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from opd_jax.config import Config
from opd_jax.rewards.pool import VerifierPool
from opd_jax.rewards.verdicts import SOLVED, BatchVerifier, PendingVerdicts, Verdict
from opd_jax.tasks.problem import Response


@dataclasses.dataclass(frozen=True)
class RewardRecord:
  """What responses earn.

  Attributes:
    reward: the weighted sum of the verdicts, less what is taken for length.
    verdicts: of each verifier by its name, 1 and 0 for True and False; the first decides what counts as solved.
    solved: the responses that count as right.
    masked: the rows to leave out of the loss.
    timeouts, errors: how many of a row's verifications ran out of time; how many raised, or ended their process.
    messages: what the first verifier says of each; "" where it says nothing.
  """

  reward: Float[np.ndarray, " B"]
  verdicts: Mapping[str, Float[np.ndarray, " B"]]
  solved: Bool[np.ndarray, " B"]
  masked: Bool[np.ndarray, " B"]
  timeouts: Int[np.ndarray, " B"]
  errors: Int[np.ndarray, " B"]
  messages: Sequence[str]

  def columns(self) -> Float[np.ndarray, "B columns"]:
    """Lay the numbers of a row side by side, for `metrics` of all processes: reward, timeouts, errors, verdicts."""
    return np.stack([self.reward, self.timeouts, self.errors, *self.verdicts.values()], axis=1).astype(np.float32)

  def solved_of(self, columns: Float[np.ndarray, "rows columns"]) -> Bool[np.ndarray, " rows"]:
    """Tell which rows of `columns` count as right, by the first verifier."""
    return columns[:, 3] > SOLVED

  def replaced(self, others: "RewardRecord", source: Int[np.ndarray, " B"]) -> "RewardRecord":
    """Puts rows of another record in the place of rows of this one.

    Args:
      source: for every row the one of `others` that takes its place, or -1.
    """

    def choose(own: np.ndarray, other: np.ndarray) -> np.ndarray:
      return np.where(source >= 0, other[np.maximum(source, 0)], own)

    of_rows = ("reward", "solved", "masked", "timeouts", "errors")
    verdicts = {name: choose(own, others.verdicts[name]) for name, own in self.verdicts.items()}
    chosen: list[int] = source.tolist()
    messages = [own if i < 0 else others.messages[i] for own, i in zip(self.messages, chosen, strict=True)]
    return RewardRecord(
      verdicts=verdicts,
      messages=messages,
      **{name: choose(getattr(self, name), getattr(others, name)) for name in of_rows},
    )

  def metrics(self, columns: Float[np.ndarray, "rows columns"] | None = None) -> dict[str, float | int]:
    """Summarise a step for its record.

    Args:
      columns: of the rows of all processes; None: of this record.
    """
    reward, timeouts, errors, *verdicts = (self.columns() if columns is None else columns).T
    found: dict[str, float | int] = {
      "reward": float(np.mean(reward)),
      "same_reward": bool(np.all(reward == reward[0])),
      "verifier_timeouts": int(timeouts.sum()),
      "verifier_errors": int(errors.sum()),
      "verified": len(reward) * len(self.verdicts),
    }
    if len(verdicts) > 1:
      found |= {f"reward/{name}": float(np.mean(v)) for name, v in zip(self.verdicts, verdicts, strict=True)}
    return found


class Rewards:
  """Verifiers, their weights, and what is done about overlong responses.

  Args:
    verifiers: the first decides what counts as solved.
    weights: one each; (): 1 each.
    overlong: judge, wrong, mask or soft, see above.
    buffer: of soft, tokens.
    penalty: of soft, what a response of the limit's length loses.
  """

  def __init__(
    self,
    verifiers: Sequence[BatchVerifier],
    weights: Sequence[float] = (),
    *,
    overlong: str = "judge",
    buffer: int = 0,
    penalty: float = 1.0,
  ):
    self._verifiers = tuple(verifiers)
    self._weights = tuple(weights) or (1.0,) * len(self._verifiers)
    self._overlong, self._buffer, self._penalty = overlong, buffer, penalty

  @classmethod
  def from_config(cls, config: Config, names: Sequence[str], pool: VerifierPool) -> "Rewards":
    """Look up the verifiers of a config.

    Args:
      names: of the verifiers, "auto" resolved.
      pool: where they run.

    Raises:
      InputError: there is no such verifier; see tasks.verifier.
    """
    c = config.reward
    verifiers = [pool.verifier(name) for name in names]
    return cls(verifiers, c.weights, overlong=c.overlong, buffer=c.overlong_buffer, penalty=c.overlong_penalty)

  def submit(
    self, responses: Sequence[Response], answers: Sequence[str], lengths: Int[np.ndarray, " B"], limit: int
  ) -> "PendingRewards":
    """Begin to verify; returns at once.

    Args:
      answers: the reference of each response.
      lengths: of the responses, tokens, the stop token included.
      limit: the longest that a response could be, tokens.
    """
    pending = [verifier.submit(responses, answers) for verifier in self._verifiers]
    return PendingRewards(self, pending, np.array([r.ended for r in responses], bool), np.asarray(lengths), limit)

  def record(
    self,
    verdicts: Sequence[Sequence[Verdict]],
    ended: Bool[np.ndarray, " B"],
    lengths: Int[np.ndarray, " B"],
    limit: int,
  ) -> RewardRecord:
    """Make the rewards of the verdicts of each verifier; arguments as of `submit`."""
    names = [verifier.name for verifier in self._verifiers]
    values = np.array([[v.value for v in of_one] for of_one in verdicts], np.float64)
    for verifier, of_one in zip(self._verifiers, verdicts, strict=True):
      verifier.tell(of_one)
    solved = np.array([v.solved for v in verdicts[0]], bool)
    if self._overlong == "wrong":
      values, solved = np.where(ended, values, 0.0), solved & ended
    reward = np.asarray(self._weights, np.float64) @ values
    if self._overlong == "soft":
      reward += self._penalty * soft_overlong(lengths, limit, self._buffer)
    return RewardRecord(
      reward=reward.astype(np.float32),
      verdicts=dict(zip(names, values.astype(np.float32), strict=True)),
      solved=solved,
      masked=~ended if self._overlong == "mask" else np.zeros(len(ended), bool),
      timeouts=np.array([[v.timed_out for v in of_one] for of_one in verdicts], np.int32).sum(axis=0, dtype=np.int32),
      errors=np.array([[bool(v.error) for v in of_one] for of_one in verdicts], np.int32).sum(axis=0, dtype=np.int32),
      messages=[v.message for v in verdicts[0]],
    )


@dataclasses.dataclass(frozen=True)
class PendingRewards:
  """Rewards of responses that are perhaps still being verified."""

  rewards: Rewards
  verdicts: Sequence[PendingVerdicts]
  ended: Bool[np.ndarray, " B"]
  lengths: Int[np.ndarray, " B"]
  limit: int

  def result(self) -> RewardRecord:
    """Wait for the verdicts."""
    return self.rewards.record([v.result() for v in self.verdicts], self.ended, self.lengths, self.limit)


def soft_overlong(lengths: Int[np.ndarray, " B"], limit: int, buffer: int) -> Float[np.ndarray, " B"]:
  """Compute the soft punishment of long responses (arXiv:2503.14476, equation 13), in [-1, 0].

  0 up to limit - buffer tokens, then ((limit - buffer) - length) / buffer, which is -1 at the limit.
  """
  over = np.asarray(lengths, np.float64) - (limit - buffer)
  return -np.clip(over / buffer, 0.0, 1.0)
