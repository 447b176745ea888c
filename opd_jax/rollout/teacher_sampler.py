"""Teachers that write: one on the devices of the run, which needs no server, and how any of them is asked.

sampler = MeshTeacher(teacher_generators(model, ...), params, tokenizer, rendering)
answers, tokens = ask(sampler, prompts, 4, max_tokens=512, temperature=1.0, seed=0)     on every process, a list of 4 texts for each prompt
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax

from opd_jax.data import chat, pipeline
from opd_jax.data.image_prompts import ImagePrompts
from opd_jax.data.image_refs import ImageRef
from opd_jax.data.rendering import Rendering
from opd_jax.models.spec import ModelSpec
from opd_jax.rollout.endpoint import TeacherSampler
from opd_jax.rollout.generate import Generator, GeneratorConfig, SeenImages
from opd_jax.runtime import hosts
from opd_jax.runtime.programs import ProgramCache
from opd_jax.types import Params


class MeshTeacher:
  """A teacher on the devices of the run, through the generator of evaluations.

  Args:
    make: (responses to each prompt, their longest length in tokens, temperature) -> what answers prompts with numbers, compiled when it is
      first needed; prompts beyond its last width are not answered.
    params: returns the teacher's parameters.
    tokenizer, rendering: of its prompts.
    images: how its prompts show images; None: they have none.
  """

  def __init__(
    self,
    make: Callable[[int, int, float], Generator],
    params: Callable[[], Params],
    tokenizer: Any,
    rendering: Rendering,
    images: ImagePrompts | None = None,
  ):
    self._images = images
    self._make, self._params = make, params
    self._tokenizer, self._rendering = tokenizer, rendering
    self._generators: dict[tuple[int, int, float], Generator] = {}
    self.tokens = 0

  def sample(
    self,
    prompts: Sequence[chat.Prompt],
    n: int,
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    images: Sequence[tuple[ImageRef, ...]] = (),
  ) -> list[list[str]]:
    """Samples as `endpoint.TeacherSampler` says, "" in the place of a response that was cut; prompts may be chats, with images.

    Every process asks the same, and gets all responses.
    """
    sizes = n, max_tokens, temperature
    if sizes not in self._generators:
      self._generators[sizes] = self._make(*sizes)
    generate = self._generators[sizes]
    if self._images is None:
      ids = chat.render_all(prompts, self._tokenizer, self._rendering)
    else:
      shown = list(zip(prompts, images, strict=True))
      ids = [row or [] for row in self._images.render_each(shown, self._tokenizer, self._rendering)[0]]
    rows = [i for i, row in enumerate(ids) if 0 < len(row) <= generate.prompt_lens[-1]]
    found = [[""] * n for _ in prompts]
    if not rows:
      return found
    seen = [images[i] for i in rows] if self._images else None
    written = generate(self._params(), [ids[i] for i in rows], jax.random.key(seed), rows, seen)
    self.tokens += int(written.lengths.sum())
    texts = [text if ended else "" for text, ended in zip(written.texts, written.ended, strict=True)]
    for place, i in enumerate(rows):
      found[i] = texts[place * n : (place + 1) * n]
    return found


def teacher_generators(
  model: ModelSpec,
  student: GeneratorConfig,
  tokenizer: Any,
  *,
  batch: int,
  longest: int,
  shortest: int,
  program_cache: ProgramCache,
  on_new: Callable[[Generator], None],
  images: SeenImages | None = None,
) -> Callable[[int, int, float], Generator]:
  """Makes what makes the generators of a `MeshTeacher`.

  Args:
    model: the teacher.
    student: whose devices, layout and types the teacher takes.
    batch: prompts at once.
    longest: prompt, tokens, as far as the teacher has positions for it and a response.
    shortest: the least of the widths that prompts are padded to, which double.
    on_new: is given every generator that is made.
    images: how the teacher sees the images of prompts; None: these have none.
  """

  def make(n: int, max_tokens: int, temperature: float) -> Generator:
    drawn = {"stop_ids": model.stop_ids, "temperature": temperature, "top_p": 1.0, "top_k": 0}
    sampling = dataclasses.replace(student.sampling, **drawn)
    generate = Generator(
      dataclasses.replace(student, cfg=model.cfg, sampling=sampling),
      tokenizer,
      batch=batch,
      prompt_lens=pipeline.rising_widths(min(longest, model.cfg.max_positions - max_tokens), 2.0, shortest),
      max_tokens=max_tokens,
      k=n,
      name="teacher",
      numbered=True,
      images=images,
      program_cache=program_cache,
    )
    on_new(generate)
    return generate

  return make


def ask(
  teacher: TeacherSampler | MeshTeacher,
  prompts: Sequence[chat.Prompt],
  n: int,
  *,
  max_tokens: int,
  temperature: float,
  seed: int,
  images: Sequence[tuple[ImageRef, ...]] = (),
) -> tuple[list[list[str]], int]:
  """Has a teacher answer prompts n times each, for all processes; the answers, and their tokens.

  A teacher elsewhere is asked by the first process, and told the words of the last message of a chat and no images.
  """
  arguments: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
  before = teacher.tokens
  if isinstance(teacher, MeshTeacher):
    return teacher.sample(prompts, n, images=images, **arguments), teacher.tokens - before
  answers = ""
  if hosts.first():
    texts = [prompt if isinstance(prompt, str) else str(prompt[-1]["content"]) for prompt in prompts]
    answers = json.dumps([teacher.sample(texts, n, **arguments), teacher.tokens - before])
  written, tokens = json.loads(hosts.text_of_first(answers))
  return written, tokens
