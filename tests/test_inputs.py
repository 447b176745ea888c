"""Wrong inputs: one clear sentence, before anything is compiled or written."""

import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys
import types
from collections import namedtuple

import pytest
from absl import flags

from opd_jax import checks, config, inputs
from opd_jax.data import tokenizer
from opd_jax.errors import InputError
from opd_jax.runtime import cli
from opd_jax.trainer import open_run, train
from opd_jax.training import checkpoint
from tests.conftest import PROGRAMS


@pytest.fixture
def refused(small, tmp_path, monkeypatch):
  """Expects a run with these changes to be refused in one sentence, with nothing compiled and nothing written."""

  def nothing(*_, **__):
    raise AssertionError("something was compiled before the input was checked")

  def check(says: str, **changes) -> str:
    method = changes.pop("method", "popd")
    monkeypatch.setattr("jax.stages.Lowered.compile", nothing)
    with pytest.raises(InputError, match=says) as caught:
      open_run(small(method, **changes), tmp_path / "w")
    assert not (tmp_path / "w").exists()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message

  return check


@pytest.fixture
def copy(tiny, tmp_path):
  """A copy of the teacher's or student's directory that a test may break."""

  def make(role: str) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(tiny[role], tmp_path / "broken"))

  return make


def edit(path: pathlib.Path, **keys):
  path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"student": "/no/such/model"}, "no model directory /no/such/model"),
    ({"teacher": "Qwen/Qwen3-8B"}, "hf download Qwen/Qwen3-8B"),
    ({"teacher": "builtin:professor"}, "builtin:professor"),
    ({"horizon.max": 0}, "horizon.max is 0"),
    ({"horizon.start": 0}, "horizon.start is 0"),
    ({"horizon.start": 21}, "horizon.start is 21; .* between 1 and 20"),
    ({"horizon.growth": -3}, "horizon.growth is -3"),
    ({"horizon.max": 600}, "616 positions, but the models have 512"),
    ({"data.path": "task:chess"}, "no built-in task 'chess'"),
    ({"data.path": "missing.jsonl"}, "missing.jsonl"),
    ({"eval.k": 2, "eval.pass_at": (4,)}, "pass@4 was asked for with 2 sample"),
    ({"eval.pass_at": (0,)}, "pass_at holds 0"),
    ({"steps": 0}, "config.steps is 0"),
    ({"batch": -1}, "config.batch is -1"),
    ({"micro_batch": 3}, "has to divide the 4 rows"),
    ({"mesh.tensor": 2}, "does not make 1 device"),
    ({"mesh.data": 0}, "config.mesh"),
    ({"sampling.temperature": 0.0}, "temperature is 0.0"),
    ({"sampling.top_p": 0.0}, "top_p is 0.0"),
    ({"objective.support": "topk"}, "'full', 'student_topk', 'teacher_topk', 'both_topk', 'sampled'"),
    ({"optimizer.kind": "lion"}, "'adamw'"),
    ({"optimizer.lr": 0.0}, "lr is 0.0"),
    ({"data.on_bad_line": "ignore"}, "'refuse', 'skip', 'truncate'"),
    ({"data.verifier": "gsm9k"}, "no verifier 'gsm9k'"),
    ({"allow_mismatch": ("bos",)}, "allow_mismatch holds 'bos'"),
    ({"precision": "fp8"}, "'bfloat16'"),
    ({"optimizer.clip": -1.0}, "optimizer.clip is -1.0"),
    ({"optimizer.b1": 1.5}, "optimizer.b1 is 1.5"),
    ({"eval.pass_at": ("a",)}, "pass_at holds 'a'"),
    ({"eval.max_tokens": 600}, "do not fit the model's 512 positions; lower config.eval.max_tokens"),
    ({"data.max_prompt": 5}, "task:chain:1: the prompt has 9 tokens"),
  ],
)
def test_values_that_cannot_be_meant(changes, says, refused):
  refused(says, **changes)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed(name, refused, monkeypatch):
  found = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, "find_spec", lambda module, *_: None if module == name else found(module))
  refused(f"config.log.{name} is 'project', but {name} is not installed; pip install", **{f"log.{name}": "project"})


