"""Verifiers that are named by an import path."""

import sys

import pytest

from opd_jax import tasks
from opd_jax.errors import InputError
from opd_jax.rewards.verdicts import verdict
from opd_jax.tasks.problem import Response
from tests.helpers import own_verifiers

MODULE = """
import functools

def plain(response, answer):
  return response == answer

def told(response, answer, ended, prompt=""):
  return response == answer and ended and prompt == "P"

def everything(response, answer, **more):
  return more

def other_names(said, prompt, /, strict=True):
  return said == prompt and strict

class Grader:
  def __init__(self, scale=0.5):
    self.scale = scale

  @staticmethod
  def static(response, answer):
    return response == answer

  def __call__(self, response, answer, *, ended=True):
    return self.scale * (response == answer) * ended

grader = Grader()
half = functools.partial(Grader(0.25).__call__, ended=True)
number = 3

def one(response):
  return True

def three(response, answer, rubric):
  return True

def by_record(response, answer, *, record):
  return response == answer and record["tests"] == [1, 2]

async def later(response, answer):
  return True
"""


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
  return own_verifiers.write(tmp_path, monkeypatch, "own_rules", MODULE)


@pytest.mark.parametrize(
  ("name", "returned"),
  [
    (":plain", True),
    (".plain", True),
    (":told", True),
    (":everything", {"ended": True, "prompt": "P", "record": {}}),
    (":other_names", True),
    (":Grader.static", True),
    (":grader", 0.5),
    (":half", 0.25),
  ],
)
def test_a_function_in_the_current_directory_is_a_verifier(name, returned, module):
  assert tasks.verifier(module + name)("1", "1", ended=True, prompt="P") == returned


def test_a_function_that_does_not_ask_is_not_told(module):
  assert tasks.verifier(f"{module}:plain")("1", "1", ended=False)
  assert not tasks.verifier(f"{module}:told")("1", "1", ended=False, prompt="P")
  assert tasks.verifier(f"{module}:grader")("1", "1", ended=False) == 0


@pytest.mark.parametrize(
  ("path", "says"),
  [
    ("no_such_rules:plain", "no module 'no_such_rules' in /"),
    ("no_such.rules.plain", "no module 'no_such' in /"),
    ("own_rulez.py:plain", r"no file .*own_rulez\.py; name it from the directory that the command runs in"),
    ("own_rules.py:missing", r"own_rules\S* \(.*own_rules.py\) has no 'missing'; name a function in it"),
    ("own_rules:missing", r"own_rules \(.*own_rules.py\) has no 'missing'; name a function in it"),
    ("own_rules:Grader.missing", "has no 'Grader.missing'"),
    ("own_rules:number", "'own_rules:number' is a int, where a function is needed"),
    ("own_rules:Grader", "'own_rules:Grader' is a type, where"),
    ("own_rules:later", "is an async function, where"),
    ("own_rules:one", r"cannot be called as verify\(response, answer\): its signature is \(response\)"),
    ("own_rules:three", r"signature is \(response, answer, rubric\) .*'rubric'.*ended, prompt and record by name"),
    ("own_rules:", "'own_rules:' is no import path; write my_module:verify"),
    (":plain", "':plain' is no import path"),
    (".plain", "'.plain' is no import path"),
    ("..plain", "is no import path"),
    ("own_rulez", "no verifier 'own_rulez'; .*'gsm8k', .*or the import path of a function, my_module:verify"),
  ],
)
@pytest.mark.usefixtures("module")
def test_what_is_no_verifier_is_refused_in_one_sentence(path, says):
  with pytest.raises(InputError, match=says) as refused:
    tasks.verifier(path)
  assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("def verify(:", "cannot be imported .SyntaxError"),
    ("import no_such_library", "cannot be imported .*'no_such_library'"),
    ("raise SystemExit(2)", "cannot be imported .SystemExit: 2"),
    ("1 / 0", "cannot be imported .ZeroDivisionError"),
  ],
)
def test_a_module_that_cannot_be_imported_is_refused(text, says, tmp_path, monkeypatch):
  own_verifiers.write(tmp_path, monkeypatch, "own_broken", text)
  with pytest.raises(InputError, match=says):
    tasks.verifier("own_broken:verify")


def test_a_file_is_named_instead_of_a_module(tmp_path, monkeypatch):
  """Also one that is no module's name, from anywhere, with what stands beside it."""
  (tmp_path / "checks").mkdir()
  (tmp_path / "checks" / "beside_it.py").write_text("LIMIT = 3\n")
  file = tmp_path / "checks" / "my-rules.v2.py"
  file.write_text("from beside_it import LIMIT\n\ndef verify(response, answer):\n  return len(response) < LIMIT\n")
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", list(sys.path))
  for path in ("checks/my-rules.v2.py:verify", f"{file}:verify"):
    assert tasks.verifier(path)("ab", "") is True
    assert tasks.verifier(path)("abc", "") is False


def test_a_file_that_has_changed_is_run_again(tmp_path, monkeypatch):
  file = tmp_path / "rules.py"
  monkeypatch.setattr(sys, "path", list(sys.path))
  for value in (True, False):
    file.write_text(f"def verify(response, answer):\n  return {value}\n")
    assert tasks.verifier(f"{file}:verify")("", "") is value


def test_a_file_that_fails_is_refused_in_one_sentence(tmp_path, monkeypatch):
  file = tmp_path / "rules.py"
  file.write_text("1 / 0\n")
  monkeypatch.setattr(sys, "path", list(sys.path))
  with pytest.raises(
    InputError, match=r"The file of the verifier .*rules\.py:verify.* cannot be imported .ZeroDivision"
  ):
    tasks.verifier(f"{file}:verify")


def test_the_record_is_told_to_who_takes_it(module):
  reads = {name: tasks.reads_record(f"{module}:{name}") for name in ("plain", "by_record", "everything")}
  assert reads == {"plain": False, "by_record": True, "everything": True}
  assert not tasks.reads_record("gsm8k")
  verify, record = tasks.verifier(f"{module}:by_record"), {"tests": [1, 2]}
  told = Response("1", record=record)
  assert [verdict(verify, r, "1").value for r in (told, told._replace(record={"tests": [1]}))] == [1, 0]
  assert verdict(verify, Response("1"), "1").error == "KeyError: 'tests'", "no record, no tests"
  assert record == {"tests": [1, 2]}
