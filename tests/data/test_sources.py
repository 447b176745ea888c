"""A bad line stops the run with its number and the mend, or is left out and counted."""

import json
import re

import pytest

from opd_jax.data.sources import Example, read_examples
from opd_jax.data.styles import Fields
from opd_jax.errors import InputError

GOOD = {"prompt": "1 + 1 =", "answer": "2"}


@pytest.fixture
def write(tmp_path):
  def to(*lines, end="\n", name="train.jsonl"):
    path = tmp_path / name
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + end
    path.write_bytes(text.encode())
    return path

  return to


def read(path, on_bad_line="refuse", need_answer=True, prompt="prompt", answer="answer"):
  return read_examples(path, Fields(prompt, answer), on_bad_line, need_answer)[:2]


def test_reads_text_and_messages_in_order(write):
  chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2 ="}]
  path = write({"q": "1 + 1 =", "a": 2, "id": 7}, {"q": chat, "a": "4"})
  examples, skipped = read(path, prompt="q", answer="a")
  assert examples == [Example("1 + 1 =", "2", f"{path}:1"), Example(tuple(chat), "4", f"{path}:2")]
  assert skipped == 0


@pytest.mark.parametrize("end", ["", "\n", "\n\n  \n", "\r\n"])
def test_the_end_of_the_file_does_not_matter(write, end):
  examples, skipped = read(write(GOOD, GOOD, end=end))
  assert (len(examples), skipped) == (2, 0)


def test_only_a_newline_ends_a_line(write):
  """str.splitlines would also cut at U+2028, which JSON allows unescaped inside a string."""
  text = json.dumps({**GOOD, "prompt": "a\u2028b\u0085c"}, ensure_ascii=False)
  examples, _ = read(write(text, GOOD))
  assert [e.prompt for e in examples] == ["a\u2028b\u0085c", GOOD["prompt"]]


def test_a_byte_order_mark_is_no_text(write):
  assert read(write("\ufeff" + json.dumps(GOOD)))[0][0].prompt == GOOD["prompt"]


def test_the_answer_may_be_missing_where_nothing_verifies_it(write):
  path = write({"prompt": "Hi"}, {"prompt": "Hi", "answer": None}, GOOD)
  examples, skipped = read(path, need_answer=False)
  assert ([e.answer for e in examples], skipped) == (["", "", "2"], 0)


BAD = {
  "broken": ('{"prompt": "x', "not JSON"),
  "list": ("[1, 2]", "a list, not a JSON object"),
  "blank": ("", "the line is empty"),
  "deep": ("[" * 100_000, "cannot be read"),
  "digits": ('{"prompt": ' + "1" * 5000 + "}", "cannot be read"),
  "missing prompt": ({"question": "x", "answer": "2"}, "'prompt' (fields of the line: 'question', 'answer')"),
  "missing answer": ({"prompt": "x", "gold": "2"}, "'answer' (fields of the line: 'prompt', 'gold')"),
  "no fields": ({}, "fields of the line: none"),
  "empty": ({"prompt": "", "answer": "2"}, "'prompt' is blank"),
  "whitespace": ({"prompt": " \n\t", "answer": "2"}, "'prompt' is blank"),
  "number": ({"prompt": 3, "answer": "2"}, "'prompt' is a number"),
  "null": ({"prompt": None, "answer": "2"}, "'prompt' is null"),
  "surrogate": ('{"prompt": "\\ud800", "answer": "2"}', "surrogate"),
  "blank answer": ({"prompt": "x", "answer": " "}, "'answer' is blank"),
  "boolean answer": ({"prompt": "x", "answer": True}, "'answer' is a boolean"),
  "NaN answer": ('{"prompt": "x", "answer": NaN}', "'answer' is not a finite number"),
  "no messages": ({"prompt": [], "answer": "2"}, "an empty list"),
  "message is text": ({"prompt": ["x"], "answer": "2"}, "message 1 of the field 'prompt' is a string"),
  "no content": ({"prompt": [{"role": "user"}], "answer": "2"}, "message 1 of the field 'prompt'"),
  "role": ({"prompt": [{"role": "bot", "content": "x"}], "answer": "2"}, "has the role 'bot'"),
  "unhashable role": ({"prompt": [{"role": ["user"], "content": "x"}], "answer": "2"}, "has the role ['user']"),
  "parts": ({"prompt": [{"role": "user", "content": [{"text": "x"}]}], "answer": "2"}, "content that is a list"),
  "blank message": (
    {"prompt": [{"role": "user", "content": " "}], "answer": "2"},
    "message 1 of the field 'prompt' is",
  ),
  "assistant last": (
    {"prompt": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "answer": "2"},
    "ends with the assistant's message",
  ),
}


@pytest.mark.parametrize("policy", ["refuse", "truncate"])
@pytest.mark.parametrize(("line", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_line_is_refused_with_its_place_and_the_mend(write, line, message, policy):
  path = write(GOOD, line, GOOD)
  with pytest.raises(InputError, match=re.escape(message)) as e:
    read(path, policy)
  assert str(e.value).startswith(f"{path}:2: ")
  assert "data.on_bad_line=skip" in str(e.value)
  assert "\n" not in str(e.value)


@pytest.mark.parametrize("line", [line for line, _ in BAD.values()], ids=BAD.keys())
def test_a_bad_line_can_be_skipped(write, line):
  path = write(GOOD, line, GOOD)
  examples, skipped = read(path, "skip")
  assert [e.where for e in examples] == [f"{path}:1", f"{path}:3"]
  assert skipped == 1


def test_a_missing_field_names_the_key_to_set(write):
  with pytest.raises(InputError, match=r"set data\.prompt_field to the right one"):
    read(write({"question": "x", "answer": "2"}))
  with pytest.raises(InputError, match=r"set data\.answer_field to the right one"):
    read(write({"prompt": "x", "label": "2"}))


def test_skipping_every_line_is_refused(write):
  path = write({"question": "x"}, {"question": "y"})
  with pytest.raises(InputError, match=r"None of the 2 lines .* first fault is at .*train\.jsonl:1: .*'question'"):
    read(path, "skip")


@pytest.mark.parametrize("policy", ["refuse", "skip"])
class TestFiles:
  def test_missing(self, tmp_path, policy):
    with pytest.raises(InputError, match=r"no file .*nothing\.jsonl; data\.path"):
      read(tmp_path / "nothing.jsonl", policy)

  def test_directory(self, tmp_path, policy):
    with pytest.raises(InputError, match="is a directory"):
      read(tmp_path, policy)

  @pytest.mark.parametrize("text", ["", "\n\n  \n"])
  def test_empty(self, write, policy, text):
    with pytest.raises(InputError, match=r"train\.jsonl is empty"):
      read(write(text, end=""), policy)

  @pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
  def test_not_utf8(self, write, policy, encoding):
    path = write(GOOD)
    path.write_bytes(path.read_bytes() + json.dumps({**GOOD, "prompt": "é"}, ensure_ascii=False).encode(encoding))
    with pytest.raises(InputError, match=r"train\.jsonl:2: byte \d+ is not UTF-8"):
      read(path, policy)


def test_a_message_stays_short_whatever_the_line_holds(write):
  for line in ({"x" * 5000: 1}, {str(i): 1 for i in range(1000)}, {"prompt": [{"role": "x" * 5000, "content": "a"}]}):
    with pytest.raises(InputError) as e:
      read(write(line), need_answer=False)
    assert len(str(e.value)) < 700
