"""Hugging Face directories: the same model as PyTorch's, and a clear sentence for everything that is wrong with one."""

import dataclasses
import functools
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from opd_jax.errors import InputError
from opd_jax.models import decoder, hf, safetensors_io
from opd_jax.models.moe import MoE
from tests.helpers.eight_devices import run_on_eight_devices

TINY = decoder.DecoderConfig(
  vocab=13, d_model=8, layers=2, heads=2, kv_heads=1, head_width=6, ff_width=12, qk_norm=True, tied=False
)
LLAMA3 = {
  "rope_type": "llama3",
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,
}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
FAMILIES = {
  "qwen3": {"qk_norm": True},
  "qwen3-moe": {"qk_norm": True, "moe": MoE(5, 2, renormalise=True)},
  "qwen2": {"qk_norm": False, "qkv_bias": True, "rope_theta": 1e6},
  "llama": {"qk_norm": False, "rope_scaling": decoder.RopeScaling(8.0, 1.0, 4.0, 16)},
}


def randomised(cfg: decoder.DecoderConfig, seed: int = 0):
  """Parameters in which every norm and bias is seen."""
  rng = np.random.default_rng(seed)

  def make(path, shape):
    mean = 1.0 if "norm" in path[-1].key else 0.0
    return jnp.asarray(mean + 0.3 * rng.standard_normal(shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(make, decoder.shapes(cfg), is_leaf=lambda x: isinstance(x, tuple))


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path))


def left_padded(vocab: int):
  rng = np.random.default_rng(1)
  tokens = rng.integers(0, vocab, (3, 48))
  mask = np.arange(48) >= np.array([[0], [5], [30]])
  return tokens, mask


@functools.partial(jax.jit, static_argnums=1)
def our_logits(params, cfg, tokens, mask):
  return decoder.unembed(params, decoder.hidden(params, cfg, tokens, mask))


@pytest.fixture(scope="module")
def pt():
  """torch and transformers, without their chatter."""
  torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch: pip install torch")
  import transformers

  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  torch.set_num_threads(1)
  return torch, transformers


CASES = {
  # family, tied, dtype of the file, size of a file
  "qwen3-untied": ("Qwen3", False, "float32", "5GB"),
  "qwen3-tied-many-files": ("Qwen3", True, "float32", "20KB"),
  "qwen3-moe-many-files": ("Qwen3Moe", False, "float32", "50KB"),
  "qwen3-moe-renormalised-bf16": ("Qwen3Moe", False, "bfloat16", "5GB"),
  "qwen2-tied-bf16": ("Qwen2", True, "bfloat16", "5GB"),
  "qwen2-untied-fp16": ("Qwen2", False, "float16", "5GB"),
  "llama3-untied-many-files": ("Llama", False, "float32", "20KB"),
  "llama3-tied-bf16": ("Llama", True, "bfloat16", "5GB"),
}


@pytest.fixture(scope="module", params=CASES)
def pytorch_model(request, pt, tmp_path_factory):
  """A directory that PyTorch wrote, and its logits."""
  torch, transformers = pt
  family, tied, dtype, shard = CASES[request.param]
  shape = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "tie_word_embeddings": tied,
    "eos_token_id": [5, 3],
    "max_position_embeddings": 128,
  }
  if family != "Qwen2":
    shape["head_dim"] = 16
  if family == "Qwen3Moe":
    shape |= {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
    shape["norm_topk_prob"] = "renormalised" in request.param
  if family == "Llama":
    shape["rope_parameters"] = LLAMA3 | {"rope_theta": 500.0}
  torch.manual_seed(0)
  kind = getattr(transformers, f"{family}ForCausalLM")
  model = kind(getattr(transformers, f"{family}Config")(**shape))
  with torch.no_grad():
    for name, p in model.named_parameters():
      p.copy_(torch.randn_like(p) * 0.2 + (1.0 if "norm" in name else 0.0))
  directory = tmp_path_factory.mktemp(request.param)
  model.to(getattr(torch, dtype)).save_pretrained(directory, max_shard_size=shard)
  # Loaded again, because a model that was ever half precision keeps rounded rotary frequencies.
  model = kind.from_pretrained(directory, dtype=torch.float32).eval()
  return request.param, directory, torch_logits(pt, model, *left_padded(97))


def torch_logits(pt, model, tokens, mask):
  torch, _ = pt
  positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
  with torch.no_grad():
    out = model(
      input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask).long(), position_ids=torch.tensor(positions)
    )
  return out.logits.numpy()


