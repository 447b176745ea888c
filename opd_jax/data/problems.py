"""A config's problems as token ids: of a file or a built-in task, as prompts or told turn by turn."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from opd_jax import config as configs
from opd_jax import tasks
from opd_jax.config import Config
from opd_jax.data import chat, lost_text, pipeline, sources, stop_tokens
from opd_jax.data import rendering as renderings
from opd_jax.data import tokenizer as tokenizers
from opd_jax.data.conversation import Conversation
from opd_jax.data.image_prompts import ImagePrompts
from opd_jax.data.image_refs import ImageRef
from opd_jax.data.order import proportions
from opd_jax.data.rendering import SAME, Rendering
from opd_jax.data.styles import Fields
from opd_jax.errors import InputError, brief
from opd_jax.tasks.problem import Response

T = TypeVar("T")
TRAIN_PROBLEMS = 8192  # of a built-in task; generated, so the number only has to be larger than most runs need


class Source(NamedTuple):
  """One of several sources of prompts."""

  path: str
  prompts: int
  skipped: int
  weight: float  # 0 where all prompts are drawn equally often


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
    teacher_ids: token ids of the prompts that teachers read instead, where they are others.
    prompt_lens: padded lengths of what the student reads, in tokens, rising; a batch takes the first that holds it.
    records: all that the file has of each problem, where a verifier takes it.
    notes: what is allowed but worth a note before the problems are used: see also lost_text.py, and what the chat template
      leaves out.
    origin: what `ids` were made of, each with a digest.
    sources: where there are several, in the order of their prompts.
    prompts: what `ids` are rendered from; () of conversations.
    domains: of each problem, where the data tell them.
    images: those of each prompt, where the data have any; `teacher_images` those of teachers' own prompts.
  """

  ids: list[list[int]]
  answers: list[str]
  skipped: int = 0
  teachers: tuple[tuple[str, str], ...] = ()
  solutions: tuple[str, ...] = ()
  conversations: tuple[Conversation, ...] = ()
  teacher_ids: tuple[list[int], ...] = ()
  prompt_lens: tuple[int, ...] = ()
  records: tuple[Mapping[str, Any], ...] = ()
  notes: tuple[str, ...] = ()
  origin: Mapping[str, str] = dataclasses.field(default_factory=dict)
  sources: tuple[Source, ...] = ()
  prompts: tuple[chat.Prompt, ...] = ()
  domains: tuple[str, ...] = ()
  images: tuple[tuple[ImageRef, ...], ...] = ()
  teacher_images: tuple[tuple[ImageRef, ...], ...] = ()

  @property
  def mixture(self) -> tuple[tuple[int, float], ...]:
    """The size and the weight of each source; () where all prompts are drawn equally often."""
    return tuple((s.prompts, s.weight) for s in self.sources if s.weight)

  def with_records(self, responses: Sequence[Response], index: Iterable[int]) -> Sequence[Response]:
    """Give responses the records of their problems, by the numbers of these, where there are any."""
    if not self.records:
      return responses
    return [r._replace(record=self.records[i]) for r, i in zip(responses, index, strict=True)]

  def select(self, kept: Sequence[bool]) -> "Problems":
    """Leave problems out, and count them as skipped; not of conversations."""

    def of(values: Sequence[T]) -> list[T]:
      return [value for value, keep in zip(values, kept, strict=True) if keep] if values else []

    return dataclasses.replace(
      self,
      ids=of(self.ids),
      answers=of(self.answers),
      skipped=self.skipped + len(kept) - sum(kept),
      teachers=tuple(of(self.teachers)),
      solutions=tuple(of(self.solutions)),
      teacher_ids=tuple(of(self.teacher_ids)),
      records=tuple(of(self.records)),
      prompts=tuple(of(self.prompts)),
      domains=tuple(of(self.domains)),
      images=tuple(of(self.images)),
      teacher_images=tuple(of(self.teacher_images)),
    )


def load(
  config: Config,
  path: str,
  tokenizer,
  rendering: Rendering | None = None,
  *,
  held_out: bool,
  images: ImagePrompts | None = None,
) -> Problems:
  """Load and tokenise the problems of a file or of a built-in task.

  Args:
    rendering: how the run renders its prompts; None: as its config says, today.
    images: how prompts show their images; None: they have none.
    held_out: load problems to evaluate on, which need answers: the first `eval.prompts` of them.
  """
  rendering = rendering or Rendering.from_config(config)
  examples, skipped, notes = load_examples(config, path, held_out=held_out)
  if chat.uses_template(tokenizer, rendering):
    renderings.check(rendering, tokenizer)
  ids, usable, unusable = pipeline.tokenise(
    examples,
    tokenizer,
    rendering,
    max_prompt=config.data.max_prompt,
    on_bad_line=config.data.on_bad_line,
    images=images,
  )
  teacher_ids: list[list[int]] = []
  if rendering.teacher_differs and not held_out:
    teacher_ids, readable, lost = pipeline.tokenise(
      usable,
      tokenizer,
      rendering.for_teacher(),
      max_prompt=config.data.max_prompt,
      on_bad_line=config.data.on_bad_line,
      images=images,
    )
    places = {e.where for e in readable}
    ids = [row for row, e in zip(ids, usable, strict=True) if e.where in places]
    usable, unusable = readable, unusable + lost
  number = config.eval.prompts if held_out else len(ids)
  ids, chosen = ids[:number], usable[:number]
  return Problems(
    ids=ids,
    answers=[e.answer for e in chosen],
    skipped=skipped + unusable,
    teachers=tuple((e.teacher, e.where) for e in chosen) if any(e.teacher for e in usable) else (),
    solutions=tuple(e.solution for e in chosen if e.solution),
    teacher_ids=tuple(teacher_ids),
    prompt_lens=pipeline.padded_lens(ids, config.data.widths, limit=config.data.max_prompt),
    records=tuple(e.record for e in chosen),
    notes=notes
    + _cut_prompts(chosen, path, config.data.max_prompt)
    + text_notes(config, path, chosen, tokenizer, held_out=held_out)
    + shown(usable[0].prompt, tokenizer, rendering),
    origin=origin(examples, tokenizer, rendering),
    prompts=tuple(e.prompt for e in chosen),
    domains=tuple(e.domain for e in chosen) if any(e.domain for e in chosen) else (),
    images=() if images is None else tuple(e.images for e in chosen),
    teacher_images=tuple(e.images for e in chosen) if images is not None and teacher_ids else (),
  )


