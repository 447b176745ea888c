"""A step with prompts of the data and reformulated ones, which are made of the rollouts of the first: its credit and its record.

Whatever is counted of the prompts of the data is of their plain rollouts alone. The prompts come in the order of an update's places
(places.py): the new ones, those that are visited again, those that are reformulated.

Dimensions: s places for prompts, n rollouts of each.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from opd_jax.context.reformulate import Reformulated
from opd_jax.objectives import advantage as advantages
from opd_jax.tasks.problem import Response
from opd_jax.training.verification import VerifiedResponses
from opd_jax.types import Credit

PROMPTS = {"bcq": "prompts_bcq", "ncq": "prompts_ncq", "hint": "prompts_hint", "prefix": "prompts_prefix"}
REPEATS = {
  "bcq": {"right": "bcq_repeats_right", "wrong": "bcq_repeats_wrong"},
  "ncq": {"wrong": "ncq_repeats_wrong"},
}
SUMMED = ("verifier_timeouts", "verifier_errors", "verified")


class AugmentedStep(NamedTuple):
  """What a step has beside the rollouts that are learned from; the same on every process.

  Attributes:
    questions: numbers of the prompts of the data, the new ones first.
    new: how many of them are.
    n: rollouts of each prompt.
    plain: their rollouts.
    asked: the prompts that are reformulated.
    of_asked: their rollouts; None: there are no such prompts.
    counts: what else is recorded of how they were made.
  """

  questions: list[int]
  new: int
  n: int
  plain: VerifiedResponses
  asked: list[Reformulated]
  of_asked: VerifiedResponses | None
  counts: dict[str, Any]

  @property
  def judged(self) -> list[VerifiedResponses]:
    """All responses, in the order of an update's places."""
    return [self.plain] if self.of_asked is None else [self.plain, self.of_asked]

  def credit(self, kind: str, places: int) -> Credit:
    """Makes the credit of all places, on the host: of each group by itself, and none of the empty places.

    Args:
      kind: of the advantage, see objectives/advantage.py.
    """
    n = self.n
    advantage, counted = np.zeros(places * n, np.float32), np.zeros(places * n, bool)
    reward = np.concatenate([each.reward for each in self.judged])
    advantage[: len(reward)] = advantages.of_rewards(kind, reward, n)
    counted[: len(reward)] = ~np.concatenate([each.masked for each in self.judged])
    return Credit(advantage, counted)  # pyright: ignore[reportArgumentType]: numpy

  def solved_counts(self) -> list[int]:
    """Returns how many plain rollouts of each prompt of the data are right."""
    return self.plain.solved.reshape(-1, self.n).sum(axis=1).tolist()

  def metrics(
    self, places: int, kinds: Sequence[str], claim: Callable[[Response], str], of_teacher: Mapping[str, Any]
  ) -> dict[str, Any]:
    """Makes the step's metrics; rewards and solve rates are of the new prompts as they are.

    Args:
      places: of the update.
      kinds: of reformulations, that the run has.
      claim: returns the answer that a response claims, "" for none.
      of_teacher: what the record has of the teacher itself.
    """
    n, plain, judged = self.n, self.plain, self.judged
    new = self.new * n
    reward = np.concatenate([each.reward for each in judged])
    ended = np.mean([response.ended for each in judged for response in each.responses])
    tokens = {
      "plain_tokens": plain.tokens,
      "reformulated_tokens": self.of_asked.tokens if self.of_asked else 0,
      "teacher_tokens": self.counts.get("teacher_tokens", 0),
      "compression_tokens": self.counts.get("compression_tokens", 0),
    }
    found = plain.summary | {name: sum(each.summary[name] for each in judged) for name in SUMMED}
    found |= {
      "reward": float(plain.reward[:new].mean()),
      "same_reward": bool(np.all(reward == reward[0])),
      "teaching_groups": float(advantages.teaches(reward, n).mean()),
      "groups_by_solve_rate": np.bincount(plain.solved[:new].reshape(-1, n).sum(axis=1), minlength=n + 1).tolist(),
      "replayed": len(self.questions) - self.new,
      "empty_places": places - len(reward) // n,
      "response_length": sum(each.tokens for each in judged) / len(reward),
      "ended": float(ended),
      "cut": float(1 - ended),
      "step_tokens": sum(tokens.values()),
    }
    if self.new < len(self.questions):
      found["reward_replayed"] = float(plain.reward[new:].mean())
    return found | self.counts | tokens | dict(of_teacher) | self._metrics_of_asked(kinds, claim)

  def _metrics_of_asked(self, kinds: Sequence[str], claim: Callable[[Response], str]) -> dict[str, Any]:
    """Counts what becomes of reformulated prompts: what they earn, and how often a response repeats a candidate's answer."""
    n = self.n
    found: dict[str, Any] = {PROMPTS[kind]: sum(each.kind == kind for each in self.asked) for kind in kinds}
    if self.of_asked is None:
      return found
    claims = list(map(claim, self.of_asked.responses))
    reward = self.of_asked.reward.reshape(-1, n)
    for kind in (kind for kind in kinds if found[PROMPTS[kind]]):
      groups = [i for i, each in enumerate(self.asked) if each.kind == kind]
      repeats = [self.asked[i].repeats(claims[i * n : i * n + n]) for i in groups]
      found[f"reward_{kind}"] = float(reward[groups].mean())
      found[f"teaching_{kind}"] = float(advantages.teaches(reward[groups].reshape(-1), n).mean())
      for which, name in REPEATS.get(kind, {}).items():
        found[name] = float(np.mean([each[which] for each in repeats]))
    return found
