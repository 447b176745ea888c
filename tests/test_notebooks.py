"""The notebooks: their cells are Python, use the public names alone, have no outputs committed, and run."""

import ast
import json
import pathlib
import re

import pytest

import opd_jax

DOCS = pathlib.Path(opd_jax.__file__).parent / "docs"
NOTEBOOKS = sorted(path.name for path in DOCS.glob("*.ipynb"))


def cells(name: str, kind: str) -> list[str]:
  """Lists the texts of a notebook's cells of a kind, code or markdown."""
  return ["".join(cell["source"]) for cell in read(name) if cell["cell_type"] == kind]


def read(name: str) -> list[dict]:
  return json.loads((DOCS / name).read_text(encoding="utf-8"))["cells"]


def test_there_are_two():
  assert NOTEBOOKS == ["healing.ipynb", "quickstart.ipynb"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_cell_of_code_has_a_text_and_no_output(name):
  found = read(name)
  assert len(found) >= 16
  assert [cell["cell_type"] for cell in found] == ["markdown", "code"] * (len(found) // 2)
  assert [cell for cell in found if cell.get("outputs") or cell.get("execution_count")] == []


@pytest.mark.parametrize(("name", "code"), [(name, code) for name in NOTEBOOKS for code in cells(name, "code")])
def test_cells_are_python_and_use_public_names(name, code):
  tree = ast.parse(code)
  imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
  assert [node.module for node in imports if (node.module or "").startswith("opd_jax")] == []
  imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
  assert [module for module in imported if module.startswith("opd_jax.")] == []
  commands = re.findall(r'"opd_jax\.(\w+)"', code)
  assert [command for command in commands if not (DOCS.parent / f"{command}.py").is_file()] == []
  assert set(re.findall(r"\bopd_jax\.(\w+)", code)) <= {*opd_jax.__all__, *commands}


def test_the_quickstart_shows_every_function():
  shown = set(re.findall(r"\bopd_jax\.(\w+)", "\n".join(cells("quickstart.ipynb", "code"))))
  assert set(opd_jax.__all__) - shown == {"InputError"}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_pages_that_it_names_exist(name):
  pages = re.findall(r"\]\(([\w.]+)\)", "\n".join(cells(name, "markdown")))
  assert len(pages) >= 3
  assert [page for page in pages if not (DOCS / page).is_file()] == []


def run(name: str) -> tuple[str, int]:
  """Runs a notebook; returns what it prints, and how many pictures it shows."""
  nbclient = pytest.importorskip("nbclient")
  nbformat = pytest.importorskip("nbformat")
  notebook = nbformat.read(DOCS / name, 4)
  nbformat.validate(notebook)
  nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
  outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
  printed = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
  return printed, len([output for output in outputs if "image/png" in output.get("data", {})])


@pytest.mark.long
def test_the_quickstart_runs_and_shows_what_it_says():
  printed, pictures = run("quickstart.ipynb")
  assert pictures == 2
  accuracy = {name: float(value) for name, value in re.findall(r"^(\w+): (\d\.\d+) \[", printed, re.MULTILINE)}
  assert accuracy["student"] < accuracy["trained"] < accuracy["teacher"]
  before, after = map(float, re.findall(r"nats a token: (\d\.\d+) before, (\d\.\d+) after", printed)[0])
  assert after < before


@pytest.mark.long
def test_the_healing_notebook_heals():
  printed, pictures = run("healing.ipynb")
  assert pictures == 1
  assert "rounded to 2 bits" in printed
  pruned, healed = map(float, re.findall(r"nats a token: (\d\.\d+) pruned, (\d\.\d+) healed", printed)[0])
  assert healed < 0.8 * pruned
