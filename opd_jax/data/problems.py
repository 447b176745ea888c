"""A config's problems as token ids: of a file or a built-in task, as prompts or told turn by turn."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence

from opd_jax import config as configs
from opd_jax import tasks
from opd_jax.config import Config
from opd_jax.data import chat, lost_text, pipeline, sources, stop_tokens
from opd_jax.data import rendering as renderings
from opd_jax.data import tokenizer as tokenizers
from opd_jax.data.conversation import Conversation
from opd_jax.data.rendering import Rendering
from opd_jax.errors import InputError

TRAIN_PROBLEMS = 8192  # of a built-in task; generated, so the number only has to be larger than most runs need


@dataclasses.dataclass(frozen=True)
class Problems:
  """Tokenised prompts with the answers to verify responses by.

  Attributes:
    ids: token ids of each prompt; of a conversation, of the prompt that holds all of it.
    answers: one of each prompt, a file's references reduced to their final answers; "" where there is none.
    skipped: lines left out by data.on_bad_line.
    teachers: the teacher of each prompt and the prompt's line, where the data name teachers.
    solutions: responses to learn, where the data have them.
    conversations: the same problems turn by turn, where the context asks for them.
    prompt_lens: padded lengths of what the student reads, in tokens, rising; a batch takes the first that holds it.
    notes: what is allowed but worth a note before the problems are used: see also lost_text.py, and what the chat template
      leaves out.
    origin: what `ids` were made of, each with a digest.
  """

  ids: list[list[int]]
  answers: list[str]
  skipped: int = 0
  teachers: tuple[tuple[str, str], ...] = ()
  solutions: tuple[str, ...] = ()
  conversations: tuple[Conversation, ...] = ()
  prompt_lens: tuple[int, ...] = ()
  notes: tuple[str, ...] = ()
  origin: Mapping[str, str] = dataclasses.field(default_factory=dict)


def load(config: Config, path: str, tokenizer, rendering: Rendering | None = None, *, held_out: bool) -> Problems:
  """Load and tokenise the problems of a file or of a built-in task.

  Args:
    rendering: how the run renders its prompts; None: as its config says, today.
    held_out: load problems to evaluate on, which need answers: the first `eval.prompts` of them.
  """
  rendering = rendering or Rendering.from_config(config)
  examples, skipped = load_examples(config, path, held_out=held_out)
  if chat.uses_template(tokenizer, rendering):
    renderings.check(rendering, tokenizer)
  ids, usable, unusable = pipeline.tokenise(
    examples,
    tokenizer,
    rendering,
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
    notes=_cut_prompts(chosen, path, config.data.max_prompt)
    + text_notes(config, path, chosen, tokenizer, held_out=held_out)
    + shown(usable[0].prompt, tokenizer, rendering),
    origin=origin(examples, tokenizer, rendering),
  )


def _cut_prompts(examples: Sequence[sources.Example], path: str, max_prompt: int) -> tuple[str, ...]:
  cut = sum(example.cut for example in examples)
  if not cut:
    return ()
  return (
    f"{cut} of {len(examples)} prompts of {path} lost their beginning, as data.on_bad_line says: they are longer than "
    f"data.max_prompt={max_prompt}",
  )


def read_references(problems: Problems, verifier: str, path: str, *, verified: bool) -> Problems:
  """Reduce the references to their final answers, as the verifier reads them.

  Args:
    verifier: its name.
    verified: responses will be verified, so that references which none can match are worth a note.
  """
  if verifier not in tasks.FINAL_ANSWERS:
    return problems
  finals = list(map(tasks.FINAL_ANSWERS[verifier], problems.answers))
  conversations = (dataclasses.replace(c, answer=a) for c, a in zip(problems.conversations, finals, strict=False))
  notes = problems.notes + (_unmatched(problems.answers, verifier, path) if verified else ())
  return dataclasses.replace(problems, answers=finals, conversations=tuple(conversations), notes=notes)


def _unmatched(references: Sequence[str], verifier: str, path: str) -> tuple[str, ...]:
  found, examined = tasks.UNMATCHED[verifier](references)
  if not found:
    return ()
  first = references[found[0]]
  first = first if len(first) <= 80 else f"{first[:77]}..."
  return (
    f"responses to {len(found)} of {examined} problems of {path} count only if they repeat the words of the reference, "
    f"which is neither a number nor an expression (the first: {first!r}); write the final answer alone, behind "
    '"####" or in \\boxed{}',
  )


def shown(prompt: chat.Prompt, tokenizer, rendering: Rendering) -> tuple[str, ...]:
  """Hold the chat template against a prompt; returns a warning for each role whose words it leaves out.

  Raises:
    InputError: it leaves out the user's, or renders the prompt otherwise every time.
  """
  if not chat.uses_template(tokenizer, rendering):
    return ()
  return tuple(renderings.check_shown(chat.messages(prompt, rendering), rendering, tokenizer))


def origin(examples: Sequence[sources.Example], tokenizer, rendering: Rendering) -> dict[str, str]:
  """Digest what prompts are made of, part by part."""
  data = hashlib.sha256()
  for example in examples:
    data.update(json.dumps([example.prompt, example.canonical, example.turns]).encode())
  parts = {"data file": data.hexdigest()[:16], "tokenizer": tokenizers.digest(tokenizer)}
  if not chat.uses_template(tokenizer, rendering):
    return parts
  texts = {
    "chat template": renderings.template_text(tokenizer),
    "system message": rendering.system,
    "set of template arguments": json.dumps([rendering.args, rendering.teacher_args], sort_keys=True),
  }
  parts |= {name: hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16] for name, text in texts.items()}
  if rendering.moment and renderings.reads_clock(tokenizer):
    parts[pipeline.DATE] = f"{rendering.moment:%Y-%m-%d}"
  return parts


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


def text_notes(
  config: Config,
  path: str,
  examples: Sequence[sources.Example],
  tokenizer,
  conversations: Sequence[Conversation] = (),
  *,
  held_out: bool,
) -> tuple[str, ...]:
  """Look for text that the tokenizer cannot write, in what is read and in responses to learn; see lost_text.notes.

  Args:
    conversations: the same problems turn by turn, where they are read so.
  """
  data, template = config.data, config.data.chat_template
  turns = [c.raw([""] * (len(c.turns) - 1)) for c in conversations]
  found = lost_text.notes(f"prompts of {path}", [e.prompt for e in examples], tokenizer, chat_template=template)
  found += lost_text.notes(f"conversations of {path}", turns, tokenizer)
  found += lost_text.notes("system messages (data.system)", [data.system] if data.system else [], tokenizer)
  if config.rollout.by == "data" and not held_out:
    found += lost_text.notes(f"responses of {path}", [e.solution for e in examples if e.solution], tokenizer)
  return found


def check_solutions(train: Problems) -> None:
  """Refuse problems of which some have no response to learn.

  Raises:
    InputError: there are such problems.
  """
  if len(train.solutions) < len(train.ids):
    raise InputError(
      "config.rollout.by is 'data', and not all problems have a response to learn; see data.solution_field."
    )


def solutions(train: Problems, tokenizer, stop_ids: Sequence[int], rendering: Rendering) -> list[list[int]]:
  """Tokenise the responses in the data, each with a stop token behind it.

  Args:
    rendering: of prompts; responses end as the turns of the chat template do.

  Raises:
    InputError: a problem has no response.
  """
  check_solutions(train)
  texts = list(train.solutions)
  try:
    rows = tokenizers.encode(texts, tokenizer, add_special_tokens=False, return_attention_mask=False, verbose=False)
  except InputError as e:
    raise InputError(f"A response to learn, of data.solution_field, cannot be used: {e}.") from None
  stop = stop_tokens.of_learned(stop_ids, tokenizer, rendering)
  return [row if row and row[-1] in stop_ids else [*row, *stop] for row in rows]  # the text may have its end in it
