"""A teacher may score a student's tokens only if both read the same thing."""

import contextlib
import json
import os
import re
import subprocess
import sys

import pytest

from opd_jax.data import tokenizer as tok_lib
from opd_jax.errors import InputError
from opd_jax.models import directory

WORDS = ("<unk>", "<pad>", "<end>", "<stop>", "a", "b", "c", "d", "e")
TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"


@pytest.fixture
def make(tmp_path):
  def build(name="model", words=WORDS, template=None, **special):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "<end>"} | special
    fast = PreTrainedTokenizerFast(tokenizer_object=model, **{k: v for k, v in special.items() if v})
    fast.chat_template = template
    fast.save_pretrained(tmp_path / name)
    return tmp_path / name

  return build


def test_load_reads_ids_and_template(make):
  tokenizer = tok_lib.load(make(template=TEMPLATE))
  assert tokenizer("a b e")["input_ids"] == [4, 5, 8]
  assert tokenizer.chat_template == TEMPLATE


@pytest.mark.long
def test_load_is_silent(make):
  """A fresh process: the note about PyTorch is printed at the first import of transformers."""
  code = "import sys; from opd_jax.data import tokenizer; tokenizer.load(sys.argv[1])"
  env = {k: v for k, v in os.environ.items() if k != "TRANSFORMERS_NO_ADVISORY_WARNINGS"}
  done = subprocess.run([sys.executable, "-c", code, make()], capture_output=True, text=True, env=env, check=True)
  assert done.stdout + done.stderr == ""


def test_load_leaves_the_settings_of_transformers_alone(make, monkeypatch):
  from transformers.utils import logging

  monkeypatch.delenv("TRANSFORMERS_NO_ADVISORY_WARNINGS", raising=False)
  before = logging.get_verbosity()
  tok_lib.load(make())
  assert logging.get_verbosity() == before
  assert "TRANSFORMERS_NO_ADVISORY_WARNINGS" not in os.environ


