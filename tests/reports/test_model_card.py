"""Model cards: what they say of a run, and that no value of a config or a file becomes markup or a path of this machine."""

import dataclasses
import json
import os
import pathlib
import re

import pytest

import opd_jax
from opd_jax import config as configs
from opd_jax.models import hf_config
from opd_jax.models.spec import ModelSpec
from opd_jax.reports import model_card
from opd_jax.reports.model_card import Exported

yaml = pytest.importorskip("yaml")

EVALUATIONS = [
  {"kind": "eval", "step": step, "accuracy": a, "low": a - 0.1, "high": a + 0.1, "prompts": 64, "k": 2}
  for step, a in ((0, 0.25), (4, 0.5), (6, 0.75))
]


@pytest.fixture
def spec(tiny, tmp_path) -> ModelSpec:
  directory = tmp_path / "Some-Model-1B"
  directory.mkdir()
  return ModelSpec(directory, hf_config.read(pathlib.Path(tiny["student"])), (1,), str(directory))


@pytest.fixture
def exported(spec, tmp_path) -> Exported:
  """Of a run on a user's machine, after step 4 of 6."""
  config = configs.override(
    configs.load("topd:hf"),
    {
      "student": str(spec.path),
      "teacher": "/home/me/models/Big-Model-8B",
      "data.path": "/home/me/secret/train.jsonl",
      "steps": 6,
    }
    | {"eval.path": "~/secret/test.jsonl", "data.system": "see /Users/me/notes.txt", "compile_cache": "/scratch/cache"},
  )
  workdir = tmp_path / "runs"
  workdir.mkdir()
  (workdir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in EVALUATIONS))
  (workdir / "run.json").write_text(
    json.dumps({"versions": {"opd_jax": "1.2"}, "commit": "abc", "devices": "8 x TPU v5e"})
  )
  return Exported("my-student", spec, False, config, workdir, 4)


def front_matter(card: str) -> dict:
  assert card.startswith("---\n")
  return yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))


def test_the_front_matter_is_what_the_hub_reads(exported):
  assert front_matter(model_card.text(exported)) == {
    "base_model": "Some-Model-1B",
    "base_model_relation": "finetune",
    "library_name": "transformers",
    "pipeline_tag": "text-generation",
    "tags": ["opd-jax", "on-policy-distillation"],
  }
  found = front_matter(model_card.text(dataclasses.replace(exported, adapter=True)))
  assert (found["library_name"], found["base_model_relation"], found["tags"][-1]) == ("peft", "adapter", "lora")


def test_it_tells_config_data_results_and_versions(exported):
  card = model_card.text(exported)
  assert "`Some-Model-1B`, trained from `Big-Model-8B` with opd_jax" in card
  assert "`truncated` horizon of at most 1024 tokens, step 4 of 6" in card
  assert "| 0 | 0.250 | 0.150 to 0.350 | 64 | 2 |  |\n| 4 | 0.500 | 0.400 to 0.600 | 64 | 2 |  |\n" in card
  assert "0.750" not in card, "of a later step"
  assert "- prompts of training: `train.jsonl`" in card
  assert 'horizon.kind = "truncated"' in card
  for made in ("opd_jax 1.2", "commit abc", "devices 8 x TPU v5e"):
    assert made in card


def test_every_source_of_prompts_is_named(exported):
  several = configs.override(exported.config, {"data.paths": ("/home/me/a.jsonl", "task:chain")})
  card = model_card.text(dataclasses.replace(exported, config=several))
  assert "- prompts of training: `a.jsonl`, `task:chain`" in card
  assert "/home" not in card


def test_no_path_of_the_machine_is_told(exported, tmp_path):
  card = model_card.text(exported)
  for private in ("/home", "/Users", "/root", "/scratch", "~", "secret", str(tmp_path), os.path.expanduser("~/")):
    assert private not in card
  assert 'data.system = "see notes.txt"' in card


