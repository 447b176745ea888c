"""Several sources in proportion: exactly, evenly, each in epochs of its own, and from any place on."""

import collections
import json

import numpy as np
import pytest

from opd_jax.data.order import PERIOD, Epochs, Mixture, proportions
from opd_jax.data.pipeline import Prompts

COUNTS, WEIGHTS = (5, 8, 3), (0.5, 0.3, 0.2)
SOURCE = np.repeat([0, 1, 2], COUNTS)


def take(sequence, n, first=0):
  return [sequence[i] for i in range(first, first + n)]


@pytest.mark.parametrize(
  ("weights", "whole"),
  [
    ((0.7, 0.3), [7, 3]),
    ((7, 3), [7, 3]),
    ((1.0, 1.0, 1.0), [1, 1, 1]),
    ((0.25, 0.75), [1, 3]),
    ((1e-5, 1), [1, PERIOD]),
    ((1e6,), [1]),
    ((0.1, 0.2, 0.3), [1, 2, 3]),
  ],
)
def test_weights_are_the_whole_numbers_that_are_written(weights, whole):
  assert proportions(weights) == whole


def test_weights_of_many_digits_are_rounded_to_a_part_of_the_period():
  found = np.array(proportions((1 / 3, 2 / 3 + 1e-9)))
  np.testing.assert_allclose(found / found.sum(), [1 / 3, 2 / 3], atol=1 / PERIOD)


@pytest.mark.parametrize("weights", [WEIGHTS, (1, 1, 1), (0.9, 0.05, 0.05), (1, 97, 2)])
def test_proportions_are_exact_over_every_period_and_even_within(weights):
  turns = np.array(proportions(weights))
  period = int(turns.sum())
  seen = SOURCE[take(Mixture(COUNTS, weights, 0, True), 4 * period)]
  for first in range(0, 4 * period, period):
    assert np.bincount(seen[first : first + period], minlength=3).tolist() == turns.tolist()
  drawn = np.cumsum(seen[:, None] == np.arange(3), axis=0)
  due = np.arange(1, 4 * period + 1)[:, None] * turns / period
  assert np.abs(drawn - due).max() <= 1.5, "half a turn for each source"


def test_each_source_has_epochs_of_its_own():
  seen = take(Mixture(COUNTS, WEIGHTS, 0, True), 400)
  for source, n in enumerate(COUNTS):
    own = [i for i in seen if SOURCE[i] == source]
    assert len(own) >= 2 * n
    for first in range(0, len(own) - n + 1, n):
      assert sorted(own[first : first + n]) == np.flatnonzero(source == SOURCE).tolist()
  assert take(Mixture(COUNTS, WEIGHTS, 0, True), 400) == seen
  assert take(Mixture(COUNTS, WEIGHTS, 1, True), 400) != seen


def test_sources_of_one_size_are_shuffled_apart():
  seen = take(Mixture((50, 50), (1, 1), 0, True), 100)
  first, second = ([i % 50 for i in seen if i // 50 == source] for source in (0, 1))
  assert sorted(first) == sorted(second)
  assert first != second


def test_an_order_is_known_from_any_place_on():
  mixture = Mixture(COUNTS, WEIGHTS, 3, True)
  assert take(Mixture(COUNTS, WEIGHTS, 3, True), 20, first=10**9) == take(mixture, 20, first=10**9)
  seen = take(mixture, 200)
  assert take(mixture, 50, first=100) == seen[100:150]


def test_one_source_of_a_mixture_is_read_as_it_would_be_alone():
  assert take(Mixture((10,), (0.3,), 5, True), 50) == take(Epochs(10, 5, True), 50)


IDS = [[i + 1] for i in range(16)]


def prompts(rows=None, batch=10, mixture=tuple(zip(COUNTS, WEIGHTS, strict=True)), **how):
  return Prompts(IDS, batch, prompt_lens=(4,), pad_id=0, seed=0, rows=rows, mixture=mixture, **how)


def index(stream, batches):
  return [int(i) for _ in range(batches) for i in (next(stream), stream.index)[1]]


def test_batches_have_the_proportions_and_resume():
  stream = prompts()
  seen = index(stream, 4)
  for first in range(0, 40, 10):
    assert collections.Counter(SOURCE[seen[first : first + 10]].tolist()) == {0: 5, 1: 3, 2: 2}
  state = json.loads(json.dumps(stream.state()))
  resumed = prompts()
  resumed.restore(state)
  assert index(resumed, 5) == index(stream, 5)
  assert stream.indices_of_steps(0, 4) == sorted(set(seen))


def test_processes_share_the_batches():
  whole = prompts()
  parts = [prompts(rows=np.arange(5) + 5 * p) for p in (0, 1)]
  for _ in range(7):
    for stream in (whole, *parts):
      next(stream)
    assert [*parts[0].index, *parts[1].index] == list(whole.index)


@pytest.mark.parametrize("other", [((5, 0.6), (8, 0.2), (3, 0.2)), ((8, 0.5), (5, 0.3), (3, 0.2)), ()])
def test_a_state_of_another_mixture_is_refused(other):
  stream = prompts(mixture=other)
  next(stream)
  with pytest.raises(ValueError, match=r"mixture is .*, and was|no state of prompts"):
    prompts().restore(json.loads(json.dumps(stream.state())))


def test_without_a_mixture_nothing_is_said_of_one():
  assert "mixture" not in prompts(mixture=()).fingerprint
