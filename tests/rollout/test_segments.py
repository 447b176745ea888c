"""Segments: the same tokens as the plain loop, whatever is cut, and nothing large is copied inside a token loop."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.models import decoder
from opd_jax.rollout import sample
from opd_jax.rollout.segments import PLAIN, Segments
from opd_jax.types import Batch
from tests.conftest import STUDENT

H = 12
SAMPLING = sample.Sampling(stop_ids=(1, 7, 9), pad_id=0, vocab=37)


@functools.cache
def program(segments: Segments, n: int = 4):
  how = {"cfg": STUDENT, "sampling": SAMPLING, "horizon": H, "n": n, "segments": segments}
  return jax.jit(functools.partial(sample.rollout, **how))


@pytest.mark.parametrize(
  "segments",
  [Segments(5), Segments(1, most=3), Segments(3, shrink=(4, 8, 16), shards=2)],
  ids=["uneven", "few", "shrinking by shard"],
)
def test_tokens_are_those_of_the_plain_loop(segments, student, prompts):
  """Bit for bit, at limits inside, at and between the ends of segments, with rows that end at different times."""
  for key, limit in ((0, H), (1, H), (2, 4), (3, 5), (4, 1), (5, 9)):
    mine, plain = (program(s)(student, prompts, jax.random.key(key), limit) for s in (segments, PLAIN))
    np.testing.assert_array_equal(mine.response, plain.response)
    np.testing.assert_array_equal(mine.mask, plain.mask)
    np.testing.assert_array_equal(mine.ended, plain.ended)
    np.testing.assert_allclose(mine.behavior_logprob, plain.behavior_logprob, atol=1e-5)


def test_rows_end_at_different_times(student, prompts):
  """What the test above stands on: after each segment another number of rows is live."""
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


WIDE = dataclasses.replace(STUDENT, width=64, ff_width=96, head_width=16)


def compiled(segments: Segments, cfg: decoder.DecoderConfig = WIDE) -> str:
  """Optimised HLO of a rollout in which a weight and a cache are larger than anything else."""
  params = jax.eval_shape(lambda: decoder.init(cfg, jax.random.key(0)))
  batch = Batch(prompt=jax.ShapeDtypeStruct((4, 96), jnp.int32), prompt_mask=jax.ShapeDtypeStruct((4, 96), bool))  # pyright: ignore[reportArgumentType]
  key, limit = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.int32)
  run = functools.partial(sample.rollout, cfg=cfg, sampling=SAMPLING, horizon=64, segments=segments)
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", False)  # which would leave the copies in
  try:
    return jax.jit(run).lower(params, batch, key, limit).compile().as_text() or ""
  finally:
    jax.config.update("jax_disable_most_optimizations", before)


def made_in_loops(text: str, at_least: int) -> list[str]:
  """Instructions inside while loops that write an array of so many elements, other than a cache in its place."""
  computations = dict(re.findall(r"^%?(\S+) \(.*?\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))
  todo, inside = re.findall(r"body=%([\w.\-]+)", text), set()
  while todo:
    name = todo.pop()
    if name not in inside:
      inside.add(name)
      todo += re.findall(r"(?:body|condition|to_apply)=%([\w.\-]+)", computations[name])
  found = []
  for name in inside:
    for line in computations[name].splitlines():
      made = re.match(r"\s*(?:ROOT )?%(\S+) = (?:f32|bf16)\[([\d,]+)\]\S* ([\w\-]+)\(", line)
      if not made or np.prod([int(n) for n in made[2].split(",")]) < at_least:
        continue
      in_place = "dynamic-update-slice" in made[1] or "dynamic-update-slice" in made[3]
      if not in_place and made[3] not in ("parameter", "get-tuple-element", "bitcast"):
        found.append(line.strip()[:160])
  return found


@pytest.mark.parametrize("segments", [PLAIN, Segments(32, shrink=(2,))], ids=["plain", "segments"])
def test_no_copy_of_a_cache_or_a_weight_in_the_token_loop(segments):
  text = compiled(segments)
  smallest = 64 * 2 * 4 * 16  # the joined projection of a layer's queries, keys and values; a cache is twice as large
  assert "dynamic-update-slice" in text
  assert made_in_loops(text, smallest) == []
  assert made_in_loops(text, 64), "the search finds nothing at all"
