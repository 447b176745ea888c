"""Masked diffusion models: LLaDA and Dream directories are what PyTorch, and a reading of the formulas in numpy, make of them."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from opd_jax.errors import InputError
from opd_jax.models import attention, decoder, hf, hf_config, lora

VOCAB, LENGTH = 61, 14
LLADA = {
  "architectures": ["LLaDAModelLM"],
  "model_type": "llada",
  "auto_map": {"AutoConfig": "configuration_llada.LLaDAConfig", "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM"},
  "d_model": 32,
  "n_layers": 3,
  "n_heads": 4,
  "n_kv_heads": 4,
  "mlp_hidden_size": 48,
  "vocab_size": VOCAB,
  "embedding_size": VOCAB,
  "max_sequence_length": 64,
  "rms_norm_eps": 1e-5,
  "rope_theta": 500.0,
  "weight_tying": False,
  "mask_token_id": VOCAB - 1,
  "rope": True,
  "rope_full_precision": True,
  "alibi": False,
  "include_bias": False,
  "include_qkv_bias": False,
  "layer_norm_type": "rms",
  "block_type": "llama",
  "activation_type": "silu",
  "attention_layer_norm": False,
  "input_emb_norm": False,
  "scale_logits": False,
  "block_group_size": 1,
}
DREAM = {
  "architectures": ["DreamModel"],
  "model_type": "Dream",
  "auto_map": {"AutoModel": "modeling_dream.DreamModel"},
  "hidden_size": 32,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "intermediate_size": 48,
  "vocab_size": VOCAB,
  "max_position_embeddings": 64,
  "rms_norm_eps": 1e-6,
  "rope_theta": 500.0,
  "tie_word_embeddings": False,
  "use_sliding_window": False,
  "mask_token_id": VOCAB - 1,
}
CONFIGS = {"llada": LLADA, "dream": DREAM}


def directory(path, raw):
  path.mkdir()
  (path / "config.json").write_text(json.dumps(raw))
  return path


@pytest.fixture(params=CONFIGS)
def model(request, tmp_path):
  """A directory with random weights, as the family has them, and its config."""
  made = directory(tmp_path / "like", CONFIGS[request.param])
  cfg = hf_config.read(made)
  params = decoder.init(cfg, jax.random.key(0), scale=0.3)
  params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape), params)
  hf.write(tmp_path / "model", cfg, params, like=made, dtype="float32")
  return request.param, tmp_path / "model", cfg, params


def left_padded():
  tokens = np.random.default_rng(1).integers(0, VOCAB, (3, LENGTH))
  return tokens, np.arange(LENGTH) >= np.array([[0], [3], [9]])


@functools.partial(jax.jit, static_argnums=1)
def logits_of(params, cfg, tokens, mask):
  return decoder.unembed(params, decoder.hidden(params, cfg, tokens, mask))


def test_logits_are_those_of_pytorch_without_its_causal_mask(model, pt, record_property):
  name, path, cfg, params = model
  torch, transformers = pt
  family = {"llada": "Llama", "dream": "Qwen2"}[name]
  sizes = {
    "vocab_size": VOCAB,
    "hidden_size": cfg.d_model,
    "intermediate_size": cfg.ff_width,
    "num_hidden_layers": cfg.layers,
    "num_attention_heads": cfg.heads,
    "num_key_value_heads": cfg.kv_heads,
    "rms_norm_eps": cfg.norm_eps,
    "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},
    "tie_word_embeddings": False,
  }
  theirs = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**sizes)).eval()
  in_files = safetensors.numpy.load_file(path / "model.safetensors")
  state = {}
  for of_file, of_torch in zip(sorted(in_files), sorted(in_files, key=str), strict=True):
    state[as_llama(of_torch) if name == "llada" else of_torch] = torch.tensor(in_files[of_file])
  theirs.load_state_dict(state)
  tokens, mask = left_padded()
  seen = np.where(mask[:, None, None, :], 0.0, -1e9) * np.ones((1, 1, LENGTH, 1))
  with torch.no_grad():
    wanted = theirs(torch.tensor(tokens), attention_mask=torch.tensor(seen, dtype=torch.float32)).logits.numpy()
  found = logits_of(hf.load(path), cfg, tokens, mask)
  error = float(np.max(np.abs(found - wanted)[mask]))
  record_property("error", error)
  assert error < 1e-4
  assert np.std(wanted[mask]) > 0.3
  causal = logits_of(params, dataclasses.replace(cfg, causal=True), tokens, mask)
  assert np.max(np.abs(causal - wanted)[mask]) > 0.1


def as_llama(name: str) -> str:
  """The name of a tensor of LLaDA in a Llama."""
  top = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}
  parts = name.removeprefix("model.transformer.").split(".")
  if parts[0] in top:
    return f"{top[parts[0]]}.weight"
  inner = {
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
  }
  return f"model.layers.{parts[1]}.{inner[parts[2]]}.weight"


def test_llada_is_its_formulas(tmp_path):
  """Written out in numpy, from the tensors by the names that LLaDA's own code has."""
  made = directory(tmp_path / "like", LLADA)
  cfg = hf_config.read(made)
  params = decoder.init(cfg, jax.random.key(3), scale=0.3)
  hf.write(tmp_path / "model", cfg, params, like=made, dtype="float32")
  w = {
    name.removeprefix("model.transformer."): a.astype(np.float64)
    for name, a in safetensors.numpy.load_file(tmp_path / "model" / "model.safetensors").items()
  }
  tokens = np.random.default_rng(0).integers(0, VOCAB, LENGTH)

  def norm(x, scale):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-5) * scale

  def rotated(x):  # [T, N, h]: the two halves of a head are the real and imaginary parts of complex numbers
    half = x.shape[-1] // 2
    angle = np.arange(LENGTH)[:, None, None] * 500.0 ** (-np.arange(half) / half)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag], axis=-1)

  x = w["wte.weight"][tokens]
  for i in range(3):

    def of(name, i=i):
      return w[f"blocks.{i}.{name}.weight"]

    y = norm(x, of("attn_norm"))
    q, k, v = ((y @ of(f"{name}_proj").T).reshape(LENGTH, 4, 8) for name in "qkv")
    scores = np.einsum("qnh,knh->nqk", rotated(q), rotated(k)) / np.sqrt(8)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    x = x + np.einsum("nqk,knh->qnh", weights, v).reshape(LENGTH, 32) @ of("attn_out").T
    y = norm(x, of("ff_norm"))
    gate = y @ of("ff_proj").T
    x = x + (gate / (1 + np.exp(-gate)) * (y @ of("up_proj").T)) @ of("ff_out").T
  wanted = norm(x, w["ln_f.weight"]) @ w["ff_out.weight"].T
  found = logits_of(hf.load(tmp_path / "model"), cfg, tokens[None], np.ones((1, LENGTH), bool))[0]
  np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_published_llada_has_as_many_parameters_as_its_index_says(tmp_path):
  sizes = {"d_model": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 32, "mlp_hidden_size": 12288}
  sizes |= {"vocab_size": 126464, "embedding_size": 126464, "max_sequence_length": 4096, "mask_token_id": 126336}
  cfg = hf_config.read(directory(tmp_path / "8b", LLADA | sizes | {"rope_theta": 500_000.0}))
  shapes = jax.tree.leaves(decoder.shapes(cfg), is_leaf=lambda x: isinstance(x, tuple))
  assert sum(int(np.prod(shape)) for shape in shapes) == 8_015_581_184


