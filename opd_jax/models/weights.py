"""The weights of a model directory, in its safetensors files: checked, read and written.

Weights go from the pages of the files straight into the shards of the devices: a process reads what its devices
hold, and keeps no more than one device's slice of one parameter (its layers stacked) in host memory at a time.
"""

import math
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.typing import DTypeLike

from opd_jax.errors import InputError, brief, some
from opd_jax.models import delta_net, safetensors_io
from opd_jax.models import directory as directories
from opd_jax.models.decoder_config import DecoderConfig
from opd_jax.models.safetensors_io import DTYPES, FILE, INDEX, Shape, Tensor
from opd_jax.models.tensor_places import EMBED, HEAD, NAMES, Leaf, expected, parameter_leaves, tensor_name, tower_leaves
from opd_jax.models.vision import VisionConfig
from opd_jax.types import Params


def check(directory: pathlib.Path, cfg: DecoderConfig) -> None:
  """Check from the headers that the weights can be read to the end and are what `cfg` implies.

  Raises:
    InputError: they are not; names the file, the tensor and the mend.
  """
  tensors = _find_parameters(directory, cfg)
  _check_tensors(directory, cfg, tensors)
  if cfg.tied and HEAD in tensors:
    _check_tied(tensors[tensor_name(EMBED, cfg.tensor_names)], tensors[HEAD])


def _find_parameters(directory: pathlib.Path, cfg: DecoderConfig) -> dict[str, Tensor]:
  """Find the tensors; embedding and head of a tied model are one, which some programs save under the head's name."""
  tensors = safetensors_io.find_tensors(directory)
  prefix, embed = NAMES["language_model"]["model."], tensor_name(EMBED, cfg.tensor_names)
  if cfg.tensor_names == "transformers" and EMBED not in tensors and tensor_name(EMBED, "language_model") in tensors:
    # The text part of a model that sees images, saved by itself: transformers leaves its names as they were.
    tensors = {
      f"model.{name.removeprefix(prefix)}" if name.startswith(prefix) else name: t for name, t in tensors.items()
    }
  if cfg.tied and HEAD in tensors and embed not in tensors:
    tensors[embed] = tensors.pop(HEAD)
  return _tower_renamed(tensors, cfg.tensor_names) if cfg.tower is not None else tensors


def _tower_renamed(tensors: dict[str, Tensor], names: str) -> dict[str, Tensor]:
  """Call a tower's tensors as NAMES does, which some directories have under another prefix."""
  wanted = tensor_name("visual.", names)
  known = [prefix for prefix in ("model.visual.", "visual.") if prefix != wanted]
  renamed = {}
  for name, tensor in tensors.items():
    prefix = next((prefix for prefix in known if name.startswith(prefix)), "")
    renamed[wanted + name.removeprefix(prefix) if prefix else name] = tensor
  return renamed


def _check_tensors(directory: pathlib.Path, cfg: DecoderConfig, tensors: dict[str, Tensor]) -> None:
  """Refuse tensors that are missing, unknown, or not what config.json implies."""
  where = directory / (FILE if (directory / FILE).is_file() else INDEX)
  least = cfg.layers * (cfg.moe.experts if cfg.moe else 1)
  if least > len(tensors):  # before all of their names are made
    raise InputError(
      f"{where} has {len(tensors)} tensors, and config.json implies more than {least}: they are of different models."
    )
  wanted = expected(cfg)
  if missing := [name for name in wanted if name not in tensors]:
    hint = "it belongs to another model, or is not complete"
    if missing == [HEAD]:
      hint = "if the model's head is its embedding, config.json has to say tie_word_embeddings true"
    raise InputError(f"{where} has no tensor {some(missing)}, which config.json implies: {hint}.")
  harmless = {HEAD} if cfg.tied else set()
  harmless |= {name for name in tensors if name.endswith("rotary_emb.inv_freq")} | others(cfg, tensors).keys()
  if unknown := [name for name in tensors if name not in wanted and name not in harmless]:
    raise InputError(
      f"{where} has unknown tensors {some(unknown)}: config.json and the weights are of different models."
    )
  for name, shape in wanted.items():
    t = tensors[name]
    if t.shape != shape:
      mend = "they are of different models"
      if name == tensor_name(EMBED, cfg.tensor_names) and t.shape[1:] == shape[1:]:
        mend = f"if they are of one model, config.json has to say vocab_size {t.shape[0]}"
        mend = mend.replace("vocab_size", "embedding_size") if cfg.tensor_names == "llada" else mend
      raise InputError(
        f"{t.file}: tensor {name} has shape {brief(list(t.shape))}, but config.json implies {list(shape)}: {mend}."
      )
    if t.dtype not in DTYPES:
      raise InputError(f"{t.file}: tensor {name} has dtype {some([t.dtype])}; supported are {', '.join(DTYPES)}.")


