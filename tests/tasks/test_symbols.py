"""The character tokenizer of the built-in tasks: what it writes is what the shipped models came with."""

import json

import pytest

from opd_jax.data import tokenizer as tokenizers
from opd_jax.models import hf
from opd_jax.tasks import chain, relay
from opd_jax.tasks.symbols import CharTokenizer


@pytest.mark.parametrize(
  ("tokenizer", "model", "files"),
  [
    (chain.TOKENIZER, "student", ["tokenizer.json"]),
    (relay.TOKENIZER, "talker", ["tokenizer.json", "chat_template.jinja"]),
  ],
)
def test_saved_files_are_those_of_the_shipped_models(tokenizer, model, files, tmp_path):
  tokenizer.save(tmp_path)
  for file in files:
    assert (tmp_path / file).read_text() == (hf.resolve(f"builtin:{model}") / file).read_text()
  config = json.loads((tmp_path / "tokenizer_config.json").read_text())
  assert (config["pad_token"], config["eos_token"], config["padding_side"]) == ("<pad>", "<eos>", "left")
  assert (tmp_path / "chat_template.jinja").exists() == bool(tokenizer.chat_template)


def test_a_saved_tokenizer_encodes_as_it_does(tmp_path):
  tokenizer = CharTokenizer(("<pad>", "<eos>", *"ab\n "), "<pad>", "<eos>")
  tokenizer.save(tmp_path)
  loaded = tokenizers.load(tmp_path)
  assert tokenizer.encode("a b\n") == [2, 5, 3, 4] == loaded("a b\n")["input_ids"]
  assert tokenizer.encode([*"ab", "<eos>"]) == [2, 3, 1]
  assert loaded.decode([2, 5, 3, 4]) == "a b\n"
  with pytest.raises(KeyError):
    tokenizer.encode("c")
