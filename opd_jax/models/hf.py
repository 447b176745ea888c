"""Hugging Face model directories: found, checked, read and written without PyTorch.

hf_config.py does their config.json, weights.py their tensors.
"""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.typing import DTypeLike

from opd_jax.config import BUILTIN, expanded_path
from opd_jax.errors import InputError, brief
from opd_jax.models import directory as directories
from opd_jax.models import finite, hf_config, weights
from opd_jax.models.decoder_config import DecoderConfig
from opd_jax.runtime.json_files import is_whole
from opd_jax.types import Params


def resolve(name: str) -> pathlib.Path:
  """Find the directory of 'builtin:student', or of a model that is already on this machine.

  Raises:
    InputError: there is none; says how to get it.
  """
  if name.startswith(BUILTIN):
    assets = pathlib.Path(__file__).resolve().parent.parent / "tasks" / "assets"
    known = {p.parent.relative_to(assets).as_posix(): p.parent for p in sorted(assets.glob("**/config.json"))}
    wanted = name.removeprefix(BUILTIN)
    if wanted not in known:
      available = ", ".join(BUILTIN + k for k in known) or "none in this installation"
      raise InputError(f"There is no built-in model {name}; available: {available}.")
    return known[wanted]
  path = expanded_path(name)
  if path.is_dir():
    return path
  if path.exists():
    raise InputError(f"{path} is a file; a model is the directory that holds config.json and the safetensors files.")
  if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
    raise InputError(
      f"There is no directory {name}; if it is a model of the Hugging Face hub, download it first, "
      f"e.g. `hf download {name} --local-dir DIR`, and give DIR."
    )
  raise InputError(f"There is no model directory {path}.")


def check_directory(directory: pathlib.Path) -> None:
  """Check from the headers of its files, in milliseconds, that a directory can be read to the end.

  Raises:
    InputError: it cannot.
  """
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    raise InputError(f"There is no model directory {directory}.")
  if (directory / "adapter_config.json").is_file() and not (directory / "config.json").is_file():
    raise InputError(
      f"{directory} is a PEFT adapter and not a model: name the model that it belongs to, and give the adapter as "
      "config.lora.path."
    )
  cache = directory / ".cache" / "huggingface"
  for leftover in sorted([*directory.glob("*.incomplete"), *cache.glob("**/*.incomplete")]):
    raise InputError(f"{leftover} is left from a download that did not end; run the download again, or delete it.")
  weights.check(directory, hf_config.read(directory))
  if not directories.find(directory, directories.VOCABULARIES):
    others = " nor ".join(directories.VOCABULARIES[1:])
    raise InputError(f"{directory} has no tokenizer.json (nor {others}): copy the tokenizer there.")


def stop_ids(directory: pathlib.Path) -> tuple[int, ...]:
  """Read every token that a model's files say ends a response: eos_token_id of both configs, sorted.

  Raises:
    InputError: a file is not JSON, or a value is neither an id nor a list of ids.
  """
  ids: set[int] = set()
  for name in ("generation_config.json", "config.json"):
    path = pathlib.Path(directory) / name
    if path.is_file():
      eos = directories.read_json(path).get("eos_token_id")
      values = [] if eos is None else eos if isinstance(eos, list) else [eos]
      if not all(map(is_whole, values)):
        raise InputError(f"{path}: eos_token_id is {brief(eos)}; it has to be a token's id, or a list of ids.")
      ids |= set(values)
  return tuple(sorted(ids))


def load(
  directory: pathlib.Path,
  cfg: DecoderConfig | None = None,
  shardings: Params | None = None,
  dtype: DTypeLike = jnp.float32,
) -> Params:
  """Read the parameters of decoder.py, each into its sharding, and convert them on the way.

  Args:
    cfg: what `hf_config.read` returns for the directory; None: it is called.
    shardings: a jax.sharding.Sharding for every parameter, in the same tree; None: the default device.

  Raises:
    InputError: a weight is NaN or Inf, beside what `weights.read` raises.
  """
  directory = pathlib.Path(directory)
  params = weights.read(directory, cfg or hf_config.read(directory), shardings, dtype)
  if broken := finite.first_broken(params):
    raise InputError(
      f"The weights of {directory} have a NaN or Inf in {broken!r}, so the model cannot answer; download it again, or "
      "export it from an earlier checkpoint."
    )
  return params


def write(
  directory: pathlib.Path,
  cfg: DecoderConfig,
  params: Params,
  *,
  like: pathlib.Path | None = None,
  pad_id: int | None = None,
  eos_id: int | Sequence[int] | None = None,
  dtype: str = "bfloat16",
  max_shard_bytes: float = 5e9,
  card: str = "",
) -> None:
  """Write a directory that transformers loads. It appears whole or not at all.

  In a multi-process run every process calls this, and the first one writes.

  Args:
    like: the directory the model comes from, whose config, tokenizer and licence are copied
      (`directory.COMPANIONS`); None: a model that comes from no directory, which gets a config of its own with
      `pad_id` and `eos_id`, and no tokenizer.
    dtype: "bfloat16" or "float32".
    max_shard_bytes: a file larger than this is split between tensors.
    card: README.md; "" for none.

  Raises:
    InputError: the directory has something in it already, or a weight is NaN or Inf.
  """
  directory = pathlib.Path(directory).absolute()
  kinds = {"bfloat16": "BF16", "float32": "F32"}
  if dtype not in kinds:
    raise InputError(f"dtype is {dtype!r}; weights are written as {' or '.join(kinds)}.")
  check_new(directory)
  if broken := finite.first_broken(params):
    raise InputError(
      f"The weights of {broken!r} have a NaN or Inf, so nothing is written to {directory}; export an earlier checkpoint."
    )
  if like is not None and hf_config.read(like) != dataclasses.replace(cfg, tower=None):
    raise ValueError(f"{like} does not describe the model that is to be written")
  first = jax.process_index() == 0
  with directories.appearing_whole(directory) if first else contextlib.nullcontext() as part:
    if part is not None and like is None:
      hf_config.write(part, cfg, pad_id=pad_id, eos_id=eos_id, dtype=dtype)
    elif part is not None and like is not None:
      hf_config.copy(pathlib.Path(like), part, dtype)
    if part is not None and card:
      (part / directories.CARD).write_text(card, encoding="utf-8")
    weights.write(part, cfg, params, kinds[dtype], max_shard_bytes, like)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"wrote {directory}")


def check_new(directory: pathlib.Path) -> None:
  """Refuse to write where something is.

  Raises:
    InputError: the path is a file, or a directory with something in it.
  """
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise InputError(f"{directory} exists already: remove it, or choose another place.")
