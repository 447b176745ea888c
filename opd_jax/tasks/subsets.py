"""The built-in task subset-sum: which of some numbers add up to a goal? Easy to verify and hard to find, in three tiers.

    prompt    05,18,11,02>16=        response    y05n05y16n16        for each number whether it is taken, and the sum so far

Whoever reads a response sees at its end whether it is right; whoever writes one has to choose the first numbers before it is seen what
they lead to. All responses to a prompt are equally long. Tiers differ in how many numbers there are and how large these are, and
`subset-sum-others` has as many numbers of other sizes, to see what carries over. After arXiv:2606.18216, whose problems this stands for:
candidates (":" before each), what is wrong ("!" behind them) and the beginning of a solution ("/" before it) may stand in a prompt.

`solver` is a teacher that knows the answer four times out of five, for config.zone.teacher_function.
"""

import dataclasses
import functools
import random
import re
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from opd_jax.tasks import thoughts
from opd_jax.tasks.problem import Problem
from opd_jax.tasks.symbols import CharTokenizer

PAD, EOS = "_", "$"
SYMBOLS = (PAD, EOS, *"0123456789,>=yn:!/")
TOKENIZER = CharTokenizer(SYMBOLS, PAD, EOS)
HELD_OUT = 16  # one problem in this many, chosen by its checksum, is never trained on
LARGEST_SUM = 99  # two digits
SKILL = 0.8  # of the solver
_CHOICES = re.compile(r"(?:[yn]\d\d)+")


class Tier(NamedTuple):
  """Problems of one difficulty: so many numbers, each up to the largest."""

  name: str
  numbers: int
  largest: int


TIERS = (Tier("easy", 4, 20), Tier("medium", 6, 30), Tier("hard", 8, 40))
OTHER_TIERS = (Tier("wide", 4, 40), Tier("narrow", 6, 15), Tier("small", 8, 12))


@dataclasses.dataclass(frozen=True)
class SubsetSum:
  """A generator and a verifier of subset sums.

  Attributes:
    name: of the task; it also seeds the problems.
    tiers: of its problems, in turn; `Problem.domain` names them.
  """

  name: str = "subset-sum"
  tiers: tuple[Tier, ...] = TIERS

  @property
  def most(self) -> int:
    """The largest number of numbers in a problem."""
    return max(tier.numbers for tier in self.tiers)

  @property
  def max_prompt(self) -> int:
    """The number of tokens of the longest prompt."""
    return 3 * self.most + 3

  @property
  def max_response(self) -> int:
    """The number of tokens of the longest right response, its stop token included."""
    return 3 * self.most + 1

  def problem(self, rng: random.Random, held_out: bool, tier: Tier | None = None) -> Problem:
    """Draw a problem from the training or the held-out part, with one of its solutions."""
    tier = tier or rng.choice(self.tiers)
    while True:
      numbers = [rng.randint(1, tier.largest) for _ in range(tier.numbers)]
      goal = sum(number for number in numbers if rng.random() < 0.5)
      prompt = written(numbers, goal)
      if max(numbers) < goal <= LARGEST_SUM and _held_out(prompt) == held_out:
        return Problem(prompt, prompt.rstrip("="), solve(rng, numbers, goal), domain=tier.name)

  def problems(self, n: int, seed: int, held_out: bool = False) -> list[Problem]:
    """Draw n problems, the same for the same arguments; the tiers in turn."""
    rng = random.Random(f"{self.name} {seed} {held_out}")
    return [self.problem(rng, held_out, self.tiers[i % len(self.tiers)]) for i in range(n)]

  def verify(self, response: str, answer: str, *, ended: bool = True, prompt: str = "") -> bool:
    """Tell whether the response chooses of every number, adds up rightly and ends at the goal.

    Args:
      answer: numbers and goal, as the prompt has them.
    """
    text = thoughts.conclusion(response, prompt) if ended else None
    numbers, goal = read(answer)
    if not text or len(text) != 3 * len(numbers) or not _CHOICES.fullmatch(text):
      return False
    choices = [text[i] == "y" for i in range(0, len(text), 3)]
    total = sum(number for number, taken in zip(numbers, choices, strict=True) if taken)
    return text == trace(numbers, choices) and total == goal


