"""Damaged inputs: how a healthy file is broken, and what may come of it."""

import contextlib
import copy
import json
import pathlib
import resource
import signal
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from opd_jax.errors import InputError

SECONDS = 20.0  # of this process's own time that a case may take: far beyond any that ends
MEMORY = 2**30  # bytes by which a case may raise the process's peak
SENTENCE = 1500  # characters of a message, paths included, that a person can still read

# What a hand, a disk or a program leaves where another value belongs.
ODD = (
  *(None, True, False, 0, 1, -1, 2, 3.5, 2**31, 2**63, -(2**63), 10**30, 1e300, float("nan"), float("inf")),
  *(float("-inf"), "", " ", "0", "x", "nan", "\x00", "\ud800", "é", "../x", "a/b", "{", "x" * 3000, [], {}, [[]]),
  *([None], [-1], [0, "0"], {"": None}, ["x", "x"], [1e400], [{}, []]),
)
_scalars = st.sampled_from(ODD).map(copy.deepcopy) | st.integers() | st.floats() | st.text(max_size=6)
values = st.recursive(
  _scalars,
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
  max_leaves=5,
)
DEEP = 100_000  # brackets: deeper than a recursive parser goes


@st.composite
def documents(draw: st.DrawFn, healthy: Any, changes: int = 3) -> Any:
  """A JSON document with a few of its values replaced, removed, repeated, renamed or swapped, at any depth."""
  document = copy.deepcopy(healthy)
  for _ in range(draw(st.integers(1, changes))):
    document = _changed(draw, document)
  return document


def _changed(draw: st.DrawFn, document: Any) -> Any:
  paths = list(_paths(document))
  path = draw(st.sampled_from(paths))
  if not path:
    return draw(values) if len(paths) == 1 or draw(st.integers(0, 9)) == 0 else document
  parent = document
  for part in path[:-1]:
    parent = parent[part]
  last, value = path[-1], parent[path[-1]]
  action = draw(st.sampled_from(("replace", "replace", "remove", "repeat", "nudge", "swap")))
  if action == "remove":
    del parent[last]
  elif action == "repeat" and isinstance(parent, list):
    parent.insert(last, copy.deepcopy(value))
  elif action == "repeat":
    parent[f"{last}{draw(st.sampled_from(('', '2', ' ', '.x')))}"] = copy.deepcopy(value)
  elif action == "nudge" and isinstance(value, int | float) and not isinstance(value, bool):
    parent[last] = draw(
      st.sampled_from((value + 1, value - 1, -value, value * 2, float(value), str(value), value * 10**9))
    )
  elif action == "swap":
    other: Any = document
    for part in draw(st.sampled_from(paths)):
      other = other[part]
    parent[last] = copy.deepcopy(other)
  else:
    parent[last] = draw(values)
  return document


def _paths(document: Any, above: tuple = ()) -> Iterator[tuple]:
  yield above
  inner = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
  for key, value in inner:
    yield from _paths(value, (*above, key))


@st.composite
def json_bytes(draw: st.DrawFn, healthy: Any, changes: int = 3) -> bytes:
  """A file of JSON: a changed document, one with a key twice, or the healthy one with its bytes damaged."""
  kind = draw(st.sampled_from(("document", "document", "document", "document", "key twice", "bytes", "bytes", "any")))
  if kind == "bytes":
    return draw(damaged(json.dumps(healthy, indent=draw(st.sampled_from((None, 2)))).encode()))
  if kind == "any":
    return json.dumps(draw(values)).encode()
  document = draw(documents(healthy, changes))
  text = json.dumps(document)
  if kind == "key twice" and isinstance(document, dict) and document:
    key = draw(st.sampled_from(sorted(document)))
    text = f"{text[:-1]}, {json.dumps(key)}: {json.dumps(draw(values))}}}"
  return text.encode()


@st.composite
def damaged(draw: st.DrawFn, healthy: bytes, sizes: bool = True) -> bytes:
  """Bytes as a broken copy, an editor or another program leaves them; `sizes`: grown a thousandfold too."""
  at = draw(st.integers(0, len(healthy)))
  end = min(len(healthy), at + draw(st.integers(1, 40)))
  kinds = ("cut", "cut", "lost", "flip", "flip", "noise", "nul", "bom", "crlf", "utf-16", "twice", "empty")
  kind = draw(st.sampled_from((*kinds, "deep", "digits") if sizes else kinds))
  middle = {
    "noise": draw(st.binary(min_size=1, max_size=12)) if kind == "noise" else b"",
    "nul": b"\0" * (end - at),
    "twice": healthy,
    "deep": b'{"a":[' * (DEEP // 2),
    "digits": b"9" * 5000,
    "flip": bytes(b ^ (1 << draw(st.integers(0, 7))) for b in healthy[at : at + 1]) if kind == "flip" else b"",
  }
  if kind in ("noise", "twice", "deep", "digits"):
    return healthy[:at] + middle[kind] + healthy[at:]
  if kind == "flip":
    return healthy[:at] + middle[kind] + healthy[at + 1 :]
  if kind in ("nul", "lost"):
    return healthy[:at] + middle.get(kind, b"") + healthy[end:]
  whole = {"cut": healthy[:at], "bom": b"\xef\xbb\xbf" + healthy, "crlf": healthy.replace(b"\n", b"\r\n"), "empty": b""}
  return whole[kind] if kind in whole else healthy.decode(errors="replace").encode("utf-16")


class _TooSlow(BaseException):
  """A case does not end; no handler of the code under test may take it for an error of the input."""


@contextlib.contextmanager
def accepted_or_refused(*names: object) -> Iterator[list[InputError]]:
  """Runs a block that may end in one clear InputError, and in no other exception, hang or flood of memory.

  Args:
    names: what a message may name, one of which it has to: paths, or words; none: anything.

  Yields a list that holds the InputError afterwards, if there was one.
  """
  refusals: list[InputError] = []
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  try:
    with _bounded():
      yield refusals
  except InputError as e:
    refusals.append(e)
    assert_one_sentence(str(e), *names)
  grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
  assert grown < MEMORY, f"the case took {grown / 2**20:.0f} MiB"


def assert_one_sentence(message: str, *names: object) -> None:
  """Fails unless a message is one line that a person can read, ends as a sentence, and names its subject."""
  assert len(message.splitlines()) == 1, message
  assert message.endswith("."), message
  assert len(message) <= SENTENCE, f"{len(message)} characters: {message[:300]}"
  assert not names or any(str(name) in message for name in names), f"{message!r} names none of {names}"


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
  """Fails a block that does not end, by the processor's time, so that a busy machine fails nothing."""

  def too_slow(number, frame):
    raise _TooSlow(f"not over after {SECONDS} s")

  before = signal.signal(signal.SIGVTALRM, too_slow)
  signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


def contents(directory: pathlib.Path) -> dict[str, bytes | None]:
  """Everything below a directory: the bytes of each file, None for a directory."""
  found = sorted(directory.rglob("*")) if directory.is_dir() else []
  return {p.relative_to(directory).as_posix(): p.read_bytes() if p.is_file() else None for p in found}
