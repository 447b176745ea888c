"""Real input, end to end: GSM8K as JSONL, a byte-level BPE tokenizer, Qwen3 directories as transformers writes them.

Random weights, so nothing is learned; what is shown is that the path from files to an exported model holds.
Without the GSM8K file a few problems of the same form take its place; without PyTorch the directories are written by
opd_jax itself.
"""

import contextlib
import functools
import importlib
import importlib.util
import io
import json
import pathlib
import subprocess
import sys

import jax
import pytest

from opd_jax.data import branched
from opd_jax.models import decoder, hf, hf_config
from opd_jax.recipes.opd import OPD
from opd_jax.rollout.branch import Branches
from opd_jax.runtime import cli
from tests.helpers import own_verifiers
from tests.helpers.runs import read, without_time
from tests.rollout.test_endpoint import Server

pytestmark = pytest.mark.usefixtures("shared_programs")
train, evaluate, export, report = (  # the commands, not the functions
  importlib.import_module(f"opd_jax.{name}") for name in ("train", "evaluate", "export", "report")
)
CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
GSM8K = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k" / "train.jsonl"
TEMPLATE = (
  "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {"student": (32, 2), "teacher": (48, 3)}  # width, layers


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """train.jsonl, test.jsonl and the two model directories."""
  root = tmp_path_factory.mktemp("gsm8k")
  if GSM8K.exists():
    lines = GSM8K.read_text(encoding="utf-8").splitlines()[:60]
  else:
    problem = "Tom has {a} apples, each worth ${b}. He sells all but {a}. What is {a} times {b}?"
    lines = [
      json.dumps({"question": problem.format(a=a, b=a + 3), "answer": f"{a}*{a + 3}\n#### {a * (a + 3)}"})
      for a in range(60)
    ]
  (root / "train.jsonl").write_text("\n".join(lines[:48]), encoding="utf-8")
  (root / "test.jsonl").write_text("\n".join(lines[48:]), encoding="utf-8")
  tokenizer = bpe([json.loads(line)["question"] for line in lines])
  for role, (width, layers) in SIZES.items():
    write_model(root / role, width, layers, len(tokenizer))
    tokenizer.save_pretrained(root / role)
  return root


def bpe(texts):
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
  from transformers import PreTrainedTokenizerFast

  raw = Tokenizer(models.BPE())
  raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  raw.decoder = decoders.ByteLevel()
  special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  raw.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet))
  return PreTrainedTokenizerFast(
    tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE, padding_side="left"
  )


