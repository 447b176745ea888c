"""Records of known data sets are read where these have their problems; what the config names wins."""

import json
import pathlib

import pytest

from opd_jax import inputs
from opd_jax.data.sources import read_examples
from opd_jax.data.styles import Fields
from opd_jax.errors import InputError

GSM8K = {"question": "9 eggs twice?", "answer": "9 * 2 = <<9*2=18>>18\n#### 18"}
MATH = {"problem": "9 \\cdot 2?", "level": "Level 1", "type": "Algebra", "solution": "It is $\\boxed{18}$."}
AIME = {"ID": "2024-I-1", "Problem": "9 * 2?", "Solution": "Count \\boxed{018}", "Answer": 18}
AIME_TEXT = {"id": 60, "problem": "9 * 2?", "solution": "It is \\boxed{018}.", "answer": "018", "year": "2024"}
DAPO = {
  "data_source": "math_dapo",
  "prompt": [{"content": "9 * 2?", "role": "user"}],
  "ability": "MATH",
  "reward_model": {"ground_truth": "18", "style": "rule-lighteval/MATH_v2"},
  "extra_info": {"index": "a"},
}
STYLES = {
  "GSM8K": (GSM8K, "question", "answer"),
  "MATH": (MATH, "problem", "solution"),
  "AIME": (AIME, "Problem", "Answer"),
  "AIME, text": (AIME_TEXT, "problem", "answer"),
  "DAPO": (DAPO, "prompt", "reward_model.ground_truth"),
}


@pytest.fixture
def read(tmp_path):
  def of(*records, fields=None, on_bad_line="refuse"):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in records))
    return read_examples(path, fields or Fields(), on_bad_line, need_answer=True)

  return of


@pytest.mark.parametrize("name", STYLES)
def test_records_of_a_known_shape_are_read_and_told(read, tmp_path, name):
  record, prompt, answer = STYLES[name]
  (example,), _, notes = read(record)
  assert example.prompt in (record[prompt], tuple(record[prompt]))
  assert example.answer == str({"reward_model.ground_truth": "18"}.get(answer) or record[answer])
  assert notes == (
    f"{tmp_path / 'train.jsonl'} has {name.split(',')[0]}-style records: the prompt is read from {prompt!r}, the answer from "
    f"{answer!r}",
  )


@pytest.mark.parametrize("name", STYLES)
def test_the_fields_that_the_config_names_win(read, name):
  record, prompt, answer = STYLES[name]
  record = record | {"text": "Other?", "label": "7"}
  (example,), _, notes = read(record, fields=Fields("text", "label"))
  assert (example.prompt, example.answer, notes) == ("Other?", "7", ())
  (example,), _, notes = read(record, fields=Fields(prompt, answer))
  assert (example.answer != "7", notes) == (True, ())


def test_one_field_may_be_named_and_the_other_found(read):
  (example,), _, notes = read(MATH | {"answer_key": 1}, fields=Fields(prompt="problem"))
  assert (example.answer, len(notes)) == (MATH["solution"], 1)
  with pytest.raises(InputError, match=r"there is no field 'answer' .*data\.answer_field"):
    read(MATH, fields=Fields(prompt="level"))


def test_default_fields_are_read_where_they_are(read):
  record = {"prompt": "1 + 1", "answer": "2"} | {"question": "x", "problem": "y", "Answer": 3, "solution": "\\boxed{4}"}
  (example,), _, notes = read(record)
  assert (example.prompt, example.answer, notes) == ("1 + 1", "2", ())


@pytest.mark.parametrize(
  ("record", "says"),
  [
    (MATH | AIME, r"may be MATH-style \('problem' and 'solution'\) or AIME-style \('Problem' and 'Answer'\)"),
    (GSM8K | {"problem": "9 * 2?"}, r"may be GSM8K-style .* it has the field 'problem' too"),
    (AIME_TEXT | {"question": "Which?"}, r"may be AIME-style .* it has the field 'question' too"),
  ],
)
def test_a_record_of_several_shapes_is_refused_with_the_mend(read, record, says):
  with pytest.raises(InputError, match=says) as refused:
    read(record)
  assert "train.jsonl:1: " in str(refused.value)
  assert str(refused.value).endswith("name the fields that are meant in data.prompt_field and data.answer_field.")


@pytest.mark.parametrize(
  "record",
  [
    {"question": "9 eggs?", "answer": "18"},  # no mark of GSM8K's
    {"problem": "9?", "solution": "It is 18."},
    {"problem": "9?", "answer": "x + 1"},
    {"problem": 9, "answer": 9},
    {"prompt": "9?", "reward_model": "18"},
  ],
)
def test_what_only_looks_like_a_known_shape_is_not_guessed(read, record):
  with pytest.raises(InputError, match=r"there is no field '(prompt|answer)'"):
    read(record)


def test_the_first_record_that_is_one_decides(read):
  examples, skipped, notes = read("not JSON", GSM8K, {"question": "x"}, GSM8K, on_bad_line="skip")
  assert (len(examples), skipped, len(notes)) == (2, 2, 1)


def test_dotted_fields_can_be_named(read):
  (example,), *_ = read({"prompt": "1", "a": {"b": 2}, "a.b": 3}, fields=Fields("prompt", "a.b"))
  assert example.answer == "3", "a key that is so written is meant first"
  (example,), *_ = read({"prompt": "1", "a": {"b": 2}}, fields=Fields("prompt", "a.b"))
  assert example.answer == "2"


@pytest.mark.long
def test_a_run_says_so_before_its_first_step(small, tmp_path):
  path = tmp_path / "train.jsonl"
  path.write_text(json.dumps({"question": "1+1=", "answer": "#### 2"}))
  loaded = inputs.load(small("opd", **{"data.path": str(path), "eval.path": str(path)}))
  assert [w for w in loaded.warnings if "GSM8K-style records: the prompt is read from 'question'" in w]
  assert loaded.evaluation.problems.answers == ["2"]


GSM8K_FILES = pathlib.Path(__file__).resolve().parents[3] / "shared/data/gsm8k"


@pytest.mark.skipif(not GSM8K_FILES.is_dir(), reason="no GSM8K at hand")
@pytest.mark.parametrize("name", ["train", "test"])
def test_all_of_gsm8k_is_read_as_it_is_published(name):
  path = GSM8K_FILES / f"{name}.jsonl"
  examples, skipped, notes = read_examples(path, Fields(), "refuse", need_answer=True)
  assert (len(examples), skipped, len(notes)) == ({"train": 7473, "test": 1319}[name], 0, 1)
  assert all("####" in e.answer and e.prompt == e.record["question"] for e in examples)
