"""The files of a workdir as a report takes them, where they are damaged."""

import io
import json
import math

import pytest
from rich.console import Console

from opd_jax.errors import InputError
from opd_jax.reports import table
from opd_jax.reports.comparison import compare
from opd_jax.reports.labels import show
from opd_jax.reports.runs import load
from tests.helpers.report_runs import workdir


@pytest.mark.parametrize(
  ("kind", "change", "why"),
  [
    ("train", {"step": "1"}, "'1' for 'step'"),
    ("train", {"tokens": math.inf}, "inf for 'tokens'"),
    ("train", {"seconds": [1, 2]}, "'seconds', which has to be seconds by part"),
    ("train", {"seconds": {"rollout": "fast"}}, "seconds by part"),
    ("train", {"by_position": {"edges": [0, 10], "count": [1, 2], "kl": [0.1]}}, "'by_position'"),
    ("train", {"by_position": {"edges": [10, 0], "count": [1], "kl": [0.1]}}, "'by_position'"),
    ("train", {"cut": {}}, "'cut', which has to be a share"),
    ("eval", {"accuracy": 10**300}, "'accuracy', which has to be a share"),
    ("eval", {"pass": {"1": 0.5}}, "'pass'"),
    ("eval", {"seconds": True}, "True for 'seconds'"),
  ],
)
def test_a_value_of_another_type_is_refused_with_its_line(tmp_path, kind, change, why):
  path = workdir(tmp_path / "a", [0.1, 0.9])
  lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
  at = next(i for i, line in enumerate(lines) if line["kind"] == kind)
  lines[at] |= change
  (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  with pytest.raises(InputError, match=f"Line {at + 1} of .*metrics.jsonl has .*{why}"):
    load([path])


@pytest.mark.parametrize(
  ("file", "change"),
  [
    ("config.json", {"horizon": {"kind": ["full"]}}),
    ("config.json", {"horizon": {"kind": "truncated", "ratio": "10%"}}),
    ("config.json", {"steps": None}),
    ("run.json", {"programs": [3]}),
    ("run.json", {"programs": {"name": "update"}}),
    ("run.json", {"versions": [1]}),
  ],
)
def test_a_config_and_a_run_json_of_other_types_are_refused(tmp_path, file, change):
  path = workdir(tmp_path / "a", [0.1, 0.9])
  (path / file).write_text(json.dumps(json.loads((path / file).read_text()) | change))
  with pytest.raises(InputError, match=f"{file} has"):
    load([path])


def test_a_text_with_a_line_separator_is_one_line(tmp_path):
  path = workdir(tmp_path / "a", [0.1, 0.9])
  lines = (path / "metrics.jsonl").read_text().splitlines()
  lines[0] = json.dumps(json.loads(lines[0]) | {"note": "a\u2028b"}, ensure_ascii=False)
  (path / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
  assert load([path])[0].step == 10


def test_a_label_with_brackets_is_no_markup(tmp_path):
  runs = [workdir(tmp_path / name, [0.1, 0.9], config={"student": name}) for name in ("[/a]", "[red]")]
  out = io.StringIO()
  table.show(compare(load(runs)), Console(file=out, width=100))
  assert "student [/a]" in out.getvalue()
  assert "student [red]" in out.getvalue()


def test_runs_of_an_arm_need_not_have_the_same_pass_at(tmp_path):
  runs = [workdir(tmp_path / str(seed), [0.1, 0.9], seed=seed) for seed in (0, 1)]
  lines = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
  more = [line | {"pass": line["pass"] | {"8": {"value": 0.9}}} if line["kind"] == "eval" else line for line in lines]
  (runs[0] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in more))
  assert compare(load(runs)).baseline.pass_at == {}


def test_numbers_that_are_not_finite_are_shown_as_such():
  assert [show(math.nan), show(-math.inf)] == ["nan", "-inf"]