def write_model(path, width, layers, vocab):
  """A random Qwen3 whose embedding is padded beyond the tokenizer; the teacher's is padded further."""
  padded = -(-vocab // 64) * 64 + (64 if layers == 3 else 0)
  if importlib.util.find_spec("torch"):
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(layers)
    cfg = Qwen3Config(
      vocab_size=padded, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, head_dim=16,
      num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=layers == 2,
      eos_token_id=2, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    model = Qwen3ForCausalLM(cfg)
    model.generation_config = GenerationConfig(eos_token_id=[2, 0], pad_token_id=0)
    model.save_pretrained(path)
  else:
    cfg = decoder.DecoderConfig(
      padded, width, layers, heads=4, kv_heads=2, head_width=16, ff_width=2 * width, qk_norm=True, max_positions=2048
    )
    hf.write(path, cfg, decoder.init(cfg, jax.random.key(layers), 0.2), pad_id=0, eos_id=2, dtype="float32")


def command(module, *args):
  """What the command prints, in a process of its own."""
  done = subprocess.run([sys.executable, "-m", f"opd_jax.{module}", *args], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  return done.stdout + done.stderr


def call(module, *args):
  """What the command prints, in this process."""
  printed = io.StringIO()
  source = cli.of_method if module is train else cli.of_workdir
  with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
    module.run(*cli.parse([module.__name__, *args], "", module.define, source))
  return printed.getvalue()


def settings(root, steps):
  return [
    "--config=configs/topd.py:hf",
    f"--workdir={root / 'run'}",
    f"--config.student={root / 'student'}",
    f"--config.teacher={root / 'teacher'}",
    f"--config.data.path={root / 'train.jsonl'}",
    "--config.data.prompt_field=question",
    f"--config.eval.path={root / 'test.jsonl'}",
    f"--config.steps={steps}",
    "--config.batch=2",
    "--config.rollouts_per_prompt=2",
    "--config.horizon.max=80",
    "--config.eval.every=3",
    "--config.eval.prompts=4",
    "--config.eval.k=2",
    "--config.eval.pass_at=(1, 2)",
    "--config.checkpoint.every=2",
    "--config.log.tensorboard=False",
    "--config.compile_cache=off",
  ]


def test_train_resume_evaluate_export(root):
  printed = call(train, *settings(root, 3))
  assert "vocabulary sizes differ" in printed
  records = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
  steps = [r for r in records if r["kind"] == "train"]
  assert [r["limit"] for r in steps] == [8, 8, 8]
  assert all(r["kl"] > 0 and r["response_length"] <= 8 for r in steps)
  evaluations = [r for r in records if r["kind"] == "eval"]
  assert [r["step"] for r in evaluations] == [0, 3]
  assert evaluations[0]["length"]["max"] > 8, "an evaluation is not cut by the horizon"
  assert set(evaluations[0]["pass"]) == {"1", "2"}

  assert "resumed after step 3" in call(train, *settings(root, 4))
  printed = call(evaluate, f"--workdir={root / 'run'}", "--config.eval.k=4", "--config.eval.pass_at=(1, 4)")
  assert "pass@4" in printed
  assert json.loads((root / "run" / "evaluation.json").read_text())["k"] == 4

  call(export, f"--workdir={root / 'run'}", f"--out={root / 'out'}", "--dtype=float32")
  start, end = (hf.load(root / name, dtype=jax.numpy.float32) for name in ("student", "out"))
  assert any((a != b).any() for a, b in zip(jax.tree.leaves(start), jax.tree.leaves(end), strict=True))
  printed = call(
    evaluate, f"--model={root / 'out'}", "--config=configs/opd.py:hf", f"--config.eval.path={root / 'test.jsonl'}",
    "--config.data.prompt_field=question", "--config.horizon.max=16",
    "--config.eval.prompts=2", "--config.compile_cache=off",
  )  # fmt: skip
  assert "avg@1" in printed


@pytest.mark.long
def test_a_student_with_layers_of_the_gated_delta_rule(root, tmp_path):
  """Qwen3.5 in its form of a model that sees images, whose other tensors an export still has, learns from a Qwen3."""
  torch = pytest.importorskip("torch", reason="the directory is transformers' own")
  from transformers import AutoTokenizer, GenerationConfig, Qwen3_5Config, Qwen3_5ForConditionalGeneration
  from transformers.utils import logging

  logging.disable_progress_bar()
  tokenizer = AutoTokenizer.from_pretrained(root / "student")
  text = {
    "vocab_size": -(-len(tokenizer) // 64) * 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25, "mrope_section": [1, 1, 0]},
  }  # fmt: skip
  vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": 32}
  torch.manual_seed(0)
  model = Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=vision))
  model.generation_config = GenerationConfig(eos_token_id=[2, 0], pad_token_id=0)
  model.save_pretrained(tmp_path / "qwen3.5")
  tokenizer.save_pretrained(tmp_path / "qwen3.5")
  own = [f"--workdir={tmp_path / 'run'}", f"--config.student={tmp_path / 'qwen3.5'}"]
  call(train, *settings(root, 3), *own)
  assert "resumed after step 3" in call(train, *settings(root, 4), *own)
  assert "avg@2" in call(evaluate, f"--workdir={tmp_path / 'run'}", "--config.eval.prompts=2")
  call(export, f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}", "--dtype=float32")
  exported = Qwen3_5ForConditionalGeneration.from_pretrained(tmp_path / "out")
  before, after = model.state_dict(), exported.state_dict()
  same = {name for name in before if torch.equal(before[name], after[name])}
  assert {name for name in before if "visual" in name} <= same
  assert not {name for name in before if "in_proj_qkv" in name or "q_proj" in name} & same


@pytest.mark.long
def test_a_masked_diffusion_model_through_an_adapter_resumed_evaluated_and_exported(root, tmp_path):
  """LLaDA with a chat template, which learns from all of its answers, since random weights have no right one."""
  from transformers import AutoTokenizer

  tokenizer = AutoTokenizer.from_pretrained(root / "student")
  tokenizer.add_special_tokens({"mask_token": "<|mdm_mask|>"})
  cfg = decoder.DecoderConfig(
    -(-len(tokenizer) // 64) * 64, 32, 2, heads=4, kv_heads=4, head_width=8, ff_width=64, max_positions=1024, tied=False, causal=False,
    mask_id=tokenizer.mask_token_id, tensor_names="llada",
  )  # fmt: skip
  hf.write(tmp_path / "llada", cfg, decoder.init(cfg, jax.random.key(0), 0.2), pad_id=0, eos_id=2, dtype="float32")
  tokenizer.save_pretrained(tmp_path / "llada")

  def with_steps(steps: int) -> list[str]:
    return [
      "--config=configs/d_opsd.py:hf",
      f"--workdir={tmp_path / 'run'}",
      f"--config.student={tmp_path / 'llada'}",
      f"--config.data.path={root / 'train.jsonl'}",
      "--config.data.prompt_field=question",
      f"--config.eval.path={root / 'test.jsonl'}",
      f"--config.steps={steps}",
      "--config.batch=2",
      "--config.rollouts_per_prompt=2",
      "--config.denoising.length=16",
      "--config.denoising.block=8",
      "--config.horizon.max=8",
      "--config.diffusion.accept=all",
      "--config.lora.rank=2",
      "--config.eval.every=3",
      "--config.eval.prompts=4",
      "--config.checkpoint.every=2",
      "--config.log.rollouts=1",
      "--config.log.tensorboard=False",
      "--config.compile_cache=off",
    ]

  call(train, *with_steps(3))
  assert "resumed after step 3" in call(train, *with_steps(4))
  steps = read(tmp_path / "run", "train")
  assert [record["step"] for record in steps] == [1, 2, 3, 4]
  assert all(record["canvases"] > 0 for record in steps)
  assert "avg@1" in call(evaluate, f"--workdir={tmp_path / 'run'}", "--config.denoising.eval_steps=16")
  call(export, f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'adapter'}")
  call(export, f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'merged'}", "--merge", "--dtype=float32")
  assert hf_config.read(tmp_path / "merged") == cfg
  assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"] == [
    "q_proj",
    "k_proj",
    "v_proj",
    "up_proj",
  ]


OF_WORDS = """
def verify(response, answer):
  return float(sum(map(ord, response)) % 3 == 0)
"""


@pytest.mark.long
@pytest.mark.parametrize("method", ["grpo", "drpo"])
def test_a_reward_of_ones_own_killed_between_mini_batches_resumed_and_exported(method, root, tmp_path, monkeypatch):
  """Three steps on GSM8K, with the verifier of the package beside one by its import path; bit for bit the run that never stopped."""
  verifier = own_verifiers.write(tmp_path, monkeypatch, f"of_words_{method}", OF_WORDS)

  def arguments(run):
    return [
      f"--config={CONFIGS / method}.py:hf",
      f"--workdir={tmp_path / run}",
      f"--config.student={root / 'student'}",
      f"--config.data.path={root / 'train.jsonl'}",
      "--config.data.prompt_field=question",
      f"--config.reward.verifiers=('{verifier}:verify', 'gsm8k')",
      "--config.reward.weights=(1.0, 0.5)",
      "--config.reward.workers=1",
      "--config.steps=3",
      "--config.batch=2",
      "--config.rollouts_per_prompt=4",
      "--config.horizon.max=8",
      "--config.checkpoint.every=1",
      "--config.log.tensorboard=False",
      "--config.compile_cache=off",
    ]

  call(train, *arguments("whole"))
  update, made = OPD._update, []

  def die(*args):
    if len(made) == 3:  # in the second step, behind its first mini-batch
      raise KeyboardInterrupt
    made.append(args[-1])
    return update(*args)

  with monkeypatch.context() as patch:
    patch.setattr(OPD, "_update", die)
    with pytest.raises(KeyboardInterrupt):
      call(train, *arguments("parts"))
  assert made == [0, 1, 0]
  assert "resumed after step 1" in call(train, *arguments("parts"))
  whole, parts = ([without_time(r) for r in read(tmp_path / run, "train")] for run in ("whole", "parts"))
  assert whole == parts
  assert any(r["teaching_groups"] > 0 for r in whole)
  assert all(r["reward/gsm8k"] == 0 and 0 < r[f"reward/{verifier}:verify"] < 1 for r in whole)
  for run in ("whole", "parts"):
    call(export, f"--workdir={tmp_path / run}", f"--out={tmp_path / run / 'out'}", "--dtype=float32")
  start, end, again = (
    jax.tree.leaves(hf.load(path, dtype=jax.numpy.float32))
    for path in (root / "student", tmp_path / "whole" / "out", tmp_path / "parts" / "out")
  )
  assert any((a != b).any() for a, b in zip(start, end, strict=True))
  assert all((a == b).all() for a, b in zip(end, again, strict=True))


@pytest.mark.long
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 4], ids=["all weights", "adapter"])
def test_the_student_teaches_itself_by_reference_solutions(rank, root, tmp_path):
  """OPSD on GSM8K: three steps, resumed after the second, and exported."""

  def arguments(steps):
    return [
      f"--config={CONFIGS / 'opsd.py'}:hf",
      f"--workdir={tmp_path / 'run'}",
      f"--config.student={root / 'student'}",
      "--config.teacher=initial",
      f"--config.data.path={root / 'train.jsonl'}",
      "--config.data.prompt_field=question",
      "--config.data.solution_field=answer",
      "--config.data.max_prompt=2048",
      f"--config.lora.rank={rank}",
      f"--config.steps={steps}",
      "--config.batch=2",
      "--config.horizon.max=8",
      "--config.optimizer.lr=1e-2",
      "--config.checkpoint.every=1",
      "--config.log.tensorboard=False",
      "--config.compile_cache=off",
    ]

  call(train, *arguments(2))
  assert "resumed after step 2" in call(train, *arguments(3))
  records = read(tmp_path / "run", "train")
  assert [r["step"] for r in records] == [1, 2, 3]
  assert all(r["kl"] > 0 and 0 <= r["opposed"] <= 1 for r in records)
  call(export, f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}", "--dtype=float32")
  assert (tmp_path / "out" / ("adapter_config.json" if rank else "config.json")).is_file()