def test_load_names_what_is_missing(tmp_path):
  with pytest.raises(InputError, match=r"no directory .*nowhere"):
    tok_lib.load(tmp_path / "nowhere")
  (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
  with pytest.raises(InputError, match=r"has no tokenizer\.json"):
    tok_lib.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_load_names_the_broken_file(make, name):
  path = make() / name
  path.write_text(path.read_text()[:-20])
  with pytest.raises(InputError, match=rf"{re.escape(str(path))}:\d+: the file is not JSON"):
    tok_lib.load(path.parent)


def test_load_names_a_tokenizer_that_is_json_but_no_tokenizer(make):
  path = make() / "tokenizer.json"
  path.write_text('{"model": {"type": "Nonsense"}}')
  with pytest.raises(InputError, match=rf"{re.escape(str(path))} cannot be read as a tokenizer"):
    tok_lib.load(path.parent)


def test_load_runs_no_code_of_the_directory(make):
  path = make()
  (path / "tokenizer.py").write_text("raise SystemExit('ran')")
  config = path / "tokenizer_config.json"
  config.write_text(config.read_text().replace("{", '{"auto_map": {"AutoTokenizer": ["tokenizer.T", null]},', 1))
  with contextlib.suppress(InputError):  # refusing it is as good as reading tokenizer.json
    tok_lib.load(path)


def compare(a, b, stops=((2,), (2,)), allow=()):
  tok_lib.compare(a, b, tok_lib.load(a), tok_lib.load(b), stops[0], stops[1], allow)


def test_compare_accepts_equals(make):
  compare(make("s", template=TEMPLATE), make("t", template=TEMPLATE + "\n"), ((2, 3), (3, 2)))


def test_compare_shows_the_first_ids_that_differ(make):
  s, t = make("s"), make("t", (*WORDS[:4], "b", "a", "d", "c", "e"))
  expected = (
    "id 4 is 'a' for the student and 'b' for the teacher, id 5 is 'b' for the student and 'a' for the teacher, "
  )
  expected += "id 6 is 'c' for the student and 'd' for the teacher, and 1 more ids differ"
  with pytest.raises(InputError, match=re.escape(expected)) as e:
    compare(s, t)
  assert str(s) in str(e.value)
  assert str(t) in str(e.value)
  assert 'config.allow_mismatch=("tokenizer",) only if the difference is intended' in str(e.value)
  compare(s, t, allow=("tokenizer",))


def test_compare_sees_a_token_that_one_side_lacks(make):
  with pytest.raises(InputError, match="id 9 is no token for the student and 'f' for the teacher;"):
    compare(make("s"), make("t", (*WORDS, "f")))


def test_compare_refuses_other_stop_tokens(make):
  s, t = make("s"), make("t")
  with pytest.raises(
    InputError, match=r"'<end>' \(id 2\) and the teacher at '<end>' \(id 2\) or '<stop>' \(id 3\)"
  ) as e:
    compare(s, t, ((2,), (3, 2)))
  assert 'config.allow_mismatch=("eos",)' in str(e.value)
  with pytest.raises(InputError, match=r"the student ends at no token at all"):
    compare(s, t, ((), (2,)))
  compare(s, t, ((2,), (3,)), ("eos",))


def test_compare_refuses_other_chat_templates(make):
  s, t, bare = make("s", template=TEMPLATE), make("t", template="{# new #}" + TEMPLATE), make("bare")
  with pytest.raises(InputError, match=r"line 1 is .\{% for .* for the student and .\{# new #\}") as e:
    compare(s, t)
  assert 'config.allow_mismatch=("chat_template",)' in str(e.value)
  with pytest.raises(InputError, match="only the student has one"):
    compare(s, bare)
  with pytest.raises(InputError, match=r"line 3 is '\(end\)' for the student and 'more' for the teacher"):
    compare(make("s2", template="a\nb"), make("t2", template="a\nb\nmore"))
  compare(s, t, allow=("chat_template",))


def test_each_difference_needs_its_own_name(make):
  s, t = make("s", template=TEMPLATE), make("t", (*WORDS, "f"))
  stops = ((2,), (3,))
  names = ["tokenizer", "eos", "chat_template"]
  for left_out in names:
    with pytest.raises(InputError, match=re.escape(f'allow_mismatch=("{left_out}",)')):
      compare(s, t, stops, [n for n in names if n != left_out])
  compare(s, t, stops, names)


@pytest.mark.parametrize(
  ("ids", "vocab", "ranges"),
  [
    ((0, 1, 2), 3, ()),
    ((0, 1, 2), 8, ((3, 8),)),
    ((1, 2, 5, 6), 10, ((0, 1), (3, 5), (7, 10))),
    ((0, 1, 9), 5, ((2, 5),)),
  ],
)
def test_ids_that_no_token_has(ids, vocab, ranges):
  class Tokenizer:
    def get_vocab(self):
      return {f"t{i}": i for i in ids}

  assert tok_lib.ids_without_token(Tokenizer(), vocab) == ranges  # pyright: ignore[reportArgumentType]


def test_pad_id_falls_back(make):
  assert tok_lib.pad_id(tok_lib.load(make("a")), (3,)) == 1
  assert tok_lib.pad_id(tok_lib.load(make("b", pad_token=None)), (3,)) == 2
  assert tok_lib.pad_id(tok_lib.load(make("c", pad_token=None, eos_token=None)), (3,)) == 3
  assert tok_lib.pad_id(tok_lib.load(make("d", pad_token=None, eos_token=None)), ()) == 0


@pytest.mark.parametrize("file", ["vocab.txt", "qwen.tiktoken", "other.model"])
def test_a_vocabulary_that_the_family_does_not_read_is_no_empty_tokenizer(file, tmp_path):
  """transformers makes a Qwen2Tokenizer of one token, for which every text is empty, and says nothing."""
  (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
  (tmp_path / file).write_text("a\nb\n")
  with pytest.raises(InputError, match=r"finds no vocabulary in|cannot be read as a tokenizer"):
    tok_lib.load(tmp_path)


def test_templates_by_name_come_with_a_copy(make, tmp_path):
  path = make(template=TEMPLATE)
  (path / "additional_chat_templates").mkdir()
  (path / "additional_chat_templates" / "tool_use.jinja").write_text("x")
  (tmp_path / "copy").mkdir()
  directory.copy(path, tmp_path / "copy", directory.TOKENIZER)
  copied = tok_lib.load(tmp_path / "copy")
  assert copied.chat_template == tok_lib.load(path).chat_template == {"default": TEMPLATE, "tool_use": "x"}
  assert copied("a b e")["input_ids"] == [4, 5, 8]


@pytest.mark.parametrize("text", ['{"a":[' * 50_000, "9" * 5000, "[]", r'{"a": "\ud800"}'])
def test_load_names_a_file_that_python_cannot_parse(make, text):
  path = make() / "tokenizer_config.json"
  path.write_text(text)
  with pytest.raises(InputError, match=re.escape(str(path))):
    tok_lib.load(path.parent)


def test_load_finds_what_would_fail_at_the_first_text(make):
  """A length of another type is only looked at when a text is tokenised."""
  path = make()
  config = path / "tokenizer_config.json"
  config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": "long"}))
  with pytest.raises(InputError, match=r"tokenizer\.json cannot be read as a tokenizer"):
    tok_lib.load(path)


def test_a_text_without_a_token_is_a_fault_with_a_name():
  from tokenizers import Tokenizer, models
  from transformers import PreTrainedTokenizerFast

  pieces = Tokenizer(models.Unigram([("a", -1.0), ("b", -2.0)], unk_id=None))
  found = PreTrainedTokenizerFast(tokenizer_object=pieces, name_or_path="pieces")
  assert tok_lib.encode(["ab"], found) == [[0, 1]]
  with pytest.raises(InputError, match="the tokenizer of pieces cannot tokenise the text"):
    tok_lib.encode(["c"], found)
