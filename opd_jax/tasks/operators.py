"""The built-in task for students that tutor each other: running sums and running differences modulo 10, which are the two domains.

    prompt     5+8+3+9=                  5-8-3-9=
    response   5+8=3,3+3=6,6+9=5#5       5-8=7,7-3=4,4-9=5#5

A specialist knows the facts of its own operator, and holds a quarter of the other's firmly wrong, so that what it gets wrong there it
gets wrong in nearly every rollout: seldom does a right one of its own show it how. Beside solving, it reads and writes three more texts,
of the same symbols:

    shown      PROMPT:SOLUTION=      a solution, which it repeats
    comment    PROMPTRESPONSEa       it answers ">5>5+8=3,3+3=6": the first term of the prompt, and the response's steps as they should
                                     be, up to the first that is not so; of the last step, whose result is the answer, the left side alone
    hinted     PROMPT>55+8=3,3+3=6=  a comment on an earlier attempt, without its marks, which it follows where it trusts it

The task is ours; arXiv:2606.14368 trains on questions of sciences.
"""

import dataclasses
import functools
import random
import re
import zlib

from opd_jax.tasks import thoughts
from opd_jax.tasks.chain import TRUTH, Beliefs, fact
from opd_jax.tasks.problem import Problem

DOMAINS = {"sums": "+", "differences": "-"}
ASK = "a"  # behind a prompt and a response it asks for a comment
MARK = ">"  # before and behind the concept that a comment begins with
WRONG = {"own": 0.03, "other": 0.25}  # share of an operator's facts that a specialist has wrong
FIRMNESS = (0.93, 0.99)  # with which it believes them
HELD_OUT = 16  # one prompt in this many, chosen by its checksum, is never trained on
_STEP = re.compile(r"(\d)([+-])(\d)=(\d)")


@dataclasses.dataclass(frozen=True)
class Operators:
  """A generator and a verifier of running sums and differences.

  Attributes:
    name: of the task; it also seeds the problems.
    terms: digits of a prompt; the difficulty.
  """

  name: str
  terms: int = 4

  @property
  def max_prompt(self) -> int:
    """The number of tokens of every prompt."""
    return 2 * self.terms

  @property
  def max_response(self) -> int:
    """The number of tokens of a right response, its stop token included."""
    return 6 * (self.terms - 1) - 1 + 2 + 1

  def problem(self, rng: random.Random, held_out: bool, beliefs: Beliefs = TRUTH, domain: str = "") -> Problem:
    """Draw a problem from the training or the held-out part, with the solution of somebody who has these beliefs.

    Args:
      domain: of DOMAINS; "": one at random.
    """
    domain = domain or rng.choice(list(DOMAINS))
    sign = DOMAINS[domain]
    while True:
      digits = rng.choices(range(10), k=self.terms)
      prompt = sign.join(map(str, digits)) + "="
      if (zlib.crc32(prompt.encode()) % HELD_OUT == 0) == held_out:
        break
    answer = functools.reduce(lambda total, digit: fact(total, sign, digit), digits)
    return Problem(prompt, str(answer), self.solution(rng, prompt, beliefs), domain=domain)

  def solution(self, rng: random.Random, prompt: str, beliefs: Beliefs) -> str:
    """Write the solution of somebody who has these beliefs."""
    sign, total = prompt[1], int(prompt[0])
    steps = []
    for digit in map(int, prompt[2:-1:2]):
      wrong, chance = beliefs.facts.get((total, sign, digit), (0, 0.0))
      result = wrong if rng.random() < chance else fact(total, sign, digit)
      steps.append(f"{total}{sign}{digit}={result}")
      total = result
    return f"{','.join(steps)}#{total}"

  def problems(self, n: int, seed: int, held_out: bool = False) -> list[Problem]:
    """Draw n problems, the same for the same arguments."""
    rng = random.Random(f"{self.name} {seed} {held_out}")
    return [self.problem(rng, held_out) for _ in range(n)]

  def verify(self, response: str, answer: str, *, ended: bool = True, prompt: str = "") -> bool:
    """Tell whether the response closes with '#' and the right digit.

    A response that a limit cut has not closed, and what stands in a thought closes nothing.
    """
    text = thoughts.conclusion(response, prompt) if ended else None
    _, mark, final = (text or "").rpartition("#")
    return bool(mark) and final == answer


def specialist(domain: str, seed: int = 0) -> Beliefs:
  """Draw the beliefs of somebody who knows one domain: few wrong facts there, many in the other, all held firmly."""
  rng = random.Random(f"operators {domain} {seed}")
  facts = {}
  for other, sign in DOMAINS.items():
    of_sign = [(a, sign, b) for a in range(10) for b in range(10)]
    for a, _, b in rng.sample(of_sign, round(WRONG["own" if other == domain else "other"] * len(of_sign))):
      wrong = rng.choice([result for result in range(10) if result != fact(a, sign, b)])
      facts[a, sign, b] = wrong, rng.uniform(*FIRMNESS)
  return Beliefs(facts)


def believed(beliefs: Beliefs, a: int, sign: str, b: int) -> int:
  """The result that somebody with these beliefs holds to be right."""
  wrong, chance = beliefs.facts.get((a, sign, b), (0, 0.0))
  return wrong if chance > 0.5 else fact(a, sign, b)


def comment(response: str, beliefs: Beliefs = TRUTH) -> str:
  """Write what somebody with these beliefs says of a response; "" of one that has no step.

  Its steps are gone through up to the first whose result differs from what is believed, or to the last, which stays open.
  """
  steps = [(int(a), sign, int(b), int(result)) for a, sign, b, result in _STEP.findall(response)]
  gone_through = []
  for i, (a, sign, b, result) in enumerate(steps, 1):
    right = believed(beliefs, a, sign, b)
    gone_through.append(f"{a}{sign}{b}={'' if i == len(steps) else right}")
    if result != right:
      break
  return f"{MARK}{steps[0][0]}{MARK}{','.join(gone_through)}" if steps else ""


def explain(response: str, answer: str, *, ended: bool = True) -> tuple[bool, str]:
  """Verify a response, and comment on it as somebody who knows all facts, without the marks of a concept.

  As `data.verifier=opd_jax.tasks.operators:explain` it is a tutor that is never wrong.
  """
  return OPERATORS.verify(response, answer, ended=ended), comment(response).replace(MARK, "")


def convinced(beliefs: Beliefs, remark: str) -> Beliefs:
  """Give somebody the fact that a comment states, where it states one."""
  facts = {(int(a), sign, int(b)): int(result) for a, sign, b, result in _STEP.findall(remark)}
  return Beliefs(beliefs.facts | {key: (result, 1.0) for key, result in facts.items()})


OPERATORS = Operators("operators")
