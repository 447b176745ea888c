"""The files of a Hugging Face directory: which are a tokenizer, which go with a copy, and how its JSON is read and written.

All names are patterns of `pathlib.Path.glob`. A README goes with no copy: what it says was measured with other weights.
An export has one of its own.
"""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from opd_jax.errors import InputError
from opd_jax.runtime import json_files

# Without any of these, transformers makes an empty tokenizer of the family that config.json names, and says nothing.
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken", "tekken.json")
TOKENIZER = (
  *VOCABULARIES,
  "tokenizer.*.json",  # for other versions of transformers, named in tokenizer_config.json
  "*.model.v*",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "merges.txt",
  "chat_template.jinja",
  "chat_template.json",
  "additional_chat_templates/*.jinja",  # by name
)
LICENCES = ("LICEN[CS]E*", "[Ll]icen[cs]e*", "NOTICE*", "COPYING*", "USE_POLICY*")
CARD = "README.md"
COMPANIONS = (  # of a whole model
  "generation_config.json",
  *TOKENIZER,
  "processor_config.json",
  "preprocessor_config.json",
  "*.py",  # never run here; a tokenizer's auto_map may name them
  *LICENCES,
)


@contextlib.contextmanager
def appearing_whole(directory: pathlib.Path) -> Iterator[pathlib.Path]:
  """Give a directory beside this one to write to, which takes its place at the end, or is removed where that is not reached."""
  part = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
  shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
  try:
    part.mkdir(parents=True)
    yield part
    os.rename(part, directory)
  except BaseException:
    shutil.rmtree(part, ignore_errors=True)
    raise


def find(directory: pathlib.Path, patterns: Sequence[str]) -> list[pathlib.Path]:
  """List the files of a directory that match a pattern, sorted; a link is the file that it leads to."""
  return sorted({path for pattern in patterns for path in directory.glob(pattern) if path.is_file()})


def copy(source: pathlib.Path, target: pathlib.Path, patterns: Sequence[str]) -> None:
  """Copy the files that match into another directory, which is there, under the same names."""
  for path in find(source, patterns):
    copied = target / path.relative_to(source)
    copied.parent.mkdir(exist_ok=True)
    shutil.copyfile(path, copied)


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Read a JSON object of a model directory.

  Raises:
    InputError: there is no file, or it holds anything else.
  """
  try:
    return json_files.load_object(path, "download it again")
  except FileNotFoundError:
    raise InputError(f"{path.parent} has no {path.name}: it is not a model directory, or not a complete one.") from None


def write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
  """Write a JSON object of a model directory, indented."""
  path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
