"""Advantages from the rewards of whole responses.

Dimensions: p prompts, n rollouts of each, B = p n rows; a prompt's rollouts stand together.
"""

import numpy as np
from jaxtyping import Float


def group_relative(reward: Float[np.ndarray, "B"], n: int, *, std: bool = False) -> Float[np.ndarray, "B"]:
  """Compute each reward minus the mean over its prompt's n rollouts; exactly 0 where these all earn the same.

  Args:
    std: divide by the group's standard deviation as well (GRPO, arXiv:2402.03300), which makes easy and hard prompts
      weigh more than those in between (arXiv:2503.20783).
  """
  groups = np.asarray(reward, np.float64).reshape(-1, n)
  advantage = groups - groups.mean(axis=1, keepdims=True)
  if std:
    advantage /= groups.std(axis=1, keepdims=True) + 1e-6
  equal = groups.min(axis=1, keepdims=True) == groups.max(axis=1, keepdims=True)
  advantage = np.where(equal, 0.0, advantage)  # rounding would leave something that std magnifies
  return advantage.astype(np.float32).reshape(-1)
