"""The built-in task: a chain of digit arithmetic in which every step uses the last two values, all written out.

The prompt gives two digits, a program of four signs and a number of rounds. The response runs the program round after
round, modulo 10, counting the rounds down, and closes with the last two values:

    prompt     58+-++x3=
    response   3:5+8=3,8-3=5,3+5=8,5+8=3
               2:8+3=1,3-1=2,1+2=3,2+3=5
               1:3+5=8,5-8=7,8+7=5,7+5=2
               #52

The 200 facts (digit, sign, digit) are met anywhere in a response with equal chance, so knowing them is a trait that
does not depend on position. `PHASE` is the twin whose trait does: it writes ">" for "=" in the prompt and for ":" in
the lines, and its response goes on with both digits sent through a fixed permutation into letters ("#52>ef"), which is
seen nowhere earlier. `SHORT` and `SHORT_PHASE` are half as long, for studies of many runs.

One teacher knows both tasks. The student holds *soft misconceptions*: for a fraction of the facts and
for the letters, the text it was pretrained on showed a fixed wrong result part of the time. Its format is perfect; the
teacher's text was right throughout. The student of PHASE went on from there, until it held its beliefs about letters as
firmly as those about facts.
"""

import dataclasses
import random
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence

from opd_jax.tasks import thoughts
from opd_jax.tasks.problem import Problem
from opd_jax.tasks.symbols import CharTokenizer

PAD, EOS = "<pad>", "<eos>"
SYMBOLS = (PAD, EOS, *"0123456789", *"+-x=:,\n#>", *"abcdefghij")
TOKENIZER = CharTokenizer(SYMBOLS, PAD, EOS)
SIGNS = 4  # in a program
FACTS = tuple((a, sign, b) for a in range(10) for sign in "+-" for b in range(10))
WRONG_FACTS = 0.15  # share of the facts of which the student is unsure; it is unsure of every letter
LETTERS = "hcfajegbid"  # PHASE: the letter of digit 0, 1, ...
HELD_OUT = 16  # one prompt in this many, chosen by its checksum, is never trained on


@dataclasses.dataclass(frozen=True)
class Beliefs:
  """Wrong results that are believed part of the time.

  Attributes:
    facts: (digit, sign, digit) -> (wrong result, its probability).
    letters: digit -> (wrong letter, its probability).
  """

  facts: dict[tuple[int, str, int], tuple[int, float]] = dataclasses.field(default_factory=dict)
  letters: dict[int, tuple[str, float]] = dataclasses.field(default_factory=dict)


TRUTH = Beliefs()


