"""Seconds and hours, against arithmetic by hand."""

from typing import Any

import jax
import pytest

from opd_jax import config as configs
from opd_jax.horizon import schedule as horizon
from opd_jax.models import roofline
from opd_jax.planning import estimate, record, setup, stages
from opd_jax.planning.collectives import Collective
from opd_jax.planning.compiled import Program
from opd_jax.planning.estimate import RunEstimate
from opd_jax.planning.topology import Target
from tests.helpers.chip import CHIP


def make_setup(slices: int = 1, **changes) -> setup.Setup:
  base = {"steps": 5, "batch": 4, "rollouts_per_prompt": 2, "horizon.max": 40, "eval.every": 0, "buckets": 2}
  horizons = {"horizon.start": 10, "horizon.growth": 10, "horizon.quantum": 20}
  c = configs.override(configs.load("popd"), base | horizons | changes)
  target = Target("test", tuple(jax.devices()[:1]), CHIP, int(1e9), slices)
  return setup.make(c, target, 8)


def sizes(s: setup.Setup) -> Any:
  return {"vocab": s.vocab, "itemsize": 4}


def program(name: str, *collectives: Collective) -> Program:
  return Program(name, 1.0, collectives=list(collectives))


def collective(kind: str, size: int, axes: str = "fsdp", in_token_loop: bool = False) -> Collective:
  return Collective(kind, size, 2, axes, 1, in_token_loop, True, "")


def test_a_step_is_its_rollout_its_update_and_what_is_sent():
  s = make_setup()
  gather, every = collective("all-gather", 1_000_000), collective("all-reduce", 500, in_token_loop=True)
  programs = [program("rollout", gather, every), program("update", gather)]
  estimated = RunEstimate(s, {20: programs, 40: programs})
  step = estimated.step(20, 15)
  student = s.student
  costs = roofline.rollout(student, 4, 2, 8, 15, **sizes(s))
  assert step.rollout == pytest.approx(sum(max(cost.flops / 1e9, cost.bytes / 1e8) for cost in costs))
  update = roofline.update(student, s.teachers, 4, 2, 8, 20, **sizes(s))
  assert step.update == pytest.approx(max(update.flops / 1e9, update.bytes / 1e8)), (
    "15 tokens are read at a width of 20"
  )
  assert step.sending == pytest.approx(2 * 1.0 + 14 * 500 / 1e6), (
    "two gathers of a second, and 14 tokens after the first"
  )
  assert estimated.step(20, 10).update < step.update, "ten tokens fit the narrower bucket"


def test_what_is_sent_between_compiled_widths():
  s = make_setup()

  def programs(size: int) -> list[Program]:
    return [program("rollout"), program("update", collective("all-gather", size))]

  estimated = RunEstimate(s, {20: programs(1_000_000), 40: programs(3_000_000)})
  assert [estimated.collectives("update", w).per_call for w in (20, 30, 40, 50)] == pytest.approx([1, 2, 3, 4])
  assert estimated.collectives("update", 5).per_call == 0, "and never below nothing"
  assert RunEstimate(s, {20: programs(1_000_000)}).collectives("update", 40).per_call == 1


def test_slices_send_over_the_network_what_spans_data():
  found = [collective("all-reduce", 1000, "data"), collective("all-gather", 1000, "fsdp")]
  assert estimate.collective_seconds(make_setup(), found).per_call == pytest.approx(0.002)
  assert estimate.collective_seconds(make_setup(slices=2), found).per_call == pytest.approx(1 + 0.001)


def test_a_run_sums_every_step_at_its_exact_limit():
  """Limits 10, 20, 30, 40, 40."""
  s = make_setup(**{"eval.every": 2, "eval.prompts": 4, "eval.batch": 2})
  estimated = RunEstimate(s, {20: [], 40: []})
  assert isinstance(s.schedule, horizon.Schedule)
  run = estimated.run(s.schedule)
  steps = [estimated.step(*widths) for widths in ((20, 10), (20, 20), (40, 30), (40, 40), (40, 40))]
  assert run["training_seconds"] == pytest.approx(sum(step.seconds for step in steps))
  assert run["tokens"] == 8 * 140
  assert run["training_chip_hours"] == pytest.approx(run["training_seconds"] / 3600)
  assert run["evaluations"] == 4, "before the first step, after 2, 4 and 5"
  costs = roofline.rollout(s.student, 2, 1, 8, 40, **sizes(s))
  once = 2 * sum(max(cost.flops / 1e9, cost.bytes / 1e8) for cost in costs)
  assert run["evaluation_chip_hours"] == pytest.approx(4 * once / 3600)


def test_a_canvas_is_generated_whole_however_many_denoising_steps_are_learned_from():
  c = configs.load("d_opsd")
  c = configs.override(c, {"horizon.kind": "truncated", "horizon.ratio": 0.25})
  s = setup.make(c, Target("test", tuple(jax.devices()[:1]), CHIP, int(1e9), 1), 17)
  assert s.rows == c.batch * c.rollouts_per_prompt
  assert s.generated(2) == s.generated(8) == s.rows * c.denoising.length
  assert make_setup().generated(7) == 7 * make_setup().rows


def test_an_evaluation_as_wide_as_a_stage_hides_none_of_its_programs():
  s = make_setup(**{"eval.every": 1, "eval.prompts": 4})
  assert isinstance(s.schedule, horizon.Schedule)
  assert s.schedule.widths[-1] == s.c.horizon.max == 40
  gather = collective("all-gather", 1_000_000)
  programs = {40: [program("update", gather), program("rollout", gather)]}
  found = record.target(s, s.stages[1:], programs, program("evaluate"), stages.resident(s), {"popd": s.schedule})
  assert [p["name"] for p in found["stages"][0]["programs"]] == ["rollout", "update", "evaluate"]
  assert found["stages"][0]["estimate"]["sending"] == pytest.approx(2.0)


def test_methods_take_their_own_horizons_at_this_maximum():
  c = make_setup().c
  assert setup.method_schedule(c, "opd", "") == horizon.full(40)
  assert setup.method_schedule(c, "topd", "") == horizon.truncated(40, 4)
  assert setup.method_schedule(c, "popd", "") == horizon.from_config(c.horizon)
  paper = configs.load("topd:paper")
  assert setup.method_schedule(paper, "popd", "paper").limit(0) == 1152
  assert setup.method_schedule(paper, "topd", "paper") == horizon.truncated(15360, 1536)


def test_chosen_stages():
  stages = make_setup().stages
  assert [s.width for s in setup.select_stages(stages, "all")] == [20, 40]
  assert [s.width for s in setup.select_stages(stages, "last")] == [40]
  assert [s.width for s in setup.select_stages(stages, "last,0")] == [20, 40]
