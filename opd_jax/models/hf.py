"""Hugging Face model directories: check, read and write them without PyTorch.

Weights go from the pages of the files straight into the shards of the devices: a process reads what its devices
hold, and keeps no more than one parameter (its layers stacked) in host memory at a time.

Dimensions, one letter each in `_LEAVES`: v vocabulary, d model width, n heads, h head width, f feed-forward width.
"""

import dataclasses
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from opd_jax.config import BUILTIN
from opd_jax.errors import InputError
from opd_jax.models.decoder import DecoderConfig, RopeScaling, shapes
from opd_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Architecture:
  model_type: str
  qk_norm: bool = False
  qkv_bias: bool = False
  head_width: int | None = None  # where config.json has no head_dim; None: width / heads
  off: tuple[str, ...] = ()  # switches of config.json that change the model in a way decoder.py does not follow


ARCHITECTURES = {
  "Qwen3ForCausalLM": Architecture("qwen3", qk_norm=True, head_width=128, off=("attention_bias", "use_sliding_window")),
  "Qwen2ForCausalLM": Architecture("qwen2", qkv_bias=True, off=("use_sliding_window",)),
  "LlamaForCausalLM": Architecture("llama", off=("attention_bias", "mlp_bias")),
}

DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(jnp.bfloat16)}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model")  # one of them has to be there
TOKENIZER = (
  *VOCABULARIES,
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "merges.txt",
  "chat_template.jinja",
  "chat_template.json",
)


def resolve(name: str) -> pathlib.Path:
  """The directory of 'builtin:student', or of a model that is already on this machine."""
  if name.startswith(BUILTIN):
    assets = pathlib.Path(__file__).resolve().parent.parent / "tasks" / "assets"
    known = {p.parent.relative_to(assets).as_posix(): p.parent for p in sorted(assets.glob("**/config.json"))}
    wanted = name.removeprefix(BUILTIN)
    if wanted not in known:
      available = ", ".join(BUILTIN + k for k in known) or "none in this installation"
      raise InputError(f"There is no built-in model {name}; available: {available}.")
    return known[wanted]
  path = pathlib.Path(name).expanduser()
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


