"""A teacher behind an endpoint, against a server on this machine that fails, stalls and lies as it is told."""

import contextlib
import dataclasses
import email.utils
import http.server
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from opd_jax import config as configs
from opd_jax.errors import InputError
from opd_jax.rollout import http_json
from opd_jax.rollout.endpoint import MENDS, EndpointError, EndpointOptions, EndpointSampler, TeacherSampler

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECRET = "sk-very-secret-0123456789"
SAMPLING: dict[str, Any] = {"max_tokens": 8, "temperature": 1.0, "seed": 3}


class Server:
  """An endpoint, which answers every request by what it is told; by default a text names what was asked.

  Attributes:
    behave: gets the handler and the body; None: as the default. `then` makes one that does something else each time.
    bodies, headers, paths: of the requests so far, by arrival.
    over: is set at the end, which stalled handlers wait for.
  """

  def __init__(self):
    self.behave: Callable[[Any, dict], None] = lambda handler, body: handler.good(body)
    self.bodies, self.headers, self.paths = [], [], []
    self.over = threading.Event()
    self._lock = threading.Lock()
    server = self

    class Handler(_Handler):
      def do_POST(self):
        with server._lock:
          body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
          server.bodies.append(body)
          server.headers.append(dict(self.headers))
          server.paths.append(self.path)
        self.over, self.number = server.over, len(server.bodies) - 1
        with contextlib.suppress(OSError):  # the client has gone
          server.behave(self, body)

    self._http = _Http(("127.0.0.1", 0), Handler)
    self.port = self._http.server_port
    self.url = f"http://127.0.0.1:{self.port}/v1"
    self._thread = threading.Thread(target=self._http.serve_forever, args=(0.005,), daemon=True)
    self._thread.start()

  def with_tls(self, cert: pathlib.Path, key: pathlib.Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
    self.url = f"https://127.0.0.1:{self.port}/v1"

  def close(self) -> None:
    self.over.set()
    self._http.shutdown()
    self._http.server_close()


class _Http(http.server.ThreadingHTTPServer):
  daemon_threads = True
  block_on_close = False
  request_queue_size = 64

  def handle_error(self, request, client_address):
    pass


class _Handler(http.server.BaseHTTPRequestHandler):
  over: threading.Event
  number: int

  def log_message(self, format, *args):
    pass

  def send(self, answer: Any, status: int = 200, kind: str = "application/json", **headers: str) -> None:
    data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    self.send_response(status)
    self.send_header("Content-Type", kind)
    self.send_header("Content-Length", headers.pop("length", str(len(data))))
    for name, value in headers.items():
      self.send_header(name.replace("_", "-"), value)
    self.end_headers()
    self.wfile.write(data)

  def good(self, body: dict, **changes: Any) -> None:
    self.send(good(body, **changes))


def good(body: dict, **changes: Any) -> dict:
  """What a server answers to a request that repeats itself by its seed: PROMPT/SEED, counted up for each choice."""
  prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
  texts = [f"{prompt}/{body['seed'] + i}" for i in range(body.get("n", 1))]
  if "prompt" in body:
    choices: list[dict] = [{"index": i, "text": text} for i, text in enumerate(texts)]
  else:
    choices = [{"index": i, "message": {"role": "assistant", "content": text}} for i, text in enumerate(texts)]
  usage = {"prompt_tokens": 10, "completion_tokens": 5 * len(texts)}
  return {"choices": choices, "usage": usage} | changes


def then(*behaviours: Callable[[Any, dict], None]) -> Callable[[Any, dict], None]:
  """One behaviour after another, by the request's number; the last one for all others."""
  return lambda handler, body: behaviours[min(handler.number, len(behaviours) - 1)](handler, body)


def well(handler, body) -> None:
  handler.good(body)


def status(code: int, message: str = "no", **headers: str):
  return lambda handler, body: handler.send({"error": {"message": message}}, code, **headers)


@pytest.fixture
def server() -> Iterator[Server]:
  found = Server()
  yield found
  found.close()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
  for name in list(os.environ):
    if name.lower().endswith("_proxy") or name == "SSL_CERT_FILE":
      monkeypatch.delenv(name)
  monkeypatch.setenv("OPENAI_API_KEY", SECRET)


@pytest.fixture
def pauses() -> list[float]:
  return []


@pytest.fixture
def teacher(server, tmp_path, pauses):
  """Makes a sampler with options that a test needs; pauses are written down and not waited for."""

  def make(**options) -> EndpointSampler:
    options = {"url": server.url, "model": "m", "cache": str(tmp_path / "cache"), "timeout": 20.0} | options
    return EndpointSampler(EndpointOptions(**options), sleep=pauses.append)

  return make


def failure(teacher, prompts=("a",), n=1) -> EndpointError:
  with pytest.raises(EndpointError) as e:
    teacher.sample(prompts, n, **SAMPLING)
  return e.value


# What is asked and answered.


def test_a_chat_is_asked_and_answered(server, teacher):
  sampler: TeacherSampler = teacher(system="Be brief.", extra={"top_p": 0.9})
  (texts,) = sampler.sample(["2+2="], 3, **SAMPLING)
  (body,) = server.bodies
  seed = body.pop("seed")
  assert texts == [f"2+2=/{seed + i}" for i in range(3)]
  assert 0 <= seed < 2**31
  messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2="}]
  asked = {"model": "m", "messages": messages, "max_tokens": 8, "temperature": 1.0, "stream": False, "n": 3}
  assert body == asked | {"top_p": 0.9}
  assert server.paths == ["/v1/chat/completions"]
  assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"
  assert sampler.tokens == 15


def test_plain_text_is_continued(server, teacher):
  teacher(api="completions", max_tokens_field="max_completion_tokens").sample(["2+2="], 1, **SAMPLING)
  (body,) = server.bodies
  assert (body["prompt"], body["max_completion_tokens"]) == ("2+2=", 8)
  assert not {"messages", "max_tokens", "n"} & body.keys()
  assert server.paths == ["/v1/completions"]


def test_answers_keep_their_order_however_late_they_come(server, teacher):
  prompts = [f"p{i}" for i in range(12)]
  here, at_once = [], []

  def later_is_sooner(handler, body):
    here.append(body)
    at_once.append(len(here))
    time.sleep(0.02 * (12 - int(body["messages"][0]["content"][1:])))
    here.remove(body)  # before the client hears of it, and asks for the next
    handler.good(body)

  server.behave = later_is_sooner
  answers = teacher(parallel=4).sample(prompts, 2, **SAMPLING)
  assert [{text.split("/")[0] for text in texts} for texts in answers] == [{prompt} for prompt in prompts]
  assert max(at_once) == 4


def test_choices_are_taken_by_their_index(server, teacher):
  server.behave = lambda handler, body: handler.good(body, choices=good(body)["choices"][::-1])
  (texts,) = teacher().sample(["a"], 3, **SAMPLING)
  assert texts == sorted(texts)


def test_answers_do_not_depend_on_how_many_a_request_asks_for(server, teacher):
  together = teacher(cache="").sample(["a", "b"], 4, **SAMPLING)
  apart = teacher(cache="", choices=1).sample(["a", "b"], 4, **SAMPLING)
  assert together == apart
  assert len(server.bodies) == 2 + 8


def test_a_prompt_that_is_asked_twice_gets_other_answers(teacher):
  answers = teacher().sample(["a", "b", "a"], 2, **SAMPLING)
  assert len({text for texts in answers for text in texts}) == 6


# The cache.


def test_what_was_answered_is_asked_no_more(server, teacher):
  first, second = teacher(), teacher()
  answers = first.sample(["a", "b"], 2, **SAMPLING)
  assert second.sample(["a", "b"], 2, **SAMPLING) == answers
  assert second.sample(["b"], 1, **SAMPLING) == [answers[1][:1]]
  assert len(server.bodies) == 2
  assert (second.counts.cached, second.counts.requests, second.counts.completion_tokens) == (5, 0, 0)
  assert (first.tokens, second.tokens) == (20, 25)
  more = second.sample(["a"], 3, **SAMPLING)
  assert more[0][:2] == answers[0]
  assert "n" not in server.bodies[-1]  # one answer more


@pytest.mark.parametrize(
  "change",
  [
    {"model": "other"},
    {"system": "s"},
    {"api": "completions"},
    {"extra": {"top_p": 0.5}},
    {"seed": 4},
    {"max_tokens": 9},
    {"temperature": 0.5},
  ],
)
def test_whatever_changes_an_answer_is_another_request(server, teacher, change):
  teacher().sample(["a"], 1, **SAMPLING)
  other = teacher(**{k: v for k, v in change.items() if k not in SAMPLING})
  other.sample(["a"], 1, **{k: change.get(k, v) for k, v in SAMPLING.items()})
  assert len(server.bodies) == 2


def test_other_seeds_give_other_answers(teacher):
  sampler = teacher()
  texts = [sampler.sample(["a"], 4, **(SAMPLING | {"seed": seed}))[0] for seed in range(8)]
  assert len({text for of_one in texts for text in of_one}) == 32


def test_a_damaged_file_counts_as_none(server, teacher, tmp_path):
  answers = teacher().sample(["a"], 6, **SAMPLING)
  files = sorted((tmp_path / "cache").glob("*/*/*.json"))
  damaged = [
    b"",
    b"[]",
    b'{"text": 1, "tokens": 5, "cut": false}',
    b'{"text": "a", "tokens": -1, "cut": false}',
    b'{"a',
  ]
  for file, data in zip(files[:5], damaged, strict=True):
    file.write_bytes(data)
  again = teacher()
  assert again.sample(["a"], 6, **SAMPLING) == answers
  assert again.counts.cached == 1
  assert teacher().sample(["a"], 6, **SAMPLING) == answers
  assert not list((tmp_path / "cache").rglob("*.part"))


def test_a_cache_that_cannot_be_written_stops_the_run(server, teacher, tmp_path):
  file = tmp_path / "file"
  sampler = teacher(cache=str(file), on_failure="continue")
  file.write_text("")
  with pytest.raises(InputError, match=r"cannot be written there \(Not a directory\): .* name another `cache`"):
    sampler.sample(["a"], 1, **SAMPLING)
  with pytest.raises(InputError, match=r"cannot be read \(Not a directory\): .* name another `cache`"):
    teacher(cache=str(file))  # before anything is asked
  assert len(server.bodies) == 1


KILLED = """
import sys
from opd_jax.rollout.endpoint import EndpointOptions, EndpointSampler
EndpointSampler(EndpointOptions(sys.argv[1], "m", cache=sys.argv[2], parallel=1)).sample(
  list("abcdef"), 2, max_tokens=8, temperature=1.0, seed=3)
"""


def test_a_run_that_was_killed_goes_on_and_pays_nothing_twice(server, teacher, tmp_path):
  process: list[subprocess.Popen] = []

  def kill_at_the_fourth(handler, body):
    if handler.number == 3:
      process[0].send_signal(signal.SIGKILL)
    handler.good(body)

  server.behave = kill_at_the_fourth
  command = [sys.executable, "-c", KILLED, server.url, str(tmp_path / "cache")]
  process.append(subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}))
  assert process[0].wait(30) == -signal.SIGKILL
  resumed = teacher()
  assert resumed.spent()[0] == 3 * 20
  answers = resumed.sample(list("abcdef"), 2, **SAMPLING)
  asked = [body["messages"][0]["content"] for body in server.bodies]
  assert sorted(asked) == list("abcddef")  # the fourth was on its way
  assert (resumed.counts.cached, resumed.counts.requests, resumed.tokens) == (6, 3, 60)
  assert answers == teacher(cache="").sample(list("abcdef"), 2, **SAMPLING)