@dataclasses.dataclass(frozen=True)
class Chain:
  """A generator and a verifier of chain problems.

  Attributes:
    name: of the task; it also seeds the problems.
    rounds: fewest and most rounds, at most 9; the difficulty.
    letters: the final digits are translated into letters (PHASE).
  """

  name: str
  rounds: tuple[int, int] = (5, 9)
  letters: bool = False

  @property
  def max_prompt(self) -> int:
    """The number of tokens of every prompt."""
    return 2 + SIGNS + 3

  @property
  def max_response(self) -> int:
    """The number of tokens of the longest right response, its stop token included."""
    return self.rounds[1] * (2 + 6 * SIGNS) + (6 if self.letters else 3) + 1

  def problem(self, rng: random.Random, held_out: bool, beliefs: Beliefs = TRUTH) -> Problem:
    """Draw a problem from the training or the held-out part, with the solution of somebody who has these beliefs."""
    while True:
      a, b = rng.randrange(10), rng.randrange(10)
      program = rng.choices("+-", k=SIGNS)
      rounds = rng.randint(*self.rounds)
      prompt = f"{a}{b}{''.join(program)}x{rounds}{'>' if self.letters else '='}"
      if (zlib.crc32(prompt.encode()) % HELD_OUT == 0) == held_out:
        break
    answer, _ = self._solve(a, b, program, rounds, TRUTH, rng)
    return Problem(prompt, answer, self._solve(a, b, program, rounds, beliefs, rng)[1])

  def problems(self, n: int, seed: int, held_out: bool = False) -> list[Problem]:
    """Draw n problems, the same for the same arguments."""
    rng = random.Random(f"{self.name} {seed} {held_out}")
    return [self.problem(rng, held_out) for _ in range(n)]

  def _solve(self, a: int, b: int, program, rounds: int, beliefs: Beliefs, rng) -> tuple[str, str]:
    """The answer and the text of a solution."""

    def letter(digit: int) -> str:
      wrong, chance = beliefs.letters.get(digit, ("", 0.0))
      return wrong if rng.random() < chance else LETTERS[digit]

    lines = []
    for left in range(rounds, 0, -1):
      steps = []
      for sign in program:
        wrong, chance = beliefs.facts.get((a, sign, b), (0, 0.0))
        result = wrong if rng.random() < chance else fact(a, sign, b)
        steps.append(f"{a}{sign}{b}={result}")
        a, b = b, result
      lines.append(f"{left}{'>' if self.letters else ':'}{','.join(steps)}\n")
    text = "".join(lines) + f"#{a}{b}"
    if not self.letters:
      return f"{a}{b}", text
    letters = letter(a) + letter(b)
    return letters, f"{text}>{letters}"

  def verify(self, response: str, answer: str, *, ended: bool = True, prompt: str = "") -> bool:
    """Tell whether the response closes with '#' and the right digits (PHASE: digits, '>' and the right letters).

    A response that a limit cut has not closed, and what stands in a thought closes nothing.
    """
    text = thoughts.conclusion(response, prompt) if ended else None
    _, mark, final = (text or "").rpartition("#")
    if self.letters:
      final = final[3:] if final[2:3] == ">" else ""
    return bool(mark) and final == answer

  def right(self, prompt: str, response: Sequence[str]) -> list[str]:
    """The right symbol at each position of a response, stop token included, given the symbols *written* before it.

    Somebody who knows the facts goes on from a wrong result as if it were right: after "3+5=9,5-" follows 9. The list
    is as long as the response, and shorter where that leaves the format: nothing is right from there on.
    """
    return list(followed(self._follow(prompt), response, _kind))

  def _follow(self, prompt: str) -> Generator[str, str, None]:
    """Follow a response: yield the right symbol, and be sent the one that was written."""
    a, b = prompt[:2]
    for left in range(int(prompt[3 + SIGNS]), 0, -1):
      yield str(left)
      yield prompt[-1] if self.letters else ":"
      for i, sign in enumerate(prompt[2 : 2 + SIGNS], 1):
        a = yield a
        sign = yield sign
        b = yield b
        yield "="
        a, b = b, (yield str(fact(int(a), sign, int(b))))
        yield "," if i < SIGNS else "\n"
    yield "#"
    a = yield a
    b = yield b
    if self.letters:
      yield ">"
      yield LETTERS[int(a)]
      yield LETTERS[int(b)]
    yield EOS


def followed(right: Generator[str, str, None], response: Sequence[str], kind: Callable[[str], str]) -> Iterator[str]:
  """Yield the right symbol at each position of a response, up to the first that leaves the format.

  Args:
    right: yields the right symbol, and is sent the one that was written.
    kind: the symbols that can stand for one without leaving the format.
  """
  expected = next(right)
  for written in response:
    yield expected
    if kind(written) != kind(expected):
      return
    try:
      expected = right.send(written)
    except StopIteration:
      return


def _kind(symbol: str) -> str:
  """The symbols that can stand for this one without leaving the format."""
  return next((kind for kind in ("0123456789", "+-", LETTERS) if symbol in kind), symbol)


CHAIN = Chain("chain")
PHASE = Chain("phase", letters=True)
SHORT = Chain("chain-short", rounds=(3, 5))  # half as long: for studies of many runs
SHORT_PHASE = Chain("phase-short", rounds=(3, 5), letters=True)


def misconceptions(seed: int = 0) -> Beliefs:
  """Draw the student's soft misconceptions: each is believed with a probability between 0.4 and 0.8."""
  rng = random.Random(f"misconceptions {seed}")
  facts = {}
  for a, sign, b in rng.sample(FACTS, round(WRONG_FACTS * len(FACTS))):
    wrong = rng.choice([result for result in range(10) if result != fact(a, sign, b)])
    facts[a, sign, b] = wrong, rng.uniform(0.4, 0.8)
  letters = {}
  for digit, right in enumerate(LETTERS):
    wrong = rng.choice([letter for letter in LETTERS if letter != right])
    letters[digit] = wrong, rng.uniform(0.4, 0.8)
  return Beliefs(facts, letters)


def slips(rng: random.Random, share: float) -> Beliefs:
  """Draw beliefs by which any fact is wrong with probability `share`, and every letter right."""
  facts = {}
  for a, sign, b in FACTS:
    wrong = rng.choice([result for result in range(10) if result != fact(a, sign, b)])
    facts[a, sign, b] = wrong, share
  return Beliefs(facts)


def fact(a: int, sign: str, b: int) -> int:
  """The right result of a sum or difference, modulo 10."""
  return (a + b if sign == "+" else a - b) % 10
