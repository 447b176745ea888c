"""Model directories and PEFT directories whose files are damaged: config.json, headers of safetensors, the index."""

import dataclasses
import json
import pathlib
import shutil

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_jax import inputs
from opd_jax.models import decoder, hf, hf_config, lora, rope, safetensors_io
from tests.conftest import EXPERTS, STUDENT
from tests.helpers.damage import accepted_or_refused, damaged, documents, json_bytes, values
from tests.helpers.fuzz import cases

ROPE = {
  "rope_type": "llama3",
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> dict[str, pathlib.Path]:
  """Small models in one file, in several files, and of experts; and an adapter of the first."""
  from opd_jax.tasks import chain

  root = tmp_path_factory.mktemp("models")
  for name, cfg, shard in (("one", STUDENT, 1e9), ("several", STUDENT, 2e3), ("experts", EXPERTS, 1e9)):
    cfg = dataclasses.replace(cfg, vocab=len(chain.SYMBOLS), layers=1)
    params = decoder.init(cfg, jax.random.key(0))
    hf.write(root / name, cfg, params, pad_id=0, eos_id=1, dtype="float32", max_shard_bytes=shard)
    chain.TOKENIZER.save(root / name)
  cfg, adapter = hf_config.read(root / "one"), lora.Lora(2, 4.0, ("q", "down"))
  lora.write(root / "adapter", cfg, adapter, jax.device_get(lora.init(cfg, adapter, jax.random.key(0))), "one")
  for name in ("one", "experts"):
    raw = json.loads((root / name / "config.json").read_text())
    (root / name / "config.json").write_text(
      json.dumps(raw | {"rope_scaling": ROPE, "layer_types": ["full_attention"]})
    )
  return {p.name: p for p in root.iterdir()}


def copied(directory: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
  """A copy of a directory to damage, in the place of the last case's."""
  shutil.rmtree(tmp_path / "copy", ignore_errors=True)
  return pathlib.Path(shutil.copytree(directory, tmp_path / "copy"))


@pytest.mark.long
@cases(150)
@given(data=st.data(), which=st.sampled_from(("one", "experts")))
def test_a_model_of_any_config_json_is_read_or_refused(tmp_path, directories, data, which):
  path = copied(directories[which], tmp_path)
  name = data.draw(st.sampled_from(("config.json", "config.json", "generation_config.json")))
  (path / name).write_bytes(data.draw(json_bytes(json.loads((path / name).read_bytes()))))
  with accepted_or_refused(path):
    model = inputs.model(str(path))
    assert all(type(i) is int and i >= 0 for i in model.stop_ids)
    params = jax.eval_shape(lambda: decoder.init(model.cfg, jax.random.key(0)))
    jax.block_until_ready(hf.load(path, model.cfg))
    assert jax.tree.leaves(params)


KIND = decoder.LayerKind
FAMILIES = {  # whose layers differ, or are like no others
  "mistral": {"layer_kinds": (KIND(8),), "qk_norm": False},
  "qwen3": {"layer_kinds": (KIND(), KIND(8))},
  "smollm3": {"layer_kinds": (KIND(), KIND(rotary=False)), "qk_norm": False},
  "olmo3": {"whole_qk_norm": True, "norms": "after", "layer_kinds": (KIND(8, theta=500.0), KIND())},
  "gemma3": {
    "norms": "both",
    "zero_centred_norms": True,
    "activation": "gelu_pytorch_tanh",
    "scaled_embedding": True,
    "layer_kinds": (KIND(8, theta=500.0), KIND()),
  },
}


@pytest.mark.long
@cases(150)
@given(data=st.data(), which=st.sampled_from(sorted(FAMILIES)))
def test_any_config_json_of_a_model_whose_layers_differ_is_read_or_refused(tmp_path, data, which):
  cfg = dataclasses.replace(
    STUDENT, layers=4, rope_scaling=rope.YarnScaling(4.0, 64, 32.0, 1.0, 1.1), **FAMILIES[which]
  )
  hf_config.write(tmp_path, cfg, pad_id=0, eos_id=1)
  assert hf_config.read(tmp_path) == cfg
  path = tmp_path / "config.json"
  path.write_bytes(data.draw(json_bytes(json.loads(path.read_bytes()))))
  with accepted_or_refused(path):
    hf_config.read(tmp_path)


def split(file: pathlib.Path) -> tuple[dict, bytes]:
  """The header of a safetensors file as a document, and its tensors."""
  whole = file.read_bytes()
  end = 8 + int.from_bytes(whole[:8], "little")
  return json.loads(whole[8:end]), whole[end:]


@st.composite
def safetensors(draw: st.DrawFn, file: pathlib.Path) -> bytes:
  """A safetensors file with a damaged header, header length or size."""
  header, tensors = split(file)
  kind = draw(st.sampled_from(("document", "document", "document", "json", "length", "bytes", "end")))
  if kind == "bytes":
    whole = file.read_bytes()
    return draw(damaged(whole[: -len(tensors)])) + tensors
  if kind == "end":
    whole = file.read_bytes()
    return draw(st.sampled_from((whole[:-1], whole + b"\0", whole[: len(whole) // 2], whole[:8], whole[:4], b"")))
  text = json.dumps(draw(documents(header))).encode() if kind == "document" else draw(json_bytes(header))
  length = len(text)
  if kind == "length":
    length = draw(
      st.sampled_from((0, 1, 2**60, 2**63, 2**64 - 1, len(text) + len(tensors), max(0, len(text) - 1), 10**9))
    )
  return length.to_bytes(8, "little") + text + tensors


@pytest.mark.long
@cases(150)
@given(data=st.data())
def test_weights_under_any_header_are_read_or_refused(tmp_path, directories, data):
  path = copied(directories["one"], tmp_path)
  (path / safetensors_io.FILE).write_bytes(data.draw(safetensors(path / safetensors_io.FILE)))
  with accepted_or_refused(path):
    model = inputs.model(str(path))
    jax.block_until_ready(hf.load(path, model.cfg))


@cases(60)
@given(data=st.data())
def test_weights_under_any_index_are_read_or_refused(tmp_path, directories, data):
  path = copied(directories["several"], tmp_path)
  index = path / safetensors_io.INDEX
  if data.draw(st.booleans()):
    index.write_bytes(data.draw(json_bytes(json.loads(index.read_bytes()))))
  else:
    weight_map = json.loads(index.read_bytes())["weight_map"]
    tensor = data.draw(st.sampled_from(sorted(weight_map)))
    index.write_text(json.dumps({"weight_map": weight_map | {tensor: data.draw(values)}}))
  with accepted_or_refused(path):
    model = inputs.model(str(path))
    jax.block_until_ready(hf.load(path, model.cfg))


@cases(120)
@given(data=st.data())
def test_an_adapter_of_any_files_is_read_or_refused(tmp_path, directories, data):
  path, cfg = copied(directories["adapter"], tmp_path), hf_config.read(directories["one"])
  if data.draw(st.booleans()):
    (path / lora.CONFIG).write_bytes(data.draw(json_bytes(json.loads((path / lora.CONFIG).read_bytes()))))
  else:
    (path / lora.WEIGHTS).write_bytes(data.draw(safetensors(path / lora.WEIGHTS)))
  with accepted_or_refused(path, "config.lora.targets"):
    found = lora.read_config(path)
    assert 0 < found.scale < float("inf")
    lora.load(path, cfg, found)
