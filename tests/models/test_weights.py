"""Weights of a directory: read into shards, written as they lie, and refused where they are not the model's."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from opd_jax.errors import InputError
from opd_jax.models import hf, hf_config, safetensors_io, tensor_places, weights
from tests.helpers.eight_devices import json_from_eight_devices, run_on_eight_devices
from tests.helpers.model_directories import FAMILIES, TINY, assert_same, edit, randomised, refused


def test_bfloat16_is_the_nearest(tmp_path):
  params = randomised(TINY)
  hf.write(tmp_path / "out", TINY, params, pad_id=0, eos_id=1)
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  assert_same(hf.load(tmp_path / "out", dtype=jnp.bfloat16), rounded)
  assert_same(hf.load(tmp_path / "out"), jax.tree.map(lambda x: x.astype(jnp.float32), rounded))


def test_what_we_write_is_safetensors(tmp_path):
  """The official reader agrees with our headers."""
  from safetensors.numpy import load_file

  params = randomised(TINY)
  hf.write(tmp_path / "out", TINY, params, pad_id=0, eos_id=1, dtype="float32")
  tensors = load_file(tmp_path / "out" / "model.safetensors")
  q = np.asarray(params["layers"]["q"])[1].reshape(8, 12).T
  np.testing.assert_array_equal(tensors["model.layers.1.self_attn.q_proj.weight"], q)


def test_a_failed_write_leaves_nothing(tmp_path):
  params = randomised(TINY)
  params["norm"] = params["norm"][:-1]
  with pytest.raises(ValueError, match=r"model\.norm\.weight"):
    hf.write(tmp_path / "out", TINY, params, pad_id=0, eos_id=1)
  assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_neither_written_nor_loaded(tmp_path):
  from safetensors.numpy import load_file, save_file

  good = randomised(TINY)
  broken = good | {"layers": good["layers"] | {"q": good["layers"]["q"].at[0, 0].set(jnp.nan)}}
  with pytest.raises(InputError, match=r"'layers/q' have a NaN or Inf, so nothing is written to .*out"):
    hf.write(tmp_path / "out", TINY, broken, pad_id=0, eos_id=1)
  assert not list(tmp_path.iterdir())
  hf.write(tmp_path / "in", TINY, good, pad_id=0, eos_id=1, dtype="float32")
  file = tmp_path / "in" / "model.safetensors"
  tensors = load_file(file)
  tensors["model.norm.weight"][0] = np.inf
  save_file(tensors, file)
  with pytest.raises(InputError, match=r"The weights of .*in have a NaN or Inf in 'norm'"):
    hf.load(tmp_path / "in")


def load_and_write_on_eight_devices(source: str, target: str) -> None:
  """A model loads into shards as it does whole, each slice is read once, and the shards are written as they lie."""
  directory = pathlib.Path(source)
  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
  specs = {
    "embed": P("tensor", "fsdp"),
    "head": P("tensor", "fsdp"),
    "q": P(None, "fsdp", "tensor"),
    "o": P(None, "tensor", None, "fsdp"),
    "gate": P("data", "fsdp", "tensor"),
    "down": P(None, ("tensor", "fsdp")),
  }
  plain = hf.load(directory)

  def sharding_of(path, _) -> NamedSharding:
    return NamedSharding(mesh, specs.get(path[-1].key, P()))

  shardings = jax.tree_util.tree_map_with_path(sharding_of, plain)

  with pytest.MonkeyPatch.context() as patch:
    opened = record_opened(patch, directory)
    sharded = hf.load(directory, shardings=shardings)
  leaves = zip(
    jax.tree_util.tree_leaves_with_path(plain), jax.tree.leaves(sharded), jax.tree.leaves(shardings), strict=True
  )
  for (path, whole), array, sharding in leaves:
    assert array.sharding == sharding, path
    np.testing.assert_array_equal(whole, array, err_msg=str(path))
  assert opened.count("lm_head.weight") == 4, "slices, not devices"
  assert sum(name.endswith("mlp.gate_proj.weight") for name in opened) == 8

  # The replicas of a slice come from one host array: a donated update must not be seen by another device's copy.
  add_one = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
  for _ in range(3):
    sharded = add_one(sharded)
  for whole, array in zip(jax.tree.leaves(plain), jax.tree.leaves(sharded), strict=True):
    for shard in array.addressable_shards:
      np.testing.assert_allclose(shard.data, np.asarray(whole)[shard.index] + 3, rtol=1e-6)

  hf.write(pathlib.Path(target), hf_config.read(directory), sharded, like=directory, dtype="float32")
  jax.tree.map(np.testing.assert_array_equal, hf.load(pathlib.Path(target)), sharded)


def record_opened(monkeypatch: pytest.MonkeyPatch, directory: pathlib.Path) -> list[str]:
  """The names of the directory's tensors in the order in which they will be mapped."""
  names = {(t.file, t.offset): name for name, t in safetensors_io.find_tensors(directory).items()}
  opened = []
  map_tensor = safetensors_io.Tensor.map

  def recorded(tensor: safetensors_io.Tensor) -> np.ndarray:
    opened.append(names[tensor.file, tensor.offset])
    return map_tensor(tensor)

  monkeypatch.setattr(safetensors_io.Tensor, "map", recorded)
  return opened