# Failures.


def raw(data: bytes):
  """Sends bytes and ends the connection."""

  def behave(handler, body):
    handler.wfile.write(data)
    handler.close_connection = True

  return behave


def choices(*found: Any):
  return lambda handler, body: handler.good(body, choices=list(found))


def kind(name: str):
  return lambda handler, body: handler.send(good(body), kind=name)


CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
LIES = {
  "no JSON": (lambda handler, body: handler.send(b"{'choices'"), "json"),
  "a list": (lambda handler, body: handler.send([1]), "json"),
  "other bytes": (lambda handler, body: handler.send(b"\xff\xfe"), "json"),
  "deep": (lambda handler, body: handler.send(b"[" * 2000), "json"),
  "half a pair": (lambda handler, body: handler.send(rb'{"choices": [{"message": {"content": "\ud800"}}]}'), "json"),
  "no choices": (lambda handler, body: handler.send({}), "choices"),
  "an error inside": (lambda handler, body: handler.send({"error": {"message": "busy", "code": 1}}), "choices"),
  "choices that are none": (lambda handler, body: handler.send({"choices": "yes"}), "choices"),
  "no choice": (choices(), "choices"),
  "a choice that is none": (choices("text"), "text"),
  "no message": (choices({"index": 0}), "text"),
  "no text": (choices({"message": {"content": None, "reasoning_content": "hm"}}), "text"),
  "text in parts": (choices({"message": {"content": [{"type": "text", "text": "a"}]}}), "text"),
  "an empty text": (choices({"message": {"content": ""}}), "empty"),
  "white space": (choices({"message": {"content": " \n"}}), "empty"),
  "a page": (kind("text/html"), "content_type"),
  "a stream": (kind("text/event-stream"), "content_type"),
  "too long": (lambda handler, body: handler.send(b" " * 5000 + json.dumps(good(body)).encode()), "oversized"),
  "too long, in pieces": (raw(CHUNKED + b"1000\r\n" + b" " * 4096 + b"\r\n1000\r\n" + b" " * 4096), "oversized"),
  "cut": (lambda handler, body: handler.send(good(body), length="2000"), "truncated"),
  "cut, in pieces": (raw(CHUNKED + b"10\r\n{"), "truncated"),
  "nothing": (raw(b""), "connection"),
  "no HTTP": (raw(b"hello\r\n\r\n"), "connection"),
  "a long line": (raw(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000), "connection"),
  "many headers": (raw(b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 200 + b"\r\n"), "connection"),
  **{str(code): (status(code), f"http_{code}") for code in (408, 429, 500, 502, 503, 529)},
}


