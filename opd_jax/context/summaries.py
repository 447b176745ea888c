"""Summaries of the steps of a response so far, which the student writes itself (GraphPO, arXiv:2606.18954).

    {prompt}
    {response}      the steps so far
    and the request to summarise them; the answer is greedy

In a chat it is the user's last message that is extended, without the suffix that asks for an answer. The paper's own wording was not at
hand, and that of the default is ours.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from opd_jax.config import Config
from opd_jax.context.privileged import check_places, filled, rewritten
from opd_jax.context.replies import control_tokens, without
from opd_jax.data import chat
from opd_jax.data.rendering import Rendering
from opd_jax.errors import InputError
from opd_jax.rollout.generate import GeneratorConfig
from opd_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Summaries:
  """How summaries are asked for.

  Attributes:
    template: what is read in the place of the prompt's text.
    max_tokens: the longest summary, which is cut there.
    max_prompt: the longest prompt of one; on longer ones none is asked for.
  """

  template: str
  max_tokens: int
  max_prompt: int

  @classmethod
  def from_config(cls, config: Config, positions: int) -> "Summaries | None":
    """Reads the keys of a config; None where there are no summaries.

    Args:
      positions: of the student.

    Raises:
      InputError: nothing would read them, a template lacks the place of its part, or they do not fit the student.
    """
    g = config.graph
    if not g.summary_tokens:
      return None
    if g.state != "hidden":
      raise InputError(
        f"config.graph.summary_tokens is {g.summary_tokens}, and config.graph.state is {g.state!r}, which reads no summary; set it to 0, or "
        "config.graph.state=hidden."
      )
    check_places("graph.summary_template", g.summary_template, ("prompt", "response"))
    if g.summary_tokens >= positions:
      raise InputError(
        f"config.graph.summary_tokens is {g.summary_tokens}, and the student has {positions} positions with the prompt's "
        "(max_position_embeddings); lower it."
      )
    return cls(g.summary_template, g.summary_tokens, min(g.summary_prompt, positions - g.summary_tokens))

  def prompts(self, parts: Sequence[tuple[chat.Prompt, str]], tokenizer: Any, rendering: Rendering) -> list[list[int]]:
    """Tokenise what is read for summaries, however long; text for text, and for a chat the same chat.

    Args:
      parts: of each the student's prompt, and the steps so far.
    """
    control = control_tokens(tokenizer)

    def request(prompt: chat.Prompt, steps: str) -> chat.Prompt:
      steps = without(control, steps)  # they would end the turn
      return rewritten(prompt, lambda text: filled(self.template, prompt=text, response=steps))

    return chat.render_all([request(*each) for each in parts], tokenizer, rendering.without_suffix())

  def lower(self, student: GeneratorConfig, params: Params, rows: int) -> jax.stages.Lowered:
    """Lower the program that writes so many summaries; arguments as of `GeneratorConfig.lower`."""
    greedy = dataclasses.replace(student.sampling, temperature=0.0, top_p=1.0, top_k=0, delimiters=())
    writer = dataclasses.replace(student, sampling=greedy)
    return writer.lower(params, rows, self.max_prompt, self.max_tokens, 1)
