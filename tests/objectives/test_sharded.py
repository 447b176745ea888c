"""The fused objective with the vocabulary on several devices, in a process of its own that has eight of them."""

import pytest

from tests.helpers.eight_devices import json_from_eight_devices


@pytest.fixture(scope="module")
def measured():
  return json_from_eight_devices("tests.objectives.sharded")


@pytest.mark.long
def test_eight_devices_give_what_one_gives(measured):
  """Sum, statistics and gradients of every objective, over nine ids, which neither two nor eight devices divide."""
  assert len(measured["errors"]) > 20
  assert max(measured["errors"].values()) < 2e-5, measured["errors"]


@pytest.mark.long
def test_no_chunk_moves_logits_or_a_heads_gradient(measured):
  """Eight tokens a chunk and 512 ids a device: inside the loop only numbers per token travel, and chosen ids."""
  assert measured["collectives"].keys() == {"chunk=8", "support=both_topk k=4 chunk=8"}
  assert 0 < max(measured["collectives"].values()) <= 8 * 4 * 2 * 2, measured["collectives"]
