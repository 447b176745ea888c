"""Runs whose chat templates ask for something: a date, a system message, arguments."""

import datetime
import importlib
import json
import pathlib
import shutil
import types

import pytest

import opd_jax
from opd_jax import inputs
from opd_jax.analysis import notebook
from opd_jax.data import chat
from opd_jax.errors import InputError
from opd_jax.runtime import began
from opd_jax.tasks import relay
from opd_jax.trainer import open_run, train
from tests.helpers.conversation_runs import small, write_talker

pytestmark = pytest.mark.usefixtures("shared_programs")

FIRST, LATER = datetime.datetime(2024, 7, 26), datetime.datetime(2024, 8, 3)
TURNS = (relay.TOKENIZER.chat_template).removesuffix("\n")
DATED = "{{ strftime_now('%d')[1] }}" + TURNS  # 6 at first, and 3 later
NEEDS_SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}" + TURNS
TOLD = TURNS + "{% if mark is defined %}{{ mark }}{% endif %}"
SHORT = {"steps": 1, "batch": 2, "eval.prompts": 2, "eval.batch": 2, "context.turn_tokens": 4, "horizon.max": 4}


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
  return write_talker(tmp_path_factory.mktemp("models") / "talker")


@pytest.fixture
def templated(talker, tmp_path):
  """The talker's directory with another chat template."""

  def make(template: str) -> str:
    path = pathlib.Path(shutil.copytree(talker, tmp_path / "templated", dirs_exist_ok=True))
    (path / "chat_template.jinja").write_text(template)
    return str(path)

  return make


@pytest.fixture
def on(monkeypatch):
  """Sets the day."""
  return lambda day: monkeypatch.setattr(began, "now", lambda: day)


def ends(rows, tokenizer, side: int = -1) -> set[str]:
  """The tokens that prompts end with, or with side 0 those that they begin with."""
  return {tokenizer.decode([row[side]]) for row in rows}


@pytest.mark.long
def test_a_run_goes_on_on_another_day_with_the_date_of_its_first(templated, on, tmp_path, monkeypatch):
  """Prompts, histories and the conversations of evaluations have one date."""
  model, path, dates = templated(DATED), tmp_path / "w", set()
  render_within = chat.render_within

  def watched(prompts, tokenizer, *args):
    rows, cut = render_within(prompts, tokenizer, *args)
    dates.update(ends(rows, tokenizer, 0))
    return rows, cut

  monkeypatch.setattr(chat, "render_within", watched)
  on(FIRST)
  train(small(model, **SHORT), path)
  on(LATER)
  run = train(small(model, **SHORT | {"steps": 2}), path)
  assert run.resumed_from == 1
  for problems in (run.inputs.train, run.inputs.evaluation.problems):
    dates |= ends(problems.ids, run.inputs.tokenizer, 0)
  assert dates == {"6"}
  assert json.loads((path / began.FILE).read_text()) == {"began": "2024-07-26T00:00:00"}
  assert opd_jax.load_model(path).rendering.moment == FIRST

  (path / began.FILE).write_text('{"began": "2024-08-03"}')
  with pytest.raises(InputError, match=r"cannot go on where it stopped: the date in began\.json is another than when"):
    open_run(small(model, **SHORT | {"steps": 3}), path)


def test_an_evaluation_has_the_runs_date_and_that_of_a_model_todays(templated, on, tmp_path, monkeypatch):
  model, path, found = templated(DATED), tmp_path / "w", []
  load = inputs.load_evaluation

  def caught(*args):
    found.append(load(*args))
    raise InputError("enough")

  on(FIRST)
  run = open_run(small(model, **SHORT), path)
  run.save()
  run.finish()
  on(LATER)
  monkeypatch.setattr(inputs, "load_evaluation", caught)
  for where, date in (({"workdir": str(path)}, "6"), ({"model": model}, "3")):
    flags = {"workdir": None, "model": None, "step": None, "deviation": False, "out": str(tmp_path / "out")}
    with pytest.raises(InputError, match="enough"):
      importlib.import_module("opd_jax.evaluate").run(types.SimpleNamespace(**flags | where), run.config)  # pyright: ignore[reportArgumentType]
    assert ends(found[-1].problems.ids, found[-1].tokenizer, 0) == {date}