@pytest.mark.long
def test_rollouts_branch_at_a_delimiter(root, tmp_path, monkeypatch):
  """GraphPO on GSM8K: three steps, killed in the middle of the second one's tree, resumed, and exported."""
  verifier = tmp_path / "lengths.py"
  verifier.write_text(
    "def verify(response, answer):\n  return len(response) % 2 == 0\n"
  )  # random weights are never right

  def arguments(name):
    return [
      f"--config={CONFIGS / 'graphpo.py'}:hf",
      f"--workdir={tmp_path / name}",
      f"--config.student={root / 'student'}",
      f"--config.data.path={root / 'train.jsonl'}",
      "--config.data.prompt_field=question",
      f"--config.data.verifier={verifier}:verify",
      "--config.data.max_prompt=2048",
      "--config.graph.widths=(3, 2)",
      "--config.graph.step_tokens=8",
      "--config.graph.delimiter=e",
      "--config.graph.kappa=0.5",
      "--config.rollouts_per_prompt=6",
      "--config.horizon.max=16",
      "--config.steps=3",
      "--config.batch=2",
      "--config.optimizer.lr=1e-2",
      "--config.optimizer.warmup=0",
      "--config.checkpoint.every=1",
      "--config.log.rollouts=1",
      "--config.log.tensorboard=False",
      "--config.compile_cache=off",
    ]

  call(train, *arguments("whole"))
  grow, layers = Branches.grow, []

  def die(*args):
    layers.append(args)
    if len(layers) == 2 * 2 + 2 + 1:  # two prompts and two layers a step: between the layers of the second
      raise KeyboardInterrupt
    return grow(*args)

  with monkeypatch.context() as patch:
    patch.setattr(Branches, "grow", die)
    with pytest.raises(KeyboardInterrupt):
      call(train, *arguments("parts"))
  assert "resumed after step 1" in call(train, *arguments("parts"))
  whole, parts = ([without_time(r) for r in read(tmp_path / run, "train")] for run in ("whole", "parts"))
  assert whole == parts
  assert any(r["teaching_groups"] > 0 for r in whole)
  steps = [step for graph in branched.read(tmp_path / "whole" / branched.FILE) for step in graph.steps[1:]]
  assert any(step.text.endswith("e") and step.tokens < 8 for step in steps)
  call(export, f"--workdir={tmp_path / 'whole'}", f"--out={tmp_path / 'out'}", "--dtype=float32")
  assert (tmp_path / "out" / "config.json").is_file()


