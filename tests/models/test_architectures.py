"""Every row of `hf_config.ARCHITECTURES` and every way of telling positions is PyTorch's model, on random weights.

And it is one model in all of its forms here: prompts with responses behind them, in blocks, and token by token from caches.
"""

import copy
import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.models import blockwise, decoder, hf, hf_config
from opd_jax.models.attention import attend_causal
from opd_jax.rollout import sample
from opd_jax.types import Batch
from tests.helpers.model_directories import LLAMA3

VOCAB, LENGTH, NEW = 97, 48, 9
SIZES = {
  "vocab_size": VOCAB,
  "hidden_size": 48,
  "intermediate_size": 80,
  "num_hidden_layers": 3,
  "num_attention_heads": 6,
  "num_key_value_heads": 2,
  "max_position_embeddings": 128,
  "tie_word_embeddings": False,
  "pad_token_id": 0,
  "bos_token_id": None,
  "eos_token_id": None,
}
HEADS = {"head_dim": 16}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24, "rope_theta": 500.0}
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
DELTA = {
  "linear_num_key_heads": 2,
  "linear_num_value_heads": 6,
  "linear_key_head_dim": 8,
  "linear_value_head_dim": 12,
}
CASES = {  # family of transformers, and what its config is given
  "mistral": ("Mistral", HEADS | {"sliding_window": 7}),
  "mistral-without-windows": ("Mistral", HEADS | {"sliding_window": None}),
  "qwen2-windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
  "qwen3-windows-biases": (
    "Qwen3",
    HEADS
    | {
      "attention_bias": True,
      "use_sliding_window": True,
      "sliding_window": 5,
      "layer_types": [SLIDING, FULL, SLIDING],
    },
  ),
  "llama-biases": ("Llama", HEADS | {"attention_bias": True, "rope_parameters": LLAMA3 | {"rope_theta": 500.0}}),
  "llama-yarn": ("Llama", HEADS | {"rope_parameters": YARN}),
  "llama-yarn-mscale": (
    "Llama",
    HEADS | {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5, "beta_fast": 16.0}},
  ),
  "llama-linear": (
    "Llama",
    HEADS | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}},
  ),
  "llama-dynamic": (
    "Llama",
    HEADS | {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 500.0}},
  ),
  "smollm3": ("SmolLM3", {"num_hidden_layers": 5, "tie_word_embeddings": True}),
  "smollm3-windows": ("SmolLM3", {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 6}),
  "olmo2": ("Olmo2", {}),
  "olmo2-biases": ("Olmo2", {"attention_bias": True}),
  "olmo3": ("Olmo3", {"num_hidden_layers": 5, "sliding_window": 7}),
  "olmo3-yarn": (
    "Olmo3",
    {
      "num_hidden_layers": 4,
      "sliding_window": 7,
      "rope_parameters": {FULL: dict(YARN), SLIDING: {"rope_type": "default", "rope_theta": 500.0}},
    },
  ),
  "gemma3": ("Gemma3", HEADS | {"num_hidden_layers": 7, "sliding_window": 7, "tie_word_embeddings": True}),
  "gemma3-scaled": (
    "Gemma3",
    HEADS
    | {
      "sliding_window": 7,
      "layer_types": [SLIDING, FULL, SLIDING],
      "query_pre_attn_scalar": 24,
      "rope_parameters": {
        FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 9000.0},
        SLIDING: {"rope_type": "default", "rope_theta": 300.0},
      },
    },
  ),
  "qwen3.5": (
    "Qwen3_5",
    HEADS
    | DELTA
    | {
      "num_hidden_layers": 4,
      "full_attention_interval": 2,
      "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"},
    },
  ),
  "qwen3.5-in-any-order": (
    "Qwen3_5",
    HEADS
    | DELTA
    | {
      "num_hidden_layers": 5,
      "layer_types": [FULL, LINEAR, LINEAR, FULL, LINEAR],
      "linear_num_value_heads": 2,
      "linear_conv_kernel_dim": 3,
      "rope_parameters": {"rope_theta": 500.0, "rope_type": "default", "partial_rotary_factor": 0.5},
    },
  ),
}

