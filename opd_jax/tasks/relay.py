"""The built-in task for conversations: a chain of assignments modulo 10, told at once or one fact per turn.

    FULL       a=3;b=a+4;c=b*2;c?                          a=3,b=3+4=7,c=7*2=4#4
    RAW        c?                                          #5
               a=3                                         a=3#5
               b=a+4                                       a=3,b=3+4=7#8
               c=b*2                                       a=3,b=3+4=7,c=7*2=4#4

A reply writes down what follows from the facts so far, and closes with the answer, or with a guess while it cannot know.
The shipped model was pretrained on right replies to FULL and CONCAT. In its conversations part of the last replies fell
back on an answer that stood there already, "c=7*2=8#8": the guess before; or, of a problem that is told at once, an
answer that the assistant has given ("#8", and the question again) or that the user believes in ("c?" and below it "#8").
So it loses in RAW what it can in FULL, as real models do (the paper's drift, here by construction; studies of it verify
that it is there). In one of twenty of its conversations the assistant waits instead of guessing, with "#?". A digit has to be
likelier than to wait, and to fall back likelier than not, if greedy replies are to drift too.

`TIMES` (a sign that training does not show) and `LONG` (more facts) test what a student that was trained on `RELAY` knows
beside it; the pretrained model knows both.
"""

import dataclasses
import itertools
import random
import zlib
from collections.abc import Iterator, Sequence

from opd_jax.tasks import thoughts
from opd_jax.tasks.problem import Problem
from opd_jax.tasks.symbols import CharTokenizer