def hard_questions(root, tmp_path, name, **changes):
  """Arguments of ZPPO on GSM8K, in its own words: three steps, each of four new prompts and a few more."""
  verifier = tmp_path / "lengths.py"
  verifier.write_text(
    "def verify(response, answer):\n  return len(response) % 3 == 0\n"
  )  # random weights are never right
  values = {
    "student": root / "student",
    "teacher": root / "teacher",
    "data.path": root / "train.jsonl",
    "data.prompt_field": "question",
    "data.verifier": f"{verifier}:verify",
    "zone.replay": 0.5,
    "zone.augment": 0.5,
    "zone.capacity": 4,
    "zone.teacher_rollouts": 8,
    "zone.teacher_tokens": 200,
    "candidates.max_tokens": 40,
    "candidates.max_prompt": 1024,
    "rollouts_per_prompt": 4,
    "horizon.max": 100,
    "steps": 3,
    "batch": 4,
    "mini_batches": 2,
    "optimizer.lr": 1e-2,
    "checkpoint.every": 1,
    "log.tensorboard": False,
    "compile_cache": "off",
  }
  given = [f"--config.{key}={value}" for key, value in (values | changes).items()]
  return [f"--config={CONFIGS / 'zppo.py'}:hf", f"--workdir={tmp_path / name}", *given]


