"""Task accuracy where a problem can be told at once or turn by turn: FULL, CONCAT and RAW (arXiv:2605.30251).

In RAW the conversation is the student's own, sampled anew at every evaluation, as are its k repeats: the earlier replies as
well as the last one. The same sampling keys are used every time, so that two evaluations differ by the weights alone.

`pollution` shows everything at once, with a wrong solution as if the assistant had given it, or with a wrong hint of the
user's. Which wrong answer: that of another problem (ours). `anchored` measures how often the student falls back on a wrong
answer of its own in RAW.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from opd_jax.config import Config
from opd_jax.context.canonical import converse
from opd_jax.data import chat, pipeline
from opd_jax.data.conversation import Conversation
from opd_jax.evaluation.inputs import EvaluationInputs
from opd_jax.evaluation.single_turn import MakeGenerator, accuracy, response_lengths, verify_all
from opd_jax.rollout.generate import Generator
from opd_jax.runtime import keys
from opd_jax.runtime.programs import ProgramCache
from opd_jax.tasks import AnswerExtractor, Verifier
from opd_jax.types import Params

FORMS = ("full", "concat", "raw")
POLLUTED, EARLIER_TURNS = 8, 64  # random keys of the forms begin at 0, those of polluted prompts and earlier turns here


class MultiTurnEvaluator:
  """Answers the held-out problems in every form and verifies the last reply.

  A record's own accuracy is RAW's; "forms" has all three, and "anchored" what became of wrong guesses, see `anchored`.
  "prompts_cut", where there are any, counts the conversations that lost their beginning, see chat.render_within.

  Attributes:
    conversations: every problem's conversation, k times in a row.
    program_cache: compiled programs, which evaluations of one process can share.
    key: of which all random numbers are derived.
  """

  def __init__(
    self,
    config: Config,
    inputs: EvaluationInputs,
    params: Params,
    program_cache: ProgramCache | None = None,
    make_generator: MakeGenerator = Generator,
  ):
    """Compiles the last reply's program for the longest conversations; others are compiled when they are needed."""
    self.inputs, self._k = inputs, config.eval.k
    self.program_cache: ProgramCache = {} if program_cache is None else program_cache
    self._pass_at, self._samples = tuple(config.eval.pass_at), config.log.samples
    self.conversations = [c for c in inputs.problems.conversations for _ in range(self._k)]
    self._answers = [a for a in inputs.problems.answers for _ in range(self._k)]
    self.key = keys.of_seed(config.seed, keys.Use.EVALUATION)

    def generator(name: str, max_tokens: int) -> Generator:
      return make_generator(
        inputs.generator_config,
        inputs.tokenizer,
        batch=min(config.eval.batch, len(self.conversations)),
        prompt_lens=prompt_lens,
        max_tokens=max_tokens,
        name=name,
        numbered=True,
        program_cache=self.program_cache,
      )

    prompt_lens = self._prompt_lens(config)
    self._last = generator("evaluate", inputs.max_tokens)
    self._earlier = generator("converse", config.context.turn_tokens)
    self._last.prepare(params, self._last.prompt_lens[-1])

  @property
  def batch(self) -> int:
    """The number of conversations that are continued at a time."""
    return self._last.batch

  @property
  def widths(self) -> tuple[int, ...]:
    """The compiled prompt lengths, rising, in tokens."""
    return self._last.prompt_lens

  @property
  def compiled(self) -> list[dict]:
    """The records of all compiled programs, see programs.record."""
    return self._last.compiled + self._earlier.compiled

  def __call__(self, params: Params) -> tuple[dict[str, Any], list[dict]]:
    """Returns the record of metrics.jsonl (without step and time) and a few conversations as text."""
    replies = self.converse(params)
    prompts = {
      "full": [c.full for c in self.conversations],
      "concat": [c.concat() for c in self.conversations],
      "raw": [c.raw(r) for c, r in zip(self.conversations, replies, strict=True)],
    }
    records, texts, correct = {}, [], []
    for i, form in enumerate(FORMS):
      records[form], texts, correct = self._answer(params, prompts[form], i)
    samples = [
      self._sample(i, replies[i], texts[i], bool(correct[i]))
      for i in range(0, min(self._samples * self._k, len(texts)), self._k)
    ]
    forms = {form: {name: r[name] for name in ("accuracy", "low", "high")} for form, r in records.items()}
    return records["raw"] | {"forms": forms} | self._anchored(replies, texts), samples

  def pollution(self, params: Params) -> dict[str, dict[str, Any]]:
    """Measures accuracy with a wrong solution ("solution") and with a wrong hint ("hint") in a prompt that says everything."""
    wrong = [_other(self._answers, i) for i in range(len(self._answers))]
    prompts = {
      "solution": [c.with_wrong_answer(w) for c, w in zip(self.conversations, wrong, strict=True)],
      "hint": [c.with_wrong_hint(w) for c, w in zip(self.conversations, wrong, strict=True)],
    }
    return {name: self._answer(params, texts, POLLUTED + i)[0] for i, (name, texts) in enumerate(prompts.items())}

  def converse(self, params: Params) -> list[tuple[str, ...]]:
    """Generates the student's earlier replies in a new conversation about every problem."""

    def answer(prompts: Sequence[chat.Prompt], turn: int, open_ones: Sequence[int]) -> list[str]:
      return self._earlier(
        params, self.ids(prompts), jax.random.fold_in(self.key, EARLIER_TURNS + turn), open_ones
      ).texts

    return converse(self.conversations, answer)

  def ids(self, prompts: Sequence[chat.Prompt]) -> list[list[int]]:
    """Renders chat prompts as token ids of at most the longest compiled length, cut at their beginning."""
    return self._render_within(prompts)[0]

  def _render_within(self, prompts: Sequence[chat.Prompt]) -> tuple[list[list[int]], int]:
    return chat.render_within(prompts, self.inputs.tokenizer, self.widths[-1])

  def _anchored(self, replies: Sequence[tuple[str, ...]], texts: Sequence[str]) -> dict[str, Any]:
    """Makes the part of the record about wrong guesses; empty where the task cannot extract an answer from a reply."""
    extract_answer = self.inputs.extract_answer
    if extract_answer is None:
      return {}
    return {"anchored": anchored(replies, texts, self._answers, self.inputs.verify, extract_answer)._asdict()}

  def _answer(self, params: Params, prompts: Sequence[chat.Prompt], key_number: int):
    """Returns the record of the last replies to these prompts, the replies, and which are right."""
    ids, cut = self._render_within(prompts)
    completions = self._last(params, ids, jax.random.fold_in(self.key, key_number), range(len(ids)))
    correct = verify_all(self.inputs.verify, completions.texts, self._answers)
    record = accuracy(correct.reshape(-1, self._k), self._pass_at) | response_lengths(completions)
    return record | ({"prompts_cut": cut} if cut else {}), completions.texts, correct

  def _sample(self, i: int, replies: Sequence[str], text: str, correct: bool) -> dict[str, Any]:
    conversation: Conversation = self.conversations[i]
    messages = [*conversation.raw(replies), {"role": "assistant", "content": text}]
    return {"messages": messages, "response": text, "answer": self._answers[i], "correct": correct}

  def _prompt_lens(self, config: Config) -> tuple[int, ...]:
    """Returns the compiled prompt lengths that hold all forms and the polluted prompts."""
    problems, tokenizer = self.inputs.problems, self.inputs.tokenizer
    polluted = [c.with_wrong_answer(a) for c, a in zip(self.conversations[:: self._k], problems.answers, strict=True)]
    conversations = problems.conversations
    prompts = [c.full for c in conversations] + [c.concat() for c in conversations] + polluted
    longest = max(map(len, chat.render_all(prompts, tokenizer, chat_template=True))) + 16  # another's answer
    known = problems.prompt_lens
    return pipeline.padded_lens([range(known[0]), range(max(known[-1], longest))], config.data.widths)