def test_a_model_of_the_hubs_cache_has_its_organisation(spec):
  path = spec.path / "models--Qwen--Qwen3-0.6B" / "snapshots" / "0123"
  assert model_card.base_model(dataclasses.replace(spec, path=path)) == "Qwen/Qwen3-0.6B"
  built_in = dataclasses.replace(spec, name="builtin:student")
  assert "base_model" not in front_matter(model_card.text(Exported("x", built_in)))


def test_the_licence_is_the_one_that_the_base_names(exported, spec):
  (spec.path / "README.md").write_text('---\nlicense: "apache-2.0"\n---\nlicense: other\n')
  assert front_matter(model_card.text(exported))["license"] == "apache-2.0"
  (spec.path / "README.md").write_text("license: mit\n")
  assert "license" not in front_matter(model_card.text(exported))


HOSTILE = "x\n---\nlicense: evil\n# <script>alert(1)</script> ```\n[a](javascript:b) `| \ud800"


def test_no_value_becomes_markup(exported, spec):
  own = {"data.system": HOSTILE, "teacher": HOSTILE, "data.path": HOSTILE, "student": HOSTILE}
  (exported.workdir / "run.json").write_text(json.dumps({"versions": {"opd_jax": HOSTILE[:-2], "y": [1]}, "commit": 3}))
  (exported.workdir / "metrics.jsonl").write_text('[]\n{"kind": "eval", "step": "4", "accuracy": "<b>"}\n{"a":\n' * 3)
  hostile = dataclasses.replace(
    exported,
    name=HOSTILE,
    spec=dataclasses.replace(spec, path=spec.path / HOSTILE.replace("/", "").replace("\ud800", "")),
    config=configs.override(exported.config, own),
    model=HOSTILE,
  )
  card = model_card.text(hostile)
  assert front_matter(card).keys() == {"library_name", "pipeline_tag", "tags"}
  fences = re.findall(r"^(`{3,})\w*$", card, re.MULTILINE)
  blocks = re.split(r"^(`{4,})(?:\w*)\n(?:.*?)\n\1$", card, flags=re.MULTILINE | re.DOTALL)[::2]
  assert len(fences) >= 8
  outside = re.sub(r"(?s)(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", "\n".join(blocks))
  assert "<script>" not in outside
  assert not re.search(r"(?<!\\)\[a(?<!\\)\]\(", outside)
  assert len(re.findall(r"^# ", card, re.MULTILINE)) - len(re.findall(r"^# <script", card, re.MULTILINE)) == 1


def test_without_a_workdir_it_says_what_it_knows(spec):
  card = model_card.text(Exported("copy", spec))
  assert "A copy of `Some-Model-1B`, written by opd_jax; it was not trained." in card
  assert "## Results" not in card


@pytest.mark.long
@pytest.mark.parametrize("merge", [True, False])
def test_the_python_of_a_card_loads_the_model(tiny, tmp_path, monkeypatch, merge):
  """In PyTorch, from beside the base."""
  for library in ("torch", "peft"):
    pytest.importorskip(library)
  changes = {
    "student": tiny["student"],
    "teacher": tiny["teacher"],
    "steps": 1,
    "batch": 4,
    "horizon.max": 8,
    "lora.rank": 2,
  }
  changes |= {"eval.every": 0, "compile_cache": "off", "log.tensorboard": False}
  run = opd_jax.train(opd_jax.load_config("opd", changes), tmp_path / "run")
  opd_jax.export(run, tmp_path / "out", merge=merge)
  (tmp_path / "student").symlink_to(tiny["student"])
  monkeypatch.chdir(tmp_path)
  code = re.findall(r"```python\n(.*?)\n```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)[0]
  names: dict = {}
  exec(code, names)
  assert names["model"].generate(**names["tokenizer"]("58+-++x3=", return_tensors="pt"), max_new_tokens=2).shape[0] == 1