def read_config(directory: pathlib.Path) -> DecoderConfig:
  """The model that config.json describes; anything that decoder.py would not follow exactly is refused."""
  path = pathlib.Path(directory) / "config.json"
  raw = _json(path)

  def refuse(what: str) -> InputError:
    return InputError(f"{path}: {what}.")

  def whole(key: str, default: int | None = None) -> int:
    value = raw.get(key) if raw.get(key) is not None else default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
      raise refuse(f"{key} is {value!r}; it has to be a whole number above 0")
    return value

  found = ", ".join(raw.get("architectures") or ["no architecture"])
  if found not in ARCHITECTURES:
    raise refuse(f"{found} is not supported; the supported architectures are {', '.join(ARCHITECTURES)}")
  arch = ARCHITECTURES[found]
  for key in arch.off:
    if raw.get(key):
      raise refuse(f"{key} is true, which is not supported for {found}")
  if raw.get("hidden_act", "silu") != "silu":
    raise refuse(f"hidden_act is {raw['hidden_act']!r}; only 'silu' is supported")
  if sliding := set(raw.get("layer_types") or ()) - {"full_attention"}:
    raise refuse(f"layer_types has {sorted(sliding)[0]!r}; only 'full_attention' is supported")
  if quantized := raw.get("quantization_config"):
    raise refuse(f"the weights are quantized ({quantized.get('quant_method', '?')}); give the unquantized model")

  width, heads = whole("hidden_size"), whole("num_attention_heads")
  if "head_dim" not in raw and arch.head_width:
    head_width = arch.head_width
  elif raw.get("head_dim") is None and width % heads:
    raise refuse(f"hidden_size {width} is not a multiple of num_attention_heads {heads}, and there is no head_dim")
  else:
    head_width = whole("head_dim", width // heads)
  max_positions = whole("max_position_embeddings")
  try:
    theta, scaling = _rope(raw, max_positions)
    return DecoderConfig(
      vocab=whole("vocab_size"),
      width=width,
      layers=whole("num_hidden_layers"),
      heads=heads,
      kv_heads=whole("num_key_value_heads", heads),
      head_width=head_width,
      ff_width=whole("intermediate_size"),
      rope_theta=theta,
      rope_scaling=scaling,
      norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
      qk_norm=arch.qk_norm,
      qkv_bias=arch.qkv_bias,
      tied=bool(raw.get("tie_word_embeddings", False)),  # false is the default of all three architectures
      max_positions=max_positions,
    )
  except InputError:
    raise
  except KeyError as e:
    raise refuse(f"the rope scaling has no {e.args[0]}") from None
  except (TypeError, ValueError) as e:
    raise refuse(str(e)) from None


def _rope(raw: dict[str, Any], max_positions: int) -> tuple[float, RopeScaling | None]:
  """Base and scaling of the rotary embedding, where transformers 4 (rope_scaling) or 5 (rope_parameters) put them."""
  rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
  theta = float(rope.get("rope_theta") or raw.get("rope_theta") or 10_000.0)
  kind = rope.get("rope_type") or rope.get("type") or "default"
  partial = rope.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0
  if partial != 1.0:
    raise ValueError(f"partial_rotary_factor is {partial}; only 1 is supported")
  if kind == "default":
    return theta, None
  if kind != "llama3":
    raise ValueError(f"rope type {kind!r} is not supported; 'default' and 'llama3' are")
  original = raw.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
  return theta, RopeScaling(
    factor=float(rope["factor"]),
    low_freq_factor=float(rope["low_freq_factor"]),
    high_freq_factor=float(rope["high_freq_factor"]),
    original_max_positions=int(original or max_positions),
  )


def check_directory(directory: pathlib.Path) -> None:
  """Refuses a directory that cannot be read to the end, from the headers of its files alone, in milliseconds."""
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    raise InputError(f"There is no model directory {directory}.")
  cache = directory / ".cache" / "huggingface"
  for leftover in sorted([*directory.glob("*.incomplete"), *cache.glob("**/*.incomplete")]):
    raise InputError(f"{leftover} is left from a download that did not end; run the download again, or delete it.")
  cfg = read_config(directory)
  tensors = _tensors(directory)
  _check_tensors(directory, cfg, tensors)
  if cfg.tied and "lm_head.weight" in tensors:
    _check_tied(tensors["model.embed_tokens.weight"], tensors["lm_head.weight"])
  if not any((directory / name).is_file() for name in VOCABULARIES):
    raise InputError(
      f"{directory} has no tokenizer.json (nor {' nor '.join(VOCABULARIES[1:])}): copy the tokenizer there."
    )


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """Where a tensor stands."""

  file: pathlib.Path
  offset: int  # bytes from the beginning of the file
  dtype: str  # in safetensors' words
  shape: tuple[int, ...]

  def map(self) -> np.ndarray:
    """The tensor as pages of its file: nothing is read before it is looked at."""
    return np.memmap(self.file, DTYPES[self.dtype], "r", self.offset, self.shape)


def _tensors(directory: pathlib.Path) -> dict[str, _Tensor]:
  """Every tensor of the directory by name, from the headers."""
  single, index = directory / WEIGHTS, directory / INDEX
  if single.is_file():
    files = [single]
  elif index.is_file():
    weight_map = _json(index).get("weight_map")
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
    raise InputError(f"{directory} has no {WEIGHTS}, {why}.")
  tensors: dict[str, _Tensor] = {}
  for file in files:
    tensors |= _header(file)
  return tensors


def _header(file: pathlib.Path) -> dict[str, _Tensor]:
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
  expected = {name: shape for leaf in _leaves(cfg) for name, shape in leaf.tensors()}
  where = directory / (WEIGHTS if (directory / WEIGHTS).is_file() else INDEX)
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


def stop_ids(directory: pathlib.Path) -> tuple[int, ...]:
  """Every token that ends a response: eos_token_id of generation_config.json and of config.json, sorted."""
  ids: set[int] = set()
  for name in ("generation_config.json", "config.json"):
    path = pathlib.Path(directory) / name
    if path.is_file():
      eos = _json(path).get("eos_token_id")
      ids |= set(eos if isinstance(eos, list) else [] if eos is None else [eos])
  return tuple(sorted(ids))


def read(
  directory: pathlib.Path,
  cfg: DecoderConfig | None = None,
  shardings: Params | None = None,
  dtype: jnp.dtype | type = jnp.float32,
) -> Params:
  """The parameters of decoder.py, each read into its sharding and converted on the way.

  Args:
    cfg: what `read_config` says; None: it is asked.
    shardings: a jax.sharding.Sharding for every parameter, in the same tree; None: the default device.
  """
  directory = pathlib.Path(directory)
  cfg = cfg or read_config(directory)
  tensors = _tensors(directory)
  _check_tensors(directory, cfg, tensors)
  treedef = jax.tree.structure(shapes(cfg), is_leaf=_is_shape)
  where = [None] * treedef.num_leaves if shardings is None else treedef.flatten_up_to(shardings)
  arrays = []
  for leaf, sharding in zip(_leaves(cfg), where, strict=True):
    if sharding is None:
      array = jnp.asarray(_read_slice(leaf, tensors, np.dtype(dtype), (slice(None),) * len(leaf.shape)))
    else:
      array = _read_sharded(leaf, tensors, np.dtype(dtype), sharding)
    # Transfers are asynchronous, and the next parameter waits so that two never stand in host memory.
    arrays.append(jax.block_until_ready(array))
  return jax.tree.unflatten(treedef, arrays)


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
  if not leaf.stacked:
    return np.asarray(leaf.ours(tensors[leaf.name].map())[index].astype(dtype))
  layers = range(leaf.shape[0])[index[0]]
  out = np.empty([len(range(n)[s]) for n, s in zip(leaf.shape, index, strict=True)], dtype)
  for i, layer in enumerate(layers):
    out[i] = leaf.ours(tensors[leaf.name.format(layer)].map())[index[1:]].astype(dtype)
  return out


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
) -> None:
  """A directory that transformers loads. It appears whole or not at all.

  In a multi-process run every process calls this, and the first one writes.

  Args:
    like: the directory the model comes from, whose config and tokenizer are copied; None: a model born here, which
      gets a config of its own with `pad_id` and `eos_id`, and no tokenizer.
    dtype: "bfloat16" or "float32".
    max_shard_bytes: a file larger than this is split between tensors.
  """
  directory = pathlib.Path(directory).absolute()
  kinds = {"bfloat16": "BF16", "float32": "F32"}
  if dtype not in kinds:
    raise InputError(f"dtype is {dtype!r}; weights are written as {' or '.join(kinds)}.")
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise InputError(f"{directory} exists already: remove it, or choose another place.")
  if like is not None and read_config(like) != cfg:
    raise ValueError(f"{like} does not describe the model that is to be written")
  part = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
  first = jax.process_index() == 0
  try:
    if first:
      shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
      part.mkdir(parents=True)
      if like is None:
        write_config(part, cfg, pad_id=pad_id, eos_id=eos_id, dtype=dtype)
      else:
        _copy_config(pathlib.Path(like), part, dtype)
    _write_weights(part if first else None, cfg, params, kinds[dtype], max_shard_bytes)
    if first:
      os.rename(part, directory)
  except BaseException:
    if first:
      shutil.rmtree(part, ignore_errors=True)
    raise
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"wrote {directory}")


