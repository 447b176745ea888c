"""The built-in puzzles: 4 x 4 sudoku and countdown with three numbers, for students that do not write from left to right, and with four.

    sudoku       prompt  .3..2.4....2..1.=    response  4321214313423214      the cells of the grid, row by row; a dot is empty
    countdown    prompt  3,8,5>64=            response  3+5=8,8*8=64          two steps that use each number once, the second ends at the goal
    countdown-4  prompt  3,8,5,2>35=          response  8*5=40,40-3=37,...    three steps; many orders of steps lead to the same numbers

A sudoku has one solution, which no cell shows before others are filled: what is easy stands at different places each time. A countdown
has several solutions, and its last step tells what the first should have been. Both are tasks of arXiv:2606.18195, in sizes of ours.
"""

import dataclasses
import functools
import itertools
import random
import re
import zlib
from collections.abc import Iterator

from opd_jax.tasks import thoughts
from opd_jax.tasks.problem import Problem
from opd_jax.tasks.symbols import CharTokenizer

PAD, EOS, MASK = "_", "$", "?"
SYMBOLS = (PAD, EOS, *"0123456789.,+-*=>", MASK)
TOKENIZER = CharTokenizer(SYMBOLS, PAD, EOS)
HELD_OUT = (
  16  # one problem in this many, chosen by its checksum, is never trained on; of sudokus the prompt, and not the grid
)
SIDE, BOX = 4, 2
_STEP = re.compile(r"(\d+)([+*-])(\d+)=(\d+)")
_OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def _held_out(prompt: str) -> bool:
  return zlib.crc32(prompt.encode()) % HELD_OUT == 0


@functools.cache
def grids() -> tuple[str, ...]:
  """All 288 solved grids, row by row."""

  def fits(rows: tuple[tuple[int, ...], ...]) -> bool:
    columns_differ = all(len(set(column)) == len(column) for column in zip(*rows, strict=True))
    boxes = [
      [rows[r + i][c + j] for i in range(BOX) for j in range(BOX)]
      for r in range(0, len(rows) - len(rows) % BOX, BOX)
      for c in range(0, SIDE, BOX)
    ]
    return columns_differ and all(len(set(box)) == len(box) for box in boxes)

  found: list[tuple[tuple[int, ...], ...]] = [()]
  for _ in range(SIDE):
    longer = itertools.product(found, itertools.permutations(range(1, SIDE + 1)))
    found = [rows for before, row in longer if fits(rows := (*before, row))]
  return tuple("".join(map(str, itertools.chain(*rows))) for rows in found)


@dataclasses.dataclass(frozen=True)
class Sudoku:
  """A generator and a verifier of 4 x 4 sudokus with one solution.

  Attributes:
    name: of the task; it also seeds the problems.
    blanks: empty cells; the difficulty.
  """

  name: str = "sudoku"
  blanks: int = 10

  @property
  def max_prompt(self) -> int:
    """The number of tokens of every prompt."""
    return SIDE**2 + 1

  @property
  def max_response(self) -> int:
    """The number of tokens of a right response, its stop token included."""
    return SIDE**2 + 1

  def problem(self, rng: random.Random, held_out: bool) -> Problem:
    """Draw a problem from the training or the held-out part."""
    while True:
      grid, empty = rng.choice(grids()), set(rng.sample(range(SIDE**2), self.blanks))
      shown = "".join("." if i in empty else cell for i, cell in enumerate(grid))
      given = [i for i in range(SIDE**2) if i not in empty]
      alone = sum(all(other[i] == grid[i] for i in given) for other in grids()) == 1
      if alone and _held_out(prompt := f"{shown}=") == held_out:
        return Problem(prompt, grid, grid)

  def problems(self, n: int, seed: int, held_out: bool = False) -> list[Problem]:
    """Draw n problems, the same for the same arguments."""
    rng = random.Random(f"{self.name} {seed} {held_out}")
    return [self.problem(rng, held_out) for _ in range(n)]

  def verify(self, response: str, answer: str, *, ended: bool = True, prompt: str = "") -> bool:
    """Tell whether the response is the solved grid."""
    return ended and thoughts.conclusion(response, prompt) == answer


def cells(response: str, answer: str, *, ended: bool = True) -> float:
  """The share of a sudoku's cells that are right: a reward that tells near from far."""
  return sum(a == b for a, b in zip(response, answer, strict=False)) / len(answer)


