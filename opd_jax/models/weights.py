"""The safetensors files of a model directory, and which parameter of decoder.py stands in which tensor.

Weights go from the pages of the files straight into the shards of the devices: a process reads what its devices
hold, and keeps no more than one parameter (its layers stacked) in host memory at a time.

Dimensions, one letter each in `_LEAVES`: v vocabulary, d model width, n heads, h head width, f feed-forward width,
e experts.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from opd_jax.errors import InputError
from opd_jax.models.decoder import DecoderConfig, shapes
from opd_jax.types import Params

DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(jnp.bfloat16)}
FILE, INDEX = "model.safetensors", "model.safetensors.index.json"

Shape = tuple[int, ...]


def check(directory: pathlib.Path, cfg: DecoderConfig) -> None:
  """Refuses weights that cannot be read to the end, or are not what `cfg` implies, from the headers."""
  tensors = _tensors(directory)
  _check_tensors(directory, cfg, tensors)
  if cfg.tied and "lm_head.weight" in tensors:
    _check_tied(tensors["model.embed_tokens.weight"], tensors["lm_head.weight"])


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """Where a tensor stands."""

  file: pathlib.Path
  offset: int  # bytes from the beginning of the file
  dtype: str  # in safetensors' words
  shape: Shape

  def map(self) -> np.ndarray:
    """The tensor as pages of its file: nothing is read before it is looked at."""
    return np.memmap(self.file, DTYPES[self.dtype], "r", self.offset, self.shape)


def _tensors(directory: pathlib.Path) -> dict[str, _Tensor]:
  """Every tensor of the directory by name, from the headers."""
  single, index = directory / FILE, directory / INDEX
  if single.is_file():
    files = [single]
  elif index.is_file():
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
      raise InputError(f"{index} has no weight_map: download it again.")
    files = [directory / name for name in sorted(set(weight_map.values()))]
    if missing := [f.name for f in files if not f.is_file()]:
      raise InputError(f"{directory} misses {_some(missing)}, named in {INDEX}: download the rest.")
  else:
    if others := [p.name for p in sorted(directory.glob("pytorch_model*.bin"))]:
      why = f"only {_some(others)}, which is not read: convert it to safetensors"
    elif others := [p.name for p in sorted(directory.glob("*.safetensors"))]:
      why = f"and no {INDEX}, only {_some(others)}: download the rest"
    else:
      why = "and no other weights: download them"
    raise InputError(f"{directory} has no {FILE}, {why}.")
  tensors: dict[str, _Tensor] = {}
  for file in files:
    tensors |= read_header(file)
  return tensors


def read_header(file: pathlib.Path) -> dict[str, _Tensor]:
  """The tensors of one safetensors file; the file is refused unless it is exactly as long as its header says."""
  size = file.stat().st_size
  with file.open("rb") as f:
    start = f.read(8)
    if start == b"version ":
      raise InputError(f"{file} is a git-lfs pointer and not the weights: run `git lfs pull` there.")
    length = int.from_bytes(start, "little")
    if size < 8 or length > size - 8:
      raise InputError(f"{file} ends inside its header ({size} bytes): download it again.")
    try:
      header = json.loads(f.read(length))
      header.pop("__metadata__", None)
      tensors = {
        name: _Tensor(file, 8 + length + t["data_offsets"][0], t["dtype"], tuple(t["shape"]))
        for name, t in header.items()
      }
      end = 8 + length + max((t["data_offsets"][1] for t in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
      raise InputError(f"{file} has a header that is not safetensors': download it again.") from None
  if size != end:
    what = "truncated" if size < end else "too long"
    raise InputError(f"{file} is {what}: {size} bytes, where its header says {end}; download it again.")
  for name, t in tensors.items():
    first, last = header[name]["data_offsets"]
    if t.dtype in DTYPES and last - first != math.prod(t.shape) * DTYPES[t.dtype].itemsize:
      raise InputError(f"{file}: tensor {name} has {last - first} bytes for shape {list(t.shape)}: download it again.")
  return tensors


def _check_tensors(directory: pathlib.Path, cfg: DecoderConfig, tensors: dict[str, _Tensor]) -> None:
  """Refuses tensors that are missing, unknown, or not what config.json implies."""
  expected = _expected(cfg)
  where = directory / (FILE if (directory / FILE).is_file() else INDEX)
  if missing := [name for name in expected if name not in tensors]:
    hint = "it belongs to another model, or is not complete"
    if missing == ["lm_head.weight"]:
      hint = "if the model's head is its embedding, config.json has to say tie_word_embeddings true"
    raise InputError(f"{where} has no tensor {_some(missing)}, which config.json implies: {hint}.")
  harmless = {"lm_head.weight"} if cfg.tied else set()
  extra = [
    name
    for name in tensors
    if name not in expected and name not in harmless and not name.endswith("rotary_emb.inv_freq")
  ]
  if extra:
    raise InputError(
      f"{where} has unknown tensors {_some(extra)}: config.json and the weights are of different models."
    )
  for name, shape in expected.items():
    t = tensors[name]
    if t.shape != shape:
      raise InputError(
        f"{t.file}: tensor {name} has shape {list(t.shape)}, but config.json implies {list(shape)}: "
        "they are of different models."
      )
    if t.dtype not in DTYPES:
      raise InputError(f"{t.file}: tensor {name} has dtype {t.dtype}; supported are {', '.join(DTYPES)}.")


def _check_tied(embed: _Tensor, head: _Tensor) -> None:
  """Refuses an output head that is not the embedding that config.json ties it to; some rows tell."""
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
  directory: pathlib.Path, cfg: DecoderConfig, shardings: Params | None, dtype: jnp.dtype | type = jnp.float32
) -> Params:
  """The parameters of decoder.py, each read into its sharding (None: the default device) and converted on the way."""
  tensors = _tensors(directory)
  _check_tensors(directory, cfg, tensors)

  def make(leaf: _Leaf, sharding: jax.sharding.Sharding | None = None) -> jax.Array:
    if sharding is None:
      array = jnp.asarray(_read_slice(leaf, tensors, np.dtype(dtype), (slice(None),) * len(leaf.shape)))
    else:
      array = _read_sharded(leaf, tensors, np.dtype(dtype), sharding)
    # Transfers are asynchronous, and the next parameter waits so that two never stand in host memory.
    return jax.block_until_ready(array)

  return jax.tree.map(make, _leaves(cfg), *([] if shardings is None else [shardings]))


def _read_sharded(leaf: "_Leaf", tensors: dict[str, _Tensor], dtype: np.dtype, sharding: jax.sharding.Sharding):
  blocks: dict[tuple, np.ndarray] = {}  # devices that hold the same slice share one copy on the host

  def block(index: tuple[slice, ...] | None) -> np.ndarray:
    assert index is not None
    key = tuple(s.indices(n) for s, n in zip(index, leaf.shape, strict=True))
    if key not in blocks:
      blocks[key] = _read_slice(leaf, tensors, dtype, index)
    return blocks[key]

  return jax.make_array_from_callback(leaf.shape, sharding, block)


def _read_slice(leaf: "_Leaf", tensors: dict[str, _Tensor], dtype: np.dtype, index: tuple[slice, ...]) -> np.ndarray:
  """leaf[index] as a host array."""
  # astype keeps the order of the file, so that its pages are read in sequence; the transposition is made in memory.
  wanted = [range(n)[s] for n, s in zip(leaf.shape, index, strict=True)]
  out = np.empty([len(w) for w in wanted], dtype)
  for at in np.ndindex(*out.shape[: leaf.stacked]):
    name = leaf.name.format(*(w[i] for w, i in zip(wanted, at, strict=False)))
    out[at] = leaf.ours(tensors[name].map())[index[leaf.stacked :]].astype(dtype)
  return out


def write(
  directory: pathlib.Path | None, cfg: DecoderConfig, params: Params, kind: str, max_shard_bytes: float
) -> None:
  """The safetensors files, one parameter gathered at a time.

  Args:
    directory: None in a process that only takes part in gathering.
    kind: a key of `DTYPES`.
    max_shard_bytes: a file larger than this is split between tensors.
  """
  arrays = _gathered(cfg, params, DTYPES[kind])
  if directory is None:
    for _ in arrays:
      pass
    return
  files = _files(cfg, DTYPES[kind].itemsize, max_shard_bytes)
  total = 0
  for file, tensors in files.items():
    with (directory / file).open("wb") as f:
      f.write(_make_header(tensors, kind))
      for wanted in tensors:
        name, array = next(arrays)
        assert name == wanted
        f.write(array.reshape(-1).view(np.uint8).data)
        total += array.nbytes
  if len(files) > 1:
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _files(cfg: DecoderConfig, itemsize: int, max_shard_bytes: float) -> dict[str, dict[str, Shape]]:
  """File -> its tensors and their shapes, in the order of `_expected`."""
  shards: list[dict[str, Shape]] = [{}]
  room = max_shard_bytes
  for name, shape in _expected(cfg).items():
    size = math.prod(shape) * itemsize
    if size > room and shards[-1]:
      shards.append({})
      room = max_shard_bytes
    shards[-1][name] = shape
    room -= size
  if len(shards) == 1:
    return {FILE: shards[0]}
  return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, 1)}


def _make_header(tensors: dict[str, Shape], kind: str) -> bytes:
  """What a safetensors file with these tensors begins with."""
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without it
  end = 0
  for name, shape in tensors.items():
    begin, end = end, end + math.prod(shape) * DTYPES[kind].itemsize
    header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)  # tensors begin at a multiple of their item size
  return len(text).to_bytes(8, "little") + text


def _gathered(cfg: DecoderConfig, params: Params, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
  """Every tensor with its name, as it stands in a file, in the order of `_expected`."""
  leaves, treedef = jax.tree.flatten(_leaves(cfg))
  for leaf, x in zip(leaves, treedef.flatten_up_to(params), strict=True):
    if x.shape != leaf.shape:
      raise ValueError(f"{leaf.name}: the parameter has shape {x.shape}, the config implies {leaf.shape}")
    x = x.astype(dtype)  # where it lies, so that no more than the written type is moved
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      x = multihost_utils.process_allgather(x, tiled=True)
    x = np.asarray(x)
    for name, at in zip(leaf.tensors(), np.ndindex(*x.shape[: leaf.stacked]), strict=True):
      yield name, np.ascontiguousarray(leaf.stored(x[at]))
    del x  # before the next one is gathered


# Name in the file ({}: the layer, or the layer and the expert), its axes there ("nh": heads and head width are one), and
# axes here without those.
_LEAVES = {
  "embed": ("model.embed_tokens.weight", ("v", "d"), "vd"),
  "norm": ("model.norm.weight", ("d",), "d"),
  "head": ("lm_head.weight", ("v", "d"), "vd"),
  "attn_norm": ("model.layers.{}.input_layernorm.weight", ("d",), "d"),
  "mlp_norm": ("model.layers.{}.post_attention_layernorm.weight", ("d",), "d"),
  "q": ("model.layers.{}.self_attn.q_proj.weight", ("nh", "d"), "dnh"),
  "k": ("model.layers.{}.self_attn.k_proj.weight", ("nh", "d"), "dnh"),
  "v": ("model.layers.{}.self_attn.v_proj.weight", ("nh", "d"), "dnh"),
  "o": ("model.layers.{}.self_attn.o_proj.weight", ("d", "nh"), "nhd"),
  "q_bias": ("model.layers.{}.self_attn.q_proj.bias", ("nh",), "nh"),
  "k_bias": ("model.layers.{}.self_attn.k_proj.bias", ("nh",), "nh"),
  "v_bias": ("model.layers.{}.self_attn.v_proj.bias", ("nh",), "nh"),
  "q_norm": ("model.layers.{}.self_attn.q_norm.weight", ("h",), "h"),
  "k_norm": ("model.layers.{}.self_attn.k_norm.weight", ("h",), "h"),
  "gate": ("model.layers.{}.mlp.gate_proj.weight", ("f", "d"), "df"),
  "up": ("model.layers.{}.mlp.up_proj.weight", ("f", "d"), "df"),
  "down": ("model.layers.{}.mlp.down_proj.weight", ("d", "f"), "fd"),
  "router": ("model.layers.{}.mlp.gate.weight", ("e", "d"), "de"),
  "experts_gate": ("model.layers.{}.mlp.experts.{}.gate_proj.weight", ("f", "d"), "df"),
  "experts_up": ("model.layers.{}.mlp.experts.{}.up_proj.weight", ("f", "d"), "df"),
  "experts_down": ("model.layers.{}.mlp.experts.{}.down_proj.weight", ("d", "f"), "fd"),
}


@dataclasses.dataclass(frozen=True)
class _Leaf:
  """One parameter of `decoder.shapes` and the tensors that hold it in a directory."""

  shape: Shape
  name: str
  there: tuple[str, ...]
  here: str

  @property
  def stacked(self) -> int:
    """How many leading axes count tensors: layers, and experts of a layer."""
    return len(self.shape) - len(self.here)

  @property
  def _sizes(self) -> dict[str, int]:
    return dict(zip(self.here, self.shape[-len(self.here) :], strict=True))

  @property
  def _order(self) -> str:
    return "".join(self.there)

  @property
  def _stored_shape(self) -> Shape:
    return tuple(math.prod(self._sizes[c] for c in axis) for axis in self.there)

  def tensors(self) -> dict[str, Shape]:
    """Names and shapes in the file."""
    names = [self.name.format(*at) for at in np.ndindex(*self.shape[: self.stacked])]
    return dict.fromkeys(names, self._stored_shape)

  def ours(self, x: np.ndarray) -> np.ndarray:
    """A view of one tensor of a file with our axes."""
    return x.reshape([self._sizes[c] for c in self._order]).transpose([self._order.index(c) for c in self.here])

  def stored(self, x: np.ndarray) -> np.ndarray:
    """One layer of ours, or one expert, as it stands in a file."""
    return x.transpose([self.here.index(c) for c in self._order]).reshape(self._stored_shape)


def _leaves(cfg: DecoderConfig) -> dict[str, Any]:
  """A `_Leaf` for every parameter, in the tree of `decoder.shapes`."""
  make = lambda path, shape: _Leaf(shape, *_LEAVES[path[-1].key])
  return jax.tree_util.tree_map_with_path(make, shapes(cfg), is_leaf=lambda x: isinstance(x, tuple))


def _expected(cfg: DecoderConfig) -> dict[str, Shape]:
  """Every tensor by name, in the order in which jax flattens the parameters."""
  return {name: shape for leaf in jax.tree.leaves(_leaves(cfg)) for name, shape in leaf.tensors().items()}


def _some(names: Sequence[str], most: int = 3) -> str:
  rest = f" and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(names[:most]) + rest


def read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise InputError(f"{path.parent} has no {path.name}: it is not a model directory, or not a complete one.") from None
  except ValueError as e:
    raise InputError(f"{path} is not JSON ({e}): download it again.") from None
  if not isinstance(value, dict):
    raise InputError(f"{path} holds a {type(value).__name__} where a JSON object belongs.")
  return value


def write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
  path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
