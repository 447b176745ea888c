"""A teacher behind an OpenAI-compatible endpoint: it samples answers, and nobody sees its logits.

    teacher = EndpointSampler(EndpointOptions("http://127.0.0.1:8000/v1", "my-model", cache="answers"))
    answers = teacher.sample(["2+2="], 4, max_tokens=64, temperature=1.0, seed=0)     a list of 4 texts for the prompt

A prompt is what the user says in a chat (`/chat/completions`), or text that the model goes on with (`/completions`). Every answer is kept
on disk under what was asked, so that the same call gives the same answers, which are paid once. What a server sends is held against what
was asked before it counts; docs/endpoint.md tells what happens when it fails.
"""

import concurrent.futures
import dataclasses
import hashlib
import pathlib
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from opd_jax.errors import InputError
from opd_jax.rollout import completions, http_json
from opd_jax.rollout.answer_cache import Answer, AnswerCache, digest
from opd_jax.rollout.completions import Usage
from opd_jax.rollout.endpoint_options import EndpointOptions, api_key, tell_of_clear_text
from opd_jax.rollout.http_json import RequestFailed

MENDS = {  # what to do about a reason
  "timeout": "see whether the server is overloaded, raise `timeout` or lower `parallel`",
  "connection": "see that the server is up and that `url` is its address",
  "certificate": "see that `url` is its address, or point SSL_CERT_FILE at the certificates to trust",
  "redirect": "set `url` to where it really is",
  "content_type": "see that `url` is the address of an OpenAI-compatible server, up to /v1",
  "json": "see that `url` is the address of an OpenAI-compatible server, up to /v1",
  "oversized": "raise `body_limit`, or ask for fewer tokens or `choices` at once",
  "truncated": "see why the server, or a proxy before it, ends connections",
  "choices": "set `choices` to 1 where it gives one answer a request",
  "text": "switch off what takes the text out of the answer, such as a parser for reasoning or tools",
  "empty": "see what the model answers to such a prompt, or raise max_tokens",
  "budget": "raise it",
  "http_400": "change what it refuses",
  "http_401": "export a valid key in the environment variable that `key_env` names",
  "http_403": "see what the key in the environment variable that `key_env` names may do",
  "http_404": "see that `url` ends as the server's does, mostly with /v1, and that `model` is one that URL/models lists",
  "http_429": "lower `parallel`, or raise `retries` and `max_wait`",
}


@runtime_checkable
class TeacherSampler(Protocol):
  """A teacher that is asked for samples alone, wherever it runs.

  Attributes:
    tokens: how many it has generated so far.
  """

  tokens: int

  def sample(
    self, prompts: Sequence[str], n: int, *, max_tokens: int, temperature: float, seed: int
  ) -> list[list[str]]:
    """Answer every prompt n times.

    Args:
      max_tokens: of one answer.
      temperature: 0: greedy.
      seed: another one gives other answers; the same one gives the same, as far as the teacher can repeat itself.

    Returns:
      For each prompt n texts, or none where the teacher failed.
    """
    ...


class EndpointError(InputError):
  """The endpoint gave no answer, or its budget is spent; the message says what to do.

  Attributes:
    reason: a word, as of RequestFailed; or budget.
  """

  def __init__(self, message: str, reason: str):
    super().__init__(message)
    self.reason = reason


@dataclasses.dataclass
class Counts:
  """What this process has asked of an endpoint, and what became of it.

  Attributes:
    requests: sent, those that failed included.
    cached: answers that were on disk.
    retried: requests that were sent because one before them failed.
    prompt_tokens, completion_tokens: paid for.
    estimated: requests whose tokens are not known and count as the most that it can be: usage was missing or absurd.
    cost: of the tokens, in the unit of the prices.
    cut: answers, of those handed out, that `max_tokens` ended.
    failed: prompts that got no answer, by the reason of the last failure.
  """

  requests: int = 0
  cached: int = 0
  retried: int = 0
  prompt_tokens: int = 0
  completion_tokens: int = 0
  estimated: int = 0
  cost: float = 0.0
  cut: int = 0
  failed: Counter[str] = dataclasses.field(default_factory=Counter)


