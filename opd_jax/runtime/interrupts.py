"""Ctrl-C on a command line: the first one saves as a SIGTERM does, the second leaves at once.

    with handled():                              a command's main thread; elsewhere (a notebook) Ctrl-C stays what it is
      with answered(kept, request):              a run, which finishes its step and saves when it is asked to
        with answered(kept):                     what may be left at once: nothing would be lost

A handler of Python runs between two instructions of the main thread, which is minutes away while XLA compiles. So a thread
is woken by the signal too, through signal.set_wakeup_fd: it answers the first, and ends the process where the main thread cannot.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn

from opd_jax.errors import INTERRUPTED

COMPILER = "compiler"  # what the names of threads begin with that compile in the background
GRACE = 3.0  # seconds that the main thread has to leave by itself


class _Answer(NamedTuple):
  kept: Callable[[], str]  # says what is saved
  request: Callable[[], None] | None  # asks a run to save and stop; None: leave at once


_answers: list[_Answer] = [_Answer(lambda: "stopped", None)]
_leaving = threading.Event()  # set once a sentence about the end is printed


@contextlib.contextmanager
def handled() -> Iterator[None]:
  """Handles Ctrl-C meanwhile, where this is the main thread and nothing else handles it already.

  Raises:
    KeyboardInterrupt: Ctrl-C where nothing has to be saved; its message says what is kept.
  """
  main = threading.current_thread() is threading.main_thread()
  if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
    yield
    return
  reading, wakeup = socket.socketpair()
  wakeup.setblocking(False)
  _leaving.clear()
  signal.signal(signal.SIGINT, _raise_unless_asked)
  before = signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
  threading.Thread(target=_listen, args=(reading,), daemon=True, name="interrupts").start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(before)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    wakeup.close()  # ends the thread


@contextlib.contextmanager
def answered(kept: Callable[[], str], request: Callable[[], None] | None = None) -> Iterator[None]:
  """Says how Ctrl-C is answered meanwhile.

  Args:
    kept: makes the sentence that names what is saved.
    request: asks a run to save and to stop at the first Ctrl-C; None: the first one leaves at once.
  """
  _answers.append(_Answer(kept, request))
  try:
    yield
  finally:
    _answers.pop()


def say(sentence: str) -> None:
  """Prints a sentence about the end of the process, once."""
  if not _leaving.is_set():
    _leaving.set()
    _print(sentence)


def _print(sentence: str) -> None:
  """Prints a line; on a terminal below the ^C and the progress bar."""
  print(f"\n{sentence}" if sys.stderr.isatty() else sentence, file=sys.stderr, flush=True)


def leave(status: int, at_once: bool = False) -> NoReturn:
  """Ends the process; what is being compiled in the background, which may take minutes, is not waited for.

  Args:
    at_once: leaves other threads as they are. One that comes out of C++ while Python takes itself down aborts the process.
  """
  if at_once or any(thread.name.startswith(COMPILER) for thread in threading.enumerate()):
    _exit_now(status)
  sys.exit(status)


def _exit_now(status: int) -> NoReturn:
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(Exception):
      stream.flush()
  os._exit(status)


def _raise_unless_asked(*_) -> None:
  answer = _answers[-1]
  if answer.request is None:
    raise KeyboardInterrupt(answer.kept())


def _listen(reading: socket.socket) -> None:
  """Answers every Ctrl-C; ends with `handled`."""
  presses = 0
  with reading:
    while number := reading.recv(1):
      if number[0] != signal.SIGINT:
        continue
      presses += 1
      answer = _answers[-1]
      if presses > 1:
        _leave_now(answer)
      elif answer.request is not None:
        _print("Ctrl-C: stopping after this step, which is saved; press again to leave now, without it")
        answer.request()
      else:
        reading.settimeout(GRACE)  # the main thread has been interrupted, if it is in Python
        with contextlib.suppress(TimeoutError):
          if not reading.recv(1):
            return
        _leave_now(answer)


def _leave_now(answer: _Answer) -> NoReturn:
  say(answer.kept())
  hosts = sys.modules.get("opd_jax.runtime.hosts")
  if hosts and hosts.joined():
    hosts.leave(KeyboardInterrupt())
  _exit_now(INTERRUPTED)
