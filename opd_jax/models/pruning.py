"""A copy of a model directory with layers left out, or with weights rounded to few bits: a student to heal from the original model.

Tensors are read and written one at a time, and those that stay are copied bit for bit.

    round to nearest, b bits     w ~ s round(w / s),  s = max|w| / (2^(b-1) - 1) over each row's `group` neighbouring weights
"""

import copy
import math
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from opd_jax.errors import InputError, brief
from opd_jax.models import directory as directories
from opd_jax.models import hf, hf_config, safetensors_io, weights
from opd_jax.models.safetensors_io import DTYPES, Tensor

LAYER = re.compile(r"((?:model\.)?(?:language_model\.)?(?:model\.)?layers\.)(\d+)(\..+)")  # of the decoder
DEPTH = "num_hidden_layers"


def layers_of(text: str) -> tuple[int, ...]:
  """Read the numbers of layers, "20-23,27", rising and without repeats.

  Raises:
    InputError: it is something else.
  """
  found: set[int] = set()
  for part in text.split(","):
    if not (bounds := re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)) or int(bounds[2] or bounds[1]) < int(bounds[1]):
      raise InputError(f"{brief(text)} names no layers; write their numbers from 0 on, such as 20-23 or 4,20-23.")
    found |= set(range(int(bounds[1]), int(bounds[2] or bounds[1]) + 1))
  return tuple(sorted(found))


def write(source: pathlib.Path, out: pathlib.Path, *, drop: Iterable[int] = (), bits: int = 0, group: int = 64) -> None:
  """Write the copy; it appears whole or not at all.

  Args:
    drop: layers to leave out, from 0.
    bits: of the layers' matrices, 2 to 8; 0: as they are. Embedding, head and norms stay.
    group: weights of a row that share a scale.

  Raises:
    InputError: there are no such layers, or the directory cannot be read or written.
  """
  hf.check_new(out)
  weights.check(source, hf_config.read(source))
  if bits and not 2 <= bits <= 8:
    raise InputError(f"Weights of {bits} bits cannot be written; choose 2 to 8.")
  raw, dropped = directories.read_json(source / "config.json"), set(drop)
  config = _without(raw, dropped, source)
  numbers = _new_numbers(hf_config.read(source).layers, dropped)
  tensors = {}
  for name, tensor in safetensors_io.find_tensors(source).items():
    layer = LAYER.fullmatch(name)
    if layer is None:
      tensors[name] = tensor, 0
    elif (number := numbers.get(int(layer[2]))) is not None:
      tensors[f"{layer[1]}{number}{layer[3]}"] = tensor, bits if len(tensor.shape) == 2 else 0
  if dropped and not any(map(LAYER.fullmatch, tensors)):
    raise InputError(f"The tensors of {source} are not called layers.NUMBER, so that none can be left out.")
  with directories.appearing_whole(out) as part:
    directories.copy(source, part, directories.COMPANIONS)
    directories.write_json(part / "config.json", config)
    _write_tensors(part, tensors, lambda array, of: rounded(array, of, group) if of else array)
    weights.check(part, hf_config.read(part))


def _new_numbers(layers: int, dropped: set[int]) -> dict[int, int]:
  """The number of every layer that stays, by the one that it had."""
  return {old: new for new, old in enumerate(i for i in range(layers) if i not in dropped)}


def _without(raw: dict[str, Any], dropped: set[int], source: pathlib.Path) -> dict[str, Any]:
  """Leave layers out of a config.json, and out of its lists of what each layer is."""
  before, found = hf_config.described(raw), copy.deepcopy(raw)
  if wrong := sorted(i for i in dropped if i >= before.layers):
    raise InputError(f"{source} has the layers 0 to {before.layers - 1}, and no {wrong[0]}.")
  if len(dropped) == before.layers:
    raise InputError(f"All {before.layers} layers of {source} are left out; keep one.")
  for part in (found, *(value for value in found.values() if isinstance(value, dict))):
    if part.get(DEPTH) != before.layers:
      continue
    part[DEPTH] = before.layers - len(dropped)
    for key, value in part.items():
      if isinstance(value, list) and len(value) == before.layers:
        part[key] = [each for i, each in enumerate(value) if i not in dropped]
  kept = [kind for i, kind in enumerate(before.kinds) if i not in dropped]
  try:
    after = hf_config.described(found)
  except ValueError as e:
    raise InputError(f"{source} without these layers is a model that is not supported: {e}.") from None
  if (after.layers, after.kinds) != (len(kept), kept):
    raise InputError(
      f"{source} says by rule which of its layers is of which kind, and without these the rule does not hold; list layer_types in config.json."
    )
  return found


def rounded(w: np.ndarray, bits: int, group: int) -> np.ndarray:
  """Round a matrix to `bits` bits, symmetrically by groups of each row; returns what the rounded numbers stand for, in the same type."""
  rows, columns = w.shape
  padded = np.zeros((rows, math.ceil(columns / group) * group), np.float32)
  padded[:, :columns] = w.astype(np.float32)
  grouped = padded.reshape(rows, -1, group)
  scale = np.abs(grouped).max(axis=-1, keepdims=True) / (2 ** (bits - 1) - 1)
  scale[scale == 0] = 1
  near = np.rint(grouped / scale) * scale
  return near.reshape(rows, -1)[:, :columns].astype(w.dtype)


def _write_tensors(
  directory: pathlib.Path, tensors: dict[str, tuple[Tensor, int]], changed: Callable[[np.ndarray, int], np.ndarray]
) -> None:
  """Write tensors to one file, the wider types first, so that each begins at a multiple of its item size."""
  order = sorted(tensors, key=lambda name: -DTYPES[tensors[name][0].dtype].itemsize)
  of = {name: tensors[name][0].dtype for name in order}
  shapes = {name: tensors[name][0].shape for name in order}
  with (directory / safetensors_io.FILE).open("wb") as file:
    file.write(safetensors_io.make_header(shapes, "F32", of))
    for name in order:
      tensor, bits = tensors[name]
      file.write(np.ascontiguousarray(changed(tensor.map(), bits)).reshape(-1).view(np.uint8).data)