@pytest.mark.parametrize("name", LIES)
def test_a_request_that_failed_is_sent_again(server, teacher, pauses, name):
  lie, reason = LIES[name]
  server.behave = then(lie, well)
  sampler = teacher(body_limit=4096)
  (texts,) = sampler.sample(["a"], 1, **SAMPLING)
  assert texts[0].startswith("a/")
  assert (sampler.counts.requests, sampler.counts.retried, len(pauses)) == (2, 1, 1)
  assert sampler.counts.failed == {}

  server.behave = lie
  e = failure(teacher(body_limit=4096, retries=1, cache=""), ["b"])
  assert e.reason == reason
  assert str(e).startswith(f"The endpoint {server.url} ")
  assert "set `on_failure` to continue" in str(e)
  assert len(server.bodies) == 4


@pytest.mark.parametrize("code", [400, 401, 403, 404, 413, 422])
def test_what_is_refused_is_not_asked_again(server, teacher, code):
  server.behave = status(code, "max_tokens is too large")
  e = failure(teacher())
  assert e.reason == f"http_{code}"
  assert ("max_tokens is too large" in str(e)) == (code not in (401, 403))  # which may quote a part of the key
  assert len(server.bodies) == 1


def test_nobody_is_there(teacher, pauses):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    e = failure(teacher(url=f"http://127.0.0.1:{free.getsockname()[1]}/v1", retries=2))
  assert e.reason == "connection"
  assert "see that the server is up" in str(e)
  assert len(pauses) == 2


