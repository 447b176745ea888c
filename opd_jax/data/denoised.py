"""Rollouts of masked diffusion models, canvas by canvas, as JSON lines: canvases.jsonl of a workdir.

One object a line, with the fields of `DenoisedResponse`.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from opd_jax.runtime import json_files
from opd_jax.runtime.json_files import is_number, is_whole

FILE = "canvases.jsonl"
DIGITS = 6  # behind the point, of what is written


@dataclasses.dataclass(frozen=True)
class DenoisedResponse:
  """One response that was denoised, and what was compared on its canvases.

  Attributes:
    step: the training step that learns from it.
    prompt: as it was read, with special tokens.
    tokens: of every position, as text.
    committed_at: the denoising step of every position; -1: it was no mask to begin with.
    learned: whether it was accepted, and is learned from.
    counted: of each canvas whether it is learned from, where the response is.
    divergence: of each canvas the positions that are compared, and the divergence there in nats (None: it is not finite).
    revealed: of each canvas the positions that the teacher was shown.
  """

  step: int
  prompt: str
  tokens: list[str]
  committed_at: list[int]
  learned: bool
  counted: list[bool]
  divergence: list[dict[int, float | None]]
  revealed: list[list[int]]

  def to_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self)


def of_rows(found: Mapping[str, np.ndarray], tokenizer: Any, step: int) -> list[DenoisedResponse]:
  """Make the responses of DiffusionStep.score's numbers."""

  def text(token: int) -> str:
    return tokenizer.decode([token], skip_special_tokens=False)

  out = []
  for row, tokens in enumerate(found["tokens"]):
    values, shown = found["divergence"][:, row], found["revealed"][:, row]
    compared = [
      {int(i): round(float(v[i]), DIGITS) if np.isfinite(v[i]) else None for i in np.flatnonzero(~np.isnan(v))}
      for v in values
    ]
    prompt = found["prompt"][row][found["prompt_mask"][row]]
    out.append(
      DenoisedResponse(
        step,
        tokenizer.decode(prompt.tolist(), skip_special_tokens=False),
        [text(int(token)) for token in tokens],
        found["committed_at"][row].tolist(),
        bool(found["weight"][row]),
        found["counted"][:, row].tolist(),
        compared,
        [np.flatnonzero(r).tolist() for r in shown],
      )
    )
  return out


def read(path: pathlib.Path) -> list[DenoisedResponse]:
  """Read the responses of a file; none where there is no file, and not a last line that was cut.

  Raises:
    InputError: a line is none of a response.
  """
  return json_files.read_records(path, _parsed, "response")


def _parsed(value: Any) -> DenoisedResponse:
  if not isinstance(value, dict):
    raise ValueError("no object")
  tokens, committed_at = value["tokens"], value["committed_at"]
  if not (isinstance(tokens, list) and all(isinstance(t, str) for t in tokens)):
    raise ValueError("tokens are not texts")
  positions = range(len(tokens))
  if not (_wholes(committed_at, -1) and len(committed_at) == len(tokens)):
    raise ValueError("committed_at has no step for each token")
  revealed, divergence = value["revealed"], value["divergence"]
  if not (isinstance(revealed, list) and all(_wholes(r, 0) and set(r) <= set(positions) for r in revealed)):
    raise ValueError("revealed has no positions")
  compared = []
  for of_canvas in divergence:
    by_position = {int(i): v for i, v in of_canvas.items()}
    if not set(by_position) <= set(positions) or not all(v is None or is_number(v) for v in by_position.values()):
      raise ValueError("divergence is not by position")
    compared.append(by_position)
  if not (is_whole(value["step"]) and isinstance(value["prompt"], str) and len(compared) == len(revealed)):
    raise ValueError("step, prompt or the number of canvases is missing")
  counted = value["counted"]
  if not isinstance(counted, list) or len(counted) != len(compared):
    raise ValueError("counted has no entry for each canvas")
  of_canvases = list(map(bool, counted)), compared, revealed
  return DenoisedResponse(value["step"], value["prompt"], tokens, committed_at, bool(value["learned"]), *of_canvases)


def _wholes(values: Any, least: int) -> bool:
  return isinstance(values, list) and all(is_whole(v, least) for v in values)
