"""Conversations whose problem the teacher gets in one prompt (CCOPD, arXiv:2605.30251).

Problems are loaded as conversations (`load`); the assistant's turns are the student's own (`converse`), and those of training
are saved in the workdir (`Histories`), so that a resumed run has the same ones.
"""

import dataclasses
import functools
import json
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from opd_jax.config import Config
from opd_jax.context.replies import ReplyForm
from opd_jax.context.split_problem import from_example
from opd_jax.data import chat, pipeline, problems
from opd_jax.data import rendering as renderings
from opd_jax.data.conversation import CannotSplit, Conversation
from opd_jax.data.problems import Problems
from opd_jax.data.rendering import Rendering
from opd_jax.data.sources import Example
from opd_jax.errors import InputError
from opd_jax.rollout.generate import Generator
from opd_jax.runtime import hosts, json_files
from opd_jax.runtime.json_files import is_whole
from opd_jax.types import Params

AT_A_TIME = 1024  # conversations that are generated between two times that replies are saved
Prompts = dict[int, list[int]]  # token ids of the student's prompt, by the problem's number


def load(config: Config, path: str, tokenizer, rendering: Rendering | None = None, *, held_out: bool) -> Problems:
  """Loads the problems of a file or of a built-in task, each as a conversation.

  Problems that cannot be told turn by turn, and conversations that are too long, are refused or left out as
  `data.on_bad_line` says. Of held-out ones, which need answers, the first `eval.prompts`.

  Args:
    rendering: how the run renders its prompts; None: as its config says, today.
  """
  rendering = rendering or Rendering.from_config(config)
  examples, skipped, told = problems.load_examples(config, path, held_out=held_out)
  data, pairs = config.data, []
  for example in examples:
    try:
      conversation = from_example(example, config.context.user, config.context.max_turns)
      if len(conversation.turns) < config.context.min_turns:
        raise CannotSplit(
          f"it has {len(conversation.turns)} turns, and config.context.min_turns is {config.context.min_turns}"
        )
      told_student = _around(conversation, rendering)
      told_reader = told_student if held_out else _around(conversation, rendering.for_teacher())
      pairs.append((example, dataclasses.replace(told_student, full=told_reader.full)))
    except CannotSplit as e:
      if data.on_bad_line != "skip":
        raise InputError(
          f"{example.where}: the problem cannot be told turn by turn ({e}); mend it, or set data.on_bad_line=skip."
        ) from None
  if not pairs:
    raise InputError(f"None of the {len(examples)} problems of {examples[0].where} and after can be told turn by turn.")
  if not chat.uses_template(tokenizer, rendering):
    raise InputError(
      "config.context.kind is 'canonical', and a conversation needs a chat template: use a tokenizer that has one, and "
      "config.data.chat_template=True."
    )
  renderings.check(rendering, tokenizer)
  of_student = rendering.for_conversations()
  of_reader = of_student if held_out else rendering.for_teacher().for_conversations()  # who is told everything at once
  pairs, at_once, turn_by_turn = _rendered(pairs, tokenizer, of_reader, of_student, data.on_bad_line)
  left_out = (
    *problems.shown(pairs[0][1].full, tokenizer, of_reader),
    *problems.shown(pairs[0][1].raw(("Yes.",)), tokenizer, of_student),
  )
  least = np.array([len(row) for row in turn_by_turn])
  most = least + np.array([len(c.turns) - 1 for _, c in pairs]) * config.context.turn_tokens
  most = np.maximum(most, [len(row) for row in at_once])
  fits = most <= data.max_prompt
  if not fits.all() and data.on_bad_line != "skip":
    at = int(most.argmax())
    raise InputError(
      f"{pairs[at][0].where}: its conversation may come to {most[at]} tokens ({len(pairs[at][1].turns) - 1} replies of "
      f"config.context.turn_tokens={config.context.turn_tokens}), more than data.max_prompt={data.max_prompt}; "
      "raise that, lower "
      "turn_tokens or max_turns, or set data.on_bad_line=skip."
    )
  number = config.eval.prompts if held_out else len(pairs)
  chosen = [pair for pair, fit in zip(pairs, fits, strict=True) if fit][:number]
  if not chosen:
    raise InputError(
      f"No conversation fits data.max_prompt={data.max_prompt}: the shortest may come to {most.min()} tokens."
    )
  ids = [row for row, fit in zip(at_once, fits, strict=True) if fit][:number]
  ends = [range(int(least[fits].min())), range(int(most[fits].max()))]
  chosen_examples = [e for e, _ in chosen]
  return Problems(
    ids=ids,
    answers=[e.answer for e in chosen_examples],
    skipped=skipped + len(examples) - int(fits.sum()),
    teachers=tuple((e.teacher, e.where) for e in chosen_examples) if any(e.teacher for e in chosen_examples) else (),
    solutions=tuple(e.solution for e in chosen_examples if e.solution),
    conversations=tuple(conversation for _, conversation in chosen),
    prompt_lens=pipeline.padded_lens(ends, config.data.widths, limit=config.data.max_prompt),
    records=tuple(e.record for e in chosen_examples),
    notes=(
      *told,
      *problems.text_notes(config, path, chosen_examples, tokenizer, [c for _, c in chosen], held_out=held_out),
      *dict.fromkeys(left_out),
    ),
    origin=problems.origin(examples, tokenizer, rendering),
  )


