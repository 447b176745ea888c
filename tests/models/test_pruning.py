"""Copies of a model without some of its layers, or with weights of few bits."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax import convert
from opd_jax.errors import InputError
from opd_jax.models import decoder, hf, hf_config, pruning, safetensors_io
from tests.helpers.model_directories import FAMILIES, TINY, randomised

SIX = dataclasses.replace(TINY, layers=6)
TOKENS = jnp.array([[1, 5, 3, 2, 8, 7, 4, 0]])


@pytest.fixture
def original(tmp_path):
  hf.write(tmp_path / "original", SIX, randomised(SIX), dtype="float32")
  return tmp_path / "original"


def test_the_layers_that_stay_are_bit_for_bit_the_same(original, tmp_path):
  pruning.write(original, tmp_path / "pruned", drop=(1, 4, 5))
  cfg = hf_config.read(tmp_path / "pruned")
  assert cfg == dataclasses.replace(hf_config.read(original), layers=3)
  before, after = hf.load(original), hf.load(tmp_path / "pruned")
  for name, kept in after["layers"].items():
    np.testing.assert_array_equal(kept, before["layers"][name][jnp.array([0, 2, 3])])
  np.testing.assert_array_equal(after["embed"], before["embed"])


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_what_each_layer_is_goes_with_it(family, tmp_path):
  """Of families with layers of several kinds, four of six are kept so that the pattern holds."""
  cfg = dataclasses.replace(SIX, **FAMILIES[family])
  hf.write(tmp_path / "original", cfg, randomised(cfg), dtype="float32")
  pruning.write(tmp_path / "original", tmp_path / "pruned", drop=(2, 3))
  kinds = hf_config.read(tmp_path / "original").kinds
  found = hf_config.read(tmp_path / "pruned")
  assert found.kinds == [*kinds[:2], *kinds[4:]]
  hf.load(tmp_path / "pruned")


def test_a_pattern_that_breaks_is_kept_by_its_list_or_refused(tmp_path):
  cfg = dataclasses.replace(SIX, **FAMILIES["smollm3"])
  hf.write(tmp_path / "original", cfg, randomised(cfg), dtype="float32")
  pruning.write(tmp_path / "original", tmp_path / "pruned", drop=(1,))
  assert [kind.rotary for kind in hf_config.read(tmp_path / "pruned").kinds] == [True, True, False, True, False]
  path = tmp_path / "original" / "config.json"
  raw = json.loads(path.read_text())
  raw.pop("no_rope_layers")
  path.write_text(json.dumps(raw | {"no_rope_layer_interval": 2}))
  with pytest.raises(InputError, match="says by rule"):
    pruning.write(tmp_path / "original", tmp_path / "again", drop=(1,))
  assert not (tmp_path / "again").exists()


def test_rounded_weights_are_the_nearest_of_their_group():
  rng = np.random.default_rng(0)
  w = rng.normal(size=(5, 70)).astype(np.float32)
  for bits in (2, 3, 8):
    levels = 2 ** (bits - 1) - 1
    found = pruning.rounded(w, bits, 32)
    for row in range(5):
      for first in (0, 32, 64):
        part, near = w[row, first : first + 32], found[row, first : first + 32]
        scale = np.abs(part).max() / levels
        grid = scale * np.arange(-levels, levels + 1)
        np.testing.assert_allclose(near, grid[np.abs(part[:, None] - grid).argmin(axis=1)], atol=1e-6)
  assert not pruning.rounded(np.zeros((2, 4), np.float32), 3, 4).any()


def test_only_the_layers_matrices_are_rounded(original, tmp_path):
  pruning.write(original, tmp_path / "round", bits=3, group=4)
  before, after = (safetensors_io.find_tensors(path) for path in (original, tmp_path / "round"))
  for name, tensor in before.items():
    same = np.array_equal(tensor.map(), after[name].map())
    assert same == ("layers." not in name or len(tensor.shape) == 1), name
    if not same:
      np.testing.assert_array_equal(after[name].map(), pruning.rounded(np.asarray(tensor.map()), 3, 4))


@pytest.fixture
def llama(pt, tmp_path):
  """A model of PyTorch's, and the directory that it was saved in."""
  torch, transformers = pt
  config = transformers.LlamaConfig(
    vocab_size=40,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=5,
    num_attention_heads=4,
    num_key_value_heads=2,
  )
  torch.manual_seed(0)
  model = transformers.LlamaForCausalLM(config).eval()
  model.save_pretrained(tmp_path / "original")
  return model, tmp_path / "original"


