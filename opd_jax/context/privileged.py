"""What a teacher reads that knows more than the student: a solution of the problem, and feedback on an attempt at it.

    {prompt}
    {solution}      the reference solution of the data (OPSD, arXiv:2601.18734), or a right response of the same group
                    (SDPO, arXiv:2601.20802)
    {feedback}      a comment of the verifier, the environment or a peer on the student's attempt
    and the request to solve the problem itself

The words around each part are templates (`context.template`, `context.solution_template`, `context.feedback_template`), in which
"{text}" stands for the part; a part that is not there leaves nothing behind. In a chat it is the user's last message that is
extended. The papers' own wording was not at hand, and that of the defaults is ours.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from opd_jax.config import Config
from opd_jax.data import chat
from opd_jax.data.problems import Problems
from opd_jax.data.rendering import Rendering
from opd_jax.errors import InputError

PARTS = {
  "context.template": ("prompt", "solution", "feedback"),
  "context.solution_template": ("text",),
  "context.feedback_template": ("text",),
}


@dataclasses.dataclass(frozen=True)
class Privileged:
  """How a teacher's prompt is written.

  Attributes:
    template, solution, feedback: see above.
    max_tokens: the longest prompt of a teacher, tokens.
  """

  template: str
  solution: str
  feedback: str
  max_tokens: int

  @classmethod
  def from_config(cls, config: Config) -> "Privileged":
    """Read the templates of a config.

    Raises:
      InputError: a template lacks the place of its part, or has one of another name.
    """
    for key, names in PARTS.items():
      check_places(key, config.context[key.removeprefix("context.")], names[:1])
    c = config.context
    return cls(c.template, c.solution_template, c.feedback_template, c.max_tokens)

  def text(self, prompt: str, solution: str = "", feedback: str = "") -> str:
    """Write what stands in the place of a prompt's text."""
    return filled(
      self.template,
      prompt=prompt,
      solution=filled(self.solution, text=solution) if solution else "",
      feedback=filled(self.feedback, text=feedback) if feedback else "",
    )

  def prompt(self, prompt: chat.Prompt, solution: str = "", feedback: str = "") -> chat.Prompt:
    """Write the teacher's prompt: text for text, and for a chat the same chat with the user's last message extended.

    Raises:
      InputError: a chat has no message of the user's that is text.
    """
    return rewritten(prompt, lambda text: self.text(text, solution, feedback))

  def rows(
    self, parts: Sequence[tuple[chat.Prompt, str, str]], tokenizer: Any, rendering: Rendering
  ) -> tuple[list[list[int]], list[int]]:
    """Tokenise teachers' prompts, and leave parts out where one is too long: the feedback first, then the solution.

    Args:
      parts: of each, the student's prompt, the solution and the feedback; "" for what is not there.

    Returns:
      The token ids of each, [] where not even the prompt alone fits `max_tokens`, or nothing is left to tell; and how many
      parts each has lost.
    """
    rows: list[list[int]] = [[] for _ in parts]
    lost = [0] * len(parts)
    kept = [
      (i, prompt, solution, feedback) for i, (prompt, solution, feedback) in enumerate(parts) if solution or feedback
    ]
    while kept:
      written = [self.prompt(prompt, solution, feedback) for _, prompt, solution, feedback in kept]
      shorter = []
      for (i, prompt, solution, feedback), ids in zip(
        kept, chat.render_all(written, tokenizer, rendering), strict=True
      ):
        if len(ids) <= self.max_tokens:
          rows[i] = ids
          continue
        lost[i] += 1
        if feedback and solution:
          shorter.append((i, prompt, solution, ""))
      kept = shorter
    return rows, lost


def check_places(key: str, template: str, names: Sequence[str]) -> None:
  """Refuses a template without the places of these parts.

  Raises:
    InputError: names the first that is missing.
  """
  missing = [name for name in names if "{" + name + "}" not in template]
  if missing:
    raise InputError(
      f"config.{key} has no {{{missing[0]}}}, and so no place for its part; write it where the part is to stand."
    )


def rewritten(prompt: chat.Prompt, write: Callable[[str], str]) -> chat.Prompt:
  """Rewrites the text of a prompt, in a chat that of the user's last message.

  Raises:
    InputError: a chat has no message of the user's that is text.
  """
  if isinstance(prompt, str):
    return write(prompt)
  messages = [dict(message) for message in prompt]
  of_user = [i for i, m in enumerate(messages) if m.get("role") == "user" and isinstance(m.get("content"), str)]
  if not of_user:
    raise InputError("the prompt has no message of the user that is text, where a teacher could be shown more")
  last = messages[of_user[-1]]
  last["content"] = write(last["content"])
  return messages


def filled(template: str, **parts: str) -> str:
  """Put parts in their places; braces of other names, and those in the parts, stay as they are."""
  places = sorted((template.find("{" + name + "}"), name) for name in parts if "{" + name + "}" in template)
  out, end = [], 0
  for at, name in places:
    out += [template[end:at], parts[name]]
    end = at + len(name) + 2
  return "".join([*out, template[end:]])


def with_solutions(train: Problems, config: Config, tokenizer: Any, rendering: Rendering) -> Problems:
  """Give problems the prompts of a teacher that is shown their reference solutions.

  Raises:
    InputError: there is a problem without a solution, or one whose teacher's prompt is too long, unless `data.on_bad_line` is skip.
  """
  if len(train.solutions) < len(train.ids):
    raise InputError(
      "config.context.kind is 'privileged', and not all problems have a reference solution; name its field in config.data.solution_field."
    )
  written = Privileged.from_config(config)
  parts = [(prompt, solution, "") for prompt, solution in zip(train.prompts, train.solutions, strict=True)]
  ids, lost = written.rows(parts, tokenizer, rendering.for_teacher())
  fits = [not n for n in lost]
  if all(fits):
    return dataclasses.replace(train, teacher_ids=ids)
  if config.data.on_bad_line != "skip" or not any(fits):
    raise InputError(
      f"{len(fits) - sum(fits)} of {len(fits)} problems have prompts of the teacher, the solution in them, of more than "
      f"config.context.max_tokens={written.max_tokens} tokens; raise it, or set config.data.on_bad_line=skip."
    )
  kept = train.select(fits)
  return dataclasses.replace(kept, teacher_ids=[row for row, fit in zip(ids, fits, strict=True) if fit])