def others(cfg: DecoderConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
  """The tensors of a model that sees images which are not its decoder's: what sees, and what guesses several tokens at once."""
  if cfg.delta is None and not cfg.rope_axes:
    return {}
  beside = ("mtp.",) if cfg.tower is not None else ("model.visual.", "visual.", "mtp.")
  return {name: t for name, t in tensors.items() if name.startswith(beside)}


def _check_tied(embed: Tensor, head: Tensor) -> None:
  """Refuse an output head that is not the embedding that config.json ties it to, by a sample of 64 rows."""
  same = head.shape == embed.shape and head.dtype == embed.dtype
  if same:
    rows = np.linspace(0, embed.shape[0] - 1, 64).astype(int)
    same = np.array_equal(embed.map()[rows], head.map()[rows])
  if not same:
    raise InputError(
      f"{head.file}: lm_head.weight is not model.embed_tokens.weight, but config.json says tie_word_embeddings true: "
      "set it to false, or remove the tensor."
    )


def read(
  directory: pathlib.Path, cfg: DecoderConfig, shardings: Params | None, dtype: DTypeLike = jnp.float32
) -> Params:
  """Read the parameters of decoder.py, each into its sharding, and convert them on the way.

  Args:
    shardings: one for every parameter, in the same tree; None: the default device.
    dtype: type of the result.

  Raises:
    InputError: the tensors are not what `cfg` implies.
  """
  tensors = _find_parameters(directory, cfg)
  _check_tensors(directory, cfg, tensors)

  return _read_leaves(parameter_leaves(cfg), tensors, shardings, dtype)


def read_tower(
  directory: pathlib.Path, tower: VisionConfig, shardings: Params | None, dtype: DTypeLike = jnp.float32
) -> Params:
  """Read the parameters of a vision tower alone; arguments as of `read`.

  Raises:
    InputError: the tensors are not what `tower` implies.
  """
  tensors = _tower_renamed(safetensors_io.find_tensors(directory), "transformers")
  leaves = tower_leaves(tower, "transformers")
  wanted = {name: shape for leaf in jax.tree.leaves(leaves) for name, shape in leaf.tensors().items()}
  if missing := [name for name in wanted if name not in tensors]:
    raise InputError(f"{directory} has no tensor {some(missing)} of its vision tower: it is not complete.")
  if unknown := [name for name in tensors if name.startswith("visual.") and name not in wanted]:
    raise InputError(f"{directory} has unknown tensors {some(unknown)} in its vision tower: it is of another model.")
  for name, shape in wanted.items():
    if tensors[name].shape != shape or tensors[name].dtype not in DTYPES:
      t = tensors[name]
      raise InputError(
        f"{t.file}: tensor {name} is {t.dtype} of shape {brief(list(t.shape))}, but config.json implies {list(shape)} of {', '.join(DTYPES)}."
      )
  return _read_leaves(leaves, tensors, shardings, dtype)


def _read_leaves(leaves: Any, tensors: dict[str, Tensor], shardings: Params | None, dtype: DTypeLike) -> Params:
  def read_leaf(leaf: Leaf, sharding: jax.sharding.Sharding | None = None) -> jax.Array:
    if sharding is None:
      array = jnp.asarray(read_slice(leaf, tensors, np.dtype(dtype), (slice(None),) * len(leaf.shape)))
    else:
      array = _read_sharded(leaf, tensors, np.dtype(dtype), sharding)
    # Transfers are asynchronous, and the next parameter waits so that two never stand in host memory.
    return jax.block_until_ready(array)

  return jax.tree.map(read_leaf, leaves, *([] if shardings is None else [shardings]))


def _read_sharded(leaf: Leaf, tensors: dict[str, Tensor], dtype: np.dtype, sharding: jax.sharding.Sharding):
  """Read one parameter into its sharding, of which a process reads the slices that its devices hold, one after the other."""
  holders: dict[tuple, list[jax.Device]] = {}  # devices that hold the same slice share one copy on the host
  for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
    assert index is not None
    key = tuple(s.indices(n) for s, n in zip(index, leaf.shape, strict=True))
    holders.setdefault(key, []).append(device)
  arrays = []
  for key, devices in holders.items():
    block = read_slice(leaf, tensors, dtype, tuple(slice(*s) for s in key))
    places = [jax.sharding.SingleDeviceSharding(d, memory_kind=sharding.memory_kind) for d in devices]
    # Transfers are asynchronous, and the next slice waits so that two never stand in host memory.
    arrays += jax.block_until_ready([jax.device_put(block, place) for place in places])
  return jax.make_array_from_single_device_arrays(leaf.shape, sharding, arrays)


def read_slice(leaf: Leaf, tensors: dict[str, Tensor], dtype: np.dtype, index: tuple[slice, ...]) -> np.ndarray:
  """Read leaf[index] as a host array."""
  # astype keeps the order of the file, so that its pages are read in sequence; the transposition is made in memory.
  wanted = [range(n)[s] for n, s in zip(leaf.shape, index, strict=True)]
  out = np.empty([len(w) for w in wanted], dtype)
  for position in np.ndindex(*out.shape[: leaf.stacked]):
    place = tuple(w[i] for w, i in zip(wanted, position, strict=False))
    tensor = tensors[leaf.tensor(place)]
    out[position] = leaf.from_file(tensor.map())[index[leaf.stacked :]].astype(dtype)
  return out


def write(
  directory: pathlib.Path | None,
  cfg: DecoderConfig,
  params: Params,
  kind: str,
  max_shard_bytes: float,
  like: pathlib.Path | None = None,
) -> None:
  """Write the safetensors files, gathering one parameter at a time.

  Args:
    directory: None in a process that only takes part in gathering.
    kind: a key of `safetensors_io.DTYPES`.
    max_shard_bytes: a file larger than this is split between tensors.
    like: the directory that the model comes from, whose tensors beside the decoder's (`others`) are copied as they are.
  """
  arrays, exact = _gathered(cfg, params, DTYPES[kind]), _exact(cfg)
  if directory is None:
    for _ in arrays:
      pass
    return
  more = like is not None and (cfg.delta is not None or bool(cfg.rope_axes))
  copied = others(cfg, safetensors_io.find_tensors(like)) if like is not None and more else {}
  kinds = sorted({t.dtype for t in copied.values()})
  files = _files(cfg, DTYPES[kind].itemsize, max_shard_bytes, more=len(kinds))
  total = 0
  for file, tensors in files.items():
    placed = dict(sorted(tensors.items(), key=lambda item: item[0] not in exact))  # those of four bytes first
    of = dict.fromkeys(exact & tensors.keys(), "F32")
    place = len(header := safetensors_io.make_header(placed, kind, of))
    places = {}
    for name, shape in placed.items():
      places[name], place = place, place + math.prod(shape) * DTYPES[of.get(name, kind)].itemsize
    with (directory / file).open("wb") as f:
      f.write(header)
      for wanted in tensors:
        name, array = next(arrays)
        assert name == wanted
        f.seek(places[name])
        f.write(array.reshape(-1).view(np.uint8).data)
        total += array.nbytes
  of_all = len(files) + len(kinds)
  for i, of_kind in enumerate(kinds, len(files) + 1):
    tensors = {name: t for name, t in copied.items() if t.dtype == of_kind}
    files[file := _numbered(i, of_all)] = {name: t.shape for name, t in tensors.items()}
    with (directory / file).open("wb") as f:
      f.write(safetensors_io.make_header(files[file], of_kind))
      for t in tensors.values():
        f.write(np.ascontiguousarray(t.map()).reshape(-1).view(np.uint8).data)
        total += math.prod(t.shape) * DTYPES[of_kind].itemsize
  if len(files) > 1:
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    directories.write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _exact(cfg: DecoderConfig) -> set[str]:
  """The tensors that are written in fp32 whatever the others are, as in released files."""
  leaves = parameter_leaves(cfg)["layers"]
  return {tensor for name in delta_net.EXACT if name in leaves for tensor in leaves[name].tensors()}


def _files(cfg: DecoderConfig, itemsize: int, max_shard_bytes: float, more: int = 0) -> dict[str, dict[str, Shape]]:
  """Share the tensors out over files: file -> its tensors and their shapes, in the order of `_expected`.

  Args:
    more: files that come behind these.
  """
  shards: list[dict[str, Shape]] = [{}]
  room = max_shard_bytes
  for name, shape in expected(cfg).items():
    size = math.prod(shape) * itemsize
    if size > room and shards[-1]:
      shards.append({})
      room = max_shard_bytes
    shards[-1][name] = shape
    room -= size
  if len(shards) + more == 1:
    return {FILE: shards[0]}
  return {_numbered(i, len(shards) + more): shard for i, shard in enumerate(shards, 1)}


def _numbered(i: int, files: int) -> str:
  return f"model-{i:05d}-of-{files:05d}.safetensors"


def _gathered(cfg: DecoderConfig, params: Params, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
  """Gather every tensor with its name, as it stands in a file, in the order of `_expected`."""
  leaves, treedef = jax.tree.flatten(parameter_leaves(cfg))
  exact = _exact(cfg)
  for leaf, x in zip(leaves, treedef.flatten_up_to(params), strict=True):
    if x.shape != leaf.shape:
      raise ValueError(f"{leaf.name}: the parameter has shape {x.shape}, the config implies {leaf.shape}")
    x = x.astype(
      np.float32 if exact & leaf.tensors().keys() else dtype
    )  # where it lies, so that no more than the written type is moved
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      x = multihost_utils.process_allgather(x, tiled=True)
    x = np.asarray(x)
    for name, position in zip(leaf.tensors(), np.ndindex(*x.shape[: leaf.stacked]), strict=True):
      yield name, np.ascontiguousarray(leaf.to_file(x[position]))
    del x  # before the next one is gathered
