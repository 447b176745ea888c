"""Ctrl-C on the command line, in processes of their own: what is saved, what is said, and how long it takes."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from opd_jax.runtime import interrupts
from tests.helpers.runs import read


class Command:
  """A process whose output can be waited for."""

  def __init__(self, *arguments: str):
    self.process = subprocess.Popen(
      [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ)
    )
    self.lines: list[str] = []
    self._reader = threading.Thread(target=lambda: self.lines.extend(iter(self.process.stdout.readline, "")))  # pyright: ignore[reportOptionalMemberAccess]
    self._reader.start()

  def wait_until(self, reached, seconds: float = 120) -> None:
    began = time.monotonic()
    while not reached():
      assert time.monotonic() - began < seconds, self.lines
      assert self.process.poll() is None, self.lines
      time.sleep(0.02)

  def says(self, text: str) -> bool:
    return any(text in line for line in self.lines)

  def interrupt(self) -> None:
    self.process.send_signal(signal.SIGINT)

  def end(self, seconds: float = 60) -> tuple[int, str]:
    try:
      self.process.wait(seconds)
    finally:
      self.process.kill()
      self._reader.join()
    return self.process.returncode, "".join(self.lines)


def script(body: str) -> Command:
  """A command that handles Ctrl-C and prints "ready"; a call of C's cannot be interrupted, as XLA's compiler."""
  head = """
    import ctypes, signal, sys, time
    from opd_jax.runtime import interrupts
    interrupts.GRACE = 0.2

    def in_c(seconds):
      signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # another thread of the process hears it
      print("ready", flush=True)
      ctypes.CDLL(None).usleep(int(seconds * 1e6))
  """
  return Command("-c", textwrap.dedent(head) + textwrap.dedent(body))


RUN = """
  asked = []
  with interrupts.handled(), interrupts.answered(lambda: "stopped: step 3 is kept", lambda: asked.append(1)):
    in_c(%s)
  print("asked", len(asked), flush=True)
"""


def test_the_first_asks_the_run_and_is_answered_while_c_runs():
  command = script(RUN % 1.5)
  command.wait_until(lambda: command.says("ready"))
  command.interrupt()
  command.wait_until(lambda: command.says("stopping after this step"), 1.2)
  assert not command.says("asked")
  status, output = command.end()
  assert (status, output.splitlines()[-1]) == (0, "asked 1")


def test_the_second_leaves_at_once_and_names_what_is_kept():
  command = script(RUN % 60)
  command.wait_until(lambda: command.says("ready"))
  command.interrupt()
  command.wait_until(lambda: command.says("press again"))
  command.interrupt()
  status, output = command.end(5)
  assert (status, output.splitlines()[-1]) == (130, "stopped: step 3 is kept")


@pytest.mark.parametrize("body", ["in_c(60)", "print('ready', flush=True); time.sleep(60)"], ids=["in C", "in Python"])
def test_where_nothing_would_be_lost_the_first_leaves(body):
  command = script(f"""
    try:
      with interrupts.handled(), interrupts.answered(lambda: "stopped: nothing is saved"):
        {body}
    except KeyboardInterrupt as e:
      interrupts.say(str(e))
      interrupts.leave(130)
  """)
  command.wait_until(lambda: command.says("ready"))
  command.interrupt()
  status, output = command.end(5)
  assert (status, output.splitlines()[1:]) == (130, ["stopped: nothing is saved"])


def test_what_compiles_in_the_background_is_not_waited_for():
  command = script("""
    import threading
    threading.Thread(target=time.sleep, args=(60,), name=interrupts.COMPILER + "-programs").start()
    interrupts.leave(75)
  """)
  assert command.end(5)[0] == 75


def test_a_notebook_keeps_its_own_ctrl_c():
  """A handler that somebody else has set stays, and so does Python's outside of a command."""
  before = signal.signal(signal.SIGINT, lambda *_: None)
  try:
    mine = signal.getsignal(signal.SIGINT)
    with interrupts.handled():
      assert signal.getsignal(signal.SIGINT) is mine
  finally:
    signal.signal(signal.SIGINT, before)
  with interrupts.answered(lambda: "kept", lambda: None):
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.long
def test_a_run_is_saved_by_the_first_and_left_by_the_second(tiny, tmp_path):
  """Neither has reached a checkpoint of its own; the workdir alone resumes it, under the config that it has."""
  path = tmp_path / "run"
  changes = {
    "student": tiny["student"],
    "teacher": tiny["teacher"],
    "steps": 100_000,
    "batch": 4,
    "horizon.max": 12,
    "eval.every": 0,
    "checkpoint.every": 0,
    "log.tensorboard": False,
    "compile_cache": "off",
  }
  train = ("-m", "opd_jax.train", f"--workdir={path}")

  def steps() -> int:
    return len(read(path, "train")) if (path / "metrics.jsonl").exists() else 0

  first = Command(*train, "--config=opd", *(f"--config.{key}={value}" for key, value in changes.items()))
  first.wait_until(lambda: steps() >= 3)
  first.interrupt()
  status, output = first.end()
  saved = steps()
  assert status == 130, output
  assert "stopping after this step" in output
  assert f"asked to stop: saved after step {saved} of 100000 in {path}; the same command goes on" in output
  assert saved_steps(path) == [saved]

  second = Command(*train)
  second.wait_until(lambda: steps() >= saved + 3)
  for _ in range(2):
    second.interrupt()
    time.sleep(0.05)
  status, output = second.end()
  assert status == 130, output
  assert f"config of {path}" in output
  assert f"resumed after step {saved}" in output
  if saved_steps(path) == [saved]:  # unless its step was over before the second came
    assert f"stopped: step {saved} is kept in {path}" in output


def saved_steps(path: pathlib.Path) -> list[int]:
  return sorted(int(p.name) for p in (path / "checkpoints").glob("[0-9]*") if p.name.isdigit())
