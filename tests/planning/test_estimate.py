"""Seconds and hours, against arithmetic by hand."""

from typing import Any

import jax
import pytest

from opd_jax import config as configs
from opd_jax import horizon
from opd_jax.benchmarks import roofline
from opd_jax.planning import estimate, record, setup, stages
from opd_jax.planning.chips import Chip
from opd_jax.planning.collectives import Collective
from opd_jax.planning.compiled import Program
from opd_jax.planning.estimate import Estimate
from opd_jax.planning.topology import Target

CHIP = Chip("test", ("cpu",), flops=1e9, capacity=1e9, memory=1e8, link=1e6, host=1e6, network=1e3)


def made(slices: int = 1, **changes) -> setup.Setup:
  base = {"steps": 5, "batch": 4, "rollouts_per_prompt": 2, "horizon.max": 40, "eval.every": 0, "buckets": 2}
  horizons = {"horizon.start": 10, "horizon.growth": 10, "horizon.quantum": 20}
  c = configs.override(configs.load("popd"), base | horizons | changes)
  target = Target("test", tuple(jax.devices()[:1]), CHIP, int(1e9), slices)
  return setup.make(c, target, 8)


def sizes(s: setup.Setup) -> Any:
  return {"vocab": s.subject.vocab, "itemsize": 4}


def program(name: str, *found: Collective) -> Program:
  return Program(name, 1.0, collectives=list(found))


def collective(kind: str, held: int, axes: str = "fsdp", in_token_loop: bool = False) -> Collective:
  return Collective(kind, held, 2, axes, 1, in_token_loop, True, "")


def test_a_step_is_its_rollout_its_update_and_what_is_sent():
  s = made()
  gather, every = collective("all-gather", 1_000_000), collective("all-reduce", 500, in_token_loop=True)
  programs = [program("rollout", gather, every), program("update", gather)]
  counted = Estimate(s, {20: programs, 40: programs})
  step = counted.step(20, 15)
  student, how = s.subject.student, sizes(s)
  works = roofline.rollout(student, 4, 2, 8, 15, **how)
  assert step.rollout == pytest.approx(sum(max(w.flops / 1e9, w.bytes / 1e8) for w in works))
  read = roofline.update(student, s.subject.teachers, 8, 8, 20, **how)
  assert step.update == pytest.approx(max(read.flops / 1e9, read.bytes / 1e8)), "15 tokens are read at a width of 20"
  assert step.sending == pytest.approx(2 * 1.0 + 14 * 500 / 1e6), (
    "two gathers of a second, and 14 tokens after the first"
  )
  assert counted.step(20, 10).update < step.update, "ten tokens fit the narrower bucket"


def test_what_is_sent_between_compiled_widths():
  s = made()
  at = lambda held: [program("rollout"), program("update", collective("all-gather", held))]
  counted = Estimate(s, {20: at(1_000_000), 40: at(3_000_000)})
  assert [counted.sent("update", w).once for w in (20, 30, 40, 50)] == pytest.approx([1, 2, 3, 4])
  assert counted.sent("update", 5).once == 0, "and never below nothing"
  assert Estimate(s, {20: at(1_000_000)}).sent("update", 40).once == 1


def test_slices_send_over_the_network_what_spans_data():
  found = [collective("all-reduce", 1000, "data"), collective("all-gather", 1000, "fsdp")]
  assert estimate.sending(made(), found).once == pytest.approx(0.002)
  assert estimate.sending(made(slices=2), found).once == pytest.approx(1 + 0.001)


def test_a_run_sums_every_step_at_its_exact_limit():
  """Limits 10, 20, 30, 40, 40."""
  s = made(**{"eval.every": 2, "eval.prompts": 4, "eval.batch": 2})
  counted = Estimate(s, {20: [], 40: []})
  assert isinstance(s.schedule, horizon.Schedule)
  run = counted.run(s.schedule)
  steps = [counted.step(*one) for one in ((20, 10), (20, 20), (40, 30), (40, 40), (40, 40))]
  assert run["training_seconds"] == pytest.approx(sum(step.seconds for step in steps))
  assert run["tokens"] == 8 * 140
  assert run["training_chip_hours"] == pytest.approx(run["training_seconds"] / 3600)
  assert run["evaluations"] == 4, "before the first step, after 2, 4 and 5"
  works = roofline.rollout(s.subject.student, 2, 1, 8, 40, **sizes(s))
  once = 2 * sum(max(w.flops / 1e9, w.bytes / 1e8) for w in works)
  assert run["evaluation_chip_hours"] == pytest.approx(4 * once / 3600)


def test_an_evaluation_as_wide_as_a_stage_hides_none_of_its_programs():
  s = made(**{"eval.every": 1, "eval.prompts": 4})
  assert isinstance(s.schedule, horizon.Schedule)
  assert s.schedule.widths[-1] == s.c.horizon.max == 40
  gather = collective("all-gather", 1_000_000)
  programs = {40: [program("update", gather), program("rollout", gather)]}
  found = record.target(s, s.stages[1:], programs, program("evaluate"), stages.resident(s), {"popd": s.schedule})
  assert [p["name"] for p in found["stages"][0]["programs"]] == ["rollout", "update", "evaluate"]
  assert found["stages"][0]["estimate"]["sending"] == pytest.approx(2.0)


def test_methods_take_their_own_horizons_at_this_maximum():
  c = made().c
  assert setup.of_method(c, "opd", "") == horizon.full(40)
  assert setup.of_method(c, "topd", "") == horizon.truncated(40, 4)
  assert setup.of_method(c, "popd", "") == horizon.from_config(c.horizon)
  paper = configs.load("topd:paper")
  assert setup.of_method(paper, "popd", "paper").limit(0) == 1152
  assert setup.of_method(paper, "topd", "paper") == horizon.truncated(15360, 1536)


def test_chosen_stages():
  stages = made().stages
  assert [s.width for s in setup.chosen(stages, "all")] == [20, 40]
  assert [s.width for s in setup.chosen(stages, "last")] == [40]
  assert [s.width for s in setup.chosen(stages, "last,0")] == [20, 40]
