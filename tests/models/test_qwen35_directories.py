"""Qwen3.5 as it is released: a decoder within a model that sees images, whose other tensors stay as they are."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from opd_jax.errors import InputError
from opd_jax.models import hf, hf_config
from tests.helpers.model_directories import edit
from tests.models.test_hf import left_padded, our_logits

VOCAB = 97
TEXT = {
  "vocab_size": VOCAB,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 4,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 16,
  "max_position_embeddings": 128,
  "linear_num_key_heads": 2,
  "linear_num_value_heads": 4,
  "linear_key_head_dim": 8,
  "linear_value_head_dim": 12,
}
VISION = {
  "depth": 1,
  "hidden_size": 16,
  "intermediate_size": 16,
  "num_heads": 2,
  "out_hidden_size": 32,
  "patch_size": 4,
  "num_position_embeddings": 16,
}
GUESSES = {"mtp.norm.weight": np.arange(32, dtype=np.float32), "mtp.fc.weight": np.ones((32, 64), np.float32)}


@pytest.fixture(scope="module", params=["tied", "untied"])
def released(request, pt, tmp_path_factory):
  """Such a directory, with tensors that guess several tokens at once, and the logits of its text."""
  torch, transformers = pt
  directory, tied = tmp_path_factory.mktemp(request.param), request.param == "tied"
  config = transformers.Qwen3_5Config(
    text_config=TEXT | {"tie_word_embeddings": tied}, vision_config=VISION, tie_word_embeddings=tied
  )
  torch.manual_seed(0)
  model = transformers.Qwen3_5ForConditionalGeneration(config)
  with torch.no_grad():
    for p in model.parameters():
      p.copy_(torch.randn_like(p) * 0.2)
  model.eval().save_pretrained(directory)
  tensors = safetensors.numpy.load_file(directory / "model.safetensors")
  safetensors.numpy.save_file(tensors | GUESSES, directory / "model.safetensors", {"format": "pt"})
  return directory, text_logits(pt, model)


def text_logits(pt, model):
  torch, _ = pt
  tokens, mask = left_padded(VOCAB)
  with torch.no_grad():
    return model(input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask).long()).logits.numpy()


def ours(directory):
  tokens, mask = left_padded(VOCAB)
  cfg = hf_config.read(directory)
  return np.asarray(our_logits(hf.load(directory, cfg), cfg, tokens, mask))[mask]


@pytest.mark.long
def test_the_text_is_that_of_pytorch(released):
  directory, expected = released
  _, mask = left_padded(VOCAB)
  np.testing.assert_allclose(ours(directory), expected[mask], atol=1e-4)
  assert np.std(expected[mask]) > 0.3


def test_whether_the_head_is_the_embedding_is_said_outside_of_the_text(released, tmp_path):
  directory, _ = released
  raw = json.loads((directory / "config.json").read_text())
  raw["text_config"]["tie_word_embeddings"] = not raw["tie_word_embeddings"]
  (tmp_path / "config.json").write_text(json.dumps(raw))
  assert hf_config.read(tmp_path).tied == ("untied" not in directory.name)


@pytest.mark.long
def test_what_is_no_decoder_stays_as_it_is(released, pt, tmp_path):
  _, transformers = pt
  directory, expected = released
  cfg = hf_config.read(directory)
  moved = jax.tree.map(lambda a: a * 0.5, hf.load(directory, cfg))
  hf.write(tmp_path / "out", cfg, moved, like=directory, dtype="float32")
  before = safetensors.numpy.load_file(directory / "model.safetensors")
  after = {}
  for file in (tmp_path / "out").glob("*.safetensors"):
    after |= safetensors.numpy.load_file(file)
  assert after.keys() == before.keys()
  for name, tensor in before.items():
    kept = name.startswith(("model.visual.", "mtp."))
    np.testing.assert_array_equal(after[name], tensor if kept else tensor * 0.5, err_msg=name)
  assert json.loads((tmp_path / "out" / "config.json").read_text())["vision_config"]["depth"] == 1
  model = transformers.Qwen3_5ForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
  _, mask = left_padded(VOCAB)
  np.testing.assert_allclose(ours(tmp_path / "out"), text_logits(pt, model)[mask], atol=1e-4)
  assert np.abs(text_logits(pt, model) - expected)[mask].max() > 0.1


def test_the_text_saved_by_itself_is_read_under_its_old_names(released, pt, tmp_path):
  """transformers writes another architecture and leaves the names as they were."""
  _, transformers = pt
  directory, _ = released
  text = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
  text.save_pretrained(tmp_path)
  assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["Qwen3_5ForCausalLM"]
  _, mask = left_padded(VOCAB)
  np.testing.assert_allclose(ours(tmp_path), text_logits(pt, text)[mask], atol=1e-4)


def test_unknown_tensors_are_refused(released, tmp_path):
  directory, _ = released
  (tmp_path / "config.json").write_text((directory / "config.json").read_text())
  tensors = safetensors.numpy.load_file(directory / "model.safetensors")
  safetensors.numpy.save_file(tensors | {"model.audio.w": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
  with pytest.raises(InputError, match=r"unknown tensors model\.audio\.w"):
    hf.check_directory(tmp_path)


@pytest.mark.parametrize(
  ("changes", "why"),
  [
    ({"linear_num_value_heads": 5}, "no multiple of linear_num_key_heads"),
    ({"partial_rotary_factor": 0.1, "rope_parameters": None}, "partial_rotary_factor"),
    ({"layer_types": ["linear_attention"] * 4}, "no layer is 'full_attention'"),
    ({"layer_types": ["sliding_attention"] * 4}, "layer_types"),
    ({"attention_bias": True}, "attention_bias"),
    ({"hidden_act": "gelu"}, "hidden_act"),
  ],
)
def test_what_is_not_followed_is_refused(changes, why, released, tmp_path):
  directory, _ = released
  for file in directory.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  edit(tmp_path, text_config=json.loads((directory / "config.json").read_text())["text_config"] | changes)
  with pytest.raises(InputError, match=why):
    hf.check_directory(tmp_path)
