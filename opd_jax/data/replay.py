"""A buffer of questions that a student does not solve yet, visited again until it does (ZPPO, arXiv:2606.18216).

    admit      a question whose plain rollouts earn less than tau on average
    graduate   one of the buffer whose plain rollouts earn tau or more
    evict      the oldest, where there are more than `capacity`

It has questions alone, as their numbers in the training data: rollouts and what a teacher wrote are made anew at each visit. How old a
question is says its first admission: one that is admitted while it is there keeps its age, so that visits do not save it from eviction
(ours; the paper does not say). One that has left and comes back is new.

A tier is how many of its plain rollouts were right when a question entered.
"""

import collections
import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from opd_jax.runtime.json_files import is_whole

COUNTS = ("entered", "graduated", "evicted", "visits")  # of a tier, since the run began


@dataclasses.dataclass
class Entry:
  """A question in the buffer.

  Attributes:
    question: its number in the training data.
    admission: how many were admitted before it.
    visits: how often its plain rollouts were seen since.
    tier: how many of them were right when it entered.
  """

  question: int
  admission: int
  visits: int
  tier: int


class Event(NamedTuple):
  """A question enters or leaves the buffer.

  Attributes:
    kind: entered, graduated or evicted.
    question, tier, visits: as of `Entry`.
  """

  kind: str
  question: int
  tier: int
  visits: int


class Replay:
  """The buffer, and what has become of the questions of each tier.

  Args:
    capacity: most questions.
    tau: the mean reward from which a question counts as mastered.
    tiers: how many tiers there are, one more than rollouts of a prompt.

  Attributes:
    entries: by question, the oldest first.
    history: of each tier the numbers of COUNTS.
  """

  def __init__(self, capacity: int, tau: float, tiers: int):
    self.capacity, self.tau = capacity, tau
    self.entries: dict[int, Entry] = {}
    self.history: list[dict[str, int]] = [dict.fromkeys(COUNTS, 0) for _ in range(tiers)]
    self._admitted = 0

  def __len__(self) -> int:
    return len(self.entries)

  def draw(self, n: int, rng: np.random.Generator, without: Collection[int] = ()) -> list[int]:
    """Draws questions uniformly, each at most once; fewer than n where there are fewer.

    Args:
      without: questions that are not drawn, such as those of the step already.
    """
    there = [question for question in self.entries if question not in without]
    return [there[i] for i in rng.permutation(len(there))[:n]]

  def observe(
    self,
    questions: Sequence[int],
    rates: Sequence[float],
    tiers: Sequence[int],
    rng: np.random.Generator | None = None,
  ) -> list[Event]:
    """Admits, graduates and evicts by what the plain rollouts of a step earned.

    Args:
      questions: of the step; one that stands there several times counts by the mean of its rates, and its first tier.
      rates: the mean reward of each one's rollouts.
      tiers: how many of them were right.
      rng: a control: as many of the questions that were visited graduate as have earned it, but these are chosen at random.
    """
    of_question: dict[int, list[float]] = {}
    tier_of: dict[int, int] = {}
    for question, rate, tier in zip(questions, rates, tiers, strict=True):
      of_question.setdefault(question, []).append(rate)
      tier_of.setdefault(question, tier)
    mastered = {question: float(np.mean(found)) >= self.tau for question, found in of_question.items()}
    visited = [question for question in of_question if question in self.entries]
    leaving = [question for question in visited if mastered[question]]
    if rng is not None:
      leaving = [visited[i] for i in rng.permutation(len(visited))[: len(leaving)]]
    for question in visited:
      self.entries[question].visits += 1
      self.history[self.entries[question].tier]["visits"] += 1
    events = [self._leave("graduated", question) for question in leaving]
    for question in of_question:
      if not mastered[question] and question not in visited:
        events.append(self._enter(question, tier_of[question]))
    while len(self.entries) > self.capacity:
      events.append(self._leave("evicted", next(iter(self.entries))))
    return events

  def _enter(self, question: int, tier: int) -> Event:
    self.entries[question] = Entry(question, self._admitted, 0, tier)
    self._admitted += 1
    self.history[tier]["entered"] += 1
    return Event("entered", question, tier, 0)

  def _leave(self, kind: str, question: int) -> Event:
    entry = self.entries.pop(question)
    self.history[entry.tier][kind] += 1
    return Event(kind, question, entry.tier, entry.visits)

  def table(self) -> dict[str, list[int]]:
    """Returns of each of COUNTS its numbers by tier."""
    return {name: [of_tier[name] for of_tier in self.history] for name in COUNTS}

  def metrics(self, events: Sequence[Event]) -> dict[str, Any]:
    """Returns what the record of a step has of the buffer; `events` are of that step."""
    kinds = collections.Counter(event.kind for event in events)
    return {
      "buffer": len(self),
      "buffer_entered": kinds["entered"],
      "buffer_graduated": kinds["graduated"],
      "buffer_evicted": kinds["evicted"],
      "buffer_history": self.table(),
    }

  def state(self) -> dict[str, Any]:
    """Returns the buffer and its history, as JSON."""
    entries = [[e.question, e.admission, e.visits, e.tier] for e in self.entries.values()]
    return {"entries": entries, "admitted": self._admitted, "history": self.table()}

  def restore(self, state: dict[str, Any]) -> None:
    """Goes on from what `state` returned.

    Raises:
      LookupError, TypeError, ValueError: it is no such state.
    """
    entries = [Entry(*each) for each in state["entries"]]
    history = [state["history"][name] for name in COUNTS]
    numbers = [n for e in entries for n in dataclasses.astuple(e)] + [n for row in history for n in row]
    admissions = [e.admission for e in entries]
    if not all(map(is_whole, [*numbers, state["admitted"]])) or {len(row) for row in history} != {len(self.history)}:
      raise ValueError("no state of a replay buffer")
    if admissions != sorted(set(admissions)) or len({e.question for e in entries}) < len(entries):
      raise ValueError("the questions of a replay buffer are not in the order of their admission")
    if any(e.tier >= len(self.history) for e in entries) or any(a >= state["admitted"] for a in admissions):
      raise ValueError("a question of a replay buffer is of no tier")
    self.entries = {e.question: e for e in entries}
    self.history = [dict(zip(COUNTS, of_tier, strict=True)) for of_tier in zip(*history, strict=True)]
    self._admitted = state["admitted"]
