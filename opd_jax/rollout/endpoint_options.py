"""Where an endpoint is, how it is asked, and what it may cost."""

import dataclasses
import ipaddress
import json
import os
import re
import sys
import urllib.parse
from collections.abc import Mapping
from typing import Any

from opd_jax.config import Config
from opd_jax.errors import InputError, brief

KEY_ENV = "OPENAI_API_KEY"


@dataclasses.dataclass(frozen=True)
class EndpointOptions:
  """Where the teacher is, and what it may cost.

  Attributes:
    url: the address up to /v1, `http://127.0.0.1:8000/v1`.
    model: the name that the server knows it by.
    api: chat, or completions: the prompt is sent as it is, without a chat template.
    system: of chat, a message before every prompt; "": none.
    extra: other fields of a request, such as {"top_p": 0.95}.
    max_tokens_field: the name that the server has for the limit of an answer: max_tokens or max_completion_tokens.
    key_env: name of the environment variable that holds the API key; "", or where the default is not set: no key is sent. Another
      name has to be set.
    timeout: seconds that a request may take, from the connection to the last byte.
    retries: requests after one that failed.
    backoff: seconds before the first of them, doubled before each further one, times a factor in [0.5, 1) for each request its own.
    max_wait: seconds of the longest pause; a server that asks for more (Retry-After) is given up at once.
    parallel: requests at once.
    choices: answers that one request asks for at most; 0: all n of a prompt.
    body_limit: bytes of the longest answer to a request.
    budget_tokens: of prompts and completions together; 0: no limit. No request is begun once so many are spent, so that the last
      `parallel` requests at most go beyond it.
    budget_cost: the same in money, by the two prices; 0: no limit.
    price_prompt, price_completion: of a million tokens.
    cache: a directory that keeps the answers, and what was spent; "": nothing is kept, and the budget is that of one process. Of
      processes that share one at the same time each counts what the others had spent when it began.
    on_failure: stop, or continue: a prompt without an answer gets none and is counted.
  """

  url: str
  model: str
  api: str = "chat"
  system: str = ""
  extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  max_tokens_field: str = "max_tokens"
  key_env: str = KEY_ENV
  timeout: float = 600.0
  retries: int = 5
  backoff: float = 1.0
  max_wait: float = 120.0
  parallel: int = 8
  choices: int = 0
  body_limit: int = 2**24
  budget_tokens: int = 0
  budget_cost: float = 0.0
  price_prompt: float = 0.0
  price_completion: float = 0.0
  cache: str = ""
  on_failure: str = "stop"

  @classmethod
  def from_config(cls, group: Config, cache: str) -> "EndpointOptions":
    """Reads the keys teacher_url, teacher_model, teacher_api and so on of a config's group, and the options in its teacher_options.

    Raises:
      InputError: an address that is none, options that there are not, or numbers that mean nothing.
    """
    keys = {name: group[f"teacher_{name}"] for name in _KEYS}
    return cls(cache=cache, **keys, **_others(group.teacher_options))

  def __post_init__(self):
    object.__setattr__(self, "url", _checked_url(self.url))
    for name, allowed in _ALLOWED.items():
      if getattr(self, name) not in allowed:
        raise InputError(
          f"`{name}` of an endpoint is {brief(getattr(self, name))}; it has to be {' or '.join(allowed)}."
        )
    for name, least in _LEAST.items():
      if not least <= getattr(self, name) < float("inf"):
        raise InputError(f"`{name}` of an endpoint is {getattr(self, name)}; it has to be a number, at least {least}.")
    if self.key_env and not re.fullmatch(r"[A-Za-z_]\w*", self.key_env, re.ASCII):
      raise InputError(
        "`key_env` of an endpoint is no name of an environment variable; it is the name of one, and not the key."
      )
    if not self.model:
      raise InputError(f"An endpoint needs the name of its model; {self.url}/models lists those that it has.")
    if self.timeout == 0:
      raise InputError("`timeout` of an endpoint is 0; it is in seconds, and has to be above 0.")
    if self.budget_cost and not (self.price_prompt or self.price_completion):
      raise InputError("`budget_cost` of an endpoint needs `price_prompt` or `price_completion`, per million tokens.")
    if "://" in self.cache:
      raise InputError(f"`cache` of an endpoint is {brief(self.cache)}; it has to be a directory of this machine.")
    if own := sorted(_OWN_FIELDS & self.extra.keys()):
      raise InputError(f"`extra` of an endpoint has {', '.join(own)}, which every request has already: leave it out.")
    try:
      json.dumps(self.extra)
    except (TypeError, ValueError) as e:
      raise InputError(f"`extra` of an endpoint cannot be written as JSON ({e}).") from None


