"""A teacher that writes, on the devices of the run: the one of `endpoint.TeacherSampler` that needs no server."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from opd_jax.data import chat
from opd_jax.data.rendering import Rendering
from opd_jax.rollout.generate import Generator
from opd_jax.types import Params


class MeshTeacher:
  """A teacher on the devices of the run, through the generator of evaluations.

  Args:
    make: (responses to each prompt, their longest length in tokens, temperature) -> what answers prompts with numbers, compiled when it is
      first needed; prompts beyond its last width are not answered.
    params: returns the teacher's parameters.
    tokenizer, rendering: of its prompts.
  """

  def __init__(
    self,
    make: Callable[[int, int, float], Generator],
    params: Callable[[], Params],
    tokenizer: Any,
    rendering: Rendering,
  ):
    self._make, self._params = make, params
    self._tokenizer, self._rendering = tokenizer, rendering
    self._generators: dict[tuple[int, int, float], Generator] = {}
    self.tokens = 0

  def sample(
    self, prompts: Sequence[chat.Prompt], n: int, *, max_tokens: int, temperature: float, seed: int
  ) -> list[list[str]]:
    """Samples as `endpoint.TeacherSampler` says, "" in the place of a response that was cut; prompts may be chats.

    Every process asks the same, and gets all responses.
    """
    sizes = n, max_tokens, temperature
    if sizes not in self._generators:
      self._generators[sizes] = self._make(*sizes)
    generate = self._generators[sizes]
    ids = chat.render_all(prompts, self._tokenizer, self._rendering)
    rows = [i for i, row in enumerate(ids) if len(row) <= generate.prompt_lens[-1]]
    found = [[""] * n for _ in prompts]
    if not rows:
      return found
    written = generate(self._params(), [ids[i] for i in rows], jax.random.key(seed), rows)
    self.tokens += int(written.lengths.sum())
    texts = [text if ended else "" for text, ended in zip(written.texts, written.ended, strict=True)]
    for place, i in enumerate(rows):
      found[i] = texts[place * n : (place + 1) * n]
    return found