# All are compared whole at every run of the tests; these are token by token too, and the others in the long tests.
CORE = ("mistral", "smollm3", "olmo3-yarn", "gemma3-scaled", "qwen3.5")
EACH = pytest.mark.parametrize(
  "case", [name if name in CORE else pytest.param(name, marks=pytest.mark.long) for name in CASES], indirect=True
)


@dataclasses.dataclass(frozen=True)
class PyTorch:
  """A model of transformers, its directory, and its logits at left-padded tokens."""

  directory: pathlib.Path
  model: Any
  logits: np.ndarray


def left_padded():
  tokens = np.random.default_rng(1).integers(1, VOCAB, (3, LENGTH))
  return tokens, np.arange(LENGTH) >= np.array([[0], [5], [30]])


@pytest.fixture(scope="module", params=CASES)
def case(request, pt, tmp_path_factory) -> PyTorch:
  torch, transformers = pt
  family, changes = CASES[request.param]
  directory = tmp_path_factory.mktemp(request.param)
  torch.manual_seed(0)
  about_zero = family in ("Gemma3", "Qwen3_5")
  text = "Text" if about_zero else ""
  model = getattr(transformers, f"{family}ForCausalLM")(
    getattr(transformers, f"{family}{text}Config")(**SIZES | changes)
  )
  with torch.no_grad():
    for name, p in model.named_parameters():
      mean = 1.0 if "norm" in name and (not about_zero or "linear_attn" in name) else 0.0
      p.copy_(torch.randn_like(p) * 0.2 + mean)
  model.eval().save_pretrained(directory)
  # In float64: in fp32 PyTorch itself is up to 1e-4 away from that, where a CPU sums in another order.
  return PyTorch(directory, model, torch_logits(pt, copy.deepcopy(model).double()))


def torch_logits(pt, model) -> np.ndarray:
  torch, _ = pt
  with torch.no_grad():
    return model(**torch_inputs(pt)).logits.numpy()


def torch_inputs(pt):
  torch, _ = pt
  tokens, mask = left_padded()
  positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
  arrays = {"input_ids": tokens, "attention_mask": mask.astype(int), "position_ids": positions}
  return {name: torch.tensor(a) for name, a in arrays.items()}


@functools.partial(jax.jit, static_argnums=1)
def our_logits(params, cfg, tokens, mask):
  return decoder.unembed(params, decoder.hidden(params, cfg, tokens, mask))


def error(cfg, params, case: PyTorch) -> float:
  tokens, mask = left_padded()
  return float(np.max(np.abs(our_logits(params, cfg, tokens, mask) - case.logits)[mask]))


@pytest.mark.few(3)
def test_logits_are_those_of_pytorch(case, record_property):
  cfg = hf_config.read(case.directory)
  found = error(cfg, hf.load(case.directory, cfg), case)
  record_property("error", found)
  assert found < 1e-4
  assert np.std(case.logits) > 0.3  # or agreement to 1e-4 would say little


@pytest.mark.long
@EACH
def test_every_parameter_and_every_trait_is_seen_by_that(case):
  """What could be left out without changing the logits would be compared with nothing."""
  cfg = hf_config.read(case.directory)
  leaves, treedef = jax.tree.flatten_with_path(hf.load(case.directory, cfg))
  arrays = [x for _, x in leaves]
  for i, (path, x) in enumerate(leaves):
    swapped = treedef.unflatten([*arrays[:i], jnp.flip(x, -1), *arrays[i + 1 :]])
    assert error(cfg, swapped, case) > 1e-3, jax.tree_util.keystr(path)
  traits = ["rope_scaling", "query_scalar", "activation", "scaled_embedding", "rotary_width"]
  for trait in traits if cfg.delta else [*traits, "layer_kinds"]:
    default = next(f.default for f in dataclasses.fields(cfg) if f.name == trait)
    if getattr(cfg, trait) != default:
      without = dataclasses.replace(cfg, **{trait: default})
      assert error(without, treedef.unflatten(arrays), case) > 1e-3, trait