def test_a_directory_is_written_as_it_was_read_and_from_sizes_alone(model, tmp_path):
  name, path, cfg, params = model
  assert hf_config.read(path) == cfg
  jax.tree.map(np.testing.assert_array_equal, hf.load(path), params)
  hf.write(tmp_path / "new", cfg, params, pad_id=0, eos_id=1, dtype="float32")
  assert hf_config.read(tmp_path / "new") == cfg
  written = safetensors.numpy.load_file(tmp_path / "new" / "model.safetensors")
  of_family = (
    "model.transformer.blocks.2.attn_out.weight" if name == "llada" else "model.layers.2.self_attn.q_proj.bias"
  )
  assert of_family in written


@pytest.mark.parametrize("key", ["rope", "layer_norm_type", "block_type", "activation_type"])
def test_llada_without_a_switch_that_its_code_takes_otherwise_is_refused(key):
  with pytest.raises(ValueError, match=f"there is no {key}, .*only .* is supported"):
    hf_config.described({name: value for name, value in LLADA.items() if name != key})


@pytest.mark.parametrize(
  ("raw", "change", "named"),
  [
    (LLADA, {"alibi": True}, "alibi"),
    (LLADA, {"include_qkv_bias": True}, "include_qkv_bias"),
    (LLADA, {"block_type": "sequential"}, "block_type"),
    (LLADA, {"block_group_size": 2}, "block_group_size"),
    (LLADA, {"layer_norm_type": "default"}, "layer_norm_type"),
    (LLADA, {"activation_type": "swiglu"}, "activation_type"),
    (LLADA, {"rope": 1}, "rope"),
    (LLADA, {"mask_token_id": None}, "mask_token_id"),
    (LLADA, {"mask_token_id": VOCAB}, "mask_token_id"),
    (LLADA, {"n_heads": 0}, "n_heads"),
    (DREAM, {"use_sliding_window": True}, "use_sliding_window"),
    (DREAM, {"mask_token_id": "<mask>"}, "mask_token_id"),
    (DREAM, {"hidden_act": "gelu"}, "hidden_act"),
  ],
)
def test_what_is_not_followed_is_refused_by_name(raw, change, named, tmp_path):
  with pytest.raises(InputError, match=f"(?<!\\w){named} "):
    hf_config.read(directory(tmp_path / "model", raw | change))


