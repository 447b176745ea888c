"""Models whose layers differ from each other go through a whole run: rollouts, updates, evaluation, resume, plan and export."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from opd_jax import plan, trainer
from opd_jax.config import override
from opd_jax.models import decoder, hf, hf_config
from opd_jax.tasks import chain
from tests.conftest import HYBRID, STUDENT
from tests.helpers.runs import leaves, read
from tests.test_plan import SMALL

KIND = decoder.LayerKind
MODELS = {
  "Olmo3ForCausalLM": {"whole_qk_norm": True, "norms": "after", "layer_kinds": (KIND(6), KIND())},
  "Gemma3ForCausalLM": {
    "norms": "both",
    "zero_centred_norms": True,
    "activation": "gelu_pytorch_tanh",
    "scaled_embedding": True,
    "query_scalar": 5,
    "layer_kinds": (KIND(6, theta=300.0), KIND()),
  },
  "SmolLM3ForCausalLM": {"qk_norm": False, "layer_kinds": (KIND(), KIND(rotary=False))},
  "Qwen3_5ForCausalLM": {
    field.name: getattr(HYBRID, field.name)
    for field in dataclasses.fields(HYBRID)
    if getattr(HYBRID, field.name) != getattr(STUDENT, field.name)
  },
}
RUNS = {
  "Olmo3ForCausalLM": {"rollouts_per_prompt": 2},
  "Gemma3ForCausalLM": {"lora.rank": 2},
  "SmolLM3ForCausalLM": {"teacher_precision": "int8"},
  "Qwen3_5ForCausalLM": {"rollouts_per_prompt": 2},
}


@pytest.fixture
def models(request, tmp_path):
  """Directories of a student and a teacher of this architecture, of random weights that read the built-in task."""
  cfg = dataclasses.replace(STUDENT, vocab=len(chain.SYMBOLS), **MODELS[request.param])
  for i, role in enumerate(("student", "teacher")):
    params = decoder.init(cfg, jax.random.key(i), scale=0.3)
    hf.write(tmp_path / role, cfg, params, pad_id=0, eos_id=1, dtype="float32")
    chain.TOKENIZER.save(tmp_path / role)
    assert json.loads((tmp_path / role / "config.json").read_text())["architectures"] == [request.param]
  return request.param, {role: str(tmp_path / role) for role in ("student", "teacher")}


@pytest.mark.long
@pytest.mark.parametrize("models", MODELS, indirect=True)
def test_a_run_resumes_to_the_same_numbers_and_its_student_is_exported(models, small, tmp_path):
  name, directories = models
  config = small("opd", **directories, **{"steps": 4, "optimizer.lr": 3e-3}, **RUNS[name])
  whole = trainer.train(config, tmp_path / "whole")
  trainer.train(override(config, {"steps": 2}), tmp_path / "half")
  resumed = trainer.train(config, tmp_path / "half")
  for a, b in zip(leaves(whole.state), leaves(resumed.state), strict=True):
    np.testing.assert_array_equal(a, b)
  losses = [line["loss"] for line in read(tmp_path / "whole", "train")]
  assert np.isfinite(losses).all()
  assert losses[0] > 0
  merge = ["--merge"] if "lora.rank" in RUNS[name] else []
  arguments = ["--workdir", tmp_path / "whole", "--out", tmp_path / "exported", "--dtype=float32", *merge]
  done = subprocess.run([sys.executable, "-m", "opd_jax.export", *map(str, arguments)], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  student = pathlib.Path(directories["student"])
  assert hf_config.read(tmp_path / "exported") == hf_config.read(student)
  learned = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), hf.load(tmp_path / "exported"), hf.load(student))
  assert learned["layers"]["q"] > 0


@pytest.mark.long
@pytest.mark.parametrize("models", MODELS, indirect=True)
def test_a_plan_counts_such_a_model(models, tmp_path):
  name, directories = models
  roles = [f"--{role}={path}" for role, path in directories.items()]
  assert plan.main([*SMALL, *roles, "--stages=first", f"--out={tmp_path / 'plan'}"]) == 0
  found = json.loads((tmp_path / "plan" / "plan.json").read_text())
  assert name in MODELS
  assert "layer_kinds" in json.dumps(found)