class EndpointSampler:
  """A `TeacherSampler` that asks an endpoint. One call of `sample` at a time.

  Args:
    options: see there.
    sleep: waits so many seconds before a request is sent again; None: or until the call is over, whichever is first.

  Attributes:
    options: as given.
    tokens: of all answers that were handed out. Those from disk count too, so that a run which was killed, and goes on with the number
      that it had saved, counts as the one that never stopped; what was paid is in `counts`.
    counts: see Counts.
  """

  def __init__(self, options: EndpointOptions, *, sleep: Callable[[float], object] | None = None):
    self.options, self.tokens, self.counts = options, 0, Counts()
    self._sleep, self._lock = sleep, threading.Lock()
    place = digest({"url": options.url, "model": options.model})[:16]
    self._cache = AnswerCache(pathlib.Path(options.cache).expanduser() / place if options.cache else None)
    self._before = self._cache.paid()  # tokens of prompts and of completions, by former processes
    self._answered = False  # an answer was good, in this process
    self._told: set[str] = set()
    api_key(options)
    tell_of_clear_text(options)

  def sample(
    self, prompts: Sequence[str], n: int, *, max_tokens: int, temperature: float, seed: int
  ) -> list[list[str]]:
    """Answer every prompt n times; see TeacherSampler.

    A prompt that stands in the list twice gets answers of its own each time. The call is over when all its requests are, also where it
    raises or is interrupted, so that what has been paid is on disk.

    Raises:
      EndpointError: a prompt has no answer and `on_failure` is stop; or the address, the model or the key is wrong, and no answer has
        come before.
      InputError: the arguments mean nothing; or the cache cannot be written.
    """
    if isinstance(prompts, str):
      raise InputError("The prompts for an endpoint are one text; they have to be a list of texts.")
    if n < 1 or max_tokens < 1 or not 0 <= temperature < float("inf"):
      raise InputError(
        f"An endpoint is asked with n={n}, max_tokens={max_tokens}, temperature={temperature}; they have to be at least 1, 1 and 0."
      )
    questions: list[_Question] = []
    seen: Counter[str] = Counter()
    most = self.options.choices or n
    for row, prompt in enumerate(prompts):
      for i in range(seen[prompt], seen[prompt] + n, most):
        count = min(most, seen[prompt] + n - i)
        questions.append(_Question(row, prompt, i, count, int(max_tokens), float(temperature), int(seed)))
      seen[prompt] += n
    return self._by_prompt(len(prompts), questions, self._at_once(questions))

  def spent(self) -> tuple[int, float]:
    """Return the tokens and the money that the budgets count: with a cache those of former processes, too."""
    o, c = self.options, self.counts
    asked, generated = self._before[0] + c.prompt_tokens, self._before[1] + c.completion_tokens
    return asked + generated, (asked * o.price_prompt + generated * o.price_completion) / 1e6

  def metrics(self) -> dict[str, float | int]:
    """Return the counts of this process for a record, each failure by its reason too."""
    with self._lock:
      names = [field.name for field in dataclasses.fields(Counts) if field.name != "failed"]
      found: dict[str, float | int] = {f"endpoint/{name}": getattr(self.counts, name) for name in names}
      found["endpoint/failed"] = self.counts.failed.total()
      return found | {f"endpoint/failed/{reason}": count for reason, count in sorted(self.counts.failed.items())}

  def _at_once(self, questions: Sequence["_Question"]) -> list["list[Answer] | RequestFailed"]:
    """Answer questions by several threads, in order."""
    stopping = threading.Event()
    executor = concurrent.futures.ThreadPoolExecutor(self.options.parallel, "endpoint")
    try:
      futures = [executor.submit(self._answers, question, stopping) for question in questions]
      concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
    finally:
      stopping.set()
      executor.shutdown(cancel_futures=True)
    errors = [future.exception() for future in futures if not future.cancelled()]
    for error in errors:
      if error is not None and not isinstance(error, _Stopped):
        raise error
    return [future.result() for future in futures]

  def _answers(self, question: "_Question", stopping: threading.Event) -> "list[Answer] | RequestFailed":
    """Answer a question, in a thread; where the run is to go on without an answer, return why there is none."""
    try:
      return self._asked(question, stopping)
    except RequestFailed as e:
      if self.options.on_failure == "continue" and (self._answered or not e.mistake):
        return e
      stopping.set()
      with self._lock:
        self.counts.failed[e.reason] += 1
      raise EndpointError(self._sentence(e), e.reason) from None
    except Exception:
      stopping.set()
      raise

  def _asked(self, question: "_Question", stopping: threading.Event) -> list[Answer]:
    """Take from disk what is there, and ask until the rest is."""
    names = [question.name(self.options, i) for i in range(question.count)]
    answers = [self._cache.get(name) for name in names]
    with self._lock:
      self.counts.cached += len(answers) - answers.count(None)
    failures = refused = 0
    while None in answers:
      first = answers.index(None)
      end = next((i for i in range(first, len(answers)) if answers[i]), len(answers))
      if stopping.is_set():
        raise _Stopped
      try:
        found, failure = self._request(question, names[first:end], first, refused)
        answers[first:end] = found
        if failure:
          refused += 1
          raise failure
      except RequestFailed as e:
        failures += 1
        if not e.retry or failures > self.options.retries or e.after > self.options.max_wait:
          raise
        with self._lock:
          self.counts.retried += 1
        (self._sleep or stopping.wait)(max(self._pause(names[first], failures), e.after))
    return [answer for answer in answers if answer]

  def _request(
    self, question: "_Question", names: Sequence[str], first: int, refused: int
  ) -> tuple[list[Answer | None], RequestFailed | None]:
    """Send a request, keep its answers and write down what it has cost.

    Args:
      names: of the answers that are asked for.
      first: the place of the first of them in the question.
      refused: how many requests had answers that could not be used.

    Returns:
      The answers, None where one cannot be used, and what is wrong with them.
    """
    o, key = self.options, api_key(self.options)
    body = completions.request_body(
      o,
      question.prompt,
      len(names),
      max_tokens=question.max_tokens,
      temperature=question.temperature,
      seed=question.seed_to_send(first, refused),
    )
    most = completions.most_used(o, question.prompt, len(names), question.max_tokens)
    self._begin()
    try:
      answer = http_json.post(o.url + completions.PATHS[o.api], body, key=key, timeout=o.timeout, limit=o.body_limit)
    except RequestFailed as e:
      if e.billed:
        self._pay(most)
      raise
    used = completions.usage(answer, most)
    found, failure = completions.checked_answers(answer, o.api, len(names), used.completion_tokens, key)
    for name, one in zip(names, found, strict=True):
      if one:
        self._cache.put(name, one)
        self._answered = True
    self._pay(used)
    return found, failure

  def _begin(self) -> None:
    """Count a request, unless the budget is spent."""
    with self._lock:
      for name, spent in zip(("budget_tokens", "budget_cost"), self.spent(), strict=True):
        budget = getattr(self.options, name)
        if budget and spent >= budget:
          raise RequestFailed(
            "budget", f"is asked no more, since {spent:g} of {budget:g} (`{name}`) are spent", retry=False
          )
      self.counts.requests += 1

  def _pay(self, used: Usage) -> None:
    o, c = self.options, self.counts
    with self._lock:
      c.prompt_tokens += used.prompt_tokens
      c.completion_tokens += used.completion_tokens
      c.estimated += used.estimated
      c.cost = (c.prompt_tokens * o.price_prompt + c.completion_tokens * o.price_completion) / 1e6
    self._cache.pay(used.prompt_tokens, used.completion_tokens)

  def _pause(self, name: str, failures: int) -> float:
    """Compute the seconds before a request is sent again: backoff 2^(failures - 1), times a number in [0.5, 1) of its own."""
    share = int(digest({"name": name, "failures": failures})[:8], 16) / 2**32
    return min(self.options.backoff * 2.0 ** min(failures - 1, 64) * (1 + share) / 2, self.options.max_wait)

  def _by_prompt(
    self, rows: int, questions: Sequence["_Question"], found: Sequence["list[Answer] | RequestFailed"]
  ) -> list[list[str]]:
    """Put the answers to all questions together by prompt; one with a failure among them has none."""
    answers: list[list[Answer]] = [[] for _ in range(rows)]
    failures: dict[int, RequestFailed] = {}
    for question, part in zip(questions, found, strict=True):
      if isinstance(part, RequestFailed):
        failures.setdefault(question.row, part)
      else:
        answers[question.row] += part
    for row, failure in failures.items():
      answers[row] = []
      self.counts.failed[failure.reason] += 1
      if failure.reason not in self._told:
        self._told.add(failure.reason)
        print(f"note: a prompt goes without an answer. {self._sentence(failure)}", file=sys.stderr)
    for answer in (answer for of_one in answers for answer in of_one):
      self.tokens += answer.tokens
      self.counts.cut += answer.cut
    return [[answer.text for answer in of_one] for of_one in answers]

  def _sentence(self, e: RequestFailed) -> str:
    o = self.options
    mend = MENDS.get(e.reason, "see what its log says" if e.retry else "see what it says about that")
    others = "" if e.mistake or o.on_failure == "continue" else ", or set `on_failure` to continue without this answer"
    kept = "; what it has answered is kept, and the same command goes on from there" if o.cache else ""
    return f"The endpoint {o.url} {e}: {mend}{others}{kept}."


