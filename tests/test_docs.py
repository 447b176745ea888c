"""What the pages and --help promise holds: commands, keys, paths, links, messages and the tests that they name."""

import ast
import importlib.util
import itertools
import pathlib
import re
import shlex

import pytest

from opd_jax import checks, config
from opd_jax.runtime import workdir
from opd_jax.tasks import GENERATORS

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / "opd_jax" / "docs"
PAGES = {
  path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
  for pattern in ("README.md", "opd_jax/**/*.md", "tpu_scripts/README.md", ".github/*.md")
  for path in sorted(ROOT.glob(pattern))
}
METHODS = sorted(path.stem for path in config.configs_dir().glob("*.py"))
KEYS = {key for method in METHODS for key in config.flat(config.load(method).to_dict())}
GROUPS = {key.partition(".")[0] for key in KEYS if "." in key}
PLACEHOLDERS = ("KEY", "NAME")


def test_the_pages_were_found():
  assert len(PAGES) >= 16


# Config keys.


def config_with(keys) -> config.Config:
  """The config of the first method that has all of these keys."""
  loaded = (config.load(method) for method in ("opd", *METHODS))
  return next(c for c in loaded if all(config.has(c, key) for key in keys))


def value(text: str):
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def assignments(text: str) -> list[tuple[str, str]]:
  return re.findall(r"`([\w.]+)=([^`]+)`", text)


ROWS = {
  f"{page}: {row.split('|')[1].strip()}": assignments(row)
  for page, text in PAGES.items()
  for row in text.splitlines()
  if row.startswith("|") and assignments(row)
}


@pytest.mark.parametrize("name", ROWS)
def test_every_row_of_keys_is_a_config(name):
  assignments = {key: value(text) for key, text in ROWS[name]}
  c = config.override(config_with(assignments), assignments)
  checks.check(c)


def test_the_table_of_losses_was_found():
  assert len([name for name in ROWS if name.startswith("opd_jax/objectives/README.md")]) >= 12 + 7


@pytest.mark.parametrize("page", PAGES)
def test_every_value_of_a_key_can_be_set(page):
  own = [(key, text) for key, text in assignments(PAGES[page]) if key in KEYS or key.partition(".")[0] in GROUPS]
  for key, text in own:
    config.override(config_with([key]), {key: value(text)})


@pytest.mark.parametrize("page", PAGES)
def test_every_config_key_exists(page):
  flags = re.findall(r"--(?:no)?config\.([\w.]*\w)", PAGES[page])
  in_code = re.findall(rf"(?<![\w./])(?:config\.)?((?:{'|'.join(GROUPS)})\.\w+)", " ".join(inline_code(PAGES[page])))
  named = [key for key in (*flags, *in_code) if not key.endswith((*PLACEHOLDERS, ".py"))]
  assert [key for key in named if (config.mapping_of(key) or key) not in KEYS] == []


def test_the_page_of_configuration_has_every_group_and_every_free_key():
  page = PAGES["opd_jax/docs/configuration.md"]
  own = {key.partition(".")[0] for key in config.flat(config.default().to_dict())}
  assert [name for name in (*own, *workdir.FREE) if f"`{name}`" not in page] == []


def test_help_has_the_meanings_of_the_keys_of_the_losses():
  meanings = config.meanings()
  keys = config.flat(config.default().to_dict())
  assert meanings.keys() <= keys.keys()
  assert {k for k in keys if k.startswith("horizon.")} <= meanings.keys()
  assert {k for k in keys if k.startswith(("objective.", "weights.", "importance."))} - meanings.keys() <= {
    "objective.student_temperature",
    "objective.teacher_temperature",
    "importance.cap",
  }


# Commands.


def inline_code(text: str) -> list[str]:
  return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(text))]


def prose(text: str) -> str:
  return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def code_lines(text: str) -> list[str]:
  """The lines of indented blocks, those that go on with a backslash joined, without what is said beside a command."""
  block = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
  lines = re.sub(r"\\\n\s*", "", block).splitlines()
  return [re.split(r"\s{4,}|\s+# ", line)[0] for line in lines]


def commands(start: str) -> dict[str, list[str]]:
  """The words of every command that begins so, by page and command."""
  found = {}
  for page, text in PAGES.items():
    for code in itertools.chain(code_lines(text), inline_code(text)):
      for part in code.split(" && "):
        if match := re.search(rf"(?:^|\s)({start}.*)", part):
          found[f"{page}: {match[1]}"] = shlex.split(match[1])
  return found


MODULES = commands("python -m opd_jax")
SCRIPTS = commands(r"tpu_scripts/\w+\.sh")


def test_the_two_commands_stand_in_the_readme():
  lines = PAGES["README.md"].splitlines()
  first = lines.index("    pip install -e . && python -m opd_jax.demo")
  assert lines[first + 1] == '    pip install -e ".[test]" && pytest -n 2'
  assert first < 30


def test_the_commands_were_found():
  assert len(MODULES) >= 40
  assert len(SCRIPTS) >= 9


