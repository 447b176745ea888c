"""`python -m opd_jax.train --dry-run`: what it shows, that it refuses what training refuses, and that it writes nothing."""

import dataclasses
import importlib
import json
import math

import jax
import numpy as np
import pytest
from tokenizers import decoders

from opd_jax import config as configs
from opd_jax import inputs
from opd_jax.errors import InputError
from opd_jax.models import decoder, hf, vision
from opd_jax.planning import dry_run
from opd_jax.runtime import cli, startup_summary
from tests.conftest import STUDENT
from tests.helpers import chat_tokenizers, conversation_runs, masked_models, seeing_models, seeing_runs

TEMPLATE = (  # with a system message of its own where there is none, as Qwen2.5's
  "{% if messages[0].role != 'system' %}<system>Be brief.</system>\n{% endif %}"
  "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}<assistant>"
)


@pytest.fixture(scope="module")
def chatting(tmp_path_factory) -> str:
  """A model directory with a chat template."""
  path = tmp_path_factory.mktemp("models") / "chatting"
  cfg = dataclasses.replace(STUDENT, vocab=128, layers=1)
  hf.write(path, cfg, decoder.init(cfg, jax.random.key(0)), pad_id=0, eos_id=126, dtype="float32")
  tokenizer = chat_tokenizers.tokenizer(TEMPLATE)
  tokenizer.backend_tokenizer.decoder = decoders.Fuse()  # characters without spaces between them
  tokenizer.save_pretrained(path)
  return str(path)


