"""What a tokenizer cannot write of a text, and texts that were rendered in a chat template before.

A tokenizer without a token for a character puts its unknown token or its padding there. The model then reads prompts that it was
never given, the loss falls, and the accuracy stays where it was.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

from opd_jax.data.chat import Prompt
from opd_jax.errors import InputError

LOOKED_AT = 512  # texts, spread evenly over all of them
MOST = 0.1  # share of the characters that may be lost


def notes(what: str, prompts: Sequence[Prompt], tokenizer: Any, *, chat_template: bool = False) -> tuple[str, ...]:
  """Look for prompts that the tokenizer cannot write, or that the chat template would render a second time.

  Args:
    what: what the texts are called in messages, e.g. "prompts of train.jsonl".
    chat_template: prompts are rendered in the chat template.

  Returns:
    What is worth a note before the run.

  Raises:
    InputError: more than a tenth of the characters would be lost.
  """
  step = max(1, len(prompts) // LOOKED_AT)
  some = [_text(prompt) for prompt in prompts[::step]]
  of_all = f"{len(some)} {what}" if step == 1 else f"{len(some)} {what} that were looked at"
  found = []
  if note := _lost(of_all, some, tokenizer):
    found.append(note)
  if chat_template and (note := _rendered(of_all, prompts[::step], tokenizer)):
    found.append(note)
  return tuple(found)


def _lost(of_all: str, texts: Sequence[str], tokenizer: Any) -> str:
  """Describe the texts that lose characters, "" for none."""
  lost = [lost_characters(text, tokenizer) for text in texts]
  if not any(lost):
    return ""
  worst = max(range(len(texts)), key=lambda i: sum(lost[i].values()) / max(1, len(texts[i])))
  share = sum(sum(each.values()) for each in lost) / max(1, sum(map(len, texts)))
  characters = "".join(sorted(set().union(*lost)))
  name = getattr(tokenizer, "name_or_path", "") or "this tokenizer"
  shown = f"{sum(map(bool, lost))} of {of_all} lose characters ({share:.1%} of all: {_short(characters)}), e.g. {_short(texts[worst])}"
  if share > MOST:
    raise InputError(
      f"The tokenizer of {name} cannot write the text: {shown}; choose models whose tokenizer knows these characters, or "
      "other data."
    )
  return f"the tokenizer cannot write everything: {shown}"


def lost_characters(text: str, tokenizer: Any) -> Counter[str]:
  """Count the characters that are not there any more after encoding and decoding.

  Case, accents, white space, control characters and compatibility forms do not count, since tokenizers normalise them.
  """
  ids = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
  written = tokenizer.decode(
    [i for i in ids if i not in (tokenizer.unk_token_id, tokenizer.pad_token_id)], skip_special_tokens=False
  )
  for nothing in (tokenizer.unk_token, tokenizer.pad_token):  # where the text itself has one, that is written
    if nothing:
      text = text.replace(nothing, "")
  return _folded(text) - _folded(written)


def _folded(text: str) -> Counter[str]:
  decomposed = unicodedata.normalize("NFKD", text.casefold())
  counted = Counter(decomposed)
  return Counter({c: n for c, n in counted.items() if not c.isspace() and unicodedata.category(c)[0] not in "CM"})


def _rendered(of_all: str, prompts: Sequence[Prompt], tokenizer: Any) -> str:
  """Describe prompts that begin as the template's renderings do, or with a special token; "" for none."""
  if not getattr(tokenizer, "chat_template", None):
    return ""
  added = getattr(tokenizer, "added_tokens_decoder", {}).values()
  openings = tuple({*(str(token) for token in added if token.special), _opening(tokenizer)} - {""})
  asked = [text for prompt in prompts for text in _asked(prompt)[:1]]
  begun = [text for text in asked if text.lstrip().startswith(openings)]
  if not openings or not begun:
    return ""
  shown = max((o for o in openings if begun[0].lstrip().startswith(o)), key=len)
  return (
    f"{len(begun)} of {of_all} begin with {_short(shown)}, as what the chat template renders does, and will be rendered in the "
    "template again; where they were rendered beforehand, set data.chat_template=False"
  )


def _opening(tokenizer: Any) -> str:
  """The text that the template puts before what a user says first, "" for none."""
  user = {"role": "user", "content": "zqxj"}
  try:
    text = tokenizer.apply_chat_template([user], add_generation_prompt=True, tokenize=False)
  except Exception:  # a template is a program: it raises what it likes
    return ""
  before, found, _ = text.partition(user["content"])
  return before.strip() if found else ""


def _asked(prompt: Prompt) -> list[str]:
  """What the user says, one text for each of its messages."""
  if isinstance(prompt, str):
    return [prompt]
  return [str(message.get("content") or "") for message in prompt if message.get("role") == "user"]


def _text(prompt: Prompt) -> str:
  if isinstance(prompt, str):
    return prompt
  return "\n".join(str(message.get("content") or "") for message in prompt)


def _short(text: str, limit: int = 60) -> str:
  return repr(text if len(text) <= limit else text[:limit] + "...")
