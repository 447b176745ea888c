"""Verifiers in processes of their own: they hang, raise, and end, and the answers beside are verified as ever."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from opd_jax import config as configs
from opd_jax.errors import InputError
from opd_jax.rewards.pool import VerifierPool
from opd_jax.rewards.verdicts import InProcess
from opd_jax.tasks.problem import Response
from tests.helpers import own_verifiers

MODULE = """
import os, pathlib, re, signal, subprocess, sys, time

def verify(response, answer, *, ended=True, prompt=""):
  if response == "hang":
    re.match(r"(a+)+$", "a" * 60 + "b")  # holds the interpreter's lock
  if response == "raise":
    raise ValueError("the reason\\nand more")
  if response == "leave":
    sys.exit(4)
  if response == "exit":
    os._exit(3)
  if response == "crash":
    os.kill(os.getpid(), signal.SIGSEGV)
  if response.startswith("="):
    return eval(response[1:])
  if response == "cut?":
    return 0.25 * (not ended) + 0.5 * (prompt == "P")
  return response == answer

def wait(response, answer):
  begun, go = pathlib.Path(response), pathlib.Path(answer)
  begun.touch()
  while not go.exists():
    time.sleep(0.005)
  return True

def child(response, answer):
  found = subprocess.Popen(["sleep", "1000"])
  pathlib.Path(response).write_text(f"{os.getpid()} {found.pid}")
  time.sleep(1000)

if os.getsid(0) == os.getpid() and "only_here" in globals().get("__name__"):
  os._exit(5)
"""
ORDINARY = [
  "1",
  "2",
  "=0.1",
  "=-1",
  "=None",
  "='1'",
  "=float('nan')",
  "=1e40",
  "raise",
  "leave",
  "cut?",
  "=__import__('numpy').True_",
]


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
  return own_verifiers.write(tmp_path, monkeypatch, "own_pool", MODULE)


@pytest.fixture
def pool():
  """Makes pools, which are closed after the test."""
  made = []

  def make(*args) -> VerifierPool:
    made.append(VerifierPool(*args))
    return made[-1]

  yield make
  for each in made:
    each.close()


def verdicts(verifier, texts):
  return verifier.submit([Response(text, text != "cut?", "P") for text in texts], ["1"] * len(texts)).result()


def test_verdicts_do_not_depend_on_the_number_of_processes(module, pool):
  texts = ORDINARY * 6
  first, *others = (verdicts(pool(workers).verifier(f"{module}:verify"), texts) for workers in (0, 1, 2))
  assert [v.value for v in first[: len(ORDINARY)]] == [1, 0, 0.1, -1, 0, 0, 0, 0, 0, 0, 0.75, 1]
  assert [v.error for v in first[4:10]] == [
    "TypeError: the verifier returned None, which is neither True, False nor a number",
    "TypeError: the verifier returned '1', which is neither True, False nor a number",
    "ValueError: the verifier returned nan",
    "ValueError: the verifier returned 1e+40",
    "ValueError: the reason",
    "SystemExit: 4",
  ]
  assert others == [first, first]


def test_a_verifier_that_hangs_or_ends_costs_one_answer(module, pool):
  texts = ["1", "exit", "2", "hang", "1", "crash", "1"]
  found = verdicts(pool(1, 1.0).verifier(f"{module}:verify"), texts)
  assert [v.value for v in found] == [1, 0, 0, 0, 1, 0, 1]
  assert [v.timed_out for v in found] == [text == "hang" for text in texts]
  assert [v.error for v in found if v.error] == [
    "its process ended with status 3",
    "its process ended by a signal (Segmentation fault)",
  ]


def test_work_goes_on_between_submit_and_result(module, pool, tmp_path):
  verifier = pool(1).verifier(f"{module}:wait")
  begun, go = tmp_path / "begun", tmp_path / "go"
  pending = verifier.submit([Response(str(begun))], [str(go)])
  wait_for(begun.exists)
  go.touch()
  assert pending.result()[0].solved


def test_a_process_is_out_of_reach_of_ctrl_c_and_knows_no_devices(module, pool):
  asked = [
    "=os.getsid(0) == os.getpid()",
    "=os.killpg(os.getpid(), signal.SIGINT) or os.killpg(os.getpid(), signal.SIGTERM) or True",
    "='jax' not in sys.modules and os.environ['JAX_PLATFORMS'] == 'cpu'",
  ]
  assert [v.value for v in verdicts(pool(1).verifier(f"{module}:verify"), asked)] == [1, 1, 1]


def test_one_response_is_verified_like_many(module, pool):
  for workers in (0, 1):
    verifier = pool(workers).verifier(f"{module}:verify")
    assert verifier("1", "1") is True
    assert [verifier(text, "1") for text in ("2", "=0.5", "=0.51", "=-1", "raise")] == [
      False,
      False,
      True,
      False,
      False,
    ]


def test_a_pool_can_be_used_again_after_it_was_closed(module, pool):
  one = pool(1)
  verifier = one.verifier(f"{module}:verify")
  (before,) = verdicts(verifier, ["=os.getpid()"])
  assert alive(int(before.value))
  one.close()
  assert not alive(int(before.value))
  assert verdicts(verifier, ["1"])[0].solved
  assert one.verifier("gsm8k")("#### 18", "18")


def test_a_pool_that_nobody_holds_ends_its_processes(module):
  verifier = VerifierPool(1).verifier(f"{module}:verify")
  pending = verifier.submit([Response("=os.getpid()")], ["1"])
  del verifier
  (found,) = pending.result()
  del pending
  wait_for(lambda: not alive(int(found.value)))


def test_closing_ends_what_hangs_and_its_children(module, pool, tmp_path):
  one = pool(1)
  one.verifier(f"{module}:child").submit([Response(str(tmp_path / "pids"))], ["1"])
  wait_for(lambda: (tmp_path / "pids").exists() and len((tmp_path / "pids").read_text().split()) == 2)
  one.close()
  wait_for(lambda: not any(alive(int(pid)) for pid in (tmp_path / "pids").read_text().split()))


PARENT = """
import os, sys
from opd_jax.rewards.pool import VerifierPool
from opd_jax.tasks.problem import Response

