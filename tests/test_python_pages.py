"""The Python that README.md and docs/python.md show: public names, arguments and config keys that exist, and it runs."""

import ast
import inspect
import os
import pathlib
import re
import subprocess
import sys

import pytest

import opd_jax

ROOT = pathlib.Path(opd_jax.__file__).parent.parent
PAGES = {page: (ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "opd_jax/docs/python.md")}


def program(page: str) -> str:
  """The indented block that begins with the import."""
  lines = PAGES[page].splitlines()
  first = lines.index("    import opd_jax")
  block = []
  for line in lines[first:]:
    if line and not line.startswith("    "):
      break
    block.append(line[4:])
  return "\n".join(block).strip() + "\n"


def calls(code: str) -> list[tuple[str, ast.Call]]:
  """The calls of public functions, with their names."""
  nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
  return [(ast.unparse(node.func).removeprefix("opd_jax."), node) for node in nodes if "opd_jax." in ast.unparse(node)]


@pytest.mark.parametrize("page", PAGES)
def test_every_call_has_the_arguments_of_a_public_function(page):
  found = [(name, node) for name, node in calls(program(page)) if name in opd_jax.__all__]
  assert {"load_config", "train", "load_model", "generate", "evaluate", "score", "export"} <= {
    name for name, _ in found
  }
  for name, node in found:
    keywords = {k.arg: k.value for k in node.keywords if k.arg}
    inspect.signature(getattr(opd_jax, name)).bind(*node.args, **keywords)
    if name == "load_config":
      opd_jax.load_config(*map(ast.literal_eval, node.args))


@pytest.mark.parametrize("page", PAGES)
def test_every_name_is_public(page):
  assert set(re.findall(r"\bopd_jax\.(\w+)", program(page))) <= set(opd_jax.__all__)


def test_the_readme_shows_it_in_ten_lines():
  lines = [line for line in program("README.md").splitlines() if line]
  assert len(lines) == 10
  assert max(map(len, lines)) <= 116


def test_the_page_has_a_row_for_every_name():
  rows = re.findall(r"^\| `(\w+)` \|", PAGES["opd_jax/docs/python.md"], re.MULTILINE)
  assert sorted(rows) == sorted(opd_jax.__all__)


@pytest.mark.long
@pytest.mark.parametrize("page", PAGES)
def test_it_runs_as_it_stands(page, tmp_path):
  done = subprocess.run(
    [sys.executable, "-c", program(page)],
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  (model,) = tmp_path.glob("*/config.json")
  assert opd_jax.load_model(model.parent).spec.cfg.layers
  assert list(tmp_path.glob("runs/*/metrics.jsonl"))