@pytest.mark.few(3)
@EACH
def test_gradients_are_those_of_pytorch(case, pt, tmp_path, record_property):
  """PyTorch's are written as the weights of a model, and read as such."""
  torch, _ = pt
  tokens, mask = left_padded()
  cotangent = np.random.default_rng(2).standard_normal(case.logits.shape).astype(np.float32) * mask[..., None]
  model = copy.deepcopy(case.model)
  (model(**torch_inputs(pt)).logits * torch.tensor(cotangent)).sum().backward()
  with torch.no_grad():
    for p in model.parameters():
      p.copy_(p.grad)
  model.save_pretrained(tmp_path)
  cfg = hf_config.read(case.directory)

  def loss(params):
    return jnp.sum(our_logits(params, cfg, tokens, mask) * cotangent)

  found, expected = jax.grad(loss)(hf.load(case.directory, cfg)), hf.load(tmp_path, cfg)
  largest = max(float(np.abs(a).max()) for a in jax.tree.leaves(expected))
  errors = jax.tree.map(lambda a, b: float(np.abs(a - b).max()) / largest, found, expected)
  record_property("error", max(jax.tree.leaves(errors)))
  assert max(jax.tree.leaves(errors)) < 1e-4


@pytest.mark.few(3)
def test_pytorch_loads_the_model_written_from_its_sizes_alone(case, pt, tmp_path):
  _, transformers = pt
  cfg = hf_config.read(case.directory)
  hf.write(tmp_path / "out", cfg, hf.load(case.directory, cfg), pad_id=0, eos_id=1, dtype="float32")
  assert hf_config.read(tmp_path / "out") == cfg
  model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
  assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
  np.testing.assert_allclose(torch_logits(pt, model.eval().double()), case.logits, atol=1e-5)


def rollout_of(case: PyTorch, n: int, temperature: float):
  """A rollout of left-padded prompts: its model, the batch and the result."""
  cfg = hf_config.read(case.directory)
  params = hf.load(case.directory, cfg)
  tokens, mask = (jnp.asarray(a[:, LENGTH - 19 :]) for a in left_padded())
  sampling = sample.Sampling((), 0, VOCAB, temperature=temperature)
  run = jax.jit(functools.partial(sample.rollout, cfg=cfg, sampling=sampling, response_len=NEW, n=n))
  batch = Batch(prompt=tokens, prompt_mask=mask)
  return cfg, params, batch, run(params, batch, jax.random.key(0), jnp.int32(NEW))


@pytest.mark.long
@EACH
def test_greedy_tokens_are_those_of_pytorch(case, pt):
  torch, _ = pt
  _, _, batch, rollout = rollout_of(case, 1, temperature=0.0)
  with torch.no_grad():
    out = case.model.generate(
      torch.tensor(np.asarray(batch.prompt)),
      attention_mask=torch.tensor(np.asarray(batch.prompt_mask)).long(),
      max_new_tokens=NEW,
      do_sample=False,
    )
  np.testing.assert_array_equal(rollout.response, out[:, -NEW:].numpy())


FORMS = {"products": attend_causal, "blocks": functools.partial(blockwise.attend, block=4)}


@pytest.mark.few(3)
@EACH
@pytest.mark.parametrize("n", [1, 2])
def test_log_probabilities_of_a_rollout_are_those_of_the_whole_sequences(case, n):
  cfg, params, batch, rollout = rollout_of(case, n, temperature=1.0)
  for name, attention in FORMS.items():

    def logprob(params, attention=attention):
      x = decoder.response_hidden(
        params, cfg, batch.prompt, batch.prompt_mask, rollout.response, rollout.mask, attention_fn=attention
      )
      every = jax.nn.log_softmax(decoder.unembed(params, x))
      return jnp.take_along_axis(every, rollout.response[..., None], axis=-1)[..., 0]

    np.testing.assert_allclose(rollout.behavior_logprob, jax.jit(logprob)(params), atol=1e-4, err_msg=name)