def test_a_host_that_has_no_address(teacher):
  assert failure(teacher(url="http://teacher.invalid/v1", retries=0, key_env="")).reason == "connection"


def test_fewer_choices_are_kept_and_the_rest_is_asked_for(server, teacher):
  server.behave = then(lambda handler, body: handler.good(body | {"n": 2}), well)
  (texts,) = teacher().sample(["a"], 5, **SAMPLING)
  assert [body.get("n", 1) for body in server.bodies] == [5, 3]
  assert len(set(texts)) == 5

  server.behave = lambda handler, body: handler.good(body | {"n": 1})
  e = failure(teacher(retries=2), ["b"], 5)
  assert "sent 1 of 3 choices that were asked for: set `choices` to 1" in str(e)
  server.behave = well
  again = teacher()
  assert len(again.sample(["b"], 5, **SAMPLING)[0]) == 5
  assert again.counts.cached == 3


def test_an_empty_choice_among_others_is_asked_for_alone(server, teacher):
  def second_is_empty(handler, body):
    found = good(body)
    found["choices"][1]["message"]["content"] = ""
    handler.send(found)

  server.behave = then(second_is_empty, well)
  (texts,) = teacher().sample(["a"], 3, **SAMPLING)
  assert [body.get("n", 1) for body in server.bodies] == [3, 1]
  assert len(set(texts)) == 3
  assert server.bodies[1]["seed"] != server.bodies[0]["seed"] + 1  # by which the server would say nothing again


def test_more_choices_than_asked_for_are_left_out(server, teacher):
  server.behave = lambda handler, body: handler.good(body | {"n": 4})
  assert [len(texts) for texts in teacher().sample(["a", "b"], 2, **SAMPLING)] == [2, 2]


def test_a_failure_leaves_one_prompt_out(server, teacher, capsys):
  def some_fail(handler, body):
    prompt = body["messages"][0]["content"]
    (status(503) if prompt in "bd" else status(400) if prompt == "e" else well)(handler, body)

  server.behave = some_fail
  sampler = teacher(on_failure="continue", retries=1, choices=1)
  answers = sampler.sample(list("abcde"), 2, **SAMPLING)
  assert [len(texts) for texts in answers] == [2, 0, 2, 0, 0]
  assert sampler.counts.failed == {"http_503": 2, "http_400": 1}
  metrics = sampler.metrics()
  assert {name: value for name, value in metrics.items() if "failed" in name} == {
    "endpoint/failed": 3,
    "endpoint/failed/http_400": 1,
    "endpoint/failed/http_503": 2,
  }
  assert metrics["endpoint/requests"] == 4 + 8 + 2
  assert sampler.tokens == 20
  assert capsys.readouterr().err.count("note: a prompt goes without an answer") == 2  # a reason each


def test_a_failure_stops_the_run_and_what_is_on_its_way_is_kept(server, teacher):
  both = threading.Barrier(2, timeout=10)

  def one_fails(handler, body):
    both.wait()
    if body["messages"][0]["content"] == "a":
      return status(500)(handler, body)
    time.sleep(0.5)  # until the other one's failure is known
    handler.good(body)

  server.behave = one_fails
  sampler = teacher(retries=0, parallel=2)
  e = failure(sampler, list("abcdef"))
  assert (e.reason, len(server.bodies)) == ("http_500", 2)
  assert "the same command goes on from there" in str(e)
  server.behave = well
  again = teacher()
  again.sample(list("abcdef"), 1, **SAMPLING)
  assert again.counts.cached == 1


@pytest.mark.parametrize("code", [401, 404])
def test_a_mistake_stops_a_run_that_would_go_on_unless_there_were_answers(server, teacher, code):
  server.behave = status(code)
  sampler = teacher(on_failure="continue")
  assert "on_failure" not in str(failure(sampler))
  server.behave = well
  sampler.sample(["a"], 1, **SAMPLING)
  server.behave = status(code)
  assert sampler.sample(["a", "b"], 1, **SAMPLING)[1] == []
  assert sampler.metrics()[f"endpoint/failed/http_{code}"] == 2


# Time.


