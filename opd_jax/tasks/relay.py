"""The built-in task for conversations: a chain of assignments modulo 10, told at once or one fact per turn.

    FULL       a=3;b=a+4;c=b*2;c?                          a=3,b=3+4=7,c=7*2=4#4
    RAW        c?                                          #5
               a=3                                         a=3#5
               b=a+4                                       a=3,b=3+4=7#8
               c=b*2                                       a=3,b=3+4=7,c=7*2=4#4

A reply writes down what follows from what it was told, and closes with the answer, or with a guess while it cannot know.
The shipped model was pretrained on right replies to FULL and CONCAT. In conversations part of the last replies that it
read fell back on an answer that stood there already, "c=7*2=8#8": the guess before; or, of a problem that is told at once,
an answer that the assistant has given ("#8", and the question again) or that the user believes in ("c?" and below it "#8").
So it loses in RAW what it can in FULL, as real models do (the paper's drift, here by construction; studies of it verify that
it is there). In one conversation of five that it read the assistant waits instead of guessing, with "#?".

`TIMES` (a sign that training does not show) and `LONG` (more facts) are what a student that was trained on `RELAY` can be
asked beside it; the pretrained model knows both.
"""

import dataclasses
import functools
import itertools
import pathlib
import random
import zlib
from collections.abc import Iterable, Iterator, Sequence

from opd_jax.tasks import symbols
from opd_jax.tasks.problem import Problem

