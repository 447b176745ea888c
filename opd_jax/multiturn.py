"""Task accuracy where a problem can be told at once or turn by turn: FULL, CONCAT and RAW (arXiv:2605.30251).

In RAW the conversation is the student's own, sampled anew at every evaluation, as are its k repeats: the earlier replies as
well as the last one. The same sampling keys are used every time, so that two evaluations differ by the weights alone.

`pollution` tells everything at once, with a wrong solution as if the assistant had given it, or a wrong hint of the user's.
Which wrong answer: that of another problem (ours). `anchored` says how often the student falls back on a wrong answer of its
own in RAW.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from opd_jax.config import Config
from opd_jax.context import chat
from opd_jax.context.conversation import Conversation
from opd_jax.context.histories import converse
from opd_jax.data import pipeline
from opd_jax.evaluation import judge, spoken, summarise
from opd_jax.inputs import Evaluation
from opd_jax.programs import Kept
from opd_jax.speaker import Speaker
from opd_jax.tasks import Claimed, Verifier
from opd_jax.types import Params

FORMS = ("full", "concat", "raw")


class MultiTurnEvaluator:
  """Tells the held-out problems in every form and judges the last reply.

  A record's own accuracy is RAW's; "forms" has all three, and "anchored" what became of wrong guesses, see `anchored`.

  Attributes:
    talks: every problem's conversation, k times in a row.
    kept: compiled programs, which evaluations of one process can share.
  """

  def __init__(self, c: Config, inputs: Evaluation, params: Params, kept: Kept | None = None):
    """Compiles the last reply's program for the longest conversations; others when they are needed."""
    self.inputs, self._k, self.kept = inputs, c.eval.k, {} if kept is None else kept
    self._pass_at, self._samples = tuple(c.eval.pass_at), c.log.samples
    self.talks = [talk for talk in inputs.problems.conversations for _ in range(self._k)]
    self._answers = [a for a in inputs.problems.answers for _ in range(self._k)]
    self.key = jax.random.fold_in(jax.random.key(c.seed), 2**20)  # no training step has this number
    made = {"batch": min(c.eval.batch, len(self.talks)), "widths": self._widths(c), "numbered": True, "kept": self.kept}
    self._last = Speaker(inputs.voice, inputs.tokenizer, max_tokens=inputs.max_tokens, **made)
    self._reply = Speaker(inputs.voice, inputs.tokenizer, max_tokens=c.context.turn_tokens, name="converse", **made)
    self._last.prepare(params, self._last.widths[-1])

  @property
  def batch(self) -> int:
    """Conversations at a time."""
    return self._last.batch

  @property
  def widths(self) -> tuple[int, ...]:
    """That prompts are padded to, rising; tokens."""
    return self._last.widths

  @property
  def compiled(self) -> list[dict]:
    return self._last.compiled + self._reply.compiled

  def __call__(self, params: Params) -> tuple[dict[str, Any], list[dict]]:
    """Returns the record of metrics.jsonl (without step and time) and a few conversations as text."""
    replies = self.converse(params)
    prompts = {
      "full": [t.full for t in self.talks],
      "concat": [t.concat() for t in self.talks],
      "raw": [t.raw(r) for t, r in zip(self.talks, replies, strict=True)],
    }
    forms, shown, guesses = {}, [], {}
    for i, form in enumerate(FORMS):
      forms[form], texts, correct = self._asked(params, prompts[form], i)
      if form == "raw":
        some = range(0, min(self._samples * self._k, len(texts)), self._k)
        shown = [self._shown(i, replies[i], texts[i], bool(correct[i])) for i in some]
        guesses = self._anchored(replies, texts)
    short = {form: {key: found[key] for key in ("accuracy", "low", "high")} for form, found in forms.items()}
    return forms["raw"] | {"forms": short} | guesses, shown

  def pollution(self, params: Params) -> dict[str, dict[str, Any]]:
    """Accuracy with a wrong solution ("solution") and with a wrong hint ("hint") in a prompt that tells everything."""
    wrong = [_other(self._answers, i) for i in range(len(self._answers))]
    prompts = {
      "solution": [t.misled(w) for t, w in zip(self.talks, wrong, strict=True)],
      "hint": [t.hinted(w) for t, w in zip(self.talks, wrong, strict=True)],
    }
    return {name: self._asked(params, of, 8 + i)[0] for i, (name, of) in enumerate(prompts.items())}

  def _anchored(self, replies: Sequence[tuple[str, ...]], texts: Sequence[str]) -> dict[str, Any]:
    """Of the record; nothing where the task cannot tell which answer a reply claims."""
    claimed = self.inputs.claimed
    if claimed is None:
      return {}
    return {"anchored": anchored(replies, texts, self._answers, self.inputs.verify, claimed)._asdict()}

  def converse(self, params: Params) -> list[tuple[str, ...]]:
    """The student's earlier replies in a new conversation about every problem."""

    def answer(prompts: Sequence[chat.Prompt], turn: int, going_on: Sequence[int]) -> list[str]:
      return self._reply(params, self.ids(prompts), jax.random.fold_in(self.key, 64 + turn), going_on).texts

    return converse(self.talks, answer)

  def _asked(self, params: Params, prompts: Sequence[chat.Prompt], purpose: int):
    """The record of what is answered to these prompts, the answers, and which are right."""
    ids = self.ids(prompts)
    speech = self._last(params, ids, jax.random.fold_in(self.key, purpose), range(len(ids)))
    correct = judge(self.inputs.verify, speech.texts, self._answers)
    return summarise(correct.reshape(-1, self._k), self._pass_at) | spoken(speech), speech.texts, correct

  def _shown(self, i: int, replies: Sequence[str], text: str, correct: bool) -> dict[str, Any]:
    talk: Conversation = self.talks[i]
    messages = [*talk.raw(replies), {"role": "assistant", "content": text}]
    return {"messages": messages, "response": text, "answer": self._answers[i], "correct": correct}

  def ids(self, prompts: Sequence[chat.Prompt]) -> list[list[int]]:
    """Texts are tokenised anew, and may come out a little longer than they were said: the beginning is lost then."""
    longest = self.widths[-1]
    return [ids[-longest:] for ids in chat.render_all(prompts, self.inputs.tokenizer, chat_template=True)]

  def _widths(self, c: Config) -> tuple[int, ...]:
    """Of all forms, and of what pollutes them."""
    talks, known = self.inputs.problems.conversations, self.inputs.problems.widths
    polluted = [t.misled(a) for t, a in zip(talks, self.inputs.problems.answers, strict=True)]
    every = [t.full for t in talks] + [t.concat() for t in talks] + polluted
    longest = max(map(len, chat.render_all(every, self.inputs.tokenizer, chat_template=True))) + 16  # another's answer
    return pipeline.widths([range(known[0]), range(max(known[-1], longest))], c.data.widths)