def test_a_template_that_needs_a_system_message_reads_the_runs(templated):
  model = templated(NEEDS_SYSTEM)
  assert inputs.load(small(model, **SHORT, **{"data.system": "a=1"})).train.conversations
  with pytest.raises(
    InputError, match=r"^task:relay:1: the chat template of .* refuses the prompt \(TemplateError: no system\)"
  ):
    inputs.load(small(model, **SHORT, **{"data.on_bad_line": "refuse"}))
  with pytest.raises(
    InputError, match=r"None of the 64 conversations can be used; the first fault is at task:relay:1: "
  ):
    inputs.load(small(model, **SHORT))


def test_student_and_teacher_are_each_told_their_own(templated):
  args = {"data.template_args": {"mark": "5"}, "data.teacher_template_args": {"mark": "7"}}
  i = inputs.load(small(templated(TOLD), **SHORT, **args))
  assert ends(i.train.ids, i.tokenizer) == {"7"}, "what the teacher reads"
  assert ends(i.evaluation.problems.ids, i.tokenizer) == {"5"}
  rows, _ = chat.render_within([i.train.conversations[0].raw(("#5",))], i.tokenizer, i.rendering, 1000)
  assert ends(rows, i.tokenizer) == {"5"}
  with pytest.raises(
    InputError, match=r"data.teacher_template_args names 'marc', which the chat template of .* it reads mark"
  ):
    inputs.load(small(templated(TOLD), **SHORT, **{"data.teacher_template_args": {"marc": 1}}))


def test_what_a_template_leaves_out_is_told_before_the_run(templated):
  only_users = TURNS.replace("in messages %}", "in messages if m.role == 'user' %}", 1)
  warnings = inputs.load(small(templated(only_users), **SHORT)).warnings
  assert any("leaves out messages of the role 'assistant'" in warning for warning in warnings)


def test_a_notebook_renders_as_the_run_does(templated, tmp_path, monkeypatch):
  """With its arguments and its system message, unless a prompt has one, or the call says otherwise."""
  config = small(templated(TOLD), **SHORT, **{"data.system": "a=1", "data.template_args.mark": 5})
  run = open_run(config, tmp_path / "w")
  run.save()
  run.finish()
  model = opd_jax.load_model(tmp_path / "w")
  monkeypatch.setattr(notebook, "Generator", lambda *_, **__: lambda params, ids, *_: ids)
  own = [{"role": "system", "content": "b"}, {"role": "user", "content": "c"}]

  def read(*prompts, model=model, **how):
    return [model.tokenizer.decode(row) for row in opd_jax.generate(model, prompts, **how)]

  assert read("c", own) == ["Ua=1UcA5", "UbUcA5"]
  assert read("c", template_args={}) == ["Ua=1UcA"]
  assert read("c", template_args={"mark": "7"}, model=opd_jax.load_model(config.student)) == ["UcA7"]
  with pytest.raises(InputError, match="names 'marc'"):
    opd_jax.generate(model, ["c"], template_args={"marc": 1})
  with pytest.raises(InputError, match="given already"):
    opd_jax.generate(model, ["c"], template_args={"tools": 1})


def test_a_teacher_has_a_system_message_and_a_suffix_of_its_own(templated):
  """In conversations, where it reads everything at once; the student's have theirs behind the last turn."""
  around = {"data.system": "a=1", "data.suffix": "b=2", "data.teacher_system": "c=3", "data.teacher_suffix": ""}
  i = inputs.load(small(templated(TURNS), **SHORT, **around))
  plain = inputs.load(small(templated(TURNS), **SHORT))
  decode = i.tokenizer.decode
  full = decode(plain.train.ids[0])
  assert decode(i.train.ids[0]) == f"Uc=3{full}"
  assert decode(i.evaluation.problems.ids[0]).startswith("Ua=1U")
  assert decode(i.evaluation.problems.ids[0]).endswith("b=2A")
  raw = i.train.conversations[0].raw(["#5"] * (len(i.train.conversations[0].turns) - 1))
  assert raw[0] == {"role": "system", "content": "a=1"}
  assert raw[-1]["content"].endswith("\nb=2")
