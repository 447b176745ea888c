"""Trees of rollouts as they grow: children, budgets, ways to leaves, and rows that go on from chosen prefixes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_jax.data import pipeline
from opd_jax.rollout import prefix, sample
from opd_jax.rollout.branch import NOBODY, Branches, Paths, rows_of_layers
from opd_jax.rollout.sample import Sampling
from opd_jax.rollout.segments import Segments
from opd_jax.rollout.states import SameState, alike, unit
from tests.conftest import STUDENT

STOP, COMMA = 1, 7


def grow(branches: Branches, source, steps: list[list[int]]) -> list[int]:
  """Add children with these tokens, in the rows that are used."""
  rows, L = len(source), max([len(step) for step in steps] + [1])
  response, mask = np.zeros((rows, L), int), np.zeros((rows, L), bool)
  for row, step in zip(np.flatnonzero(np.asarray(source) != NOBODY), steps, strict=True):
    response[row, : len(step)], mask[row, : len(step)] = step, True
  return branches.grow(np.asarray(source), response, mask, -response.astype(float), (STOP,))


def test_ended_nodes_have_no_children_and_their_rows_stay_empty():
  branches = Branches()
  source = branches.allocate(2, 2)
  assert source.tolist() == [0, 0]
  assert grow(branches, source, [[5, COMMA], [6, STOP]]) == [1, 2]
  source = branches.allocate(3, 6)
  assert source.tolist() == [0, 0, 0, NOBODY, NOBODY, NOBODY]
  grow(branches, source, [[8], [9, STOP], [4, COMMA]])
  assert branches.leaves == [2, 3, 4, 5]
  assert branches.generated == 2 + 2 + 1 + 2 + 2
  assert branches.tokens(4) == [5, COMMA, 9, STOP]


def test_a_node_that_joined_a_state_gives_half_of_its_children_to_others():
  branches = Branches()
  grow(branches, branches.allocate(3, 3), [[5], [6], [5]])
  branches.join([3], np.array([[0.0, 1.0, 0.0, 1.0]]), 0.9)
  assert branches.classes.members(1) == [1, 3]
  source = branches.allocate(4, 12)
  assert np.bincount(source).tolist() == [5, 5, 2]
  assert np.bincount(branches.allocate(4, 12, halve=False)).tolist() == [4, 4, 4]
  assert np.bincount(branches.allocate(1, 3)).tolist() == [1, 1, 1], "one at least"


def test_two_readings_of_one_text_are_alike_by_exactly_one():
  """But for rounding they are; a step from one to the other is then worth nothing, where rounding alone would be standardised."""
  (a,) = unit(np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32))
  for b in (a * np.float32(1 - 2e-7), a * np.float32(1 + 2e-7)):
    assert float(a @ b) != 1
    assert alike(a, b) == 1
    branches = Branches()
    grow(branches, branches.allocate(1, 1), [[5, COMMA]])
    grow(branches, branches.allocate(1, 1), [[6]])
    branches.nodes[1].state, branches.nodes[2].state = a, b
    assert SameState("hidden").to_parent(branches).tolist() == [0, 0, 1]
  (c,) = unit(a[None] + 0.01 * np.roll(a, 1)[None])
  assert alike(a, c) == float(a @ c) < 1 - 1e-6


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_budgets_are_never_exceeded_and_every_token_is_learned_from_once(data):
  widths = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
  branches = Branches()
  for width, rows in zip(widths, rows_of_layers(widths), strict=True):
    source = branches.allocate(width, rows)
    assert len(source) == rows
    living = [i for i in source.tolist() if i != NOBODY]
    steps = [data.draw(st.sampled_from([[5], [6, COMMA], [5, STOP], [STOP]])) for _ in living]
    new = grow(branches, source, steps)
    same = np.array(
      [[branches.tokens(a) == branches.tokens(b) for b in range(len(branches.nodes))] for a in new], float
    )
    branches.join(new, same.reshape(len(new), len(branches.nodes)), 1.0)
  rows, length = rows_of_layers(widths)[-1], 2 * len(widths)
  paths = Paths.of(branches, rows, length, 0)
  assert paths.first.sum() == branches.generated
  assert (paths.first <= paths.mask).all()
  for row, leaf in enumerate(paths.leaf):
    assert paths.response[row][paths.mask[row]].tolist() == ([] if leaf == NOBODY else branches.tokens(leaf))
    assert paths.ended[row] == (leaf != NOBODY and branches.nodes[leaf].ended)
  for node in range(1, len(branches.nodes)):
    of_node = paths.first & (paths.node == node)
    assert of_node.sum() == len(branches.nodes[node].tokens)
    assert of_node.any(axis=1).sum() == 1
  tree = branches.tree(dict.fromkeys(branches.leaves, 1.0))
  assert tree.outcomes()[0][0] == len(branches.leaves)


def test_more_leaves_than_rows_are_refused():
  branches = Branches()
  grow(branches, branches.allocate(2, 2), [[5], [6]])
  with pytest.raises(ValueError, match="2 leaves do not fit 1 rows"):
    Paths.of(branches, 1, 4, 0)


@pytest.mark.long
def test_rows_that_go_on_from_a_prefix_are_rollouts_of_it(student, prompts):
  """Of two pairs of prompts: twice the second and once the first, then three times the first."""
  expand = jnp.array([[1, 1, 0], [0, 0, 0]])
  sampling = Sampling((STOP, 9), 0, 37)
  run = jax.jit(
    functools.partial(sample.rollout, cfg=STUDENT, sampling=sampling, response_len=6), static_argnames=("n",)
  )
  found = run(student, prompts, jax.random.key(0), jnp.int32(6), expand=expand)
  chosen = jax.tree.map(lambda a: a[jnp.array([1, 1, 0, 2, 2, 2])], prompts)
  wanted = run(student, chosen, jax.random.key(0), jnp.int32(6))
  np.testing.assert_array_equal(found.response, wanted.response)
  np.testing.assert_allclose(found.behavior_logprob, wanted.behavior_logprob, atol=1e-6)
  assert (found.response[0] != found.response[1]).any(), "each row draws its own"


@pytest.mark.long
@pytest.mark.parametrize("settings", ["plain", pytest.param("segments", marks=pytest.mark.long)])
def test_what_goes_on_from_caches_is_what_reads_its_prefix_again(settings, student, prompts):
  """Three layers behind each other, in which steps end at a delimiter: all tokens, and their probabilities but for the order of sums."""
  options = {"segments": Segments(length=2, shrink=(2,))} if settings == "segments" else {}
  options |= {"cfg": STUDENT, "sampling": Sampling((STOP, *range(10, 16)), 0, 37), "response_len": 5}
  again = jax.jit(functools.partial(sample.rollout, **options))
  cached = jax.jit(functools.partial(prefix.rollout_and_prefix, **options))
  texts = [
    row[mask].tolist() for row, mask in zip(np.asarray(prompts.prompt), np.asarray(prompts.prompt_mask), strict=True)
  ]
  before, lengths = prompts, set()
  for layer, rows in enumerate((4, 3, 5)):
    expand = jnp.asarray(np.random.default_rng(layer).integers(0, len(texts) // 2, (2, rows)), jnp.int32)
    key = jax.random.key(layer)
    found, before = cached(student, before, key, jnp.int32(5), expand)
    width = max(map(len, texts)) + 3
    padded = pipeline.pad(texts, width, 0)
    wanted = again(student, padded, key, jnp.int32(5), expand=expand)
    np.testing.assert_array_equal(found.response, wanted.response)
    np.testing.assert_allclose(found.behavior_logprob, wanted.behavior_logprob, atol=2e-6)
    source = (expand + np.array([[0], [len(texts) // 2]])).reshape(-1)
    steps = [row[mask].tolist() for row, mask in zip(np.asarray(found.response), np.asarray(found.mask), strict=True)]
    texts = [texts[i] + step for i, step in zip(source.tolist(), steps, strict=True)]
    lengths |= {len(step) for step in steps}
  assert len(lengths) > 2, "caches have holes"