@pytest.mark.long
def test_sharded_is_unsharded(tmp_path):
  """The comparisons are in `load_and_write_on_eight_devices`, whose failure is the process's."""
  cfg = dataclasses.replace(TINY, vocab=12)
  hf.write(tmp_path / "in", cfg, randomised(cfg), pad_id=0, eos_id=1, max_shard_bytes=1000)
  script = (
    "import sys; from tests.models import test_weights; test_weights.load_and_write_on_eight_devices(*sys.argv[1:])"
  )
  run_on_eight_devices("-c", script, tmp_path / "in", tmp_path / "out")


@pytest.mark.long
def test_an_eighth_of_a_large_checkpoint_takes_little_more_memory_than_its_arrays(tmp_path):
  """Of 16 GB that are holes in a file, and take no disk: each device reads its part, a parameter at a time."""
  found = json_from_eight_devices("tests.helpers.large_checkpoint", tmp_path / "model", optimised=True)
  print({name: round(value / 1e9, 3) if name != "seconds" else round(value) for name, value in found.items()})
  assert found["file"] > 16e9
  assert (tmp_path / "model" / "model.safetensors").stat().st_blocks * 512 < 10e6
  assert 0.12 < found["arrays"] / found["file"] < 0.13
  assert found["beyond"] < 3e9


def test_a_slice_of_the_experts_opens_their_tensors_alone(tmp_path, monkeypatch):
  """A process whose devices hold experts 3 and 4 reads such a slice."""
  cfg = dataclasses.replace(TINY, **FAMILIES["qwen3-moe"])
  params = randomised(cfg)
  hf.write(tmp_path / "out", cfg, params, pad_id=0, eos_id=1, dtype="float32")
  tensors = safetensors_io.find_tensors(tmp_path / "out")
  opened = record_opened(monkeypatch, tmp_path / "out")
  leaf = tensor_places.parameter_leaves(cfg)["layers"]["experts_down"]
  index = (slice(None), slice(3, 5), slice(2, 7), slice(None))
  got = weights.read_slice(leaf, tensors, np.dtype(np.float32), index)
  np.testing.assert_array_equal(got, params["layers"]["experts_down"][index])
  assert opened == [f"model.layers.{i}.mlp.experts.{e}.down_proj.weight" for i in range(2) for e in (3, 4)]


def test_no_safetensors(directory, many):
  (directory / "model.safetensors").unlink()
  assert "has no model.safetensors" in refused(directory)
  (directory / "pytorch_model.bin").write_bytes(b"x")
  assert "only pytorch_model.bin" in refused(directory)
  (directory / "pytorch_model.bin").unlink()
  (directory / "consolidated.safetensors").write_bytes(b"x")
  assert "only consolidated.safetensors, whose tensors have other names" in refused(directory)
  (many / safetensors_io.INDEX).unlink()
  assert "no model.safetensors.index.json, only model-00001" in refused(many)


def test_shards_that_are_missing(many):
  files = sorted(many.glob("*.safetensors"))
  for f in files[1:]:
    f.unlink()
  message = refused(many)
  assert files[1].name in message
  assert f"and {len(files) - 4} more" in message
  (many / safetensors_io.INDEX).write_text("{}")
  assert "no weight_map" in refused(many)