def test_logits_are_those_of_pytorch(pytorch_model):
  case, directory, expected = pytorch_model
  if "many-files" in case:
    assert len(list(directory.glob("*.safetensors"))) > 2
  tokens, mask = left_padded(97)
  cfg = hf.read_config(directory)
  params = hf.load(directory, cfg)
  logits = our_logits(params, cfg, tokens, mask)
  np.testing.assert_allclose(logits[mask], expected[mask], atol=1e-4)
  assert np.std(expected[mask]) > 0.3  # or agreement to 1e-4 would say little
  assert hf.stop_ids(directory) == (3, 5)


@pytest.mark.parametrize(
  "pytorch_model",
  ["qwen3-untied", "qwen3-moe-renormalised-bf16", "qwen2-tied-bf16", "llama3-untied-many-files"],
  indirect=True,
)
def test_every_parameter_is_seen_by_the_parity_test(pytorch_model):
  """What could be left out without changing the logits would be compared with nothing."""
  _, directory, expected = pytorch_model
  tokens, mask = left_padded(97)
  cfg = hf.read_config(directory)
  leaves, treedef = jax.tree.flatten_with_path(hf.load(directory))
  arrays = [x for _, x in leaves]
  for i, (path, x) in enumerate(leaves):
    swapped = [*arrays[:i], jnp.flip(x, -1), *arrays[i + 1 :]]
    logits = our_logits(treedef.unflatten(swapped), cfg, tokens, mask)
    assert np.max(np.abs(logits - expected)[mask]) > 1e-3, jax.tree_util.keystr(path)
  if cfg.rope_scaling:
    unscaled = our_logits(treedef.unflatten(arrays), dataclasses.replace(cfg, rope_scaling=None), tokens, mask)
    assert np.max(np.abs(unscaled - expected)[mask]) > 1e-2
  if cfg.moe:
    other = dataclasses.replace(cfg, moe=dataclasses.replace(cfg.moe, renormalise=False))
    assert np.max(np.abs(our_logits(treedef.unflatten(arrays), other, tokens, mask) - expected)[mask]) > 1e-2


