"""Reports and studies of damaged runs, and the commands that read files: a page or a sentence, and never half of one."""

import argparse
import io
import json
import pathlib
import shutil
from contextlib import redirect_stderr, redirect_stdout

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from opd_jax import make_conversations, report
from opd_jax.reports import page, plotting, table
from opd_jax.reports.comparison import compare
from opd_jax.reports.runs import load
from opd_jax.studies.results import Missing, Results
from tests.helpers.damage import accepted_or_refused, assert_one_sentence, contents, damaged, json_bytes
from tests.helpers.fuzz import cases
from tests.helpers.report_runs import workdir
from tests.helpers.reward_runs import reward_workdir

CONFIG = {"objective.path": "a [/b] $c_d$ <i>", "horizon.widths": [8, 16]}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> pathlib.Path:
  """Two runs of one arm, one of another, and one that learns from a reward."""
  root = tmp_path_factory.mktemp("reports")
  for name, seed, kind in (("a", 0, "full"), ("b", 1, "full"), ("c", 0, "progressive")):
    workdir(root / name, [0.1, 0.5, 0.9], seed=seed, every=2, config=CONFIG if kind == "full" else {}, kind=kind)
  reward_workdir(root / "d", 4)
  return root


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch):
  """Pictures are most of a page's time, and nothing here looks at them."""
  monkeypatch.setitem(plotting.RC, "savefig.dpi", 20)


@pytest.fixture
def copied(healthy, tmp_path):
  """Makes a copy of the runs to damage, in the place of the last case's."""

  def copy() -> pathlib.Path:
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    return pathlib.Path(shutil.copytree(healthy, tmp_path / "runs"))

  return copy


def some_damage(draw: st.DrawFn, path: pathlib.Path) -> None:
  """Damages one of the files that a report reads."""
  kind = draw(st.sampled_from(("config.json", "run.json", "record", "record", "record", "lines", "gone")))
  if kind in ("config.json", "run.json"):
    (path / kind).write_bytes(draw(json_bytes(json.loads((path / kind).read_bytes()))))
  elif kind == "record":
    lines = (path / "metrics.jsonl").read_bytes().splitlines()
    at = draw(st.integers(0, len(lines) - 1))
    lines[at] = draw(json_bytes(json.loads(lines[at])))
    (path / "metrics.jsonl").write_bytes(b"\n".join(lines) + draw(st.sampled_from((b"", b"\n"))))
  elif kind == "lines":
    (path / "metrics.jsonl").write_bytes(draw(damaged((path / "metrics.jsonl").read_bytes())))
  else:
    gone = path / draw(st.sampled_from(("config.json", "run.json", "metrics.jsonl")))
    gone.unlink()
    if draw(st.booleans()):
      gone.mkdir()


@pytest.mark.long
@cases(150)
@given(data=st.data(), which=st.sampled_from(tuple("abcd")), names=st.sampled_from(("abc", "ab", "c", "ca", "d", "ad")))
def test_the_table_of_any_runs_is_shown_or_refused(copied, data, which, names):
  root = copied()
  some_damage(data.draw, root / which)
  with accepted_or_refused(*(root / name for name in names)):
    shown = io.StringIO()
    table.show(compare(load([root / name for name in names])), Console(file=shown, width=100))
    shown.getvalue().encode()


@cases(5)
@given(data=st.data(), which=st.sampled_from("ad"))
def test_the_page_of_any_run_is_written_whole_or_not_at_all(copied, tmp_path, data, which):
  root, out = copied(), tmp_path / "report"
  shutil.rmtree(out, ignore_errors=True)
  some_damage(data.draw, root / which)
  before = contents(root)
  with accepted_or_refused(root / which) as refusals:
    comparison = compare(load([root / which, root / "c"]))
    written = page.write(comparison, out).read_text(encoding="utf-8")
    assert written.endswith("</html>\n")
  assert bool(refusals) != out.exists()
  assert contents(root) == before


@cases(60)
@given(data=st.data())
def test_results_of_a_study_are_read_or_refused(healthy, tmp_path, data):
  shutil.rmtree(tmp_path / "out", ignore_errors=True)
  path = tmp_path / "out" / "runs" / "opd" / "seed0"
  shutil.copytree(healthy / "a", path)
  file = tmp_path / "out" / "analysis" / "position" / "seed0.json"
  file.parent.mkdir(parents=True)
  file.write_bytes(json.dumps({"of": "digest", "kl": [1.0, 2.0]}).encode())
  if data.draw(st.booleans()):
    file.write_bytes(data.draw(json_bytes({"of": "digest", "kl": [1.0, 2.0]})))
  else:
    some_damage(data.draw, path)
  with accepted_or_refused(tmp_path / "out"):
    results = Results(tmp_path / "out", [0])
    assert isinstance(results.analysis("position")[0], dict)
    try:
      for x in ("step", "tokens", "elapsed"):
        assert len(results.curve("opd", x).x)
      assert 0 not in results.scores("opd") or results.scores("opd")[0] <= 2
    except Missing:
      assert not results.seeds("opd")


@pytest.mark.long
@cases(3)
@given(data=st.data())
def test_the_report_command_ends_with_a_page_or_with_status_2(copied, tmp_path, data):
  root, out = copied(), tmp_path / "report"
  shutil.rmtree(out, ignore_errors=True)
  some_damage(data.draw, root / "c")
  errors = io.StringIO()
  with redirect_stdout(io.StringIO()), redirect_stderr(errors):
    try:
      status = report.main([str(root / "c"), f"--out={out}"])
    except SystemExit as e:
      status = e.code
  assert status in (0, 2)
  assert out.exists() == (status == 0)
  if status:
    assert_one_sentence(errors.getvalue().removesuffix("\n"), root / "c")


LINE = {"question": "Weng earns $12 an hour. Yesterday, she did 50 minutes. How much did she earn?", "answer": "10"}


@cases(100)
@given(data=st.data())
def test_conversations_of_any_problems_are_written_whole_or_not_at_all(tmp_path, data):
  out = tmp_path / "conversations.jsonl"
  out.unlink(missing_ok=True)
  lines = [json.dumps(LINE).encode(), data.draw(json_bytes(LINE))]
  path = tmp_path / "problems.jsonl"
  path.write_bytes(data.draw(damaged(b"\n".join(lines))) if data.draw(st.booleans()) else b"\n".join(lines))
  user, turns = data.draw(st.sampled_from(("templates", "plain"))), data.draw(st.sampled_from((0, 2, 8)))
  args = {"data": path, "prompt_field": "question", "answer_field": "answer", "out": out, "first": 0}
  with accepted_or_refused(path) as refusals, redirect_stdout(io.StringIO()):
    make_conversations.run(argparse.Namespace(**args, user=user, max_turns=turns, template_args="{}"))
    assert all(json.loads(line)["messages"] for line in out.read_text(encoding="utf-8").splitlines())
  assert bool(refusals) != out.exists()
