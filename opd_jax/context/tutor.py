"""A model that comments on another one's responses, a batch at a time."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from opd_jax.context.comments import Comment, Comments, Outcome
from opd_jax.context.replies import control_tokens, final_text, without
from opd_jax.data import chat
from opd_jax.data.rendering import Rendering
from opd_jax.rollout.generate import Generator
from opd_jax.types import Params


class Commented(NamedTuple):
  """Comments, one for each response, and how many tokens were generated for them."""

  comments: list[Comment]
  tokens: int


class Tutor:
  """Asks a model for comments, and checks them.

  Args:
    generate: answers prompts, each with a number of its own; longer ones than its last width are not asked.
    comments: what is asked, and what is kept.
    tokenizer, rendering: of the prompts.
  """

  def __init__(self, generate: Generator, comments: Comments, tokenizer: Any, rendering: Rendering):
    self._generate, self._comments = generate, comments
    self._tokenizer, self._rendering = tokenizer, rendering
    self._control = control_tokens(tokenizer)

  def __call__(
    self,
    params: Params,
    prompts: Sequence[chat.Prompt],
    responses: Sequence[str],
    key: jax.Array,
    wanted: Sequence[bool] | None = None,
  ) -> Commented:
    """Comments on responses; every process asks for all of them, and gets all.

    Args:
      params: of the model that comments.
      prompts: what each response answers.
      wanted: which responses to comment on; None: on all.
    """
    wanted = [True] * len(prompts) if wanted is None else wanted
    texts = (without(self._control, response) for response in responses)
    requests = [self._comments.request(*pair) for pair in zip(prompts, texts, strict=True)]
    ids = chat.render_all(requests, self._tokenizer, self._rendering)
    rows = [i for i, row in enumerate(ids) if wanted[i] and len(row) <= self._generate.prompt_lens[-1]]
    found = [Comment("", Outcome.TOO_LONG if want else Outcome.NOT_ASKED) for want in wanted]
    if not rows:
      return Commented(found, 0)
    written = self._generate(params, [ids[i] for i in rows], key, rows)
    for i, each in zip(rows, written.responses, strict=True):
      found[i] = self._comments.sanitised(final_text(each, self._control), _text(prompts[i]), ended=each.ended)
    return Commented(found, int(written.lengths.sum()))


def _text(prompt: chat.Prompt) -> str:
  """The words of a prompt; of a chat, of all its messages."""
  return prompt if isinstance(prompt, str) else "\n".join(str(message.get("content", "")) for message in prompt)
