"""A verifier of the user's own, named by its import path, `my_module:verify` or `my_module.verify`, or by its file, `checks.py:verify`.

    def verify(response: str, answer: str) -> bool | float | tuple[bool | float, str]: ...

The text of a pair says why: a teacher may be shown it (`context.kind=feedback`).
It may also take `ended` and `prompt` by name, as `Verifier` in problem.py does, and `record`, all that the file has of the
problem, and is then passed them.
"""

import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from opd_jax.config import expanded_path
from opd_jax.errors import InputError, first_line
from opd_jax.tasks.problem import Verifier

OPTIONAL_ARGUMENTS = (
  "ended",
  "prompt",
  "record",
)  # what a verifier is passed beside the response and the answer, where it takes it


def is_path(name: str) -> bool:
  """Tell whether the name of a verifier is an import path, or a file's."""
  return ":" in name or "." in name


def load(path: str) -> Verifier:
  """Import a verifier; the current directory is looked through after the other places of modules, or after a file's own.

  Raises:
    InputError: there is no such module, file or nothing of that name in it, it cannot be imported, or what is found cannot
      be called as a verifier is.
  """
  named = f"verifier {path!r}"
  wanted = "a function is needed that takes a response and an answer and returns True, False or a number"
  found = _found(path, named, wanted, "verify")
  return _Own(found, _takes(found, named))


def function(path: str, named: str, wanted: str, example: str) -> Callable[..., Any]:
  """Import any other function of the user's, by its import path or its file as a verifier is.

  Args:
    named, wanted, example: what it is, has to be and may be called, for messages.

  Raises:
    InputError: as of `load`.
  """
  return _found(path, f"{named} {path!r}", wanted, example)


def _found(path: str, named: str, wanted: str, example: str) -> Callable[..., Any]:
  file, _, name = path.rpartition(":")
  if file.endswith(".py") and name:
    return _attribute(_of_file(file, named), name, named, wanted)
  module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
  if not module or not name or module.startswith("."):
    raise InputError(f"The {named} is no import path; write my_module:{example}, or {example}.py:{example}.")
  return _attribute(_module(module, named), name, named, wanted)


def reads_record(verify: Verifier) -> bool:
  """Tell whether a verifier is passed the record of its problem."""
  return isinstance(verify, _Own) and verify.reads_record


def _of_file(file: str, named: str) -> Any:
  """Run a file as a module, once as long as it stays as it is."""
  place = expanded_path(file).absolute()
  if not place.is_file():
    raise InputError(
      f"The {named} cannot be loaded, since there is no file {place}; name it from the directory that the command "
      "runs in, or in full."
    )
  status = place.stat()
  mark = hashlib.sha256(f"{place} {status.st_mtime_ns} {status.st_size}".encode(errors="replace")).hexdigest()[:12]
  name = f"{place.stem}_{mark}"
  if name in sys.modules:
    return sys.modules[name]
  if str(place.parent) not in sys.path:
    sys.path.append(str(place.parent))  # what stands beside it can be imported
  spec = importlib.util.spec_from_file_location(name, place)
  assert spec is not None
  assert spec.loader is not None
  module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
  try:
    spec.loader.exec_module(module)
  except (Exception, SystemExit) as e:
    del sys.modules[name]
    raise InputError(
      f"The file of the {named} cannot be imported ({type(e).__name__}: {first_line(e)}); mend it."
    ) from e
  return module


def _module(name: str, named: str) -> Any:
  if not {"", os.getcwd()} & set(sys.path):
    sys.path.append(os.getcwd())
  importlib.invalidate_caches()
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as e:
    if e.name is None or not f"{name}.".startswith(f"{e.name}."):  # what it imports itself
      raise InputError(f"The module of the {named} cannot be imported ({first_line(e)}); mend it.") from e
    raise InputError(
      f"The {named} cannot be loaded, since there is no module {e.name!r} in {os.getcwd()} or where Python looks "
      f"for modules (PYTHONPATH)."
    ) from None
  except (Exception, SystemExit) as e:
    raise InputError(
      f"The module of the {named} cannot be imported ({type(e).__name__}: {first_line(e)}); mend it."
    ) from e


def _attribute(module: Any, name: str, named: str, wanted: str) -> Any:
  try:
    found = functools.reduce(getattr, name.split("."), module)
  except AttributeError:
    raise InputError(
      f"The {named} cannot be loaded: {module.__name__} ({_file(module)}) has no {name!r}; name a function in it."
    ) from None
  if not callable(found) or inspect.isclass(found) or inspect.iscoroutinefunction(found):
    kind = "an async function" if inspect.iscoroutinefunction(found) else f"a {type(found).__name__}"
    raise InputError(f"The {named} is {kind}, where {wanted}.")
  return found


def _file(module: Any) -> str:
  return getattr(module, "__file__", None) or "no file"


def _takes(found: Any, named: str) -> tuple[str, ...]:
  """The names of what a verifier takes beside response and answer."""
  try:
    signature = inspect.signature(found)
  except (TypeError, ValueError):  # of a function in C
    return ()
  parameters = list(signature.parameters.values())
  any_name = any(p.kind is p.VAR_KEYWORD for p in parameters)
  pair = [
    p.name for p in parameters[:2] if p.kind is p.POSITIONAL_OR_KEYWORD
  ]  # response and answer, whatever their names
  if pair[:1] in (["prompt"], ["prompts"], ["completions"]):
    raise InputError(
      f"The {named} takes {signature}, as TRL's reward functions do; a verifier is called with one response at a time, as "
      "verify(response, answer), and may take ended and prompt by name."
    )
  by_name = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}.difference(pair)
  optional = tuple(name for name in OPTIONAL_ARGUMENTS if any_name or name in by_name)
  try:
    signature.bind("", "", **dict.fromkeys(optional, ""))
  except TypeError as e:
    raise InputError(
      f"The {named} cannot be called as verify(response, answer): its signature is {signature} ({e}); besides the "
      "two it may take ended, prompt and record by name, and what has a default."
    ) from None
  return optional


class _Own:
  """A function as a `Verifier`: it is passed what it takes."""

  def __init__(self, verify: Any, optional: tuple[str, ...]):
    self._verify, self._takes = verify, optional

  @property
  def reads_record(self) -> bool:
    return "record" in self._takes

  def __call__(
    self,
    response: str,
    answer: str,
    *,
    ended: bool = True,
    prompt: str = "",
    record: Mapping[str, Any] | None = None,
  ) -> Any:
    known = {"ended": ended, "prompt": prompt, "record": dict(record or {})}
    return self._verify(response, answer, **{name: known[name] for name in self._takes})