def killed_in_the_second_step_and_resumed(arguments, monkeypatch):
  """Trains, is killed behind the second step's first mini-batch, and goes on; returns what the command prints."""
  update, made = OPD._update, []

  def die(*args):
    if len(made) == 3:
      raise KeyboardInterrupt
    made.append(args[-1])
    return update(*args)

  with monkeypatch.context() as patch:
    patch.setattr(OPD, "_update", die)
    with pytest.raises(KeyboardInterrupt):
      call(train, *arguments)
  printed = call(train, *arguments)
  assert "resumed after step 1" in printed
  return printed


@pytest.mark.long
def test_hard_questions_are_asked_anew_with_a_teacher_in_the_prompt(root, tmp_path, monkeypatch):
  """Killed in the second step's updates with a full buffer, resumed, and exported."""
  call(train, *hard_questions(root, tmp_path, "whole"))
  killed_in_the_second_step_and_resumed(hard_questions(root, tmp_path, "parts"), monkeypatch)
  whole, parts = ([without_time(r) for r in read(tmp_path / run, "train")] for run in ("whole", "parts"))
  assert whole == parts
  assert whole[0]["buffer"] > 0, "it holds questions where the run is killed"
  assert any(r["buffer"] == 4 for r in whole)
  assert any(r["prompts_ncq"] + r["prompts_bcq"] > 0 for r in whole)
  assert all(r["teacher_tokens"] > 0 for r in whole)
  call(export, f"--workdir={tmp_path / 'whole'}", f"--out={tmp_path / 'out'}", "--dtype=float32")
  assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.long
