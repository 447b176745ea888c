"""The buffer of questions that are not solved yet: who enters, who leaves, and that a checkpoint has all of it."""

import json

import numpy as np
import pytest

from opd_jax.data.replay import Event, Replay


def rng(seed: int = 0) -> np.random.Generator:
  return np.random.default_rng(seed)


def filled(questions, capacity: int = 10) -> Replay:
  """A buffer that these questions have entered, one after the other."""
  replay = Replay(capacity, 0.5, 5)
  for question in questions:
    replay.observe([question], [0.0], [0])
  return replay


def test_questions_below_tau_enter_and_leave_once_they_reach_it():
  replay = Replay(10, 0.5, 5)
  assert replay.observe([7, 3, 5], [0.25, 0.5, 0.0], [1, 2, 0]) == [
    Event("entered", 7, 1, 0),
    Event("entered", 5, 0, 0),
  ]
  assert replay.observe([7], [0.25], [1]) == []
  assert replay.observe([5, 7], [0.25, 0.5], [1, 2]) == [Event("graduated", 7, 1, 2)]
  assert list(replay.entries) == [5]
  assert replay.entries[5].tier == 0, "the tier at entry"
  counts = {"entered": [1, 1], "graduated": [0, 1], "evicted": [0, 0], "visits": [1, 2]}
  assert {name: of_tiers[:2] for name, of_tiers in replay.table().items()} == counts


def test_the_oldest_is_evicted_and_an_admission_of_one_that_is_there_keeps_its_age():
  replay = filled([1, 2, 3], capacity=3)
  replay.observe([1], [0.0], [0])
  assert replay.observe([4], [0.25], [1]) == [Event("entered", 4, 1, 0), Event("evicted", 1, 0, 1)]
  assert list(replay.entries) == [2, 3, 4]
  replay.observe([1], [0.0], [0])
  assert list(replay.entries) == [3, 4, 1], "one that has left comes back as a new one"


def test_more_than_fit_enter_in_one_step():
  replay = Replay(2, 0.5, 5)
  events = replay.observe([1, 2, 3], [0.0] * 3, [0] * 3)
  assert [e.kind for e in events] == ["entered"] * 3 + ["evicted"]
  assert list(replay.entries) == [2, 3]


def test_a_question_twice_in_a_step_counts_by_its_mean():
  replay = Replay(10, 0.5, 5)
  assert replay.observe([1, 1], [0.25, 1.0], [1, 4]) == []
  assert [e.kind for e in replay.observe([1, 1], [0.25, 0.5], [1, 2])] == ["entered"]


def test_draws_are_uniform_and_those_of_a_fixed_key():
  replay = filled(range(8))
  assert replay.draw(3, rng(1)) == replay.draw(3, rng(1))
  assert len(set(replay.draw(8, rng(2)))) == 8
  assert sorted(replay.draw(20, rng(3))) == list(range(8)), "fewer where there are fewer"
  assert set(replay.draw(20, rng(3), without={0, 1})) == set(range(2, 8))
  assert Replay(10, 0.5, 5).draw(3, rng()) == []
  source, counts = rng(4), np.zeros(8)
  for _ in range(2000):
    counts[replay.draw(2, source)] += 1
  assert np.abs(counts / 500 - 1).max() < 0.15


def test_graduation_at_random_lets_as_many_go():
  replay = filled(range(10))
  events = replay.observe(list(range(10)), [1.0] * 3 + [0.0] * 7, [4] * 3 + [0] * 7, rng(1))
  assert [e.kind for e in events] == ["graduated"] * 3
  assert {e.question for e in events} != {0, 1, 2}


def test_a_checkpoint_has_all_of_it_and_what_is_none_is_refused():
  replay = filled([4, 2, 9])
  replay.observe([2, 9], [0.0, 1.0], [0, 4])
  saved = json.loads(json.dumps(replay.state()))
  again = Replay(10, 0.5, 5)
  again.restore(saved)
  assert again.entries == replay.entries
  assert list(again.entries) == [4, 2]
  assert again.table() == replay.table()
  for one in (replay, again):
    one.observe([5], [0.0], [0])
  assert again.state() == replay.state()
  broken = [
    {},
    saved | {"entries": [[1, 0, 0]]},
    saved | {"entries": [[1, 1, 0, 0], [2, 0, 0, 0]]},
    saved | {"entries": [[1, 0, 0, 7]]},
    saved | {"entries": [[1, 0, 0, "0"]]},
    saved | {"admitted": 0},
    saved | {"history": {"entered": [0]}},
    saved | {"history": saved["history"] | {"visits": [0]}},
  ]
  for state in broken:
    with pytest.raises((LookupError, TypeError, ValueError)):
      Replay(10, 0.5, 5).restore(state)
