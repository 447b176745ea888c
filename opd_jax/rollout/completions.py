"""What an OpenAI-compatible server is asked, and what its answer says once it is held against that.

A server may send anything: no choices, fewer of them than were asked for, a choice without text, numbers of tokens that cannot be.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from opd_jax.rollout.answer_cache import Answer
from opd_jax.rollout.endpoint_options import EndpointOptions
from opd_jax.rollout.http_json import RequestFailed, message_of, without
from opd_jax.runtime import json_files

PATHS = {"chat": "/chat/completions", "completions": "/completions"}
TEMPLATE = 1024  # tokens that a chat template, and a system message of its own, may add to a prompt
ABSURD = 10  # times the most that a request can use, above which a number of tokens is not believed


class Usage(NamedTuple):
  """Tokens of a request."""

  prompt_tokens: int
  completion_tokens: int
  estimated: bool = False  # the server gave no number that can be


def prompt_fields(options: EndpointOptions, prompt: str) -> dict[str, Any]:
  """Make the field of a request that holds the prompt."""
  if options.api == "completions":
    return {"prompt": prompt}
  system = [{"role": "system", "content": options.system}] if options.system else []
  return {"messages": [*system, {"role": "user", "content": prompt}]}


def request_body(
  options: EndpointOptions, prompt: str, count: int, *, max_tokens: int, temperature: float, seed: int
) -> dict[str, Any]:
  """Make the body of a request for `count` answers."""
  several = {"n": count} if count > 1 else {}  # some servers refuse the field
  return {
    "model": options.model,
    **prompt_fields(options, prompt),
    options.max_tokens_field: max_tokens,
    "temperature": temperature,
    "seed": seed,
    "stream": False,
    **several,
    **options.extra,
  }


def most_used(options: EndpointOptions, prompt: str, count: int, max_tokens: int) -> Usage:
  """Bound what a request uses where its server says nothing: a token of a prompt is a byte at least."""
  text = options.system + prompt
  return Usage(len(text.encode("utf-8", "replace")) + TEMPLATE, count * max_tokens, True)


def usage(answer: Mapping[str, Any], most: Usage) -> Usage:
  """Tell what a request has used.

  Args:
    most: is taken for a number that is missing, not whole, below 1, or absurdly large.
  """
  said = answer.get("usage")
  said = said if isinstance(said, dict) else {}
  prompt, completion = said.get("prompt_tokens"), said.get("completion_tokens")
  good = json_files.is_whole(prompt, 1, ABSURD * most.prompt_tokens)
  good_too = json_files.is_whole(completion, 1, ABSURD * most.completion_tokens)
  return Usage(
    prompt if good else most.prompt_tokens,
    completion if good_too else most.completion_tokens,
    not (good and good_too),
  )


def checked_answers(
  answer: Mapping[str, Any], api: str, count: int, completion_tokens: int, key: str
) -> tuple[list[Answer | None], RequestFailed | None]:
  """Take the answers out of what a server sent.

  Args:
    count: of the choices that were asked for; more are left out.
    completion_tokens: of the whole answer, which its choices share equally.
    key: is taken out of texts.

  Returns:
    `count` answers, None for those that are missing or have no text, and what is wrong with the first of them.
  """
  choices = answer.get("choices")
  if not isinstance(choices, list) or not choices:
    said = message_of(answer, key)
    return [None] * count, RequestFailed("choices", f"sent an answer without choices{f' ({said})' if said else ''}")
  answers: list[Answer | None] = []
  failure = None
  for i, choice in enumerate(_in_order(choices)[:count]):
    text = _text(choice, api)
    if text is None:
      failure = failure or RequestFailed("text", "sent a choice without text")
    elif not text.strip():
      failure = failure or RequestFailed("empty", "sent an empty text")
    share = completion_tokens // len(choices) + (i < completion_tokens % len(choices))
    cut = isinstance(choice, dict) and choice.get("finish_reason") == "length"
    answers.append(Answer(without(key, text), share, cut) if text and text.strip() else None)
  if len(answers) < count:
    failure = failure or RequestFailed("choices", f"sent {len(answers)} of {count} choices that were asked for")
  return answers + [None] * (count - len(answers)), failure


def _in_order(choices: list[Any]) -> list[Any]:
  """Sort choices by the index that they have, where they have one each."""
  places = {
    choice.get("index"): choice
    for choice in choices
    if isinstance(choice, dict) and json_files.is_whole(choice.get("index"))
  }
  return [places[i] for i in range(len(choices))] if places.keys() == set(range(len(choices))) else choices


def _text(choice: Any, api: str) -> str | None:
  """Return the text of a choice; None where there is none."""
  holder = choice.get("message") if isinstance(choice, dict) and api == "chat" else choice
  text = holder.get("content" if api == "chat" else "text") if isinstance(holder, dict) else None
  return text if isinstance(text, str) else None
