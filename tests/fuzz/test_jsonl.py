"""Problems in a JSONL file, whatever its bytes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_jax import config as configs
from opd_jax.config import Config
from opd_jax.data import problems, sources, styles, tokenizer
from tests.helpers.damage import accepted_or_refused, damaged, json_bytes
from tests.helpers.fuzz import cases

LINES = (
  {"prompt": "b=3;c=7;b+c=", "answer": "10"},
  {"prompt": [{"role": "user", "content": "b=3;"}], "answer": 3, "teacher": 0, "solution": "3", "canonical": "b=3"},
  {"prompt": [{"role": "system", "content": "b"}, {"role": "user", "content": "c=1;"}], "answer": 1.5, "note": None},
)
FIELDS = styles.Fields("prompt", "answer", teacher="teacher", canonical="canonical", solution="solution")


@st.composite
def files(draw):
  """Lines of which some are damaged, or a whole file that is."""
  lines = [json.dumps(line).encode() for line in LINES]
  if draw(st.booleans()):
    return draw(damaged(draw(st.sampled_from((b"\n", b"\r\n"))).join(lines)))
  lines = [draw(json_bytes(draw(st.sampled_from(LINES)))) if draw(st.booleans()) else line for line in lines]
  return b"\n".join(lines)


@pytest.mark.long
@cases(200)
@given(data=files(), fields=st.sampled_from((FIELDS, styles.Fields("prompt", "answer"))), mode=st.data())
def test_a_jsonl_file_is_read_or_refused_in_one_sentence(tmp_path, data, fields, mode):
  path = tmp_path / "problems.jsonl"
  path.write_bytes(data)
  on_bad_line, need_answer = mode.draw(st.sampled_from(("refuse", "skip", "truncate"))), mode.draw(st.booleans())
  with accepted_or_refused(path):
    examples, skipped, _ = sources.read_examples(path, fields, on_bad_line, need_answer)
    assert examples
    assert skipped == 0 or on_bad_line == "skip"
    for example in examples:
      assert example.where.startswith(f"{path}:")
      str(example).encode()  # what a log or a tokenizer does with it


@pytest.fixture(scope="module")
def loading(tiny) -> tuple[Config, object, object]:
  """A config of a file, and two tokenizers: of the tiny student, and of one that has a chat template."""
  from opd_jax.models import hf

  config = configs.override(configs.default(), {"data.max_prompt": 40, "eval.prompts": 3})
  return config, tokenizer.load(tiny["student"]), tokenizer.load(hf.resolve("builtin:talker"))


@pytest.mark.long
@cases(150)
@given(data=files(), held_out=st.booleans(), templated=st.booleans(), on_bad_line=st.sampled_from(("refuse", "skip")))
def test_problems_of_any_file_are_tokenised_or_refused(tmp_path, loading, data, held_out, templated, on_bad_line):
  path = tmp_path / "problems.jsonl"
  path.write_bytes(data)
  config, plain, with_template = loading
  config = configs.override(config, {"data.on_bad_line": on_bad_line})
  with accepted_or_refused(path):
    found = problems.load(config, str(path), with_template if templated else plain, held_out=held_out)
    assert all(found.ids)
    assert len(found.ids) == len(found.answers)
