"""Rollouts that branch: from a prompt, layer by layer, several next steps from each state that has not ended.

    layer h:  every living node of the frontier gets a number of children       allocate
              one program samples all of them, each behind its own true prefix   (rollout/sample.py, `expand`)
              each child is a step: it ends at a delimiter, at a stop token, or at `step_tokens`    grow

The number of rows of a layer is the product of the widths up to it, whatever has ended, so the programs of a run are known before it. A
node that joins a state which is there already (objectives/graph_advantage.py) gets half of its children, one at least; those saved go to
the frontier's other nodes in turn (the receiver is ours). A chain has widths (n, 1, 1, ...), a plain tree no joined states.

Trees are kept on the host, those of a process's prompts by this process.

Dimensions: p prompts, r rows of a prompt in a layer, L tokens of a step, D layers, n = r of the last layer, H = D L.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from opd_jax.objectives.graph_advantage import Classes, Tree

NOBODY = -1


@dataclasses.dataclass
class Node:
  """A state, and the step that led to it."""

  parent: int
  tokens: list[int]
  logprob: list[float]  # of each token when it was drawn
  ended: bool  # by a stop token; nothing goes on from here
  children: int = 0
  redundant: bool = False  # it joined a state that was there
  state: Any = None  # what states are compared by, see recipes/graph.py
  summary: list[int] = dataclasses.field(
    default_factory=list
  )  # of the steps so far, with what ended it, where it is read


class Branches:
  """The tree of one prompt while it grows, and which of its nodes are one state.

  Attributes:
    nodes: the first is the prompt.
    classes: of the nodes.
    frontier: the nodes of the last layer, by row; NOBODY where a row is not used.
  """

  def __init__(self):
    self.nodes = [Node(NOBODY, [], [], False)]
    self.classes = Classes()
    self.frontier: list[int] = [0]

  def path(self, node: int) -> list[int]:
    """The nodes from the first step to this one, itself included."""
    found = []
    while node > 0:
      found.append(node)
      node = self.nodes[node].parent
    return found[::-1]

  def tokens(self, node: int) -> list[int]:
    """The tokens of all steps to a node."""
    return [token for step in self.path(node) for token in self.nodes[step].tokens]

  def text(self, node: int, tokenizer: Any, stop_ids: Sequence[int]) -> str:
    """Decode all steps to a node, without what ends a response."""
    tokens = [token for token in self.tokens(node) if token not in stop_ids]
    return tokenizer.decode(tokens, skip_special_tokens=False)

  def allocate(self, width: int, rows: int, halve: bool = True) -> Int[np.ndarray, " r"]:
    """Choose the frontier row that each row of the next layer goes on from; NOBODY where none does.

    Args:
      width: children of a node.
      rows: of the next layer; at least `width` times those of the frontier.
      halve: whether nodes that joined a state get half.
    """
    living = [i for i, node in enumerate(self.frontier) if node != NOBODY and not self.nodes[node].ended]
    budget = {i: max(1, width // 2) if halve and self.nodes[self.frontier[i]].redundant else width for i in living}
    others = [i for i in living if budget[i] == width]
    saved = sum(width - b for b in budget.values())
    for k in range(saved if others else 0):
      budget[others[k % len(others)]] += 1
    source = [i for i in living for _ in range(budget[i])]
    return np.array(source + [NOBODY] * (rows - len(source)), np.int32)

  def grow(
    self,
    source: Int[np.ndarray, " r"],
    response: Int[np.ndarray, "r L"],
    mask: Bool[np.ndarray, "r L"],
    logprob: Float[np.ndarray, "r L"],
    stop_ids: Sequence[int],
  ) -> list[int]:
    """Add the children of a layer, by row; return the new nodes.

    Args:
      stop_ids: tokens that end a response; what ends a step alone is none of them.
    """
    before, self.frontier, new = self.frontier, [], []
    for row, i in enumerate(source):
      if i == NOBODY:
        self.frontier.append(NOBODY)
        continue
      tokens = response[row][mask[row]].tolist()
      parent = before[i]
      self.nodes[parent].children += 1
      self.nodes.append(Node(parent, tokens, logprob[row][mask[row]].tolist(), bool(tokens) and tokens[-1] in stop_ids))
      self.frontier.append(self.classes.add(parent))
      new.append(self.frontier[-1])
    return new

  def join(self, new: Sequence[int], similarity: Float[np.ndarray, "new nodes"], kappa: float) -> None:
    """Join new nodes with states before them that are similar enough.

    Args:
      similarity: of each new node to every node.
    """
    for row, node in zip(similarity, new, strict=True):
      self.nodes[node].redundant = self.classes.join_similar(node, row[:node], kappa)

  @property
  def leaves(self) -> list[int]:
    """The nodes where responses end, or are cut: those without children."""
    return [i for i, node in enumerate(self.nodes) if i and not node.children]

  @property
  def generated(self) -> int:
    """The tokens of all steps, each counted once."""
    return sum(len(node.tokens) for node in self.nodes)

  @property
  def summarised(self) -> int:
    """The tokens of all summaries."""
    return sum(len(node.summary) for node in self.nodes)

  def tree(self, reward_of_leaf: dict[int, float]) -> Tree:
    """The tree with the rewards of its leaves."""
    n, leaves = len(self.nodes), set(self.leaves)
    return Tree(
      np.array([node.parent for node in self.nodes]),
      np.array([reward_of_leaf.get(i, 0.0) for i in range(n)]),
      np.array([i in leaves for i in range(n)]),
    )


@dataclasses.dataclass(frozen=True)
class Paths:
  """The ways to all leaves of one prompt's tree, a row each; rows behind them are empty.

  Attributes:
    leaf: of each row; NOBODY behind them.
    node: of every token the node that it is a step to; NOBODY where there is no token.
    first: true on the tokens of a step in the first row that has it, so that each is learned from once.
  """

  leaf: list[int]
  response: Int[np.ndarray, "n H"]
  mask: Bool[np.ndarray, "n H"]
  logprob: Float[np.ndarray, "n H"]
  ended: Bool[np.ndarray, " n"]
  node: Int[np.ndarray, "n H"]
  first: Bool[np.ndarray, "n H"]

  @classmethod
  def of(cls, branches: Branches, rows: int, length: int, pad_id: int) -> "Paths":
    """Lay out the ways to the leaves.

    Raises:
      ValueError: there are more leaves than rows.
    """
    leaves = branches.leaves
    if len(leaves) > rows:
      raise ValueError(f"{len(leaves)} leaves do not fit {rows} rows")
    shape = rows, length
    response, node = np.full(shape, pad_id, np.int32), np.full(shape, NOBODY, np.int64)
    logprob, first = np.zeros(shape, np.float32), np.zeros(shape, bool)
    seen: set[int] = set()
    for row, leaf in enumerate(leaves):
      at = 0
      for step in branches.path(leaf):
        part = slice(at, at + len(branches.nodes[step].tokens))
        response[row, part], logprob[row, part] = branches.nodes[step].tokens, branches.nodes[step].logprob
        node[row, part], first[row, part] = step, step not in seen
        at = part.stop
        seen.add(step)
    ended = np.array([branches.nodes[leaf].ended for leaf in leaves] + [False] * (rows - len(leaves)))
    return cls(leaves + [NOBODY] * (rows - len(leaves)), response, node != NOBODY, logprob, ended, node, first)


def rows_of_layers(widths: Sequence[int]) -> list[int]:
  """The rows of a prompt in each layer."""
  return [math.prod(widths[: h + 1]) for h in range(len(widths))]
