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
  """Accuracy of responses whose first round(share T) tokens the teacher wrote, at temperature 1, by share.

  A share of 0 is the accuracy of `panel.read`, and a share of 1 the teacher's own.

  Two programs are compiled beside those of the panel, and kept there: the teacher's rollout, which runs once per panel,
  and the student's after a prefix, one for all shares between 0 and 1 (another set of shares is another width).
  """
  said = prefixed(panel, params, [round(share * panel.horizon) for share in shares])
  return {share: float(panel.judge(whole).mean()) for share, whole in zip(shares, said, strict=True)}


def prefixed(panel: Panel, params: Params, lengths: Sequence[int]) -> list[Rollout]:
  """For each number of tokens, responses that the teacher begins with so many and the student ends.

  Teacher's prefixes of one row are beginnings of each other. A row that the teacher has ended within its prefix stands
  as it is. The log-probabilities are each writer's own.
  """
  T, inside = panel.horizon, [n for n in lengths if 0 < n < panel.horizon]
  out = []
  for n in lengths:
    if n in (0, T):
      out.append(panel.taught if n else panel.written(params))
      continue
    prompts = [[*ids, *map(int, row[:n])] for ids, row in zip(panel.ids, panel.taught.response, strict=True)]
    width = pipeline.width(panel.ids) + max(inside)
    more = panel.speak(panel.recipe, params, prompts, width, T - min(inside), T - n, 2)
    out.append(joined(panel.taught, more, n))
  return out


def joined(first: Rollout, more: Rollout, n: int) -> Rollout:
  """The first n tokens of one rollout and then another, in the rows that have not ended before; of host arrays [N, T]."""
  T, goes_on = first.mask.shape[1], np.asarray(first.mask)[:, n]

  def after(name: str, nothing: float) -> np.ndarray:
    a, b = (np.asarray(getattr(r, name)) for r in (first, more))
    return np.concatenate([a[:, :n], np.where(goes_on[:, None], b[:, : T - n], nothing)], axis=1).astype(a.dtype)

  return dataclasses.replace(
    first,
    response=after("response", 0),
    mask=after("mask", False),
    behavior_logprob=after("behavior_logprob", 0.0),
    ended=np.where(goes_on, more.ended, first.ended),
  )