def _held_out(prompt: str) -> bool:
  return zlib.crc32(prompt.encode()) % HELD_OUT == 0


def written(numbers: Sequence[int], goal: int) -> str:
  """Write a problem as its prompt."""
  return f"{','.join(f'{number:02d}' for number in numbers)}>{goal:02d}="


def read(text: str) -> tuple[tuple[int, ...], int]:
  """Read the numbers and the goal of a prompt, whatever is behind its first "="."""
  numbers, _, goal = text.partition("=")[0].partition(">")
  return tuple(map(int, numbers.split(","))), int(goal)


def trace(numbers: Sequence[int], choices: Sequence[bool]) -> str:
  """Write a response that takes these numbers; a sum of three digits is written as its last two."""
  total, parts = 0, []
  for number, taken in zip(numbers, choices, strict=True):
    total += number * taken
    parts.append(f"{'y' if taken else 'n'}{total % 100:02d}")
  return "".join(parts)


@functools.lru_cache(maxsize=1 << 16)
def _ways(numbers: tuple[int, ...], goal: int) -> int:
  """Count the choices that add up to a goal."""
  if goal < 0:
    return 0
  if not numbers:
    return int(goal == 0)
  return _ways(numbers[1:], goal) + _ways(numbers[1:], goal - numbers[0])


def solve(rng: random.Random, numbers: Sequence[int], goal: int, sees: int | None = None) -> str:
  """Write a solution, drawn from all of them, or what somebody writes who does not see far.

  Args:
    sees: numbers before the end, from which on the choices are those of a solution, where there is one; None: all.
  """
  left, choices, numbers = goal, [], tuple(numbers)
  for i, number in enumerate(numbers):
    rest = numbers[i + 1 :]
    taken, passed = _ways(rest, left - number), _ways(rest, left)
    if (sees is None or len(rest) < sees) and taken + passed:
      chosen = rng.random() * (taken + passed) < taken
    else:
      chosen = number <= left and rng.random() < 0.5
    choices.append(chosen)
    left -= number * chosen
  return trace(numbers, choices)


def guess(rng: random.Random, numbers: Sequence[int], beginning: str = "") -> str:
  """Write a response that takes numbers by the toss of a coin, as long as two digits are enough, and adds up rightly.

  Args:
    beginning: of the response, cut anywhere: what it chooses stays.
  """
  choices = [choice == "y" for choice in beginning[::3]]
  total = sum(number for number, taken in zip(numbers, choices, strict=False) if taken)
  for number in numbers[len(choices) :]:
    choices.append(rng.random() < 0.5 and total + number <= LARGEST_SUM)
    total += number * choices[-1]
  return trace(numbers, choices)


def wrong(rng: random.Random, numbers: Sequence[int], goal: int) -> str:
  """Write a response that does not reach the goal."""
  while True:
    if int((text := guess(rng, numbers))[-2:]) != goal:
      return text


def solver(prompts: Sequence[str], n: int, *, max_tokens: int, temperature: float, seed: int) -> list[list[str]]:
  """Answer problems n times each as a teacher does that knows the solution with probability `SKILL`, and guesses otherwise."""
  rng, found = random.Random(f"solver {seed}"), []
  for prompt in prompts:
    numbers, goal = read(prompt)
    found.append([solve(rng, numbers, goal) if rng.random() < SKILL else guess(rng, numbers) for _ in range(n)])
  return found


SUBSETS = SubsetSum()
OTHER_SUBSETS = SubsetSum("subset-sum-others", OTHER_TIERS)
