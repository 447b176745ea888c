"""What a model reads before it responds: a prompt in its chat template, or as plain text."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from opd_jax.errors import InputError

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerBase

Prompt = str | Sequence[Mapping[str, Any]]  # text, or chat messages {role, content}


def render(prompt: Prompt, tokenizer: "PreTrainedTokenizerBase", *, chat_template: bool, system: str = "") -> list[int]:
  """Tokenise a prompt up to where the response begins.

  Args:
    prompt: text becomes one user message under a chat template.
    chat_template: use the tokenizer's template if it has one; plain text otherwise.
    system: a system message put first; "" for none.

  Raises:
    InputError: messages or a system message without a template, or a prompt that the template refuses.
  """
  return render_all([prompt], tokenizer, chat_template=chat_template, system=system)[0]


def render_all(
  prompts: Sequence[Prompt], tokenizer: "PreTrainedTokenizerBase", *, chat_template: bool, system: str = ""
) -> list[list[int]]:
  """Tokenise many prompts as `render` does, in few calls of the tokenizer.

  Raises:
    InputError: as `render`; it does not name the prompt.
  """
  to_ids = _templated if uses_template(tokenizer, chat_template=chat_template, system=system) else _plain
  slices = (prompts[i : i + 2048] for i in range(0, len(prompts), 2048))  # its by-products are 10x the size of the ids
  return [ids for part in slices for ids in to_ids(part, tokenizer, system)]


def render_within(
  prompts: Sequence[Prompt], tokenizer: "PreTrainedTokenizerBase", max_len: int
) -> tuple[list[list[int]], int]:
  """Tokenise conversations under the chat template, cut to `max_len` tokens at their beginning.

  Replies that a model generated are text here, and are tokenised anew. They may then come to more tokens than were
  generated, so that a conversation outgrows the length that was reserved for it.

  Args:
    max_len: at least 1.

  Returns:
    The token ids of each prompt, its last `max_len` where there are more, and how many prompts lost their beginning.

  Raises:
    InputError: as `render_all`.
  """
  rows = render_all(prompts, tokenizer, chat_template=True)
  cut = sum(len(ids) > max_len for ids in rows)
  return [ids[-max_len:] for ids in rows], cut


def uses_template(tokenizer: "PreTrainedTokenizerBase", *, chat_template: bool, system: str = "") -> bool:
  """Tell whether prompts are wrapped in the chat template.

  Raises:
    InputError: there is a system message that nothing would wrap.
  """
  wrapped = chat_template and bool(getattr(tokenizer, "chat_template", None))
  if system and not wrapped:
    raise InputError(
      f"config.data.system is set, but {_no_template(tokenizer, chat_template)}, so there is no place for a system "
      'message; set config.data.system="", or use a tokenizer with a chat template.'
    )
  return wrapped


def end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> list[int] | None:
  """Find the token ids that the template puts behind an assistant's reply, up to the next reply.

  None where they cannot be found: the template begins a reply that is to be generated otherwise than one that is there.
  """
  user, assistant = {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Yes."}

  def as_text(chat: list[dict[str, str]]) -> Any:
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)

  up_to_reply = f"{as_text([user])}{assistant['content']}"
  two_turns = as_text([user, assistant, user])
  if not isinstance(two_turns, str) or not two_turns.startswith(up_to_reply):
    return None
  encoded = tokenizer(two_turns[len(up_to_reply) :], add_special_tokens=False, **_plain_output())
  return encoded["input_ids"]  # pyright: ignore[reportReturnType]


def shows_thought(
  tokenizer: "PreTrainedTokenizerBase", opening: str, closing: str, system: str = ""
) -> Literal["kept", "dropped", "refused"]:
  """Find out what the template does with a thought between these marks in an earlier turn of the assistant.

  "refused" where it raises an error because of the marks; "kept" also where it shows no earlier turn at all.
  """
  thought, asked = "zqxj", {"role": "user", "content": "Hello."}
  begin = [{"role": "system", "content": system}] if system else []

  def rendered(reply: str) -> Any:
    turns = [*begin, asked, {"role": "assistant", "content": reply}, asked]
    try:
      return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except Exception:  # a template is a program: it raises what it likes
      return None

  text = rendered(f"{opening}{thought}{closing}Yes.")
  if text is None:
    return "kept" if rendered("Yes.") is None else "refused"
  return "kept" if thought in str(text) else "dropped"


def _templated(prompts: Sequence[Prompt], tokenizer: "PreTrainedTokenizerBase", system: str) -> list[list[int]]:
  chats = []
  for prompt in prompts:
    chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
    if system:
      if any(m["role"] == "system" for m in chat):
        raise InputError(
          'the prompt has a system message of its own; set config.data.system="", or remove the message from the prompt'
        )
      chat.insert(0, {"role": "system", "content": system})
    chats.append(chat)
  try:
    return tokenizer.apply_chat_template(  # pyright: ignore[reportReturnType]
      chats, add_generation_prompt=True, tokenize=True, return_dict=False, tokenizer_kwargs=_plain_output()
    )
  except Exception as e:  # a template is a program: it raises what it likes
    reason = f"{type(e).__name__}: {e}".splitlines()[0]
    raise InputError(
      f"the chat template of {tokenizer.name_or_path} refuses the prompt ({reason}); change the roles of the prompt, "
      "mend the template, or set config.data.chat_template=False"
    ) from e


def _plain(prompts: Sequence[Prompt], tokenizer: "PreTrainedTokenizerBase", system: str) -> list[list[int]]:
  del system  # `uses_template` has refused it
  texts = []
  for prompt in prompts:
    if not isinstance(prompt, str):
      has_template = bool(getattr(tokenizer, "chat_template", None))
      raise InputError(
        f"the prompt is a list of chat messages, but {_no_template(tokenizer, not has_template)}; "
        "use a tokenizer with a chat template and config.data.chat_template=True, or write the prompt as a string"
      )
    texts.append(prompt)
  rows: list[list[int]] = tokenizer(texts, **_plain_output())["input_ids"]  # pyright: ignore[reportAssignmentType]
  bos = tokenizer.bos_token_id
  if bos is not None:  # of a text that begins with BOS, as one that was rendered beforehand, one is enough
    rows = [row[1:] if row[:2] == [bos, bos] else row for row in rows]
  if _appends_eos(texts, rows, tokenizer):
    return [row[:-1] for row in rows]  # a prompt that ends with EOS would ask the model to go on after the end
  return rows


def _appends_eos(texts: list[str], rows: list[list[int]], tokenizer: "PreTrainedTokenizerBase") -> bool:
  """Tell whether the tokenizer, and not the text, ends a row with EOS; EOS may also be what it puts first."""
  eos = tokenizer.eos_token_id
  for text, row in zip(texts, rows, strict=True):
    bare = tokenizer(text, add_special_tokens=False, **_plain_output())["input_ids"]
    if bare:
      return eos is not None and len(row) > len(bare) and row[-1] == eos and row[-1 - len(bare) : -1] == bare
  return False


def _plain_output() -> dict[str, Any]:
  """Return the keyword arguments of the tokenizer for token ids alone."""
  # verbose: prompts are measured against config.data.max_prompt, not against the tokenizer's own limit.
  return {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}


def _no_template(tokenizer: "PreTrainedTokenizerBase", chat_template: bool) -> str:
  """The reason why prompts are not wrapped, for messages."""
  if not chat_template:
    return "config.data.chat_template is False"
  return f"the tokenizer of {tokenizer.name_or_path} has no chat template"
