"""Multimodal rotary positions (M-RoPE, arXiv:2409.12191): a token's place in time, in height and in width.

Text counts all three alike. The features of an image share a time, and count rows and columns from it; what comes behind
the image goes on from its longer side. On the host, since it is settled by where the images stand.

Dimensions: P prompt width.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

AXES = 3  # time, height, width


def positions(tokens: Int[np.ndarray, " P"], image_id: int, sizes: Sequence[tuple[int, int]]) -> Int[np.ndarray, "P 3"]:
  """The positions of a prompt's tokens.

  Args:
    tokens: without padding; an image is as many `image_id` in a row as it has features.
    sizes: of the images in their order, rows and columns of features.

  Raises:
    ValueError: there are not as many places as features.
  """
  found = np.zeros((len(tokens), AXES), np.int32)
  place = following = 0
  waiting = list(sizes)
  while place < len(tokens):
    if tokens[place] != image_id:
      found[place] = following
      place, following = place + 1, following + 1
      continue
    rows, columns = waiting.pop(0) if waiting else (0, 0)
    span = slice(place, place + rows * columns)
    if not rows * columns or not np.all(tokens[span] == image_id) or len(tokens[span]) < rows * columns:
      raise ValueError(f"the images {list(sizes)} do not fit the prompt's places for them")
    row, column = np.divmod(np.arange(rows * columns), columns)
    found[span] = following + np.stack([np.zeros_like(row), row, column], axis=1)
    place, following = span.stop, following + max(rows, columns)
  if waiting:
    raise ValueError(f"the prompt has no places for {len(waiting)} of its images")
  return found


def following(found: Int[np.ndarray, "P 3"]) -> int:
  """The position of the first token behind a prompt."""
  return int(found.max()) + 1 if len(found) else 0


def axes(sections: Sequence[int], interleaved: bool, frequencies: int) -> tuple[int, ...]:
  """Which of the three positions each rotary frequency turns by.

  Args:
    sections: how many frequencies each position has.
    interleaved: height and width take turns with time as long as they have frequencies left (Qwen3-VL, Qwen3.5); otherwise
      each has its own stretch (Qwen2.5-VL).
    frequencies: how many there are.

  Raises:
    ValueError: stretches that are not as many.
  """
  if not interleaved:
    if sum(sections) != frequencies:
      raise ValueError(f"mrope_section is {list(sections)}; the sum of its numbers has to be {frequencies}")
    return tuple(axis for axis, n in enumerate(sections) for _ in range(n))
  return tuple(j % AXES if j < AXES * sections[j % AXES] else 0 for j in range(frequencies))
