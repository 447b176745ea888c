"""A config's problems as token ids: of a file or a built-in task, as prompts or told turn by turn."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from opd_jax import config as configs
from opd_jax import tasks
from opd_jax.config import Config
from opd_jax.context import canonical, chat, conversation
from opd_jax.context.conversation import Conversation
from opd_jax.context.shards import Unfit
from opd_jax.data import pipeline, sources
from opd_jax.errors import InputError

TRAIN_PROBLEMS = 8192  # of a built-in task; generated, so the number only has to be larger than most runs need


@dataclasses.dataclass(frozen=True)
class Problems:
  """Tokenised prompts with the answers to judge responses by."""

  ids: list[list[int]]  # of conversations: of the prompts that say everything at once
  answers: list[str]
  skipped: int = 0  # lines left out by data.on_bad_line
  teachers: tuple[tuple[str, str], ...] = ()  # where the data say: which teacher answers each, and its line
  solutions: tuple[str, ...] = ()  # responses to learn, where the data have them
  conversations: tuple[Conversation, ...] = ()  # the same problems turn by turn, where the context asks for them
  widths: tuple[int, ...] = ()  # of what the student reads: rising, tokens; a batch takes the first that holds it


def read(c: Config, path: str, tokenizer, *, held_out: bool) -> Problems:
  """The prompts of a file or of a built-in task; of held-out ones, which need answers, the first `eval.prompts`."""
  if path.startswith(configs.TASK):
    task = tasks.generator(path.removeprefix(configs.TASK))
    made = task.problems(c.eval.prompts if held_out else TRAIN_PROBLEMS, seed=0, held_out=held_out)
    examples = [
      sources.Example(p.prompt, p.answer, f"{path}:{i + 1}", solution=p.solution, turns=p.turns, claims=p.claims)
      for i, p in enumerate(made)
    ]
    skipped = 0
  else:
    d = c.data
    need = held_out or c.mixture.reward > 0
    which = "" if held_out else d.teacher_field
    examples, skipped = sources.read_jsonl(
      path,
      d.prompt_field,
      d.answer_field,
      d.on_bad_line,
      need,
      which,
      d.canonical_field,
      "" if held_out else d.solution_field,
    )
  if c.context.kind == "canonical":
    return _conversations(c, examples, tokenizer, skipped, held_out)
  ids, kept, unusable = pipeline.tokenise(
    examples,
    tokenizer,
    chat_template=c.data.chat_template,
    system=c.data.system,
    max_prompt=c.data.max_prompt,
    on_bad_line=c.data.on_bad_line,
  )
  most = c.eval.prompts if held_out else len(ids)
  teachers = tuple((e.teacher, e.where) for e in kept[:most]) if any(e.teacher for e in kept) else ()
  widths = pipeline.widths(ids[:most], c.data.widths)
  answers, solutions = [e.answer for e in kept[:most]], tuple(e.solution for e in kept[:most] if e.solution)
  return Problems(ids[:most], answers, skipped + unusable, teachers, solutions, widths=widths)


def _conversations(c: Config, examples: Sequence[sources.Example], tokenizer, skipped: int, held_out: bool) -> Problems:
  """Problems that are told turn by turn; those that cannot be, and too long ones, as `data.on_bad_line` says."""
  d, told = c.data, []
  for example in examples:
    try:
      talk = conversation.from_example(example, c.context.user, c.context.max_turns)
      if len(talk.turns) < c.context.min_turns:
        raise Unfit(f"it has {len(talk.turns)} turns, and config.context.min_turns is {c.context.min_turns}")
      told.append((example, talk.under(d.system) if d.system else talk))
    except Unfit as e:
      if d.on_bad_line != "skip":
        raise InputError(
          f"{example.where}: the problem cannot be told turn by turn ({e}); mend it, or set data.on_bad_line=skip."
        ) from None
  if not told:
    raise InputError(f"None of the {len(examples)} problems of {examples[0].where} and after can be told turn by turn.")
  if not chat.uses_template(tokenizer, chat_template=d.chat_template):
    raise InputError(
      "config.context.kind is 'canonical', and a conversation needs a chat template: use a tokenizer that has one, and "
      "config.data.chat_template=True."
    )
  least, most = canonical.lengths([t for _, t in told], tokenizer, c.context.turn_tokens)
  at_once = chat.render_all([t.full for _, t in told], tokenizer, chat_template=True)
  most = np.maximum(most, [len(row) for row in at_once])
  fits = most <= d.max_prompt
  if not fits.all() and d.on_bad_line != "skip":
    at = int(most.argmax())
    raise InputError(
      f"{told[at][0].where}: its conversation may come to {most[at]} tokens ({len(told[at][1].turns) - 1} replies of "
      f"config.context.turn_tokens={c.context.turn_tokens}), more than data.max_prompt={d.max_prompt}; raise that, lower "
      "turn_tokens or max_turns, or set data.on_bad_line=skip."
    )
  number = c.eval.prompts if held_out else len(told)
  kept = [pair for pair, fit in zip(told, fits, strict=True) if fit][:number]
  if not kept:
    raise InputError(
      f"No conversation fits data.max_prompt={d.max_prompt}: the shortest may come to {most.min()} tokens."
    )
  ids = [row for row, fit in zip(at_once, fits, strict=True) if fit][:number]
  ends = [range(int(least[fits].min())), range(int(most[fits].max()))]
  examples_kept = [e for e, _ in kept]
  return Problems(
    ids,
    [e.answer for e in examples_kept],
    skipped + len(examples) - int(fits.sum()),
    tuple((e.teacher, e.where) for e in examples_kept) if any(e.teacher for e in examples_kept) else (),
    tuple(e.solution for e in examples_kept if e.solution),
    tuple(t for _, t in kept),
    pipeline.widths(ends, c.data.widths),
  )


def solutions(train: Problems, tokenizer, stop_ids: Sequence[int]) -> list[list[int]]:
  """Token ids of the responses in the data, each with a stop token."""
  texts = list(train.solutions)
  if len(texts) < len(train.ids):
    raise InputError(
      "config.rollout.by is 'data', and not all problems have a response to learn; see data.solution_field."
    )
  rows = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
  own, known = tokenizer.eos_token_id, stop_ids
  end = [own] if own in known else list(known[:1])  # of several, the one that ends a turn
  return [[*row, *end] for row in rows]
