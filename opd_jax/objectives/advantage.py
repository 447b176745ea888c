"""Advantages from the rewards of whole responses.

    kind                      A of a rollout with reward r, in a group of n rollouts of one prompt
    group                     r - mean of the group; Dr. GRPO's (arXiv:2503.20783), with objective.normaliser=constant
    group_std                 (r - mean) / standard deviation of the group; GRPO's (arXiv:2402.03300)
    leave_one_out             r - mean of the other n - 1; RLOO's (arXiv:2402.14740)
    reinforce_pp              (r - mean of the group) / standard deviation of that over the batch: REINFORCE++-baseline
                              (arXiv:2501.03262); REINFORCE++ itself has no group and takes the batch's mean
    reinforce_pp_nontrivial   the same over the groups whose rollouts do not all earn the same (ZPPO, arXiv:2606.18216)

A group whose rollouts all earn the same has advantages of exactly 0 in each of them. Standard deviations are the population's, over
n; TRL's and verl's are a sample's, over n - 1, so that theirs of a group of 8 are 7% larger.

Dimensions: p prompts, n rollouts of each, B = p n rows; a prompt's rollouts stand together.
"""

import numpy as np
from jaxtyping import Bool, Float

KINDS = ("group", "group_std", "leave_one_out", "reinforce_pp", "reinforce_pp_nontrivial")
EPSILON = 1e-6  # beside a standard deviation


def of_rewards(
  kind: str, reward: Float[np.ndarray, " B"], n: int, *, batch: Float[np.ndarray, "..."] | None = None
) -> Float[np.ndarray, " B"]:
  """Compute the advantage of each row.

  Args:
    kind: one of KINDS.
    batch: the rewards of the whole batch in its order, where `reward` is one process's part of it; None: they are the same.

  Raises:
    ValueError: there is no such kind, or leave_one_out has no other rollout.
  """
  if kind not in KINDS:
    raise ValueError(f"advantages of kind {kind!r} are not one of {', '.join(KINDS)}")
  centred = _centred(reward, n)
  if kind == "group_std":
    centred /= np.asarray(reward, np.float64).reshape(-1, n).std(axis=1, keepdims=True) + EPSILON
  elif kind == "leave_one_out":
    if n < 2:
      raise ValueError("leave_one_out needs two rollouts of a prompt at least")
    centred *= n / (n - 1)
  elif kind.startswith("reinforce_pp"):
    of_batch = _centred(reward if batch is None else batch, n)
    if kind == "reinforce_pp_nontrivial":
      of_batch = of_batch[of_batch.any(axis=1)]
    centred /= (of_batch.std() if of_batch.size else 0.0) + EPSILON
  return centred.astype(np.float32).reshape(-1)


def kind(config) -> str:
  """Return the kind that a config means; "auto" is group, or group_std with mixture.reward_std."""
  if config.advantage.kind != "auto":
    return config.advantage.kind
  return "group_std" if config.mixture.reward_std else "group"


def teaches(reward: Float[np.ndarray, " B"], n: int) -> Bool[np.ndarray, " p"]:
  """Tell which groups have rollouts that do not all earn the same."""
  groups = np.asarray(reward).reshape(-1, n)
  return groups.min(axis=1) != groups.max(axis=1)


def group_relative(reward: Float[np.ndarray, " B"], n: int, *, std: bool = False) -> Float[np.ndarray, " B"]:
  """Compute each reward minus the mean over its prompt's n rollouts; exactly 0 where these all earn the same.

  Args:
    std: divide by the group's standard deviation as well, which makes easy and hard prompts weigh more than those in
      between (arXiv:2503.20783).
  """
  return of_rewards("group_std" if std else "group", reward, n)


def _centred(reward: Float[np.ndarray, "..."], n: int) -> Float[np.ndarray, "p n"]:
  groups = np.asarray(reward, np.float64).reshape(-1, n)
  centred = groups - groups.mean(axis=1, keepdims=True)
  # Rounding would leave something of equal rewards, which a division magnifies.
  return np.where(teaches(groups.reshape(-1), n)[:, None], centred, 0.0)
