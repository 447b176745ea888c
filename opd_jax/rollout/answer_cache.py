"""Answers of an endpoint on disk, and what was paid for them.

    DIR/ab/ab31...json    an answer: its text, its tokens, whether a limit cut it; named by the hash of what was asked
    DIR/spent.jsonl       tokens of the prompt and of the completion, a line for each request that was paid

A file appears complete or not at all, and is there before the answer is used, so that a run which is killed at any moment has lost no
more than the requests that were on their way. A file that cannot be read counts as none.
"""

import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

from opd_jax.errors import InputError
from opd_jax.runtime import json_files

SPENT = "spent.jsonl"


class Answer(NamedTuple):
  """One answer to one prompt."""

  text: str
  tokens: int  # its share of what the request is said to have generated
  cut: bool  # a limit ended it


def digest(asked: Mapping[str, Any]) -> str:
  """Hash what is asked: the same for equal objects, whatever the order of their keys."""
  return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


class AnswerCache:
  """A directory of answers, which several threads and several runs may share.

  Args:
    path: of the directory, made with the first answer; None: nothing is kept.
  """

  def __init__(self, path: pathlib.Path | None):
    self._path = path
    self._lock = threading.Lock()  # between lines of spent.jsonl

  def get(self, name: str) -> Answer | None:
    """Look up an answer by the hash of what was asked."""
    if self._path is None:
      return None
    try:
      found = json_files.parse(self._file(self._path, name).read_bytes())
      text, tokens, cut = found["text"], found["tokens"], found["cut"]
    except (OSError, json_files.NotReadable, KeyError, TypeError):
      return None
    if not isinstance(text, str) or not json_files.is_whole(tokens) or not isinstance(cut, bool):
      return None
    return Answer(text, tokens, cut)

  def put(self, name: str, answer: Answer) -> None:
    """Keep an answer.

    Raises:
      InputError: the directory cannot be written.
    """
    if self._path is None:
      return
    file = self._file(self._path, name)
    part = file.with_name(f"{file.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
      file.parent.mkdir(parents=True, exist_ok=True)
      part.write_text(json.dumps(answer._asdict()) + "\n", encoding="utf-8")
      part.replace(file)
    except OSError as e:
      raise self._not_written(e) from None

  def pay(self, prompt_tokens: int, completion_tokens: int) -> None:
    """Write down what a request has cost.

    Raises:
      InputError: the directory cannot be written.
    """
    if self._path is None:
      return
    line = json.dumps({"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}) + "\n"
    try:
      self._path.mkdir(parents=True, exist_ok=True)
      with self._lock, (self._path / SPENT).open("a", encoding="utf-8") as file:
        file.write(line)
    except OSError as e:
      raise self._not_written(e) from None

  def paid(self) -> tuple[int, int]:
    """Add up what all requests have cost, in tokens of prompts and of completions; a line that is damaged counts 0.

    Raises:
      InputError: the directory cannot be read.
    """
    prompts = completions = 0
    try:
      lines = (self._path / SPENT).read_bytes().splitlines() if self._path else []
    except FileNotFoundError:
      lines = []
    except OSError as e:
      raise InputError(
        f"{self._path}/{SPENT}, which has what was spent, cannot be read ({e.strerror}): mend that, or name another `cache`."
      ) from None
    for line in lines:
      try:
        found = json_files.parse(line)
        pair = found["prompt_tokens"], found["completion_tokens"]
      except (json_files.NotReadable, KeyError, TypeError):
        continue
      if all(json_files.is_whole(tokens, most=2**53) for tokens in pair):
        prompts, completions = prompts + pair[0], completions + pair[1]
    return prompts, completions

  def _file(self, path: pathlib.Path, name: str) -> pathlib.Path:
    return path / name[:2] / f"{name}.json"

  def _not_written(self, e: OSError) -> InputError:
    return InputError(
      f"The answers that {self._path} is to keep cannot be written there ({e.strerror}): make room, or name another `cache`."
    )