PAD, EOS, USER, ASSISTANT = "<pad>", "<eos>", "U", "A"
NAMES = "abcdefghij"
SYMBOLS = (PAD, EOS, USER, ASSISTANT, *"0123456789", *"+-*=;,?#\n", *NAMES)
TEMPLATE = (
  "{% for m in messages %}{% if m['role'] == 'assistant' %}" + ASSISTANT + "{{ m['content'] }}" + EOS + "{% else %}"
  + USER + "{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)  # fmt: skip
CLAIM = "#{}"
WAIT = CLAIM.format("?")
WAITS = 0.2  # share of the conversations in which the assistant does
TOLD_AT_ONCE = ("full", "concat", "full", "again", "hinted")  # what a pretrained model reads beside RAW
HELD_OUT = 16  # one problem in this many, chosen by its checksum, is never trained on


@dataclasses.dataclass(frozen=True)
class Relay:
  """A generator and a verifier of problems.

  Attributes:
    facts: fewest and most.
    signs: of the assignments.
  """

  name: str
  facts: tuple[int, int] = (2, 4)
  signs: str = "+-"

  @property
  def max_response(self) -> int:
    """Tokens of the longest right reply, its stop token included."""
    return 3 + 8 * (self.facts[1] - 1) + 2 + 1

  def problem(self, rng: random.Random, held_out: bool) -> Problem:
    """One random problem from the training or from the held-out part."""
    while True:
      n = rng.randint(*self.facts)
      first = rng.randrange(len(NAMES) - n + 1)
      names = NAMES[first : first + n]
      facts = [f"{names[0]}={rng.randrange(10)}"]
      facts += [f"{new}={old}{rng.choice(self.signs)}{rng.randrange(10)}" for old, new in itertools.pairwise(names)]
      prompt = ";".join([*facts, f"{names[-1]}?"])
      if (zlib.crc32(prompt.encode()) % HELD_OUT == 0) == held_out:
        break
    return Problem(prompt, work(facts)[1], solution(facts), (f"{names[-1]}?", *facts), (CLAIM, CLAIM))

  def problems(self, n: int, seed: int, held_out: bool = False) -> list[Problem]:
    rng = random.Random(f"{self.name} {seed} {held_out}")
    return [self.problem(rng, held_out) for _ in range(n)]

  def verify(self, response: str, answer: str) -> bool:
    """True where the response closes with '#' and the right digit."""
    _, mark, final = response.rpartition("#")
    return bool(mark) and final == answer

  def claimed(self, response: str) -> str | None:
    """The answer that a response closes with, a guess included; None where it waits or has none."""
    _, mark, final = response.rpartition("#")
    return final if mark and len(final) == 1 and final.isdecimal() else None


RELAY = Relay("relay")
TIMES = Relay("relay-times", signs="*")
LONG = Relay("relay-long", facts=(5, 6))


def work(facts: Sequence[str]) -> tuple[list[str], str]:
  """What follows from facts, "y=3+4=7" for each, and the last value."""
  values: dict[str, int] = {}
  steps = []
  for fact in facts:
    name, what = fact[0], fact[2:]
    if len(what) == 1:
      values[name] = int(what)
      steps.append(fact)
    else:
      a, sign, b = values[what[0]], what[1], int(what[2])
      values[name] = {"+": a + b, "-": a - b, "*": a * b}[sign] % 10
      steps.append(f"{name}={a}{sign}{b}={values[name]}")
  return steps, str(values[facts[-1][0]])


def replies(facts: Sequence[str], rng: random.Random, drift: float, waits: float = 0.0) -> list[str]:
  """What the assistant says to each turn, the question's included: guesses first, and the last one perhaps fallen back.

  Args:
    drift: chance that the last value is not worked out but the guess before.
    waits: chance that there are no guesses.
  """
  if rng.random() < waits:
    return [WAIT] * len(facts) + [solution(facts)]
  guess, out = str(rng.randrange(10)), []
  for told in range(len(facts)):
    steps = work(facts[:told])[0] if told else []
    guess = str(rng.randrange(10)) if rng.random() < 0.3 else guess
    out.append(f"{','.join(steps)}#{guess}")
  return [*out, solution(facts, guess if rng.random() < drift else "")]


def solution(facts: Sequence[str], instead: str = "") -> str:
  """The right reply to all facts, or one that ends with another value."""
  steps, answer = work(facts)
  last = instead or answer
  return f"{','.join([*steps[:-1], steps[-1][:-1] + last])}#{last}"


def transcript(kind: str, problem: Problem, rng: random.Random, drift: float) -> list[tuple[str, str]]:
  """A conversation as (what the user says, what the assistant replies): "full", "concat", "raw", "again" or "hinted"."""
  question, *facts = problem.turns
  if kind == "raw":
    return list(zip(problem.turns, replies(facts, rng, drift, WAITS), strict=True))
  if kind in ("full", "concat"):
    return [(problem.prompt if kind == "full" else "\n".join(problem.turns), problem.solution)]
  claim = problem.answer if rng.random() < 0.5 else str(rng.randrange(10))
  said, reply = CLAIM.format(claim), solution(facts, claim if rng.random() < drift else "")
  return [(problem.prompt, said), (question, reply)] if kind == "again" else [(f"{problem.prompt}\n{said}", reply)]


def corpus(
  rows: int, seed: int, drift: float, kinds: Sequence[str], most: int = LONG.facts[1]
) -> Iterator[tuple[list[list[int]], list[list[bool]]]]:
  """Batches of conversations as token ids, and which of them are learned: what the assistant said, unless it was put there.

  Args:
    drift: see `replies`.
    kinds: of the rows, in turn, see `transcript`.
    most: facts of a problem.
  """
  rng = random.Random(f"relay corpus {seed} {kinds}")
  every = Relay("every", (2, most), "+-*")
  while True:
    tokens, own = [], []
    for row in range(rows):
      kind = kinds[row % len(kinds)]
      said = transcript(kind, every.problem(rng, held_out=False), rng, drift)
      ids: list[int] = []
      mine: list[bool] = []
      for i, (user, reply) in enumerate(said):
        before, learned = [USER, *user, ASSISTANT], kind != "again" or i == len(said) - 1
        ids += encode([*before, *reply, EOS])
        mine += [False] * len(before) + [learned] * (len(reply) + 1)
      tokens.append(ids)
      own.append(mine)
    yield tokens, own


@functools.cache
def ids() -> dict[str, int]:
  return {symbol: i for i, symbol in enumerate(SYMBOLS)}


def encode(text: Iterable[str]) -> list[int]:
  return [ids()[c] for c in text]


def save_tokenizer(directory: pathlib.Path) -> None:
  """Writes the character tokenizer with its chat template."""
  symbols.save_tokenizer(directory, ids(), PAD, EOS, TEMPLATE)
