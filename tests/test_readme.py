"""What the README and --help say can be typed, can be typed."""

import ast
import pathlib
import re

import pytest

from opd_jax import checks, config

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROWS = [line for line in README.splitlines() if line.startswith("|")]
LOSSES = {row.split("|")[1].strip(): re.findall(r"`([\w.]+)=([^`]+)`", row) for row in ROWS}
LOSSES = {name: keys for name, keys in LOSSES.items() if keys}


def value(text: str):
  try:
    return ast.literal_eval(text)
  except ValueError:
    return text


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_of_the_table_is_a_config(name):
  c = config.override(config.load("opd"), {key: value(text) for key, text in LOSSES[name]})
  checks.check(c)


def test_the_table_was_found():
  assert len(LOSSES) >= 12


def test_every_test_that_is_named_exists():
  tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
  named = re.findall(r"::(test_\w+)", README)
  assert len(named) >= 8
  assert [name for name in named if f"def {name}(" not in tests] == []


def test_help_says_what_the_keys_of_the_losses_mean():
  meanings = config.meanings()
  keys = config.flat(config.default().to_dict())
  assert meanings.keys() <= keys.keys()
  assert {k for k in keys if k.startswith("horizon.")} <= meanings.keys()
  assert {k for k in keys if k.startswith(("objective.", "weights.", "importance."))} - meanings.keys() <= {
    "objective.student_temperature",
    "objective.teacher_temperature",
    "importance.cap",
  }
