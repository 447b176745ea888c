"""The page: what stands in it, its pictures, and its warnings."""

import base64
import dataclasses
import json
import re
import struct

import pytest
from matplotlib.figure import Figure

from opd_jax.data import scored
from opd_jax.errors import InputError
from opd_jax.reports import figures
from opd_jax.reports.comparison import compare
from opd_jax.reports.page import write
from opd_jax.reports.runs import load
from tests.helpers.report_runs import response, workdir


@pytest.fixture(scope="module")
def page(study, tmp_path_factory):
  return write(compare(load(study)), tmp_path_factory.mktemp("out") / "deep" / "report")


def test_needs_nothing_outside_itself(page):
  text = page.read_text()
  assert "http://" not in text
  assert "https://" not in text
  assert "<script" not in text
  assert "<link" not in text
  assert "url(" not in text
  sources = re.findall(r'src="([^"]{0,40})', text)
  assert len(sources) == 6
  assert all(s.startswith("data:image/png;base64,") for s in sources)


def test_pictures(page):
  names = {"result", "accuracy", "learning", "kl_by_position", "responses", "time"}
  assert {p.stem for p in page.parent.glob("*.png")} == names
  for name in names:
    data = (page.parent / f"{name}.png").read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data.startswith(b"\x89PNG")
    assert len(data) > 10_000
    assert 600 < width < 2100
    assert height > 300
    assert base64.b64encode(data).decode() in page.read_text()
  assert struct.unpack(">I", (page.parent / "result.png").read_bytes()[16:20])[0] <= 1600


def test_says_how_it_was_made(page, study):
  text = page.read_text()
  assert "An accuracy of 0.912 was reached after 20.0 s of training by TOPD 10%" in text
  assert "95% of the best final accuracy of OPD" in text
  assert "without interpolation" in text
  assert "Compiling and evaluation are left out" in text
  assert "not reached" in text
  assert "0123456789ab" in text
  assert "jax 0.10.0" in text
  assert all(str(path) in text for path in study)
  assert "<th>horizon.ratio</th>" in text
  assert "optimizer.lr = 1e-4" in text


def test_what_was_changed_on_the_way_stands_with_the_run(tmp_path, monkeypatch):
  monkeypatch.setattr(figures, "draw", lambda *_: [])
  changes = [{"step": 40, "key": "optimizer.lr", "from": 1e-4, "to": 1e-5}]
  text = write(
    compare(load([workdir(tmp_path / "a", [0.1, 0.9], info={"changes": changes})])), tmp_path / "out"
  ).read_text()
  assert "changed on the way" in text
  assert "from step 40: optimizer.lr 1e-4 -&gt; 1e-5" in text
  text = write(compare(load([workdir(tmp_path / "b", [0.1, 0.9])])), tmp_path / "out").read_text()
  assert "changed on the way" not in text


def test_warnings(tmp_path, monkeypatch):
  monkeypatch.setattr(figures, "draw", lambda *_: [])
  a = workdir(
    tmp_path / "a", [0.1, 0.9], info={"devices": "1 x tpu", "commit": "ff"}, config={"student": "<b>other</b>"}
  )
  b = workdir(tmp_path / "b", [0.1, 0.9], total=50, kind="truncated", ratio=0.1)
  c = workdir(tmp_path / "c", [0.1, 0.9], total=50, kind="truncated", ratio=0.1, seed=0)
  (c / "run.json").unlink()
  text = write(compare(load([a, b, c])), tmp_path / "out").read_text()
  assert "made on different devices" in text
  assert "different commits" in text
  assert "differ in more than the horizon: steps, student." in text
  assert "runs of the same seed" in text
  assert "at step 10 of 50, running or cut short" in text
  assert "run.json is missing" in text
  assert "single run" in text
  assert "&lt;b&gt;other" in text
  assert "<b>" not in text


def test_before_the_first_step(tmp_path, monkeypatch):
  monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: path.write_bytes(b""))
  path = workdir(tmp_path / "a", [0.1], total=50)
  out = write(compare(load([path]), target=0.9), tmp_path / "out")
  assert "OPD has not reached an accuracy of 0.9 by step 0 of 50" in out.read_text()
  assert {p.stem for p in out.parent.glob("*.png")} == {"result", "accuracy", "time"}


def test_runs_without_evaluations_are_shown_by_their_curves(tmp_path, monkeypatch):
  monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: path.write_bytes(b""))
  runs = load([without_evaluations(workdir(tmp_path / name, [0.1, 0.9], seed=seed)) for seed, name in enumerate("ab")])
  out = write(compare(runs), tmp_path / "out")
  text = out.read_text()
  assert "No run is evaluated: the curves tell what was learned" in text
  assert "there is no evaluation, so no accuracy is known" in text
  assert "accuracy</th>" not in text
  assert "Matched accuracy" not in text
  assert "nan" not in text
  assert {p.stem for p in out.parent.glob("*.png")} == {"learning", "horizon", "kl_by_position", "responses", "time"}


def test_an_arm_without_evaluations_is_no_baseline(tmp_path, monkeypatch):
  monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: path.write_bytes(b""))
  silent = without_evaluations(workdir(tmp_path / "a", [0.1, 0.9]))
  spoken = workdir(tmp_path / "b", [0.1, 0.9], kind="truncated", ratio=0.1)
  comparison = compare(load([silent, spoken]))
  assert comparison.baseline.label == "TOPD 10%"
  assert comparison.target == pytest.approx(0.95 * 0.9)
  text = write(comparison, tmp_path / "out").read_text()
  assert "<td>–</td>" in text
  assert "OPD did not reach it" in text


def test_answers_and_rollouts_of_a_workdir_are_shown_token_by_token(tmp_path, monkeypatch):
  monkeypatch.setattr(figures, "draw", lambda *_: [])
  path = workdir(tmp_path / "a", [0.1, 0.9])
  assert "Token by token" not in write(compare(load([path])), tmp_path / "out").read_text()
  one = response(["<b>", "x"], [0.0, 3.0], of="student after step 2")
  scored.write(path / scored.VIEW, [one])
  rollouts = [dataclasses.replace(one, of=f"rollout of step {step}", step=step) for step in (1, 2, 3)]
  scored.write(path / scored.ROLLOUTS, rollouts)
  text = write(compare(load([path])), tmp_path / "out").read_text()
  assert text.count("<article>") == 3
  assert "student after step 2" in text
  assert [f"rollout of step {step}" in text for step in (1, 2, 3)] == [True, False, True]
  assert "&lt;b&gt;" in text
  assert "<b>" not in text


def without_evaluations(path):
  lines = [line for line in (path / "metrics.jsonl").read_text().splitlines() if '"kind": "train"' in line]
  (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
  return path


def test_out_is_a_file(tmp_path):
  path = workdir(tmp_path / "a", [0.1, 0.9])
  (tmp_path / "out").write_text("")
  with pytest.raises(InputError, match="cannot be made a directory"):
    write(compare(load([path])), tmp_path / "out")


@pytest.mark.parametrize(("loss", "panels"), [(1.0, 1), (2.0, 2), (None, 1)])
def test_a_loss_that_is_the_kl_is_drawn_once(tmp_path, loss, panels):
  path = workdir(tmp_path / "a", [0.1, 0.9])
  records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
  for record in records:
    if record["kind"] == "train":
      record["loss"] = loss and loss * record["kl"]
  (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
  figure = figures.learning(compare(load([path])).arms)
  assert figure is not None
  assert len(figure.axes) == panels
