"""The table of chips, topologies by name, and public models."""

import pytest

from opd_jax.errors import InputError
from opd_jax.models import architectures, roofline
from opd_jax.models.roofline import Cost
from opd_jax.planning import chips, topology
from opd_jax.training.specs import architecture


def test_published_numbers_are_in_their_units():
  """FLOPs, bytes and bytes per second of chips between 2020 and 2026, none off by a thousand."""
  assert len({chip.name for chip in chips.CHIPS}) == len(chips.CHIPS) == 8
  for chip in chips.CHIPS:
    assert 1e14 < chip.flops < 5e15
    assert 15e9 < chip.capacity < 300e9
    assert 5e11 < chip.memory < 1e13
    assert chip.memory > chip.link > chip.network > 1e9
    assert chip.source
    assert 100 < chip.flops / chip.memory < 1000, "FLOPs to a byte"


@pytest.mark.parametrize(
  ("kind", "name"),
  [
    ("TPU v5 lite", "v5e"),
    ("TPU v5", "v5p"),
    ("TPU v5p", "v5p"),
    ("TPU v6 lite", "v6e"),
    ("TPU v4", "v4"),
    ("TPU7x", "tpu7x"),
    ("NVIDIA H100 80GB HBM3", "H100"),
    ("NVIDIA H200", "H200"),
    ("NVIDIA A100-SXM4-80GB", "A100"),
  ],
)
def test_a_chip_by_what_jax_calls_it(kind, name):
  found = chips.by_device_kind(kind)
  assert found is not None
  assert found.name == name


def test_an_unknown_chip_is_none():
  assert chips.by_device_kind("cpu") is None
  assert chips.by_name("v99") is None


def test_the_roofline_takes_a_chip():
  chip = chips.by_name("v5e")
  assert chip is not None
  assert roofline.seconds(Cost(197e12), chip) == 1
  assert roofline.seconds(Cost(0, 819e9), chip) == 1
  assert roofline.seconds(Cost(0, 0, 819e9), chip, devices=4) == 0.25


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("v5e", "not written as VERSION:AxB"),
    ("v5e:4*4", "not written as VERSION:AxB"),
    ("v9:4x4", "names the TPU 'v9'"),
  ],
)
def test_a_wrong_name_gets_one_sentence(name, message, monkeypatch):
  monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: name)
  with pytest.raises(InputError, match=message.replace("*", r"\*")):
    topology.get(name)


def test_without_libtpu(monkeypatch):
  monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError, match=r"pip install \"jax\[tpu\]\""):
    topology.get("v5e:4x4")


@pytest.mark.parametrize(
  ("name", "parameters"),
  [  # in billions, as published
    ("Qwen3-0.6B", 0.6),
    ("Qwen3-1.7B", 1.7),
    ("Qwen3-4B", 4.0),
    ("Qwen3-8B", 8.2),
    ("Qwen3-14B", 14.8),
    ("Qwen3-32B", 32.8),
    ("Qwen3-30B-A3B", 30.5),
    ("Qwen3.5-0.8B", 0.752),
    ("Qwen3.5-4B", 4.21),
    ("Qwen3.5-9B", 8.95),
    ("Qwen3.5-27B", 26.9),
    ("Qwen2.5-1.5B", 1.54),
    ("Qwen2.5-7B", 7.62),
    ("Qwen2.5-32B", 32.8),
    ("DeepSeek-R1-Distill-Qwen-1.5B", 1.78),
    ("JustRL-DeepSeek-1.5B", 1.78),
    ("Llama-3.1-8B", 8.03),
    ("Llama-3.2-1B", 1.24),
  ],
)
def test_public_models_have_the_published_number_of_parameters(name, parameters):
  assert roofline.parameter_count(architecture(name)) / 1e9 == pytest.approx(parameters, rel=0.03)


def test_every_public_model_is_in_the_test_above():
  assert len(architectures.MODELS) == 18


def test_a_public_model_by_its_names():
  assert architecture("Qwen/Qwen3-8B") == architecture("qwen3-8b") == architecture("Qwen3-8B")
  assert architecture("Qwen/Qwen2.5-7B-Instruct") == architecture("Qwen2.5-7B")
  assert architectures.config("Qwen3-9B") is None
