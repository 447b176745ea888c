"""Responses with what student and teacher make of every token, as JSON lines: rollouts.jsonl and view.jsonl of a workdir.

One object a line, with the fields of `ScoredResponse`; lists have an entry for each token, null where a number is not finite
or not known.
"""

import dataclasses
import itertools
import json
import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from opd_jax.errors import InputError
from opd_jax.runtime import json_files
from opd_jax.runtime.json_files import is_number, is_whole

Numbers = Sequence[float | None]  # one for each token; nats
Top = Sequence[
  Sequence[tuple[str, float]]
]  # for each token the likeliest ids as text with their probabilities, falling
DIGITS = 6  # behind the point, of what is written

ROLLOUTS, VIEW = "rollouts.jsonl", "view.jsonl"  # of training; of `python -m opd_jax.view`


@dataclasses.dataclass(frozen=True)
class ScoredResponse:
  """One response, token by token; log-probabilities and entropies are in nats.

  Attributes:
    of: who wrote it, and when: "student, step 100", "teacher".
    step: of a rollout the training step that learns from it, otherwise of the checkpoint; None: no run's.
    prompt: as it was read, with special tokens.
    tokens, ids: of the response, its stop token included.
    ended: by a stop token; otherwise it was cut.
    kind: of the divergence, see objectives/divergence.py; "" without a teacher.
    divergence: of student and teacher, at each token given all before it, or the canvas to which it was committed; None without a teacher.
    logprob, teacher_logprob: of the token that was drawn.
    student_entropy, teacher_entropy: of what might have stood there.
    student_top, teacher_top: the likeliest tokens there; None where they were not looked for.
    teacher_prompt: what the teacher read instead of the prompt, where that was made of the rollouts; "": there was nothing to tell
      it, and the response is not trained. None: it reads what the method says of the prompt.
    images: what was seen of the prompt's images, small and as data: addresses; () where it has none.
    teacher_images: what the teacher saw of them; () where that is the same.
  """

  of: str
  prompt: str
  tokens: list[str]
  ids: list[int]
  ended: bool
  kind: str
  divergence: Numbers | None
  logprob: Numbers
  teacher_logprob: Numbers | None
  student_entropy: Numbers
  teacher_entropy: Numbers | None
  student_top: Top | None = None
  teacher_top: Top | None = None
  step: int | None = None
  teacher_prompt: str | None = None
  images: Sequence[str] = ()
  teacher_images: Sequence[str] = ()

  def to_json(self) -> dict[str, Any]:
    """Returns the record as it is written, numbers rounded."""
    record = dataclasses.asdict(self)
    for name in IMAGES:
      if not record[name]:
        record.pop(name)
    for name in NUMBERS:
      if record[name] is not None:
        record[name] = [None if x is None or not math.isfinite(x) else round(float(x), DIGITS) for x in record[name]]
    for name in TOPS:
      if record[name] is not None:
        record[name] = [[[token, round(float(p), DIGITS)] for token, p in top] for top in record[name]]
    return record


NUMBERS = ("divergence", "logprob", "teacher_logprob", "student_entropy", "teacher_entropy")
OF_TEACHER = ("divergence", "teacher_logprob", "teacher_entropy")
TOPS = ("student_top", "teacher_top")
IMAGES = ("images", "teacher_images")
DATA_ADDRESS = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+=*")
_FIELDS = {field.name for field in dataclasses.fields(ScoredResponse)}


def write(path: pathlib.Path, responses: Iterable[ScoredResponse]) -> None:
  """Write a file of responses, which appears whole or not at all.

  Raises:
    InputError: it cannot be written.
  """
  lines = [json.dumps(response.to_json(), ensure_ascii=False) + "\n" for response in responses]
  part = path.with_name(path.name + ".part")
  try:
    part.write_text("".join(lines), encoding="utf-8", errors="replace")
    part.replace(path)
  except OSError as e:
    raise InputError(f"{path} cannot be written ({e.strerror}); make room, or mend its permissions.") from None


def read(path: pathlib.Path, *, ends: bool = False) -> list[ScoredResponse]:
  """Read a file of responses; none where there is no file. A last line that was cut short is left out.

  Args:
    ends: only the first response and the last, however long the file is.

  Raises:
    InputError: a line that no run and no view writes.
  """
  if not path.is_file():
    return []
  try:
    lines = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
  except OSError as e:
    raise InputError(f"{path} cannot be read ({e.strerror}): check its permissions.") from None
  if lines and not _parsed(lines[-1]):
    lines.pop()  # cut short, or empty
  found = []
  for number, line in enumerate(lines, 1):
    if not line.strip() or (ends and 1 < number < len(lines)):
      continue
    record = _parsed(line)
    if not _is_scored(record):
      raise InputError(f"Line {number} of {path} is no response with numbers per token: delete the line, or the file.")
    found.append(ScoredResponse(**{name: value for name, value in record.items() if name in _FIELDS}))
  return found


def _parsed(line: str) -> Any:
  """The JSON value of a line; None where it is none."""
  try:
    return json_files.parse(line)
  except json_files.NotReadable:
    return None


