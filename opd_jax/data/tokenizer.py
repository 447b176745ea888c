"""Tokenizers: read from a model's directory, and compared before a teacher may score a student's tokens.

The teacher reads the student's token ids, so an id has to be the same token for both. A different stop token or
chat template passes unnoticed otherwise, and costs tenths of a nat per token, or responses that never end.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from opd_jax.errors import InputError

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerBase


def load(directory: str | pathlib.Path) -> "PreTrainedTokenizerBase":
  """The tokenizer in a Hugging Face directory. Nothing is downloaded, and no code from the directory is run.

  Raises:
    InputError: there is no directory, no tokenizer in it, or a file of it is broken.
  """
  path = pathlib.Path(directory)
  if not path.is_dir():
    raise InputError(
      f"There is no directory {path} to read a tokenizer from; name a Hugging Face directory on this machine."
    )
  # Without these, transformers makes an empty tokenizer of the family that config.json names, and says nothing.
  if not any(any(path.glob(pattern)) for pattern in _VOCABULARIES):
    raise InputError(
      f"{path} has no tokenizer.json; copy tokenizer.json and tokenizer_config.json of the model into it."
    )
  for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
    if (path / name).exists():
      _check_json(path / name)
  with _quiet():
    from transformers import AutoTokenizer

    try:
      return AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as e:  # its many kinds say little about the file
      reason = (str(e).strip() or type(e).__name__).splitlines()[0]
      raise InputError(
        f"{path / 'tokenizer.json'} cannot be read as a tokenizer ({reason}); "
        "copy tokenizer.json and tokenizer_config.json of the model into the directory again."
      ) from e


_VOCABULARIES = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "*.tiktoken", "tekken.json")


def compare(
  student_dir: str | pathlib.Path,
  teacher_dir: str | pathlib.Path,
  student_tok: "PreTrainedTokenizerBase",
  teacher_tok: "PreTrainedTokenizerBase",
  student_stop: Collection[int],
  teacher_stop: Collection[int],
  allow: Collection[str] = (),
) -> None:
  """Refuses a pair in which the teacher would not read what the student wrote.

  Rows of the embedding beyond the vocabulary are padding and not looked at here.

  Args:
    student_stop: token ids that end a response of the student; their order does not matter.
    allow: of "tokenizer", "eos", "chat_template": differences that are intended.

  Raises:
    InputError: a difference that `allow` does not name.
  """
  pair = f"student {student_dir} and teacher {teacher_dir}"
  if "tokenizer" not in allow and (difference := _vocabulary(student_tok, teacher_tok)):
    raise InputError(
      f"The vocabularies of {pair} differ: {difference}; the teacher would score other words than the student wrote, "
      f"so choose models of one tokenizer{_or_allow('tokenizer')}"
    )
  if "eos" not in allow and set(student_stop) != set(teacher_stop):
    raise InputError(
      f"The stop tokens of {pair} differ: the student ends at {_tokens(student_tok, student_stop)} and the teacher at "
      f"{_tokens(teacher_tok, teacher_stop)}; the student would be taught not to end, so give both the same "
      f"eos_token_id in generation_config.json{_or_allow('eos')}"
    )
  if "chat_template" not in allow and (difference := _template(student_tok, teacher_tok)):
    raise InputError(
      f"The chat templates of {pair} differ: {difference}; the teacher would read a prompt of another form than it was "
      f"trained on, so give both the same chat template{_or_allow('chat_template')}"
    )


def pad_id(tokenizer: "PreTrainedTokenizerBase", stop: Collection[int]) -> int:
  """The id that fills prompts and responses. It is masked wherever it stands, so it may be a stop token too."""
  for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id, *stop):
    if candidate is not None:
      return int(candidate)  # pyright: ignore[reportArgumentType]: the stubs also allow lists, for text lists
  return 0


def _or_allow(name: str) -> str:
  return f', or set config.allow_mismatch=("{name}",) only if the difference is intended.'


def _vocabulary(student: "PreTrainedTokenizerBase", teacher: "PreTrainedTokenizerBase", show: int = 3) -> str:
  """The first ids that are different tokens, or ""."""
  vocab = [tokenizer.get_vocab() for tokenizer in (student, teacher)]
  ids = sorted({i for _, i in vocab[0].items() ^ vocab[1].items()})
  name = [{i: repr(token) for token, i in v.items()} for v in vocab]
  parts = [f"id {i} is {name[0].get(i, 'no token')} for the student and {name[1].get(i, 'no token')} for the teacher"
           for i in ids[:show]]  # fmt: skip
  more = f", and {len(ids) - show} more ids differ" if len(ids) > show else ""
  return ", ".join(parts) + more


def _tokens(tokenizer: "PreTrainedTokenizerBase", ids: Collection[int]) -> str:
  name = {i: repr(token) for token, i in tokenizer.get_vocab().items()}
  return " or ".join(f"{name.get(i, 'no token')} (id {i})" for i in sorted(set(ids))) or "no token at all"


def _template(student: "PreTrainedTokenizerBase", teacher: "PreTrainedTokenizerBase") -> str:
  """Where the chat templates part, or ""."""
  a, b = _template_text(student), _template_text(teacher)
  if a == b:
    return ""
  if a is None or b is None:
    return "only the teacher has one" if a is None else "only the student has one"
  one, two = [*a.splitlines(), "(end)"], [*b.splitlines(), "(end)"]
  line = next(i for i, (x, y) in enumerate(zip(one, two, strict=False)) if x != y)
  return f"line {line + 1} is {_short(one[line])} for the student and {_short(two[line])} for the teacher"


def _template_text(tokenizer: "PreTrainedTokenizerBase") -> str | None:
  template = getattr(tokenizer, "chat_template", None)
  if not template:
    return None
  if isinstance(template, dict):
    template = "\n".join(f"{name}: {text}" for name, text in sorted(template.items()))
  # Jinja drops one newline at the end of a file, and files cross operating systems.
  return template.replace("\r\n", "\n").removesuffix("\n")


def _short(text: str, limit: int = 80) -> str:
  return repr(text if len(text) <= limit else text[:limit] + "...")


def _check_json(path: pathlib.Path) -> None:
  mend = "copy it from the model again"
  try:
    json.loads(path.read_bytes())
  except json.JSONDecodeError as e:
    raise InputError(f"{path}:{e.lineno}: the file is not JSON ({e.msg}, column {e.colno}); {mend}.") from None
  except UnicodeDecodeError as e:
    raise InputError(f"{path}: byte {e.start + 1} is not UTF-8; {mend}.") from None
  except OSError as e:
    raise InputError(f"{path} cannot be read ({e.strerror}); check its permissions.") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Without transformers' notes, at import that PyTorch is missing, at load that a tokenizer could be newer."""
  key = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
  before = os.environ.get(key)
  os.environ[key] = "1"
  try:
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
      yield
    finally:
      logging.set_verbosity(level)
  finally:
    if before is None:
      del os.environ[key]
    else:
      os.environ[key] = before