class Anchored(NamedTuple):
  """Self-anchoring as behaviour: what last replies made of a wrong answer that the student gave before."""

  wrong: float  # share of the conversations in which the last answer claimed before the last turn is wrong
  kept: float | None  # of these, the share whose last reply repeats it; None where there are none


def anchored(
  replies: Sequence[Sequence[str]],
  texts: Sequence[str],
  answers: Sequence[str],
  verify: Verifier,
  extract_answer: AnswerExtractor,
) -> Anchored:
  """Measures how often a wrong guess is repeated.

  Args:
    replies: the student's replies in each conversation, without the last.
    texts: the last replies.
    answers: the right answers.
    extract_answer: gives the answer that a reply states, or None.
  """
  guessed: dict[int, str] = {}
  for i, earlier in enumerate(replies):
    if guess := _last_guess(earlier, extract_answer):
      guessed[i] = guess
  right = verify_all(verify, list(guessed.values()), [answers[i] for i in guessed])
  wrong = [i for i, correct in zip(guessed, right, strict=True) if not correct]
  repeated = verify_all(verify, [texts[i] for i in wrong], [extract_answer(guessed[i]) or "" for i in wrong])
  return Anchored(len(wrong) / len(texts), float(repeated.mean()) if wrong else None)


def _last_guess(replies: Sequence[str], extract_answer: AnswerExtractor) -> str:
  """Returns the last of the replies that states an answer; "" if none does."""
  return next((reply for reply in reversed(replies) if extract_answer(reply) is not None), "")


def _other(answers: Sequence[str], i: int) -> str:
  """Returns the next answer that differs from the i-th; where all are equal, one that is none."""
  n = len(answers)
  return next((answers[(i + j) % n] for j in range(1, n) if answers[(i + j) % n] != answers[i]), f"not {answers[i]}")
