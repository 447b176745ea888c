"""What the updates on one rollout batch have measured, put together on the host.

A pass over the batch is an update for each mini-batch. Means by position are those of the last pass, over all of its
mini-batches; the extremes are those of all updates; what sampler and trainer differ by is measured before the first one.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

Numbers = Mapping[str, Any]


class UpdateStats:
  """The numbers that DistillationStep.update returns, added one update after the other."""

  def __init__(self):
    self._all: list[Numbers] = []
    self._first_of_pass = 0

  def begin_pass(self) -> None:
    """Begins another pass over the rollout batch, whose means take the place of the last one's."""
    self._first_of_pass = len(self._all)

  def add(self, numbers: Numbers) -> None:
    """Adds an update's numbers, which are on the host."""
    self._all.append(numbers)

  @property
  def last(self) -> Numbers:
    """The numbers of the last update."""
    return self._all[-1]

  @property
  def _pass(self) -> list[Numbers]:
    return self._all[self._first_of_pass :]

  @property
  def tokens(self) -> int:
    """How many tokens were generated."""
    return sum(int(numbers["tokens"]) for numbers in self._pass)

  @property
  def trained(self) -> int:
    """How many tokens were trained, in one pass."""
    return sum(int(numbers["trained"]) for numbers in self._pass)

  @property
  def updated(self) -> int:
    """How many updates moved the weights."""
    return sum(int(numbers["updated"]) for numbers in self._all)

  @property
  def cut(self) -> float:
    """The share of rows that the horizon cut; mini-batches have as many rows."""
    return float(np.mean([float(numbers["cut"]) for numbers in self._pass]))

  @property
  def skipped(self) -> int:
    """The longest run of skipped updates up to or within these, as each of them counts: 0 where all were finite."""
    return max(int(numbers["skipped"]) for numbers in self._all)

  @property
  def _finite(self) -> list[Numbers]:
    """The updates of a pass that were not skipped; all of them where none was made."""
    return [numbers for numbers in self._pass if not int(numbers["skipped"])] or self._pass

  @property
  def loss(self) -> float:
    """The mean of the losses of a pass, without those of updates that were skipped."""
    return float(np.mean([float(numbers["loss"]) for numbers in self._finite]))

  @property
  def sums(self) -> dict[str, np.ndarray]:
    """Sums over the tokens by bin of position, of the last pass, without updates that were skipped."""
    names = [name for name in self.last["sums"] if not name.endswith("_by_mu")]
    return {name: self._sum(name) for name in names}

  @property
  def moves(self) -> dict[str, Any]:
    """How far tokens have moved since they were drawn, by their probability then, and the extremes; {} without a surrogate."""
    if "moved_by_mu" not in self.last["sums"]:
      return {}
    moved, count = self._sum("moved_by_mu"), self._sum("count_by_mu")
    largest = {name: max(float(numbers["largest"][name]) for numbers in self._all) for name in self.last["largest"]}
    first = self._all[0]["sums"]
    return {
      "moved_by_mu": [float(m / n) if n else None for m, n in zip(moved, count, strict=True)],
      "gradient_weight_max": largest["gradient_weight_max"],
      "gradient_weight_min": -largest["minus_gradient_weight_min"],
      "ratio_max": largest["ratio_max"],
      "logprob_gap": float(np.sum(first["log_moved"]) / max(float(np.sum(first["count"])), 1.0)),
    }

  @property
  def optimizer(self) -> dict[str, float]:
    """How the optimiser's state goes with the gradient of the last update; {} where that is not measured."""
    return {name: float(number) for name, number in self.last.get("optimizer", {}).items()}

  def _sum(self, name: str) -> np.ndarray:
    return np.sum([np.asarray(numbers["sums"][name], np.float64) for numbers in self._finite], axis=0)
