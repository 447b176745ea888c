"""Low-rank adapters: what they compute, what they train, and how they lie on disk."""

import dataclasses
import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.errors import InputError
from opd_jax.models import decoder, hf, lora
from opd_jax.rollout import sample
from tests.conftest import STUDENT

MATRICES = tuple(name for name in lora.INPUTS if name in decoder.shapes(STUDENT)["layers"])
LORA = lora.Lora(rank=3, alpha=6.0, targets=MATRICES)
CFG = dataclasses.replace(STUDENT, adapter_scale=LORA.scale)


@pytest.fixture(scope="module")
def adapter():
  """An adapter both of whose factors are away from zero."""
  new = lora.init(STUDENT, LORA, jax.random.key(5))
  keys = iter(jax.random.split(jax.random.key(6), 64))
  return jax.tree.map(lambda a: a + 0.1 * jax.random.normal(next(keys), a.shape), new)


def logits(params, cfg, tokens):
  return decoder.unembed(params, decoder.hidden(params, cfg, tokens, jnp.ones_like(tokens, bool)))


TOKENS = jax.random.randint(jax.random.key(7), (2, 9), 0, STUDENT.vocab)


def test_a_new_adapter_changes_nothing(student):
  new = lora.init(STUDENT, LORA, jax.random.key(0))
  joined = logits(lora.join(student, new), CFG, TOKENS)
  np.testing.assert_array_equal(joined, logits(student, STUDENT, TOKENS))
  bound = max(float(jnp.abs(new["layers"][f"{name}_a"]).max()) for name in LORA.targets)
  assert 0 < bound <= 1 / 4, "uniform in +-1/sqrt(16), the fewest inputs of this model"


def test_joined_is_merged_is_the_formula(student, adapter):
  joined, merged = lora.join(student, adapter), lora.merge(lora.join(student, adapter), LORA.scale)
  assert jax.tree.structure(merged) == jax.tree.structure(student)
  for name in MATRICES:
    a, b = (np.asarray(adapter["layers"][f"{name}_{end}"], np.float64) for end in "ab")
    change = np.stack([np.tensordot(x, y, axes=1) for x, y in zip(a, b, strict=True)])
    assert a.ndim == lora.INPUTS[name] + 2
    expected = np.asarray(student["layers"][name], np.float64) + 6.0 / 3 * change
    np.testing.assert_allclose(merged["layers"][name], expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(logits(joined, CFG, TOKENS), logits(merged, STUDENT, TOKENS), rtol=1e-4, atol=1e-4)
  assert float(jnp.abs(logits(joined, CFG, TOKENS) - logits(student, STUDENT, TOKENS)).max()) > 0.1


@pytest.mark.long
def test_the_rollout_is_that_of_the_merged_model(student, adapter, prompts):
  """Its probabilities are those that teacher forcing through the adapter gives."""
  options = {"sampling": sample.Sampling((1,), 0, STUDENT.vocab), "response_len": 8}

  @functools.partial(jax.jit, static_argnums=1)
  def roll_out(params, cfg):
    return sample.rollout(params, prompts, jax.random.key(3), jnp.int32(8), cfg=cfg, **options)

  joined, merged = lora.join(student, adapter), lora.merge(lora.join(student, adapter), LORA.scale)
  rollout = roll_out(joined, CFG)
  np.testing.assert_array_equal(rollout.response, roll_out(merged, STUDENT).response)
  sequence = (prompts.prompt, prompts.prompt_mask, rollout.response, rollout.mask)
  predicted = jax.nn.log_softmax(decoder.unembed(joined, decoder.response_hidden(joined, CFG, *sequence)))
  forced = jnp.take_along_axis(predicted, rollout.response[..., None], axis=-1)[..., 0]
  np.testing.assert_allclose(jnp.where(rollout.mask, forced, 0), rollout.behavior_logprob, rtol=1e-4, atol=1e-4)


def test_a_matrix_that_the_model_lacks_is_refused():
  with pytest.raises(InputError, match=r"lora\.targets names 'router'"):
    lora.shapes(STUDENT, dataclasses.replace(LORA, targets=("q", "router")))


def test_a_directory_comes_back_as_it_was(adapter, tmp_path):
  some = dataclasses.replace(LORA, targets=("q", "o", "down"), rank_stabilised=True)
  part = {"layers": {n: a for n, a in adapter["layers"].items() if n[:-2] in some.targets}}
  lora.write(tmp_path, STUDENT, some, part, "BASE")
  assert lora.read_config(tmp_path) == some
  assert some.scale == pytest.approx(6 / 3**0.5)
  jax.tree.map(np.testing.assert_array_equal, lora.load(tmp_path, STUDENT, some), part)


@pytest.mark.parametrize(
  ("change", "why"),
  [
    ({"peft_type": "IA3"}, "only 'LORA'"),
    ({"use_dora": True}, "use_dora"),
    ({"bias": "all"}, "bias"),
    ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
    ({"target_modules": "all-linear"}, "target_modules"),
    ({"target_modules": ["c_attn"]}, "target_modules"),
    ({"r": "many"}, "have to be numbers above 0"),
    ({"r": 0}, "have to be numbers above 0.*they are 0 and"),
    ({"r": 2.5}, "and r a whole one"),
    ({"r": True}, "and r a whole one"),
    ({"r": 1e400}, "have to be numbers above 0"),
    ({"lora_alpha": 0}, "have to be numbers above 0"),
    ({"lora_alpha": None}, "have to be numbers above 0"),
    ({"lora_alpha": 1e400}, "have to be numbers above 0"),
    ({"use_rslora": "yes"}, "use_rslora"),
    ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"kasa_config": {"beta": 1.0}}, "kasa_config"),
    ({"a_switch_of_a_later_peft": True}, "a_switch_of_a_later_peft"),
    ({"init_lora_weights": "lora_ga"}, "changes the base model too"),
    ({"init_lora_weights": "pissa_niter_4"}, "changes the base model too"),
    ({"init_lora_weights": "pissa_" + "x" * 5000}, "init_lora_weights"),
    ({"target_modules": r".*\.q_proj"}, "target_modules"),
    ({"target_modules": [{}]}, "target_modules"),
    ({"target_modules": [["q_proj"]]}, "target_modules"),
  ],
)
def test_what_would_not_be_followed_is_refused(change, why, adapter, tmp_path):
  lora.write(tmp_path, STUDENT, LORA, adapter, "BASE")
  file = tmp_path / lora.CONFIG
  file.write_text(json.dumps(json.loads(file.read_text()) | change))
  with pytest.raises(InputError, match=why):
    lora.read_config(tmp_path)