PAD, EOS, USER, ASSISTANT = "<pad>", "<eos>", "U", "A"
NAMES = "abcdefghij"
SYMBOLS = (PAD, EOS, USER, ASSISTANT, *"0123456789", *"+-*=;,?#\n", *NAMES)
TEMPLATE = (
  "{% for m in messages %}{% if m['role'] == 'assistant' %}" + ASSISTANT + "{{ m['content'] }}" + EOS + "{% else %}"
  + USER + "{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)  # fmt: skip
TOKENIZER = CharTokenizer(SYMBOLS, PAD, EOS, TEMPLATE)
CLAIM = "#{}"
WAIT = CLAIM.format("?")
TOLD_AT_ONCE = ("full", "concat", "full", "again", "hinted")  # what a pretrained model reads beside RAW
HELD_OUT = 16  # one problem in this many, chosen by its checksum, is never trained on


@dataclasses.dataclass(frozen=True)
class Relay:
  """A generator and a verifier of relay problems.

  Attributes:
    name: of the task; it also seeds the problems.
    facts: fewest and most facts of a problem.
    signs: of the assignments.
  """

  name: str
  facts: tuple[int, int] = (2, 4)
  signs: str = "+-"

  @property
  def max_response(self) -> int:
    """The number of tokens of the longest right reply, its stop token included."""
    return 3 + 8 * (self.facts[1] - 1) + 2 + 1

  def problem(self, rng: random.Random, held_out: bool) -> Problem:
    """Draw a problem from the training or from the held-out part."""
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
    """Draw n problems, the same for the same arguments."""
    rng = random.Random(f"{self.name} {seed} {held_out}")
    return [self.problem(rng, held_out) for _ in range(n)]

  def verify(self, response: str, answer: str, *, ended: bool = True, prompt: str = "") -> bool:
    """Tell whether the response closes with '#' and the right digit.

    A response that a limit cut has not closed, and what stands in a thought closes nothing.
    """
    mark, final = _closing(response, ended, prompt)
    return bool(mark) and final == answer

  def extract_answer(self, response: str, *, ended: bool = True, prompt: str = "") -> str | None:
    """The answer that a response closes with, a guess included; None where it waits, has none or was cut."""
    mark, final = _closing(response, ended, prompt)
    return final if mark and len(final) == 1 and final.isdecimal() else None


def _closing(response: str, ended: bool, prompt: str) -> tuple[str, str]:
  """The last '#' of what was said to the end, and the text behind it."""
  text = thoughts.conclusion(response, prompt) if ended else None
  return (text or "").rpartition("#")[1:]  # pyright: ignore[reportReturnType]


RELAY = Relay("relay")
TIMES = Relay("relay-times", signs="*")
LONG = Relay("relay-long", facts=(5, 6))


def work(facts: Sequence[str]) -> tuple[list[str], str]:
  """Work out what follows from facts: a step such as "y=3+4=7" for each, and the last value."""
  values: dict[str, int] = {}
  steps = []
  for fact in facts:
    name, expression = fact[0], fact[2:]
    if len(expression) == 1:
      values[name] = int(expression)
      steps.append(fact)
    else:
      a, sign, b = values[expression[0]], expression[1], int(expression[2])
      values[name] = {"+": a + b, "-": a - b, "*": a * b}[sign] % 10
      steps.append(f"{name}={a}{sign}{b}={values[name]}")
  return steps, str(values[facts[-1][0]])


def replies(facts: Sequence[str], rng: random.Random, drift: float, waits: float = 0.0) -> list[str]:
  """Draw the assistant's reply to each turn, the question's included.

  All but the last close with a guess; the last closes with the answer, or falls back on the guess before.

  Args:
    drift: probability that the last reply falls back.
    waits: probability that the assistant waits instead of guessing; the last reply is right then.
  """
  if rng.random() < waits:
    return [WAIT] * len(facts) + [solution(facts)]
  guess, guesses = str(rng.randrange(10)), []
  for known in range(len(facts)):
    steps = work(facts[:known])[0] if known else []
    guess = str(rng.randrange(10)) if rng.random() < 0.3 else guess
    guesses.append(f"{','.join(steps)}#{guess}")
  return [*guesses, solution(facts, guess if rng.random() < drift else "")]


def solution(facts: Sequence[str], instead: str = "") -> str:
  """Write the right reply to all facts, or one that ends with `instead` in place of the answer."""
  steps, answer = work(facts)
  last = instead or answer
  last_step = steps[-1][:-1] + last
  return f"{','.join([*steps[:-1], last_step])}#{last}"


def transcript(kind: str, problem: Problem, rng: random.Random, drift: float, waits: float) -> list[tuple[str, str]]:
  """Write a conversation as pairs of a user's message and the assistant's reply.

  Args:
    kind: "full", "concat" or "raw"; "again" (a claim of the assistant's, and the question again) or "hinted" (a claim
      of the user's behind the problem), where the claim is the answer half of the time, and else a random digit.
    drift: probability that a reply falls back on what the conversation claims already.
    waits: probability that the assistant of "raw" waits instead of guessing.
  """
  question, *facts = problem.turns
  if kind == "raw":
    return list(zip(problem.turns, replies(facts, rng, drift, waits), strict=True))
  if kind not in ("full", "concat", "again", "hinted"):
    raise ValueError(f"there is no conversation of kind {kind!r}")
  if kind in ("full", "concat"):
    return [(problem.prompt if kind == "full" else "\n".join(problem.turns), problem.solution)]
  claim = problem.answer if rng.random() < 0.5 else str(rng.randrange(10))
  claim_text = CLAIM.format(claim)
  reply = solution(facts, claim if rng.random() < drift else "")
  if kind == "again":
    return [(problem.prompt, claim_text), (question, reply)]
  return [(f"{problem.prompt}\n{claim_text}", reply)]


def corpus(
  rows: int, seed: int, drift: float, waits: float, kinds: Sequence[str], max_facts: int = LONG.facts[1]
) -> Iterator[tuple[list[list[int]], list[list[bool]]]]:
  """Yield batches of conversations: the token ids of each, and which of these are learned.

  The assistant's tokens are learned, but for the claim that "again" puts into its mouth.

  Args:
    drift, waits: see `transcript`.
    kinds: see `transcript`; the rows of a batch take them in turn.
    max_facts: most facts of a problem.
  """
  rng = random.Random(f"relay corpus {seed} {kinds}")
  task = Relay("every", (2, max_facts), "+-*")
  while True:
    ids: list[list[int]] = []
    learned: list[list[bool]] = []
    for row in range(rows):
      kind = kinds[row % len(kinds)]
      turns = transcript(kind, task.problem(rng, held_out=False), rng, drift, waits)
      row_ids: list[int] = []
      row_learned: list[bool] = []
      for i, (user, reply) in enumerate(turns):
        prompt = [USER, *user, ASSISTANT]
        learns_reply = kind != "again" or i == len(turns) - 1
        row_ids += TOKENIZER.encode([*prompt, *reply, EOS])
        row_learned += [False] * len(prompt) + [learns_reply] * (len(reply) + 1)
      ids.append(row_ids)
      learned.append(row_learned)
    yield ids, learned