@pytest.mark.long
def test_predictions_of_a_shifted_model_stand_one_position_earlier(model):
  name, _, cfg, params = model
  tokens, mask = left_padded()
  prompt, canvas = tokens[:, :10], tokens[:, 10:]
  found = decoder.canvas_hidden(params, cfg, jnp.asarray(prompt), jnp.asarray(mask[:, :10]), jnp.asarray(canvas))
  whole = decoder.hidden(params, cfg, jnp.asarray(tokens), jnp.asarray(mask))
  first = 9 if name == "dream" else 10
  np.testing.assert_allclose(found, whole[:, first : first + 4], atol=1e-6)


def test_attention_in_blocks_is_attention():
  q, k, v = (jax.random.normal(jax.random.key(i), (2, LENGTH, 4, 8)) for i in range(3))
  mask = jnp.arange(LENGTH) >= jnp.array([[0], [4]])
  whole = attention.attend_bidirectional(q, k, v, mask)
  np.testing.assert_allclose(attention.attend_bidirectional(q, k, v, mask, block=5), whole, atol=1e-6)


def test_an_adapter_is_written_under_the_names_that_peft_finds(model, tmp_path):
  name, _, cfg, _ = model
  adapter = lora.Lora(2, 4.0, ("q", "o", "up"))
  params = jax.tree.map(lambda a: a + 1.0, lora.init(cfg, adapter, jax.random.key(0)))
  lora.write(tmp_path / "adapter", cfg, adapter, jax.tree.map(np.asarray, params), "base")
  assert lora.read_config(tmp_path / "adapter") == adapter
  jax.tree.map(np.testing.assert_array_equal, lora.load(tmp_path / "adapter", cfg, adapter), params)
  modules = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"]
  assert modules == (["q_proj", "attn_out", "up_proj"] if name == "llada" else ["q_proj", "o_proj", "up_proj"])


def test_an_adapter_that_peft_would_put_at_the_head_too_is_refused(tmp_path):
  cfg = hf_config.read(directory(tmp_path / "model", LLADA))
  with pytest.raises(InputError, match="'down', which LLaDA calls ff_out"):
    lora.shapes(cfg, lora.Lora(2, 4.0, ("down",)))