def test_hard_questions_with_a_teacher_at_an_endpoint_whose_key_is_written_nowhere(root, tmp_path, monkeypatch, capfd):
  """Killed and resumed with a full buffer, of a server that sends the key back in its answers and in an error."""
  secret = "sk-very-secret-0123456789"
  monkeypatch.setenv("A_KEY", secret)
  server = Server()

  fails = iter([True])  # the first request, and no other

  def behave(handler, body):
    if next(fails, False):
      handler.send({"error": {"message": f"{secret} comes too early"}}, 500)
      return
    n, asked = body.get("n", 1), body["messages"][-1]["content"]
    texts = [f"<<served>> {'I add. ' * ((body['seed'] + i) % 5)}{secret} {len(asked)}" for i in range(n)]
    choices = [{"index": i, "message": {"role": "assistant", "content": text}} for i, text in enumerate(texts)]
    handler.send({"choices": choices, "usage": {"prompt_tokens": 10, "completion_tokens": 5 * n}})

  server.behave = behave
  of_endpoint = {
    "teacher": "",
    "zone.teacher_url": server.url,
    "zone.teacher_model": "served",
    "zone.teacher_key_env": "A_KEY",
    "zone.teacher_retries": 1,
    "zone.capacity": 2,
    "log.rollouts": 2,
    "eval.path": root / "test.jsonl",
    "eval.every": 3,
    "eval.prompts": 2,
    "eval.max_tokens": 16,
  }
  printed = [call(train, *hard_questions(root, tmp_path, "whole", **of_endpoint))]
  asked = len(server.bodies) - 1  # one of them failed
  printed.append(
    killed_in_the_second_step_and_resumed(hard_questions(root, tmp_path, "parts", **of_endpoint), monkeypatch)
  )
  server.close()
  assert len(server.bodies) - 1 == 2 * asked > 0, "what was answered before the run was killed is on disk"
  assert all(headers["Authorization"] == f"Bearer {secret}" for headers in server.headers)
  whole, parts = ([without_time(r) for r in read(tmp_path / run, "train")] for run in ("whole", "parts"))
  assert [r["endpoint/retried"] for r in whole] == [1, 1, 1]
  assert parts[1]["endpoint/cached"] > 0
  for record in [*whole, *parts]:
    for key in [key for key in record if key.startswith("endpoint/")]:  # of a process, and answers are on disk
      del record[key]
  assert whole == parts
  assert whole[0]["buffer"] == 2, "full where the run was killed"
  assert sum(r["buffer_evicted"] for r in whole[1:]) > 0
  assert any(r["prompts_bcq"] for r in whole)
  out = tmp_path / "whole" / "out"
  printed.append(call(export, f"--workdir={tmp_path / 'whole'}", f"--out={out}", "--dtype=float32"))
  report.main([str(tmp_path / "whole"), f"--out={tmp_path / 'page'}"])
  assert "zone.teacher_url" in (out / "README.md").read_text()
  written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
  kept = [text for path, text in written.items() if "teacher_answers" in path.parts and b"<<served>>" in text]
  assert any(b"***" in text for text in kept), "the answers that had the key in them are where it would be found"
  assert [path for path, text in written.items() if secret.encode() in text] == []
  assert secret not in "".join([*printed, *capfd.readouterr()])


def test_exported_student_loads_in_pytorch(root):
  torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch")
  from transformers import AutoModelForCausalLM, AutoTokenizer

  if not (root / "out").exists():
    pytest.skip("the run before this test did not export")
  model, tokenizer = AutoModelForCausalLM.from_pretrained(root / "out"), AutoTokenizer.from_pretrained(root / "out")
  ids = tokenizer.apply_chat_template(
    [{"role": "user", "content": "2+2?"}], add_generation_prompt=True, return_dict=False
  )
  cfg, params = hf_config.read(root / "out"), hf.load(root / "out")
  tokens = jax.numpy.asarray([ids])
  mine = decoder.unembed(params, decoder.hidden(params, cfg, tokens, jax.numpy.ones_like(tokens, bool)))
  with torch.no_grad():
    theirs = model.float()(torch.tensor([ids])).logits
  assert abs(mine - theirs.numpy()).max() < 1e-4


