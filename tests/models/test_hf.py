"""Hugging Face directories: the same model as PyTorch's, and a clear sentence for everything that is wrong with one."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.errors import InputError
from opd_jax.models import decoder, hf, hf_config
from tests.helpers.model_directories import FAMILIES, LLAMA3, TINY, assert_same, edit, randomised, refused


def left_padded(vocab: int):
  rng = np.random.default_rng(1)
  tokens = rng.integers(0, vocab, (3, 48))
  mask = np.arange(48) >= np.array([[0], [5], [30]])
  return tokens, mask


@functools.partial(jax.jit, static_argnums=1)
def our_logits(params, cfg, tokens, mask):
  return decoder.unembed(params, decoder.hidden(params, cfg, tokens, mask))


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


@pytest.mark.few(3)
def test_logits_are_those_of_pytorch(pytorch_model):
  case, directory, expected = pytorch_model
  if "many-files" in case:
    assert len(list(directory.glob("*.safetensors"))) > 2
  tokens, mask = left_padded(97)
  cfg = hf_config.read(directory)
  params = hf.load(directory, cfg)
  logits = our_logits(params, cfg, tokens, mask)
  np.testing.assert_allclose(logits[mask], expected[mask], atol=1e-4)
  assert np.std(expected[mask]) > 0.3  # or agreement to 1e-4 would say little
  assert hf.stop_ids(directory) == (3, 5)


@pytest.mark.long
@pytest.mark.parametrize(
  "pytorch_model",
  ["qwen3-untied", "qwen3-moe-renormalised-bf16", "qwen2-tied-bf16", "llama3-untied-many-files"],
  indirect=True,
)
def test_every_parameter_is_seen_by_the_parity_test(pytorch_model):
  """What could be left out without changing the logits would be compared with nothing."""
  _, directory, expected = pytorch_model
  tokens, mask = left_padded(97)
  cfg = hf_config.read(directory)
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
  cfg = hf_config.read(directory)
  hf.write(tmp_path / "out", cfg, hf.load(directory), like=directory, dtype="float32", max_shard_bytes=20_000)
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "out", dtype="auto", output_loading_info=True
  )
  assert model.dtype == torch.float32
  assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
  np.testing.assert_allclose(torch_logits(pt, model.eval(), *left_padded(97)), expected, atol=1e-5)


@pytest.mark.few(3)
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


@pytest.mark.few(3)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip(family, tied, tmp_path):
  cfg = dataclasses.replace(TINY, tied=tied, **FAMILIES[family])
  params = randomised(cfg)
  hf.write(tmp_path / "out", cfg, params, pad_id=0, eos_id=(4, 2), dtype="float32", max_shard_bytes=1000)
  assert hf_config.read(tmp_path / "out") == cfg
  assert_same(hf.load(tmp_path / "out"), params)
  assert hf.stop_ids(tmp_path / "out") == (2, 4)


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


def test_pytorch_loads_a_copy_of_a_directory_that_names_no_model_type(directory, pt, tmp_path):
  _, transformers = pt
  params = randomised(TINY)
  edit(directory, model_type="absent")
  hf.write(tmp_path / "out", TINY, params, like=directory, dtype="float32")
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
  np.testing.assert_array_equal(model.get_output_embeddings().weight.detach().numpy(), params["head"])


def test_a_directory_is_never_written_over(directory):
  with pytest.raises(InputError, match="exists already"):
    hf.write(directory, TINY, randomised(TINY), like=directory)


def test_a_copy_has_to_be_of_the_same_model(directory, tmp_path):
  cfg = dataclasses.replace(TINY, rope_theta=5.0)
  with pytest.raises(ValueError, match="does not describe"):
    hf.write(tmp_path / "out", cfg, randomised(cfg), like=directory)


def test_a_good_directory_is_accepted(directory, many):
  hf.check_directory(directory)
  hf.check_directory(many)


def test_no_such_directory(tmp_path):
  assert "nowhere" in refused(tmp_path / "nowhere")


def test_an_adapter_is_no_model(directory):
  (directory / "config.json").rename(directory / "adapter_config.json")
  assert re.search(r"is a PEFT adapter and not a model.*config\.lora\.path", refused(directory))


def test_leftovers_of_a_download(directory):
  nested = directory / ".cache" / "huggingface" / "download" / "abc.incomplete"
  nested.parent.mkdir(parents=True)
  nested.write_bytes(b"")
  assert str(nested) in refused(directory)
  nested.unlink()
  (directory / "model.safetensors.incomplete").write_bytes(b"")
  assert "model.safetensors.incomplete" in refused(directory)


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
