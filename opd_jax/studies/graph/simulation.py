"""How far estimated credits of single steps are from the truth, without any training: countdowns whose values are known.

A state is the numbers that are left; a fixed policy takes one of the steps that the rules allow, those from which the goal can still be
reached `SKILL` times as often as others. The value V of a state, the probability that the policy ends at the goal, is computed exactly,
and so is what a step is worth: V behind it less V before it. Chains, trees and graphs of as many steps together estimate that from the ends
alone: a chain by its reward less the mean of all chains, trees and graphs by S(v) - S(u) of objectives/graph_advantage.py.
"""

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from opd_jax.objectives.graph_advantage import Classes, Tree, pooled_scores, variance_factor
from opd_jax.tasks.puzzles import COUNTDOWN_4

WIDTHS = (4, 2, 2)  # 4 + 8 + 16 steps
CHAINS = 9  # of three steps: 27
SKILL = 12
PROBLEMS = 400
WEIGHTS = (0.0, 0.25, 0.5, 0.7, 1.0)
FALSE = (0.0, 0.1, 0.2, 0.4)  # shares of the steps that join a state that is another one
STEPS: dict[str, Callable[[int, int], int]] = {
  "+": lambda a, b: a + b,
  "-": lambda a, b: a - b,
  "*": lambda a, b: a * b,
}
State = tuple[int, ...]  # the numbers that are left, rising


class Game:
  """One countdown under the fixed policy."""

  def __init__(self, numbers: Sequence[int], goal: int):
    self.start: State = tuple(sorted(numbers))
    self._goal = goal
    self._value: dict[State, float] = {}
    self._solvable: dict[State, bool] = {}

  def steps(self, state: State) -> Iterator[State]:
    """The states that the allowed steps lead to, one for each step."""
    for i, a in enumerate(state):
      for j, b in enumerate(state):
        if i == j:
          continue
        left = [c for k, c in enumerate(state) if k not in (i, j)]
        for operation in STEPS.values():
          if 0 < (result := operation(a, b)) <= COUNTDOWN_4.largest:
            yield tuple(sorted([*left, result]))

  def solvable(self, state: State) -> bool:
    if state not in self._solvable:
      self._solvable[state] = state == (self._goal,) or any(map(self.solvable, self.steps(state)))
    return self._solvable[state]

  def moves(self, state: State) -> tuple[list[State], list[float]]:
    """Where the policy goes from a state, and how often in proportion; nowhere from an end."""
    found = list(self.steps(state))
    return found, [SKILL if self.solvable(next_state) else 1.0 for next_state in found]

  def value(self, state: State) -> float:
    """V: the probability that the policy ends at the goal."""
    if state not in self._value:
      found, weights = self.moves(state)
      if found:
        values = map(self.value, found)
        self._value[state] = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
      else:
        self._value[state] = float(state == (self._goal,))
    return self._value[state]

  def draw(self, state: State, rng: random.Random) -> State | None:
    """Draw a step; None: there is none."""
    found, weights = self.moves(state)
    return rng.choices(found, weights)[0] if found else None


@dataclasses.dataclass
class Sampled:
  """A tree of drawn states, and which of them are one state.

  Attributes:
    states: of every node; the first is the start.
  """

  states: list[State]
  parent: list[int]
  classes: Classes
  depth: list[int]