def test_truncated_horizon_above_the_maximum(refused):
  refused("horizon.length is 21", method="topd", **{"horizon.ratio": 0.0, "horizon.length": 21})


def test_batch_that_does_not_divide_over_the_devices():
  """The message names batches that would; the mesh itself needs no devices."""
  from opd_jax.runtime.mesh import check_rows

  mesh = types.SimpleNamespace(shape={"data": 4, "fsdp": 2, "expert": 1, "tensor": 1})

  with pytest.raises(InputError, match=r"config\.batch is 12, .* 8 row shards .* 8 or 16 would"):
    check_rows(mesh, 12, "config.batch")  # pyright: ignore[reportArgumentType]
  check_rows(mesh, 16, "config.batch")  # pyright: ignore[reportArgumentType]


def test_half_downloaded_weights(copy, refused):
  broken = copy("teacher")
  weights = broken / "model.safetensors"
  weights.write_bytes(weights.read_bytes()[:-100])
  assert "model.safetensors" in refused("model.safetensors", teacher=str(broken))


def test_unsupported_architecture(copy, refused):
  broken = copy("student")
  edit(broken / "config.json", architectures=["MambaForCausalLM"])
  assert "Qwen3ForCausalLM" in refused("MambaForCausalLM", student=str(broken))


def test_tokenizers_that_differ(copy, refused):
  broken = copy("teacher")
  raw = json.loads((broken / "tokenizer.json").read_text())
  vocab = raw["model"]["vocab"]
  vocab["7"], vocab["8"] = vocab["8"], vocab["7"]
  (broken / "tokenizer.json").write_text(json.dumps(raw))
  message = refused("vocabularies", teacher=str(broken))
  assert "'7' for the student and '8' for the teacher" in message
  assert "allow_mismatch" in message


def test_stop_tokens_that_differ(copy, refused, small, tmp_path):
  broken = copy("teacher")
  edit(broken / "generation_config.json", eos_token_id=[1, 5])
  refused("stop tokens", teacher=str(broken))
  open_run(small(teacher=str(broken), allow_mismatch=("eos",)), tmp_path / "allowed")


def test_each_tokenizer_is_read_once(small, tiny, monkeypatch):
  """It takes most of a second where the vocabulary is large."""
  read, load = [], tokenizer.load
  monkeypatch.setattr(tokenizer, "load", lambda path: (read.append(str(path)), load(path))[1])
  inputs.load(small())
  assert sorted(read) == sorted(tiny.values())


def test_vocabulary_without_room_for_the_tokenizer(tiny, refused, tmp_path):
  """Sizes may differ by padding only: here the teacher has fewer ids than the tokenizer."""
  import dataclasses

  import jax

  from opd_jax.models import decoder, hf, hf_config
  from opd_jax.tasks import chain

  cfg = dataclasses.replace(hf_config.read(pathlib.Path(tiny["teacher"])), vocab=25)
  hf.write(tmp_path / "broken", cfg, decoder.init(cfg, jax.random.key(0)), pad_id=0, eos_id=1)
  chain.TOKENIZER.save(tmp_path / "broken")
  assert "6 token(s) from 'e' (id 25)" in refused(
    "has 25 ids, and the tokenizer needs 31", teacher=str(tmp_path / "broken")
  )


