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
import functools
import pathlib
import random
import zlib
from collections.abc import Generator, Iterable, Sequence

from opd_jax.tasks import symbols
from opd_jax.tasks.problem import Problem

PAD, EOS = "<pad>", "<eos>"
SYMBOLS = (PAD, EOS, *"0123456789", *"+-x=:,\n#>", *"abcdefghij")
SIGNS = 4  # in a program
WRONG_FACTS = 0.15  # share of the facts of which the student is unsure; of the letters it is unsure of all
LETTERS = "hcfajegbid"  # PHASE: the letter of digit 0, 1, ...
HELD_OUT = 16  # one prompt in this many, chosen by its checksum, is never trained on


@dataclasses.dataclass(frozen=True)
class Beliefs:
  """Wrong results that are believed part of the time: fact -> (wrong result, probability)."""

  facts: dict[tuple[int, str, int], tuple[int, float]] = dataclasses.field(default_factory=dict)
  letters: dict[int, tuple[str, float]] = dataclasses.field(default_factory=dict)


TRUTH = Beliefs()


@dataclasses.dataclass(frozen=True)
class Chain:
  """A generator and a verifier of chain problems.

  Attributes:
    rounds: fewest and most rounds, at most 9; the difficulty.
    letters: the final digits are translated into letters (PHASE).
  """

  name: str
  rounds: tuple[int, int] = (5, 9)
  letters: bool = False

  @property
  def max_prompt(self) -> int:
    """Tokens of every prompt."""
    return 2 + SIGNS + 3

  @property
  def max_response(self) -> int:
    """Tokens of the longest correct response, its stop token included."""
    return self.rounds[1] * (2 + 6 * SIGNS) + (6 if self.letters else 3) + 1

  def problem(self, rng: random.Random, held_out: bool, beliefs: Beliefs = TRUTH) -> Problem:
    """One random problem from the training or from the held-out part, solved by somebody with these beliefs."""
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
    rng = random.Random(f"{self.name} {seed} {held_out}")
    return [self.problem(rng, held_out) for _ in range(n)]

  def _solve(self, a: int, b: int, program, rounds: int, beliefs: Beliefs, rng) -> tuple[str, str]:
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

  def verify(self, response: str, answer: str) -> bool:
    """True where the response closes with '#' and the right digits (PHASE: digits, '>' and the right letters)."""
    _, mark, final = response.rpartition("#")
    if self.letters:
      final = final[3:] if final[2:3] == ">" else ""
    return bool(mark) and final == answer

  def right(self, prompt: str, response: Sequence[str]) -> list[str]:
    """The right symbol at each place of a response, given the symbols *written* before it, stop token included.

    Somebody who knows the facts goes on from a wrong result as if it were right: after "3+5=9,5-" follows 9. The list is
    as long as the response, and shorter where that leaves the format: nothing is right from there on.
    """
    out = []
    reader = self._read(prompt)
    expected = next(reader)
    for written in response:
      out.append(expected)
      if _kind(written) != _kind(expected):
        break
      try:
        expected = reader.send(written)
      except StopIteration:
        break
    return out

  def _read(self, prompt: str) -> Generator[str, str, None]:
    """Yields the right symbol and is sent the written one."""
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


def _kind(symbol: str) -> str:
  """Symbols that can stand for each other without leaving the format."""
  return next((kind for kind in ("0123456789", "+-", LETTERS) if symbol in kind), symbol)


CHAIN = Chain("chain")
PHASE = Chain("phase", letters=True)
SHORT = Chain("chain-short", rounds=(3, 5))  # half as long: for studies of many runs
SHORT_PHASE = Chain("phase-short", rounds=(3, 5), letters=True)


def misconceptions(seed: int = 0) -> Beliefs:
  """The student's soft misconceptions: each is believed with a probability between 0.4 and 0.8."""
  rng = random.Random(f"misconceptions {seed}")
  every = [(a, sign, b) for a in range(10) for sign in "+-" for b in range(10)]
  facts = {}
  for a, sign, b in rng.sample(every, round(WRONG_FACTS * len(every))):
    facts[a, sign, b] = rng.choice([r for r in range(10) if r != fact(a, sign, b)]), rng.uniform(0.4, 0.8)
  letters = {}
  for digit, right in enumerate(LETTERS):
    letters[digit] = rng.choice([a for a in LETTERS if a != right]), rng.uniform(0.4, 0.8)
  return Beliefs(facts, letters)


def slips(rng: random.Random, share: float) -> Beliefs:
  """Somebody who gets this share of the facts wrong each time, any of them, and the letters right."""
  every = [(a, sign, b) for a in range(10) for sign in "+-" for b in range(10)]
  return Beliefs({f: (rng.choice([r for r in range(10) if r != fact(*f)]), share) for f in every})


def fact(a: int, sign: str, b: int) -> int:
  return (a + b if sign == "+" else a - b) % 10


@functools.cache
def ids() -> dict[str, int]:
  return {symbol: i for i, symbol in enumerate(SYMBOLS)}


def encode(text: Iterable[str]) -> list[int]:
  return [ids()[c] for c in text]


def save_tokenizer(directory: pathlib.Path) -> None:
  """Writes the character tokenizer as an ordinary tokenizer.json and tokenizer_config.json."""
  symbols.save_tokenizer(directory, ids(), PAD, EOS)
