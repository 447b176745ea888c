"""Task accuracy where a problem can be told at once or turn by turn: FULL, CONCAT and RAW (arXiv:2605.30251).

In RAW the conversation is the student's own, sampled anew at every evaluation, as are its k repeats: the earlier replies as
well as the last one. The same sampling keys are used every time, so that two evaluations differ by the weights alone.

`pollution` shows everything at once, with a wrong answer as if the assistant had given it, or with a wrong hint of the
user's. Both claim another problem's final answer that is not right here, too, without its solution: that would be about
other things, and its words would give it away (ours; the paper does not say where its wrong solutions come from).
`anchored` measures how often the student falls back on a wrong answer of its own in RAW.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from opd_jax.config import Config
from opd_jax.context.canonical import converse
from opd_jax.context.replies import ReplyForm
from opd_jax.data import chat, pipeline
from opd_jax.data.conversation import Conversation
from opd_jax.evaluation.inputs import EvaluationInputs
from opd_jax.evaluation.single_turn import MakeGenerator, accuracy, response_lengths, verify_all
from opd_jax.rollout.generate import Generator
from opd_jax.runtime import keys
from opd_jax.runtime.programs import ProgramCache
from opd_jax.tasks.problem import AnswerExtractor, Response, Verifier
from opd_jax.types import Params

FORMS = ("full", "concat", "raw")
POLLUTED, EARLIER_TURNS = 8, 64  # random keys of the forms begin at 0, those of polluted prompts and earlier turns here


class MultiTurnEvaluator:
  """Answers the held-out problems in every form and verifies the last reply.

  A record's own accuracy is RAW's; "forms" has all three, and "anchored" what became of wrong guesses, see `anchored`.
  "replies_cut", where there are any, is the share of earlier replies that context.turn_tokens cut.
  "prompts_cut", where there are any, counts the conversations that lost their beginning, see chat.render_within, and
  "thoughts_cut" the replies to earlier turns that were cut inside their thought, see context/replies.py.

  Attributes:
    conversations: every problem's conversation, k times in a row.
    program_cache: compiled programs, which evaluations of one process can share.
    key: of which all random numbers are derived.
    earlier: the responses to the earlier turns of each conversation, of the last call of `converse`.
  """

  earlier: list[list[Response]]

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

    def generator(name: str, max_tokens: int, prompt_lens: tuple[int, ...]) -> Generator:
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

    self.earlier = [[] for _ in self.conversations]
    self._reply_form = ReplyForm.of(inputs.tokenizer, inputs.rendering, self.conversations[0].system)
    prompt_lens = self._prompt_lens(config)
    self._generator = generator
    self._last = generator("evaluate", inputs.max_tokens, prompt_lens)
    self._earlier = generator("converse", config.context.turn_tokens, prompt_lens)
    self._polluted = self._last
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
    polluted = [] if self._polluted is self._last else self._polluted.compiled
    return self._last.compiled + self._earlier.compiled + polluted

  def __call__(self, params: Params) -> tuple[dict[str, Any], list[dict]]:
    """Returns the record of metrics.jsonl (without step and time) and a few conversations as text."""
    replies = self.converse(params)
    prompts = {
      "full": [c.full for c in self.conversations],
      "concat": [c.concat() for c in self.conversations],
      "raw": [c.raw(r) for c, r in zip(self.conversations, replies, strict=True)],
    }
    records, last, correct = {}, [], []
    for i, form in enumerate(FORMS):
      records[form], last, correct = self._answer(params, prompts[form], i)
    samples = [
      self._sample(i, replies[i], last[i].text, bool(correct[i])) | {"ended": last[i].ended}
      for i in range(0, min(self._samples * self._k, len(last)), self._k)
    ]
    names = ("accuracy", "low", "high", "prompts_cut")
    forms = {form: {name: r[name] for name in names if name in r} for form, r in records.items()}
    earlier = [response for responses in self.earlier for response in responses]
    cut = sum(self._reply_form.turn(response)[1] for response in earlier)
    counts: dict[str, Any] = {"thoughts_cut": cut} if cut else {}
    if not all(response.ended for response in earlier):
      counts["replies_cut"] = sum(not response.ended for response in earlier) / len(earlier)
    return records["raw"] | {"forms": forms} | counts | self._anchored(last), samples

  def pollution(self, params: Params) -> dict[str, dict[str, Any]]:
    """Measures accuracy with a wrong "solution" and with a wrong "hint" in a prompt that says everything."""
    problems = self.inputs.problems
    found = wrong_answers(problems.conversations, problems.answers, self.inputs.verify, problems.records)
    wrong = [w for w in found for _ in range(self._k)]
    prompts = {
      "solution": [c.with_wrong_answer(w) for c, w in zip(self.conversations, wrong, strict=True)],
      "hint": [c.with_wrong_hint(w) for c, w in zip(self.conversations, wrong, strict=True)],
    }
    self._polluted = self._generator_of([prompt for texts in prompts.values() for prompt in texts[:: self._k]])
    return {
      name: self._answer(params, texts, POLLUTED + i, self._polluted)[0]
      for i, (name, texts) in enumerate(prompts.items())
    }

  def _generator_of(self, prompts: Sequence[chat.Prompt]) -> Generator:
    """Returns the generator of last replies, or another where these prompts are longer than those of all forms."""
    longest = max(map(len, chat.render_all(prompts, self.inputs.tokenizer, self.inputs.rendering.for_conversations())))
    room = self.inputs.model.cfg.max_positions - self.inputs.max_tokens
    width = max(self.widths[-1], min(-(-longest // 16) * 16, room))
    if width == self.widths[-1]:
      return self._last
    return self._generator("evaluate", self.inputs.max_tokens, (*self.widths, width))

  def converse(self, params: Params) -> list[tuple[str, ...]]:
    """Generates the student's earlier replies in a new conversation about every problem."""
    self.earlier = [[] for _ in self.conversations]

    def answer(prompts: Sequence[chat.Prompt], turn: int, open_ones: Sequence[int]) -> list[str]:
      key = jax.random.fold_in(self.key, EARLIER_TURNS + turn)
      responses = self._earlier(params, self.ids(prompts), key, open_ones).responses
      for i, response in zip(open_ones, responses, strict=True):
        self.earlier[i].append(response)
      return [self._reply_form.turn(response)[0] for response in responses]

    return converse(self.conversations, answer)

  def ids(self, prompts: Sequence[chat.Prompt]) -> list[list[int]]:
    """Renders chat prompts as token ids of at most the longest compiled length, cut at their beginning.

    An earlier turn's prompt is the beginning of RAW's, which is cut, too, where that is, and counted.
    """
    return self.render_within(prompts)[0]

  def render_within(self, prompts: Sequence[chat.Prompt]) -> tuple[list[list[int]], int]:
    """Renders chat prompts as `ids` does, and counts those that lost their beginning."""
    return chat.render_within(prompts, self.inputs.tokenizer, self.inputs.rendering, self.widths[-1])

  def _anchored(self, last: Sequence[Response]) -> dict[str, Any]:
    """Makes the part of the record about wrong guesses; empty where the task cannot extract an answer from a reply."""
    extract_answer = self.inputs.extract_answer
    if extract_answer is None:
      return {}
    return {"anchored": anchored(self.earlier, last, self._answers, self.inputs.verify, extract_answer)._asdict()}

  def _answer(
    self, params: Params, prompts: Sequence[chat.Prompt], key_number: int, generator: Generator | None = None
  ):
    """Returns the record of the last replies to these prompts, the replies, and which are right."""
    generate = generator or self._last
    ids, cut = chat.render_within(prompts, self.inputs.tokenizer, self.inputs.rendering, generate.prompt_lens[-1])
    completions = generate(params, ids, jax.random.fold_in(self.key, key_number), range(len(ids)))
    index = [i // self._k for i in range(len(self._answers))]
    responses = self.inputs.problems.with_records(completions.responses, index)
    correct, failures = verify_all(self.inputs.verify, responses, self._answers)
    record = accuracy(correct.reshape(-1, self._k), self._pass_at) | response_lengths(completions) | failures
    return record | ({"prompts_cut": cut} if cut else {}), completions.responses, correct

  def _sample(self, i: int, replies: Sequence[str], text: str, correct: bool) -> dict[str, Any]:
    conversation: Conversation = self.conversations[i]
    messages = [*conversation.raw(replies), {"role": "assistant", "content": text}]
    return {"messages": messages, "response": text, "answer": self._answers[i], "correct": correct}

  def _prompt_lens(self, config: Config) -> tuple[int, ...]:
    """Returns the compiled prompt lengths that hold all forms."""
    problems, tokenizer = self.inputs.problems, self.inputs.tokenizer
    conversations = problems.conversations
    prompts = [c.full for c in conversations] + [c.concat() for c in conversations]
    longest = max(map(len, chat.render_all(prompts, tokenizer, self.inputs.rendering.for_conversations())))
    known = problems.prompt_lens
    return pipeline.padded_lens([range(known[0]), range(max(known[-1], longest))], config.data.widths)


class Anchored(NamedTuple):
  """Self-anchoring as behaviour: what last replies made of a wrong answer that the student gave before."""

  wrong: float  # share of the conversations in which the last answer claimed before the last turn is wrong
  kept: float | None  # of these, the share whose last reply repeats it; None where there are none


def anchored(
  replies: Sequence[Sequence[Response]],
  last: Sequence[Response],
  answers: Sequence[str],
  verify: Verifier,
  extract_answer: AnswerExtractor,
) -> Anchored:
  """Measures how often a wrong guess is repeated.

  Args:
    replies: the student's replies in each conversation, without the last.
    last: the last replies.
    answers: the right answers.
    extract_answer: gives the answer that a reply states, or None.
  """
  claims = [_last_claim(earlier, extract_answer) for earlier in replies]
  guessed = {i: claim for i, claim in enumerate(claims) if claim}
  right = verify_all(verify, [reply for reply, _ in guessed.values()], [answers[i] for i in guessed]).correct
  wrong = [i for i, correct in zip(guessed, right, strict=True) if not correct]
  repeated = verify_all(verify, [last[i] for i in wrong], [guessed[i][1] for i in wrong]).correct
  return Anchored(len(wrong) / len(last), float(repeated.mean()) if wrong else None)


def _last_claim(replies: Sequence[Response], extract_answer: AnswerExtractor) -> tuple[Response, str] | None:
  """Returns the last of the replies that states an answer, with the answer; None if none does."""
  for reply in reversed(replies):
    claim = extract_answer(reply.text, ended=reply.ended, prompt=reply.prompt)
    if claim is not None:
      return reply, claim
  return None


def wrong_answers(
  conversations: Sequence[Conversation],
  answers: Sequence[str],
  verify: Verifier,
  records: Sequence[Mapping[str, Any]] = (),
) -> list[str]:
  """Finds a wrong answer to every problem: the next problem's that does not verify here, alone or as it is claimed.

  Where all problems have the same answer, it is 0 or 1.

  Args:
    records: of the problems, where the verifier takes them.
  """
  right: dict[tuple[str, str, int], bool] = {}

  def is_right(answer: str, i: int) -> bool:
    claims = (answer, *(claim.format(answer) for claim in conversations[i].claims))
    known = (answer, answers[i], i if records else 0)
    more: dict[str, Any] = {"record": records[i]} if records else {}
    if known not in right:
      right[known] = any(verify(claim, answers[i], **more) for claim in claims)
    return right[known]

  n, wrong = len(answers), []
  for i in range(n):
    others = dict.fromkeys([*(answers[(i + j) % n] for j in range(1, n)), "0", "1"])
    wrong.append(next(other for other in others if other and other != answers[i] and not is_right(other, i)))
  return wrong
