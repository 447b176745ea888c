"""What became of a run's updates, and of an evaluation's answers, that other numbers do not show.

Updates are counted step by step, kept in checkpoints and in run.json, and reported when the run ends.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from opd_jax.runtime.json_files import is_whole

CUT = 0.1  # the share of cut answers from which on their limit is part of what an accuracy measures


@dataclasses.dataclass
class Outcome:
  """Steps of a run by what they did to the weights; all of its sessions together."""

  steps: int = 0
  updated: int = 0  # steps that moved the weights
  skipped: int = 0  # of which a NaN or Inf kept an update from being made
  empty: int = 0  # updates that were left out, since the gradient was exactly zero
  at_once: int = 0  # whose rollouts all ended with their first token
  same_reward: int = 0  # whose rollouts all had the same reward, so that none was better than another
  no_teaching_group: int = 0  # in which the rollouts of each prompt all earned the same
  verified: int = 0  # verifications, of every rollout one by each verifier
  not_verified: int = 0  # of these, those that timed out or raised

  @classmethod
  def of_checkpoint(cls, position: dict[str, Any]) -> "Outcome":
    """Restores the counts; of a checkpoint from before there were any, the steps are taken to have moved the weights."""
    return cls(**position.get("outcome", {"steps": position["step"], "updated": position["step"]}))

  @classmethod
  def is_saved(cls, counts: Any) -> bool:
    """Tells whether counts are what a checkpoint has of them: some of these, and whole numbers."""
    known = {field.name for field in dataclasses.fields(cls)}
    return isinstance(counts, dict) and counts.keys() <= known and all(is_whole(n, most=2**62) for n in counts.values())

  def count(self, learned: dict[str, Any]) -> None:
    """Counts a step by its metrics, see recipes/base.py, and takes out those that are not logged: updated, same_reward, verified."""
    skipped = bool(learned.get("skipped"))
    self.steps += 1
    self.updated += learned.pop("updated", not skipped) > 0
    self.skipped += skipped
    self.empty = learned.get("empty", 0)
    self.at_once += learned.get("response_length", 2.0) <= 1
    by_mean = learned.get("reward") in (0.0, 1.0) and not learned.get("teaching_groups")
    self.same_reward += learned.pop("same_reward", by_mean)
    self.no_teaching_group += learned.get("teaching_groups") == 0
    self.verified += learned.pop("verified", 0)
    self.not_verified += learned.get("verifier_timeouts", 0) + learned.get("verifier_errors", 0)

  @property
  def learned_nothing(self) -> bool:
    """True where steps were made, and none of them moved the weights."""
    return self.steps > 0 and not self.updated

  def lines(self) -> Iterator[str]:
    """Says what the last step's numbers do not show; nothing of a run in which all went well."""
    if self.learned_nothing:
      yield f"nothing was learned: in {self.steps} steps every update was {self._why()}"
    else:
      if self.skipped:
        yield f"{self.skipped} of {self.steps} steps skipped an update, because of a NaN or Inf"
      if self.empty:
        yield f"{self.empty} updates were left out, because the gradient was exactly zero"
    if self.at_once:
      yield f"in {self.at_once} of {self.steps} steps every rollout ended with its first token: there was nothing to learn from"
    yield from self.reward_lines()

  def reward_lines(self) -> Iterator[str]:
    """Says why a reward taught nothing, where it did not."""
    if self.steps and self.no_teaching_group == self.steps:
      yield (
        f"no group ever taught: in {self.steps} steps all rollouts of each prompt earned the same; take prompts that are "
        "solved now and then, raise rollouts_per_prompt, or look at samples and data.verifier"
      )
    elif self.steps and self.same_reward == self.steps:
      yield "all rollouts of every step had the same reward: mixture.reward taught nothing; look at samples and data.verifier"
    if 2 * self.not_verified > self.verified:
      yield (
        f"{self.not_verified} of {self.verified} verifications timed out or raised, and count as not solved: try "
        "the verifier on responses of samples.jsonl, or give it more time"
      )

  def _why(self) -> str:
    zero = "left out, since the gradient was exactly zero: no token counts, or all rollouts of a prompt earn the same"
    if not self.skipped:
      return zero
    not_finite = (
      "skipped, because of a NaN or Inf in the loss, the gradient or the new weights: lower config.optimizer.lr"
    )
    return not_finite if not self.empty else f"either {not_finite}; or {zero}"


def answers_cut(record: dict[str, Any]) -> str:
  """Says of an evaluation's record how many answers its limit cut, and what to raise; "" where they are few."""
  of = record["k"] * record["prompts"]
  cut = round((1 - record["ended"]) * of)
  found = []
  if cut > CUT * of:
    found.append(f"{cut} of {of} answers were cut at {record['length']['max']} tokens: raise eval.max_tokens")
  if (replies := record.get("replies_cut", 0)) > CUT:
    found.append(f"{replies:.0%} of the earlier replies were cut: raise context.turn_tokens")
  return "; ".join(found)
