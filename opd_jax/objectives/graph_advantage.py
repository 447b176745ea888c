"""Credit of single steps from outcomes, on a tree of rollouts whose equal states are taken together (GraphPO, arXiv:2606.18954).

A node is a state after a step, its edge the step that leads there from its parent. c and t of a node are the reward and the number of the
finished responses below it, through its own edges. Nodes that are held to be one state are a class Q; then

    S(v) = (c_v + w sum of c over the others of Q(v)) / (t_v + w sum of t over them)            the pooled score
    r(e) = (S(v) - S(u)) (1 - max(0, similarity(u, v))),  e = (u, v)                            the novelty-gated step reward
    A_cor(e) = (r(e) - mean) / std  over all edges that leave the class of u                     where there are at least two
    A_eff(v) = mean of S over Q(v), times the standardised -l(v),  l steps from the deepest state that all members come from,
               on every edge from there to v; summed where an edge leads to several classes      where Q has at least two members
    A(e) = A_cor(e) + lambda A_eff(e)

Scores are shared, contexts never: each step is trained behind its own true prefix. Standard deviations are over the group and have an
epsilon; where all are equal, the advantage is 0. lambda is ours, since the paper gives none.

Two nodes may be one state only where the classes stay in an order: no class may lead to another that leads back to it. The paper forbids
that an ancestor joins its descendant; that alone leaves circles (u1 to u2 and v1 to v2 with u1 = v2 and u2 = v1), and all the constraint
is for is a graph without them. Proposition 1 of the paper, that larger groups lower the variance of a centred reward, is wrong: (1 - 1/K)
grows with K. The pooling lemma (`variance_factor`) holds.

`graph_advantage_by_hand.py` under tests/ has the same, slow and written out.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class Tree:
  """The rollouts of one prompt: node 0 is the prompt, parents stand before their children.

  Attributes:
    parent: of every node; -1 of the prompt.
    reward: what a finished response earns, of the nodes where one ends.
    ends: whether a response ends at the node.
  """

  parent: Int[np.ndarray, " N"]
  reward: Float[np.ndarray, " N"]
  ends: Bool[np.ndarray, " N"]

  def __post_init__(self):
    if len(self.parent) == 0 or self.parent[0] != -1 or (self.parent[1:] >= np.arange(1, len(self.parent))).any():
      raise ValueError("node 0 is the prompt, and every other node stands behind its parent")
    if (self.parent[1:] < 0).any():
      raise ValueError("there is one prompt")

  @property
  def depth(self) -> Int[np.ndarray, " N"]:
    """The number of steps from the prompt."""
    depth = np.zeros(len(self.parent), np.int64)
    for node in range(1, len(self.parent)):
      depth[node] = depth[self.parent[node]] + 1
    return depth

  @property
  def ancestors(self) -> Bool[np.ndarray, "N N"]:
    """For every node those that it comes from, itself included."""
    found = np.eye(len(self.parent), dtype=bool)
    for node in range(1, len(self.parent)):
      found[node] |= found[self.parent[node]]
    return found

  def outcomes(self) -> tuple[Float[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """The rewards c and the number t of finished responses at and below every node."""
    below = self.ancestors.T
    return below @ np.where(self.ends, self.reward, 0.0), below @ self.ends.astype(np.int64)


class Classes:
  """Which nodes are one state: merged one pair at a time, so that the classes stay in an order."""

  def __init__(self, parent: Sequence[int] | np.ndarray = (-1,)):
    self._class: list[int] = []
    self._members: list[list[int]] = []
    self._reaches = np.zeros(
      (0, 0), bool
    )  # [class, class], itself included; rows of classes that were merged away are stale
    for p in parent:
      self.add(int(p))

  def add(self, parent: int) -> int:
    """Add a node behind its parent, a class of its own; return its number."""
    node = len(self._class)
    self._class.append(len(self._members))
    self._members.append([node])
    grown = np.zeros((node + 1, node + 1), bool)
    grown[:node, :node] = self._reaches
    grown[node, node] = True
    if parent >= 0:
      grown[:, node] |= grown[:, self._class[parent]]
    self._reaches = grown
    return node

  @property
  def of_node(self) -> Int[np.ndarray, " N"]:
    """The class of every node, numbered by its first member."""
    return np.array([self._members[c][0] for c in self._class], np.int64)

  def members(self, node: int) -> list[int]:
    """The nodes that are one state with this one, itself included, rising."""
    return sorted(self._members[self._class[node]])

  def may_join(self, u: int, v: int) -> bool:
    """Tell whether two nodes are one state already, or may become it."""
    a, b = self._class[u], self._class[v]
    return a == b or not (self._reaches[a, b] or self._reaches[b, a])

  def join(self, u: int, v: int) -> bool:
    """Make two nodes one state, with all that are one with either; False where they may not be."""
    if not self.may_join(u, v):
      return False
    a, b = sorted((self._class[u], self._class[v]))
    if a == b:
      return True
    from_either, to_either = self._reaches[a] | self._reaches[b], self._reaches[:, a] | self._reaches[:, b]
    for node in self._members[b]:
      self._class[node] = a
    self._members[a] += self._members[b]
    self._members[b] = []
    # Rows and columns of b stay as aliases of a, so that nobody has to renumber.
    to_either[[a, b]] = from_either[[a, b]] = True
    self._reaches |= np.outer(to_either, from_either)
    self._class_alias(a, b)
    return True

  def _class_alias(self, a: int, b: int) -> None:
    self._reaches[b] = self._reaches[a]
    self._reaches[:, b] = self._reaches[:, a]

  def join_similar(self, node: int, similarity: Float[np.ndarray, " others"], kappa: float) -> bool:
    """Join a new node with those before it that are similar enough, the most similar first; tells whether any was."""
    order = np.argsort(-similarity, kind="stable")
    joined = [self.join(node, int(other)) for other in order if similarity[other] >= kappa and other != node]
    return any(joined)


class EdgeCredit(NamedTuple):
  """What the edge to every node earns; 0 for the prompt, which none leads to."""

  advantage: Float[np.ndarray, " N"]  # A
  correctness: Float[np.ndarray, " N"]  # A_cor
  efficiency: Float[np.ndarray, " N"]  # A_eff
  score: Float[np.ndarray, " N"]  # S


def credit(
  tree: Tree,
  classes: Int[np.ndarray, " N"],
  *,
  weight: float,
  efficiency: float,
  similarity_to_parent: Float[np.ndarray, " N"] | None = None,
) -> EdgeCredit:
  """Compute the advantage of every edge.

  Args:
    classes: of every node a number; nodes of one number are one state.
    weight: w, of the outcomes of a state's other nodes, in [0, 1].
    efficiency: lambda.
    similarity_to_parent: of every node's state to its parent's; None: none is, and the gate is open.
  """
  c, t = tree.outcomes()
  score = pooled_scores(c, t, classes, weight, tree.parent)
  correctness = correctness_advantage(tree, classes, score, similarity_to_parent)
  of_paths = efficiency_advantage(tree, classes, score)
  return EdgeCredit(correctness + efficiency * of_paths, correctness, of_paths, score)


def pooled_scores(
  c: Float[np.ndarray, " N"],
  t: Int[np.ndarray, " N"],
  classes: Int[np.ndarray, " N"],
  weight: float,
  parent: Int[np.ndarray, " N"] | None = None,
) -> Float[np.ndarray, " N"]:
  """Compute S; a node of whose state no response is finished has its parent's (ours: the paper leaves 0 / 0 open)."""
  of_class = np.unique(classes, return_inverse=True)[1]
  total_c, total_t = (np.bincount(of_class, a)[of_class] for a in (c, t))
  pooled_c, pooled_t = c + weight * (total_c - c), t + weight * (total_t - t)
  with_any = np.where(pooled_t > 0, pooled_t, 1)
  score = np.where(pooled_t > 0, pooled_c / with_any, np.nan)
  for node in np.flatnonzero(np.isnan(score)):  # parents stand before their children
    score[node] = score[parent[node]] if parent is not None and parent[node] >= 0 else 0.0
  return score