def _around(conversation: Conversation, rendering: Rendering) -> Conversation:
  """Put the system message and the suffix of a rendering around a conversation.

  Raises:
    CannotSplit: it has a system message of its own.
  """
  if rendering.suffix:
    conversation = conversation.with_suffix(rendering.suffix)
  return conversation.with_system(rendering.system) if rendering.system else conversation


def _rendered(
  pairs: list[tuple[Example, Conversation]],
  tokenizer,
  at_once: Rendering,
  turn_by_turn: Rendering,
  on_bad_line: str,
) -> tuple[list[tuple[Example, Conversation]], list[list[int]], list[list[int]]]:
  """Render conversations at once, and turn by turn with blank replies; those that the template refuses are bad lines.

  Returns:
    What the template takes, and its token ids in both forms.
  """
  full, of_full = chat.render_each([c.full for _, c in pairs], tokenizer, at_once)
  blank = [c.raw(("",) * (len(c.turns) - 1)) for _, c in pairs]
  raw, of_raw = chat.render_each(blank, tokenizer, turn_by_turn)
  refused = [a or b for a, b in zip(of_full, of_raw, strict=True)]
  first = next((f"{e.where}: {reason}" for (e, _), reason in zip(pairs, refused, strict=True) if reason), "")
  if first and on_bad_line != "skip":
    raise InputError(f"{first}; or set data.on_bad_line=skip.")
  kept = [i for i, reason in enumerate(refused) if not reason]
  if not kept:
    raise InputError(f"None of the {len(pairs)} conversations can be used; the first fault is at {first}.")
  return [pairs[i] for i in kept], [full[i] or [] for i in kept], [raw[i] or [] for i in kept]