@pytest.mark.parametrize("name", MODULES)
def test_every_command_can_be_typed(name):
  _, _, module, *arguments = MODULES[name]
  spec = importlib.util.find_spec(module)
  assert spec is not None, module
  assert spec.origin is not None, module
  known = flags_of(
    pathlib.Path(spec.origin), ROOT / "opd_jax/runtime/cli.py", *(ROOT / "opd_jax/benchmarks").glob("*.py")
  )
  method, keys = "popd", {}
  for argument in arguments:
    if argument.startswith("--"):
      flag, _, text = argument.removeprefix("--").partition("=")
      if flag == "config":
        method = text
      elif flag.startswith("config."):
        keys[flag.removeprefix("config.")] = value(text)
      else:
        assert flag in known
  if method not in ("...", "FILE"):
    seeds = {"seed": 0} if keys.get("seed") == "0..2" else {}
    config.override(config.load(method), {key: v for key, v in (keys | seeds).items() if key not in PLACEHOLDERS})


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_has_the_flags(name):
  script, *arguments = SCRIPTS[name]
  source = ROOT / script
  assert source.is_file()
  known = flags_of(source, *(ROOT / "tpu_scripts" / shared for shared in ("shell.sh", "tpu.sh")))
  own = itertools.takewhile(lambda argument: argument != "--", arguments)
  for argument in own:
    if argument.startswith("--"):
      assert argument.removeprefix("--").partition("=")[0] in known


def flags_of(*files: pathlib.Path) -> set[str]:
  """Flags that a Python or a shell file may define: every word in quotes or behind two dashes."""
  text = "\n".join(path.read_text(encoding="utf-8") for path in files)
  return {"help"} | set(re.findall(r"[\"'](?:--)?([\w-]+)[\"']", text)) | set(re.findall(r"--([\w-]+)", text))


@pytest.mark.parametrize("page", PAGES)
def test_every_built_in_task_exists(page):
  tasks = set(re.findall(r"\btask:([a-z][\w-]*)", PAGES[page]))
  assert tasks <= GENERATORS.keys()


# Links, paths, tests.


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_resolves(page):
  for target in links(PAGES[page]):
    path, _, anchor = target.partition("#")
    file = (ROOT / page).parent / path if path else ROOT / page
    assert file.exists(), target
    if anchor:
      assert anchor in anchors(file.read_text(encoding="utf-8")), target


def links(text: str) -> list[str]:
  return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?:", target)]


def anchors(text: str) -> set[str]:
  """Of the headings, as GitHub makes them."""
  headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_linked_from_another():
  linked = {
    ((ROOT / page).parent / target.partition("#")[0]).resolve()
    for page, text in PAGES.items()
    for target in links(text)
    if not target.startswith("#")
  }
  assert [page for page in PAGES if page != "README.md" and (ROOT / page).resolve() not in linked] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_path_exists(page):
  named = re.findall(r"(?<![\w./-])((?:opd_jax|configs|tests|tpu_scripts)/[\w./-]*\w)", PAGES[page])
  named = [path for path in named if not any(word in path for word in PLACEHOLDERS)]
  assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_test_that_is_named_exists():
  sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
  named = [match for text in PAGES.values() for match in re.findall(r"(tests/[\w/]+\.py)?::(test_\w+)", text)]
  assert len(named) >= 11
  for path, test in named:
    within = [sources[ROOT / path]] if path else sources.values()
    assert any(f"def {test}(" in source for source in within), test


def test_the_readme_is_short_and_has_a_map_of_the_package():
  text = PAGES["README.md"]
  assert len(text.splitlines()) <= 170
  drawn = set(re.findall(r"^      (\w+(?:\.py|/)) ", text, re.MULTILINE))
  package = ROOT / "opd_jax"
  modules = {path.name for path in package.glob("*.py") if path.name != "__init__.py"}
  folders = {f"{path.name}/" for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
  assert drawn == modules | folders


# Messages and metrics.


def strings_of_the_package() -> str:
  """All strings in the code, f-strings with "..." for what they insert."""
  out = []
  for path in (ROOT / "opd_jax").rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if isinstance(node, ast.JoinedStr):
        out.append("".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values))
      elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        out.append(node.value)
  return "\n".join(out)


def test_every_message_of_troubleshooting_exists():
  rows = re.findall(r"^\| `([^`]+)` \|", PAGES["opd_jax/docs/troubleshooting.md"], re.MULTILINE)
  assert len(rows) >= 25
  code = strings_of_the_package()
  fragments = [fragment.strip() for row in rows for fragment in row.split("...")]
  assert [fragment for fragment in fragments if fragment not in code] == []


def test_every_metric_of_the_page_is_written():
  named = {
    name
    for row in re.findall(r"^\| (`[^|]+) \|", PAGES["opd_jax/docs/metrics.md"], re.MULTILINE)
    for name in re.findall(r"`(\w+)`", row)
  }
  assert len(named) >= 40
  words = set(strings_of_the_package().split()) | record_fields()
  assert named - words == set()


def record_fields() -> set[str]:
  """Fields of the named tuples that evaluations return."""
  text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "opd_jax" / "evaluation").glob("*.py"))
  return set(re.findall(r"^  (\w+): ", text, re.MULTILINE))