_KEYS = ("url", "model", "api", "key_env", "parallel", "timeout", "retries", "budget_tokens", "budget_cost")
_KEYS = (*_KEYS, "price_prompt", "price_completion", "on_failure")
_OTHERS = ("system", "extra", "max_tokens_field", "backoff", "max_wait", "choices", "body_limit")
_ALLOWED = {
  "api": ("chat", "completions"),
  "on_failure": ("stop", "continue"),
  "max_tokens_field": ("max_tokens", "max_completion_tokens"),
}
_LEAST = {"timeout": 0, "retries": 0, "backoff": 0, "max_wait": 0, "parallel": 1, "choices": 0, "body_limit": 1}
_LEAST |= {"budget_tokens": 0, "budget_cost": 0, "price_prompt": 0, "price_completion": 0}
_OWN_FIELDS = {"model", "messages", "prompt", "n", "seed", "temperature", "stream", *_ALLOWED["max_tokens_field"]}


def _others(text: str) -> dict[str, Any]:
  """Reads the options that have no key of their own from JSON, "" for none.

  Raises:
    InputError: it is no JSON object, or names another option, or a value is of another type.
  """
  try:
    found = json.loads(text or "{}")
  except ValueError:
    found = None
  if not isinstance(found, dict):
    raise InputError(
      f'teacher_options is {brief(text)}; write a JSON object, such as {{"choices": 1, "extra": {{"top_p": 0.95}}}}.'
    )
  if unknown := sorted(found.keys() - set(_OTHERS)):
    raise InputError(f"teacher_options names {brief(unknown[0])}; the options are {', '.join(_OTHERS)}.")
  types = {field.name: field.type for field in dataclasses.fields(EndpointOptions)}
  for name, value in found.items():
    wanted = dict if name == "extra" else (int, float) if types[name] is float else types[name]
    if not isinstance(value, wanted) or isinstance(value, bool):  # pyright: ignore[reportArgumentType]
      raise InputError(f"teacher_options has {brief(value)} for {name}; see docs/endpoint.md.")
  return found


def _checked_url(url: str) -> str:
  """Return the address without a slash at its end; it may be quoted in messages, since it holds no password."""
  try:
    parts = urllib.parse.urlsplit(url.strip())
    port = parts.port
  except ValueError:
    raise InputError("`url` of an endpoint is no address; write one such as http://127.0.0.1:8000/v1.") from None
  if "@" in parts.netloc or parts.query or parts.fragment:
    raise InputError(
      "`url` of an endpoint has a user, a password or a query in it, and addresses are logged: leave that out, and put the key into the "
      "environment variable that `key_env` names."
    )
  if parts.scheme not in ("http", "https") or not parts.hostname:
    raise InputError(
      f"`url` of an endpoint is {brief(url)}; it has to begin with http:// or https://, such as http://127.0.0.1:8000/v1."
    )
  path = parts.path.rstrip("/")
  for end in ("/chat/completions", "/completions"):
    if path.endswith(end):
      raise InputError(
        f"`url` of an endpoint ends with {end}, which is added to it: write {url.strip()[: url.strip().rindex(end)]}."
      )
  if not path:
    raise InputError(
      f"`url` of an endpoint is {brief(url)}, without a path; most servers have one: write {parts.scheme}://{parts.netloc}/v1."
    )
  if not url.strip().isascii() or not url.strip().isprintable() or " " in url.strip() or port == 0:
    raise InputError(f"`url` of an endpoint is {brief(url)}; it has to be ASCII, with %.. for other characters.")
  return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def api_key(options: EndpointOptions) -> str:
  """Read the key from the environment, each time that it is needed, so that nothing else holds it; "": none is sent.

  Raises:
    InputError: the variable holds no key, or one was named that is not set.
  """
  if not options.key_env:
    return ""
  key = os.environ.get(options.key_env, "").strip()
  if not key and options.key_env != KEY_ENV:  # its name is not shown: it may be the key itself
    raise InputError(
      "`key_env` of an endpoint names an environment variable that is not set: export it, or name another one."
    )
  if not re.fullmatch(r"[!#-&(-\[\]-~]*", key):
    raise InputError(
      f"The environment variable {options.key_env} holds no API key: there are spaces, quotes or other characters in it that no key has."
    )
  return key


def tell_of_clear_text(options: EndpointOptions) -> None:
  """Print a note where a key would go over the network without encryption."""
  parts = urllib.parse.urlsplit(options.url)
  if parts.scheme == "http" and not _is_loopback(parts.hostname or "") and api_key(options):
    print(
      f'note: the key in {options.key_env} goes to {options.url} without encryption; where it needs none, set key_env to ""',
      file=sys.stderr,
    )


def _is_loopback(host: str) -> bool:
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host == "localhost"
