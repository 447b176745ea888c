"""One token whose advantage does not change: where each surrogate stops, and what it weighs on the way.

The token has probability mu under the sampler and pi under the policy, r = pi / mu. Every surrogate's gradient is
-A r w grad log pi; with pi the logistic of one number, d log pi = 1 - pi. The weights are written out here from the papers'
formulas, apart from the library's own code (arXiv:2606.09821, arXiv:2602.04879). DRPO stops where |pi - mu| is its threshold, SPO
where |pi / mu - 1| is, DPPO and PPO a step beyond their boundary, and plain importance weighting nowhere.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

MU = (0.02, 0.3, 0.7)  # a rare token, one of several, and a likely one
DELTA, EPS = 0.15, 0.2
CLIP_HIGH = 0.28
STEPS, RATE = 4_000, 0.05

Weight = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # of pi, mu, A


class Stop(NamedTuple):
  """Where the probability of one token comes to rest under one surrogate."""

  surrogate: str
  mu: float
  advantage: float
  pi: float


def importance(pi: np.ndarray, mu: np.ndarray, advantage: np.ndarray) -> np.ndarray:
  """The weight of the plain importance-weighted policy gradient: 1."""
  return np.ones(np.broadcast_shapes(np.shape(pi), np.shape(mu), np.shape(advantage)))


def clip(pi: np.ndarray, mu: np.ndarray, advantage: np.ndarray) -> np.ndarray:
  """The weight of PPO with clip-higher: 0 where the ratio has left [1 - .2, 1 + .28] in the advantage's direction."""
  r = pi / mu
  return np.where(np.where(advantage > 0, r > 1 + CLIP_HIGH, r < 1 - EPS), 0.0, 1.0)


def spo(pi: np.ndarray, mu: np.ndarray, advantage: np.ndarray) -> np.ndarray:
  """The weight of SPO: linear in the ratio, so without a bound as mu goes to 0."""
  return 1 - np.sign(advantage) * (pi / mu - 1) / EPS


def dppo(pi: np.ndarray, mu: np.ndarray, advantage: np.ndarray) -> np.ndarray:
  """The weight of DPPO, binary total variation: 0 where pi has left mu by more than delta in the advantage's direction."""
  return np.where(np.sign(advantage) * (pi - mu) > DELTA, 0.0, 1.0)


def drpo(pi: np.ndarray, mu: np.ndarray, advantage: np.ndarray) -> np.ndarray:
  """The weight of DRPO: linear in the probability, within [1 - 1/delta, 1 + 1/delta]."""
  return 1 - np.sign(advantage) * (pi - mu) / DELTA


def unscaled_drpo(pi: np.ndarray, mu: np.ndarray, advantage: np.ndarray) -> np.ndarray:
  """The weight of DRPO whose penalty has no factor |A|: the boundary is delta |A|."""
  return 1 - (pi - mu) / (DELTA * advantage)


SURROGATES: dict[str, Weight] = {
  "importance weighting": importance,
  f"PPO clip {EPS:g}/{CLIP_HIGH:g}": clip,
  f"SPO {EPS:g}": spo,
  f"DPPO {DELTA:g}": dppo,
  f"DRPO {DELTA:g}": drpo,
  f"DRPO {DELTA:g} without |A|": unscaled_drpo,
}


def path(weight: Weight, mu: np.ndarray, advantage: np.ndarray, steps: int = STEPS, rate: float = RATE) -> np.ndarray:
  """Follow the gradient of tokens from pi = mu; their probabilities before the first step and after each, [steps + 1, *b].

  Args:
    mu, advantage: of each token, [*b].
    rate: step of the logit for a gradient of size 1; the gradient A (pi / mu) w (1 - pi) is clipped at 1, since SPO's has no
      bound.
  """
  logit = np.log(mu / (1 - mu))
  found = np.empty((steps + 1, *mu.shape))
  for step in range(steps + 1):
    pi = found[step] = 1 / (1 + np.exp(-logit))
    logit = logit + rate * np.clip(advantage * pi / mu * weight(pi, mu, advantage) * (1 - pi), -1, 1)
  return found


def stops(advantages: Sequence[float] = (1.0,)) -> list[Stop]:
  """Where every surrogate has come to after `STEPS` steps, for every mu and advantage."""
  found = []
  mu, advantage = (grid.ravel() for grid in np.meshgrid(MU, advantages, indexing="ij"))
  for name, weight in SURROGATES.items():
    last = path(weight, mu, advantage)[-1]
    found += [Stop(name, *map(float, at)) for at in zip(mu, advantage, last, strict=True)]
  return found


def minimiser(weight: Weight, mu: float, advantage: float = 1.0) -> float:
  """The pi at which the weight changes its sign, to 1e-4: the minimum, or where a mask begins; 1 or 0 without any."""
  pi = np.arange(mu, 1, 1e-4) if advantage > 0 else np.arange(mu, 0, -1e-4)
  below = np.flatnonzero(weight(pi, np.array(mu), np.array(advantage)) <= 0)
  return float(pi[below[0]]) if len(below) else float(advantage > 0)
