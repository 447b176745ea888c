"""What ends a response: one answer from all that say so.

generation_config.json, config.json, the tokenizer and the chat template each name a token, and instruct models whose parts come from
different places name different ones. Any of them ends a response: a model that was trained with one of them would never end
otherwise, and the others it does not write.
"""

import contextlib
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from opd_jax.data import chat
from opd_jax.data.rendering import Rendering
from opd_jax.errors import InputError

NEAR = 3  # tokens behind a turn: a template may put a space or a line before the end


class StopTokens(NamedTuple):
  """The tokens that end a response, and what to tell where their sources differ."""

  ids: tuple[int, ...]  # rising
  note: str = ""  # "" where they agree


def find(declared: Sequence[int], tokenizer: Any, rendering: Rendering) -> StopTokens:
  """Join the stop tokens of a model's files with its tokenizer's and its chat template's.

  Args:
    declared: the ids of generation_config.json and config.json.
    rendering: of prompts.

  Raises:
    InputError: no token has any of the ids, so that no response could end.
  """
  eos = getattr(tokenizer, "eos_token_id", None)
  of_tokenizer = () if eos is None else (int(eos),)
  near = _behind_a_turn(tokenizer, rendering)
  known = {*declared, *of_tokenizer}
  of_template = ()
  if not known & set(near):
    special = _special_ids(tokenizer)
    of_template = tuple(i for i in near if i in special)[:1]
  ids = tuple(sorted({*known, *of_template}))
  notes = [_without_token(ids, tokenizer)]
  sources = {"the model's config": declared, "its tokenizer": of_tokenizer, "its chat template": of_template}
  if (declared and set(of_tokenizer) - set(declared)) or of_template:
    named = ", ".join(f"{source} {_names(tokenizer, of)}" for source, of in sources.items() if of)
    notes.append(f"what ends a response is named differently: {named}; each of them ends it")
  elif near and not set(near) & set(ids):
    notes.append(
      f"the chat template ends an assistant's turn with {tokenizer.decode(near[:1])!r}, and responses end with "
      f"{_names(tokenizer, ids) or 'nothing'}: a response does not end as the turns in a prompt do; mend eos_token_id in "
      "generation_config.json, or the template"
    )
  return StopTokens(ids, "; ".join(note for note in notes if note))


def of_learned(stop_ids: Sequence[int], tokenizer: Any, rendering: Rendering) -> tuple[int, ...]:
  """Choose the one of several stop tokens that a response to learn ends with; () where there is none.

  It is the one that the chat template ends a turn with, else the tokenizer's, else the first.
  """
  preferred = (*_behind_a_turn(tokenizer, rendering), tokenizer.eos_token_id, *stop_ids)
  return tuple(i for i in preferred if i in stop_ids)[:1]


def _behind_a_turn(tokenizer: Any, rendering: Rendering) -> list[int]:
  """Find the first token ids that the chat template puts behind an assistant's turn, none where it does not show them."""
  if not rendering.chat_template or not getattr(tokenizer, "chat_template", None):
    return []
  for opening in ((), ({"role": "system", "content": "Hello."},)):  # the data may have the system message that it needs
    with contextlib.suppress(InputError):  # where it shows no such conversation, it says nothing of its end
      found = chat.end_of_turn(tokenizer, rendering, opening)
      return (_in_the_history(tokenizer, rendering, opening) if found is None else found)[:NEAR]
  return []


def _in_the_history(tokenizer: Any, rendering: Rendering, opening: Sequence[dict[str, str]]) -> list[int]:
  """Find what stands behind an earlier turn where a generated reply begins otherwise, as with an opened thought."""
  user, reply = {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Yes."}
  rendering = rendering.for_conversations() if opening else rendering.without_suffix()
  (text,) = chat.as_text([[*opening, user, reply, user]], tokenizer, rendering)
  _, _, behind = text.rpartition(user["content"])[0].rpartition(reply["content"])
  return tokenizer(behind, add_special_tokens=False)["input_ids"]


def _without_token(ids: Sequence[int], tokenizer: Any) -> str:
  """Describe the ids that no token has, "" for none; what no token has is never drawn."""
  known = set(tokenizer.get_vocab().values())
  lost = [i for i in ids if i not in known]
  if not lost:
    return ""
  named = f"eos_token_id names {', '.join(map(str, lost))}, which no token of the tokenizer has"
  if len(lost) == len(ids):
    raise InputError(
      f"{tokenizer.name_or_path}: {named}, so no response could end; mend eos_token_id in generation_config.json and config.json, "
      "or copy the model's own tokenizer files."
    )
  return f"{named}: it is never drawn"


def _special_ids(tokenizer: Any) -> set[int]:
  added = getattr(tokenizer, "added_tokens_decoder", {})
  return {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)


def _names(tokenizer: Any, ids: Collection[int]) -> str:
  known = set(tokenizer.get_vocab().values())
  return " or ".join(repr(tokenizer.decode([i])) if i in known else f"id {i}" for i in ids)
