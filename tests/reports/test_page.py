"""The page: what stands in it, its pictures, and its warnings."""

import base64
import re
import struct

import pytest
from matplotlib.figure import Figure

from opd_jax.errors import InputError
from opd_jax.reports import figures
from opd_jax.reports.comparison import compare
from opd_jax.reports.page import write
from opd_jax.reports.runs import load
from tests.helpers.report_runs import workdir


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
  names = {"result", "accuracy", "horizon", "kl_by_position", "responses", "time"}
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


def test_out_is_a_file(tmp_path):
  path = workdir(tmp_path / "a", [0.1, 0.9])
  (tmp_path / "out").write_text("")
  with pytest.raises(InputError, match="cannot be made a directory"):
    write(compare(load([path])), tmp_path / "out")
