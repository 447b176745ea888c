"""Means by position whose numbers can be checked on paper."""

import json
import math

import numpy as np
import pytest

from opd_jax.analysis.position import by_position
from tests.helpers.measurements import by_hand

LENGTHS, H, EDGES = [6, 6, 4, 2], 6, [0, 2, 4, 6]


def kl_by_row():
  """A row's divergence is the same everywhere, and larger the longer it is."""
  return np.tile([[8.0], [6.0], [2.0], [1.0]], (1, H))


def test_late_bins_hold_long_rows_only_and_survivors_do_not_change():
  found = by_position(by_hand(LENGTHS, H, kl=kl_by_row()), EDGES, enough=0.5)
  assert found["edges"] == EDGES
  assert found["all"]["rows"] == 4
  assert found["all"]["any"]["count"] == [8, 6, 4]
  assert found["all"]["any"]["kl"] == pytest.approx([17 / 4, 16 / 3, 7])
  assert (found["survivors"]["tokens"], found["survivors"]["rows"]) == (6, 2)
  assert found["survivors"]["any"]["count"] == [4, 4, 4]
  assert found["survivors"]["any"]["kl"] == pytest.approx([7, 7, 7])


def test_survivors_end_at_the_last_edge_that_enough_rows_reach():
  found = by_position(by_hand(LENGTHS, H, kl=kl_by_row()), EDGES, enough=0.6)["survivors"]
  assert (found["tokens"], found["rows"]) == (4, 3)
  assert found["any"]["count"] == [6, 6, 0]
  assert found["any"]["kl"] == pytest.approx([16 / 3, 16 / 3, None])


def test_the_path_splits_the_tokens():
  off = np.array([[0, 0, 0, 1, 1, 1], [0] * 6, [0, 1, 1, 1, 0, 0], [0] * 6], bool)
  kl = np.where(off, 10.0, 1.0)
  found = by_position(by_hand(LENGTHS, H, kl=kl, off_path=off), EDGES)["all"]
  assert found["on_path"]["count"] == [7, 3, 2]
  assert found["off_path"]["count"] == [1, 3, 2]
  assert found["on_path"]["kl"] == pytest.approx([1, 1, 1])
  assert found["off_path"]["kl"] == pytest.approx([10, 10, 10])
  assert found["any"]["off_path"] == pytest.approx([1 / 8, 3 / 6, 2 / 4])


def test_reliability_is_of_known_tokens_and_decisive_ones_stand_apart():
  p = np.array([[1.0, 0.2, 0.9, 0.6, 0.5, 0.4]])
  known = np.array([[1, 1, 1, 1, 1, 0]], bool)
  decisive = np.array([[0, 1, 0, 1, 0, 0]], bool)
  right = np.array([[1, 0, 1, 1, 0, 0]], bool)
  log = np.where(known, np.log(p), math.nan)
  measured = by_hand(
    [6], H, teacher_right=log, student_right=log + np.log(0.5), known=known, decisive=decisive, right=right
  )
  found = by_position(measured, [0, 3, 6])["all"]["any"]
  assert found["teacher_right"] == pytest.approx([2.1 / 3, 1.1 / 2])
  assert found["student_right"] == pytest.approx([1.05 / 3, 0.55 / 2])
  assert found["teacher_majority"] == pytest.approx([2 / 3, 1 / 2]), "one half is no majority"
  assert found["right"] == pytest.approx([2 / 3, 1 / 2])
  assert found["known"] == pytest.approx([1, 2 / 3])
  assert found["decisive"]["count"] == [1, 1]
  assert found["decisive"]["teacher_right"] == pytest.approx([0.2, 0.6])


def test_tokens_outside_the_edges_or_the_rows_do_not_count():
  kl = np.where(np.arange(H) < np.array(LENGTHS)[:, None], 1.0, 1e9)
  found = by_position(by_hand(LENGTHS, H, kl=kl), [1, 3, 5])["all"]["any"]
  assert found["count"] == [7, 5]
  assert found["kl"] == [1, 1]


@pytest.mark.parametrize("edges", [[0], [0, 0, 4], [4, 2], [-1, 4]])
def test_edges_have_to_rise(edges):
  with pytest.raises(ValueError, match="rise"):
    by_position(by_hand(LENGTHS, H), edges)


def test_measurements_become_plain_json(measured):
  found = by_position(measured, list(range(0, 57, 8)))
  assert json.loads(json.dumps(found, allow_nan=False)) == found
  assert sum(found["all"]["any"]["count"]) == measured.mask.sum()
  assert sum(found["all"]["any"]["decisive"]["count"]) == measured.decisive.sum()
