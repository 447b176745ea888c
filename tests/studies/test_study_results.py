"""Runs and analyses found, scores, curves and costs on paper, FLOPs against the roofline's counting."""

import json
import math
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from opd_jax.benchmarks import roofline
from opd_jax.errors import InputError
from opd_jax.models import hf
from opd_jax.reports.runs import Run
from opd_jax.studies import flops
from opd_jax.studies.results import Missing, Results, crossing
from opd_jax.tasks import chain
from tests.studies.synthetic import workdir, write

INF = math.inf


@pytest.fixture
def make(tmp_path):
  """make(arm, seed, [accuracy at steps 0, 5, 10, ...])"""

  def made(arm: str, seed: int, values: list[float], **how: Any) -> pathlib.Path:
    at = lambda step: values[step // 5]
    steps = 5 * (len(values) - 1)
    how = {"steps": steps} | how
    return workdir(tmp_path / "runs" / arm / f"seed{seed}", seed, at, noise=0, **how)

  return made


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


P, H, BATCH, ROLLOUTS = 16, 24, 4, 2


def run(*records, **config) -> Run:
  """Rows of H tokens each."""
  count = [8 * BATCH * ROLLOUTS] * 3 + [0]
  tokens = sum(count)
  base = {"step": 1, "tokens": tokens, "limit": H, "by_position": {"edges": [0, 8, 16, 24, 32], "count": count}}
  c = {"student": "builtin:student", "teacher": "builtin:teacher", "batch": BATCH, "rollouts_per_prompt": ROLLOUTS}
  info = {"programs": [{"name": "rollout", "prompt": P}, {"name": "evaluate", "prompt": 99}]}
  train = [base | {"tokens": tokens * r.get("step", 1)} | r for r in records or ({},)]
  return Run(pathlib.Path("w"), c | {"updates_per_rollout": 1} | config, info, train, [], [])


def models() -> list[Any]:
  """Student and teacher."""
  return [hf.read_config(hf.resolve(f"builtin:{name}")) for name in ("student", "teacher")]


def last(made: Run) -> float:
  return flops.cumulative(made)[1][-1]


class TestFlops:
  def test_of_full_rows_are_the_rooflines(self):
    student, teacher = models()
    how: Any = {"vocab": min(student.vocab, teacher.vocab), "itemsize": 4}
    said = sum(w.flops for w in roofline.rollout(student, BATCH, ROLLOUTS, P, H, **how))
    rows = BATCH * ROLLOUTS
    assert last(run()) == pytest.approx(said + roofline.update(student, (teacher,), rows, P, H, **how).flops)
    both = roofline.update(student, (teacher, student), rows, P, H, **how).flops
    assert last(run(**{"mixture.initial": 0.1, "updates_per_rollout": 2})) == pytest.approx(said + 2 * both)

  def test_are_of_the_realised_tokens(self):
    half = [4 * BATCH * ROLLOUTS] * 3 + [0]
    short = run({"by_position": {"edges": [0, 8, 16, 24, 32], "count": half}})
    assert 0.5 < last(short) / last(run()) < 0.75  # prompts are read all the same

  def test_steps_that_were_not_logged(self):
    every = run({"step": 1}, {"step": 2}, {"step": 3})
    steps, totals = flops.cumulative(every)
    assert steps == [0, 1, 2, 3]
    assert totals == pytest.approx([0, totals[1], 2 * totals[1], 3 * totals[1]])
    assert flops.cumulative(run({"step": 3}))[1][-1] == pytest.approx(totals[3])

  def test_of_a_probe_are_a_rollout_and_readings_more(self):
    extra = 2 * ROLLOUTS * H  # two prompts
    tokens = BATCH * ROLLOUTS * H + extra
    probed = run({"tokens": tokens, "agreement": [0.5, 1.0]}, **{"horizon.probes": 2})
    student, teacher = models()
    how: Any = {"vocab": min(student.vocab, teacher.vocab), "itemsize": 4}
    said = sum(w.flops for w in roofline.rollout(student, 2, ROLLOUTS, P, H, **how))
    taught, alone = (roofline.update(student, who, 2 * ROLLOUTS, P, H, **how).flops for who in ((teacher,), ()))
    readings = alone / 3 + (taught - alone)  # forward, of the student and of the teacher
    expected = said + readings + roofline.head(student, extra, how["vocab"])
    assert last(probed) - last(run()) == pytest.approx(expected)
    assert last(run({"tokens": tokens})) == last(run())

  def test_of_who_speaks(self):
    student, teacher = models()
    how: Any = {"vocab": min(student.vocab, teacher.vocab), "itemsize": 4}
    said = {m: sum(w.flops for w in roofline.rollout(m, BATCH, ROLLOUTS, P, H, **how)) for m in (student, teacher)}
    assert last(run(**{"rollout.by": "teacher"})) - last(run()) == pytest.approx(said[teacher] - said[student])
    assert last(run()) - last(run(**{"rollout.by": "data"})) == pytest.approx(said[student])

  def test_of_an_adapter_lack_a_product_of_each_weight(self):
    student, _ = models()
    rows = BATCH * ROLLOUTS
    saved = 2 * roofline.layer_weights(student) * rows * (P + H - 1) + 2 * len(chain.SYMBOLS) * student.width * rows * H
    assert last(run()) - last(run(**{"lora.rank": 4})) == pytest.approx(saved)

  def test_prompt_width_is_needed(self):
    made = run()
    made.info["programs"].clear()
    with pytest.raises(InputError, match="prompt width"):
      flops.cumulative(made)

  def test_as_an_axis(self, results):
    opd, short = (results.curve(arm, "flops") for arm in ("opd", "topd0.1"))
    assert opd.x[0] == 0
    assert np.all(np.diff(opd.x) > 0)
    assert 3.5 < opd.x[-1] / short.x[-1] < 4.5  # 16 + 89 tokens a row against 16 + 13


def test_reading_needs_neither_jax_nor_transformers():
  code = "import sys, opd_jax.studies.page; print([m for m in ('jax', 'transformers') if m in sys.modules])"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == "[]"
