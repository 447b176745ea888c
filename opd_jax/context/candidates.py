"""Hard questions asked anew, with candidates in the prompt: BCQ and NCQ (ZPPO, arXiv:2606.18216), and a hint or a prefix of a solution.

    bcq      one right candidate, of the teacher, and one wrong one, of the student, in random order: which of them to follow
    ncq      the wrong answers so far and what led to them: what to avoid
    hint     the beginning of a right solution of the teacher's, in the question
    prefix   the same as the beginning of the response, which the student goes on from

Both candidates go through the same compressor and have the same form, or the student learns the form; cut ones keep their ends, where
the answer stands, and are cut to one length. Which hard questions are asked anew, and how, is `hardest` and `chosen`. The words around the
parts are templates. The paper's own were paraphrased, and those of the defaults are ours, and so are: what hint and prefix show, one
block for each distinct wrong answer, and that all blocks of a prompt that is too long are shortened alike.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from opd_jax.config import Config
from opd_jax.context.privileged import filled, rewritten
from opd_jax.data import chat
from opd_jax.errors import InputError
from opd_jax.models.spec import ModelSpec

Renderer = Callable[[chat.Prompt], list[int]]
KINDS = ("bcq", "ncq", "hint", "prefix")
COMPARED = ("bcq", "ncq")  # those that show whole candidates, made short
NEEDS_TEACHER = ("bcq", "hint", "prefix")  # those that show a right response
PARTS = {
  "bcq": ("prompt", "candidates"),
  "ncq": ("prompt", "candidates"),
  "hint": ("prompt", "text"),
  "block": ("text",),
  "request": ("prompt", "response"),
}


def hardest(rates: Sequence[float], tau: float, most: int, rng: np.random.Generator) -> list[int]:
  """Lists the questions that earn less than tau, the lowest first; `most` at most.

  Args:
    rng: orders those of the same rate. Most hard questions earn nothing at all, and in any fixed order some would never be asked anew.
  """
  tie = rng.permutation(len(rates))
  return sorted((i for i, rate in enumerate(rates) if rate < tau), key=lambda i: (rates[i], tie[i]))[:most]


def possible(kinds: Sequence[str], right: int, wrong: int, *, wrong_pair: bool = False) -> list[str]:
  """Lists the kinds that a question can be asked in.

  Args:
    kinds: that are wanted, in their order.
    right, wrong: how many candidates there are: of the teacher and right, of the student and wrong.
    wrong_pair: see `Candidates`.
  """
  needs = {
    "bcq": right >= 1 and wrong >= 1 + wrong_pair,
    "ncq": wrong >= 1,
    "hint": right >= 1,
    "prefix": right >= 1,
  }
  return [kind for kind in kinds if needs[kind]]


def chosen(available: Sequence[Sequence[str]], most: int) -> list[tuple[int, str]]:
  """Chooses what is asked: question after question, of each its kinds in their order, until there are `most`.

  A question with several kinds for which one place is left is therefore asked in its first.

  Args:
    available: the kinds of each question, the hardest question first.
  """
  return [(i, kind) for i, kinds in enumerate(available) for kind in kinds][:most]


def distinct(answers: Sequence[str], most: int) -> list[int]:
  """Finds the first of each answer, `most` at most."""
  return sorted({answer: i for i, answer in reversed(list(enumerate(answers)))}.values())[:most]


@dataclasses.dataclass(frozen=True)
class Candidates:
  """How a question is asked with candidates.

  Attributes:
    bcq, ncq, hint: the words in the place of a prompt's text.
    block: the words around a candidate.
    request: what the teacher reads to compress a candidate.
    max_tokens: of a candidate.
    max_prompt: of a prompt with candidates.
    blocks: of an NCQ, at most.
    same_length: whether the candidates of a prompt are cut to the length of the shortest.
    shuffle: whether the order of a BCQ's candidates is random; False, a control: the right one comes first.
    wrong_pair: a control: another wrong candidate stands in the right one's place.
  """

  bcq: str
  ncq: str
  hint: str
  block: str
  request: str
  max_tokens: int
  max_prompt: int
  blocks: int
  same_length: bool
  shuffle: bool
  wrong_pair: bool

  @classmethod
  def from_config(cls, config: Config) -> "Candidates":
    """Reads the keys of a config.

    Raises:
      InputError: a template lacks the place of a part.
    """
    c = config.candidates
    for name, parts in PARTS.items():
      if missing := [part for part in parts if "{" + part + "}" not in c[name]]:
        raise InputError(
          f"config.candidates.{name} has no {{{missing[0]}}}, and so no place for its part; write it where the part is to stand."
        )
    return cls(**{field.name: c[field.name] for field in dataclasses.fields(cls)})

  def swaps(self, rng: np.random.Generator) -> bool:
    """Draws whether a BCQ's wrong candidate comes first."""
    return bool(rng.integers(2)) and self.shuffle

  def ask(
    self,
    kind: str,
    prompt: chat.Prompt,
    texts: Sequence[str],
    tokenizer: Any,
    render: Renderer,
    answers: Sequence[str] = (),
  ) -> list[int] | None:
    """Tokenises a question with candidates, all shortened alike where it is too long; None where even then it does not fit.

    Args:
      kind: bcq or ncq.
      texts: of the candidates, compressed, in their order.
      render: tokenises a prompt, with its images where it has any.
      answers: of an NCQ, those that are wrong.
    """
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    most = min(self.max_tokens, *map(len, ids)) if self.same_length else self.max_tokens

    def write(length: int) -> chat.Prompt:
      blocks = "".join(filled(self.block, text=text) for text in last_tokens(texts, ids, length, tokenizer))
      parts = {"candidates": blocks, "answers": ", ".join(answers)}
      return rewritten(prompt, lambda text: filled(self.bcq if kind == "bcq" else self.ncq, prompt=text, **parts))

    return self._fit(write, most, len(texts), render)

  def preview(
    self, kinds: Sequence[str], prompt: chat.Prompt, answer: str, tokenizer: Any, render: Renderer
  ) -> Iterator[tuple[str, list[int]]]:
    """Makes what the student reads in the kinds that show whole candidates: what it is, and its token ids.

    Args:
      answer: stands in the place of each candidate.
    """
    for kind in (kind for kind in kinds if kind in COMPARED):
      texts = [answer] * (1 + (kind == "bcq"))
      ids = self.ask(kind, prompt, texts, tokenizer, render, [answer])
      if ids:
        yield f"what the student reads in a {kind}, with {answer!r} in the place of each candidate", ids

  def with_hint(self, prompt: chat.Prompt, text: str, tokenizer: Any, render: Renderer) -> list[int] | None:
    """Tokenises a question with a hint; None where it does not fit."""
    asked = rewritten(prompt, lambda of_prompt: filled(self.hint, prompt=of_prompt, text=text))
    ids = render(asked)
    return ids if len(ids) <= self.max_prompt else None

  def with_prefix(self, prompt: chat.Prompt, text: str, tokenizer: Any, render: Renderer) -> list[int] | None:
    """Tokenises a question with the beginning of its response; None where it does not fit."""
    ids = [*render(prompt), *tokenizer(text, add_special_tokens=False)["input_ids"]]
    return ids if len(ids) <= self.max_prompt else None

  def compression(self, prompt: chat.Prompt, response: str) -> chat.Prompt:
    """Writes what the teacher reads to compress a candidate."""
    return rewritten(prompt, lambda text: filled(self.request, prompt=text, response=response))

  def _fit(self, write: Callable[[int], chat.Prompt], most: int, blocks: int, render: Renderer) -> list[int] | None:
    """Shortens what is written until it fits."""
    while most > 0:
      ids = render(write(most))
      if len(ids) <= self.max_prompt:
        return ids
      most -= max(1, math.ceil((len(ids) - self.max_prompt) / blocks))
    return None


def check_positions(config: Config, model: ModelSpec) -> None:
  """Refuses prompts with candidates that are longer than a model can read, a response behind them.

  Raises:
    InputError: names the keys.
  """
  positions = model.cfg.max_positions
  if config.candidates.max_prompt + config.horizon.max > positions:
    raise InputError(
      f"config.candidates.max_prompt is {config.candidates.max_prompt} and config.horizon.max {config.horizon.max}, and {model.name} has "
      f"{positions} positions (max_position_embeddings); lower one of the two."
    )


def last_tokens(texts: Sequence[str], ids: Sequence[Sequence[int]], most: int, tokenizer: Any) -> list[str]:
  """Cuts texts to their last tokens, `most` at most; what is short enough stays as it is."""
  return [
    text if len(row) <= most else tokenizer.decode(row[-most:], skip_special_tokens=False)
    for text, row in zip(texts, ids, strict=True)
  ]


def beginning(text: str, share: float, tokenizer: Any) -> str:
  """Cuts a text to this share of its tokens, from the first on."""
  ids = tokenizer(text, add_special_tokens=False)["input_ids"]
  return tokenizer.decode(ids[: math.floor(share * len(ids))], skip_special_tokens=False)