def test_pytorch_loads_what_we_wrote(pytorch_model, pt, tmp_path):
  torch, transformers = pt
  _, directory, expected = pytorch_model
  cfg = hf.read_config(directory)
  hf.write(tmp_path / "out", cfg, hf.load(directory), like=directory, dtype="float32", max_shard_bytes=20_000)
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "out", dtype="auto", output_loading_info=True
  )
  assert model.dtype == torch.float32
  assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
  np.testing.assert_allclose(torch_logits(pt, model.eval(), *left_padded(97)), expected, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_pytorch_loads_a_model_born_here(family, pt, tmp_path):
  _, transformers = pt
  cfg = dataclasses.replace(TINY, heads=4, kv_heads=2, **FAMILIES[family])
  params = randomised(cfg)
  hf.write(tmp_path / "out", cfg, params, pad_id=0, eos_id=1, dtype="float32")
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
  assert (model.generation_config.pad_token_id, model.generation_config.eos_token_id) == (0, 1)
  tokens, mask = left_padded(cfg.vocab)
  ours = our_logits(params, cfg, tokens, mask)
  np.testing.assert_allclose(torch_logits(pt, model, tokens, mask)[mask], ours[mask], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip(family, tied, tmp_path):
  cfg = dataclasses.replace(TINY, tied=tied, **FAMILIES[family])
  params = randomised(cfg)
  hf.write(tmp_path / "out", cfg, params, pad_id=0, eos_id=(4, 2), dtype="float32", max_shard_bytes=1000)
  assert hf.read_config(tmp_path / "out") == cfg
  assert_same(hf.load(tmp_path / "out"), params)
  assert hf.stop_ids(tmp_path / "out") == (2, 4)


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


def test_a_copy_keeps_the_tokenizer_and_names_its_dtype(directory, tmp_path):
  (directory / "chat_template.jinja").write_text("{{ messages }}")
  hf.write(tmp_path / "out", TINY, randomised(TINY, 1), like=directory)
  hf.check_directory(tmp_path / "out")
  assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"
  assert (tmp_path / "out" / "tokenizer.json").read_text() == (directory / "tokenizer.json").read_text()
  assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
  assert json.loads((directory / "config.json").read_text())["torch_dtype"] == "float32"
  assert hf.stop_ids(tmp_path / "out") == hf.stop_ids(directory)


BESIDE = (
  "vocab.txt",
  "qwen.tiktoken",
  "tekken.json",
  "sentencepiece.bpe.model",
  "tokenizer.model.v3",
  "tokenizer.4.json",
  "special_tokens_map.json",
  "additional_chat_templates/tool_use.jinja",
  "processor_config.json",
  "tokenization_own.py",
  "LICENSE.txt",
  "license",
  "NOTICE",
)


def test_a_copy_has_all_that_belongs_to_the_model_and_nothing_that_was_measured_with_other_weights(directory, tmp_path):
  left = ("README.md", "pytorch_model.bin", "consolidated.safetensors", "training_args.bin", "original/LICENSE")
  for name in (*BESIDE, *left):
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_text(name)
  hf.write(tmp_path / "out", TINY, randomised(TINY), like=directory)
  copied = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
  assert copied == {*BESIDE, "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
  for name in BESIDE:
    assert (tmp_path / "out" / name).read_text() == name


@pytest.mark.parametrize("changes", [{"architectures": None}, {"architectures": "absent"}, {"model_type": "absent"}])
def test_an_architecture_that_is_left_out_follows_from_the_other_name_and_is_written(changes, directory, tmp_path):
  edit(directory, **changes)
  assert hf.read_config(directory) == TINY
  hf.write(tmp_path / "out", TINY, randomised(TINY), like=directory)
  raw = json.loads((tmp_path / "out" / "config.json").read_text())
  assert (raw["architectures"], raw["model_type"]) == (["Qwen3ForCausalLM"], "qwen3")


def test_pytorch_loads_a_copy_of_a_directory_that_names_no_model_type(directory, pt, tmp_path):
  _, transformers = pt
  params = randomised(TINY)
  edit(directory, model_type="absent")
  hf.write(tmp_path / "out", TINY, params, like=directory, dtype="float32")
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
  np.testing.assert_array_equal(model.get_output_embeddings().weight.detach().numpy(), params["head"])


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


def test_a_directory_is_never_written_over(directory):
  with pytest.raises(InputError, match="exists already"):
    hf.write(directory, TINY, randomised(TINY), like=directory)


def test_a_copy_has_to_be_of_the_same_model(directory, tmp_path):
  cfg = dataclasses.replace(TINY, rope_theta=5.0)
  with pytest.raises(ValueError, match="does not describe"):
    hf.write(tmp_path / "out", cfg, randomised(cfg), like=directory)


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

  hf.write(pathlib.Path(target), hf.read_config(directory), sharded, like=directory, dtype="float32")
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


def test_sharded_is_unsharded(tmp_path):
  """The comparisons are in `load_and_write_on_eight_devices`, whose failure is the process's."""
  cfg = dataclasses.replace(TINY, vocab=12)
  hf.write(tmp_path / "in", cfg, randomised(cfg), pad_id=0, eos_id=1, max_shard_bytes=1000)
  script = "import sys; from tests.models import test_hf; test_hf.load_and_write_on_eight_devices(*sys.argv[1:])"
  run_on_eight_devices("-c", script, tmp_path / "in", tmp_path / "out")


def test_a_slice_of_the_experts_opens_their_tensors_alone(tmp_path, monkeypatch):
  """A process whose devices hold experts 3 and 4 reads such a slice."""
  cfg = dataclasses.replace(TINY, **FAMILIES["qwen3-moe"])
  params = randomised(cfg)
  hf.write(tmp_path / "out", cfg, params, pad_id=0, eos_id=1, dtype="float32")
  tensors = safetensors_io.find_tensors(tmp_path / "out")
  opened = record_opened(monkeypatch, tmp_path / "out")
  leaf = safetensors_io.parameter_leaves(cfg)["layers"]["experts_down"]
  index = (slice(None), slice(3, 5), slice(2, 7), slice(None))
  got = safetensors_io.read_slice(leaf, tensors, np.dtype(np.float32), index)
  np.testing.assert_array_equal(got, params["layers"]["experts_down"][index])
  assert opened == [f"model.layers.{i}.mlp.experts.{e}.down_proj.weight" for i in range(2) for e in (3, 4)]


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"mlp_only_layers": [1]}, "leave some layers without experts"),
    ({"decoder_sparse_step": 2}, "leave some layers without experts"),
    ({"num_experts_per_tok": 6}, "cannot go through 6 of 5 experts"),
    ({"num_experts": "absent"}, "num_experts is None"),
    ({"moe_intermediate_size": 0}, "moe_intermediate_size is 0"),
    ({"num_experts": 6}, "no tensor model.layers.0.mlp.experts.5.*which config.json implies"),
  ],
)
def test_mixtures_that_would_not_be_followed_exactly(changes, says, tmp_path):
  path = tmp_path / "mixture"
  cfg = dataclasses.replace(TINY, **FAMILIES["qwen3-moe"])
  hf.write(path, cfg, randomised(cfg), pad_id=0, eos_id=1, dtype="float32")
  (path / "tokenizer.json").write_text("{}")
  hf.check_directory(path)
  edit(path, **changes)
  message = refused(path)
  assert re.search(says, message), message


