"""The endless order in which prompts are read: shuffled epochs, of one source or of several in proportion.

An order is a sequence that is known at any place without those before it, so that a run resumes, and looks ahead, in no time.
"""

import math
import sys
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

PERIOD = 10_000  # prompts, at most, after which the proportions of sources are exact


class Epochs:
  """Endless epochs over n prompts, as a sequence whose element i is the number of the i-th prompt to be read.

  This stands in for grain's own shuffle, which spends 65536 / n rounds of a cipher on each element: 50 ms for a
  batch of 64 out of 64 prompts.

  Args:
    source: the number of the source; those of one seed have different orders.
  """

  def __init__(self, n: int, seed: int, shuffle: bool, source: int = 0):
    self._n, self._seed, self._shuffle = n, seed % 2**64, shuffle
    self._first_key = source << 40  # far more epochs than a run has
    self._epoch, self._order = -1, np.arange(n)

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, index: int) -> int:
    epoch, position = divmod(int(index), self._n)
    if self._shuffle and epoch != self._epoch:
      # numpy promises these raw bits for every version, and not the order that permutation() makes of them.
      key = np.array([self._seed, self._first_key + epoch], np.uint64)
      bits = np.random.Philox(key=key).random_raw(self._n)
      self._epoch, self._order = epoch, np.argsort(bits, kind="stable")
    return int(self._order[position])


class Mixture:
  """Several sources in proportion, each in epochs of its own; a sequence as `Epochs`, of numbers over all their prompts.

  The sources take turns in a pattern that repeats. It has each as often as its weight says, exactly, spread as evenly as can be:
  the m-th of p turns of a source is due at (m + 1/2) / p of the pattern.

  Args:
    counts: prompts of each source, which stand one source after another.
    weights: one each, above 0; see `proportions`.
  """

  def __init__(self, counts: Sequence[int], weights: Sequence[float], seed: int, shuffle: bool):
    self._turns = proportions(weights)
    self._epochs = [Epochs(n, seed, shuffle, source) for source, n in enumerate(counts)]
    self._first = [sum(counts[:source]) for source in range(len(counts))]
    source = np.repeat(np.arange(len(self._turns)), self._turns)
    rank = np.concatenate([np.arange(p) for p in self._turns])
    due = np.concatenate([(np.arange(p) + 0.5) / p for p in self._turns])
    order = np.lexsort((source, due))
    self._source, self._rank = source[order], rank[order]

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, index: int) -> int:
    period, position = divmod(int(index), len(self._source))
    source = int(self._source[position])
    drawn = period * self._turns[source] + int(self._rank[position])
    return self._first[source] + self._epochs[source][drawn]


def proportions(weights: Sequence[float]) -> list[int]:
  """Write weights as the least whole numbers in their proportion: (0.7, 0.3) as 7 and 3.

  Weights that need a sum above `PERIOD` are rounded to its parts, at least one each.
  """
  exact = [Fraction(repr(float(weight))) for weight in weights]
  common = math.lcm(*(weight.denominator for weight in exact))
  whole = [int(weight * common) for weight in exact]
  whole = [n // math.gcd(*whole) for n in whole]
  if sum(whole) <= PERIOD:
    return whole
  total = sum(exact)
  rounded = [max(1, round(weight / total * PERIOD)) for weight in exact]
  return [n // math.gcd(*rounded) for n in rounded]
