"""The tokenizer of a GGUF file, written as tokenizer.json, tokenizer_config.json and chat_template.jinja.

Byte-level BPE is rebuilt from the file's tokens and merges. How text is cut before the merges stands in no file, only a
name for it, so what each name means is written here, after llama.cpp's table.
"""

import pathlib
from typing import TYPE_CHECKING, Any

from opd_jax.errors import InputError, brief
from opd_jax.models import directory as directories
from opd_jax.models.gguf_files import File, token_id

if TYPE_CHECKING:
  from tokenizers import Tokenizer

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {  # tokenizer.ggml.pre: the pattern that text is cut by; "gpt2": that of ByteLevel, "digits": digits alone before it
  "default": "gpt2",
  "gpt-2": "gpt2",
  "smollm": "digits",
  "qwen2": CONTRACTIONS + r"\p{N}" + REST,
  "deepseek-r1-qwen": CONTRACTIONS + r"\p{N}" + REST,
  "llama-bpe": CONTRACTIONS + r"\p{N}{1,3}" + REST,
  "llama3": CONTRACTIONS + r"\p{N}{1,3}" + REST,
}
WHOLE_WORDS = ("llama-bpe", "llama3")  # a word that is a token is that token, whatever the merges say
COMPOSED = ("qwen2", "deepseek-r1-qwen")  # Unicode's NFC
CONTROL, USER_DEFINED = 3, 4  # tokenizer.ggml.token_type
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}


def stop_ids(file: File) -> list[int]:
  """The ids that end a response: of the end of a text and of a turn."""
  ids = (token_id(file, f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
  return sorted({i for i in ids if i is not None})


def write(file: File, directory: pathlib.Path) -> None:
  """Write the files of the tokenizer.

  Raises:
    InputError: it is not byte-level BPE, or the file has not what it is made of.
  """
  tokens = file.get("tokenizer.ggml.tokens") or []
  _tokenizer(file, tokens).save(str(directory / "tokenizer.json"))
  config: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
    "model_max_length": file.get(f"{file.get('general.architecture')}.context_length"),
  }
  for key, name in SPECIAL.items():
    i = token_id(file, f"tokenizer.ggml.{name}_token_id")
    if i is not None and i < len(tokens):
      config[key] = tokens[i]
  directories.write_json(directory / "tokenizer_config.json", config)
  if template := file.get("tokenizer.chat_template"):
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")


def _tokenizer(file: File, tokens: list[str]) -> "Tokenizer":
  from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

  kind, pre = file.get("tokenizer.ggml.model"), file.get("tokenizer.ggml.pre", "default")
  if kind != "gpt2" or pre not in SPLITS:
    raise InputError(
      f"{file.path} has a tokenizer of kind {brief(kind)}, {brief(pre)}, which is not rebuilt (kind 'gpt2' is, with "
      f"{', '.join(SPLITS)}); give --tokenizer=DIR, a directory that has the model's tokenizer.json."
    )
  merges = [tuple(merge.split(" ")) for merge in file.get("tokenizer.ggml.merges") or []]
  ids = {token: i for i, token in enumerate(tokens)}
  if not ids or any(len(merge) != 2 or not {*merge, "".join(merge)} <= ids.keys() for merge in merges):
    raise InputError(f"{file.path} has no tokens, or merges of tokens that it does not have; download it again.")
  tokenizer = Tokenizer(models.BPE(ids, merges, ignore_merges=pre in WHOLE_WORDS))
  split = SPLITS[pre]
  byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split in ("gpt2", "digits"))
  first = {"gpt2": [], "digits": [pre_tokenizers.Digits(individual_digits=True)]}
  by_pattern = [pre_tokenizers.Split(Regex(split), "isolated")] if split not in first else []
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first.get(split, by_pattern), byte_level])
  if pre in COMPOSED:
    tokenizer.normalizer = normalizers.NFC()
  tokenizer.decoder = decoders.ByteLevel()
  types = file.get("tokenizer.ggml.token_type") or []
  added = [
    (token, kind == CONTROL) for token, kind in zip(tokens, types, strict=False) if kind in (CONTROL, USER_DEFINED)
  ]
  tokenizer.add_tokens([AddedToken(token, special=control, normalized=False) for token, control in added])
  bos = token_id(file, "tokenizer.ggml.bos_token_id")
  if file.get("tokenizer.ggml.add_bos_token") and bos is not None and bos < len(tokens):
    tokenizer.post_processor = processors.TemplateProcessing(
      f"{tokens[bos]}:0 $A:0", f"{tokens[bos]}:0 $A:0 {tokens[bos]}:1 $B:1", [(tokens[bos], bos)]
    )
  return tokenizer
