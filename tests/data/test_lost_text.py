"""Text that a tokenizer cannot write is told, and refused where it is much; healthy tokenizers say nothing."""

import time

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import opd_jax
from opd_jax import inputs, make_conversations
from opd_jax.data import lost_text, problems
from opd_jax.data.conversation import Conversation
from opd_jax.data.sources import Example
from opd_jax.errors import InputError
from opd_jax.tasks import chain

TEXTS = [
  "Weng earns $12 an hour for babysitting. Yesterday, she did 50 minutes of it.",
  "  Ünïcödé, ﬁne “quotes” … and\n\ttabs -- 3½ × 4²",
  "Łódź ist schön; 你好，世界。 Привет! नमस्ते 🙂",
]


def trained(model, trainer, normalizer=None, pre=None, decoder=None, texts=TEXTS):
  raw = Tokenizer(model)
  if normalizer:
    raw.normalizer = normalizer
  if pre:
    raw.pre_tokenizer = pre
  if decoder:
    raw.decoder = decoder
  raw.train_from_iterator(texts, trainer)
  return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>")


SPECIAL = ["<unk>", "<pad>", "<eos>"]
HEALTHY = {
  "byte-level BPE": lambda: trained(
    models.BPE(),
    trainers.BpeTrainer(
      special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    ),
    pre=pre_tokenizers.ByteLevel(add_prefix_space=False),
    decoder=decoders.ByteLevel(),
    texts=["a"],
  ),
  "Unigram with NFKC": lambda: trained(
    models.Unigram(),
    trainers.UnigramTrainer(special_tokens=SPECIAL, unk_token="<unk>", show_progress=False),
    normalizer=normalizers.NFKC(),
    pre=pre_tokenizers.Metaspace(),
    decoder=decoders.Metaspace(),
  ),
  "WordPiece in lower case": lambda: trained(
    models.WordPiece(unk_token="<unk>"),  # pyright: ignore[reportCallIssue]
    trainers.WordPieceTrainer(special_tokens=SPECIAL, show_progress=False),
    normalizer=normalizers.BertNormalizer(lowercase=True),
    pre=pre_tokenizers.BertPreTokenizer(),
    decoder=decoders.WordPiece(),
  ),
}


@pytest.mark.parametrize("kind", HEALTHY)
def test_a_tokenizer_that_knows_the_text_says_nothing(kind):
  assert lost_text.notes("prompts", TEXTS, HEALTHY[kind]()) == ()


def characters(known: str):
  raw = Tokenizer(models.WordLevel({c: i for i, c in enumerate([*SPECIAL, *known])}, unk_token="<unk>"))
  raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
  raw.decoder = decoders.Fuse()
  raw.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in SPECIAL])
  return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>")


def test_a_few_lost_characters_are_a_note_with_an_example():
  (note,) = lost_text.notes("prompts of a.jsonl", ["abcabcabcabc", "abcabcabcabc €"], characters("abcde "))
  assert "1 of 2 prompts of a.jsonl lose characters" in note
  assert "'€'" in note
  assert "'abcabcabcabc €'" in note


def test_many_lost_characters_are_refused_with_the_mend():
  with pytest.raises(InputError, match=r"cannot write the text: 2 of 2 prompts .*choose models whose tokenizer"):
    lost_text.notes("prompts", ["abc uvw", "xyz"], characters("abc "))


def test_padding_in_the_place_of_characters_is_lost_text(tmp_path):
  chain.TOKENIZER.save(tmp_path)
  from opd_jax.data import tokenizer as tokenizers

  with pytest.raises(InputError, match=r"lose characters \(\d+\.\d% of all"):
    lost_text.notes("prompts", TEXTS, tokenizers.load(tmp_path))


def test_messages_are_texts_too():
  (note,) = lost_text.notes("prompts", [[{"role": "user", "content": "abcabcabcabc €"}]], characters("abc "))
  assert "'€'" in note


def test_prompts_that_begin_with_a_token_of_the_template_are_told():
  tokenizer = characters("abc ")
  tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
  (note,) = lost_text.notes("prompts", ["<eos>abc", "abc"], tokenizer, chat_template=True)
  assert "1 of 2 prompts begin with '<eos>'" in note
  assert "set data.chat_template=False" in note
  assert lost_text.notes("prompts", ["<eos>abc", "abc"], tokenizer) == ()


def test_prompts_that_begin_as_the_template_does_are_told():
  """Also where that is text, and in messages."""
  tokenizer = characters("abc A:\n")
  tokenizer.chat_template = "a: {% for m in messages %}{{ m.content }}{% endfor %}\nc:"
  for rendered in ("a: b", [{"role": "user", "content": "a: b"}]):
    (note,) = lost_text.notes("prompts", [rendered, "b a"], tokenizer, chat_template=True)
    assert "1 of 2 prompts begin with 'a:'" in note


@pytest.mark.parametrize("token", ["<unk>", "<pad>", "<eos>"])
def test_a_text_with_a_special_token_in_it_loses_nothing(token):
  assert lost_text.notes("prompts", [f"abc {token} abc"], characters("abc ")) == ()


def test_padding_that_is_the_stop_token_too_stands_for_lost_text():
  tokenizer = characters("abc ")
  tokenizer.unk_token, tokenizer.pad_token = None, "<eos>"
  with pytest.raises(InputError, match="lose characters"):
    lost_text.notes("prompts", ["abc xyz"], tokenizer)


def test_it_is_cheap_for_large_files():
  tokenizer = HEALTHY["byte-level BPE"]()
  began = time.perf_counter()
  assert lost_text.notes("prompts", TEXTS * 20_000, tokenizer) == ()
  assert time.perf_counter() - began < 5


def test_a_run_is_refused_before_it_begins(small, tmp_path):
  path = tmp_path / "train.jsonl"
  path.write_text('{"prompt": "Weng earns twelve an hour", "answer": "10"}\n' * 4)
  with pytest.raises(InputError, match=r"cannot write the text: 4 of 4 prompts of .*train\.jsonl"):
    inputs.load(small(**{"data.path": str(path), "eval.every": 0}))


def notes(small, tokenizer, changes, held_out=False, examples=(), conversations=()):
  return problems.text_notes(small(**changes), "a.jsonl", examples, tokenizer, conversations, held_out=held_out)


def test_responses_are_looked_at_where_they_are_learned(small):
  tokenizer, responses = characters("abc "), [Example("abc", "a", "", solution="xyz")]
  for held_out, by in ((False, "student"), (True, "data")):
    assert notes(small, tokenizer, {"rollout.by": by}, held_out, responses) == ()
  with pytest.raises(InputError, match=r"1 of 1 responses of a\.jsonl lose"):
    notes(small, tokenizer, {"rollout.by": "data"}, examples=responses)


def test_turns_and_the_system_message_are_looked_at(small):
  told = Conversation("abc", ("abc", "xyz"))
  with pytest.raises(InputError, match=r"1 of 1 conversations of a\.jsonl lose"):
    notes(small, characters("abc "), {}, conversations=[told])
  with pytest.raises(InputError, match=r"1 of 1 system messages \(data\.system\) lose"):
    notes(small, characters("abc "), {"data.system": "xyz"})


def test_a_prompt_that_the_model_cannot_read_is_refused_in_a_notebook_and_for_a_rephraser(tiny):
  with pytest.raises(InputError, match="1 of 1 prompts lose"):
    opd_jax.generate(opd_jax.load_model(tiny["student"]), ["Weng earns"], max_tokens=4)
  with pytest.raises(InputError, match="1 of 1 turns lose"):
    make_conversations.load_rephraser(tiny["student"])(["Weng earns"])
