"""Rollouts that branch, step by step with what each step earns, as JSON lines: graphs.jsonl of a workdir.

One object a line, a prompt's graph, with the fields of `BranchedResponses`.
"""

import dataclasses
import pathlib
from typing import Any

from opd_jax.runtime import json_files
from opd_jax.runtime.json_files import is_number, is_whole

FILE = "graphs.jsonl"


@dataclasses.dataclass(frozen=True)
class Step:
  """A state, and the step that leads there from its parent; the first is the prompt.

  Attributes:
    parent: its number; -1 of the prompt.
    state: the number of the first node that is the same state; its own where it is the first.
    text: of the step, with special tokens.
    tokens: how many.
    score: S, the pooled share of right responses behind it.
    advantage, correctness, efficiency: what the step earns: the second plus lambda times the third.
    reward: of a response that ends here, or is cut; None where others go on.
    ended: whether by a stop token.
    summary: of the steps so far, where it is what states are compared by.
  """

  parent: int
  state: int
  text: str
  tokens: int
  score: float
  advantage: float
  correctness: float
  efficiency: float
  reward: float | None
  ended: bool
  summary: str = ""


@dataclasses.dataclass(frozen=True)
class BranchedResponses:
  """The responses to one prompt as a graph.

  Attributes:
    step: the training step that learns from it.
    prompt: as it was read, with special tokens.
    steps: parents stand before their children.
  """

  step: int
  prompt: str
  steps: list[Step]

  def to_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self)


def read(path: pathlib.Path) -> list[BranchedResponses]:
  """Read the graphs of a file; none where there is no file, and not a last line that was cut.

  Raises:
    InputError: a line is no graph.
  """
  return json_files.read_records(path, _parsed, "graph")


def _parsed(value: Any) -> BranchedResponses:
  if not isinstance(value, dict) or not is_whole(value["step"]) or not isinstance(value["prompt"], str):
    raise ValueError("step or prompt is missing")
  steps = [Step(**each) for each in value["steps"]]
  for i, each in enumerate(steps):
    if not (is_whole(each.parent, -1) and each.parent < i and (each.parent >= 0) == (i > 0)):
      raise ValueError(f"step {i} has no parent before it")
    if not (is_whole(each.state) and each.state <= i and steps[each.state].state == each.state):
      raise ValueError(f"step {i} has no state")
    numbers = (each.score, each.advantage, each.correctness, each.efficiency)
    if not all(map(is_number, numbers)) or not (each.reward is None or is_number(each.reward)):
      raise ValueError(f"step {i} lacks a number")
    if not (
      isinstance(each.text, str)
      and isinstance(each.summary, str)
      and is_whole(each.tokens)
      and isinstance(each.ended, bool)
    ):
      raise ValueError(f"step {i} lacks its text")
  if not steps:
    raise ValueError("no steps")
  return BranchedResponses(value["step"], value["prompt"], steps)
