"""Credit on a tree whose equal states are taken together: the brief's numbers, a slow reference, and orders that always stay orders."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_jax.objectives import advantage as advantages
from opd_jax.objectives.graph_advantage import (
  Classes,
  Tree,
  correctness_advantage,
  credit,
  efficiency_advantage,
  pooled_scores,
  variance_factor,
)
from tests.helpers import graph_advantage_by_hand as by_hand


def tree_of(parent, reward=None, ends=None) -> Tree:
  n = len(parent)
  leaf = np.array([i not in parent for i in range(n)])
  reward = np.zeros(n) if reward is None else np.array(reward, float)
  return Tree(np.array(parent), reward, leaf if ends is None else np.array(ends))


@st.composite
def grown(draw) -> tuple[Tree, np.ndarray]:
  """A random tree with outcomes, and classes from a random sequence of merges."""
  n = draw(st.integers(2, 14))
  parent = [-1, *(draw(st.integers(0, i - 1)) for i in range(1, n))]
  reward = draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=n, max_size=n))
  ends = draw(st.lists(st.booleans(), min_size=n, max_size=n))
  classes = Classes(parent)
  for u, v in draw(st.lists(st.tuples(st.integers(1, n - 1), st.integers(1, n - 1)), max_size=12)):
    classes.join(u, v)
  return tree_of(parent, reward, ends), classes.of_node


@given(grown(), st.sampled_from([0.0, 0.5, 0.7, 1.0]), st.sampled_from([0.0, 0.5]), st.randoms())
@settings(max_examples=150, deadline=None)
def test_every_edge_earns_what_the_slow_reference_says(found, weight, efficiency, random):
  tree, classes = found
  similarity = np.array([random.uniform(-1, 1) for _ in tree.parent])
  rows = tree.parent.tolist(), tree.reward.tolist(), tree.ends.tolist(), classes.tolist(), weight
  for gate in (None, similarity):
    own = credit(tree, classes, weight=weight, efficiency=efficiency, similarity_to_parent=gate)
    wanted = by_hand.advantage(*rows, efficiency, None if gate is None else gate.tolist())
    np.testing.assert_allclose(own.advantage, wanted, atol=1e-9)
    np.testing.assert_allclose(own.score, by_hand.score(*rows), atol=1e-12)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_classes_stay_in_an_order_whatever_is_merged(data):
  n = data.draw(st.integers(2, 12))
  parent = [-1, *(data.draw(st.integers(0, i - 1)) for i in range(1, n))]
  classes = Classes(parent)
  for _ in range(data.draw(st.integers(0, 15))):
    u, v = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n - 1))
    before = classes.of_node.tolist()
    joined = classes.join(u, v)
    after = classes.of_node.tolist()
    assert not by_hand.has_circle(parent, after)
    if joined:
      assert after[u] == after[v]
    else:
      assert after == before
      merged = [before[u] if c == before[v] else c for c in before]
      assert by_hand.has_circle(parent, merged), "what is refused would have made a circle"


def test_two_chains_cannot_be_merged_crosswise():
  classes = Classes([-1, 0, 1, 0, 3])  # prompt, u1, u2, v1, v2
  assert classes.join(1, 4)
  assert not classes.may_join(2, 3)
  assert classes.members(4) == [1, 4]


def test_an_ancestor_does_not_join_its_descendant_through_a_third():
  classes = Classes([-1, 0, 1, 0])
  assert classes.join(1, 3)
  assert not classes.join(3, 2)


@pytest.mark.parametrize(
  ("c", "t", "weight", "wanted"),
  [
    ((3, 1), (4, 4), 0.7, (0.5441, 0.4559)),
    ((3, 1), (4, 4), 0.0, (0.75, 0.25)),
    ((3, 1), (4, 4), 1.0, (0.5, 0.5)),
    ((3, 1, 0), (4, 4, 2), 0.7, (0.4512, 0.3780, 0.3684)),
  ],
)
def test_scores_of_one_class_worked_out_by_hand(c, t, weight, wanted):
  found = pooled_scores(np.array(c, float), np.array(t), np.zeros(len(c), int), weight)
  np.testing.assert_allclose(found, wanted, atol=5e-5)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_lemmas_factor_is_what_pooling_does_to_the_variance(k):
  rng, m, w = np.random.default_rng(0), 4, 0.7
  c = rng.binomial(m, 0.5, (100_000, k))
  pooled = (c[:, 0] + w * c[:, 1:].sum(axis=1)) / (m * (1 + w * (k - 1)))
  alone = c[:, 0] / m
  np.testing.assert_allclose(pooled.var() / alone.var(), variance_factor(k, w), rtol=0.03)
  assert variance_factor(k, w) <= 1 / (1 + w * (k - 1)) + 1e-12


def test_a_tree_of_one_step_without_merges_is_grpo():
  reward = [0.0, 1.0, 0.0, 1.0, 1.0]
  tree = tree_of([-1, 0, 0, 0, 0, 0], [0.0, *reward])
  found = credit(tree, np.arange(6), weight=0.7, efficiency=1.0)
  wanted = advantages.of_rewards("group_std", np.array(reward), 5)
  np.testing.assert_allclose(found.advantage[1:], wanted, atol=1e-5)
  assert not found.efficiency.any()


def test_the_shorter_of_two_ways_to_one_state_earns_by_how_good_it_is():
  """Ways of 2 and of 4 steps from the prompt, whose state has a score of one half."""
  parent = [-1, 0, 1, 0, 3, 4, 5, 2, 6]
  classes = np.array([0, 1, 2, 3, 4, 5, 2, 7, 8])
  tree = tree_of(parent, [0, 0, 0, 0, 0, 0, 0, 1, 0])
  score = pooled_scores(*tree.outcomes(), classes, 1.0, tree.parent)
  assert score[2] == score[6] == 0.5
  found = efficiency_advantage(tree, classes, score)
  np.testing.assert_allclose(found, [0, 0.5, 0.5, -0.5, -0.5, -0.5, -0.5, 0, 0], atol=1e-5)
  assert not efficiency_advantage(tree, classes, np.zeros(9)).any()


def test_ways_of_one_length_earn_nothing_for_it():
  tree = tree_of([-1, 0, 0], [0, 1, 1])
  assert not efficiency_advantage(tree, np.array([0, 1, 1]), np.ones(3)).any()


def test_merging_moves_scores_and_not_outcomes():
  tree = tree_of([-1, 0, 0, 1, 1, 2], [0, 0, 0, 1, 0, 0])
  c, t = tree.outcomes()
  assert c.tolist() == [1, 1, 0, 1, 0, 0]
  assert t.tolist() == [3, 2, 1, 1, 1, 1]
  assert c[0] == tree.reward[tree.ends].sum()


def test_equal_groups_and_single_edges_earn_nothing():
  tree = tree_of([-1, 0, 1, 1], [0, 0, 1, 1])
  assert not correctness_advantage(tree, np.arange(4), pooled_scores(*tree.outcomes(), np.arange(4), 0.7)).any()


def test_a_similar_step_counts_for_less():
  tree = tree_of([-1, 0, 0, 0], [0, 1, 0, 0])
  classes, same = np.arange(4), np.array([0.0, 1.0, 0.0, 0.0])
  plain = credit(tree, classes, weight=0.7, efficiency=0.0).advantage
  gated = credit(tree, classes, weight=0.7, efficiency=0.0, similarity_to_parent=same).advantage
  assert plain[1] > 0
  assert gated[1] > 0 > gated[2], "the others fall short of the mean all the same"
  assert gated[1] < plain[1] + 1e-9


@pytest.mark.parametrize("parent", [[0, -1], [-1, -1], [-1, 2, 0], []])
def test_what_is_no_tree_is_refused(parent):
  with pytest.raises(ValueError, match=r"node|prompt"):
    tree_of(parent)


def test_a_new_node_joins_the_most_similar_that_it_may():
  classes = Classes([-1, 0, 0])
  node = classes.add(1)
  assert classes.join_similar(node, np.array([0.0, 1.0, 0.95]), 0.92)
  assert classes.members(node) == [2, 3], "1 is its parent"
  assert not classes.join_similar(classes.add(2), np.array([0.1, 0.2, 0.3, 0.4]), 0.92)
