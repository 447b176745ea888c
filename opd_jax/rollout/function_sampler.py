"""A teacher that is a function of the user's own: a script, a solver, or a client of whatever serves a model.

def teacher(prompts, n, *, max_tokens, temperature, seed):
  return [[...n texts...] for prompt in prompts]          [] for a prompt that it has no answer to
"""

from collections.abc import Callable, Sequence
from typing import Any

from opd_jax.errors import InputError, first_line

EXAMPLE = "teacher"
WANTED = "a function is needed that takes prompts and n, and max_tokens, temperature and seed by name, and returns n texts for each prompt"


class FunctionSampler:
  """A `endpoint.TeacherSampler` that asks a function.

  Args:
    name: of the function, for messages.
    function: answers as the text above says. The same arguments have to give the same texts, or a run that is resumed is another one.
    tokenizer: counts the tokens of its texts.
  """

  def __init__(self, name: str, function: Callable[..., Any], tokenizer: Any):
    self._name, self._function, self._tokenizer = name, function, tokenizer
    self.tokens = 0

  def sample(
    self, prompts: Sequence[str], n: int, *, max_tokens: int, temperature: float, seed: int
  ) -> list[list[str]]:
    """Samples as `endpoint.TeacherSampler` says.

    Raises:
      InputError: the function fails, or returns something else.
    """
    try:
      found = self._function(list(prompts), n, max_tokens=max_tokens, temperature=temperature, seed=seed)
    except Exception as e:
      raise InputError(f"The teacher {self._name!r} fails: {type(e).__name__}: {first_line(e)}") from e
    if not isinstance(found, Sequence) or len(found) != len(prompts) or not all(_texts(each, n) for each in found):
      raise InputError(f"The teacher {self._name!r} does not answer as it has to; {WANTED}, or none.")
    texts = [list(each) for each in found]
    flat = [text for each in texts for text in each]
    if flat:
      self.tokens += sum(map(len, self._tokenizer(flat, add_special_tokens=False)["input_ids"]))
    return texts


def _texts(found: Any, n: int) -> bool:
  """Tells whether these are n texts, or none."""
  is_list = isinstance(found, Sequence) and not isinstance(found, str)
  return is_list and len(found) in (0, n) and all(isinstance(text, str) for text in found)