def _is_scored(record: Any) -> bool:
  """Tell whether a JSON value has the fields of `ScoredResponse`, each of its type and of one length."""
  if not isinstance(record, dict) or not (_FIELDS - {*TOPS, *IMAGES, "step", "teacher_prompt"}) <= record.keys():
    return False
  tokens, ids, step = record["tokens"], record["ids"], record.get("step")
  texts = isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)
  if not texts or not isinstance(ids, list) or len(ids) != len(tokens) or not all(map(is_whole, ids)):
    return False
  words = (record["of"], record["prompt"], record["kind"], record.get("teacher_prompt") or "")
  if not all(isinstance(word, str) for word in words) or not isinstance(record["ended"], bool):
    return False

  images = [record.get(name, []) for name in IMAGES]
  if not all(isinstance(found, list) and all(map(_is_image, found)) for found in images):
    return False

  def fits(name: str, each: Any) -> bool:
    values = record.get(name)
    if values is None:
      return name not in ("logprob", "student_entropy")
    return isinstance(values, list) and len(values) == len(tokens) and all(map(each, values))

  return (
    (step is None or is_whole(step))
    and all(fits(name, lambda x: x is None or is_number(x)) for name in NUMBERS)
    and all(fits(name, _is_top) for name in TOPS)
  )


def _is_image(value: Any) -> bool:
  return isinstance(value, str) and DATA_ADDRESS.fullmatch(value) is not None


def _is_top(value: Any) -> bool:
  return isinstance(value, list) and all(
    isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and is_number(pair[1]) for pair in value
  )


def of_rollouts(
  found: Mapping[str, np.ndarray],
  tokenizer: Any,
  n: int,
  kind: str,
  of: str,
  step: int,
  images: Sequence[tuple[Sequence[str], Sequence[str]]] = (),
) -> list[ScoredResponse]:
  """Make the records of a training step's rollouts.

  Args:
    found: of DistillationStep.score, on the host.
    n: rollouts of each prompt, which are neighbours.
    kind: of the objective; where it is no divergence of whole distributions, the reverse KL takes its place.
    images: of each prompt what the student and what the teacher saw, as in the records; () where there are none.
  """
  divergence = found.get("divergence", found.get("kl"))
  known = "" if divergence is None else kind if "divergence" in found else "reverse_kl"

  def numbers(name: str, row: int, taught: bool) -> Any:
    values = divergence if name == "divergence" else found.get(name)
    if values is None or (name in OF_TEACHER and not taught):
      return None
    return values[row][found["mask"][row]].astype(float).tolist()

  def text(name: str, row: int) -> str:
    return prompt_text(tokenizer, found[name][row][found[f"{name}_mask"][row]])

  own_context = "teacher_prompt" in found
  responses = []
  for row, mask in enumerate(found["mask"]):
    ids = [int(i) for i in found["response"][row][mask]]
    taught = not own_context or bool(found["teacher_prompt_mask"][row].any())
    responses.append(
      ScoredResponse(
        of=of,
        prompt=text("prompt", row // n),
        tokens=pieces(tokenizer, ids),
        ids=ids,
        ended=bool(found["ended"][row]),
        kind=known if taught else "",
        step=step,
        teacher_prompt=text("teacher_prompt", row) if own_context else None,
        **dict(zip(IMAGES, images[row // n], strict=True) if images else ()),
        **{name: numbers(name, row, taught) for name in NUMBERS},
      )
    )
  return responses


REPEATED = 8  # times in a row, from which on a token is written once, with their number


def prompt_text(tokenizer: Any, ids: Iterable[int]) -> str:
  """Decode a prompt with its special tokens; what stands for an image, and all else that is repeated so often, once: "<|image_pad|> x 280"."""
  parts: list[str] = []
  words: list[int] = []
  special = set(getattr(tokenizer, "all_special_ids", ())) | set(getattr(tokenizer, "added_tokens_decoder", ()))
  for token, group in itertools.groupby(int(i) for i in ids):
    if (n := len(list(group))) < REPEATED or token not in special:
      words += [token] * n
      continue
    parts.append(tokenizer.decode([*words, token], skip_special_tokens=False) + f" x {n} ")
    words = []
  return "".join([*parts, tokenizer.decode(words, skip_special_tokens=False)])


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
  """Decode every token of a response to the text that it adds there; what is no text by itself has the vocabulary's name."""
  return [piece(tokenizer, ids[i - 1] if i else None, token) for i, token in enumerate(ids)]


def piece(tokenizer: Any, before: int | None, token: int) -> str:
  """Decode a token to the text that it adds behind another: some tokenizers drop the space of a first word.

  Args:
    before: the id of the token before it; None: the token is the first.
  """

  def decode(*ids: int) -> str:
    return tokenizer.decode(list(map(int, ids)), skip_special_tokens=False, clean_up_tokenization_spaces=False)

  text = decode(token)
  if before is not None and (both := decode(before, token)).startswith(head := decode(before)):
    text = both[len(head) :]
  if text and "\ufffd" not in text:
    return text
  return tokenizer.convert_ids_to_tokens(int(token)) or f"<{int(token)}>"
