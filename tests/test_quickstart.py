"""The quickstart notebook: its cells are Python, use the public names alone, have no outputs committed, and run."""

import ast
import json
import pathlib
import re

import pytest

import opd_jax

NOTEBOOK = pathlib.Path(opd_jax.__file__).parent / "docs" / "quickstart.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
TEXT = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown"]


def test_every_cell_of_code_has_a_text_and_no_output():
  assert len(CODE) >= 8
  assert [cell["cell_type"] for cell in CELLS] == ["markdown", "code"] * len(CODE)
  assert [cell for cell in CELLS if cell.get("outputs") or cell.get("execution_count")] == []


@pytest.mark.parametrize("code", CODE)
def test_cells_are_python_and_use_public_names(code):
  tree = ast.parse(code)
  imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
  assert [node.module for node in imports if (node.module or "").startswith("opd_jax")] == []
  imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
  assert [name for name in imported if name.startswith("opd_jax.")] == []
  assert set(re.findall(r"\bopd_jax\.(\w+)", code)) <= set(opd_jax.__all__)


def test_every_function_is_shown():
  shown = set(re.findall(r"\bopd_jax\.(\w+)", "\n".join(CODE)))
  assert set(opd_jax.__all__) - shown == {"InputError"}


def test_the_pages_that_it_names_exist():
  pages = re.findall(r"\]\(([\w.]+)\)", "\n".join(TEXT))
  assert len(pages) >= 4
  assert [page for page in pages if not (NOTEBOOK.parent / page).is_file()] == []


@pytest.mark.long
def test_it_runs_and_shows_what_it_says():
  nbclient = pytest.importorskip("nbclient")
  nbformat = pytest.importorskip("nbformat")
  notebook = nbformat.read(NOTEBOOK, 4)
  nbformat.validate(notebook)
  nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
  outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
  pictures = [output for output in outputs if "image/png" in output.get("data", {})]
  assert len(pictures) == 2
  printed = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
  accuracy = {name: float(value) for name, value in re.findall(r"^(\w+): (\d\.\d+) \[", printed, re.MULTILINE)}
  assert accuracy["student"] < accuracy["trained"] < accuracy["teacher"]
  before, after = map(float, re.findall(r"nats a token: (\d\.\d+) before, (\d\.\d+) after", printed)[0])
  assert after < before