def check_logits(directory, model, torch) -> None:
  """The directory holds what the model of PyTorch computes."""
  cfg = hf_config.read(directory)
  params = hf.load(directory, cfg)
  x = decoder.hidden(params, cfg, TOKENS, jnp.ones_like(TOKENS, bool))
  with torch.no_grad():
    theirs = model(torch.tensor(np.asarray(TOKENS)), use_cache=False).logits
  np.testing.assert_allclose(decoder.unembed(params, x), theirs.numpy(), atol=1e-5)


def test_the_cut_model_is_pytorchs_without_these_layers(pt, llama, tmp_path):
  torch, (model, original) = pt[0], llama
  pruning.write(original, tmp_path / "pruned", drop=(1, 2))
  model.model.layers = torch.nn.ModuleList(model.model.layers[i] for i in (0, 3, 4))
  for i, layer in enumerate(model.model.layers):
    layer.self_attn.layer_idx = i
  check_logits(tmp_path / "pruned", model, torch)


def test_the_rounded_model_is_pytorchs_with_its_matrices_quantised(pt, llama, tmp_path):
  """By PyTorch's own quantisation, a scale for each group of 16 weights of a row."""
  torch, (model, original) = pt[0], llama
  pruning.write(original, tmp_path / "rounded", bits=3, group=16)
  for layer in model.model.layers:
    for module in layer.modules():
      if isinstance(module, torch.nn.Linear):
        groups = module.weight.data.reshape(-1, 16)
        scale = groups.abs().amax(dim=1) / 3
        zero = torch.zeros(len(groups), dtype=torch.int32)
        quantised = torch.fake_quantize_per_channel_affine(groups, scale, zero, 0, -3, 3)
        module.weight.data = quantised.reshape(module.weight.shape)
  check_logits(tmp_path / "rounded", model, torch)


@pytest.mark.parametrize(
  ("text", "numbers"), [("20-23", (20, 21, 22, 23)), ("4, 1-2", (1, 2, 4)), ("3,3", (3,)), ("0", (0,))]
)
def test_layers_are_named_by_numbers(text, numbers):
  assert pruning.layers_of(text) == numbers


@pytest.mark.parametrize("text", ["", "a", "3-1", "1--2", "-1", "1,,2"])
def test_what_names_no_layers_is_refused(text):
  with pytest.raises(InputError, match="names no layers"):
    pruning.layers_of(text)


@pytest.mark.parametrize(
  ("asked", "why"),
  [
    ({"drop": (6,)}, "has the layers 0 to 5, and no 6"),
    ({"drop": range(6)}, "keep one"),
    ({"bits": 1}, "choose 2 to 8"),
    ({"bits": 9}, "choose 2 to 8"),
  ],
)
def test_what_cannot_be_pruned_is_refused(asked, why, original, tmp_path):
  with pytest.raises(InputError, match=why):
    pruning.write(original, tmp_path / "pruned", **asked)
  assert not (tmp_path / "pruned").exists()


def command(monkeypatch, *arguments):
  monkeypatch.setattr("sys.argv", ["convert", *map(str, arguments)])
  convert.main()


def test_the_command_prunes_and_rounds(original, tmp_path, monkeypatch, capsys):
  command(monkeypatch, original, tmp_path / "pruned", "--drop-layers=2-3", "--bits=4")
  assert "without 2 layers and its matrices rounded to 4 bits" in capsys.readouterr().out
  assert hf_config.read(tmp_path / "pruned").layers == 4
  assert not jax.tree.leaves(jax.tree.map(jnp.isnan, hf.load(tmp_path / "pruned")))[0].any()


def test_a_built_in_model_can_be_rounded(tmp_path, monkeypatch):
  command(monkeypatch, "builtin:teacher", tmp_path / "rounded", "--bits=2")
  assert hf_config.read(tmp_path / "rounded") == hf_config.read(hf.resolve("builtin:teacher"))
  with pytest.raises(SystemExit):
    command(monkeypatch, "builtin:nobody", tmp_path / "other", "--bits=2")


@pytest.mark.parametrize(
  ("flags", "why"),
  [
    ([], "say what to make of it"),
    (["--drop-layers=1", "--dtype=float32"], "are for GGUF files"),
    (["--bits=3", "--group=0"], "at least 1"),
  ],
)
def test_the_command_refuses_what_makes_no_sense(flags, why, original, tmp_path, monkeypatch, capsys):
  with pytest.raises(SystemExit):
    command(monkeypatch, original, tmp_path / "pruned", *flags)
  assert why in capsys.readouterr().err