def grow(game: Game, rng: random.Random, widths: Sequence[int], *, graph: bool, false: float = 0.0) -> Sampled:
  """Draw a tree layer by layer as the recipe does, with halved budgets of nodes that joined a state.

  Args:
    graph: whether equal states are joined; False: a tree.
    false: the share of the nodes that join a random other one besides, where they may.
  """
  found, frontier = Sampled([game.start], [-1], Classes(), [0]), [0]
  redundant = {0: False}
  for width in widths:
    living = [node for node in frontier if next(game.steps(found.states[node]), None) is not None]
    budget = {node: max(1, width // 2) if redundant[node] else width for node in living}
    others = [node for node in living if budget[node] == width]
    for k in range(sum(width - b for b in budget.values()) if others else 0):
      budget[others[k % len(others)]] += 1
    frontier = []
    for node in living:
      for _ in range(budget[node]):
        state = game.draw(found.states[node], rng)
        assert state is not None
        new = found.classes.add(node)
        found.states.append(state)
        found.parent.append(node)
        found.depth.append(found.depth[node] + 1)
        frontier.append(new)
    for new in frontier:
      same = [i for i in range(1, new) if found.states[i] == found.states[new]] if graph else []
      joined = [found.classes.join(new, i) for i in same]
      if graph and rng.random() < false:
        others = [i for i in range(1, new) if found.states[i] != found.states[new] and found.classes.may_join(i, new)]
        joined += [found.classes.join(new, rng.choice(others))] if others else []
      redundant[new] = any(joined)
  return found


def errors(game: Game, sampled: Sampled, weight: float) -> tuple[np.ndarray, np.ndarray]:
  """Compute what each step of a tree is estimated to be worth, and what it is worth; f64[steps] both."""
  ends = np.array([next(game.steps(state), None) is None for state in sampled.states])
  reward = np.array([game.value(state) if end else 0.0 for state, end in zip(sampled.states, ends, strict=True)])
  tree = Tree(np.array(sampled.parent), reward, ends)
  c, t = tree.outcomes()
  score = pooled_scores(c, t, sampled.classes.of_node, weight, tree.parent)
  true = np.array([game.value(state) for state in sampled.states])
  before = tree.parent[1:]
  return score[1:] - score[before], true[1:] - true[before]


def chain_errors(game: Game, rng: random.Random, chains: int) -> tuple[np.ndarray, np.ndarray]:
  """The same of independent chains: each step is estimated by its chain's reward less the mean of all."""
  paths, rewards = [], []
  for _ in range(chains):
    path: list[State] = [game.start]
    while (state := game.draw(path[-1], rng)) is not None:
      path.append(state)
    paths.append(path)
    rewards.append(game.value(path[-1]))
  mean = float(np.mean(rewards))
  estimated = [reward - mean for path, reward in zip(paths, rewards, strict=True) for _ in path[1:]]
  true = [game.value(b) - game.value(a) for path in paths for a, b in itertools.pairwise(path)]
  return np.array(estimated), np.array(true)


def simulate(seed: int, problems: int = PROBLEMS) -> dict[str, Any]:
  """Measure the estimates of each way to spend the same number of steps.

  Returns:
    Of each of "chain", "tree", "graph W" by weight, and "graph 0.7, false F" by share of false joins: "mse" and "bias" of a step's estimate,
    "correlation" with the truth, and "steps" drawn. Of "pooling" by class size k: the variance of S about V over that of a single node
    (w = 0), and the lemma's bound. Of "centred" by group size: the variance of a centred reward over that of one reward, which rises.
  """
  rng = random.Random(f"graph simulation {seed}")
  games = []
  for problem in COUNTDOWN_4.problems(problems, seed):
    numbers, _, goal = problem.answer.partition(">")
    games.append(Game([int(number) for number in numbers.split(",")], int(goal)))
  found: dict[str, Any] = {"chain": _summary([chain_errors(game, rng, CHAINS) for game in games])}
  trees = [grow(game, rng, WIDTHS, graph=False) for game in games]
  found["tree"] = _summary([errors(game, tree, 0.0) for game, tree in zip(games, trees, strict=True)])
  graphs = [grow(game, rng, WIDTHS, graph=True) for game in games]
  for weight in WEIGHTS:
    found[f"graph {weight:g}"] = _summary([errors(game, g, weight) for game, g in zip(games, graphs, strict=True)])
  for share in FALSE[1:]:
    others = [grow(game, rng, WIDTHS, graph=True, false=share) for game in games]
    for weight in WEIGHTS[1:]:
      name = f"graph {weight:g}, false {share:g}"
      found[name] = _summary([errors(game, g, weight) for game, g in zip(games, others, strict=True)])
  found["joined"] = float(np.mean([len(set(g.classes.of_node.tolist())) < len(g.states) for g in graphs]))
  found["states"] = float(np.mean([len(set(g.classes.of_node.tolist())) / len(g.states) for g in graphs]))
  found["pooling"] = pooling(rng)
  found["centred"] = {str(k): _centred_variance(k, rng) for k in (2, 4, 8)}
  return found


def pooling(
  rng: random.Random, weight: float = 0.7, members: Sequence[int] = (2, 3, 5), draws: int = 20000
) -> dict[str, Any]:
  """Measure by how much pooling lowers the variance of a score, beside the lemma's factor; of four ends each, p = 0.3."""
  generator, found = np.random.default_rng(rng.randrange(2**32)), {}
  for k in members:
    c = generator.binomial(4, 0.3, (draws, k)).astype(float)
    pooled = (c[:, 0] + weight * c[:, 1:].sum(axis=1)) / (4 + weight * 4 * (k - 1))
    found[str(k)] = {"measured": float(pooled.var() / (c[:, 0] / 4).var()), "lemma": variance_factor(k, weight)}
  return found


def _centred_variance(size: int, rng: random.Random, draws: int = 20000) -> float:
  """The variance of a reward less the mean of its group, over that of a reward."""
  x = np.random.default_rng(rng.randrange(2**32)).normal(size=(draws, size))
  return float((x - x.mean(axis=1, keepdims=True))[:, 0].var())


def _summary(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
  estimated, true = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
  error = estimated - true
  return {
    "mse": float(np.mean(error**2)),
    "bias": float(np.mean(error)),
    "correlation": float(np.corrcoef(estimated, true)[0, 1]),
    "steps": len(error) / len(parts),
  }