verifier = VerifierPool(2).verifier("own_pool:verify")
pids = {int(v.value) for v in verifier.submit([Response("=(time.sleep(0.05), os.getpid())[1]")] * 16, [""] * 16).result()}
verifier.submit([Response("hang"), Response("=time.sleep(1000)")], ["", ""])
print(*pids, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, None], ids=["killed", "at its end"])
def test_the_processes_end_with_the_one_that_started_them(how, module, tmp_path):
  """However busy they are themselves."""
  command = [sys.executable, "-c", PARENT]
  with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as parent:
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) >= 1
    assert all(map(alive, pids))
    if how:
      parent.send_signal(how)
  wait_for(lambda: not any(map(alive, pids)))


def test_left_alone_only_verifiers_of_ones_own_get_a_process(module, pool, monkeypatch):
  monkeypatch.setattr(sys.modules["__main__"], "own_verify", lambda response, answer: True, raising=False)
  chosen = pool(-1)
  names = {f"{module}:verify": True, "gsm8k": False, "__main__:own_verify": False}
  assert {name: chosen.is_pooled(name) for name in names} == names
  assert {name: isinstance(chosen.verifier(name), InProcess) for name in names} == {
    n: not on for n, on in names.items()
  }
  assert [v.error for v in verdicts(chosen.verifier(f"{module}:verify"), ["1", "exit", "1"])] == [
    "",
    "its process ended with status 3",
    "",
  ]


def test_by_default_a_verifier_that_hangs_costs_one_answer(module):
  config = configs.default()
  assert config.reward.timeout > 0
  with contextlib.closing(VerifierPool.from_config(config)) as default:
    assert default.is_pooled(f"{module}:verify")


def test_a_process_that_cannot_begin_is_told(tmp_path, monkeypatch, pool):
  name = own_verifiers.write(tmp_path, monkeypatch, "own_only_here", MODULE)
  with pytest.raises(InputError, match=r"could not be started \(look above for what it printed\).*reward.workers=0"):
    verdicts(pool(1).verifier(f"{name}:verify"), ["1"])


def test_what_stands_in_the_script_itself_is_refused(monkeypatch, pool):
  monkeypatch.setattr(sys.modules["__main__"], "own_verify", lambda response, answer: True, raising=False)
  assert pool().verifier("__main__:own_verify")("", "")
  with pytest.raises(InputError, match="move it to a module"):
    pool(1).verifier("__main__:own_verify")


def wait_for(reached, seconds: float = 20.0) -> None:
  end = time.monotonic() + seconds
  while not reached():
    assert time.monotonic() < end
    time.sleep(0.01)


def alive(pid: int) -> bool:
  """Tells whether a process is there that has not ended; one that nobody has waited for yet has."""
  try:
    with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
      return f.read().rpartition(")")[2].split()[0] != "Z"
  except FileNotFoundError:
    return os.path.exists("/proc/self") is False


@pytest.mark.parametrize("workers", [0, 1])
def test_a_verifier_may_say_why(workers, tmp_path, monkeypatch, pool):
  code = (
    'def verify(response, answer):\n  return (response == answer, f"wanted {answer}") if response else (1.0, 2.0)\n'
  )
  name = own_verifiers.write(tmp_path, monkeypatch, "own_reasons", code)
  right, wrong, broken = verdicts(pool(workers).verifier(f"{name}:verify"), ["1", "2", ""])
  assert (right.value, right.message) == (1.0, "wanted 1")
  assert (wrong.value, wrong.message) == (0.0, "wanted 1")
  assert broken.error.startswith("TypeError")
