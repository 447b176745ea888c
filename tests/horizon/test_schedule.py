"""Schedules: the paper's staircase, stages, and refused values."""

import pytest

from opd_jax import config
from opd_jax.errors import InputError
from opd_jax.horizon import schedule as horizon


@pytest.mark.parametrize(
  ("start", "growth", "every", "longest", "expected"),
  [
    (1024, 9, 1, 15360, {0: 1024, 1: 1033, 100: 1924, 557: 6037, 1592: 15352, 1593: 15360, 5000: 15360}),
    (5, 1, 2, 50, {0: 5, 1: 5, 2: 6, 3: 6, 89: 49, 90: 50}),
  ],
)
def test_staircase_of_the_paper(start, growth, every, longest, expected):
  s = horizon.progressive(longest, start, growth, every, quantum=512)
  assert {k: s.limit(k) for k in expected} == expected


def test_limits_never_fall_and_fit_their_width():
  s = horizon.progressive(240, 24, 9, 1, quantum=64)
  limits = [s.limit(k) for k in range(60)]
  assert limits == sorted(limits)
  assert all(s.limit(k) <= s.width(k) for k in range(60))
  assert s.widths == (64, 128, 192, 240)


def test_stages_cover_every_step_once():
  s = horizon.progressive(240, 24, 9, 1, quantum=64)
  stages = s.stages(60)
  assert [k for stage in stages for k in range(stage.start, stage.end)] == list(range(60))
  assert [stage.width for stage in stages] == [64, 128, 192, 240]
  assert all(s.width(k) == stage.width for stage in stages for k in range(stage.start, stage.end))


def test_a_jump_over_a_width_leaves_no_empty_stage():
  stages = horizon.progressive(256, 10, 100, 1, quantum=32).stages(4)
  assert [(s.width, s.start, s.end) for s in stages] == [(32, 0, 1), (128, 1, 2), (224, 2, 3), (256, 3, 4)]


def test_quantum_above_the_maximum_is_one_width():
  assert horizon.progressive(100, 10, 1, 1, quantum=1000).widths == (100,)


def test_full_and_truncated_have_one_stage():
  for s, width in ((horizon.full(100), 100), (horizon.truncated(100, 10), 10)):
    assert [(stage.width, stage.start, stage.end) for stage in s.stages(7)] == [(width, 0, 7)]
    assert s.limit(0) == s.limit(6) == width


def test_description_counts_the_most_tokens():
  described = horizon.describe(horizon.progressive(12, 4, 4, 1, quantum=8), steps=4, rows=10)
  assert [(d["width"], d["first_limit"], d["last_limit"], d["tokens"]) for d in described] == [
    (8, 4, 8, 120),
    (12, 12, 12, 240),
  ]


def changed(**keys):
  return config.override(config.default(), {f"horizon.{k}": v for k, v in keys.items()}).horizon


def test_ratio_is_of_the_maximum():
  assert horizon.from_config(changed(kind="truncated", ratio=0.1, max=256)).limit(0) == 26


@pytest.mark.parametrize(
  ("keys", "says"),
  [
    ({"max": 0}, "horizon.max is 0"),
    ({"max": -5}, "horizon.max is -5"),
    ({"kind": "truncated"}, "neither"),
    ({"kind": "truncated", "ratio": 0.5, "length": 5}, "both"),
    ({"kind": "truncated", "length": 999}, "between 1 and"),
    ({"kind": "truncated", "length": -1}, "horizon.length is -1"),
    ({"kind": "truncated", "ratio": 1.5}, "horizon.ratio is 1.5"),
    ({"kind": "truncated", "ratio": -0.5}, "horizon.ratio is -0.5"),
    ({"kind": "progressive", "growth": 1}, "horizon.start is 0"),
    ({"kind": "progressive", "start": 999}, "horizon.start is 999"),
    ({"kind": "progressive", "start": 5, "growth": -1}, "horizon.growth is -1"),
    ({"kind": "progressive", "start": 5, "every": 0}, "horizon.every is 0"),
    ({"kind": "progressive", "start": 5, "quantum": 0}, "horizon.quantum is 0"),
    ({"kind": "adaptve"}, "'full', 'truncated', 'progressive'"),
  ],
)
def test_impossible_horizons_are_refused(keys, says):
  with pytest.raises(InputError, match=says):
    horizon.from_config(changed(**keys))
