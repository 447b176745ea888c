"""Responses with marked tokens: what is escaped, what is told without colour, and what a terminal shows."""

import dataclasses
import io
from html.parser import HTMLParser

import pytest
from rich.console import Console

from opd_jax.reports import tokens
from tests.helpers.report_runs import response

HOSTILE = ["<script>alert(1)</script>", '" onmouseover="x', "\x1b[31m", "‮", "\n", "</span></pre>", "&lt;"]


class Page(HTMLParser):
  """The elements, attributes and text of a page, and whether every element is closed in its order."""

  VOID = ("meta", "line", "br")

  def __init__(self, text: str):
    super().__init__()
    self.open, self.elements, self.text = [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert tag in self.VOID or self.open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)


def test_what_a_model_writes_stays_text():
  tops = [[(text, 0.5)] for text in HOSTILE]
  shown = tokens.page(
    [response(HOSTILE, prompt=HOSTILE[0], of=HOSTILE[1], student_top=tops, teacher_top=tops)], HOSTILE[0], [HOSTILE[5]]
  )
  page = Page(shown)
  assert page.open == []
  assert not {"script", "img", "link", "iframe"} & {tag for tag, _ in page.elements}
  assert not {name for _, attributes in page.elements for name in attributes if name.startswith("on")}
  assert not {"\x1b", "‮"} & set(shown)
  assert "http" not in shown
  written = [attributes["title"] for tag, attributes in page.elements if attributes.get("title")]
  assert len(written) == len(HOSTILE)
  assert "<script>alert(1)</script>" in written[0]
  assert "U+202E" in written[3]


@pytest.mark.parametrize(("nats", "expected"), [(0.0, 0), (0.01, 1), (0.3, 2), (0.5, 3), (2.0, 4), (None, 4)])
def test_a_band_is_told_without_colour(nats, expected):
  assert tokens.band(nats) == expected
  shown = Page(tokens.sections([response(["a"], [nats])]))
  assert [a["class"] for tag, a in shown.elements if tag == "span" and "title" in a] == [f"t b{expected}"]
  underlines = [
    line.partition("underline ")[2] for line in tokens.STYLE.splitlines() if line.startswith(f".b{expected} ")
  ]
  assert underlines == ([f"{('dotted', 'dashed', 'solid', 'double')[expected - 1]}; }}"] if expected else [])


def test_bars_of_one_prompt_have_one_scale():
  page = Page(tokens.sections([response(["a"], [1.0]), response(["b", "c"], [4.0, 2.0])]))
  heights = [float(a["height"]) for tag, a in page.elements if tag == "rect"]
  full = tokens.PLOT[1] - tokens.PLOT[2]
  assert heights == [pytest.approx(x * full) for x in (0.25, 1.0, 0.5)]


def test_a_long_response_has_few_bars_and_a_short_table():
  n = 3 * tokens.MOST_ROWS
  page = Page(tokens.sections([response(["a"] * n, [0.1] * (n - 1) + [3.0])]))
  assert sum(tag == "rect" for tag, _ in page.elements) <= tokens.MOST_BARS
  assert sum(tag == "tr" for tag, _ in page.elements) == tokens.MOST_ROWS + 1
  assert any("4000 more tokens" in text for text in page.text)


def test_a_response_without_a_teacher_has_dashes():
  alone = dataclasses.replace(response(["a"]), divergence=None, teacher_logprob=None, teacher_entropy=None, kind="")
  page = Page(tokens.sections([alone]))
  assert not any(tag == "svg" for tag, _ in page.elements)
  assert "1 tokens, cut" in page.text


def test_a_terminal_shows_the_text_and_where_the_models_are_farthest_apart():
  out = io.StringIO()
  tops = [[("x", 0.9), ("y", 0.1)]] * 3
  tokens.show(
    [response(["[b]", "\x1b[31m", "c"], [0.0, 0.2, None], teacher_top=tops)],
    Console(file=out, width=100, force_terminal=True, color_system=None),
  )
  text = out.getvalue()
  assert "[b]⟨U+001B⟩[31mc" in text.replace("\x1b[2;4m", "").replace("\x1b[4m", "").replace("\x1b[0m", "").replace(
    "\x1b[1;7m", ""
  )
  rows = [line.split() for line in text.splitlines() if "'x' 0.900" in line]
  assert [row[0] for row in rows] == ["3", "2", "1"]
  assert rows[1][2] == "0.2"