class Anchored(NamedTuple):
  """Self-anchoring, as behaviour: what a last reply made of a wrong answer that the student gave before."""

  wrong: float  # share of the conversations in which the last answer claimed before the last turn is wrong
  kept: float | None  # of these, the share whose last reply repeats it; None where there are none


def anchored(
  replies: Sequence[Sequence[str]], texts: Sequence[str], answers: Sequence[str], verify: Verifier, claimed: Claimed
) -> Anchored:
  """How often a wrong guess is kept.

  Args:
    replies: by conversation, the student's, but for the last.
    texts: the last replies.
    claimed: which answer a reply claims, if any.
  """
  guessed = {i: said for i, all_said in enumerate(replies) if (said := _last(all_said, claimed))}
  right = judge(verify, list(guessed.values()), [answers[i] for i in guessed])
  wrong = [i for i, correct in zip(guessed, right, strict=True) if not correct]
  kept = judge(verify, [texts[i] for i in wrong], [claimed(guessed[i]) or "" for i in wrong])
  return Anchored(len(wrong) / len(texts), float(kept.mean()) if wrong else None)


def _last(replies: Sequence[str], claimed: Claimed) -> str:
  """The last of them that claims an answer."""
  return next((reply for reply in reversed(replies) if claimed(reply) is not None), "")


def _other(answers: Sequence[str], i: int) -> str:
  """The next answer that differs from the i-th; where all are equal, one that is none."""
  n = len(answers)
  return next((answers[(i + j) % n] for j in range(1, n) if answers[(i + j) % n] != answers[i]), f"not {answers[i]}")