def write_config(
  directory: pathlib.Path,
  cfg: DecoderConfig,
  *,
  pad_id: int | None,
  eos_id: int | Sequence[int] | None,
  dtype: str = "float32",
) -> None:
  """config.json and generation_config.json of a model born here, under the architecture that expresses it."""
  able = [a for a, arch in ARCHITECTURES.items() if (arch.qk_norm, arch.qkv_bias) == (cfg.qk_norm, cfg.qkv_bias)]
  if not able:
    raise ValueError("no architecture has both normed and biased queries and keys")
  scaling = None
  if s := cfg.rope_scaling:
    scaling = {
      "rope_type": "llama3",
      "factor": s.factor,
      "low_freq_factor": s.low_freq_factor,
      "high_freq_factor": s.high_freq_factor,
      "original_max_position_embeddings": s.original_max_positions,
    }
  special = {
    "bos_token_id": None,
    "eos_token_id": list(eos_id) if isinstance(eos_id, Sequence) else eos_id,
    "pad_token_id": pad_id,
  }
  config = {
    "architectures": able,
    "model_type": ARCHITECTURES[able[0]].model_type,
    "vocab_size": cfg.vocab,
    "hidden_size": cfg.width,
    "num_hidden_layers": cfg.layers,
    "num_attention_heads": cfg.heads,
    "num_key_value_heads": cfg.kv_heads,
    "head_dim": cfg.head_width,
    "intermediate_size": cfg.ff_width,
    "hidden_act": "silu",
    # The two rope keys as transformers 4 writes them, which transformers 5 also reads.
    "rope_theta": cfg.rope_theta,
    "rope_scaling": scaling,
    "rms_norm_eps": cfg.norm_eps,
    "tie_word_embeddings": cfg.tied,
    "max_position_embeddings": cfg.max_positions,
    "torch_dtype": dtype,
  }
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  _dump(directory / "config.json", config | special)
  _dump(directory / "generation_config.json", {k: v for k, v in special.items() if v is not None})


def _copy_config(like: pathlib.Path, directory: pathlib.Path, dtype: str) -> None:
  raw = _json(like / "config.json")
  for key in {"dtype", "torch_dtype"} & raw.keys() or {"torch_dtype"}:
    raw[key] = dtype
  _dump(directory / "config.json", raw)
  for name in ("generation_config.json", *TOKENIZER):
    if (like / name).is_file():
      shutil.copyfile(like / name, directory / name)


