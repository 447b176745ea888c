"""Tokenizers: loaded from a model's directory, and compared before a teacher may score a student's tokens.

The teacher reads the student's token ids, so an id has to be the same token for both. A different stop token or
chat template passes unnoticed otherwise, and costs tenths of a nat per token, or responses that never end.
"""

import contextlib
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from opd_jax.config import expanded_path
from opd_jax.errors import InputError, first_line
from opd_jax.models import directory as directories
from opd_jax.runtime import json_files

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerBase


def load(directory: str | pathlib.Path) -> "PreTrainedTokenizerBase":
  """Load the tokenizer of a Hugging Face directory. Nothing is downloaded, and no code from the directory is run.

  Raises:
    InputError: there is no directory, no tokenizer in it, or a file of it is broken.
  """
  path = expanded_path(directory)
  if not path.is_dir():
    raise InputError(
      f"There is no directory {path} to read a tokenizer from; name a Hugging Face directory on this machine."
    )
  vocabularies = [file.name for file in directories.find(path, directories.VOCABULARIES)]
  if not vocabularies:
    raise InputError(
      f"{path} has no tokenizer.json; copy tokenizer.json and tokenizer_config.json of the model into it."
    )
  for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
    if (path / name).exists():
      _check_json(path / name)
  with _quiet():
    from transformers import AutoTokenizer

    mend = "copy tokenizer.json and tokenizer_config.json of the model into the directory again."
    with _explained(f"{path / 'tokenizer.json'} cannot be read as a tokenizer", mend):
      tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
      # What is wrong with its parts shows when they are first used.
      ids = tokenizer(["a", "Yes. 1"], return_attention_mask=False, verbose=False)["input_ids"]
      tokenizer.batch_decode(ids, skip_special_tokens=False)  # pyright: ignore[reportArgumentType]: lists of ids
      vocabulary = tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys()
  # A family that reads other files than there are gives one without a vocabulary, for which every text is empty.
  if not vocabulary:
    raise InputError(
      f"{path}: {type(tokenizer).__name__} finds no vocabulary in {', '.join(vocabularies)}; copy tokenizer.json and "
      "tokenizer_config.json of the model into the directory, or name the right tokenizer_class there."
    )
  return tokenizer


def encode(texts: list[str], tokenizer: "PreTrainedTokenizerBase", **options) -> list[list[int]]:
  """Tokenise texts; `options` as transformers takes them.

  Raises:
    InputError: the tokenizer fails at a text, for want of a token for it; the message names neither text nor line.
  """
  mend = "mend the text, or the model and the unknown token in tokenizer.json"
  with _explained(f"the tokenizer of {tokenizer.name_or_path} cannot tokenise the text", mend):
    return tokenizer(texts, **options)["input_ids"]  # pyright: ignore[reportReturnType]


@contextlib.contextmanager
def _explained(what: str, mend: str) -> Iterator[None]:
  """Turns what tokenizers raise, whose many kinds say little about the file, into one sentence."""
  try:
    yield
  except BaseException as e:
    # A panic in the Rust library is no Exception.
    if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
      raise
    raise InputError(f"{what} ({first_line(e)}); {mend}") from e


def compare(
  student_dir: str | pathlib.Path,
  teacher_dir: str | pathlib.Path,
  student_tok: "PreTrainedTokenizerBase",
  teacher_tok: "PreTrainedTokenizerBase",
  student_stop: Collection[int],
  teacher_stop: Collection[int],
  allow: Collection[str] = (),
) -> None:
  """Refuse a pair in which the teacher would not read what the student wrote.

  Rows of the embedding beyond the vocabulary are padding and are not compared here.

  Args:
    student_stop, teacher_stop: token ids that end a response of each; their order does not matter.
    allow: differences that are intended, some of "tokenizer", "eos" and "chat_template".

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


def digest(tokenizer: "PreTrainedTokenizerBase") -> str:
  """Hash what makes token ids of text: the files of the tokenizer's directory, but for the chat template in them."""
  content = hashlib.sha256()
  path = pathlib.Path(tokenizer.name_or_path or "/nowhere")
  names = ("tokenizer.json", *directories.VOCABULARIES, "merges.txt", "added_tokens.json", "special_tokens_map.json")
  for file in sorted({file for name in names for file in path.glob(name)}):
    content.update(file.read_bytes())
  with contextlib.suppress(OSError, ValueError):
    settings = json.loads((path / "tokenizer_config.json").read_bytes())
    content.update(json.dumps({k: v for k, v in settings.items() if k != "chat_template"}, sort_keys=True).encode())
  return content.hexdigest()[:16]


