"""Credits of steps on countdowns whose values are known."""

import itertools
import random

import numpy as np
import pytest

from opd_jax.studies.graph import claims, sections, simulation
from opd_jax.studies.graph.simulation import SKILL, Game, Sampled, chain_errors, errors, grow

SEEDS = range(8)


def moves_by_hand(state: tuple[int, ...]) -> list[tuple[int, ...]]:
  """All steps of a state of few numbers, written out: any two in either order, and what else is left."""
  found = []
  for i, j in itertools.permutations(range(len(state)), 2):
    rest = [state[k] for k in range(len(state)) if k != i and k != j]
    for result in (state[i] + state[j], state[i] - state[j], state[i] * state[j]):
      if 1 <= result <= 99:
        found.append(tuple(sorted([*rest, result])))
  return found


def reaches(state: tuple[int, ...], goal: int) -> bool:
  return state == (goal,) or any(reaches(after, goal) for after in moves_by_hand(state))


def value_by_hand(state: tuple[int, ...], goal: int) -> float:
  """The sum of the probabilities of all ways to the goal, each a product over its steps."""
  ways, total = [(state, 1.0)], 0.0
  while ways:
    at, probability = ways.pop()
    if not (after := moves_by_hand(at)):
      total += probability * (at == (goal,))
      continue
    weights = [SKILL if reaches(each, goal) else 1.0 for each in after]
    ways += [(each, probability * w / sum(weights)) for each, w in zip(after, weights, strict=True)]
  return total


@pytest.mark.parametrize(
  ("numbers", "goal"), [((3, 1), 4), ((2, 3), 5), ((1, 2, 3), 6), ((4, 2, 5), 7), ((9, 9, 8), 3)]
)
def test_the_value_is_the_probability_of_all_ways_to_the_goal(numbers, goal):
  game = Game(numbers, goal)
  assert game.value(game.start) == pytest.approx(value_by_hand(tuple(sorted(numbers)), goal))
  for after in set(game.steps(game.start)):
    assert game.value(after) == pytest.approx(value_by_hand(after, goal))


def test_one_step_by_hand():
  """Of 1 and 3 there are 4 (twice, one for each order), 2 (3 - 1), and 3 (twice); the goal 2 is one way of weight SKILL."""
  assert Game((3, 1), 2).value((1, 3)) == pytest.approx(SKILL / (SKILL + 4))


def test_states_join_where_they_are_equal_and_nowhere_else():
  joined = 0
  for seed in SEEDS:
    sampled = grow(Game((3, 8, 5, 2), 35), random.Random(seed), simulation.WIDTHS, graph=True)
    for i, j in itertools.combinations(range(1, len(sampled.states)), 2):
      one = sampled.classes.of_node[i] == sampled.classes.of_node[j]
      assert one == (sampled.states[i] == sampled.states[j])
      joined += one
  assert joined > 0


def test_a_false_join_takes_other_states_together():
  sampled = grow(Game((3, 8, 5, 2), 35), random.Random(0), simulation.WIDTHS, graph=True, false=1.0)
  of_node = sampled.classes.of_node
  assert any(
    of_node[i] == of_node[j] and sampled.states[i] != sampled.states[j]
    for i, j in itertools.combinations(range(1, len(of_node)), 2)
  )
  assert all(of_node[node] != of_node[sampled.parent[node]] for node in range(1, len(of_node)))


def test_a_tree_joins_nothing_and_has_all_its_steps():
  sampled = grow(Game((3, 8, 5, 2), 35), random.Random(0), simulation.WIDTHS, graph=False)
  assert sampled.classes.of_node.tolist() == list(range(1 + 4 + 8 + 16))
  assert sampled.depth == [0, *[1] * 4, *[2] * 8, *[3] * 16]


def test_saved_children_are_spent_elsewhere():
  for seed in SEEDS:
    sampled = grow(Game((3, 8, 5, 2), 35), random.Random(seed), simulation.WIDTHS, graph=True)
    assert len(sampled.states) <= 1 + 4 + 8 + 16


def test_without_joins_a_graph_is_a_tree():
  game, met = Game((3, 8, 5, 2), 35), 0
  for seed in SEEDS:
    sampled = grow(game, random.Random(seed), (2, 1, 1), graph=True)
    if len(set(sampled.states)) == len(sampled.states):
      met += 1
      for weight in (0.7, 1.0):
        np.testing.assert_array_equal(errors(game, sampled, weight)[0], errors(game, sampled, 0.0)[0])
  assert met
  tree = grow(game, random.Random(0), simulation.WIDTHS, graph=False)
  np.testing.assert_array_equal(errors(game, tree, 0.7)[0], errors(game, tree, 0.0)[0])


@pytest.mark.parametrize("game", [Game((2, 2), 4), Game((1, 1, 1), 90)], ids=["always", "never"])
@pytest.mark.parametrize("graph", [False, True])
def test_where_every_value_is_certain_no_credit_is_wrong(game, graph):
  sampled = grow(game, random.Random(0), (3, 2), graph=graph)
  for estimated, true in (errors(game, sampled, 0.7), chain_errors(game, random.Random(0), 5)):
    np.testing.assert_allclose(estimated, 0, atol=1e-12)
    np.testing.assert_allclose(true, 0, atol=1e-12)


def test_a_step_is_worth_how_much_higher_the_value_is_behind_it():
  """Two ways from the start, by hand: the goal is met below one of them."""
  game = Game((3, 1), 2)
  sampled = Sampled([game.start], [-1], simulation.Classes(), [0])
  for state in ((2,), (4,), (4,)):
    sampled.classes.add(0)
    sampled.states.append(state)
    sampled.parent.append(0)
    sampled.depth.append(1)
  estimated, true = errors(game, sampled, 0.0)
  before = SKILL / (SKILL + 4)
  assert estimated == pytest.approx([2 / 3, -1 / 3, -1 / 3])
  assert true == pytest.approx([1 - before, -before, -before])


def test_a_seed_is_a_simulation():
  first = simulation.simulate(3, problems=4)
  assert first == simulation.simulate(3, problems=4)
  assert first != simulation.simulate(4, problems=4)


def test_a_simulation_has_what_is_claimed_and_shown_of_it():
  found = simulation.simulate(3, problems=12)
  names = {sections.method_name(w, share) for share in simulation.FALSE for w in simulation.WEIGHTS if w or not share}
  assert names | {"tree", "chain", "pooling", "centred"} <= found.keys()
  assert {claims.GRAPH, claims.FALSE_GRAPH} <= names
  assert set(claims.MEMBERS) <= found["pooling"].keys()
  for method in (*names, "tree", "chain"):
    assert 26 <= found[method]["steps"] <= 28, "equal numbers of steps"
  for k, factor in found["pooling"].items():
    assert factor["measured"] == pytest.approx(factor["lemma"], rel=0.05), k
  for k, variance in found["centred"].items():
    assert variance == pytest.approx(1 - 1 / int(k), rel=0.05)
