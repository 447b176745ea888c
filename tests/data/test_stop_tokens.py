"""What ends a response, where a model's files, its tokenizer and its chat template say different things."""

import importlib
import json
import pathlib
import shutil

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import opd_jax
from opd_jax import inputs
from opd_jax.analysis import accuracy
from opd_jax.data import problems, stop_tokens
from opd_jax.data.problems import Problems
from opd_jax.data.rendering import Rendering
from opd_jax.errors import InputError
from opd_jax.runtime import cli

WORDS = ("<pad>", "<eos>", "<end>", "<user>", "<bot>", "Yes.", "Hello.", "User:")
PAD, EOS, END, USER, BOT, YES = range(6)
TEMPLATE = (
  "{% for m in messages %}{% if m.role == 'assistant' %}<bot> {{ m.content }} STOP {% else %}<user> {{ m.content }} "
  "{% endif %}{% endfor %}{% if add_generation_prompt %}<bot> {% endif %}"
)

NEEDS_SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}"


def tokenizer(end: str | None, eos: str | None = "<eos>"):
  """A tokenizer whose template puts `end` behind an assistant's turn; None: it has no template."""
  raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<pad>"))
  raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  raw.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in WORDS[:5]])
  made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=eos, pad_token="<pad>")
  made.chat_template = None if end is None else TEMPLATE.replace("STOP ", end)
  return made


@pytest.mark.parametrize(
  ("declared", "end", "eos", "ids", "note"),
  [
    ((EOS,), "<eos> ", "<eos>", (EOS,), ""),
    ((EOS, END), "<end> ", "<end>", (EOS, END), ""),
    ((EOS,), None, "<eos>", (EOS,), ""),
    ((), None, "<eos>", (EOS,), ""),
    ((), None, None, (), ""),
    ((EOS,), "<end> ", "<eos>", (EOS, END), "named differently: the model's config '<eos>', its tokenizer '<eos>'"),
    ((EOS,), "<end> ", "<end>", (EOS, END), "the model's config '<eos>', its tokenizer '<end>'; each of them ends it"),
    ((EOS,), "<eos> ", "<end>", (EOS, END), "its tokenizer '<end>'"),
    ((EOS,), "", "<eos>", (EOS, USER), "its chat template '<user>'"),
  ],
)
def test_any_source_ends_a_response_and_differences_are_told(declared, end, eos, ids, note):
  found = stop_tokens.find(declared, tokenizer(end, eos), Rendering())
  assert found.ids == ids
  assert note in found.note
  assert bool(note) == bool(found.note)


def test_a_turn_that_no_token_ends_is_told():
  plain = TEMPLATE.replace("STOP ", "Hello. ").replace("<user>", "User:")
  made = tokenizer("<eos> ")
  made.chat_template = plain
  found = stop_tokens.find((EOS,), made, Rendering())
  assert found.ids == (EOS,)
  assert "ends an assistant's turn with 'Hello.', and responses end with '<eos>'" in found.note


def test_a_template_that_opens_a_thought_ends_a_turn_too():
  """What it begins a generated reply with is not in the history."""
  made = tokenizer("<end> ")
  made.chat_template = TEMPLATE.replace("STOP", "<end>").replace("%}<bot> {% endif", "%}<bot> <think> {% endif")
  found = stop_tokens.find((EOS,), made, Rendering())
  assert found.ids == (EOS, END)
  assert "its chat template '<end>'" in found.note


def test_a_stop_token_that_no_token_has_is_told_and_refused_where_it_is_the_only_one():
  made = tokenizer("<eos> ")
  assert stop_tokens.find((EOS, 77), made, Rendering()) == (
    (EOS, 77),
    "eos_token_id names 77, which no token of the tokenizer has: it is never drawn",
  )
  with pytest.raises(InputError, match=r"eos_token_id names 77, .* so no response could end; mend eos_token_id"):
    stop_tokens.find((77,), tokenizer(None, eos=None), Rendering())


@pytest.mark.parametrize(
  ("end", "eos", "stop", "of_learned"),
  [
    ("<end> ", "<eos>", (EOS, END), [END]),
    ("<end> ", "<eos>", (EOS,), [EOS]),
    (None, "<end>", (EOS, END), [END]),
    (None, None, (EOS, END), [EOS]),
    (None, "<eos>", (), []),
  ],
)
def test_a_response_to_learn_ends_as_a_turn_does(end, eos, stop, of_learned):
  train = Problems([[YES]], [], solutions=("Yes.",))
  assert problems.solutions(train, tokenizer(end, eos), stop, Rendering()) == [[YES, *of_learned]]


def test_a_response_to_learn_that_has_its_end_gets_no_second_one():
  train = Problems([[YES]] * 2, [], solutions=("Yes. <end>", "Yes. <eos>"))
  assert problems.solutions(train, tokenizer("<end> "), (EOS, END), Rendering()) == [[YES, END], [YES, EOS]]


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{% for %}", ""])
def test_a_template_that_shows_no_turn_says_nothing(template):
  made = tokenizer("<end> ")
  made.chat_template = template
  assert stop_tokens.find((EOS,), made, Rendering()) == ((EOS,), "")


def test_a_template_that_needs_a_system_message_names_its_end():
  """The run's own, or where the data have one, any."""
  made = tokenizer("<end> ")
  made.chat_template = NEEDS_SYSTEM + TEMPLATE.replace("STOP", "<end>")
  for rendering in (Rendering(system="s"), Rendering()):
    assert stop_tokens.find((EOS,), made, rendering).ids == (EOS, END)


def test_a_template_that_is_not_used_says_nothing():
  assert stop_tokens.find((EOS,), tokenizer("<end> "), Rendering(chat_template=False)) == ((EOS,), "")


@pytest.fixture
def mixed(tiny, tmp_path) -> dict[str, str]:
  """Models whose files name the padding, and whose tokenizer names the right token."""
  for role in ("student", "teacher"):
    directory = pathlib.Path(shutil.copytree(tiny[role], tmp_path / role))
    for name in ("config.json", "generation_config.json"):
      (directory / name).write_text(json.dumps(json.loads((directory / name).read_text()) | {"eos_token_id": 0}))
  return {role: str(tmp_path / role) for role in ("student", "teacher")}


@pytest.mark.long
def test_a_run_tells_it_before_the_first_step(small, mixed):
  loaded = inputs.load(small(**mixed))
  assert loaded.student.stop_ids == loaded.sampling.stop_ids == (0, 1)
  assert loaded.evaluation
  assert loaded.evaluation.sampling.stop_ids == (0, 1)
  assert sum("what ends a response is named differently" in warning for warning in loaded.warnings) == 2


@pytest.mark.long
def test_an_evaluation_and_a_notebook_tell_it(mixed, capsys, monkeypatch):
  evaluate = importlib.import_module("opd_jax.evaluate")
  monkeypatch.setattr(accuracy, "make_evaluator", lambda *_, **__: print("generated") or 1 / 0)
  values, config = cli.parse(
    ["evaluate", f"--model={mixed['student']}", "--config.eval.prompts=2"], "", evaluate.define, cli.of_method
  )
  with pytest.raises(ZeroDivisionError):
    evaluate.run(values, config)
  said = capsys.readouterr().out
  assert said.startswith("note: what ends a response is named differently")
  assert said.endswith("generated\n")
  with pytest.warns(UserWarning, match="named differently"):
    assert opd_jax.load_model(mixed["student"]).spec.stop_ids == (0, 1)
