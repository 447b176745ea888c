"""From rollouts to prompts: which responses to hard questions become candidates, and what the questions are asked with.

    drawn = reformulator.draw(hard_questions, most, seed)      candidates.py says which questions, and of which kinds
    reformulator.requests(drawn)                               what a teacher would read to make their candidates short
    reformulator.write(drawn, short)                           the prompts

A response that was cut is no candidate, since its missing end would tell that it is wrong, and one that says nothing is none either.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from opd_jax.context.candidates import COMPARED, Candidates, Renderer, beginning, chosen, distinct, possible
from opd_jax.context.replies import control_tokens, final_text, without
from opd_jax.data import chat
from opd_jax.data.image_prompts import ImagePrompts
from opd_jax.data.image_refs import ImageFault, ImageRef
from opd_jax.data.rendering import Rendering
from opd_jax.tasks.problem import AnswerExtractor, Response


class HardQuestion(NamedTuple):
  """A question that the student seldom answers right.

  Attributes:
    number: in the training data.
    prompt: as the data have it.
    right: responses of the teacher that are right.
    wrong: responses of the student that are wrong.
    images: of the prompt.
  """

  number: int
  prompt: chat.Prompt
  right: Sequence[Response]
  wrong: Sequence[Response]
  images: tuple[ImageRef, ...] = ()


class Candidate(NamedTuple):
  """A response that may be shown, and the answer that it claims."""

  text: str
  answer: str


class Drawn(NamedTuple):
  """What a question is to be asked with.

  Attributes:
    kind: one of candidates.KINDS.
    right: the candidate that is right; None: none is, or a control has taken its place.
    shown: all of them in their order.
  """

  kind: str
  question: HardQuestion
  right: Candidate | None
  shown: list[Candidate]


class Reformulated(NamedTuple):
  """A hard question, asked anew.

  Attributes:
    kind: one of candidates.KINDS.
    question: its number in the training data.
    ids: of the prompt, tokens.
    right: the answer of its right candidate; "": it has none.
    wrong: the answers of the others.
    prefix: the beginning of the response, where that stands in the prompt.
    cut: its candidates were cut, since the teacher did not make all of them short.
  """

  kind: str
  question: int
  ids: list[int]
  right: str = ""
  wrong: tuple[str, ...] = ()
  prefix: str = ""
  cut: bool = False

  def repeats(self, claims: Sequence[str]) -> dict[str, list[bool]]:
    """Tells of the answers to it which repeat its right candidate's, and which a wrong one's."""
    return {
      "right": [bool(claim) and claim == self.right for claim in claims],
      "wrong": [bool(claim) and claim in self.wrong for claim in claims],
    }


def renderer(
  shown: ImagePrompts | None, images: tuple[ImageRef, ...], tokenizer: Any, rendering: Rendering
) -> Renderer:
  """Returns what tokenises prompts with these images."""
  if shown is None:
    return lambda prompt: chat.render(prompt, tokenizer, rendering)
  return lambda prompt: shown.render(prompt, images, tokenizer, rendering)


@dataclasses.dataclass(frozen=True)
class Reformulator:
  """Makes prompts with candidates.

  Attributes:
    candidates: how they are written.
    kinds: that are wanted, in their order.
    share: of a solution, that a hint or a prefix shows.
    whole: a candidate is all of a response, its thoughts with it, for a teacher to make it short; False: what stands behind them.
    extract: finds the answer that a response claims; None: it is all that the response says.
    images: how prompts show theirs; None: they have none.
  """

  candidates: Candidates
  kinds: Sequence[str]
  share: float
  whole: bool
  tokenizer: Any
  rendering: Rendering
  extract: AnswerExtractor | None
  images: ImagePrompts | None = None

  def claim(self, response: Response) -> str:
    """Returns the answer that a response claims, "" for none."""
    if self.extract is not None:
      return self.extract(response.text, ended=response.ended, prompt=response.prompt) or ""
    return final_text(response, self._control).strip()

  def draw(self, questions: Sequence[HardQuestion], most: int, seed: int) -> list[Drawn]:
    """Draws what is asked, `most` prompts at most.

    Args:
      questions: the hardest first.
      seed: each question draws its own numbers, by this and its number.
    """
    right = [self._usable(each.right) for each in questions]
    wrong = [self._usable(each.wrong) for each in questions]
    pair = self.candidates.wrong_pair
    available = [possible(self.kinds, len(a), len(b), wrong_pair=pair) for a, b in zip(right, wrong, strict=True)]
    return [self._draw(questions[i], kind, right[i], wrong[i], seed) for i, kind in chosen(available, most)]

  def _usable(self, responses: Sequence[Response]) -> list[Response]:
    """Keeps the responses that may be candidates."""
    return [response for response in responses if final_text(response, self._control).strip()]

  def _draw(
    self, question: HardQuestion, kind: str, right: Sequence[Response], wrong: Sequence[Response], seed: int
  ) -> Drawn:
    rng = np.random.default_rng((seed, question.number))
    if kind == "ncq":
      of_wrong = list(map(self._candidate, wrong))
      kept = distinct([each.answer for each in of_wrong], self.candidates.blocks)
      return Drawn(kind, question, None, [of_wrong[i] for i in kept])
    response = right[int(rng.integers(len(right)))]
    first = self._candidate(response)
    if kind != "bcq":
      return Drawn(kind, question, first, [first._replace(text=without(self._control, response.text))])
    swap, places = self.candidates.swaps(rng), rng.permutation(len(wrong))
    if self.candidates.wrong_pair:
      return Drawn(kind, question, None, [self._candidate(wrong[i]) for i in places[:2]])
    pair = [first, self._candidate(wrong[places[0]])]
    return Drawn(kind, question, first, pair[::-1] if swap else pair)

  def _candidate(self, response: Response) -> Candidate:
    control = self._control
    text = without(control, response.text) if self.whole else final_text(response, control)
    return Candidate(text, self.claim(response))

  def requests(self, drawn: Sequence[Drawn]) -> dict[tuple[int, str], chat.Prompt]:
    """Writes what a teacher reads to make candidates short, by question and text; each once."""
    shown = [(d.question, candidate.text) for d in drawn if d.kind in COMPARED for candidate in d.shown]
    return {(q.number, text): self.candidates.compression(q.prompt, text) for q, text in shown}

  def short(
    self, requests: Mapping[tuple[int, str], chat.Prompt], written: Sequence[Sequence[str]]
  ) -> dict[tuple[int, str], str]:
    """Takes the short candidates from what a teacher wrote to `requests`; "" where it wrote nothing."""
    texts = [final_text(Response(next(iter(each), "")), self._control).strip() for each in written]
    return dict(zip(requests, texts, strict=True))

  def write(self, drawn: Sequence[Drawn], short: Mapping[tuple[int, str], str]) -> list[Reformulated]:
    """Writes the prompts; one that does not fit is left out, and one whose candidates say what stands for an image.

    Args:
      short: candidates that a teacher has made short, by question and text. Where one of a prompt's is not there or "", all of that
        prompt's are cut instead, so that they have one form.
    """
    found = []
    for each in drawn:
      with contextlib.suppress(ImageFault):
        found.append(self._write(each, short))
    return [each for each in found if each is not None]

  def _renderer(self, question: HardQuestion) -> Renderer:
    return renderer(self.images, question.images, self.tokenizer, self.rendering)

  def _write(self, drawn: Drawn, short: Mapping[tuple[int, str], str]) -> Reformulated | None:
    kind, question, right, shown = drawn
    if kind in ("hint", "prefix"):
      text = beginning(shown[0].text, self.share, self.tokenizer)
      ask = self.candidates.with_hint if kind == "hint" else self.candidates.with_prefix
      ids = ask(question.prompt, text, self.tokenizer, self._renderer(question))
      prefix = text if kind == "prefix" else ""
      return None if ids is None else Reformulated(kind, question.number, ids, shown[0].answer, (), prefix)
    texts = [short.get((question.number, each.text), "") for each in shown]
    if cut := not all(texts):
      behind_thoughts = [final_text(Response(each.text), self._control) for each in shown]
      texts = [text or each.text for text, each in zip(behind_thoughts, shown, strict=True)]
    wrong = tuple(each.answer for each in shown if each is not right)
    render = self._renderer(question)
    ids = self.candidates.ask(kind, question.prompt, texts, self.tokenizer, render, wrong)
    if ids is None:
      return None
    return Reformulated(kind, question.number, ids, right.answer if right else "", wrong, cut=cut)

  @functools.cached_property
  def _control(self) -> tuple[str, ...]:
    return control_tokens(self.tokenizer)
