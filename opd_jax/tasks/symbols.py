"""A tokenizer of single characters, as an ordinary tokenizer.json and tokenizer_config.json."""

import pathlib


def save_tokenizer(directory: pathlib.Path, ids: dict[str, int], pad: str, eos: str, chat_template: str = "") -> None:
  from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
  from transformers import PreTrainedTokenizerFast

  raw = Tokenizer(models.WordLevel(ids, unk_token=pad))
  raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
  raw.decoder = decoders.Fuse()
  fast = PreTrainedTokenizerFast(
    tokenizer_object=raw, pad_token=pad, eos_token=eos, padding_side="left", clean_up_tokenization_spaces=False
  )
  if chat_template:
    fast.chat_template = chat_template
  fast.save_pretrained(directory)
