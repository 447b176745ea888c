"""Segments: the tokens of the plain loop, however it is cut, and no copies of large arrays inside a token loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.rollout import sample
from opd_jax.rollout.segments import PLAIN, Segments
from tests.conftest import STUDENT
from tests.helpers.rollout_hlo import compiled, writes_in_loops

H = 12
SAMPLING = sample.Sampling(stop_ids=(1, 7, 9), pad_id=0, vocab=37)


@functools.cache
def program(segments: Segments, n: int = 4):
  settings = {"cfg": STUDENT, "sampling": SAMPLING, "response_len": H, "n": n, "segments": segments}
  return jax.jit(functools.partial(sample.rollout, **settings))


@pytest.mark.long
@pytest.mark.parametrize(
  "segments",
  [
    Segments(5),
    Segments(1, max_segments=3),
    pytest.param(Segments(3, shrink=(4, 8, 16), shards=2), marks=pytest.mark.long),
  ],
  ids=["uneven", "few", "shrinking by shard"],
)
def test_tokens_are_those_of_the_plain_loop(segments, student, prompts):
  """Bit for bit, at limits inside, at and between the ends of segments, with rows that end at different times."""
  for key, limit in ((0, H), (1, H), (2, 4), (3, 5), (4, 1), (5, 9)):
    cut, plain = (program(s)(student, prompts, jax.random.key(key), limit) for s in (segments, PLAIN))
    np.testing.assert_array_equal(cut.response, plain.response)
    np.testing.assert_array_equal(cut.mask, plain.mask)
    np.testing.assert_array_equal(cut.ended, plain.ended)
    np.testing.assert_allclose(cut.behavior_logprob, plain.behavior_logprob, atol=1e-5)


def test_rows_end_at_different_times(student, prompts):
  """The test above relies on it: after each segment another number of rows is live."""
  mask = np.asarray(program(PLAIN)(student, prompts, jax.random.key(0), H).mask)
  assert len({mask[:, t].sum() for t in (3, 6, 9)}) == 3
  assert mask[:, 6].sum() <= 8


def test_ends():
  assert Segments(64, 8).ends(128) == [64, 128]
  assert Segments(64, 8).ends(130) == [64, 128, 130]
  assert Segments(64, 8).ends(26) == [26]
  assert Segments(64, 8).ends(1024) == list(range(128, 1025, 128))
  assert len(Segments(64, 8).ends(15360)) == 8
  assert PLAIN.ends(1000) == [1000]


def test_sizes_hold_every_live_row():
  s = Segments(shrink=(2, 4, 3), shards=2)
  assert s.sizes(16) == [4, 8, 16], "a third of 16 rows is no batch"
  ended = jnp.array([1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1], bool)
  assert int(s.choose([4, 8, 16], ended)) == 1, "three rows of the second shard do not fit into two"
  rows = s.live_first(ended, 8)
  assert rows.tolist() == [[2, 0, 1, 3], [1, 2, 3, 0]]
  numbers = jnp.arange(16)
  part = s.gather(numbers, rows)
  assert part.tolist() == [2, 0, 1, 3, 9, 10, 11, 8]
  put_back = s.scatter(numbers, part + 100, rows).tolist()
  assert put_back == [*range(100, 104), *range(4, 8), *range(108, 112), *range(12, 16)]


@pytest.mark.long
@pytest.mark.parametrize(
  ("segments", "n"),
  [
    (PLAIN, 1),
    pytest.param(Segments(32, shrink=(2,)), 1, marks=pytest.mark.long),
    pytest.param(Segments(32, shrink=(2,)), 4, marks=pytest.mark.long),
  ],
  ids=["plain", "segments", "rollouts of one prompt"],
)
def test_no_copy_of_a_cache_or_a_weight_in_the_token_loop(segments, n):
  """Of a prompt's neither; with several rollouts the caches that they share are smaller than their own."""
  text = compiled(segments, n=n)
  smallest = 64 * 2 * 4 * 16  # the joined projection of a layer's queries, keys and values; a cache is twice as large
  assert "dynamic-update-slice" in text
  assert writes_in_loops(text, smallest) == []
  assert writes_in_loops(text, 64), "the search must find smaller ones"
