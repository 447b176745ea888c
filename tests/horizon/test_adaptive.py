"""Rules that choose a horizon, on made-up steps, and the runs that follow them."""

import json
import math

import jax
import numpy as np
import pytest

from opd_jax import config, inputs
from opd_jax.errors import InputError
from opd_jax.horizon import adaptive
from opd_jax.horizon import schedule as horizon
from opd_jax.horizon.adaptive import Agreement, Drift, FullLengthProbe, Saturation, StepObservation

WIDTHS = (10, 20, 40, 80)
EDGES = list(range(0, 81, 10))


def observation(limit: int, kl: list[float] | None = None, cut: float = 1.0, **others) -> StepObservation:
  """A step with 100 tokens in every bin below its limit."""
  bins = [i < limit // 10 for i in range(8)]
  values = kl or [0.1] * 8
  means = {"kl": [v if there else None for v, there in zip(values, bins, strict=True)]}
  if "overlap" in others:
    means["overlap"] = [v if there else None for v, there in zip(others.pop("overlap"), bins, strict=True)]
  return StepObservation(limit, EDGES, [100 * there for there in bins], means, cut, **others)


def follow(rule: adaptive.Rule, steps, at: int = 0) -> list[int]:
  """The widths after each of these steps."""
  memory, out = {}, []
  for k, observed in enumerate(steps):
    at, memory = rule.choose(WIDTHS, at, json.loads(json.dumps(memory)), k, observed)
    out.append(WIDTHS[at])
  return out


def test_a_mean_counts_tokens_and_leaves_out_what_is_not_there():
  observed = StepObservation(40, [0, 10, 20, 40], [1, 3, 0], {"kl": [1.0, 5.0, None]}, 1.0)
  assert observed.mean("kl", 0) == 4.0
  assert observed.mean("kl", 10) == 5.0
  assert observed.mean("kl", 0, 10) == 1.0
  assert math.isnan(observed.mean("kl", 20))


def test_agreement_takes_the_shortest_that_points_the_same_way():
  rule = Agreement(probe_every=1)

  def cosines(*rho):
    return observation(10, agreement=[*rho, 1.0])

  assert follow(rule, [cosines(0.8, 0.9, 0.95)]) == [10]
  assert follow(rule, [cosines(0.70, 0.71, 0.95)]) == [20], "sqrt(1/2) = 0.7071"
  assert follow(rule, [cosines(0.1, 0.2, 0.3)]) == [80]
  assert follow(rule, [observation(10), cosines(0.1, 0.9, 0.9), observation(20)], at=2) == [40, 20, 20], (
    "nothing measured: stay"
  )


def test_agreement_averages_probes_and_drops_those_that_are_old():
  rule = Agreement(probe_every=1, stale=5)
  low, high = (observation(10, agreement=[rho, 0.9, 0.9, 1.0]) for rho in (0.2, 1.0))
  steps = [low, observation(10), observation(10), high, observation(10), high]
  assert follow(rule, steps)[3] == 20, "(0.2 + 1) / 2 is below the threshold"
  assert follow(rule, steps)[5] == 10, "(0.2 + 1 + 1) / 3 is above it"
  assert follow(rule, [low, *[observation(10)] * 5, high])[6] == 10, "after six updates the first no longer counts"


def test_drift_grows_where_the_batch_agrees_to_the_limit_and_reaches_it():
  rule = Drift(patience=2)
  good = [0.9] * 8
  assert follow(rule, [observation(10, overlap=good)] * 2) == [10, 20]
  assert follow(rule, [observation(10, overlap=good, cut=0.05)] * 4) == [10] * 4, "few rows are cut: nothing to gain"
  assert follow(rule, [observation(80, overlap=good)] * 4, at=3) == [80] * 4


def test_drift_shrinks_where_agreement_ends_early():
  rule = Drift(patience=2)
  early = [0.9, 0.9, 0.1, *[0.9] * 5]  # at position 20
  assert follow(rule, [observation(80, overlap=early)] * 2, at=3) == [80, 40]
  assert follow(rule, [observation(40, overlap=early)] * 4, at=2) == [40] * 4, (
    "the shorter width would cut off agreement"
  )
  mixed = [observation(80, overlap=early), observation(80, overlap=[0.9] * 8), observation(80, overlap=early)]
  assert follow(rule, mixed, at=3) == [80] * 3, "one step against breaks the row"


def test_the_gap_is_summed_over_positions():
  rule = Drift(measure="gap", threshold=2.5)
  assert rule.agreed(observation(80)) == 20, "0.1 nats a token: 1, 2, and 3 nats after the third bin"
  assert rule.agreed(observation(80, kl=[0.01] * 8)) == math.inf


def test_a_measure_that_does_not_exist_is_no_other_one():
  observation = adaptive.StepObservation(8, [0, 8], [1], {"overlap": [1.0], "kl": [0.0]}, 1.0)
  with pytest.raises(KeyError, match="cosine"):
    adaptive.Drift(measure="cosine").agreed(observation)


def test_saturation_grows_when_the_divergence_stops_falling():
  rule = Saturation(window=4)
  falling = [observation(10, kl=[v] * 8) for v in (1.0, 0.8, 0.6, 0.5)]
  assert follow(rule, falling)[-1] == 10
  level = [observation(10, kl=[0.5] * 8)] * 4
  assert follow(rule, level) == [10, 10, 10, 20]
  assert follow(rule, [*level, *[observation(20, kl=[0.5] * 8)] * 3])[-1] == 20, "a new width begins a new window"


def test_saturation_shrinks_when_the_tail_teaches_nothing():
  rule = Saturation(window=4)
  idle = [0.5] * 4 + [0.01] * 4  # the second half of 80 teaches nothing
  assert follow(rule, [observation(80, kl=idle)] * 4, at=3)[-1] == 40
  assert follow(rule, [observation(80)] * 4, at=3)[-1] == 80


def test_a_look_goes_to_the_end_now_and_then():
  rule = FullLengthProbe(full_length_every=3)
  assert [rule.is_full_length(k) for k in range(5)] == [True, False, False, True, False]
  level, late = [0.1] * 8, [0.1] * 7 + [2.0]
  assert follow(rule, [observation(80, kl=level)], at=3) == [10]
  assert follow(rule, [observation(80, kl=late)]) == [80], "the last bin has something to teach"
  assert follow(rule, [observation(80, kl=level), observation(10, kl=[9.0] * 8)], at=3) == [10, 10], "only looks decide"
  h = horizon.Adaptive(rule, WIDTHS)
  assert [h.limit(k) for k in range(4)] == [80, 10, 10, 80]


def horizon_of(kind: str, **keys):
  c = config.default().horizon
  with c.unlocked():
    c.update({"kind": kind, "max": 80, "start": 10} | keys)
  return c


def test_widths_double_up_to_the_maximum():
  assert horizon.doubling(80, 10) == (10, 20, 40, 80)
  assert horizon.doubling(100, 30) == (30, 60, 100)
  assert horizon.doubling(7, 7) == (7,)
  h = horizon.from_config(horizon_of("look", widths=(40, 10)))
  assert h.widths == (10, 40, 80)


@pytest.mark.parametrize("kind", adaptive.RULES)
def test_every_rule_can_be_asked_for(kind):
  keys = {"measure": "gap", "threshold": 0.5} if kind == "drift" else {}
  h = horizon.from_config(horizon_of(kind, **keys))
  assert isinstance(h, horizon.Adaptive)
  assert type(h.rule) is adaptive.RULES[kind]
  restored = horizon.from_config(horizon_of(kind, **keys))
  h.observe(0, observation(80, agreement=[0.1, 0.9, 0.9, 1.0]))
  restored.restore(json.loads(json.dumps(h.state())))
  assert json.dumps(restored.state()) == json.dumps(h.state())
  assert restored.limit(1) == h.limit(1)


@pytest.mark.parametrize(
  ("keys", "says"),
  [
    ({"kind": "look", "start": 0}, "horizon.start is 0"),
    ({"kind": "look", "every": 0}, "horizon.every is 0"),
    ({"kind": "look", "widths": (90,)}, r"horizon.widths is \(90,\)"),
    ({"kind": "look", "widths": ("a",)}, r"horizon.widths is \('a',\)"),
    ({"kind": "agreement", "threshold": 1.5}, "horizon.threshold is 1.5"),
    ({"kind": "agreement", "threshold": -1.0}, "horizon.threshold is -1"),
    ({"kind": "agreement", "probes": 0}, "horizon.probes is 0"),
    ({"kind": "drift", "measure": "kl"}, "horizon.measure is 'kl'"),
    ({"kind": "drift", "measure": "gap"}, "horizon.threshold is 0"),
    ({"kind": "saturation", "window": 1}, "horizon.window is 1"),
    ({"kind": "geometric", "factor": 1.0}, "horizon.factor is 1"),
  ],
)
def test_what_cannot_be_meant_is_refused(keys, says):
  with pytest.raises(InputError, match=says):
    horizon.from_config(horizon_of(**keys))


def test_a_geometric_horizon():
  h = horizon.geometric(100, 10, 1.5, every=2, quantum=40)
  assert [h.limit(k) for k in (0, 1, 2, 4, 10, 11, 12, 1000, 10**6)] == [10, 10, 15, 22, 76, 76, 100, 100, 100]
  assert h.widths == (40, 80, 100)


RUN = {
  "horizon.max": 16,
  "log.bins": 16,
  "horizon.start": 4,
  "horizon.every": 2,
  "steps": 6,
  "checkpoint.every": 3,
  "eval.every": 0,
}


@pytest.mark.usefixtures("shared_programs")
@pytest.mark.long
@pytest.mark.parametrize("kind", ["look", "agreement"])
def test_a_run_chooses_and_resumes_as_if_it_had_never_stopped(kind, small, tmp_path):
  from opd_jax.trainer import open_run, train, train_run

  # As thresholds no run can miss: the choice moves at once, and a resumed run that began at the first width would show it.
  never = {"agreement": 1.0, "look": 1e-3}[kind]
  c = small("topd", **RUN, **{"horizon.kind": kind, "horizon.ratio": 0.0, "horizon.threshold": never})
  whole = open_run(c, tmp_path / "whole")
  train_run(whole)

  def die(run, experience, metrics):
    if run.step == 5:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    train(c, tmp_path / "again", on_step=die)
  again = open_run(c, tmp_path / "again")
  assert again.resumed_from == 3
  train_run(again)
  for mine, theirs in zip(jax.tree.leaves(again.state), jax.tree.leaves(whole.state), strict=True):
    np.testing.assert_array_equal(mine, theirs)
  assert json.dumps(again.recipe.horizon.state()) == json.dumps(whole.recipe.horizon.state())
  assert whole.recipe.horizon.state()["at"] == 2, "else nothing was chosen"
  steps = [
    [json.loads(line) for line in (tmp_path / p / "metrics.jsonl").read_text().splitlines()] for p in ("whole", "again")
  ]
  for mine, theirs in zip(*steps, strict=True):
    assert (mine["limit"], mine["tokens"], mine.get("agreement")) == (
      theirs["limit"],
      theirs["tokens"],
      theirs.get("agreement"),
    )
  programs = json.loads((tmp_path / "whole" / "run.json").read_text())["programs"]
  assert {p["width"] for p in programs if p["name"] == "update"} <= {4, 8, 16}
  if kind == "agreement":
    probed = [r for r in steps[0] if "agreement" in r]
    assert [r["step"] for r in probed] == [1, 3, 5]
    assert all(r["agreement"][-1] == pytest.approx(1, abs=1e-5) and len(r["agreement"]) == 3 for r in probed)
    assert probed[0]["tokens"] > probed[0]["step_tokens"], "what a probe says is counted"
    assert all(r["seconds"]["probe"] > 0 for r in probed)
  assert [r["limit"] for r in steps[0]] == {"agreement": [4, 16, 16, 16, 16, 16], "look": [16] * 6}[kind]


def test_a_step_that_was_spoken_ahead_at_another_width_says_nothing():
  h = horizon.Adaptive(Saturation(window=2), WIDTHS)

  def level(limit):
    return observation(limit, kl=[0.5] * 8)

  h.observe(0, level(10))
  h.observe(1, level(10))
  assert h.limit(2) == 20
  h.observe(2, level(10))
  assert h.state()["memory"] == {}
  h.observe(3, level(20))
  assert len(h.state()["memory"]["kl"]) == 1


@pytest.mark.parametrize(
  ("keys", "says"),
  [
    ({"horizon.kind": "look", "horizon.start": 12}, "the width 12 is no edge"),
    ({"horizon.kind": "drift", "horizon.start": 16, "log.overlap_k": 0}, "the overlap is not read"),
    ({"horizon.kind": "agreement", "horizon.start": 16, "weights.kind": "rising"}, "weights.kind is 'rising'"),
    (
      {"horizon.kind": "agreement", "horizon.start": 16, "objective.normaliser": "sequence"},
      "normaliser is 'sequence'",
    ),
    ({"horizon.kind": "saturation", "horizon.start": 16, "horizon.threshold": 0.5}, "does not use"),
    ({"horizon.kind": "drift", "horizon.start": 16, "horizon.every": 5}, "does not use"),
  ],
)
def test_what_a_rule_could_not_see_is_refused(keys, says):
  with pytest.raises(InputError, match=says):
    inputs.load(config.override(config.load("opd"), keys))


@pytest.mark.parametrize("rule", [Saturation(), Drift(), Drift(measure="gap", threshold=0.5), FullLengthProbe()])
def test_a_rule_that_compares_with_a_teacher_stays_where_none_is(rule):
  chosen = horizon.Adaptive(rule, WIDTHS)
  for step in range(20):
    limit = chosen.limit(step)
    chosen.observe(step, StepObservation(limit, EDGES, [100] * 8, {"student_entropy": [0.1] * 8}, 1.0))
  assert chosen.state() == {"at": 0, "memory": {}}
  assert rule.reads
  assert not Agreement().reads
