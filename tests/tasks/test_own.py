"""Verifiers that are named by an import path."""

import pytest

from opd_jax import tasks
from opd_jax.errors import InputError
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
    (":everything", {"ended": True, "prompt": "P"}),
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
    ("own_rules.py:plain", r"no module 'own_rules.py' in .*; leave out the .py"),
    ("own_rules:missing", r"own_rules \(.*own_rules.py\) has no 'missing'; name a function in it"),
    ("own_rules:Grader.missing", "has no 'Grader.missing'"),
    ("own_rules:number", "'own_rules:number' is a int, where a function is needed"),
    ("own_rules:Grader", "'own_rules:Grader' is a type, where"),
    ("own_rules:later", "is an async function, where"),
    ("own_rules:one", r"cannot be called as verify\(response, answer\): its signature is \(response\)"),
    ("own_rules:three", r"signature is \(response, answer, rubric\) .*'rubric'.*ended and prompt by name"),
    ("own_rules:", "'own_rules:' is no import path; write my_module:verify"),
    (":plain", "':plain' is no import path"),
    (".plain", "'.plain' is no import path"),
    ("..plain", "is no import path"),
    ("own_rulez", "no verifier 'own_rulez'; .*'gsm8k', or the import path of a function, my_module:verify"),
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