class _Stopped(Exception):
  """The call is over, for another question's sake."""


@dataclasses.dataclass(frozen=True)
class _Question:
  """What one request asks for, or several where the first ones fail.

  Attributes:
    row: of the prompt.
    first: how many answers to the same prompt other questions ask for.
    count: answers.
  """

  row: int
  prompt: str
  first: int
  count: int
  max_tokens: int
  temperature: float
  seed: int

  def name(self, options: EndpointOptions, i: int) -> str:
    """Hash all that the answer of number i depends on."""
    asked = {"url": options.url, "model": options.model, **completions.prompt_fields(options, self.prompt)}
    asked |= {"max_tokens": self.max_tokens, "temperature": self.temperature, "extra": dict(options.extra)}
    return digest(asked | {"seed": self.seed, "index": self.first + i})

  def seed_to_send(self, i: int, refused: int) -> int:
    """Make the seed of a request whose first answer is of number i, in [0, 2^31).

    Prompts and seeds have far-off ones, and the answers to one prompt count up, as vLLM does by itself within a request: answers do not
    depend on how many a request asks for. A server that repeats itself gets another seed where its answer was no good.
    """
    text = f"{self.seed} {refused} {self.prompt}".encode("utf-8", "backslashreplace")
    return int(hashlib.sha256(text).hexdigest()[:8], 16) % (2**31 - 2**20) + (self.first + i) % 2**20