def correctness_advantage(
  tree: Tree,
  classes: Int[np.ndarray, " N"],
  score: Float[np.ndarray, " N"],
  similarity_to_parent: Float[np.ndarray, " N"] | None = None,
) -> Float[np.ndarray, " N"]:
  """Compute A_cor. All members of a state have the same group, so an edge that several of them share has one value."""
  children = np.arange(1, len(tree.parent))
  parent = tree.parent[1:]
  gate = 0.0 if similarity_to_parent is None else np.maximum(0.0, similarity_to_parent[children])
  reward = (score[children] - score[parent]) * (1 - gate)
  out = np.zeros(len(tree.parent))
  out[children] = standardised(reward, classes[parent])
  return out


def standardised(x: Float[np.ndarray, " n"], groups: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
  """Subtract each group's mean and divide by its standard deviation; 0 where a group has one member, or equal ones."""
  of_group = np.unique(groups, return_inverse=True)[1]
  number = np.bincount(of_group)[of_group]
  mean = (np.bincount(of_group, x) / np.bincount(of_group))[of_group]
  std = np.sqrt((np.bincount(of_group, (x - mean) ** 2) / np.bincount(of_group))[of_group])
  return np.where(number > 1, (x - mean) / (std + EPSILON), 0.0)


def efficiency_advantage(
  tree: Tree, classes: Int[np.ndarray, " N"], score: Float[np.ndarray, " N"]
) -> Float[np.ndarray, " N"]:
  """Compute A_eff of every edge: shorter ways to one state earn more, by how good the state is."""
  depth, ancestors, out = tree.depth, tree.ancestors, np.zeros(len(tree.parent))
  for members in (np.flatnonzero(classes == number) for number in np.unique(classes)):
    if len(members) < 2:
      continue
    common = ancestors[members].all(axis=0)
    start = int(np.flatnonzero(common)[np.argmax(depth[common])])
    length = (depth[members] - depth[start]).astype(float)
    value = score[members].mean() * standardised(-length, np.zeros(len(members), np.int64))
    on_way = ancestors[members] & ~ancestors[start]
    out += value @ on_way
  return out


def variance_factor(k: int, weight: float) -> float:
  """The lemma's rho_k: by how much pooling k equal nodes lowers the variance of a score, (1 + (k - 1) w^2) / (1 + w (k - 1))^2."""
  return (1 + (k - 1) * weight**2) / (1 + weight * (k - 1)) ** 2