def test_chat_templates_that_differ(copy, refused):
  broken = copy("teacher")
  (broken / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
  refused("chat templates", teacher=str(broken))


@pytest.mark.parametrize(
  ("lines", "says"),
  [
    (['{"prompt": "58+-++x3="}', '{"prompt": '], r"data.jsonl:2: the line is not JSON"),
    (['{"question": "58+-++x3="}'], r"data.jsonl:1: there is no field 'prompt' .*'question'"),
    (['{"prompt": "   "}'], r"data.jsonl:1: .* blank"),
    (['{"prompt": "58+-++x3="}', '{"prompt": "' + "5" * 40 + '"}'], r"data.jsonl:2: the prompt has 40 tokens"),
    ([], "is empty"),
  ],
)
def test_lines_that_cannot_be_used(lines, says, refused, tmp_path):
  path = tmp_path / "data.jsonl"
  path.write_text("".join(line + "\n" for line in lines))
  refused(says, **{"data.path": str(path), "data.max_prompt": 30, "eval.every": 0})


def test_bad_lines_can_be_skipped_with_a_count(small, tmp_path):
  path = tmp_path / "data.jsonl"
  path.write_text('{"prompt": "58+-++x3="}\n{"prompt": 7}\n\n{"prompt": "12+-++x3="}\n')
  changes = {"data.path": str(path), "data.on_bad_line": "skip", "eval.every": 0}
  run = open_run(small(**changes), tmp_path / "w")
  assert len(run.inputs.train.ids) == 2
  assert any("2 unusable line(s)" in w for w in run.inputs.warnings)


def test_evaluation_prompts_that_are_trained_on_are_counted(small, tmp_path):
  train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
  train.write_text('{"prompt": "58+-++x3="}\n{"prompt": "12+-++x3="}\n')
  test.write_text('{"prompt": "58+-++x3=", "answer": "1"}\n{"prompt": "99+-++x3=", "answer": "1"}\n')
  found = inputs.load(small(**{"data.path": str(train), "eval.path": str(test), "eval.every": 1}))
  assert "1 of 2 evaluation prompts stand in the training data too" in found.warnings


def test_long_prompts_can_be_truncated(small, tmp_path):
  path = tmp_path / "data.jsonl"
  path.write_text('{"prompt": "123456789"}\n')
  changes = {"data.path": str(path), "data.on_bad_line": "truncate", "data.max_prompt": 4, "eval.every": 0}
  run = open_run(small(**changes), tmp_path / "w")
  assert run.inputs.tokenizer.decode(run.inputs.train.ids[0]) == "6789"  # pyright: ignore[reportAttributeAccessIssue]


def test_training_on_a_file_needs_something_to_evaluate_on(refused, tmp_path):
  path = tmp_path / "data.jsonl"
  path.write_text('{"prompt": "58+-++x3="}\n')
  refused("eval.path is empty", **{"data.path": str(path)})


@pytest.mark.long
def test_workdir_of_another_config(small, tmp_path):
  open_run(small(), tmp_path / "w")
  open_run(small(), tmp_path / "w")  # nothing was saved, so nothing is owned
  train(small(steps=2, **{"eval.every": 0}), tmp_path / "w", PROGRAMS)
  with pytest.raises(InputError, match=r"belongs to another config: .*horizon.growth: 3 -> 4"):
    open_run(small(**{"horizon.growth": 4, "eval.every": 0}), tmp_path / "w")
  open_run(small(steps=7, **{"checkpoint.keep": 5, "eval.every": 0}), tmp_path / "w")  # these may change


def test_workdir_that_is_a_file(small, tmp_path):
  (tmp_path / "w").write_text("")
  with pytest.raises(InputError, match="is a file"):
    open_run(small(), tmp_path / "w")


def test_no_space_is_seen_before_the_run(refused, monkeypatch):
  usage = namedtuple("usage", "total used free")
  monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 5000, 5000))
  refused("5 KiB free, but the run needs .* KiB for checkpoints .*; free some space")


def test_no_space_during_a_save_is_one_sentence():
  e = RuntimeError("save failed")
  e.__cause__ = OSError(28, "No space left on device")
  assert "No space is left" in str(checkpoint.explain(e, pathlib.Path("w")))
  other = RuntimeError("something else")
  assert checkpoint.explain(other, pathlib.Path("w")) is other


def test_broken_checkpoint_is_named(small, tmp_path):
  train(small("opd", steps=2, **{"eval.every": 0}), tmp_path / "w", PROGRAMS)
  for file in (tmp_path / "w" / "checkpoints" / "2").rglob("*"):
    if file.is_file() and file.stat().st_size > 0:
      file.write_bytes(b"")
  with pytest.raises(InputError, match=r"checkpoint of step 2 .* cannot be read"):
    open_run(small("opd", steps=2, **{"eval.every": 0}), tmp_path / "w")


def parse(*argv):
  return cli.parse(["train", *argv], "usage", lambda values: None, cli.of_method)[1]


