"""A config's problems as token ids: of a file or a built-in task, as prompts or told turn by turn."""

import dataclasses
from collections.abc import Sequence

from opd_jax import config as configs
from opd_jax import tasks
from opd_jax.config import Config
from opd_jax.data import pipeline, sources
from opd_jax.data.conversation import Conversation
from opd_jax.errors import InputError

TRAIN_PROBLEMS = 8192  # of a built-in task; generated, so the number only has to be larger than most runs need


@dataclasses.dataclass(frozen=True)
class Problems:
  """Tokenised prompts with the answers to verify responses by.

  Attributes:
    ids: token ids of each prompt; of a conversation, of the prompt that holds all of it.
    answers: one of each prompt; "" where there is none.
    skipped: lines left out by data.on_bad_line.
    teachers: the teacher of each prompt and the prompt's line, where the data name teachers.
    solutions: responses to learn, where the data have them.
    conversations: the same problems turn by turn, where the context asks for them.
    prompt_lens: padded lengths of what the student reads, in tokens, rising; a batch takes the first that holds it.
  """

  ids: list[list[int]]
  answers: list[str]
  skipped: int = 0
  teachers: tuple[tuple[str, str], ...] = ()
  solutions: tuple[str, ...] = ()
  conversations: tuple[Conversation, ...] = ()
  prompt_lens: tuple[int, ...] = ()


def load(config: Config, path: str, tokenizer, *, held_out: bool) -> Problems:
  """Load and tokenise the problems of a file or of a built-in task.

  Args:
    held_out: load problems to evaluate on, which need answers: the first `eval.prompts` of them.
  """
  examples, skipped = load_examples(config, path, held_out=held_out)
  ids, usable, unusable = pipeline.tokenise(
    examples,
    tokenizer,
    chat_template=config.data.chat_template,
    system=config.data.system,
    max_prompt=config.data.max_prompt,
    on_bad_line=config.data.on_bad_line,
  )
  number = config.eval.prompts if held_out else len(ids)
  ids, chosen = ids[:number], usable[:number]
  return Problems(
    ids=ids,
    answers=[e.answer for e in chosen],
    skipped=skipped + unusable,
    teachers=tuple((e.teacher, e.where) for e in chosen) if any(e.teacher for e in usable) else (),
    solutions=tuple(e.solution for e in chosen if e.solution),
    prompt_lens=pipeline.padded_lens(ids, config.data.widths),
  )


def load_examples(config: Config, path: str, *, held_out: bool) -> tuple[list[sources.Example], int]:
  """Read the examples of a file or make those of a built-in task; returns them and the number of lines left out."""
  if path.startswith(configs.TASK):
    task = tasks.generator(path.removeprefix(configs.TASK))
    number = config.eval.prompts if held_out else TRAIN_PROBLEMS
    examples = [
      sources.Example(p.prompt, p.answer, f"{path}:{i + 1}", solution=p.solution, turns=p.turns, claims=p.claims)
      for i, p in enumerate(task.problems(number, seed=0, held_out=held_out))
    ]
    return examples, 0
  data = config.data
  fields = sources.Fields(data.prompt_field, data.answer_field, canonical=data.canonical_field)
  if not held_out:
    fields = dataclasses.replace(fields, teacher=data.teacher_field, solution=data.solution_field)
  return sources.read_jsonl(path, fields, data.on_bad_line, need_answer=held_out or config.mixture.reward > 0)


def check_solutions(train: Problems) -> None:
  """Refuse problems of which some have no response to learn.

  Raises:
    InputError: there are such problems.
  """
  if len(train.solutions) < len(train.ids):
    raise InputError(
      "config.rollout.by is 'data', and not all problems have a response to learn; see data.solution_field."
    )


def solutions(train: Problems, tokenizer, stop_ids: Sequence[int]) -> list[list[int]]:
  """Tokenise the responses in the data, each with a stop token behind it.

  Raises:
    InputError: a problem has no response.
  """
  check_solutions(train)
  texts = list(train.solutions)
  rows = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
  eos = tokenizer.eos_token_id
  stop = [eos] if eos in stop_ids else list(stop_ids[:1])  # of several, the one that ends a turn
  return [[*row, *stop] for row in rows]