@pytest.fixture
def directory(tmp_path):
  path = tmp_path / "model"
  hf.write(path, TINY, randomised(TINY), pad_id=0, eos_id=1, dtype="float32")
  (path / "tokenizer.json").write_text("{}")
  return path


@pytest.fixture
def many(tmp_path):
  path = tmp_path / "many"
  hf.write(path, TINY, randomised(TINY), pad_id=0, eos_id=1, dtype="float32", max_shard_bytes=1000)
  (path / "tokenizer.json").write_text("{}")
  return path


def refused(directory) -> str:
  with pytest.raises(InputError) as e:
    hf.check_directory(directory)
  assert "\n" not in str(e.value)
  return str(e.value)


def edit(directory, **changes):
  path = directory / "config.json"
  raw = json.loads(path.read_text()) | changes
  path.write_text(json.dumps({k: v for k, v in raw.items() if v != "absent"}))


def rewrite(file, change):
  """The same safetensors file with `change` applied to its dictionary of tensors."""
  from safetensors.numpy import load_file, save_file

  tensors = load_file(file)
  change(tensors)
  save_file(tensors, file)


def test_a_good_directory_is_accepted(directory, many):
  hf.check_directory(directory)
  hf.check_directory(many)


def test_no_such_directory(tmp_path):
  assert "nowhere" in refused(tmp_path / "nowhere")


def test_an_adapter_is_no_model(directory):
  (directory / "config.json").rename(directory / "adapter_config.json")
  assert re.search(r"is a PEFT adapter and not a model.*config\.lora\.path", refused(directory))


@pytest.mark.parametrize("rows", [12, 14])
def test_rows_that_are_not_vocab_size_name_the_key(rows, directory):
  edit(directory, vocab_size=rows)
  assert "config.json has to say vocab_size 13" in refused(directory)