def test_half_a_file(directory, many):
  for file in (directory / "model.safetensors", sorted(many.glob("*.safetensors"))[-1]):
    data = file.read_bytes()
    for n in (0, 5, 100, len(data) // 2, len(data) - 1):
      file.write_bytes(data[:n])
      message = refused(file.parent)
      assert str(file) in message
      assert "download it again" in message
    file.write_bytes(data + b"x")
    assert "too long" in refused(file.parent)
    file.write_bytes(data[:8] + b"?" + data[9:])
    assert "header" in refused(file.parent)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git-lfs pointer" in refused(file.parent)


def rewrite(file, change):
  """The same safetensors file with `change` applied to its dictionary of tensors."""
  from safetensors.numpy import load_file, save_file

  tensors = load_file(file)
  change(tensors)
  save_file(tensors, file)


def test_tensors_that_do_not_fit(directory):
  file = directory / "model.safetensors"
  data = file.read_bytes()

  rewrite(file, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
  assert "has no tensor model.layers.1.mlp.up_proj.weight" in refused(directory)
  with pytest.raises(InputError, match="up_proj"):
    hf.load(directory)

  file.write_bytes(data)
  rewrite(file, lambda t: t.pop("lm_head.weight"))
  assert "tie_word_embeddings" in refused(directory)

  file.write_bytes(data)
  rewrite(file, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(12, np.float32)}))
  assert "unknown tensors model.layers.0.self_attn.q_proj.bias" in refused(directory)

  file.write_bytes(data)
  rewrite(file, lambda t: t.update({"model.norm.weight": np.zeros(8, np.int8)}))
  assert "model.norm.weight has dtype I8" in refused(directory)

  file.write_bytes(data)
  rewrite(file, lambda t: t.update({"model.layers.0.rotary_emb.inv_freq": np.zeros(3, np.float32)}))
  hf.check_directory(directory)

  edit(directory, intermediate_size=14)
  message = refused(directory)
  assert "shape [8, 12], but config.json implies [8, 14]" in message


def test_a_tied_model_may_hold_its_head_twice(tmp_path):
  cfg = dataclasses.replace(TINY, tied=True)
  path = tmp_path / "tied"
  params = randomised(cfg)
  hf.write(path, cfg, params, pad_id=0, eos_id=1, dtype="float32")
  (path / "tokenizer.json").write_text("{}")
  rewrite(path / safetensors_io.FILE, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
  hf.check_directory(path)
  assert_same(hf.load(path), params)
  rewrite(path / safetensors_io.FILE, lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + 1}))
  assert "tie_word_embeddings" in refused(path)


def test_a_tied_model_may_be_saved_under_its_heads_name(pt, tmp_path):
  """transformers takes the head for the embedding too."""
  _, transformers = pt
  cfg = dataclasses.replace(TINY, tied=True)
  path, params = tmp_path / "tied", randomised(cfg)
  hf.write(path, cfg, params, pad_id=0, eos_id=1, dtype="float32")
  (path / "tokenizer.json").write_text("{}")
  head_alone(path)
  hf.check_directory(path)
  assert_same(hf.load(path), params)
  model, info = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
  assert not info["missing_keys"]
  np.testing.assert_array_equal(model.get_input_embeddings().weight.detach().numpy(), params["embed"])
  hf.write(tmp_path / "out", cfg, params, like=path, dtype="float32")
  assert_same(hf.load(tmp_path / "out"), params)


def head_alone(path):
  def rename(tensors):
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

  rewrite(path / safetensors_io.FILE, rename)


def test_an_untied_model_has_to_have_its_embedding(directory):
  rewrite(directory / safetensors_io.FILE, lambda t: t.pop("model.embed_tokens.weight"))
  assert "no tensor model.embed_tokens.weight" in refused(directory)


def test_a_million_layers_are_refused_before_their_names_are_made(tiny):
  cfg = hf_config.read(pathlib.Path(tiny["student"]))
  with pytest.raises(InputError, match=r"tensors, and config\.json implies more than 1000000000"):
    weights.check(pathlib.Path(tiny["student"]), dataclasses.replace(cfg, layers=10**9))