def joined(config: Config, paths: Sequence[str], parts: Sequence[Problems]) -> Problems:
  """Join the problems of several sources, weighed by config.data.weights."""
  names = ("answers", "teachers", "solutions", "conversations", "teacher_ids", "records", "prompts", "domains", "notes")
  names += ("images", "teacher_images")
  together = {name: [each for part in parts for each in getattr(part, name)] for name in names}
  ids, answers = [row for part in parts for row in part.ids], together.pop("answers")
  lens = [range(part.prompt_lens[end]) for part in parts for end in (0, -1)] if together["conversations"] else ids
  sources = tuple(
    Source(path, len(part.ids), part.skipped, weight)
    for path, part, weight in zip(paths, parts, config.data.weights or [0.0] * len(parts), strict=True)
  )
  data = hashlib.sha256("".join(part.origin["data file"] for part in parts).encode()).hexdigest()[:16]
  notes = (_shares(sources), *dict.fromkeys(together.pop("notes")))
  return Problems(
    ids=ids,
    answers=answers,
    skipped=sum(part.skipped for part in parts),
    prompt_lens=pipeline.padded_lens(lens, config.data.widths, limit=config.data.max_prompt),
    notes=notes,
    origin={**parts[0].origin, "data file": data},
    sources=sources,
    **{name: tuple(of_all) for name, of_all in together.items()},
  )


def _shares(sources: Sequence[Source]) -> str:
  """Tell how often prompts are drawn from each source."""
  weighted = bool(sources[0].weight)
  turns = proportions([s.weight for s in sources]) if weighted else [s.prompts for s in sources]
  shares = (
    f"{n / sum(turns):.2%} {s.path} ({s.prompts:,} prompts{f', weight {s.weight:g}' if weighted else ''})"
    for s, n in zip(sources, turns, strict=True)
  )
  return f"prompts are drawn from {len(sources)} sources: {', '.join(shares)}"


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
  if verified and verifier in tasks.MEANINGLESS:
    return dataclasses.replace(problems, notes=problems.notes + _meaningless(problems.answers, verifier, path))
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


def _meaningless(references: Sequence[str], verifier: str, path: str) -> tuple[str, ...]:
  find, lack = tasks.MEANINGLESS[verifier]
  found, examined = find(references)
  if not found:
    return ()
  return (
    f"no response to {len(found)} of {examined} problems of {path} can be right: data.verifier is {verifier!r}, and the reference "
    f"is not {lack} (the first: {brief(references[found[0]])})",
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
    for image in example.images:
      data.update(image.source if isinstance(image.source, bytes) else pathlib.PurePath(image.source).name.encode())
      data.update(repr(image[1:]).encode())
  parts = {"data file": data.hexdigest()[:16], "tokenizer": tokenizers.digest(tokenizer)}
  if rendering.suffix:
    parts["suffix"] = hashlib.sha256(rendering.suffix.encode(errors="replace")).hexdigest()[:16]
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


def load_examples(config: Config, path: str, *, held_out: bool) -> sources.Reading:
  """Read the examples of a file or make those of a built-in task."""
  if path.startswith(configs.TASK):
    task = tasks.generator(path.removeprefix(configs.TASK))
    number = config.eval.prompts if held_out else TRAIN_PROBLEMS
    examples = [
      sources.Example(
        p.prompt,
        p.answer,
        f"{path}:{i + 1}",
        solution=p.solution,
        turns=p.turns,
        claims=p.claims,
        domain=p.domain,
        images=(ImageRef(p.image, (p.box,) if p.box else ()),) if p.image and config.data.image_field else (),
        record={"prompt": p.prompt, "answer": p.answer, "solution": p.solution},
      )
      for i, p in enumerate(task.problems(number, seed=0, held_out=held_out))
    ]
    return sources.Reading(examples, 0)
  data = config.data
  fields = Fields(
    data.prompt_field,
    data.answer_field,
    canonical=data.canonical_field,
    domain=data.domain_field,
    image=data.image_field,
    box=data.box_field,
    json_answers="json" in (data.verifier, *config.reward.verifiers),
  )
  if not held_out:
    fields = dataclasses.replace(fields, teacher=data.teacher_field, solution=data.solution_field)
  need_answer = held_out or configs.verifies_rollouts(config)
  return sources.read_examples(path, fields, data.on_bad_line, need_answer=need_answer)


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
  around = [
    ("suffix", data.suffix),
    *((key, data[key]) for key in ("teacher_system", "teacher_suffix") if data[key] != SAME),
  ]
  for key, text in around:
    found += lost_text.notes(f"texts around prompts (data.{key})", [text] if text else [], tokenizer)
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