def test_config_missing_or_broken(directory):
  (directory / "config.json").write_text('{"vocab_size": ')
  assert "config.json is not JSON" in refused(directory)
  (directory / "config.json").write_text("[1]")
  assert "config.json holds a list" in refused(directory)
  (directory / "config.json").unlink()
  assert "has no config.json" in refused(directory)


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM is not supported.*Qwen3ForCausalLM"),
    ({"architectures": "absent", "model_type": "absent"}, "no architecture is not supported"),
    ({"architectures": None, "model_type": "mistral"}, "model_type 'mistral' is not supported"),
    ({"model_type": "qwen2"}, "Qwen3ForCausalLM, whose model_type is 'qwen3', and model_type is 'qwen2'"),
    ({"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}, "auto_map names code for AutoModelForCausalLM"),
    ({"hidden_size": "absent"}, "hidden_size is None"),
    ({"num_hidden_layers": "two"}, "num_hidden_layers is 'two'"),
    ({"num_key_value_heads": 3}, "2 query heads cannot share 3"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ({"use_sliding_window": True}, "use_sliding_window is true"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
    ({"attention_bias": True}, "attention_bias is true"),
    (LLAMA | {"attention_bias": True}, "attention_bias is true.*LlamaForCausalLM"),
    (LLAMA | {"mlp_bias": True}, "mlp_bias is true"),
    ({"quantization_config": {"quant_method": "fp8"}}, "quantized .fp8."),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn' is not supported"),
    ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "'linear' is not supported"),
    ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "'dynamic' is not supported"),
    ({"rope_scaling": LLAMA3 | {"factor": None}}, "config.json"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "no low_freq_factor"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    (LLAMA | {"head_dim": "absent", "num_attention_heads": 3}, "there is no head_dim"),
    ({"architectures": [["Qwen3ForCausalLM"]]}, "architectures is .*a list of names"),
    ({"architectures": "Qwen3ForCausalLM"}, "architectures is .*a list of names"),
    ({"layer_types": 3}, "layer_types is 3"),
    ({"layer_types": [{}]}, "layer_types has {}"),
    ({"quantization_config": ["fp8"]}, "quantized"),
    ({"hidden_size": 2**31}, "hidden_size is 2147483648"),
    ({"head_dim": 5}, "5 wide"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ({"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6'"),
    ({"rope_theta": -1.0}, "rope_theta is -1.0"),
    ({"rope_scaling": ["llama3"]}, "the rope scaling is"),
    ({"rope_scaling": LLAMA3 | {"factor": 0}}, "factor is 0"),
    (
      {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": float("inf")}},
      "original_max_position_embeddings is",
    ),
    ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0, "high_freq_factor": 4.0}}, "has to be the larger"),
  ],
)
def test_models_that_would_not_be_followed_exactly(changes, says, directory):
  edit(directory, **changes)
  message = refused(directory)
  assert re.search(says, message), message
  assert str(directory / "config.json") in message


def test_rope_is_read_wherever_it_stands(directory):
  scaling = decoder.RopeScaling(8.0, 1.0, 4.0, 16)
  for changes, theta, expected in [
    ({"rope_theta": 7.0}, 7.0, None),
    ({"rope_theta": "absent"}, 10_000.0, None),
    ({"rope_theta": "absent", "rope_parameters": {"rope_type": "default", "rope_theta": 9.0}}, 9.0, None),
    ({"rope_theta": "absent", "rope_parameters": LLAMA3 | {"rope_theta": 9.0}}, 9.0, scaling),
    ({"rope_theta": 11.0, "rope_scaling": LLAMA3, "rope_parameters": "absent"}, 11.0, scaling),
  ]:
    edit(directory, **changes)
    cfg = hf.read_config(directory)
    assert (cfg.rope_theta, cfg.rope_scaling) == (theta, expected)


def test_defaults_of_config(directory):
  edit(directory, head_dim="absent", tie_word_embeddings="absent")
  assert hf.read_config(directory) == dataclasses.replace(TINY, head_width=128)  # Qwen3's own default
  edit(directory, **LLAMA, num_key_value_heads="absent")
  cfg = hf.read_config(directory)
  assert (cfg.head_width, cfg.kv_heads, cfg.tied) == (4, 2, False)


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


def test_leftovers_of_a_download(directory):
  nested = directory / ".cache" / "huggingface" / "download" / "abc.incomplete"
  nested.parent.mkdir(parents=True)
  nested.write_bytes(b"")
  assert str(nested) in refused(directory)
  nested.unlink()
  (directory / "model.safetensors.incomplete").write_bytes(b"")
  assert "model.safetensors.incomplete" in refused(directory)


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


def test_no_tokenizer(directory):
  (directory / "tokenizer.json").unlink()
  assert "tokenizer.json" in refused(directory)


def test_stop_ids(directory):
  assert hf.stop_ids(directory) == (1,)
  edit(directory, eos_token_id=[7, 1])
  (directory / "generation_config.json").write_text('{"eos_token_id": 9}')
  assert hf.stop_ids(directory) == (1, 7, 9)
  edit(directory, eos_token_id=None)
  (directory / "generation_config.json").unlink()
  assert hf.stop_ids(directory) == ()


@pytest.mark.parametrize("eos", ["2", ["2"], -1, [2, -1], [2, None], [[2]], True, 2.0, {"id": 2}, float("nan")])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_an_end_that_is_no_token_id_is_refused(eos, name, tmp_path):
  (tmp_path / name).write_text(json.dumps({"eos_token_id": eos}))
  with pytest.raises(InputError, match=rf"{name}: eos_token_id is .*; it has to be a token's id, or a list of ids\."):
    hf.stop_ids(tmp_path)


def test_resolve(directory, monkeypatch):
  assert hf.resolve(str(directory)) == directory
  monkeypatch.setenv("HOME", str(directory.parent))
  assert hf.resolve("~/model") == directory
  with pytest.raises(InputError, match=r"`hf download Qwen/Qwen3-0\.6B --local-dir DIR`"):
    hf.resolve("Qwen/Qwen3-0.6B")
  with pytest.raises(InputError, match="no model directory runs/gone"):
    hf.resolve("./runs/gone")
  with pytest.raises(InputError, match="is a file"):
    hf.resolve(str(directory / "config.json"))
  for name in ("builtin:nothing", "builtin:", "builtin:../../models"):
    with pytest.raises(InputError, match=f"no built-in model {name}; available: "):
      hf.resolve(name)


def test_resolve_finds_what_ships_with_the_package(directory, tmp_path, monkeypatch):
  assets = tmp_path / "opd_jax" / "tasks" / "assets"
  assets.mkdir(parents=True)
  directory.rename(assets / "student")
  monkeypatch.setattr(hf, "__file__", str(tmp_path / "opd_jax" / "models" / "hf.py"))
  assert hf.resolve("builtin:student") == (assets / "student").resolve()
  with pytest.raises(InputError, match="available: builtin:student"):
    hf.resolve("builtin:teacher")
