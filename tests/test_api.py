"""The public names of the package: that they load lazily, what they return, and what they refuse."""

import importlib
import inspect
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import opd_jax
from opd_jax import InputError
from opd_jax import config as configs
from opd_jax.data import pipeline
from opd_jax.models import decoder, hf
from opd_jax.tasks import chain

pytestmark = pytest.mark.usefixtures("shared_programs")

PROMPTS = ["58+-++x3=", "12++--x2="]


@pytest.fixture(scope="module")
def student():
  return opd_jax.load_model("builtin:student")


@pytest.fixture(scope="module")
def teacher():
  return opd_jax.load_model("builtin:teacher")


def test_the_import_is_cheap():
  code = (
    "import opd_jax, sys; print([m for m in ('jax', 'numpy', 'transformers') if m in sys.modules], opd_jax.__version__)"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == f"[] {opd_jax.__version__}"


@pytest.mark.parametrize("name", opd_jax.__all__)
def test_every_name_is_there_with_its_documentation(name):
  value = getattr(opd_jax, name)
  assert name in dir(opd_jax)
  first, *others = inspect.cleandoc(value.__doc__).splitlines()
  assert first.endswith(".")
  if name != "InputError":
    assert "Raises:" in others


def test_there_is_no_other_name():
  with pytest.raises(AttributeError, match="no attribute 'nothing'"):
    _ = opd_jax.nothing  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", ["train", "evaluate", "export"])
def test_a_command_of_the_same_name_takes_no_function_away(name):
  command = importlib.import_module(f"opd_jax.{name}")
  assert inspect.ismodule(command)
  assert inspect.isfunction(getattr(opd_jax, name))


def test_the_package_says_that_it_is_typed():
  assert (pathlib.Path(opd_jax.__file__).parent / "py.typed").is_file()


# Configs.


def test_a_config_has_the_values_that_were_given():
  config = opd_jax.load_config("popd", {"steps": 7, "horizon.max": 64})
  assert (config.steps, config.horizon.max, config.horizon.kind) == (7, 64, "progressive")
  assert opd_jax.load_config("topd:hf").batch == 16


@pytest.mark.parametrize(
  ("spec", "overrides", "message"),
  [
    ("nothing", {}, "no config file"),
    ("opd", {"step": 7}, "'steps'"),
    ("opd", {"steps": "many"}, "steps is 'many'; it has to be"),
  ],
)
def test_a_wrong_config_is_refused(spec, overrides, message):
  with pytest.raises(InputError, match=message):
    opd_jax.load_config(spec, overrides)


# Models.


def test_a_built_in_model(student):
  assert student.spec.name == "builtin:student"
  assert student.spec.cfg.vocab == len(chain.SYMBOLS)
  assert student.params["embed"].shape == (student.spec.cfg.vocab, student.spec.cfg.d_model)
  assert "params" not in repr(student)


def test_a_model_that_is_not_there_is_refused(tiny):
  with pytest.raises(InputError, match="no built-in model"):
    opd_jax.load_model("builtin:nobody")
  with pytest.raises(InputError, match="no workdir with checkpoints"):
    opd_jax.load_model(tiny["student"], step=3)


@pytest.mark.long
def test_generation_follows_the_seed_and_not_the_other_prompts(student):
  first = opd_jax.generate(student, PROMPTS, max_tokens=24, seed=1)
  assert [len(first.texts), *first.lengths.shape, *first.ended.shape] == [2, 2, 2]
  assert first.lengths.max() <= 24
  assert first.texts == opd_jax.generate(student, PROMPTS, max_tokens=24, seed=1).texts
  assert first.texts != opd_jax.generate(student, PROMPTS, max_tokens=24, seed=2).texts
  assert first.texts[:1] == opd_jax.generate(student, PROMPTS[:1], max_tokens=24, seed=1).texts


def test_greedy_generation_takes_the_most_likely_tokens(teacher):
  (text,) = opd_jax.generate(teacher, PROMPTS[:1], max_tokens=24, temperature=0).texts
  assert opd_jax.token_divergence(teacher, teacher, PROMPTS[0], text).logprob.min() > np.log(0.5)
  assert text.startswith("3:5+8=3,8-3=5,3+5=8,")


@pytest.mark.parametrize(
  ("prompts", "options", "message"),
  [
    ([], {}, "at least one prompt"),
    ("58+-++x3=", {}, "has to be a list"),
    (PROMPTS, {"max_tokens": 0}, "at least 1"),
    (PROMPTS, {"temperature": -1.0}, "at least 0"),
    (PROMPTS, {"max_tokens": 10**6}, "max_position_embeddings"),
    ([[{"role": "user", "content": "58+-++x3="}]], {}, "chat template"),
  ],
)
def test_what_cannot_be_generated_is_refused(student, prompts, options, message):
  with pytest.raises(InputError, match=message):
    opd_jax.generate(student, prompts, **options)


# Divergences.


def log_probabilities(model, prompt: str, response: list[int]) -> np.ndarray:
  """[n, V], of one row without padding."""
  prompts = pipeline.pad([model.tokenizer(prompt)["input_ids"]], len(prompt), 0)
  row, mask = jnp.array([response]), jnp.ones((1, len(response)), bool)
  hidden = decoder.response_hidden(model.params, model.spec.cfg, prompts.prompt, prompts.prompt_mask, row, mask)
  return np.asarray(jax.nn.log_softmax(decoder.unembed(model.params, hidden)))[0]


@pytest.fixture(scope="module")
def response(student) -> list[int]:
  return student.tokenizer("3:5+8=4,8-4=6")["input_ids"]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl"])
def test_divergence_is_the_one_of_the_whole_distributions(student, teacher, response, kind):
  s, t = (log_probabilities(model, PROMPTS[0], response) for model in (student, teacher))
  found = opd_jax.token_divergence(student, teacher, PROMPTS[0], response, kind)
  expected = (np.exp(s) * (s - t) if kind == "reverse_kl" else np.exp(t) * (t - s)).sum(axis=-1)
  np.testing.assert_allclose(found.divergence, expected, rtol=1e-3, atol=1e-5)
  drawn = np.arange(len(response)), response
  np.testing.assert_allclose(found.logprob, s[drawn], rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(found.teacher_logprob, t[drawn], rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(found.student_entropy, -(np.exp(s) * s).sum(axis=-1), rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(found.teacher_entropy, -(np.exp(t) * t).sum(axis=-1), rtol=1e-3, atol=1e-5)


def test_every_token_has_its_text(student, teacher, response):
  by_ids = opd_jax.token_divergence(student, teacher, PROMPTS[0], [*response, *student.spec.stop_ids])
  by_text = opd_jax.token_divergence(student, teacher, PROMPTS[0], "3:5+8=4,8-4=6")
  assert "".join(by_text.tokens) == "3:5+8=4,8-4=6"
  assert by_text.tokens == by_ids.tokens[:-1]
  np.testing.assert_array_equal(by_text.ids, response)
  np.testing.assert_allclose(by_text.divergence, by_ids.divergence[:-1], rtol=1e-5)
  assert {a.shape for a in by_text[1:]} == {(len(response),)}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "jsd", "mixture"])
def test_a_model_does_not_diverge_from_itself(student, response, kind):
  np.testing.assert_allclose(opd_jax.token_divergence(student, student, PROMPTS[0], response, kind)[2], 0, atol=1e-6)


@pytest.mark.parametrize(
  ("response", "kind", "message"),
  [
    ("", "reverse_kl", "empty"),
    ("3:", "kl", "one of reverse_kl"),
    ([5, 31], "reverse_kl", "the id 31"),
    ([5] * 40_000, "reverse_kl", "max_position_embeddings"),
  ],
)
def test_what_cannot_be_compared_is_refused(student, teacher, response, kind, message):
  with pytest.raises(InputError, match=message):
    opd_jax.token_divergence(student, teacher, PROMPTS[0], response, kind)


# Runs.


@pytest.fixture(scope="module")
def config(tiny):
  changes = {"student": tiny["student"], "teacher": tiny["teacher"], "steps": 2, "batch": 4, "horizon.max": 16}
  changes |= {"eval.every": 1, "eval.prompts": 4, "eval.batch": 4, "compile_cache": "off", "log.tensorboard": False}
  return opd_jax.load_config("opd", changes | {"checkpoint.every": 1, "optimizer.lr": 1e-2})


@pytest.fixture(scope="module")
def trained(tmp_path_factory, config):
  """A workdir, and what `train` returned."""
  path = tmp_path_factory.mktemp("runs") / "opd"
  return path, opd_jax.train(config, path)


def equal(one, other) -> None:
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_metrics_are_those_of_the_file(trained):
  path, run = trained
  metrics = opd_jax.read_metrics(path)
  records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
  assert run.history == metrics.train == [r for r in records if r["kind"] == "train"]
  assert run.evaluations == metrics.evals == [r for r in records if r["kind"] == "eval"]
  assert [r["step"] for r in metrics.train] == [1, 2]
  assert [r["step"] for r in run.evaluations] == [0, 1, 2]
  assert metrics.config["horizon.max"] == 16
  assert (run.step, run.outcome.steps, run.workdir) == (2, 2, str(path))


def test_a_directory_that_is_no_workdir_is_refused(tmp_path):
  with pytest.raises(InputError, match=r"metrics\.jsonl"):
    opd_jax.read_metrics(tmp_path)


def test_the_student_of_a_run_is_loaded_and_evaluated(trained, config):
  path, run = trained
  model = opd_jax.load_model(path)
  equal(model.params, run.models["student"].params)
  assert (model.origin.workdir, model.origin.step) == (str(path), 2)
  before, after = (opd_jax.evaluate(opd_jax.load_model(path, step=step), config) for step in (1, 2))
  for record, found in zip(run.evaluations[1:], (before, after), strict=True):
    assert {key: found[key] for key in ("accuracy", "low", "high", "length", "prompts")} == {
      key: record[key] for key in ("accuracy", "low", "high", "length", "prompts")
    }
  assert len(after["samples"]) == config.log.samples
  assert opd_jax.generate(model, PROMPTS, max_tokens=8).lengths.max() <= 8


def test_the_models_of_a_finished_run_can_be_used_at_once(trained, tiny):
  _, run = trained
  student = run.models["student"]
  found = opd_jax.evaluate(student)
  assert {key: found[key] for key in ("accuracy", "length")} == {
    key: run.evaluations[-1][key] for key in ("accuracy", "length")
  }
  texts = opd_jax.generate(student, PROMPTS, max_tokens=8).texts
  scored = opd_jax.score(student, opd_jax.load_model(tiny["teacher"]), PROMPTS, [text or "3" for text in texts], k=2)
  assert [len(one.divergence or ()) for one in scored] == [len(one.ids) for one in scored]
  assert {len(top) for one in scored for top in one.teacher_top or ()} == {2}


def test_training_twice_in_one_workdir_goes_on(trained, config, tmp_path):
  """A run that is complete is returned as it is; with more steps it is the run that never stopped."""
  _, whole = trained
  path, seen = tmp_path / "run", []

  def on_step(run, experience, metrics):
    seen.append((run.step, metrics["loss"]))

  short = opd_jax.train(opd_jax.load_config("opd", flat(config) | {"steps": 1}), path, on_step=on_step)
  assert (short.step, len(short.history), len(seen)) == (1, 1, 1)
  again = opd_jax.train(config, path, on_step=on_step)
  assert [step for step, _ in seen] == [1, 2]
  assert [loss for _, loss in seen] == [r["loss"] for r in again.history] == [r["loss"] for r in whole.history]
  equal(again.models["student"].params, whole.models["student"].params)
  done = opd_jax.train(config, path, on_step=on_step)
  assert (done.step, len(seen), done.history) == (2, 2, again.history)
  equal(done.models["student"].params, again.models["student"].params)


def flat(config) -> dict:
  """What a config says otherwise than its method's file."""
  theirs = configs.flat(opd_jax.load_config("opd"))
  return {key: value for key, value in configs.flat(config).items() if theirs[key] != value}


def test_what_a_callback_raises_ends_the_run_and_what_was_saved_stays(config, tmp_path):
  """As an interrupted notebook kernel does, which raises KeyboardInterrupt wherever it is."""

  def interrupt(run, experience, metrics):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    opd_jax.train(config, tmp_path / "run", on_step=interrupt)
  assert opd_jax.train(config, tmp_path / "run").history[0]["step"] == 1
  assert opd_jax.load_model(tmp_path / "run", step=1).origin.step == 1


def test_a_function_gets_the_records_and_cannot_end_the_run(config, tmp_path, capsys):
  seen = []

  def on_record(kind, record):
    seen.append((kind, record))
    if len(seen) == 4:
      raise ConnectionError("away")

  run = opd_jax.train(config, tmp_path / "run", on_record=on_record)
  assert [(kind, record["step"]) for kind, record in seen] == [("eval", 0), ("train", 1), ("eval", 1), ("train", 2)]
  assert seen[1][1]["loss"] == run.history[0]["loss"]
  assert len(seen[2][1]["samples"]) == config.log.samples
  assert capsys.readouterr().err.count("on_record failed and gets nothing more") == 1
  assert run.step == 2


def test_a_run_a_workdir_and_a_model_are_exported_alike(trained, tmp_path):
  path, run = trained
  sources = {"run": run, "workdir": path, "model": opd_jax.load_model(path)}
  for name, source in sources.items():
    (written,) = opd_jax.export(source, tmp_path / name, dtype="float32")
    assert (written.model, written.step, written.kind) == ("student", 2, "student")
    equal(hf.load(written.directory), run.models["student"].params)
    card = (written.directory / "README.md").read_text()
    assert f"| 2 | {run.evaluations[-1]['accuracy']:.3f} |" in card
  with pytest.raises(InputError, match="exists already"):
    opd_jax.export(run, tmp_path / "run")
  (written,) = opd_jax.export(path, tmp_path / "first", step=1)
  assert written.step == 1
  assert opd_jax.load_model(tmp_path / "first").origin is None


@pytest.mark.long
def test_an_adapter_is_exported_alone_or_merged(config, tmp_path):
  run = opd_jax.train(configs.override(config, {"steps": 1, "lora.rank": 2, "eval.every": 0}), tmp_path / "run")
  for source, name in ((run, "of_run"), (tmp_path / "run", "of_workdir")):
    assert [one.kind for one in opd_jax.export(source, tmp_path / name)] == ["adapter"]
    assert [one.kind for one in opd_jax.export(source, tmp_path / f"{name}_merged", merge=True)] == ["student"]
  for weights in ("adapter_model.safetensors", "adapter_config.json"):
    assert (tmp_path / "of_run" / weights).read_bytes() == (tmp_path / "of_workdir" / weights).read_bytes()
  equal(hf.load(tmp_path / "of_run_merged"), hf.load(tmp_path / "of_workdir_merged"))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"batch": 0}, "config.batch"),
    ({"student": "builtin:nobody"}, "no built-in model"),
    ({"data.path": "nothing.jsonl"}, "nothing.jsonl"),
  ],
)
def test_what_cannot_be_trained_is_refused_and_nothing_is_written(config, tmp_path, changes, message):
  with pytest.raises(InputError, match=message):
    opd_jax.train(configs.override(config, changes), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_evaluation_needs_held_out_problems(student, tmp_path):
  config = opd_jax.load_config("opd", {"data.path": str(tmp_path / "train.jsonl")})
  with pytest.raises(InputError, match=r"config\.eval\.path is empty"):
    opd_jax.evaluate(student, config)
  with pytest.raises(InputError, match="builtin:student comes from no run"):
    opd_jax.evaluate(student)
  with pytest.raises(InputError, match="compares a conversation"):
    opd_jax.evaluate(student, config, deviation=True)
