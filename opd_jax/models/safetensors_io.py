"""Files of tensors: the headers of safetensors, and the index of a directory that has several of them.

Tensors are found from the headers alone, and are read from the pages of their files when they are first used.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from opd_jax.errors import InputError, brief, some
from opd_jax.models import directory as directories
from opd_jax.runtime import json_files

DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(jnp.bfloat16)}
FILE, INDEX = "model.safetensors", "model.safetensors.index.json"

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tensor:
  """The place of a tensor in a safetensors file."""

  file: pathlib.Path
  offset: int  # bytes from the beginning of the file
  dtype: str  # in safetensors' words
  shape: Shape

  def map(self) -> np.ndarray:
    """Map the tensor to pages of its file, which are read when they are first used."""
    return np.memmap(self.file, DTYPES[self.dtype], "r", self.offset, self.shape)


def find_tensors(directory: pathlib.Path) -> dict[str, Tensor]:
  """Find every tensor of the directory by name, from the headers."""
  single, index = directory / FILE, directory / INDEX
  if single.is_file():
    files = [single]
  elif index.is_file():
    weight_map = directories.read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
      raise InputError(f"{index} has no weight_map: download it again.")
    for tensor, name in weight_map.items():
      if not _is_file_name(name):
        raise InputError(f"{index} has {brief(name)} for the file of tensor {some([tensor])}: download it again.")
    files = [directory / name for name in sorted(set(weight_map.values()))]
    if missing := [f.name for f in files if not f.is_file()]:
      raise InputError(f"{directory} misses {some(missing)}, named in {INDEX}: download the rest.")
  else:
    if others := [p.name for p in sorted(directory.glob("pytorch_model*.bin"))]:
      why = f"only {some(others)}, which is not read: convert it to safetensors"
    elif others := [p.name for p in sorted(directory.glob("consolidated*.safetensors"))]:
      why = f"only {some(others)}, whose tensors have other names: download the rest, or convert it"
    elif others := [p.name for p in sorted(directory.glob("*.safetensors"))]:
      why = f"and no {INDEX}, only {some(others)}: download the rest"
    else:
      why = "and no other weights: download them"
    raise InputError(f"{directory} has no {FILE}, {why}.")
  tensors: dict[str, Tensor] = {}
  for file in files:
    tensors |= read_header(file)
  return tensors


def read_header(file: pathlib.Path) -> dict[str, Tensor]:
  """Find the tensors of one safetensors file by name.

  Raises:
    InputError: the file is no safetensors file, or not exactly as long as its header says.
  """
  size, length, header = _header(file)
  spans = {name: (8 + length + t["data_offsets"][0], 8 + length + t["data_offsets"][1]) for name, t in header.items()}
  end = max((last for _, last in spans.values()), default=8 + length)
  if size != end:
    what = "truncated" if size < end else "too long"
    raise InputError(f"{file} is {what}: {size} bytes, where its header says {end}; download it again.")
  before = 8 + length
  for name, (first, last) in sorted(spans.items(), key=lambda item: item[1]):
    if first != before:
      raise InputError(
        f"{file}: tensor {some([name])} begins at byte {first}, where the one before it ends at {before}: download it again."
      )
    before = last
  tensors = {}
  for name, (first, last) in spans.items():
    dtype, shape = header[name]["dtype"], tuple(header[name]["shape"])
    if dtype in DTYPES and last - first != math.prod(shape) * DTYPES[dtype].itemsize:
      raise InputError(
        f"{file}: tensor {some([name])} has {last - first} bytes for shape {brief(list(shape))}: download it again."
      )
    tensors[name] = Tensor(file, first, dtype, shape)
  return tensors


def _header(file: pathlib.Path) -> tuple[int, int, dict[str, Any]]:
  """Read the size of a safetensors file, the length of its header, and what that says of each tensor."""
  try:
    size = file.stat().st_size
    with file.open("rb") as f:
      start = f.read(8)
      if start == b"version ":
        raise InputError(f"{file} is a git-lfs pointer and not the weights: run `git lfs pull` there.")
      length = int.from_bytes(start, "little")
      if size < 8 or length > size - 8:
        raise InputError(f"{file} ends inside its header ({size} bytes): download it again.")
      header = json_files.parse(f.read(length)) if length <= _LONGEST_HEADER else None
  except OSError as e:
    raise InputError(f"{file} cannot be read ({e.strerror}): check its permissions, or download it again.") from None
  except json_files.NotReadable:
    header = None
  if isinstance(header, dict):
    header.pop("__metadata__", None)
  if not isinstance(header, dict) or not all(map(_is_tensor, header.values())):
    raise InputError(f"{file} has a header that is not safetensors': download it again.")
  return size, length, header


_LONGEST_HEADER = 100_000_000  # bytes, as in the safetensors library


def _is_tensor(t: Any) -> bool:
  """Tell whether an entry of a header is as safetensors writes it: a type, a shape, and the first and the last byte."""
  if not isinstance(t, dict) or not isinstance(t.get("dtype"), str):
    return False
  shape, offsets = t.get("shape"), t.get("data_offsets")
  if not isinstance(shape, list) or not isinstance(offsets, list) or not all(map(_is_size, [*shape, *offsets])):
    return False
  return len(offsets) == 2 and offsets[0] <= offsets[1]


def _is_size(value: Any) -> bool:
  return json_files.is_whole(value, most=2**63 - 1)


def _is_file_name(name: Any) -> bool:
  return isinstance(name, str) and 0 < len(name) < 256 and pathlib.PurePath(name).name == name


def make_header(tensors: dict[str, Shape], kind: str, of: Mapping[str, str] | None = None) -> bytes:
  """Make the first bytes of a safetensors file with these tensors: the header's length, and the header.

  Args:
    kind: of all tensors but those that `of` names with another.
  """
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without it
  end = 0
  for name, shape in tensors.items():
    own = (of or {}).get(name, kind)
    begin, end = end, end + math.prod(shape) * DTYPES[own].itemsize
    header[name] = {"dtype": own, "shape": shape, "data_offsets": [begin, end]}
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)  # tensors begin at a multiple of their item size
  return len(text).to_bytes(8, "little") + text