def test_overrides_reach_the_config():
  c = parse(
    "--config=configs/topd.py",
    "--config.horizon.ratio=0.25",
    "--config.allow_mismatch=('eos',)",
    "--config.mixture.reward_std",
  )
  assert (c.horizon.kind, c.horizon.ratio, c.allow_mismatch, c.mixture.reward_std) == (
    "truncated",
    0.25,
    ("eos",),
    True,
  )
  assert parse("--config=topd:paper").horizon.max == 15360
  assert parse().horizon.kind == "progressive"


@pytest.mark.parametrize(
  ("argv", "says"),
  [
    (["--config.horizon.strt=5"], "no config key 'horizon.strt'. Did you mean 'horizon.start'"),
    (["--config.optimiser.lr=5"], "Did you mean 'optimizer.lr'"),
    (["--config.steps=many"], "steps"),
    (["--config=configs/pood.py"], "no config file configs/pood.py"),
    (["--config=popd:huge"], "scales are 'cpu', 'hf' and 'paper'"),
    (["--stpes=5"], "stpes"),
    (["steps=5"], "flags are written --NAME=VALUE"),
  ],
)
def test_wrong_command_lines(argv, says):
  with pytest.raises(InputError, match=says):
    parse(*argv)


def test_command_line_answers_with_a_sentence_and_status_2(tmp_path):
  command = [sys.executable, "-m", "opd_jax.train", f"--workdir={tmp_path / 'w'}", "--config.horizon.start=9999"]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 2
  assert done.stderr.startswith("error: config.horizon.start is 9999")
  assert "Traceback" not in done.stderr
  assert not (tmp_path / "w").exists()


def test_faults_of_a_config_file_are_named(tmp_path):
  (tmp_path / "mine.py").write_text(
    "from opd_jax.config import default\ndef get_config():\n  c = default()\n  c.stps = 5\n"
  )
  with pytest.raises(InputError, match=r"mine.py fails: AttributeError: .*stps"):
    config.load(str(tmp_path / "mine.py"))
  (tmp_path / "empty.py").write_text("")
  with pytest.raises(InputError, match=r"empty.py fails: KeyError: 'get_config'"):
    config.load(str(tmp_path / "empty.py"))


@pytest.mark.parametrize("argv", [["--workdir", "{}"], ["--workdir={}"]])
def test_evaluation_reads_the_config_of_the_workdir(argv, small, tmp_path):
  open_run(small(seed=5), tmp_path / "w")
  argv = [a.format(tmp_path / "w") for a in argv]

  def define(values):
    return flags.DEFINE_string("workdir", None, "", flag_values=values)

  values, c = cli.parse(["evaluate", *argv, "--config.eval.k=2"], "", define, cli.of_workdir)
  assert (values.workdir, c.seed, c.eval.k) == (str(tmp_path / "w"), 5, 2)
  with pytest.raises(InputError, match="leave --config out"):
    cli.parse(["evaluate", *argv, "--config=opd"], "", define, cli.of_workdir)


def test_config_refuses_unknown_keys_in_code():
  with pytest.raises(InputError, match="Did you mean"):
    config.override(config.default(), {"horizn.max": 5})
  with pytest.raises(AttributeError):
    config.default().horizn = 5


@pytest.mark.parametrize("method", ["opd", "topd", "popd", "adaptive", "ccopd"])
@pytest.mark.parametrize("scale", ["cpu", "hf", "paper"])
def test_every_config_is_complete(method, scale):
  """Each scale of each method has a horizon that can be meant, and the paper's numbers where it gives them."""
  from opd_jax.horizon import schedule as horizon

  c = config.load(f"{method}:{scale}")
  checks.check(c)
  schedule = horizon.from_config(c.horizon)
  assert schedule.stages(c.steps)
  if scale == "paper" and method == "ccopd":
    assert (c.batch, c.steps, c.horizon.max, c.optimizer.lr, c.lora.rank) == (8, 3000, 4096, 3e-5, 16)
  elif scale == "paper":
    assert (c.batch, c.rollouts_per_prompt, c.horizon.max, c.optimizer.lr) == (64, 4, 15360, 1e-6)
    last = {"opd": 15360, "topd": 1536, "popd": 1152 + 9 * 557, "adaptive": 960}  # before it has seen anything
    assert schedule.limit(557) == last[method]
