"""Every picture: what is written in it, what is drawn where, and that there is none where nothing was run."""

import math
import re
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text

from opd_jax.reports import plotting
from opd_jax.studies import charts
from opd_jax.studies.horizon import figures
from opd_jax.studies.results import Results
from opd_jax.studies.statistics import IntervalEstimate, interval
from tests.helpers import synthetic_study

SHOWN = {"opd": "OPD", "topd0.1": "TOPD 10%", "popd": "POPD", "gone": "gone"}


def texts(figure: Figure | None) -> list[str]:
  """All that is written in a figure."""
  assert figure is not None
  for ax in figure.axes:
    ax.get_xticklabels()  # ticks get their text when they are asked for
    ax.get_yticklabels()
  return [t.get_text() for t in figure.findobj(Text) if isinstance(t, Text) and t.get_visible() and t.get_text()]


def means(figure: Figure | None, axes: int = 0) -> list[tuple[float, float]]:
  """The places of dots with intervals."""
  assert figure is not None
  bars = [c for c in figure.axes[axes].containers if isinstance(c, ErrorbarContainer)]
  return [tuple(places(bar.lines[0])[0].tolist()) for bar in bars]


def places(line: Any) -> np.ndarray:
  """The points of a line, [points, 2]."""
  return np.transpose(line.get_data())


class TestHorizon:
  def test_scores_at_their_ratios(self, results):
    figure = figures.horizon(results, "opd", [*synthetic_study.TRUNCATED, "gone"], SHOWN)
    written = texts(figure)
    assert {"5%", "10%", "25%", "50%", "OPD", "POPD", "whole rollouts (OPD)", "student before training"} <= set(written)
    assert "gone" not in written
    expected = [(r, interval(results.scores(arm).values()).mean) for arm, r in synthetic_study.TRUNCATED.items()]
    assert np.array(means(figure)) == pytest.approx(np.array(expected))

  def test_without_opd(self, results):
    written = texts(figures.horizon(results, "gone", ["topd0.1"], {"popd": "POPD"}))
    assert "whole rollouts (OPD)" not in written


class TestCost:
  def test_says_who_never_got_there(self, results):
    figure = figures.cost(results, {"opd": "OPD", "topd0.05": "TOPD 5%", "gone": "gone"}, "opd", 0.05)
    written = texts(figure)
    assert written.count("never") == 4
    assert {"OPD", "TOPD 5%", "Training time (s)", "Generated tokens", "Model FLOPs", "Steps"} <= set(written)
    (place,) = means(figure, 3)  # OPD's alone, in steps
    assert 5 < place[0] < 40

  def test_needs_the_reference(self, results):
    assert figures.cost(results, SHOWN, "gone") is None

  def test_some_never(self):
    _, (ax,) = plotting.panels(8, 4, 1, 1)
    ax.set_xlim(0, 30)
    charts.reached(ax, 0, IntervalEstimate(12, 10, math.inf, 5), [10.0, 12.0, 11.0, math.inf, 13.0])
    charts.reached(ax, 1, IntervalEstimate(13.5, 10, 14, 3), [10.0, 12.0, 11.0])
    charts.reached(ax, 2, IntervalEstimate(math.inf, 0, math.inf, 5), [math.inf] * 3 + [1, 2])
    assert [t.get_text() for t in ax.texts] == ["12", "", "never in 1 of 5", "13.5", "never in 3 of 5"]

  @pytest.mark.parametrize(("costs", "scale"), [([10, 79], "linear"), ([10, 81], "log"), ([math.inf], "linear")])
  def test_axis(self, costs, scale):
    _, (ax,) = plotting.panels(4, 2, 1, 1)
    charts.cost_axis(ax, costs)
    assert ax.get_xscale() == scale

  def test_amounts(self):
    assert [charts.amount(v) for v in (0.5, 42.4, 1234, 7.7e11, 3.2e15)] == ["0.5", "42.4", "1.23k", "770G", "3.2P"]


class TestSegments:
  def test_places(self, results):
    tenths = {name: f"{10 * i}%" for i, name in enumerate(synthetic_study.TENTHS)}
    figure = figures.segments(results, tenths, {"random": "random", "last": "last"}, "opd")
    written = texts(figure)
    assert {*tenths.values(), "random", "last", "trained on all tokens", "student before training"} <= set(written)
    at, scores = zip(*means(figure), strict=True)
    assert len(at) == 12
    assert min(np.diff(at)) == 1
    assert at[10] - at[9] > 1.5
    assert scores[0] > 0.8
    assert scores[9] < 0.4


class TestContinuation:
  def test_both_students_and_trained_arms(self, results):
    students = {"untrained": "before", "topd0.1": "after", "gone": "gone"}
    figure = figures.continuation(results, "prefix", students, ["topd0.25", "gone"])
    written = texts(figure)
    assert {"0%", "2.5%", "50%", "before", "after", "trained with this horizon, no prefix"} <= set(written)
    assert "gone" not in written
    found = [one["untrained"]["0.25"] for one in results.analysis("prefix").values()]
    assert means(figure)[4] == pytest.approx((0.25, np.mean(found)))
    assert means(figure)[-1] == pytest.approx((0.25, interval(results.scores("topd0.25").values()).mean))

  def test_missing(self, results):
    assert figures.continuation(results, "gone", {"untrained": "before"}) is None


METRICS = {"reliability": "Reliability", "kl": "KL (nats)", "entropy": "Entropy (nats)"}


