"""Verifiers in processes of their own: a time limit for each answer, and no verifier that takes the run down.

Each process is driven by a thread here, which hands it a few responses at a time, waits for a verdict after the other, and
kills and replaces it where one does not come. Verdicts keep the place of their response, so that neither the number of processes nor
their order changes a result.

Processes are started as commands of their own (no fork of a process with JAX's threads in it, and no second run of the
user's script, as multiprocessing's spawn would do), with JAX kept from accelerators.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from multiprocessing.connection import Connection, Pipe
from typing import Any, NamedTuple

from opd_jax import tasks
from opd_jax.config import Config
from opd_jax.errors import InputError
from opd_jax.rewards.verdicts import BatchVerifier, InProcess, PendingVerdicts, Verdict
from opd_jax.rewards.worker import READY
from opd_jax.tasks.problem import Response

START = 120.0  # seconds that a process may take to import its verifiers
AT_ONCE = 32  # responses that a process is handed at most
COMMAND = """
import json, sys
path, *arguments = json.loads(sys.argv[1])
sys.path[:] = path
from opd_jax.rewards import worker
worker.main(*arguments)
"""

Call = tuple[str, Response, str]  # the verifier's name, what it verifies, the answer


class VerifierPool:
  """Processes that several verifiers share; they are started when they are first needed.

  Args:
    workers: how many processes; 0: verifiers run in this one, when their verdicts are asked for; -1: a user's own run in one
      process, but for those of the script itself, and built-in ones in this one.
    timeout: seconds that a verifier in a process has for an answer; 0: as long as it takes.
    pattern: of the verifier "regex".
  """

  def __init__(self, workers: int = 0, timeout: float = 0.0, pattern: str = ""):
    self._workers, self._timeout, self._pattern = workers, timeout, pattern
    self._names: list[str] = []
    self._crew: _Crew | None = None

  @classmethod
  def from_config(cls, config: Config) -> "VerifierPool":
    """Make the pool of a config; no process is started."""
    return cls(config.reward.workers, config.reward.timeout, config.data.answer_pattern)

  def verifier(self, name: str) -> BatchVerifier:
    """Look up a verifier by its name or import path, to run in the pool.

    Raises:
      InputError: there is none; see tasks.verifier.
    """
    verify = tasks.verifier(name, self._pattern)
    if not self.is_pooled(name):
      return InProcess(name, verify)
    if name.startswith("__main__"):
      raise InputError(
        f"The verifier {name!r} stands in the script or notebook itself, which other processes do not run; move it to a "
        "module, or set config.reward.workers=0."
      )
    if name not in self._names:
      self._names.append(name)
      self.close()  # processes that know it not
    return _Pooled(name, self)

  def is_pooled(self, name: str) -> bool:
    """Tell whether a verifier of this name runs in the pool's processes."""
    if self._workers < 0:
      return tasks.is_own(name) and not name.startswith("__main__")
    return self._workers > 0

  def submit(self, calls: Sequence[Call]) -> PendingVerdicts:
    """Begin to verify; returns at once."""
    workers = max(1, self._workers)
    if self._crew is None:
      self._crew = _Crew(workers, self._timeout, list(self._names), self._pattern)
      self._end = weakref.finalize(self, self._crew.close)  # also where nobody closes the pool
    size = max(1, min(AT_ONCE, -(-len(calls) // (4 * workers))))
    return _Pending([self._crew.submit(calls[i : i + size]) for i in range(0, len(calls), size)], self)

  def close(self) -> None:
    """End the processes, whatever they are at; the pool may be used again."""
    if self._crew:
      self._end()
    self._crew = None


class _Pooled(BatchVerifier):
  """A verifier that runs in a pool."""

  def __init__(self, name: str, pool: VerifierPool):
    super().__init__(name)
    self._pool = pool

  def submit(self, responses: Sequence[Response], answers: Sequence[str]) -> PendingVerdicts:
    return self._pool.submit([(self.name, *pair) for pair in zip(responses, answers, strict=True)])


class _Pending(NamedTuple):
  parts: list[Future[list[Verdict]]]
  pool: VerifierPool  # lives as long as its verdicts are waited for

  def result(self) -> list[Verdict]:
    return [verdict for part in self.parts for verdict in part.result()]


class _Crew:
  """The processes of a pool, each with the thread that drives it."""

  def __init__(self, workers: int, timeout: float, names: list[str], pattern: str):
    self._jobs: queue.SimpleQueue[tuple[Sequence[Call], Future] | None] = queue.SimpleQueue()
    self._processes = [_Process(names, timeout, pattern) for _ in range(workers)]
    self._threads = [
      threading.Thread(target=_drive, args=(self._jobs, process), daemon=True, name="verifier")
      for process in self._processes
    ]
    for thread in self._threads:
      thread.start()

  def submit(self, calls: Sequence[Call]) -> Future[list[Verdict]]:
    future: Future[list[Verdict]] = Future()
    self._jobs.put((calls, future))
    return future

  def close(self) -> None:
    for process in self._processes:
      process.close()
      self._jobs.put(None)
    for thread in self._threads:
      if thread is not threading.current_thread():
        thread.join(5.0)


def _drive(jobs: queue.SimpleQueue, process: "_Process") -> None:
  while job := jobs.get():
    calls, future = job
    try:
      future.set_result(process.verify(calls))
    except BaseException as e:  # is raised where the verdicts are waited for
      future.set_exception(e)
  process.kill()


class _Process:
  """A process that verifies, started when it is needed and again where it had to be killed.

  All but `close` is for the thread that drives it.
  """

  def __init__(self, names: list[str], timeout: float, pattern: str):
    self._names, self._timeout, self._pattern = names, timeout, pattern
    self._lock = threading.RLock()  # between starting a process and `close`
    self._closed = False
    self._process: subprocess.Popen | None = None
    self._connection: Connection | None = None
    self._alive: int | None = None  # the writing end of the pipe that ends the process when it is closed

  def verify(self, calls: Sequence[Call]) -> list[Verdict]:
    """Return the verdicts on all calls, in order; of one at which the process hangs or ends, that."""
    done: list[Verdict] = []
    while len(done) < len(calls):
      process, connection = self._started()
      left = calls[len(done) :]
      with contextlib.suppress(OSError):  # it has ended, as the next message shows
        connection.send(left)
      for _ in left:
        found = _receive(process, connection, self._timeout)
        done.append(_lost(process, connection) if found is None else found)
        if found is None:
          self.kill()
          break
    return done

  def _started(self) -> tuple[subprocess.Popen, Connection]:
    """Return the process, which has imported its verifiers, and the connection to it."""
    if self._process is None or self._connection is None:
      self._start()
      assert self._process is not None
      assert self._connection is not None
      first = _receive(self._process, self._connection, START)
      if first != READY:
        self.kill()
        why = first or "look above for what it printed"
        raise InputError(
          f"A process for verifiers could not be started ({why}); mend that, or set config.reward.workers=0."
        )
    return self._process, self._connection

  def _start(self) -> None:
    self._connection, theirs = Pipe()
    reading, self._alive = os.pipe()
    command = [
      list(map(os.path.abspath, sys.path)),
      theirs.fileno(),
      reading,
      self._names,
      self._timeout > 0,
      self._pattern,
    ]
    try:
      with self._lock:
        if self._closed:
          raise RuntimeError("the pool of verifiers is closed")
        self._process = subprocess.Popen(
          [sys.executable, "-c", COMMAND, json.dumps(command)],
          stdin=subprocess.DEVNULL,
          pass_fds=(theirs.fileno(), reading),
          start_new_session=True,
          env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
    except BaseException:
      self.kill()
      raise
    finally:
      theirs.close()
      os.close(reading)

  def kill(self) -> None:
    """End the process and what it has started."""
    with self._lock:
      self._send_kill()
      if self._process is not None:
        self._process.wait()
      self._process = None
    if self._connection is not None:
      self._connection.close()
    if self._alive is not None:
      os.close(self._alive)
    self._connection = self._alive = None

  def close(self) -> None:
    """Kill the process, which its thread sees, and start none again."""
    with self._lock:
      self._closed = True
      self._send_kill()

  def _send_kill(self) -> None:
    if self._process is not None:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(self._process.pid, signal.SIGKILL)  # its children too


def _receive(process: subprocess.Popen, connection: Connection, timeout: float) -> Any:
  """Wait for a message; None where the process has ended, or the time has, in seconds (0: no limit)."""
  end = time.monotonic() + timeout if timeout else float("inf")
  try:
    while not connection.poll(max(0.0, min(1.0, end - time.monotonic()))):
      # A child of the verifier's may hold the connection open when the process itself has gone.
      over = time.monotonic() >= end or process.poll() is not None
      if over and not connection.poll(0):
        return None
    return connection.recv()
  except (EOFError, OSError):
    return None


def _lost(process: subprocess.Popen, connection: Connection) -> Verdict:
  """Tell what became of the answer that a process was at when it sent nothing more."""
  status = process.poll()
  if status is None and connection.poll(0):  # it has closed its end, and is about to go
    with contextlib.suppress(subprocess.TimeoutExpired):
      status = process.wait(1.0)
  if status is None:
    return Verdict(timed_out=True)
  how = f"by a signal ({signal.strsignal(-status)})" if status < 0 else f"with status {status}"
  return Verdict(error=f"its process ended {how}")