@dataclasses.dataclass(frozen=True)
class Countdown:
  """A generator and a verifier of countdowns: reach a number from others by two operations, each number once.

  Attributes:
    name: of the task; it also seeds the problems.
    largest: the largest number that a step may come to.
  """

  name: str = "countdown"
  largest: int = 99

  @property
  def max_prompt(self) -> int:
    """The number of tokens of the longest prompt."""
    return 9

  @property
  def max_response(self) -> int:
    """The number of tokens of the longest right response, its stop token included."""
    return 15

  def problem(self, rng: random.Random, held_out: bool) -> Problem:
    """Draw a problem from the training or the held-out part, with one of its solutions."""
    while True:
      numbers = rng.choices(range(1, 10), k=3)
      goal = rng.choice([int(solution.rpartition("=")[2]) for solution in self._ways(numbers)] or [0])
      prompt = f"{','.join(map(str, numbers))}>{goal}="
      if goal and _held_out(f"{sorted(numbers)}>{goal}") == held_out:  # in whichever order
        solutions = [s for s in self._ways(numbers) if s.endswith(f"={goal}")]
        return Problem(prompt, f"{','.join(map(str, numbers))}>{goal}", rng.choice(solutions))

  def _ways(self, numbers: list[int]) -> Iterator[str]:
    """Write all pairs of steps that use each number once and stay between 1 and `largest`."""
    for a, b, c in sorted(set(itertools.permutations(numbers))):
      for (sign, first), (other, second) in itertools.product(_OPERATIONS.items(), repeat=2):
        middle = first(a, b)
        for x, y in sorted({(middle, c), (c, middle)}):
          if 0 < middle <= self.largest and 0 < (end := second(x, y)) <= self.largest:
            yield f"{a}{sign}{b}={middle},{x}{other}{y}={end}"

  def problems(self, n: int, seed: int, held_out: bool = False) -> list[Problem]:
    """Draw n problems, the same for the same arguments."""
    rng = random.Random(f"{self.name} {seed} {held_out}")
    return [self.problem(rng, held_out) for _ in range(n)]

  def verify(self, response: str, answer: str, *, ended: bool = True, prompt: str = "") -> bool:
    """Tell whether the response's two steps are right, use each number once and end at the goal.

    Args:
      answer: numbers and goal, as the prompt has them.
    """
    text = thoughts.conclusion(response, prompt) if ended else None
    numbers, _, goal = answer.partition(">")
    left = sorted(map(int, numbers.split(",")))
    steps = (text or "").split(",")
    if len(steps) != len(left) - 1:
      return False
    result = None
    for step in steps:
      if not (found := _STEP.fullmatch(step)):
        return False
      a, b, result = int(found[1]), int(found[3]), int(found[4])
      for number in (a, b):
        if number not in left:
          return False
        left.remove(number)
      if _OPERATIONS[found[2]](a, b) != result:
        return False
      left.append(result)
    return result == int(goal)


def remaining(prompt: str, text: str, ended: bool = False) -> str | None:
  """The state of a countdown after whole steps: the numbers that are left, and the goal.

  None where a step is wrong or uses other numbers: such a response fails, and is like no other one.

  Args:
    text: the response so far.
    ended: whether that is all; otherwise what stands behind its last comma is no whole step.
  """
  numbers, _, goal = prompt.rstrip("=").partition(">")
  left = sorted(numbers.split(","), key=int)
  for step in text.split(",") if ended else text.split(",")[:-1]:
    found = _STEP.fullmatch(step)
    if not found:
      return None
    for number in (found[1], found[3]):
      if number not in left:
        return None
      left.remove(number)
    if _OPERATIONS[found[2]](int(found[1]), int(found[3])) != int(found[4]):
      return None
    left = sorted([*left, found[4]], key=int)
  return f"{','.join(left)}>{goal}{'.' if ended else ''}"  # whoever has ended has no more steps


@dataclasses.dataclass(frozen=True)
class CountdownOfFour(Countdown):
  """Countdowns with four numbers, and so three steps; problems are drawn by taking random steps, which are the solution."""

  name: str = "countdown-4"

  @property
  def max_prompt(self) -> int:
    return 11

  @property
  def max_response(self) -> int:
    return 24

  def problem(self, rng: random.Random, held_out: bool) -> Problem:
    while True:
      numbers = [rng.randint(1, 9) for _ in range(4)]
      left, steps = list(numbers), []
      while len(left) > 1:
        a, b = rng.sample(left, 2)
        sign, operation = rng.choice(list(_OPERATIONS.items()))
        if not 0 < (result := operation(a, b)) <= self.largest:
          left, steps = list(numbers), []  # from the beginning: there may be no other step from here
          continue
        left.remove(a)
        left.remove(b)
        left.append(result)
        steps.append(f"{a}{sign}{b}={result}")
      answer = f"{','.join(map(str, numbers))}>{left[0]}"
      if _held_out(f"{sorted(numbers)}>{left[0]}") == held_out:
        return Problem(f"{answer}=", answer, ",".join(steps))


SUDOKU, COUNTDOWN, COUNTDOWN_4 = Sudoku(), Countdown(), CountdownOfFour()