@pytest.fixture
def config(chatting, small, tmp_path):
  rows = [{"prompt": f"{i} + {i} = ?" + "?" * i, "answer": f"#### {2 * i}"} for i in range(8)]
  (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  changes = {"data.path": str(tmp_path / "train.jsonl"), "eval.every": 0, "data.max_prompt": 80}
  return configs.override(small("popd"), changes | {"student": chatting, "teacher": chatting})


def test_a_prompt_is_shown_with_what_the_template_adds(config):
  found = list(dry_run.lines(config))
  assert found.count("  |<system>Be brief.</system>|") == dry_run.PROMPTS
  assert sum(line.startswith("  |<user>") and " = ?" in line for line in found) == dry_run.PROMPTS
  first = inputs.load(config)
  prompts = first.prompts(np.arange(config.batch))
  next(prompts)
  text = first.tokenizer.decode(first.train.ids[prompts.index[0]])
  assert [f"  |{line}|" for line in text.split("\n")] == found[2:5]


def test_lengths_stages_programs_and_memory_are_told(config):
  found = list(dry_run.lines(config))
  (lengths,) = (line for line in found if line.startswith("training: "))
  ids = sorted(map(len, inputs.load(config).train.ids))
  assert f"8 prompts of {ids[0]} / {(ids[3] + ids[4]) / 2:g} / {ids[-1]} tokens" in lengths
  assert "progressive horizon, 6 steps" in found
  assert sum(line.startswith("  stage ") for line in found) == 3
  (programs,) = (line for line in found if line.startswith("programs: "))
  assert "at most 3 shape(s)" in programs
  (memory,) = (line for line in found if line.startswith("memory "))
  assert all(part in memory for part in ("parameters", "optimizer", "frozen models", "cache of the widest rollout"))


def test_a_rollout_that_denoises_has_a_cache_where_it_is_asked_for(tmp_path):
  """Of keys and values, 4 bytes each, at the prompt's and 16 other positions of 512 rows: 2 heads of 8 in one layer."""
  directory = masked_models.write(tmp_path / "model")
  for cached, listed in ((False, False), (True, True)):
    c = masked_models.small(directory, **{"denoising.cache": cached, "batch": 256})
    found = list(dry_run.lines(c))
    (memory,) = (line for line in found if line.startswith("memory "))
    assert ("cache of the widest rollout" in memory) == listed
    (programs,) = (line for line in found if line.startswith("programs: "))
    assert programs.endswith(" + 8")
    assert "; prompt + denoising steps: " in programs
  prompt = inputs.load(c).prompt_widths[-1]
  size = 512 * (prompt + 16) * 2 * 2 * 8 * 4 / jax.device_count()
  assert f"cache of the widest rollout {size / 2**20:.1f} MiB" in memory


def test_programs_and_towers_that_encode_images_are_told(tmp_path):
  """Whole images of 60 patches and crops of 64; the evaluation's whole images have a tower of their own."""
  model, scenes = seeing_models.write_small(tmp_path / "model"), seeing_models.write_scenes(tmp_path / "scenes")
  changes = {"eval.every": 3, "eval.path": str(scenes), "eval.prompts": 5, "eval.max_tokens": 4}
  loaded = inputs.load(seeing_runs.crop_config(model, scenes, **changes))
  found = list(dry_run.lines(loaded.config, loaded))
  (programs,) = (line for line in found if line.startswith("programs: "))
  assert "1 shape(s) of a step, and 1 program for evaluation, and 2 to encode images; " in programs
  tower = sum(
    map(math.prod, jax.tree.leaves(vision.shapes(loaded.encoders[0].cfg), is_leaf=lambda x: isinstance(x, tuple)))
  )
  (memory,) = (line for line in found if line.startswith("memory "))
  assert f"frozen vision towers {2 * 4 * tower / 2**20:.1f} MiB" in memory


def test_prompts_that_are_cut_and_left_out_are_counted(config):
  longest = max(map(len, inputs.load(config).train.ids))
  cut = configs.override(config, {"data.max_prompt": longest - 2, "data.on_bad_line": "truncate"})
  found = "\n".join(dry_run.lines(cut))
  assert "2 of 8 prompts" in found
  assert f"3 as long as data.max_prompt={longest - 2}" in found
  left_out = configs.override(config, {"data.max_prompt": longest - 2, "data.on_bad_line": "skip"})
  assert any(line.startswith("training: 6 prompts") and "2 left out" in line for line in dry_run.lines(left_out))


def test_teachers_and_student_of_a_conversation_are_shown_apart(tmp_path):
  config = conversation_runs.small(conversation_runs.write_talker(tmp_path / "talker"))
  found = list(dry_run.lines(config))
  heads = [line for line in found if line.startswith("training, ")]
  assert sum("what the teachers read" in head for head in heads) == dry_run.PROMPTS
  assert sum("what the student reads" in head for head in heads) == dry_run.PROMPTS


def test_contexts_that_are_made_of_rollouts_are_shown(config, chatting):
  changes = {"data.path": config.data.path, "data.max_prompt": 80, "eval.every": 0, "batch": 4, "horizon.max": 8}
  changes |= {"student": chatting, "teacher": "initial", "teacher_update.kind": "ema", "context.kind": "feedback"}
  changes |= {
    "codistillation.peer": chatting,
    "context.max_tokens": 400,
    "comment.max_tokens": 8,
    "context.feedback": "always",
  }
  changes |= {
    "rollouts_per_prompt": 2,
    "comment.template": "{prompt} Judge {response}",
    "context.template": "{prompt}{solution}{feedback}",
  }
  found = list(dry_run.lines(configs.override(configs.default("codistillation"), changes)))
  heads = [line for line in found if line.startswith("training, ")]
  assert sum("(what the student reads)" in head for head in heads) == dry_run.PROMPTS
  assert sum("in the place of a right response and feedback" in head for head in heads) == dry_run.PROMPTS
  assert sum("what a tutor reads" in head for head in heads) == dry_run.PROMPTS
  assert sum("A correct solution:" in line for line in found) == dry_run.PROMPTS
  assert sum(" Judge " in line for line in found) == dry_run.PROMPTS


def run(config, *arguments: str) -> int:
  train = importlib.import_module("opd_jax.train")  # the package's own `train` is the function
  values, _ = cli.parse(["train", "--dry-run", *arguments], "", train.define, cli.of_method)
  return train.run(values, config)


def test_the_command_writes_nothing(config, tmp_path, capsys):
  before = sorted(tmp_path.rglob("*"))
  assert run(config) == 0
  assert run(config, f"--workdir={tmp_path / 'new'}") == 0
  assert sorted(tmp_path.rglob("*")) == before
  assert capsys.readouterr().out.count("dry run: nothing is trained") == 2


def test_the_command_refuses_what_training_refuses(config, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="is a file"):
    run(config, f"--workdir={tmp_path / 'file'}")
  with pytest.raises(InputError, match=r"more than data\.max_prompt=3"):
    run(configs.override(config, {"data.max_prompt": 3}))


def test_the_start_of_a_run_quotes_a_prompt(config):
  loaded = inputs.load(config)
  line = startup_summary.prompt_line(loaded)
  assert f"({len(loaded.train.ids[0])} tokens)" in line
  assert repr(loaded.tokenizer.decode(loaded.train.ids[0])) in line
  long = dataclasses.replace(loaded, train=dataclasses.replace(loaded.train, ids=[loaded.train.ids[0] * 100]))
  shown = startup_summary.prompt_line(long)
  assert " ... " in shown
  assert len(shown) < 2 * startup_summary.PROMPT
