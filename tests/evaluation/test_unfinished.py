"""Cut responses and thoughts from end to end: in an evaluation, as a reward, and in conversations."""

import pytest

from opd_jax import config, inputs
from opd_jax.data import tokenizer as tokenizers
from opd_jax.evaluate import summary_lines
from opd_jax.evaluation import make_evaluator
from opd_jax.models import hf
from opd_jax.runtime import mesh as meshes
from opd_jax.trainer import open_run, train
from tests.helpers.reciter import DROPS, KEEPS, template, write_lines, write_reciter
from tests.helpers.runs import read

pytestmark = pytest.mark.usefixtures("shared_programs")

THINKS = r"<bot> <think> \boxed{18} no </think> It is 20 <eos>"
SMALL = {
  "batch": 2,
  "steps": 1,
  "eval.every": 0,
  "eval.batch": 2,
  "eval.prompts": 2,
  "checkpoint.every": 0,
  "compile_cache": "off",
  "log.bins": 2,
  "log.tensorboard": False,
}


def evaluated(student, method="opd", **changes):
  """An evaluation's record and samples, at temperature 0."""
  c = config.override(config.load(f"{method}"), SMALL | {"student": student, "eval.temperature": 0.0} | changes)
  mesh = meshes.for_reading(c.mesh)
  model = inputs.model(student)
  found = inputs.load_evaluation(c, model, tokenizers.load(student), mesh, model.cfg.vocab)
  params = hf.load(model.path, model.cfg)
  return make_evaluator(c, found, params)(params)


@pytest.mark.long
@pytest.mark.parametrize("opens", ["", "<think>"], ids=["by the model", "by the template"])
def test_an_evaluation_reads_what_stands_behind_a_thought(opens, tmp_path):
  """Its marks are special tokens; a thought that is cut has no answer, whoever opened it."""
  student = write_reciter(tmp_path / "m", THINKS, "Q", template(opens=opens))
  problems = write_lines(tmp_path / "p", {"prompt": "Q", "answer": "18"}, {"prompt": "Q Q", "answer": "20"})
  for max_tokens, accuracy in ((12, 0.5), (2, 0.0)):
    record, samples = evaluated(student, **{"eval.path": problems, "eval.max_tokens": max_tokens})
    assert record["accuracy"] == accuracy
    assert record["ended"] == (max_tokens > 2)
  assert samples[0]["response"] == (r"\boxed{18} no" if opens else r"<think> \boxed{18}")


def rewarded(path, chain, answers, length, opens=""):
  """The record of a step whose reward is the verifier's."""
  student = write_reciter(path / "m", chain, "Q", template(opens=opens))
  problems = write_lines(path / "p", *({"prompt": "Q" + " Q" * i, "answer": a} for i, a in enumerate(answers)))
  cut = {"horizon.kind": "truncated", "horizon.ratio": 0.0, "horizon.length": length, "horizon.max": 12}
  changes = {"student": student, "teacher": student, "data.path": problems, "mixture.reward": 1.0}
  train(config.override(config.load("topd"), SMALL | {"rollouts_per_prompt": 2} | changes | cut), path / "w")
  (record,) = read(path / "w", "train")
  return record


@pytest.mark.long
def test_a_number_that_is_cut_is_no_reward(tmp_path, capsys):
  record = rewarded(tmp_path, "<bot> #### 1 8 <eos>", ["1", "1"], 2)
  assert (record["cut"], record["reward"]) == (1, 0)
  assert "only an answer counts that it had stated to the end" in capsys.readouterr().err


@pytest.mark.long
def test_a_thought_that_the_template_opens_is_no_reward(tmp_path):
  """What stands behind its end is; the prompt is the one that the student read."""
  record = rewarded(tmp_path, THINKS, ["18", "20"], 8, "<think>")
  assert (record["cut"], record["reward"]) == (0, 0.5)


TALK = {"messages": [{"role": "user", "content": word} for word in ("Q", "F")], "canonical": "F Q", "answer": "20"}
OF_TALKS = {
  "data.prompt_field": "messages",
  "data.canonical_field": "canonical",
  "data.widths": 0.0,
  "horizon.max": 8,
  "lora.rank": 0,
}


@pytest.mark.long
@pytest.mark.parametrize("opens", ["", "<think>"], ids=["by the model", "by the template"])
@pytest.mark.parametrize("assistant", [KEEPS, DROPS], ids=["kept", "dropped"])
def test_conversations_have_thoughts_as_the_template_shows_them(assistant, opens, tmp_path, capsys):
  """A thought that is cut is told and goes the way of the others; the mark that the template wrote is put back."""
  student = write_reciter(tmp_path / "m", THINKS, "Q F", template(assistant, opens))
  talks = write_lines(tmp_path / "p", *[TALK] * 2)
  changes = OF_TALKS | {"student": student, "data.path": talks, "eval.path": talks}
  for tokens, cut in ((9, False), (2, True)):
    c = config.override(config.load("ccopd"), SMALL | changes | {"context.turn_tokens": tokens})
    run = open_run(c, tmp_path / f"w{tokens}")
    run.recipe.shapes(run, 0)
    told = "2 replies to earlier turns were cut inside their thought" in capsys.readouterr().err
    assert told is cut
    prompt = next(run.prompts)
    text = run.inputs.tokenizer.decode(prompt.prompt[0][prompt.prompt_mask[0]])
    thought = r"<think> \boxed{18}" + ("" if cut and not opens else " no")
    whole = thought if cut else thought + " </think> It is 20"
    shown = whole if assistant == KEEPS else whole.partition(" </think> ")[2]
    assert " ".join(text.split()) == " ".join(f"<user> Q <bot> {shown} <eos> <user> F <bot> {opens}".split())


@pytest.mark.long
def test_an_evaluation_counts_thoughts_that_are_cut(tmp_path):
  student = write_reciter(tmp_path / "m", THINKS, "Q F", template(DROPS, "<think>"))
  talks = write_lines(tmp_path / "p", *[TALK] * 2)
  record, samples = evaluated(student, "ccopd", **OF_TALKS, **{"eval.path": talks, "context.turn_tokens": 2})
  assert record["thoughts_cut"] == 2
  assert record["accuracy"] == 1, "the last reply is whole"
  assert [m["content"] for m in samples[0]["messages"]][1] == ""
  c = config.override(config.load("ccopd"), {"eval.temperature": 0.0})
  assert any("2 replies to earlier turns were cut" in line for line in summary_lines(c, {"of": "m", **record}, 0))
  record, _ = evaluated(student, "ccopd", **OF_TALKS, **{"eval.path": talks, "context.turn_tokens": 9})
  assert "thoughts_cut" not in record
  assert record["anchored"]["wrong"] == 0
