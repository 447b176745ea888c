"""Places for prompts of two kinds: how many, what stands in them, and that mini-batches never split a group."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.training.places import Places, joined
from opd_jax.types import Batch, Rollout
from tests.helpers.distillation import STEP

N, H = 2, 3


def answered(first: int, places: int, width: int) -> tuple[Batch, Rollout]:
  """Prompts and responses whose tokens name their group."""
  groups = first + np.arange(places)
  rows = np.repeat(groups, N)[:, None] + np.zeros((1, H), int)
  prompt, mask = np.repeat(groups[:, None], width, 1), np.ones((places, width), bool)
  return Batch(prompt, mask), Rollout(rows, rows > 0, -rows.astype(np.float32), rows[:, 0] % 2 == 0)  # pyright: ignore[reportArgumentType]: numpy


@pytest.mark.parametrize(
  ("plain", "asked", "shards", "mini_batches", "places"),
  [
    (480, 96, 1, 4, (480, 96, 576)),
    (10, 2, 8, 2, (16, 8, 16)),
    (5, 1, 1, 4, (5, 1, 8)),
    (4, 0, 1, 1, (4, 0, 4)),
  ],
)
def test_places_are_what_mesh_and_mini_batches_divide(plain, asked, shards, mini_batches, places):
  assert Places.of(plain, asked, shards, mini_batches) == Places(*places)


def test_groups_stand_before_empty_places_each_with_its_own_prompt_and_responses():
  places = Places.of(3, 2, 1, 4)
  order, live = places.order(2, 1)
  assert (order.tolist(), live.tolist()) == ([0, 1, 3, 0, 0, 0, 0, 0], [True] * 3 + [False] * 5)
  batch, rollout = joined(
    [answered(10, 3, 2), answered(20, 2, 4)], jnp.asarray(order), jnp.asarray(live), width=5, pad_id=7
  )
  assert batch.prompt[:3].tolist() == [[7, 7, 7, 10, 10], [7, 7, 7, 11, 11], [7, 20, 20, 20, 20]]
  assert batch.prompt_mask.sum(axis=1)[:3].tolist() == [2, 2, 4]
  assert rollout.response[: 3 * N, 0].tolist() == [10, 10, 11, 11, 20, 20]
  assert rollout.behavior_logprob[: 3 * N, 0].tolist() == [-10, -10, -11, -11, -20, -20]
  assert rollout.mask.sum() == 3 * N * H, "nothing of an empty place counts"


@pytest.mark.long
def test_mini_batches_have_whole_groups_and_as_many_of_each_kind():
  import dataclasses

  places = Places.of(4, 2, 1, 2)
  order, live = places.order(4, 2)
  batch = joined([answered(10, 4, 2), answered(20, 2, 4)], jnp.asarray(order), jnp.asarray(live), width=4, pad_id=0)
  step = dataclasses.replace(STEP, mini_batches=2)
  parts = [step._mini_batch((*batch, None), jnp.int32(part)) for part in range(2)]
  groups = [np.asarray(part[0].prompt[:, -1]).tolist() for part in parts]
  assert groups == [[10, 12, 20], [11, 13, 21]]
  for part, of_part in zip(parts, groups, strict=True):
    assert np.asarray(part[1].response[:, 0]).tolist() == [group for group in of_part for _ in range(N)]
  assert jax.tree.all(jax.tree.map(lambda a: len(a) > 0, parts))
