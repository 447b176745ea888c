"""A process that verifies: it gets lists of calls through a connection, and sends back a verdict after each.

It ends with the process that started it, however that ends, and however busy it is itself: when the other end of its pipe
goes, the kernel sends it SIGIO. It is in a session of its own, so that Ctrl-C is not for it, and a SIGTERM to all processes
of a job leaves the end to the one that saves.
"""

import fcntl
import os
import signal
import sys
from multiprocessing.connection import Connection

from opd_jax import tasks
from opd_jax.errors import InputError
from opd_jax.rewards.verdicts import verdict

READY = ""  # the first message; another one says why there will be no verdicts


def main(connection_fd: int, alive_fd: int, names: list[str], prepare: bool, pattern: str = "") -> None:
  """Verify until the connection is closed.

  Args:
    connection_fd: of a socket, to the process that asks.
    alive_fd: the reading end of a pipe, whose other end only that process has.
    names: the verifiers that will be asked for.
    prepare: load beforehand what they need for some answers only.
    pattern: of the verifier "regex".
  """
  _end_with(alive_fd)
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)  # not SIG_IGN, which what a verifier starts would inherit
  for fd in (connection_fd, alive_fd):
    os.set_inheritable(fd, False)
  connection = Connection(connection_fd)
  try:
    verifiers = {name: tasks.verifier(name, pattern) for name in names}
  except InputError as e:
    connection.send(str(e))
    return
  for name in names if prepare else ():
    tasks.PREPARE.get(name, lambda: None)()
  connection.send(READY)
  while True:
    try:
      calls = connection.recv()
    except (EOFError, OSError):
      _leave()
    for name, response, answer in calls:
      connection.send(verdict(verifiers[name], response, answer))


def _end_with(alive_fd: int) -> None:
  """Have the kernel end this process when the other end of the pipe is closed; nothing is ever written to it."""
  signal.signal(signal.SIGIO, signal.SIG_DFL)
  fcntl.fcntl(alive_fd, fcntl.F_SETOWN, os.getpid())
  fcntl.fcntl(alive_fd, fcntl.F_SETFL, fcntl.fcntl(alive_fd, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
  try:
    closed = os.read(alive_fd, 1) == b""  # before the signal was asked for
  except BlockingIOError:
    closed = False
  if closed:
    _leave()


def _leave() -> None:
  """End without waiting for what verifiers may have started."""
  for stream in (sys.stdout, sys.stderr):
    stream.flush()
  os._exit(0)
