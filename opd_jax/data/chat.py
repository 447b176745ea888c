"""What a model reads before it responds: a prompt in its chat template, or as plain text."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from opd_jax.data import tokenizer as tokenizers
from opd_jax.data.rendering import Rendering
from opd_jax.errors import InputError

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerBase

Prompt = str | Sequence[Mapping[str, Any]]  # text, or chat messages {role, content}


def render(prompt: Prompt, tokenizer: "PreTrainedTokenizerBase", rendering: Rendering) -> list[int]:
  """Tokenise a prompt up to where the response begins.

  Args:
    prompt: text becomes one user message under a chat template.

  Raises:
    InputError: messages, a system message or arguments without a template, or a prompt that the template refuses.
  """
  return render_all([prompt], tokenizer, rendering)[0]


def render_all(
  prompts: Sequence[Prompt], tokenizer: "PreTrainedTokenizerBase", rendering: Rendering
) -> list[list[int]]:
  """Tokenise many prompts as `render` does, in few calls of the tokenizer.

  Raises:
    InputError: as `render`; it does not name the prompt.
  """
  to_ids = _templated if uses_template(tokenizer, rendering) else _plain
  slices = (prompts[i : i + 2048] for i in range(0, len(prompts), 2048))  # its by-products are 10x the size of the ids
  return [ids for part in slices for ids in to_ids(part, tokenizer, rendering)]


def render_each(
  prompts: Sequence[Prompt], tokenizer: "PreTrainedTokenizerBase", rendering: Rendering
) -> tuple[list[list[int] | None], list[str]]:
  """Tokenise many prompts as `render_all` does, those that can be.

  Returns:
    The token ids of each, None where it is refused, and the reasons, "" where it is not.

  Raises:
    InputError: a fault of the config and not of a prompt.
  """
  uses_template(tokenizer, rendering)
  with contextlib.suppress(InputError):  # then one by one, to know which
    return list(render_all(prompts, tokenizer, rendering)), [""] * len(prompts)
  rows, refusals = [], []
  for prompt in prompts:
    try:
      rows.append(render(prompt, tokenizer, rendering))
      refusals.append("")
    except InputError as e:
      rows.append(None)
      refusals.append(str(e))
  return rows, refusals


def render_within(
  prompts: Sequence[Prompt], tokenizer: "PreTrainedTokenizerBase", rendering: Rendering, max_len: int
) -> tuple[list[list[int]], int]:
  """Tokenise conversations under the chat template, cut to `max_len` tokens at their beginning.

  Replies that a model generated are text here, and are tokenised anew. They may then come to more tokens than were
  generated, so that a conversation outgrows the length that was reserved for it.

  Args:
    rendering: but for its system message and suffix, which conversations have in them.
    max_len: at least 1.

  Returns:
    The token ids of each prompt, its last `max_len` where there are more, and how many prompts lost their beginning.

  Raises:
    InputError: as `render_all`.
  """
  rows = render_all(prompts, tokenizer, rendering.for_conversations())
  cut = sum(len(ids) > max_len for ids in rows)
  return [ids[-max_len:] for ids in rows], cut


def uses_template(tokenizer: "PreTrainedTokenizerBase", rendering: Rendering) -> bool:
  """Tell whether prompts are wrapped in the chat template.

  Raises:
    InputError: there is a system message that nothing would wrap, or an argument that nothing would read.
  """
  wrapped = rendering.chat_template and bool(getattr(tokenizer, "chat_template", None))
  if not wrapped and (rendering.system or rendering.for_teacher().system):
    key = "system" if rendering.system else "teacher_system"
    raise InputError(
      f"config.data.{key} is set, but {_no_template(tokenizer, rendering.chat_template)}, so there is no place for a system "
      f'message; set config.data.{key}="", say it in config.data.suffix, or use a tokenizer with a chat template.'
    )
  if (rendering.args or rendering.teacher_args) and not wrapped:
    key = "template_args" if rendering.args else "teacher_template_args"
    raise InputError(
      f"config.data.{key} is set, but {_no_template(tokenizer, rendering.chat_template)}, so there is nothing to read it; leave "
      "it empty, or use a tokenizer with a chat template."
    )
  return wrapped


def last_text(prompt: Prompt) -> str:
  """A prompt as text: of a chat its last message."""
  return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def as_text(chats: Sequence[Prompt], tokenizer: "PreTrainedTokenizerBase", rendering: Rendering) -> list[str]:
  """Render chats, or texts as one user message each, up to where the response begins, as text.

  Raises:
    InputError: as `render`; it does not name the chat.
  """
  return rendering.apply([messages(chat, rendering) for chat in chats], tokenizer, tokenize=False)


def messages(prompt: Prompt, rendering: Rendering) -> list[dict[str, Any]]:
  """The messages that the template reads: a text as one user message, with the rendering's system message and suffix.

  The suffix stands behind the last message of the user.

  Raises:
    InputError: two system messages, or messages without a role and words.
  """
  chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
  if not all(isinstance(m, Mapping) and isinstance(m.get("role"), str) and "content" in m for m in chat):
    raise InputError('the prompt has a message that is not {"role": ..., "content": ...}; write every message so')
  chat = [dict(m) for m in chat]
  if rendering.suffix and (of_user := [i for i, m in enumerate(chat) if m["role"] == "user"]):
    last = chat[of_user[-1]]
    last["content"] = rendering.with_suffix(last["content"])
  if rendering.system:
    if any(m["role"] == "system" for m in chat):
      raise InputError(
        'the prompt has a system message of its own; set config.data.system="", or remove the message from the prompt'
      )
    chat.insert(0, {"role": "system", "content": rendering.system})
  return chat


def end_of_turn(
  tokenizer: "PreTrainedTokenizerBase", rendering: Rendering, opening: Sequence[Mapping[str, Any]] = ()
) -> list[int] | None:
  """Find the token ids that the template puts behind an assistant's reply, up to the next reply.

  None where they cannot be found: the template begins a reply that is to be generated otherwise than one that is there.

  Args:
    opening: messages that stand before the user's first, such as a system message; where there are any, the rendering's is
      left out.

  Raises:
    InputError: the template refuses a conversation.
  """
  user, assistant = {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Yes."}
  rendering = rendering.for_conversations() if opening else rendering.without_suffix()
  before, two_turns = as_text(([*opening, user], [*opening, user, assistant, user]), tokenizer, rendering)
  up_to_reply = f"{before}{assistant['content']}"
  if not two_turns.startswith(up_to_reply):
    return None
  encoded = tokenizer(two_turns[len(up_to_reply) :], add_special_tokens=False, **_plain_output())
  return encoded["input_ids"]  # pyright: ignore[reportReturnType]


def shows_thought(
  tokenizer: "PreTrainedTokenizerBase",
  mark: str,
  closing: str,
  rendering: Rendering,
  opening: Sequence[Mapping[str, Any]] = (),
) -> Literal["kept", "dropped", "refused"]:
  """Find out what the template does with a thought between these marks in an earlier turn of the assistant.

  "refused" where it raises an error because of the marks; "kept" also where it shows no earlier turn at all.

  Args:
    opening: as for `end_of_turn`.
  """
  thought, asked = "zqxj", {"role": "user", "content": "Hello."}
  rendering = rendering.for_conversations() if opening else rendering.without_suffix()

  def rendered(reply: str) -> str | None:
    turns = [*opening, asked, {"role": "assistant", "content": reply}, asked]
    try:
      return as_text([turns], tokenizer, rendering)[0]
    except InputError:
      return None

  if not uses_template(tokenizer, rendering):
    return "kept"
  text = rendered(f"{mark}{thought}{closing}Yes.")
  if text is None:
    return "kept" if rendered("Yes.") is None else "refused"
  return "kept" if thought in text else "dropped"


def _templated(
  prompts: Sequence[Prompt], tokenizer: "PreTrainedTokenizerBase", rendering: Rendering
) -> list[list[int]]:
  chats = [messages(prompt, rendering) for prompt in prompts]
  return rendering.apply(chats, tokenizer, tokenize=True, return_dict=False, tokenizer_kwargs=_plain_output())


def _plain(prompts: Sequence[Prompt], tokenizer: "PreTrainedTokenizerBase", rendering: Rendering) -> list[list[int]]:
  texts = []
  for prompt in prompts:
    if not isinstance(prompt, str):
      has_template = bool(getattr(tokenizer, "chat_template", None))
      raise InputError(
        f"the prompt is a list of chat messages, but {_no_template(tokenizer, not has_template)}; "
        "use a tokenizer with a chat template and config.data.chat_template=True, or write the prompt as a string"
      )
    texts.append(rendering.with_suffix(prompt))  # `uses_template` has refused what only a template can show
  rows = tokenizers.encode(texts, tokenizer, **_plain_output())
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
    (bare,) = tokenizers.encode([text], tokenizer, add_special_tokens=False, **_plain_output())
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
