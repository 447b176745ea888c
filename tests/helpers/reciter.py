"""A tiny model that recites: each word has one follower, whatever stands before it."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from opd_jax.models import decoder, hf

SPECIAL = ("<pad>", "<eos>", "<user>", "<bot>", "<think>", "</think>")
KEEPS, DROPS = "m['content']", "m['content'].split('</think>')[-1]"


def template(assistant: str = KEEPS, opens: str = "") -> str:
  """A chat template that shows an assistant's turn so, and opens a reply with `opens`."""
  return (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<bot> {{ " + assistant + " }} <eos> {% else %}"
    "<user> {{ m['content'] }} {% endif %}{% endfor %}{% if add_generation_prompt %}<bot> " + opens + " {% endif %}"
  )


def write_reciter(path: pathlib.Path, chain: str, others: str = "", chat_template: str = "") -> str:
  """A directory of a model that says each word of `chain` after the one before; `others` are words that it only reads."""
  words = list(dict.fromkeys([*SPECIAL, *chain.split(), *others.split()]))
  ids = {word: i for i, word in enumerate(words)}
  raw = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
  raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  raw.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
  tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<pad>", padding_side="left")
  tokenizer.chat_template = chat_template or template()
  width = 8 * -(-len(words) // 8)
  cfg = decoder.DecoderConfig(
    len(words), width, 1, heads=1, kv_heads=1, head_width=width, ff_width=8, tied=False, max_positions=256
  )
  params = jax.tree.map(lambda s: np.zeros(s, np.float32), decoder.shapes(cfg), is_leaf=lambda x: isinstance(x, tuple))
  params["norm"][:] = 1
  params["layers"]["attn_norm"][:] = 1
  params["layers"]["mlp_norm"][:] = 1
  params["embed"][np.arange(len(words)), np.arange(len(words))] = 1
  said = [ids[word] for word in chain.split()]
  params["head"][said[1:], said[:-1]] = 100 / np.sqrt(width)
  hf.write(path, cfg, jax.tree.map(jnp.asarray, params), pad_id=0, eos_id=1, dtype="float32")
  tokenizer.save_pretrained(path)
  return str(path)


def write_lines(path: pathlib.Path, *lines: dict) -> str:
  """A JSONL file."""
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return str(path)
