"""The built-in task for policy gradients: running sums modulo 10, written with many synonyms of each digit.

The prompt is a sum. The response takes one digit after another, writes it down and behind it the sum so far, and closes with
the last sum; here with every digit as its first word:

    prompt     3+5+9+2+8+1=
    response   5897298718#8

A digit has `SYNONYMS` words of one token each: the digit itself, and others that mean the same. Any of them is right at any
place. The text that a model is pretrained on draws them by Zipf's law, the k-th with a probability in proportion to 1/k, so
that 18% of them are written with a word whose probability is below 1%: a policy that has learned the distribution draws
many tokens that it holds to be rare, though it is sure of what they mean. Ratios of probabilities are large there and
differences small, which is what trust regions differ in (arXiv:2602.04879, arXiv:2606.09821).

The student holds soft misconceptions about `WRONG_SUMS` of the 100 sums, as in chain.py; the teacher's text was right.
"""

import dataclasses
import itertools
import random
import zlib
from collections.abc import Generator, Sequence

from opd_jax.tasks import thoughts
from opd_jax.tasks.chain import TRUTH, Beliefs, followed
from opd_jax.tasks.problem import Problem
from opd_jax.tasks.symbols import CharTokenizer

PAD, EOS, PLUS, CLOSE = "<pad>", "<eos>", "+", "#"
DIGITS = "0123456789"
SYNONYMS = 50  # words of a digit
_FIRST_OTHER = 0x4E00  # of a block of single characters that no normalisation changes
WORDS = tuple(
  digit + "".join(chr(_FIRST_OTHER + (SYNONYMS - 1) * d + k) for k in range(SYNONYMS - 1))
  for d, digit in enumerate(DIGITS)
)
MEANING = {word: digit for digit, words in zip(DIGITS, WORDS, strict=True) for word in words}
SYMBOLS = (PAD, EOS, PLUS, "=", CLOSE, *"".join(WORDS))
TOKENIZER = CharTokenizer(SYMBOLS, PAD, EOS)
ZIPF = tuple(itertools.accumulate(1 / k for k in range(1, SYNONYMS + 1)))  # cumulative weights of a digit's words
WRONG_SUMS = 0.26  # share of the sums of which the student is unsure
HELD_OUT = 16  # one prompt in this many, chosen by its checksum, is never trained on


@dataclasses.dataclass(frozen=True)
class Synonyms:
  """A generator and a verifier of running sums.

  Attributes:
    name: of the task; it also seeds the problems.
    terms: digits of a prompt; the difficulty.
    words: how many of a digit's words its solutions are written with, the likeliest ones.
  """

  name: str
  terms: int = 6
  words: int = SYNONYMS

  @property
  def max_prompt(self) -> int:
    """The number of tokens of every prompt."""
    return 2 * self.terms

  @property
  def max_response(self) -> int:
    """The number of tokens of a right response, its stop token included."""
    return 2 * (self.terms - 1) + 2 + 1

  def problem(self, rng: random.Random, held_out: bool, beliefs: Beliefs = TRUTH) -> Problem:
    """Draw a problem from the training or the held-out part, with the solution of somebody who has these beliefs."""
    while True:
      digits = rng.choices(range(10), k=self.terms)
      prompt = PLUS.join(map(str, digits)) + "="
      if (zlib.crc32(prompt.encode()) % HELD_OUT == 0) == held_out:
        break
    total, written = digits[0], []
    for digit in digits[1:]:
      wrong, chance = beliefs.facts.get((total, "+", digit), (0, 0.0))
      total = wrong if rng.random() < chance else (total + digit) % 10
      written += [word(rng, digit, self.words), word(rng, total, self.words)]
    return Problem(prompt, str(sum(digits) % 10), "".join(written) + CLOSE + word(rng, total, self.words))

  def problems(self, n: int, seed: int, held_out: bool = False) -> list[Problem]:
    """Draw n problems, the same for the same arguments."""
    rng = random.Random(f"{self.name} {seed} {held_out}")
    return [self.problem(rng, held_out) for _ in range(n)]

  def verify(self, response: str, answer: str, *, ended: bool = True, prompt: str = "") -> bool:
    """Tell whether the response closes with '#' and a word of the right digit.

    A response that a limit cut has not closed, and what stands in a thought closes nothing.
    """
    text = thoughts.conclusion(response, prompt) if ended else None
    _, mark, final = (text or "").rpartition(CLOSE)
    return bool(mark) and MEANING.get(final) == answer

  def right(self, prompt: str, response: Sequence[str]) -> list[str]:
    """What is right at each position of a response, stop token included, given the symbols *written* before it.

    A digit stands for all of its words. Somebody who knows the sums goes on from a wrong one as if it were right. The list
    is as long as the response, and shorter where that leaves the format: nothing is right from there on.
    """
    return list(followed(self._follow(prompt), response, _kind))

  def _follow(self, prompt: str) -> Generator[str, str, None]:
    """Follow a response: yield what is right, and be sent the symbol that was written."""
    total = prompt[0]
    for digit in prompt[2::2]:
      term = MEANING[(yield digit)]
      total = MEANING[(yield str((int(total) + int(term)) % 10))]
    yield CLOSE
    yield total
    yield EOS


def _kind(symbol: str) -> str:
  """The symbols that can stand for this one without leaving the format."""
  return DIGITS if symbol in MEANING else symbol


def word(rng: random.Random, digit: int, words: int = SYNONYMS) -> str:
  """Draw one of the likeliest `words` of a digit by Zipf's law."""
  return rng.choices(WORDS[digit][:words], cum_weights=ZIPF[:words])[0]


def misconceptions(seed: int = 0) -> Beliefs:
  """Draw the student's soft misconceptions: each is believed with a probability between 0.4 and 0.8."""
  rng = random.Random(f"synonyms misconceptions {seed}")
  sums = [(a, b) for a in range(10) for b in range(10)]
  return Beliefs(
    {
      (a, "+", b): (_wrong(rng, a, b), rng.uniform(0.4, 0.8))
      for a, b in rng.sample(sums, round(WRONG_SUMS * len(sums)))
    }
  )


def slips(rng: random.Random, share: float) -> Beliefs:
  """Draw beliefs by which any sum is wrong with probability `share`."""
  return Beliefs({(a, "+", b): (_wrong(rng, a, b), share) for a in range(10) for b in range(10)})


def _wrong(rng: random.Random, a: int, b: int) -> int:
  return rng.choice([result for result in range(10) if result != (a + b) % 10])


RUNNING_SUMS = Synonyms("synonyms")