def drip(start: bytes):
  """Sends a byte now and then, for ever."""

  def behave(handler, body):
    handler.wfile.write(start)
    while not handler.over.wait(0.03):
      handler.wfile.write(b" ")
      handler.wfile.flush()

  return behave


STALLS = {
  "no answer": lambda handler, body: handler.over.wait(),
  "in the headers": drip(b"HTTP/1.1 200 OK\r\nX: "),
  "in the body": drip(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"),
  "in a piece": drip(CHUNKED + b"100\r\n{"),
}


@pytest.mark.parametrize("name", STALLS)
def test_a_server_that_stalls_costs_its_timeout(server, teacher, name):
  server.behave = STALLS[name]
  begun = time.monotonic()
  assert failure(teacher(timeout=0.2, retries=0)).reason == "timeout"
  assert 0.2 <= time.monotonic() - begun < 3.0


def test_a_prompt_that_stalls_holds_up_no_other(server, teacher):
  def one_stalls(handler, body):
    (STALLS["in the body"] if body["messages"][0]["content"] == "a" else well)(handler, body)

  server.behave = one_stalls
  sampler = teacher(timeout=1.0, retries=0, on_failure="continue")
  begun = time.monotonic()
  answers = sampler.sample(list("abcdefgh"), 1, **SAMPLING)
  assert 1.0 <= time.monotonic() - begun < 4.0
  assert [len(texts) for texts in answers] == [0] + [1] * 7
  assert sampler.counts.failed == {"timeout": 1}


def test_pauses_double_and_are_the_same_each_time(server, teacher, pauses):
  server.behave = status(500)
  failure(teacher(backoff=2.0, retries=6, max_wait=20.0))
  assert all(least <= pause < 2 * least for least, pause in zip([1, 2, 4, 8], pauses, strict=False))
  assert len(pauses) == 6
  assert pauses[5] == 20.0
  first = pauses[:]
  failure(teacher(backoff=2.0, retries=6, max_wait=20.0))
  assert pauses[6:] == first
  failure(teacher(backoff=2.0, retries=6, max_wait=20.0), ["b"])
  assert pauses[12] != first[0]


@pytest.mark.parametrize(
  ("header", "least", "most"),
  [
    ("7", 7, 7),
    ("0", 0.5, 1),
    ("-3", 0.5, 1),
    ("0.2", 0.5, 1),
    ("soon", 0.5, 1),
    ("nan", 0.5, 1),
    ("inf", 0.5, 1),
    ("Thu, 01 Jan 1970 00:00:00 GMT", 0.5, 1),
    ("in 9 s", 7, 9),
  ],
)
def test_a_server_may_ask_to_wait(server, teacher, pauses, header, least, most):
  header = email.utils.formatdate(time.time() + 9, usegmt=True) if header == "in 9 s" else header
  server.behave = then(status(429, Retry_After=header), well)
  teacher().sample(["a"], 1, **SAMPLING)
  assert least <= pauses[0] <= most


def test_a_server_that_asks_to_wait_too_long_is_given_up(server, teacher, pauses):
  server.behave = status(429, Retry_After="3600")
  e = failure(teacher())
  assert "status 429 (no) and asks to wait 3600 s: lower `parallel`, or raise `retries` and `max_wait`" in str(e)
  assert (pauses, len(server.bodies)) == ([], 1)


def test_a_pause_ends_with_the_call(server, tmp_path):
  def behave(handler, body):
    if body["messages"][0]["content"] == "a":
      return status(500, Retry_After="60")(handler, body)
    while not server.headers[1:]:
      time.sleep(0.01)
    time.sleep(0.1)
    status(400)(handler, body)

  server.behave = behave
  begun = time.monotonic()
  assert failure(EndpointSampler(EndpointOptions(server.url, "m")), ["a", "b"]).reason == "http_400"
  assert time.monotonic() - begun < 5


# Money.


def test_the_budget_of_tokens_is_kept_in_order(server, teacher):
  sampler = teacher(budget_tokens=40, parallel=1)  # 15 a request
  e = failure(sampler, list("abcdef"))
  assert e.reason == "budget"
  assert str(e).startswith(
    f"The endpoint {server.url} is asked no more, since 45 of 40 (`budget_tokens`) are spent: raise it"
  )
  assert sampler.spent()[0] == 45
  assert len(server.bodies) == 3

  again = teacher(budget_tokens=40, parallel=1, on_failure="continue")  # as a run that was started again
  answers = again.sample(list("abcdef"), 1, **SAMPLING)
  assert [len(texts) for texts in answers] == [1, 1, 1, 0, 0, 0]
  assert again.counts.failed == {"budget": 3}
  assert again.counts.requests == 0
  more = teacher(budget_tokens=46, parallel=1, on_failure="continue")
  assert [len(texts) for texts in more.sample(list("abcdef"), 1, **SAMPLING)] == [1, 1, 1, 1, 0, 0]


def test_a_budget_is_exceeded_by_the_requests_that_were_on_their_way(server, teacher):
  def slow(handler, body):
    time.sleep(0.02)
    handler.good(body)

  server.behave = slow
  sampler = teacher(budget_tokens=40, parallel=4, on_failure="continue")
  sampler.sample([f"p{i}" for i in range(20)], 1, **SAMPLING)
  assert 40 <= sampler.spent()[0] < 40 + 4 * 15
  assert sampler.spent()[0] == 15 * len(server.bodies)


def test_the_budget_of_money(server, teacher):
  prices = {"price_prompt": 1e6, "price_completion": 2e6}  # 10 + 2 * 5 a request
  sampler = teacher(budget_cost=50.0, parallel=1, on_failure="continue", **prices)
  answers = sampler.sample(list("abcdef"), 1, **SAMPLING)
  assert [len(texts) for texts in answers] == [1, 1, 1, 0, 0, 0]
  assert sampler.counts.cost == sampler.spent()[1] == 60.0
  assert teacher(**prices).spent() == (45, 60.0)


@pytest.mark.parametrize(
  "usage",
  [
    None,
    "many",
    {"prompt_tokens": 10},
    {"prompt_tokens": 10, "completion_tokens": -5},
    {"prompt_tokens": 10, "completion_tokens": 10**12},
    {"prompt_tokens": 10, "completion_tokens": 0},
    {"prompt_tokens": 10, "completion_tokens": True},
    {"prompt_tokens": 10, "completion_tokens": 5.5},
    {"prompt_tokens": 10, "completion_tokens": "5"},
  ],
)
def test_tokens_that_cannot_be_count_as_the_most(server, teacher, usage):
  server.behave = lambda handler, body: handler.good(body, usage=usage)
  sampler = teacher()
  assert len(sampler.sample(["a"], 2, **SAMPLING)[0]) == 2
  assert (sampler.counts.completion_tokens, sampler.counts.estimated, sampler.tokens) == (16, 1, 16)
  assert sampler.counts.prompt_tokens == (10 if isinstance(usage, dict) else 1025)


def test_a_broken_answer_is_paid_and_a_page_is_not(server, teacher):
  server.behave = then(LIES["cut"][0], LIES["no choices"][0], LIES["a page"][0], status(500), well)
  sampler = teacher()
  sampler.sample(["a"], 1, **SAMPLING)
  assert sampler.counts.completion_tokens == 8 + 8 + 5
  assert sampler.counts.estimated == 2


def test_answers_that_the_limit_ended_are_counted(server, teacher):
  def cut(handler, body):
    found = good(body)
    found["choices"][0]["finish_reason"] = "length"
    handler.send(found)

  server.behave = cut
  for _ in range(2):  # from the server, from disk
    sampler = teacher()
    sampler.sample(["a"], 3, **SAMPLING)
    assert sampler.metrics()["endpoint/cut"] == 1


# The key.


@pytest.mark.parametrize(
  ("key_env", "value", "header"), [("", SECRET, None), ("OPENAI_API_KEY", "", None), ("MINE", "k\n", "k")]
)
def test_which_key_is_sent(server, teacher, monkeypatch, key_env, value, header):
  monkeypatch.setenv(key_env or "OPENAI_API_KEY", value)
  teacher(key_env=key_env).sample(["a"], 1, **SAMPLING)
  assert server.headers[0].get("Authorization") == (header and f"Bearer {header}")


def test_a_key_that_cannot_be_one_is_refused_and_not_shown(teacher, monkeypatch):
  monkeypatch.setenv("MINE", "two words")
  with pytest.raises(InputError, match="MINE holds no API key") as e:
    teacher(key_env="MINE")
  assert "two words" not in str(e.value)
  for pasted in (SECRET, "sk0very0secret"):
    with pytest.raises(InputError, match="key_env") as e:
      teacher(key_env=pasted)
    assert pasted not in str(e.value)


ECHOES = {
  "in the text": (lambda handler, body: handler.good(body | {"messages": [{"content": f"my key is {SECRET}!"}]}), ""),
  "in an error": (status(500, f"the key {SECRET} " * 30), "http_500"),
  "in a refusal": (status(401, f"Incorrect key {SECRET[:6]}***{SECRET[-4:]}"), "http_401"),
  "in an error inside": (lambda handler, body: handler.send({"error": ["the key", SECRET]}), "choices"),
  "in the type": (kind(f"text/{SECRET}"), "content_type"),
  "in the status": (raw(f"{'x' * 190} {SECRET}\r\n\r\n".encode()), "connection"),
  "in a redirect": (
    lambda handler, body: handler.send({}, 307, Location=f"http://a:{SECRET}@b/{SECRET}?{SECRET}"),
    "redirect",
  ),
}


@pytest.mark.parametrize("name", ECHOES)
def test_the_key_is_nowhere(server, teacher, tmp_path, capfd, caplog, name):
  server.behave, reason = ECHOES[name]
  seen = []
  for on_failure in ("stop", "continue"):
    sampler = teacher(retries=0, on_failure=on_failure)
    if reason and on_failure == "stop":
      e = failure(sampler, n=2)
      assert e.reason == reason
      seen += traceback.format_exception(e), repr(e), repr(e.args)
    else:
      with contextlib.suppress(EndpointError):  # a mistake
        seen.append(repr(sampler.sample(["a"], 2, **SAMPLING)))
    seen += repr(sampler), repr(sampler.options), str(vars(sampler)), repr(sampler.metrics()), repr(sampler.counts)
    seen.append(json.dumps(dataclasses.asdict(sampler.options)))
  seen += [*capfd.readouterr(), caplog.text]
  seen += [f"{path} {path.read_bytes() if path.is_file() else ''}" for path in tmp_path.rglob("*")]
  assert not any(part in str(text) for text in seen for part in (SECRET, SECRET[3:15], SECRET[-10:]))
  if not reason:
    assert sum("my key is ***!" in text for text in seen) >= 3
  assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"


def test_a_redirect_to_another_host_is_not_followed(server, teacher):
  other = Server()
  try:
    for there in (f"{other.url}/chat/completions", f"//localhost:{server.port}/v1/chat/completions", "https:///v1", ""):
      server.behave = lambda handler, body, there=there: handler.send({}, 307, Location=there)
      e = failure(teacher(on_failure="continue"))
      assert e.reason == "redirect"
      assert "set `url` to where it really is" in str(e)
    assert other.bodies == []
    assert len(server.bodies) == 4
  finally:
    other.close()


def test_a_redirect_on_the_same_host_is_followed(server, teacher):
  def move(handler, body):
    if handler.path != "/v2/chat/completions":
      return handler.send({}, 308, Location="/v2/chat/completions?a=b")
    handler.good(body)

  server.behave = move
  assert len(teacher().sample(["a"], 1, **SAMPLING)[0]) == 1
  assert server.bodies[0] == server.bodies[1]
  server.behave = lambda handler, body: handler.send({}, 307, Location=handler.path)
  assert "redirects more than 3 times" in str(failure(teacher(), ["b"]))
  server.behave = lambda handler, body: handler.send({}, 303, Location="/elsewhere")
  assert "redirects to " in str(failure(teacher(), ["c"]))


def test_a_proxy_of_the_environment_is_asked(server, teacher, monkeypatch):
  monkeypatch.setenv("http_proxy", f"http://user:p%40ss@127.0.0.1:{server.port}")
  teacher(url="http://teacher.invalid:81/v1").sample(["a"], 1, **SAMPLING)
  assert server.paths == ["http://teacher.invalid:81/v1/chat/completions"]
  assert server.headers[0]["Proxy-Authorization"] == "Basic dXNlcjpwQHNz"
  monkeypatch.setenv("http_proxy", f"http://user:{SECRET}")
  assert "http_proxy" in str(failure(teacher(url="http://teacher.invalid/v1", cache="")))
  monkeypatch.setenv("no_proxy", "127.0.0.1")
  teacher().sample(["a"], 1, **SAMPLING)
  assert server.paths[1:] == ["/v1/chat/completions"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="a certificate is made by openssl")
def test_certificates_are_checked(server, teacher, tmp_path, monkeypatch):
  cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
  make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=t"
  names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
  subprocess.run([*make.split(), *names], check=True, capture_output=True)
  assert failure(teacher(url=server.url.replace("http:", "https:"), retries=0)).reason == "connection"  # it speaks HTTP
  server.with_tls(cert, key)
  e = failure(teacher(on_failure="continue"))
  assert e.reason == "certificate"
  assert "SSL_CERT_FILE" in str(e)
  assert server.bodies == []
  monkeypatch.setenv("SSL_CERT_FILE", str(cert))
  assert len(teacher().sample(["a"], 1, **SAMPLING)[0]) == 1
  server.behave = STALLS["in the body"]
  assert failure(teacher(timeout=0.25, retries=0), ["b"]).reason == "timeout"


# Mistakes.


@pytest.mark.parametrize(
  ("url", "message"),
  [
    ("", "begin with http://"),
    ("127.0.0.1:8000/v1", "begin with http://"),
    ("localhost:8000/v1", "begin with http://"),
    ("ftp://a/v1", "begin with http://"),
    ("http:///v1", "begin with http://"),
    ("http://a:99999/v1", "is no address"),
    ("http://[::1/v1", "is no address"),
    ("http://127.0.0.1:8000", re.escape("write http://127.0.0.1:8000/v1.")),
    ("http://127.0.0.1:8000/", re.escape("write http://127.0.0.1:8000/v1.")),
    (
      "https://a/v1/chat/completions",
      re.escape("ends with /chat/completions, which is added to it: write https://a/v1."),
    ),
    ("https://a/v1/completions/", re.escape("ends with /completions, which is added to it: write https://a/v1.")),
    ("https://a/v1 b", "has to be ASCII"),
    ("https://ä/v1", "has to be ASCII"),
    ("https://a/v1\r\nX: b", "has to be ASCII"),
    (f"https://user:{SECRET}@a/v1", "environment variable that `key_env` names"),
    (f"https://a/v1?key={SECRET}", "environment variable that `key_env` names"),
    (f"https://a/v1#{SECRET}", "environment variable that `key_env` names"),
  ],
)
def test_an_address_that_is_none_is_refused(url, message):
  with pytest.raises(InputError, match=message) as e:
    EndpointOptions(url, "m")
  assert SECRET not in str(e.value)


def test_a_slash_at_the_end_is_no_fault():
  assert EndpointOptions(" https://a/openai/v1// ", "m").url == "https://a/openai/v1"


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"model": ""}, "http://a/v1/models lists"),
    ({"api": "responses"}, "`api` .* chat or completions"),
    ({"on_failure": "retry"}, "`on_failure` .* stop or continue"),
    ({"timeout": 0}, "`timeout` .* above 0"),
    ({"timeout": float("inf")}, "`timeout` .* at least 0"),
    ({"timeout": float("nan")}, "`timeout` .* at least 0"),
    ({"retries": -1}, "`retries` .* at least 0"),
    ({"parallel": 0}, "`parallel` .* at least 1"),
    ({"budget_tokens": -1}, "`budget_tokens` .* at least 0"),
    ({"budget_cost": 5.0}, "`price_prompt` or `price_completion`"),
    ({"cache": "gs://bucket/cache"}, "a directory of this machine"),
    ({"extra": {"seed": 1, "top_p": 1}}, "`extra` of an endpoint has seed"),
    ({"extra": {"a": object()}}, "cannot be written as JSON"),
  ],
)
def test_an_option_that_means_nothing_is_refused(options, message):
  with pytest.raises(InputError, match=message):
    EndpointOptions(**{"url": "http://a/v1", "model": "m"} | options)