def test_an_adapters_directory_has_the_tokenizer_and_the_licence_of_its_base(adapter, tmp_path):
  (tmp_path / "base").mkdir()
  for name in ("tokenizer.json", "chat_template.jinja", "LICENSE", "config.json", "README.md"):
    (tmp_path / "base" / name).write_text(name)
  lora.write(tmp_path / "out", STUDENT, LORA, adapter, "BASE", tmp_path / "base")
  copied = {path.name for path in (tmp_path / "out").iterdir()}
  assert copied == {lora.CONFIG, lora.WEIGHTS, "tokenizer.json", "chat_template.jinja", "LICENSE"}


def test_weights_that_are_not_safetensors_are_named(adapter, tmp_path):
  lora.write(tmp_path, STUDENT, LORA, adapter, "BASE")
  (tmp_path / lora.WEIGHTS).rename(tmp_path / "adapter_model.bin")
  with pytest.raises(InputError, match=r"only adapter_model\.bin, which is not read"):
    lora.load(tmp_path, STUDENT, LORA)


def test_weights_of_another_model_are_refused(adapter, tmp_path):
  lora.write(tmp_path, STUDENT, LORA, adapter, "BASE")
  with pytest.raises(InputError, match="different models"):
    lora.load(tmp_path, dataclasses.replace(STUDENT, d_model=32), LORA)
  with pytest.raises(InputError, match="which adapter_config"):
    lora.load(tmp_path, dataclasses.replace(STUDENT, layers=3), LORA)
  with pytest.raises(InputError, match="does not name"):
    lora.load(tmp_path, STUDENT, dataclasses.replace(LORA, targets=("q",)))
  (tmp_path / lora.WEIGHTS).unlink()
  with pytest.raises(InputError, match="has no adapter_model"):
    lora.load(tmp_path, STUDENT, LORA)


