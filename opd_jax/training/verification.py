"""Verifying the responses of a step that every process holds: each process some of them, and all get what each response earns.

A step whose next prompts are made of its verdicts has the same prompts on every process, so that it needs all verdicts on each.

Dimensions: p prompts, n rollouts of each, p n rows.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from opd_jax.context.replies import control_tokens, final_text
from opd_jax.data.problems import Problems
from opd_jax.rewards.reward import Rewards
from opd_jax.rollout.generate import decode, prompt_ends
from opd_jax.runtime import hosts
from opd_jax.runtime import mesh as meshes
from opd_jax.tasks.problem import Response
from opd_jax.types import Rollout


class VerifiedResponses(NamedTuple):
  """Responses to some prompts, n to each, and what they earn; the same on every process."""

  responses: list[Response]
  columns: Float[np.ndarray, "rows columns"]  # of RewardRecord.columns
  solved: Bool[np.ndarray, " rows"]
  masked: Bool[np.ndarray, " rows"]
  summary: dict[str, Any]  # what the record of a step has of rewards
  tokens: int

  @property
  def reward(self) -> Float[np.ndarray, " rows"]:
    """What each response earns."""
    return self.columns[:, 0]

  def rates(self, n: int) -> list[float]:
    """Returns the mean reward of each prompt's responses."""
    return self.reward.reshape(-1, n).mean(axis=1).tolist()


@dataclasses.dataclass(frozen=True)
class ResponseVerifier:
  """Verifies responses to training problems.

  Attributes:
    problems: which the numbers of prompts are of.
    stop_ids: that end a response.
    limit: the longest response, tokens.
  """

  problems: Problems
  rewards: Rewards
  tokenizer: Any
  stop_ids: Sequence[int]
  mesh: jax.sharding.Mesh
  n: int
  limit: int

  def rollouts(
    self, rollout: Rollout, numbers: Sequence[int], ids: Sequence[Sequence[int]], prefixes: Sequence[str] = ()
  ) -> VerifiedResponses:
    """Verifies rollouts; rows behind those of the prompts are left out.

    Args:
      numbers: of the prompts.
      ids: of the prompts as they were read, where a chat template may have opened a thought.
      prefixes: of each prompt's responses the beginning that stood in the prompt.
    """
    n, rows, sharding = self.n, len(numbers) * self.n, meshes.rows(self.mesh)
    response, mask, ended = (
      a[:rows] for a in hosts.all_gather_to_host((rollout.response, rollout.mask, rollout.ended))
    )
    texts = decode(self.tokenizer, response, mask, self.stop_ids)
    begins = [prefix for prefix in prefixes or [""] * len(numbers) for _ in range(n)]
    ends = [end for end in prompt_ends(self.tokenizer, ids) for _ in range(n)]
    of_rows = [number for number in numbers for _ in range(n)]
    parts = zip(begins, texts, ended, ends, strict=True)
    responses = [Response(begin + text, bool(over), end) for begin, text, over, end in parts]
    responses = list(self.problems.with_records(responses, of_rows))
    mine = hosts.rows_of(sharding, rollout.mask.shape[0])
    mine = mine[mine < rows].tolist()
    lengths = mask.sum(axis=1)
    answers = [self.problems.answers[of_rows[i]] for i in mine]
    found = self.rewards.submit([responses[i] for i in mine], answers, lengths[mine], self.limit).result()
    columns = np.concatenate([found.columns(), found.solved[:, None], found.masked[:, None]], axis=1)
    every = np.zeros((rollout.mask.shape[0], columns.shape[1]), np.float32)
    every[mine] = columns
    every = hosts.all_gather_to_host(hosts.to_global(every, sharding))[:rows]
    columns, solved, masked = every[:, :-2], every[:, -2] > 0, every[:, -1] > 0
    return VerifiedResponses(responses, columns, solved, masked, found.metrics(columns), int(mask.sum()))

  def right(
    self, written: Sequence[Sequence[str]], numbers: Sequence[int], ends: Sequence[str], limit: int
  ) -> list[list[Response]]:
    """Finds what another writer has answered right; the first process verifies. A response that says nothing is not verified.

    Args:
      written: the responses to each of some problems.
      numbers: of the problems.
      ends: of each one's prompt the last tokens, where a chat template may have opened a thought.
      limit: the longest that a response could be, tokens.
    """
    control = control_tokens(self.tokenizer)
    rows = [(i, Response(text, True, ends[i])) for i, texts in enumerate(written) for text in texts]
    rows = [(i, response) for i, response in rows if final_text(response, control).strip()]
    solved = np.zeros(len(rows), bool)
    if rows and hosts.first():
      of_rows = [numbers[i] for i, _ in rows]
      responses = self.problems.with_records([response for _, response in rows], of_rows)
      answers = [self.problems.answers[number] for number in of_rows]
      solved = self.rewards.submit(responses, answers, np.zeros(len(rows), np.int64), limit).result().solved
    found: list[list[Response]] = [[] for _ in written]
    for (i, response), good in zip(rows, hosts.from_first(solved), strict=True):
      found[i] += [response] * bool(good)
    return found