@pytest.mark.parametrize(
  ("prompts", "arguments", "message"),
  [
    ("a", {}, "list of texts"),
    (["a"], {"n": 0}, "n=0"),
    (["a"], {"max_tokens": 0}, "max_tokens=0"),
    (["a"], {"temperature": -1.0}, "-1.0"),
  ],
)
def test_arguments_that_mean_nothing_are_refused(teacher, prompts, arguments, message):
  with pytest.raises(InputError, match=message):
    teacher().sample(prompts, **({"n": 1} | SAMPLING | arguments))


def test_a_key_on_its_way_in_clear_text_is_noted(teacher, capsys):
  for url in ("http://10.0.0.1/v1", "https://10.0.0.1/v1", "http://[::1]:8/v1", "http://localhost/v1"):
    teacher(url=url)
  err = capsys.readouterr().err
  assert err.count("without encryption") == 1
  assert "http://10.0.0.1/v1" in err


PAGE = (ROOT / "opd_jax/docs/endpoint.md").read_text(encoding="utf-8")


def test_the_page_has_every_option_and_its_default():
  table = PAGE[PAGE.index("| option |") : PAGE.index("## What is kept")]
  rows = {name: text.strip(" `") for name, text in re.findall(r"^\| `(\w+)` \|(.*?)\|", table, re.MULTILINE)}
  options = EndpointOptions("http://a/v1", "m")
  shown = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)} | {
    "url": " ",
    "model": " ",
  }
  assert rows == {name: str(value).strip() if value else json.dumps(value) for name, value in shown.items()}


