"""The shape of the package: which folder may import which, read from every import statement there is.

Imports inside functions and under TYPE_CHECKING count too. What is looked up by name at run time does not: config/ finds a
recipe's module as it finds a config file.
"""

import ast
import functools
import pathlib

import pytest

import opd_jax

ROOT = pathlib.Path(opd_jax.__file__).parent

# From the bottom to the top; a folder imports its own floor and those below. Above them all are the commands, and the package's
# own module, whose public names come from anywhere.
FLOORS = (
  ("config", "types", "errors"),
  ("runtime",),
  ("models", "data", "tasks", "rewards"),
  ("horizon", "context", "objectives", "rollout", "training", "evaluation"),
  ("checks", "inputs"),
  ("recipes",),
  ("trainer", "analysis", "benchmarks", "planning", "reports", "studies"),
)
COMMANDS = (
  "train",
  "evaluate",
  "export",
  "report",
  "study",
  "bench",
  "plan",
  "demo",
  "make_conversations",
  "convert",
  "view",
  "geometry",
)


def modules() -> dict[str, pathlib.Path]:
  found = {}
  for path in ROOT.rglob("*.py"):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
  return found


MODULES = modules()


@functools.cache
def imported(name: str) -> list[tuple[str, str]]:
  """The modules of the package that a module imports, and the names that it takes from each ("" for the module)."""
  found = []
  for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
    if isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{name} has a relative import"
      if (node.module or "").split(".")[0] == "opd_jax":
        for alias in node.names:
          submodule = f"{node.module}.{alias.name}"
          found.append((submodule, "") if submodule in MODULES else (str(node.module), alias.name))
    elif isinstance(node, ast.Import):
      found += [(alias.name, "") for alias in node.names if alias.name.split(".")[0] == "opd_jax"]
  return found


@functools.cache
def arrows() -> dict[str, set[str]]:
  """The modules that each module imports."""
  return {name: {target for target, _ in imported(name)} - {name} for name in MODULES}


def floor(name: str) -> int:
  part = [*name.split("."), ""][1]
  return next((i for i, names in enumerate(FLOORS) if part in names), len(FLOORS))


def test_every_module_has_a_floor():
  parts = {name.split(".")[1] for name in MODULES if name.count(".")}
  assert parts - {name for names in FLOORS for name in names} == set(COMMANDS)


def test_no_import_goes_upward():
  upward = [f"{name} imports {target}" for name in MODULES for target in arrows()[name] if floor(target) > floor(name)]
  assert upward == []


def test_nothing_imports_the_package_itself():
  """Its public names are for users; a module of the package goes where they come from."""
  assert [name for name in MODULES if "opd_jax" in arrows()[name]] == []


def test_no_imports_stand_in_a_circle():
  """By module, and by folder: what a folder imports, through whichever folders, never imports it."""
  folders: dict[str, set[str]] = {}
  for name, targets in arrows().items():
    folders.setdefault(folder(name), set()).update(folder(target) for target in targets)
  for graph in (arrows(), {name: targets - {name} for name, targets in folders.items()}):
    assert circle(graph) == []


def folder(name: str) -> str:
  """A module's folder; modules beside the folders stand for themselves."""
  return ".".join(name.split(".")[:2])


def circle(graph: dict[str, set[str]]) -> list[str]:
  """A path that comes back to where it began, or nothing."""
  done: set[str] = set()

  def visit(name: str, path: list[str]) -> list[str]:
    if name in path:
      return [*path[path.index(name) :], name]
    if name not in done:
      for target in sorted(graph.get(name, ())):
        if found := visit(target, [*path, name]):
          return found
      done.add(name)
    return []

  return next((found for name in sorted(graph) if (found := visit(name, []))), [])


def test_no_private_name_is_imported():
  private = [
    f"{name} takes {taken} of {target}"
    for name in MODULES
    for target, taken in imported(name)
    if (taken.startswith("_") and taken != "__version__") or target.split(".")[-1].startswith("_")
  ]
  assert private == []


def test_the_top_is_small():
  assert len([path for path in ROOT.glob("*.py") if path.stem != "__init__"]) <= 17


def test_the_trainer_is_one_loop_that_names_no_method():
  text = MODULES["opd_jax.trainer"].read_text(encoding="utf-8")
  assert len(text.splitlines()) <= 120
  recipes = {name.split(".")[2] for name in MODULES if name.startswith("opd_jax.recipes.")} - {"base"}
  assert {name for name in recipes if name in text.lower().replace("opd_jax", "")} == set()


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.startswith("opd_jax.recipes.")))
def test_only_recipes_know_recipes(name):
  """A method is named by a config alone; base.py, which all of them share, is no method."""
  if name.endswith(".base"):
    return
  assert [other for other in MODULES if name in arrows()[other] and not other.startswith("opd_jax.recipes.")] == []


@pytest.mark.parametrize(("one", "other"), [("benchmarks", "planning"), ("planning", "benchmarks")])
def test_plans_and_benchmarks_do_without_each_other(one, other):
  assert [
    n for n in MODULES if folder(n) == f"opd_jax.{one}" for t in arrows()[n] if folder(t) == f"opd_jax.{other}"
  ] == []
