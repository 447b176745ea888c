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
from opd_jax.data import pipeline
from opd_jax.models import decoder
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


@pytest.mark.parametrize("name", ["train", "evaluate"])
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
def trained(tmp_path_factory, tiny):
  """A config, the workdir that was trained with it, and what `train` returned."""
  changes = {"student": tiny["student"], "teacher": tiny["teacher"], "steps": 2, "batch": 4, "horizon.max": 16}
  changes |= {"eval.every": 1, "eval.prompts": 4, "eval.batch": 4, "compile_cache": "off", "log.tensorboard": False}
  changes |= {"checkpoint.every": 1, "optimizer.lr": 1e-2}
  config, path = opd_jax.load_config("opd", changes), tmp_path_factory.mktemp("runs") / "opd"
  return config, path, opd_jax.train(config, path)


def test_metrics_are_those_of_the_file(trained):
  _, path, _ = trained
  metrics = opd_jax.read_metrics(path)
  records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
  assert metrics.train == [r for r in records if r["kind"] == "train"]
  assert metrics.evals == [r for r in records if r["kind"] == "eval"]
  assert [r["step"] for r in metrics.train] == [1, 2]
  assert metrics.config["horizon.max"] == 16


def test_a_directory_that_is_no_workdir_is_refused(tmp_path):
  with pytest.raises(InputError, match=r"metrics\.jsonl"):
    opd_jax.read_metrics(tmp_path)


def test_the_student_of_a_run_is_loaded_and_evaluated(trained):
  config, path, run = trained
  model = opd_jax.load_model(path)
  jax.tree.map(np.testing.assert_array_equal, model.params, run.state.params)
  before, after = (opd_jax.evaluate(opd_jax.load_model(path, step=step), config) for step in (1, 2))
  logged = opd_jax.read_metrics(path).evals
  for record, found in zip(logged[1:], (before, after), strict=True):
    assert {key: found[key] for key in ("accuracy", "low", "high", "length", "prompts")} == {
      key: record[key] for key in ("accuracy", "low", "high", "length", "prompts")
    }
  assert len(after["samples"]) == config.log.samples
  assert opd_jax.generate(model, PROMPTS, max_tokens=8).lengths.max() <= 8


def test_evaluation_needs_held_out_problems(student, tmp_path):
  config = opd_jax.load_config("opd", {"data.path": str(tmp_path / "train.jsonl")})
  with pytest.raises(InputError, match=r"config\.eval\.path is empty"):
    opd_jax.evaluate(student, config)
