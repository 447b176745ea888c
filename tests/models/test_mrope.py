"""Positions of prompts with images."""

import numpy as np
import pytest

from opd_jax.models import mrope

I = 99


def test_the_positions_that_are_written_out():
  """Two words, a start, an image of 3 by 4 features, an end, a word, a start, one of 2 by 2, an end, two words."""
  tokens = np.array([1, 2, 3, *[I] * 12, 4, 5, 3, *[I] * 4, 4, 6, 7])
  found = mrope.positions(tokens, I, [(3, 4), (2, 2)])
  time, height, width = found.T
  assert list(time) == [0, 1, 2, *[3] * 12, 7, 8, 9, *[10] * 4, 12, 13, 14]
  assert list(height[3:15]) == [3] * 4 + [4] * 4 + [5] * 4
  assert list(width[3:15]) == [3, 4, 5, 6] * 3
  assert mrope.following(found) == 15
  assert mrope.following(found) - len(tokens) == -10


def test_text_counts_all_three_alike():
  found = mrope.positions(np.array([1, 2, 3]), I, [])
  np.testing.assert_array_equal(found, [[0] * 3, [1] * 3, [2] * 3])
  assert mrope.following(found) == 3
  assert mrope.following(mrope.positions(np.array([], np.int32), I, [])) == 0


@pytest.mark.parametrize(
  ("tokens", "sizes"),
  [([1, I, I, 2], [(2, 2)]), ([1, I, 2], []), ([1, 2], [(1, 1)]), ([I, I, I], [(1, 2)]), ([I, I], [(1, 4)])],
)
def test_images_that_do_not_fit_are_refused(tokens, sizes):
  with pytest.raises(ValueError, match=r"images|places"):
    mrope.positions(np.array(tokens), I, sizes)


@pytest.mark.parametrize(
  ("sections", "interleaved", "begins", "ends"),
  [
    ((16, 24, 24), False, (0,) * 16, (2,) * 24),
    ((24, 20, 20), True, (0, 1, 2, 0, 1, 2), (0,) * 4),
    ((11, 11, 10), True, (0, 1, 2), (0, 1)),
  ],
)
def test_frequencies_of_the_released_models(sections, interleaved, begins, ends):
  found = mrope.axes(sections, interleaved, sum(sections))
  assert [found.count(axis) for axis in range(3)] == list(sections)
  assert found[: len(begins)] == begins
  assert found[-len(ends) :] == ends


def test_stretches_have_to_be_as_many_as_frequencies():
  with pytest.raises(ValueError, match="has to be 60"):
    mrope.axes((16, 24, 24), False, 60)