@dataclasses.dataclass
class Histories:
  """The student's prompts of every problem: conversations up to the reply that is trained.

  Attributes:
    conversations: of the run's problems.
    generate: answers prompts for the student.
    rendering: how the run renders its prompts.
    key: of which every reply's random numbers are derived.
    refresh: steps between two generations of replies; 0: one, by the student before training.
    final: whether each prompt ends at the last turn of the user; else at a random one.
    directory: where the replies are saved.
    initial_student: loads the student before training, which is only needed where `refresh` is 0.
    digest: of all that the replies depend on beside the step.
    reply_form: how a reply stands in its conversation.
    thoughts_cut: replies so far that were cut inside their thought.
    ended: whether each reply that was generated so far reached its end, or was cut.
    cut: prompts of `prompts` so far that lost their beginning, since they came out longer than any compiled length.
  """

  conversations: Sequence[Conversation]
  generate: Generator
  tokenizer: Any
  rendering: Rendering
  key: jax.Array
  refresh: int
  final: bool
  directory: epath.Path
  initial_student: Callable[[], Params]
  digest: str
  reply_form: ReplyForm
  cut: int = dataclasses.field(default=0, init=False)
  thoughts_cut: int = dataclasses.field(default=0, init=False)
  ended: list[bool] = dataclasses.field(default_factory=list, init=False)

  def block(self, step: int) -> tuple[int, int | None]:
    """Returns the step at which the replies that a step reads are generated, and the next such step, if there is one."""
    first = step // self.refresh * self.refresh if self.refresh else 0
    return first, first + self.refresh if self.refresh else None

  def prompts(
    self, first: int, student: Params, problems: Sequence[int], step: int, saved: Callable[[int, int], None]
  ) -> Prompts:
    """Makes the student's prompts for these problems from the replies of the block that begins at step `first`.

    Replies are read from the workdir; those that are missing are generated, and saved some at a time.

    Args:
      student: as it is before `step`; it generates the replies that are missing.
      problems: by number.
      saved: called with how many of how many conversations are saved; may raise, and they are not generated again.

    Raises:
      InputError: replies are lost, and the student that gave them is gone.
    """
    replies = self._load(first)
    missing = [i for i in problems if i not in replies]
    if missing and self.refresh and step != first:
      raise InputError(
        f"{self._file(first)} lacks replies that the student gave before step {first}, and it would reply otherwise by now; "
        "restore the file, or begin in a new --workdir."
      )
    params = student if self.refresh or not missing else self.initial_student()
    for start in range(0, len(missing), AT_A_TIME):
      part = missing[start : start + AT_A_TIME]
      replies |= dict(zip(part, self.replies(part, params, first), strict=True))
      hosts.on_first(functools.partial(self._save, first, replies))
      saved(len(problems) - len(missing) + start + len(part), len(problems))
    return dict(zip(problems, self.render(problems, [replies[i] for i in problems], first), strict=True))

  def replies(self, problems: Sequence[int], params: Params, step: int) -> list[tuple[str, ...]]:
    """Generates the assistant's turns of these conversations; those of one do not depend on the others."""
    key = jax.random.fold_in(self.key, step)

    def answer(prompts: Sequence[chat.Prompt], turn: int, open_ones: Sequence[int]) -> list[str]:
      numbers = [problems[i] for i in open_ones]
      ids, _ = self._render_within(prompts)  # what is cut here is cut again with the prompt that is trained
      completions = self.generate(params, ids, jax.random.fold_in(key, turn), numbers)
      self.ended += [response.ended for response in completions.responses]
      turns = [self.reply_form.turn(response) for response in completions.responses]
      self.thoughts_cut += sum(cut for _, cut in turns)
      return [text for text, _ in turns]

    return converse([self.conversations[i] for i in problems], answer)

  def render(self, problems: Sequence[int], replies: Sequence[tuple[str, ...]], step: int) -> list[list[int]]:
    """Renders conversations as token ids, up to the reply that is trained, and counts those that are `cut`."""
    if not self.final:
      replies = [r[: _random_turn(i, step, len(r) + 1)] for i, r in zip(problems, replies, strict=True)]
    prompts = [self.conversations[i].raw(r) for i, r in zip(problems, replies, strict=True)]
    ids, cut = self._render_within(prompts)
    self.cut += cut
    return ids

  def _render_within(self, prompts: Sequence[chat.Prompt]) -> tuple[list[list[int]], int]:
    return chat.render_within(prompts, self.tokenizer, self.rendering, self.generate.prompt_lens[-1])

  def _file(self, step: int) -> epath.Path:
    return self.directory / f"{step:08d}.jsonl"

  def _load(self, step: int) -> dict[int, tuple[str, ...]]:
    """Reads saved replies; empty where there is no file, or that of another run."""
    if not self._file(step).exists():
      return {}
    try:
      first, *lines = map(json_files.parse, self._file(step).read_bytes().split(b"\n")[:-1])
      if first["of"] != self.digest:
        return {}
      if not all(self._are_replies(line["problem"], line["replies"]) for line in lines):
        raise ValueError("no replies of these conversations")
      replies = {line["problem"]: tuple(line["replies"]) for line in lines}
    except (OSError, ValueError, KeyError, TypeError):
      raise InputError(
        f"{self._file(step)} is damaged, and the run goes on from the replies in it; give a new --workdir."
      ) from None
    return replies

  def _are_replies(self, problem: Any, texts: Any) -> bool:
    """Tell whether what is saved can be the replies to all turns but the last of a conversation."""
    if not is_whole(problem, most=len(self.conversations) - 1) or not isinstance(texts, list):
      return False
    turns = len(self.conversations[problem].turns)
    return len(texts) == turns - 1 and all(isinstance(text, str) for text in texts)

  def _save(self, step: int, replies: dict[int, tuple[str, ...]]) -> None:
    self.directory.mkdir(parents=True, exist_ok=True)
    lines = [{"of": self.digest}, *({"problem": i, "replies": replies[i]} for i in sorted(replies))]
    new = self.directory / f"{step:08d}.new"
    new.write_text("".join(json.dumps(line) + "\n" for line in lines))
    new.replace(self._file(step))


# (prompts, which turn, the numbers of their conversations) -> a reply to each
Answer = Callable[[Sequence[chat.Prompt], int, Sequence[int]], list[str]]


def converse(conversations: Sequence[Conversation], answer: Answer) -> list[tuple[str, ...]]:
  """Makes the assistant's turns of conversations whose user has written every turn down; without the last reply.

  All conversations are answered at the same turn in one go; those that are over drop out. The reply to the last turn is
  what is trained, or verified.
  """
  replies: list[tuple[str, ...]] = [()] * len(conversations)
  for turn in range(max((len(c.turns) for c in conversations), default=1) - 1):
    open_ones = [i for i, c in enumerate(conversations) if len(c.turns) > turn + 1]
    answers = answer([conversations[i].raw(replies[i]) for i in open_ones], turn, open_ones)
    for i, reply in zip(open_ones, answers, strict=True):
      replies[i] = (*replies[i], reply)
  return replies


def _random_turn(problem: int, step: int, turns: int) -> int:
  """Draws a number below `turns`, the same at every call."""
  return zlib.crc32(f"{problem} {step}".encode()) % turns
