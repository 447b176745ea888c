"""Prefix continuation: the teacher begins, the student goes on (arXiv:2605.31490, section 5).

How much of a problem is decided by the first tokens: before training, accuracy rises with the teacher's share if a good
beginning is what the student lacks; after training it should be flat, where the gain is in the weights.

Dimensions: N problems, T the longest response.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from opd_jax.analysis.panel import Panel
from opd_jax.data import pipeline
from opd_jax.types import Params, Rollout

SHARES = (0, 0.025, 0.05, 0.1, 0.25, 0.5)


def continuation(panel: Panel, params: Params, shares: Sequence[float] = SHARES) -> dict[float, float]:
  """Measure the accuracy of responses whose first round(share T) tokens the teacher wrote, at temperature 1, by share.

  A share of 0 is the accuracy of `panel.measure`, and a share of 1 the teacher's own.

  Two programs are compiled beside those of the panel, and cached there: the teacher's rollout, which runs once per
  panel, and the student's after a prefix, one for all shares between 0 and 1 (another set of shares is another width).
  """
  rollouts = prefixed(panel, params, [round(share * panel.horizon) for share in shares])
  return {share: float(panel.verify(rollout).mean()) for share, rollout in zip(shares, rollouts, strict=True)}


def prefixed(panel: Panel, params: Params, lengths: Sequence[int]) -> list[Rollout]:
  """Roll out, for each number of tokens, responses that the teacher begins with so many and the student ends.

  Teacher's prefixes of one row are beginnings of each other. A row that the teacher has ended within its prefix stands
  as it is. The log-probabilities are each writer's own.
  """
  T, inside = panel.horizon, [n for n in lengths if 0 < n < panel.horizon]
  rollouts = []
  for n in lengths:
    if n == 0:
      rollouts.append(panel.student_rollout(params))
      continue
    beginning = panel.teacher_rollout
    if n == T:
      rollouts.append(beginning)
      continue
    prompts = [[*ids, *map(int, row[:n])] for ids, row in zip(panel.ids, beginning.response, strict=True)]
    width = pipeline.padded_len(panel.ids) + max(inside)
    end = panel.rollout(panel.student_generator, params, prompts, width, T - min(inside), T - n, 2)
    rollouts.append(joined(beginning, end, n))
  return rollouts


def joined(beginning: Rollout, end: Rollout, n: int) -> Rollout:
  """Join the first n tokens of one rollout and another, in the rows that have not ended before; host arrays [N, T]."""
  T, goes_on = beginning.mask.shape[1], np.asarray(beginning.mask)[:, n]

  def join(name: str, fill: float) -> np.ndarray:
    a, b = (np.asarray(getattr(rollout, name)) for rollout in (beginning, end))
    return np.concatenate([a[:, :n], np.where(goes_on[:, None], b[:, : T - n], fill)], axis=1).astype(a.dtype)

  return dataclasses.replace(
    beginning,
    response=join("response", 0),
    mask=join("mask", False),
    behavior_logprob=join("behavior_logprob", 0.0),
    ended=np.where(goes_on, end.ended, beginning.ended),
  )