def test_the_page_has_every_reason():
  reasons = {reason for _, reason in LIES.values() if not reason.startswith("http_")}
  assert [reason for reason in (*reasons, *MENDS) if f"`{reason}`" not in PAGE] == []


def test_a_placeholder_is_no_secret():
  assert http_json.without("EMPTY", "it is EMPTY") == "it is EMPTY"


def of_keys(options: str) -> EndpointOptions:
  """The options of a config of the recipe zone whose zone.teacher_options are these."""
  url = {"zone.teacher_url": "http://127.0.0.1:8000/v1", "zone.teacher_model": "m"}
  group = configs.override(configs.default("zone"), url | {"zone.teacher_options": options}).zone
  return EndpointOptions.from_config(group, "")


def test_options_without_a_key_of_their_own_are_json():
  text = '{"choices": 1, "max_wait": 5, "extra": {"top_p": 0.9}, "max_tokens_field": "max_completion_tokens"}'
  found = of_keys(text)
  assert (found.choices, found.max_wait, found.extra) == (1, 5, {"top_p": 0.9})
  assert found.max_tokens_field == "max_completion_tokens"
  assert of_keys("") == EndpointOptions("http://127.0.0.1:8000/v1", "m")


@pytest.mark.parametrize(
  ("options", "why"),
  [
    ("top_p=1", "write a JSON object"),
    ("[1]", "write a JSON object"),
    ('{"url": "http://other/v1"}', "the options are system, extra"),
    ('{"choices": "1"}', "has '1' for choices"),
    ('{"choices": true}', "has True for choices"),
    ('{"extra": 1}', "has 1 for extra"),
    ('{"choices": -1}', "at least 0"),
  ],
)
def test_options_that_there_are_not_are_refused(options, why):
  with pytest.raises(InputError, match=why):
    of_keys(options)
