"""config.json: read as the model that it describes, or refused where that would not be followed exactly."""

import dataclasses
import json
import re

import pytest

from opd_jax.models import decoder, hf, hf_config
from tests.helpers.model_directories import FAMILIES, LLAMA, LLAMA3, TINY, edit, randomised, refused

MOE = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}
SMOLLM3 = {"architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3"}
OLMO3 = {"architectures": ["Olmo3ForCausalLM"], "model_type": "olmo3"}
GEMMA3 = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_act": "absent"}
MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
START = {
  "use_sliding_window": "absent",
  "rope_theta": "absent",
  "rope_scaling": None,
  "no_rope_layer_interval": "absent",
  "max_window_layers": "absent",
}
WINDOWS = {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 4}


@pytest.mark.parametrize("changes", [{"architectures": None}, {"architectures": "absent"}, {"model_type": "absent"}])
def test_an_architecture_that_is_left_out_follows_from_the_other_name_and_is_written(changes, directory, tmp_path):
  edit(directory, **changes)
  assert hf_config.read(directory) == TINY
  hf.write(tmp_path / "out", TINY, randomised(TINY), like=directory)
  raw = json.loads((tmp_path / "out" / "config.json").read_text())
  assert (raw["architectures"], raw["model_type"]) == (["Qwen3ForCausalLM"], "qwen3")


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
    ({"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM is not supported.*Qwen3ForCausalLM"),
    ({"architectures": "absent", "model_type": "absent"}, "no architecture is not supported"),
    ({"architectures": None, "model_type": "gemma"}, "model_type 'gemma' is not supported"),
    ({"model_type": "qwen2"}, "Qwen3ForCausalLM, whose model_type is 'qwen3', and model_type is 'qwen2'"),
    ({"model_type": "x" * 5000}, r"and model_type is 'x{1,50}[.x]*'; mend"),
    ({"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}, "auto_map names code for AutoModelForCausalLM"),
    ({"hidden_size": "absent"}, "hidden_size is None"),
    ({"num_hidden_layers": "two"}, "num_hidden_layers is 'two'"),
    ({"num_key_value_heads": 3}, "2 query heads cannot share 3"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    (MOE | {"use_sliding_window": True}, "use_sliding_window is true, which is not supported for Qwen3Moe"),
    ({"use_sliding_window": "yes"}, "use_sliding_window is 'yes'"),
    (WINDOWS | {"sliding_window": 0}, "sliding_window is 0"),
    (WINDOWS | {"max_window_layers": -1}, "max_window_layers is -1"),
    (WINDOWS | {"layer_types": ["full_attention"]}, "layer_types has 1 entries, and num_hidden_layers is 2"),
    (
      WINDOWS | {"layer_types": ["full_attention", "chunked_attention"]},
      "layer_types has 'chunked_attention'; only 'full",
    ),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "'sliding_attention', and use_sliding_window"),
    (LLAMA | {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has 'sliding_attention'"),
    (LLAMA | {"attention_bias": 1.0}, "attention_bias is 1.0"),
    (LLAMA | {"mlp_bias": True}, "mlp_bias is true, which is not supported for LlamaForCausalLM"),
    (SMOLLM3 | {"no_rope_layers": [1, 2]}, "no_rope_layers has 2; only 0 and 1"),
    (SMOLLM3 | {"no_rope_layers": 4}, "no_rope_layers is 4; it has to be a list"),
    (GEMMA3 | {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0, which is not supported for Gemma3"),
    (GEMMA3 | {"use_bidirectional_attention": True}, "use_bidirectional_attention is true"),
    (GEMMA3 | {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'; only 'gelu_pytorch_tanh' is supported"),
    (
      GEMMA3 | {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
      "the rope scaling of sliding_attention is not 'default'",
    ),
    ({"quantization_config": {"quant_method": "fp8"}}, "quantized .fp8."),
    ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "'longrope' is not supported; 'default', 'linear'"),
    ({"rope_scaling": {"type": "linear"}}, "the rope scaling has no factor"),
    ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "the rope scaling has no factor"),
    (
      {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": False}},
      "truncate is False in the rope scaling",
    ),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "rope_theta": 1}, "'yarn' needs one above 1"),
    ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "settings for 'full_attention' alone"),
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
    cfg = hf_config.read(directory)
    assert (cfg.rope_theta, cfg.rope_scaling) == (theta, expected)


def test_windows_and_layers_without_rotary_are_read_wherever_they_stand(directory):
  """The forms that transformers 4 wrote, and the defaults of what is left out."""
  plain, kind = decoder.LayerKind(), decoder.LayerKind
  layers = {"num_hidden_layers": 6}
  for changes, expected in [
    (layers | WINDOWS, (plain, *[kind(4)] * 5)),
    (layers | WINDOWS | {"use_sliding_window": False}, ()),
    (layers | WINDOWS | {"sliding_window": None}, ()),
    (layers | {"use_sliding_window": True, "max_window_layers": 0}, (kind(4096),)),
    (layers | MISTRAL, (kind(4096),)),
    (layers | MISTRAL | {"sliding_window": None}, ()),
    (layers | SMOLLM3, (plain, plain, plain, kind(rotary=False))),
    ({"num_hidden_layers": 8} | SMOLLM3, (plain, plain, plain, kind(rotary=False))),
    (layers | SMOLLM3 | {"no_rope_layer_interval": 2}, (plain, kind(rotary=False))),
    ({"num_hidden_layers": 8} | OLMO3 | {"sliding_window": 9}, (*[kind(9)] * 3, plain)),
    (
      {"num_hidden_layers": 8, "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 7.0} | OLMO3,
      (*[kind(4096, theta=7.0)] * 3, plain),
    ),
    (layers | GEMMA3, (*[kind(4096, theta=10_000.0)] * 5, plain)),
    (layers | GEMMA3 | {"sliding_window_pattern": 2, "rope_local_base_freq": 8.0}, (kind(4096, theta=8.0), plain)),
  ]:
    edit(directory, **{"sliding_window": "absent"} | START | changes)
    assert hf_config.read(directory).layer_kinds == expected, changes


def test_defaults_of_config(directory):
  edit(directory, head_dim="absent", tie_word_embeddings="absent")
  assert hf_config.read(directory) == dataclasses.replace(TINY, head_width=128)  # Qwen3's own default
  edit(directory, **LLAMA, num_key_value_heads="absent")
  cfg = hf_config.read(directory)
  assert (cfg.head_width, cfg.kv_heads, cfg.tied) == (4, 2, False)


@pytest.mark.parametrize("rows", [12, 14])
def test_rows_that_are_not_vocab_size_name_the_key(rows, directory):
  edit(directory, vocab_size=rows)
  assert "config.json has to say vocab_size 13" in refused(directory)
