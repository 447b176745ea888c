"""What is recorded of trees of rollouts (branch.py): a step's metrics, and graphs to look at."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from opd_jax.data.branched import BranchedResponses, Step
from opd_jax.objectives.graph_advantage import EdgeCredit
from opd_jax.rollout.branch import Branches


def counts(tree: Branches, earned: EdgeCredit, rows: int) -> Float[np.ndarray, "rows 10"]:
  """Count what `metrics` are made of, in the first of a tree's rows, so that processes can gather it.

  Returns:
    Steps, those that joined a state, states, steps with an advantage, their tokens; of the ways to leaves their steps, how many ended,
    and their tokens; the tokens of summaries, and steps whose state nothing is compared by.
  """
  steps = tree.nodes[1:]
  classes = len(set(tree.classes.of_node[1:].tolist()))
  depth = sum(len(tree.path(leaf)) for leaf in tree.leaves)
  taught = int((earned.advantage[1:] != 0).sum())
  ended = sum(tree.nodes[leaf].ended for leaf in tree.leaves)
  length = sum(len(tree.tokens(leaf)) for leaf in tree.leaves)
  joined = sum(node.redundant for node in steps)
  stateless = sum(node.state is None for node in steps)
  found = np.zeros((rows, 10), np.float32)
  found[0] = len(steps), joined, classes, taught, tree.generated, depth, ended, length, tree.summarised, stateless
  return found


def metrics(
  counted: Float[np.ndarray, "rows 10"], prompts: int, leaves: int, summaries: bool = False
) -> dict[str, Any]:
  """Make the metrics of a step's trees.

  Args:
    counted: of all trees, see `counts`.
    prompts: how many trees.
    leaves: of all of them.
    summaries: whether there are any.
  """
  steps, joined, states, taught, generated, depth, ended, length, summarised, stateless = counted.sum(axis=0)
  return {
    "teaching_groups": float((counted[:, 3] > 0).sum() / prompts),
    "steps_sampled": int(steps),
    "states": int(states),
    "responses": leaves,
    "joined": float(joined / steps),
    "teaching_steps": float(taught / steps),
    "steps_of_response": float(depth / leaves),
    "step_tokens": int(generated + summarised),
    **({"summary_tokens": int(summarised), "unsummarised": int(stateless)} if summaries else {}),
    "response_length": float(length / leaves),
    "ended": float(ended / leaves),
    "cut": 1 - float(ended / leaves),
  }


def graph(
  step: int,
  prompt: str,
  tree: Branches,
  reward_of_leaf: dict[int, float],
  earned: EdgeCredit,
  text: Callable[[Sequence[int]], str],
) -> BranchedResponses:
  """Describe a tree with what its steps earn.

  Args:
    step: the training step.
    text: decodes tokens.
  """
  steps = [
    Step(
      parent=node.parent,
      state=int(tree.classes.of_node[i]),
      text=text(node.tokens),
      tokens=len(node.tokens),
      score=float(earned.score[i]),
      advantage=float(earned.advantage[i]),
      correctness=float(earned.correctness[i]),
      efficiency=float(earned.efficiency[i]),
      reward=reward_of_leaf.get(i),
      ended=node.ended,
      summary=text(node.summary),
    )
    for i, node in enumerate(tree.nodes)
  ]
  return BranchedResponses(step, prompt, steps)