def test_greedy_rollout_is_generate(root):
  """Greedy tokens of the rollout are those of PyTorch's `generate` on the same weights, left padding included."""
  torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch")
  from transformers import AutoModelForCausalLM

  from opd_jax.data import pipeline
  from opd_jax.rollout import sample

  cfg, params = hf_config.read(root / "student"), hf.load(root / "student")
  batch = pipeline.pad([[5, 9, 77, 31], [8, 100], [300, 4, 200]], 6, 0)
  sampling = sample.Sampling(stop_ids=(0, 2), pad_id=0, vocab=cfg.vocab, temperature=0.0)
  run = jax.jit(functools.partial(sample.rollout, cfg=cfg, sampling=sampling, response_len=24))
  rollout = run(params, batch, jax.random.key(0), jax.numpy.int32(24))
  model = AutoModelForCausalLM.from_pretrained(root / "student").float()
  with torch.no_grad():
    theirs = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
      torch.tensor(batch.prompt).long(), attention_mask=torch.tensor(batch.prompt_mask), do_sample=False,
      max_new_tokens=24, eos_token_id=[0, 2], pad_token_id=0,
    )[:, 6:].numpy()  # fmt: skip
  width = theirs.shape[1]
  assert (rollout.response[:, :width] == theirs).all()
  assert not rollout.mask[:, width:].any()


@pytest.mark.long
def test_gsm8k_told_turn_by_turn(root):
  """CCOPD on problems as they are published, and on a file of conversations; through an adapter, out as a PEFT directory."""
  printed = command("tell", f"--data={root / 'train.jsonl'}", "--prompt-field=question", f"--user={root / 'student'}",
                 "--first=12", f"--out={root / 'talks.jsonl'}")  # fmt: skip
  assert "of 12 problems can be told turn by turn" in printed
  assert f"in the words of {root / 'student'}" in printed
  command("tell", f"--data={root / 'test.jsonl'}", "--prompt-field=question", f"--out={root / 'test-talks.jsonl'}")
  common = [
    "--config=configs/ccopd.py:hf", f"--config.student={root / 'student'}", "--config.steps=2", "--config.batch=2",
    "--config.data.max_prompt=1500", "--config.horizon.max=16", "--config.context.turn_tokens=8",
    "--config.lora.rank=2", "--config.eval.every=2", "--config.eval.prompts=2", "--config.eval.batch=2",
    "--config.data.widths=2.0", "--config.log.tensorboard=False",
  ]  # fmt: skip
  files = {
    "problems": ("train.jsonl", "test.jsonl", ["--config.data.prompt_field=question"]),
    "talks": (
      "talks.jsonl",
      "test-talks.jsonl",
      ["--config.data.prompt_field=messages", "--config.data.canonical_field=canonical"],
    ),
  }
  for name, (train_file, test_file, fields) in files.items():
    run = root / f"ccopd-{name}"
    paths = [f"--config.data.path={root / train_file}", f"--config.eval.path={root / test_file}"]
    printed = command("train", *common, *fields, *paths, f"--workdir={run}")
    assert "ends an assistant's turn" not in printed, "<|im_end|> ends replies and is a stop token"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2]
    assert all(r["kl"] > 0 for r in records if r["kind"] == "train")
    _, *talks = map(json.loads, (run / "histories" / "00000000.jsonl").read_text().splitlines())
    assert len(talks) == 4
    assert all(talk["replies"] for talk in talks)
  printed = command("evaluate", f"--workdir={run}", "--deviation")
  assert "deviation of raw from full" in printed
  command("export", f"--workdir={run}", f"--out={root / 'adapter'}")
  assert json.loads((root / "adapter" / "adapter_config.json").read_text())["r"] == 2