class TestPositions:
  def test_lines(self, results):
    figure = figures.positions(results, "positions", METRICS, {"0": "before", "60": "after", "99": "gone"})
    written = texts(figure)
    assert {"Reliability", "KL (nats)", "before", "after", "position in the response (tokens)"} <= set(written)
    assert "gone" not in written
    before, after = map(places, figure.axes[1].lines)
    assert before[0, 0] == 4  # the middle of eight tokens
    found = [one["0"]["kl"][3] for one in results.analysis("positions").values()]
    assert before[3, 1] == pytest.approx(np.mean(found))
    assert after[3, 1] < before[3, 1]
    assert np.isnan(before[-1, 1])  # nothing is known there
    assert not figure.axes[3].get_visible()

  def test_missing(self, results):
    assert figures.positions(results, "positions", METRICS, {"7": "never"}) is None


class TestScores:
  def test_rows(self, results):
    figure = figures.scores(results, {"phase-opd": "OPD", "phase-topd0.1": "TOPD 10%", "gone": "gone"}, "Phase")
    written = texts(figure)
    opd = interval(results.scores("phase-opd").values()).mean
    assert {"OPD", "TOPD 10%", "Phase", f"{opd:.3f}", charts.SCORE} <= set(written)
    assert means(figure)[0] == pytest.approx((opd, 0))

  def test_before_training(self, results):
    near, far = (figures.scores(results, {"opd": "OPD"}, before=before) for before in (False, True))
    assert "student before training" in texts(far)
    assert "student before training" not in texts(near)
    assert far.axes[0].get_xlim()[0] < synthetic_study.START < near.axes[0].get_xlim()[0]

  def test_one_seed(self, results):
    one = Results(results.out, [1])
    written = texts(figures.scores(one, {"phase-opd": "OPD"}))
    assert f"{one.scores('phase-opd')[1]:.3f}" in written

  def test_missing(self, results):
    assert figures.scores(results, {"gone": "gone"}) is None


class TestAccuracy:
  @pytest.mark.parametrize(("x", "label"), [("elapsed", "training time (seconds)"), ("step", "step")])
  def test_axis(self, results, x, label):
    written = texts(figures.accuracy(results, SHOWN, x, "Reverse"))
    assert {label, "accuracy", "OPD", "POPD", "Reverse"} <= set(written)


class TestDrift:
  def test_cells(self, results):
    grid = [f"drift-{lr:g}-{h}" for lr in synthetic_study.RATES[:2] for h in synthetic_study.HORIZONS[:2]]
    figure = figures.drift(results, grid[1:], {"drift-0.003-128": "lr 3e-3"})
    written = texts(figure)
    assert {"1e-4", "3e-4", "13", "32", "not run", "lr 3e-3", "learning rate", "horizon (tokens)"} <= set(written)
    cells = {t.get_position(): t.get_text() for t in figure.axes[0].texts}
    e = interval(results.scores("drift-0.0001-32").values())
    assert cells[0.5, 1.5] == f"{e.mean:.2f}\n±{(e.high - e.low) / 2:.2f}"
    assert cells[0.5, 0.5] == "not run"

  def test_missing(self, results):
    assert figures.drift(results, ["gone"], {"opd": "OPD"}) is None


class TestAdaptive:
  def test_panels(self, results):
    chosen = {"saturation": "when it saturates", "look": "looking ahead", "drift": "drift", "gone": "gone"}
    figure = figures.adaptive(results, chosen, {"opd": "OPD", "popd": "POPD"})
    written = texts(figure)
    assert [ax.get_title(loc="left") for ax in figure.axes[:3]] == list(chosen.values())[:3]
    assert {"OPD", "POPD", "training time (seconds)", charts.SCORE} <= set(written)
    *single, mean = map(places, figure.axes[1].lines)
    assert len(single) == 3
    assert mean[0, 1] == synthetic_study.LONGEST  # it looks at the first step
    assert mean[1, 1] < synthetic_study.LONGEST

  def test_place_in_the_trade(self, results):
    figure = figures.adaptive(results, {"look": "look"}, {"opd": "OPD"})
    at = [line[0].tolist() for line in map(places, figure.axes[-1].lines) if len(line) == 1]
    for place, arm in zip(at, ("look", "opd"), strict=True):
      expected = [interval(values.values()).mean for values in (results.totals(arm), results.scores(arm))]
      assert place == pytest.approx(expected)

  def test_missing(self, results):
    assert figures.adaptive(results, {"gone": "gone"}, {"opd": "OPD"}) is None


class TestCredit:
  def test_lines(self, results):
    teachers = {
      t: [f"credit-{t}-{d:g}" for d in synthetic_study.DISCOUNTS] for t in (*synthetic_study.TEACHERS, "gone")
    }
    figure = figures.credit(results, teachers)
    written = texts(figure)
    assert {"0\n(token level)", "0.9", "1\n(sequence level)", "good", "biased"} <= set(written)
    at = dict(means(figure))
    assert len(at) == 10
    assert sorted(round(x) for x in at) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert min(at.values()) == interval(results.scores("credit-biased-1").values()).mean

  def test_missing(self, results):
    assert figures.credit(results, {"good": ["gone"]}) is None


def test_one_seed_draws_everything(results, tmp_path):
  one = Results(results.out, [0])
  assert texts(figures.horizon(one, "opd", synthetic_study.TRUNCATED, SHOWN))
  figure = figures.cost(one, SHOWN, "opd", 0.05)
  assert not [text for text in texts(figure) if re.search("nan|inf", text)]
  with matplotlib.rc_context(plotting.RC):
    figure.savefig(tmp_path / "cost.png", dpi=50)
  assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")