def _write_weights(
  directory: pathlib.Path | None, cfg: DecoderConfig, params: Params, kind: str, max_shard_bytes: float
) -> None:
  """The safetensors files, one parameter gathered at a time; without a directory, this process only takes part."""
  dtype = DTYPES[kind]
  shards: list[dict[str, tuple[int, ...]]] = [{}]
  room = max_shard_bytes
  for leaf in _leaves(cfg):
    for name, shape in leaf.tensors():
      size = math.prod(shape) * dtype.itemsize
      if size > room and shards[-1]:
        shards.append({})
        room = max_shard_bytes
      shards[-1][name] = shape
      room -= size
  files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
  if len(files) == 1:
    files = [WEIGHTS]

  arrays = _gathered(cfg, params, dtype)
  if directory is None:
    for _ in arrays:
      pass
    return
  for file, shard in zip(files, shards, strict=True):
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without it
    end = 0
    for name, shape in shard.items():
      begin, end = end, end + math.prod(shape) * dtype.itemsize
      header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of their item size
    with (directory / file).open("wb") as f:
      f.write(len(text).to_bytes(8, "little") + text)
      for wanted in shard:
        name, array = next(arrays)
        assert name == wanted
        f.write(array.reshape(-1).view(np.uint8).data)
  if len(files) > 1:
    total = sum(math.prod(shape) * dtype.itemsize for shard in shards for shape in shard.values())
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    _dump(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _gathered(cfg: DecoderConfig, params: Params, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
  """Every tensor with its name, as it stands in a file, in the order of `_leaves`."""
  treedef = jax.tree.structure(shapes(cfg), is_leaf=_is_shape)
  for leaf, x in zip(_leaves(cfg), treedef.flatten_up_to(params), strict=True):
    if x.shape != leaf.shape:
      raise ValueError(f"{leaf.name}: the parameter has shape {x.shape}, the config implies {leaf.shape}")
    x = x.astype(dtype)  # where it lies, so that no more than the written type is moved
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      x = multihost_utils.process_allgather(x, tiled=True)
    x = np.asarray(x)
    for i, (name, _) in enumerate(leaf.tensors()):
      yield name, np.ascontiguousarray(leaf.stored(x[i] if leaf.stacked else x))
    del x  # before the next one is gathered


# Name in the file ({}: the layer), its axes there ("nh": heads and head width are one), axes here without the layer.
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
}


@dataclasses.dataclass(frozen=True)
class _Leaf:
  """One parameter of `decoder.shapes` and the tensors that hold it in a directory."""

  shape: tuple[int, ...]
  name: str
  there: tuple[str, ...]
  here: str

  @property
  def stacked(self) -> bool:
    return len(self.shape) > len(self.here)

  @property
  def _sizes(self) -> dict[str, int]:
    return dict(zip(self.here, self.shape[-len(self.here) :], strict=True))

  @property
  def _order(self) -> str:
    return "".join(self.there)

  @property
  def _stored_shape(self) -> tuple[int, ...]:
    return tuple(math.prod(self._sizes[c] for c in axis) for axis in self.there)

  def tensors(self) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes in the file, one per layer."""
    names = [self.name.format(i) for i in range(self.shape[0])] if self.stacked else [self.name]
    return [(name, self._stored_shape) for name in names]

  def ours(self, x: np.ndarray) -> np.ndarray:
    """A view of one tensor of a file with our axes."""
    return x.reshape([self._sizes[c] for c in self._order]).transpose([self._order.index(c) for c in self.here])

  def stored(self, x: np.ndarray) -> np.ndarray:
    """One layer of ours as it stands in a file."""
    return x.transpose([self.here.index(c) for c in self._order]).reshape(self._stored_shape)


def _leaves(cfg: DecoderConfig) -> list[_Leaf]:
  """In the order in which jax flattens the parameters."""
  flat, _ = jax.tree_util.tree_flatten_with_path(shapes(cfg), is_leaf=_is_shape)
  return [_Leaf(shape, *_LEAVES[path[-1].key]) for path, shape in flat]


def _is_shape(x: Any) -> bool:
  return isinstance(x, tuple)


def _some(names: Sequence[str], most: int = 3) -> str:
  rest = f" and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(names[:most]) + rest


def _json(path: pathlib.Path) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise InputError(f"{path.parent} has no {path.name}: it is not a model directory, or not a complete one.") from None
  except ValueError as e:
    raise InputError(f"{path} is not JSON ({e}): download it again.") from None
  if not isinstance(value, dict):
    raise InputError(f"{path} holds a {type(value).__name__} where a JSON object belongs.")
  return value


def _dump(path: pathlib.Path, value: dict[str, Any]) -> None:
  path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
