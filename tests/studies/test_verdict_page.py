"""The page, its files, and the verdicts on a terminal."""

import io
import json
import math
import re

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from opd_jax.errors import InputError
from opd_jax.studies import verdict_page
from opd_jax.studies.statistics import IntervalEstimate
from opd_jax.studies.verdict_page import Section
from opd_jax.studies.verdicts import MISSING, NOT_SUPPORTED, SUPPORTED, UNDECIDED, Evidence, Verdict

VERDICTS = [
  Verdict(
    "faster",
    SUPPORTED,
    "the interval lies above 1",
    [Evidence("OPD / TOPD", IntervalEstimate(3.2, 2.5, math.inf, 5), "times")],
    "TOPD is faster <than> OPD.",
    "Supported if the ratio is above 1.",
  ),
  Verdict(
    "equal",
    NOT_SUPPORTED,
    "it is below",
    [Evidence("TOPD − OPD", IntervalEstimate(-0.05, -0.07, -0.03, 5), "points")],
    "Equal.",
  ),
  Verdict("open", UNDECIDED, "the interval holds 0"),
  Verdict("later", MISSING, "no run of x is finished"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
  figure = Figure(figsize=(5, 3))
  figure.subplots().plot([1, 2])
  sections = [
    Section("Score & horizon", "First.\n\nSecond.", figure),
    Section("How to read this", "Slowly.", rows=[{"arm": "a < b", "area": "0.5"}, {"arm": "c"}]),
  ]
  return verdict_page.write(
    "Are full rollouts necessary?", "Five seeds.", VERDICTS, sections, tmp_path_factory.mktemp("out") / "a" / "b"
  )


class TestPage:
  def test_needs_nothing_outside_itself(self, page):
    text = page.read_text()
    assert not re.search("https?://|<script|<link|url\\(", text)
    assert re.findall(r'src="([^"]{0,22})', text) == ["data:image/png;base64,"]
    assert "border-collapse" in text
    assert "{{" not in text

  def test_verdicts_come_first(self, page):
    text = page.read_text()
    order = [
      "Five seeds.",
      "Of 4 claims: 1 supported, 1 not supported, 1 undecided, 1 not run.",
      verdict_page.NOTE,
      "TOPD is faster &lt;than&gt; OPD.",
      "✓ supported",
      "the interval lies above 1\n• OPD / TOPD: 3.2x (2.5 to ∞, n=5)",
      "Supported if the ratio is above 1.",
      "✗ not supported",
      "? undecided",
      "– not run",
      "<h2>Score &amp; horizon</h2>",
      "<p>Second.</p>",
      "<p>Slowly.</p>",
      "<th>area</th>",
      "<td>a &lt; b</td><td>0.5</td>",
    ]
    assert [text.find(part) for part in order] == sorted(text.find(part) for part in order)
    assert min(text.find(part) for part in order) > 0

  def test_files_beside_it(self, page):
    assert {p.name for p in page.parent.iterdir()} == {"index.html", "score_horizon.png", "verdicts.json"}

  def test_json(self, page):
    first, second, *_ = json.loads((page.parent / "verdicts.json").read_text())
    assert first["status"] == "supported"
    assert first["rule"] == "Supported if the ratio is above 1."
    expected = {"label": "OPD / TOPD", "unit": "times", "mean": 3.2, "low": 2.5, "high": "inf", "n": 5}
    assert first["evidence"] == [expected]
    assert second["evidence"][0]["low"] == -0.07

  def test_folder_is_a_file(self, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="cannot be made a directory"):
      verdict_page.write("", "", [], [], tmp_path / "out")


class TestTerminal:
  @pytest.mark.parametrize("width", [70, 100, 200])
  def test_fits(self, width):
    out = io.StringIO()
    verdict_page.terminal(VERDICTS, Console(file=out, width=width))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= min(width, verdict_page.MAX_WIDTH)
    assert "…" not in text
    for part in ("✓ supported", "✗ not supported", "? undecided", "– not run", "1 undecided"):
      assert part in text
    assert "3.2x (2.5 to ∞," in " ".join(text.split())
    assert verdict_page.NOTE in " ".join(text.split())


def test_nothing_decided():
  assert verdict_page.tally([]) == "No claim was judged."
