"""What a config puts around every prompt: a system message and a suffix, for the student and for teachers."""

import dataclasses
import json

import numpy as np
import pytest

import opd_jax
from opd_jax import config, inputs
from opd_jax.analysis import notebook
from opd_jax.data import chat
from opd_jax.data.conversation import Conversation
from opd_jax.data.rendering import Rendering
from opd_jax.errors import InputError
from opd_jax.runtime import workdir
from opd_jax.runtime.programs import ProgramCache
from opd_jax.trainer import train
from tests.helpers.chat_tokenizers import messages, tokenizer
from tests.helpers.runs import leaves, read

TURNS = (
  "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)
CHAIN = {"data.chat_template": False, "eval.every": 0}


def text(prompt, template: str | None = TURNS, **around) -> str:
  tok = tokenizer(template)
  return str(tok.decode(chat.render(prompt, tok, Rendering(**around)))).replace(" ", "")


@pytest.fixture(scope="module")
def programs() -> ProgramCache:
  return {}


def test_a_suffix_stands_on_a_line_of_its_own_unless_it_says_otherwise():
  assert text("1+1?", suffix="Box_it.") == "[u]1+1?\nBox_it.[a]"
  assert text("1+1?", suffix="\n\nBox_it.") == "[u]1+1?\n\nBox_it.[a]"
  assert text("1+1?", suffix="") == "[u]1+1?[a]"


def test_a_suffix_stands_behind_what_the_user_says_last():
  chat_of_three = messages(("user", "1"), ("assistant", "2"), ("user", "3"))
  assert text(chat_of_three, suffix="Box.", system="Be.") == "[s]Be.[u]1[a]2[u]3\nBox.[a]"
  assert chat_of_three == messages(("user", "1"), ("assistant", "2"), ("user", "3")), "the prompt stays as it was"
  tool = messages(("user", "1"), ("assistant", "2"), ("tool", "3"))
  assert text(tool, suffix="Box.") == "[u]1\nBox.[a]2[t]3[a]"


def test_a_model_without_a_template_reads_the_suffix_too():
  assert text("1+1?", template=None, suffix="Box.") == "1+1?\nBox."
  assert text("1+1?", chat_template=False, suffix="Box.") == "1+1?\nBox."


@pytest.mark.parametrize("key", ["system", "teacher_system"])
def test_a_model_without_a_template_has_no_place_for_a_system_message(key):
  with pytest.raises(
    InputError, match=rf"config\.data\.{key} is set, .* no chat template.*say it in config\.data\.suffix"
  ):
    text("1+1?", template=None, **{key: "Be brief."})


def test_what_ends_a_turn_is_found_whatever_the_suffix():
  tok = tokenizer(TURNS)
  plain, suffixed = (chat.end_of_turn(tok, Rendering(suffix=suffix)) for suffix in ("", "Box."))
  assert plain is not None
  assert plain == suffixed
  assert chat.shows_thought(tok, "<think>", "</think>", Rendering(suffix="Box.")) == "kept"


def test_teachers_read_their_own_where_the_config_says_so():
  rendering = Rendering(system="S", suffix="X", args={"a": 1})
  assert not rendering.teacher_differs
  assert rendering.for_teacher() == rendering
  own = Rendering(system="S", suffix="X", teacher_system="T", teacher_suffix="", teacher_args={"b": 2})
  assert own.teacher_differs
  assert own.for_teacher() == Rendering(system="T", suffix="", args={"b": 2})
  assert own.for_teacher().for_teacher() == own.for_teacher()


def test_a_conversation_has_the_suffix_behind_its_last_turn():
  told = Conversation("All. How many?", ("How many?", "All.")).with_suffix("Box.").with_system("Be.")
  assert told.raw(("2",)) == tuple(
    messages(("system", "Be."), ("user", "How many?"), ("assistant", "2"), ("user", "All.\nBox."))
  )
  assert told.concat()[-1]["content"] == "How many?\nAll.\nBox."
  assert told.full == tuple(messages(("system", "Be."), ("user", "All. How many?\nBox.")))


def write(path, *prompts):
  path.write_text("".join(json.dumps({"prompt": p, "answer": "3"}) + "\n" for p in prompts))
  return str(path)


def test_training_evaluation_and_notebooks_read_the_same(small, tmp_path, monkeypatch):
  path = write(tmp_path / "data.jsonl", "5+", "58+", "583+")
  c = small("opd", **{"data.path": path, "eval.path": path, "data.suffix": "x3="})
  found = inputs.load(c)
  assert found.tokenizer.decode(found.train.ids[1]).endswith("x3=")
  assert found.train.ids == found.evaluation.problems.ids
  assert found.train.teacher_ids == ()
  assert list(found.train.origin) == ["data file", "tokenizer", "suffix"]
  model = dataclasses.replace(opd_jax.load_model(c.student), rendering=found.rendering)
  monkeypatch.setattr(notebook, "Generator", lambda *_, **__: lambda params, ids, *_: ids)
  assert opd_jax.generate(model, ["58+"]) == [found.train.ids[1]]


def test_the_keys_change_what_a_run_is_and_their_defaults_nothing():
  c = config.default()
  digests = {workdir.digest(c, {})}
  for key, value in (("suffix", "Box."), ("teacher_system", ""), ("teacher_suffix", "Box.")):
    digests.add(workdir.digest(config.override(c, {f"data.{key}": value}), {}))
  assert len(digests) == 4
  former = json.loads(config.to_json(c))
  for key in ("suffix", "teacher_system", "teacher_suffix", "answer_pattern"):
    del former["data"][key]
  assert config.different(config.from_saved(former), c) == {}
  assert {"data.suffix", "data.teacher_system", "data.teacher_suffix", "data.answer_pattern"}.isdisjoint(
    config.changed(c)
  )


def test_a_prompt_that_is_too_long_for_teachers_alone_is_a_bad_line(small, tmp_path):
  path = write(tmp_path / "data.jsonl", "5+", "5834+", "58+")
  c = CHAIN | {"data.path": path, "data.teacher_suffix": "\n==", "data.max_prompt": 7}
  with pytest.raises(InputError, match=r"data\.jsonl:2: the prompt has 8 tokens, more than data\.max_prompt=7"):
    inputs.load(small("opd", **c))
  found = inputs.load(small("opd", **c, **{"data.on_bad_line": "skip"})).train
  assert (len(found.ids), found.skipped, found.answers) == (2, 1, ["3", "3"])
  assert [len(row) for row in found.teacher_ids] == [5, 6]


@pytest.mark.long
def test_a_run_trains_against_teachers_that_read_their_own_prompts(small, tmp_path, programs):
  """The student's prompts, rollouts and evaluation stay; what the teacher says of them does not."""
  path = write(tmp_path / "data.jsonl", *(f"{a}{b}+" for a in "58" for b in "37"))
  changes = {"data.path": path, "data.chat_template": False, "eval.every": 0, "steps": 2}
  same, own = (
    train(small("opd", **changes | of_teacher), tmp_path / name, programs)
    for name, of_teacher in (("same", {}), ("own", {"data.teacher_suffix": "\n-++x3="}))
  )
  assert own.prompts.teacher_prompt_len == 16
  assert same.prompts.teacher_prompt_len == 0
  (first, *_), (other, *_) = read(tmp_path / "same", "train"), read(tmp_path / "own", "train")
  assert first["step_tokens"] == other["step_tokens"]
  assert first["loss"] != other["loss"]
  batch = next(inputs.load(own.config).prompts(np.arange(4)))
  theirs, mine = (
    [own.inputs.tokenizer.decode(row[mask]) for row, mask in zip(b.prompt, b.prompt_mask, strict=True)]
    for b in (batch.of_teacher, batch)
  )
  assert all(t.endswith("-++x3=") and t.startswith(m) for t, m in zip(theirs, mine, strict=True))
  resumed = train(small("opd", **changes | {"data.teacher_suffix": "\n-++x3=", "steps": 3}), tmp_path / "own", programs)
  straight = train(
    small("opd", **changes | {"data.teacher_suffix": "\n-++x3=", "steps": 3}), tmp_path / "straight", programs
  )
  for a, b in zip(leaves(resumed.state), leaves(straight.state), strict=True):
    np.testing.assert_array_equal(a, b)