def pad_id(tokenizer: "PreTrainedTokenizerBase", stop: Collection[int]) -> int:
  """Choose the id that fills prompts and responses. It is masked wherever it stands, so it may be a stop token too."""
  for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id, *stop):
    if candidate is not None:
      return int(candidate)  # pyright: ignore[reportArgumentType]: the stubs also allow lists, for text lists
  return 0


def ids_without_token(tokenizer: "PreTrainedTokenizerBase", vocab: int) -> tuple[tuple[int, int], ...]:
  """Find the ids below `vocab` that are no token, as ranges [first, end); embeddings are padded, and some have holes."""
  known = sorted({i for i in tokenizer.get_vocab().values() if i < vocab})
  edges = [-1, *known, vocab]
  return tuple((a + 1, b) for a, b in itertools.pairwise(edges) if b > a + 1)


def ids_ending_with(tokenizer: "PreTrainedTokenizerBase", text: str, vocab: int) -> tuple[int, ...]:
  """Find the ids below `vocab` whose token ends with a text, special tokens left out: several where tokens are longer than it."""
  special = set(tokenizer.all_special_ids)
  ids = [i for i in sorted(tokenizer.get_vocab().values()) if i < vocab and i not in special]
  return tuple(
    i for i, token in zip(ids, tokenizer.batch_decode([[i] for i in ids]), strict=True) if token.endswith(text)
  )


def _or_allow(name: str) -> str:
  return f', or set config.allow_mismatch=("{name}",) only if the difference is intended.'


def _vocabulary(student: "PreTrainedTokenizerBase", teacher: "PreTrainedTokenizerBase", show: int = 3) -> str:
  """The first ids that are different tokens, or ""."""
  ids = sorted({i for _, i in student.get_vocab().items() ^ teacher.get_vocab().items()})
  student_names, teacher_names = _token_names(student), _token_names(teacher)
  parts = []
  for i in ids[:show]:
    student_name, teacher_name = student_names.get(i, "no token"), teacher_names.get(i, "no token")
    parts.append(f"id {i} is {student_name} for the student and {teacher_name} for the teacher")
  others = f", and {len(ids) - show} more ids differ" if len(ids) > show else ""
  return ", ".join(parts) + others


def _token_names(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
  """The token of each id, in quotes."""
  return {i: repr(token) for token, i in tokenizer.get_vocab().items()}


def _tokens(tokenizer: "PreTrainedTokenizerBase", ids: Collection[int]) -> str:
  """The tokens of some ids, for messages."""
  names = _token_names(tokenizer)
  return " or ".join(f"{names.get(i, 'no token')} (id {i})" for i in sorted(set(ids))) or "no token at all"


def _template(student: "PreTrainedTokenizerBase", teacher: "PreTrainedTokenizerBase") -> str:
  """The first line in which the chat templates differ, or ""."""
  student_text, teacher_text = _template_text(student), _template_text(teacher)
  if student_text == teacher_text:
    return ""
  if student_text is None or teacher_text is None:
    return "only the teacher has one" if student_text is None else "only the student has one"
  lines = zip([*student_text.splitlines(), "(end)"], [*teacher_text.splitlines(), "(end)"], strict=False)
  for number, (student_line, teacher_line) in enumerate(lines, start=1):
    if student_line != teacher_line:
      return f"line {number} is {_short(student_line)} for the student and {_short(teacher_line)} for the teacher"
  return "they have other line breaks"


def _template_text(tokenizer: "PreTrainedTokenizerBase") -> str | None:
  """The chat template, or all templates by name, as one text; None where there is none."""
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
    value = json_files.parse(path.read_bytes())
  except json_files.NotReadable as e:
    where = f"{path}:{e.line}" if e.line else f"{path}"
    raise InputError(f"{where}: the file is not JSON ({e}); {mend}.") from None
  except OSError as e:
    raise InputError(f"{path} cannot be read ({e.strerror}); check its permissions.") from None
  if not isinstance(value, dict):
    raise InputError(f"{path} holds a {type(value).__name__} where a JSON object belongs; {mend}.")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Silence transformers' notes, at import that PyTorch is missing, at load that a tokenizer could be newer."""
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