needs_peft = pytest.mark.skipif(
  not (importlib.util.find_spec("peft") and importlib.util.find_spec("torch")), reason="needs PyTorch and peft"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory, student):
  path = tmp_path_factory.mktemp("base")
  hf.write(path / "base", STUDENT, student, pad_id=0, eos_id=1, dtype="float32")
  return path / "base"


@needs_peft
def test_peft_reads_ours_and_computes_the_same(base, student, adapter, tmp_path):
  import torch
  from peft import PeftModel
  from transformers import AutoModelForCausalLM

  lora.write(tmp_path, STUDENT, LORA, adapter, str(base))
  model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base).float(), tmp_path)  # pyright: ignore[reportArgumentType]
  with torch.no_grad():
    expected = model(torch.tensor(np.asarray(TOKENS)).long()).logits.numpy()
  np.testing.assert_allclose(logits(lora.join(student, adapter), CFG, TOKENS), expected, rtol=1e-4, atol=2e-4)


@needs_peft
def test_what_peft_writes_of_itself_is_known():
  """A new key of PEFT's is either off by default or in one of the lists."""
  from peft import LoraConfig

  raw = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM").to_dict()
  on = {key for key, value in raw.items() if value not in (None, False, "none", [], {}, "")}
  assert on - lora.FOLLOWED - lora.WITHOUT_EFFECT == set()


@needs_peft
def test_ours_reads_pefts_and_computes_the_same(base, student, tmp_path):
  import torch
  from peft import LoraConfig, get_peft_model
  from transformers import AutoModelForCausalLM

  torch.manual_seed(0)
  peft_config = LoraConfig(
    r=4, lora_alpha=10, lora_dropout=0.05, use_rslora=True, target_modules=["v_proj", "up_proj"], task_type="CAUSAL_LM"
  )
  model = get_peft_model(AutoModelForCausalLM.from_pretrained(base).float(), peft_config)  # pyright: ignore[reportArgumentType]
  for name, weight in model.named_parameters():
    if "lora_B" in name:
      torch.nn.init.normal_(weight, std=0.1)
  model.save_pretrained(str(tmp_path))
  model.eval()
  read = lora.read_config(tmp_path)
  assert (read.rank, read.alpha, set(read.targets), read.rank_stabilised) == (4, 10, {"v", "up"}, True)
  cfg = dataclasses.replace(STUDENT, adapter_scale=read.scale)
  found = logits(lora.join(student, lora.load(tmp_path, STUDENT, read)), cfg, TOKENS)
  with torch.no_grad():
    expected = model(torch.tensor(np.asarray(TOKENS)).long()).logits.numpy()
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-4)


def test_an_adapter_that_is_not_finite_is_neither_written_nor_loaded(adapter, tmp_path):
  from safetensors.numpy import load_file, save_file

  broken = jax.tree.map(lambda a: a.at[(0,) * a.ndim].set(jnp.nan), adapter)
  with pytest.raises(InputError, match="has a NaN or Inf, so nothing is written"):
    lora.write(tmp_path / "out", STUDENT, LORA, broken, "BASE")
  assert not (tmp_path / "out").exists()
  lora.write(tmp_path / "in", STUDENT, LORA, adapter, "BASE")
  file = tmp_path / "in" / lora.WEIGHTS
  tensors = load_file(file)
  next(iter(tensors.values()))[0] = np.inf
  save_file(tensors, file)
  with pytest.raises(InputError, match="has a NaN or Inf in the adapter of"):
    lora.load(tmp_path / "in", STUDENT, LORA)


def test_damaged_weights_are_refused_before_anything_is_written(adapter, tmp_path, tiny):
  """As the student of a config is found, and not where its run has been opened."""
  from opd_jax import config as configs
  from opd_jax import inputs

  lora.write(tmp_path, STUDENT, LORA, adapter, "BASE")
  with pytest.raises(InputError, match=r"adapter_model\.safetensors"):
    inputs.learner(configs.override(configs.load("opd"), {"student": tiny["student"], "lora.path": str(tmp_path)}))
