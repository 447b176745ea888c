"""Runs and analyses found, scores, curves and costs on paper."""

import json
import math
import pathlib
from typing import Any

import numpy as np
import pytest

from opd_jax.errors import InputError
from opd_jax.studies.results import Missing, Results, crossing
from tests.helpers.synthetic_study import workdir, write

INF = math.inf


@pytest.fixture
def make(tmp_path):
  """Write a run: make(arm, seed, [accuracy at steps 0, 5, 10, ...])."""

  def write_run(arm: str, seed: int, values: list[float], **options: Any) -> pathlib.Path:
    options = {"steps": 5 * (len(values) - 1)} | options
    path = tmp_path / "runs" / arm / f"seed{seed}"
    return workdir(path, seed, lambda step: values[step // 5], noise=0, **options)

  return write_run


class TestSeeds:
  def test_finished_ones(self, tmp_path, make):
    r = Results(tmp_path, range(4))
    make("a", 0, [0.1, 0.5])
    make("a", 2, [0.1, 0.5, 0.6], steps=20, done=10)
    (tmp_path / "runs" / "a" / "seed3").mkdir()
    assert r.seeds("a") == (0,)
    assert r.seeds("b") == ()

  def test_no_evaluation_yet(self, tmp_path, make):
    path = make("a", 0, [0.1, 0.5])
    (path / "metrics.jsonl").write_text("")
    assert Results(tmp_path, [0]).seeds("a") == ()

  def test_last_evaluation_missing(self, tmp_path, make):
    path = make("a", 0, [0.1, 0.5])
    lines = (path / "metrics.jsonl").read_text().splitlines()
    assert '"eval"' in lines[-1]
    (path / "metrics.jsonl").write_text("\n".join(lines[:-1]))
    assert Results(tmp_path, [0]).seeds("a") == ()

  def test_finished_while_looking(self, tmp_path, make):
    r = Results(tmp_path, [0, 1])
    make("a", 0, [0.1, 0.5])
    assert r.seeds("a") == (0,)
    make("a", 1, [0.1, 0.5])
    assert r.seeds("a") == (0, 1)

  def test_damage_is_an_error_and_not_a_missing_run(self, tmp_path, make):
    path = make("a", 0, [0.1, 0.5])
    (path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json"):
      Results(tmp_path, [0]).seeds("a")

  def test_present(self, tmp_path, make):
    make("a", 0, [0.1, 0.5])
    assert Results(tmp_path, [0]).present({"b": "B", "a": "A"}) == {"a": "A"}


class TestScores:
  def test_mean_of_the_last_three(self, tmp_path, make):
    make("a", 0, [0.1, 0.9, 0.5, 0.6, 0.7])
    make("a", 1, [0.2, 0.3])
    r = Results(tmp_path, range(2))
    assert r.scores("a") == pytest.approx({0: 0.6, 1: 0.25})
    assert r.best("a") == pytest.approx({0: 2 / 3, 1: 0.25})
    assert r.untrained("a") == {0: 0.1, 1: 0.2}

  def test_trained_tokens_a_step(self, tmp_path, make):
    path = make("a", 0, [0.1, 0.5])
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    tokens = [r["trained"] for r in records if r["kind"] == "train"]
    assert Results(tmp_path, [0]).trained("a") == {0: pytest.approx(sum(tokens) / 5)}

  def test_pairs_by_seed(self, tmp_path, make):
    for seed, (a, b) in enumerate([(0.5, 0.4), (0.6, 0.7), (0.9, 0.2)]):
      make("a", seed, [a] * 4)
      if seed < 2:
        make("b", seed, [b] * 4)
    r = Results(tmp_path, range(3))
    assert r.pairs("a", "b") == pytest.approx([0.1, -0.1])

  def test_nothing_in_common(self, tmp_path, make):
    make("a", 0, [0.5, 0.5])
    make("b", 1, [0.5, 0.5])
    r = Results(tmp_path, range(2))
    with pytest.raises(Missing, match="a and b"):
      r.pairs("a", "b")
    make("a", 1, [0.5, 0.5])
    assert r.common("a", "b") == [1]
    with pytest.raises(Missing, match="no run of c"):
      r.scores("c")


class TestCurve:
  def test_mean_at_steps_that_all_have(self, tmp_path, make):
    make("a", 0, [0.1, 0.3, 0.5])
    make("a", 1, [0.3, 0.5, 0.9, 1.0])
    curve = Results(tmp_path, range(2)).curve("a")
    assert list(curve.x) == [0, 5, 10]
    assert curve.y == pytest.approx([0.2, 0.4, 0.7])
    assert list(curve.seeds[1][0]) == [0, 5, 10, 15]

  def test_axes(self, tmp_path, make):
    path = make("a", 0, [0.1, 0.3])
    last = json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])
    r = Results(tmp_path, [0])
    for x in ("tokens", "elapsed"):
      assert list(r.curve("a", x).x) == [0, last[x]]
      assert r.totals("a", x) == {0: last[x]}

  def test_flops_as_an_axis(self, results):
    opd, short = (results.curve(arm, "flops") for arm in ("opd", "topd0.1"))
    assert opd.x[0] == 0
    assert np.all(np.diff(opd.x) > 0)
    assert 3.5 < opd.x[-1] / short.x[-1] < 4.5  # 16 + 89 tokens a row against 16 + 13


class TestCrossing:
  def test_between_two_evaluations(self, tmp_path, make):
    make("a", 0, [0.1, 0.5, 0.4, 0.9])
    make("a", 1, [0.1, 0.5, 0.4, 0.45])
    make("a", 2, [0.7, 0.5, 0.4, 0.45])
    r = Results(tmp_path, range(3))
    assert r.seconds_to("a", dict.fromkeys(range(9), 0.6), "step") == {0: pytest.approx(12), 1: INF, 2: 0}

  def test_the_first_of_several(self):
    y = np.array([0.1, 0.5, 0.2, 0.8])
    assert crossing(np.arange(4.0), y, 0.3) == pytest.approx(0.5)
    assert crossing(np.arange(4.0), y, 0.5) == 1
    assert crossing(np.arange(4.0), -y, -0.3) == 0  # it begins there

  def test_own_target_by_seed(self, tmp_path, make):
    for seed in range(2):
      make("a", seed, [0.0, 0.5, 1.0])
    found = Results(tmp_path, range(2)).seconds_to("a", {0: 0.25, 1: 0.75}, "step")
    assert found == pytest.approx({0: 2.5, 1: 7.5})


class TestAnalysis:
  def test_by_seed(self, tmp_path):
    write(tmp_path, "kl", 1, {"edges": [0, 1]})
    assert Results(tmp_path, range(3)).analysis("kl") == {1: {"edges": [0, 1]}}

  def test_missing(self, tmp_path):
    with pytest.raises(Missing, match="analysis kl"):
      Results(tmp_path, range(3)).analysis("kl")


def test_a_damaged_measurement_is_refused(tmp_path):
  file = tmp_path / "analysis" / "position" / "seed0.json"
  file.parent.mkdir(parents=True)
  for text in ("", "{", "[]", '{"a":[' * 50_000):
    file.write_text(text)
    with pytest.raises(InputError, match=r"seed0\.json .*: delete it"):
      Results(tmp_path, [0]).analysis("position")
