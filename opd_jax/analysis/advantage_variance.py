"""How much the advantage of a token varies, by its position, when it answers for later tokens too.

With r_k = log t(y_k) - log s(y_k), the advantage of token n is sum_{k >= n} gamma^(k - n) r_k: the token's own ratio at
gamma 0 (token level), the rest of the response at gamma 1 (sequence level). Proposition 1 of arXiv:2605.31490 says how
its variance grows towards the front when the r_k are independent with standard deviations sigma_k = delta k. That the
noise grows like this is assumed there; here it is measured.

Dimensions: N rows, H response positions.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from opd_jax.analysis.measurements import Measurements, survivors


def variances(measured: Measurements, discount: float = 0.9, tokens: int = 0) -> dict[str, Any]:
  """Compute the variances of the advantages over the rows that have a position, and what theory expects of them.

  Args:
    discount: gamma of the level between token and sequence.
    tokens: use the rows with at least so many tokens, up to there: every position then has the same rows, and the
      laws mean what they say. 0: all rows, each to its own end; the positions that two rows or more have.

  Returns:
    position: 1, 2, ..., as the paper counts; count: rows that have it.
    sigma: measured standard deviation of r_k.
    levels: {"token", "discounted", "sequence"}: {"discount", "measured", "independent"}, variances by position; the
      last as if the r_k were independent, see `independent`.
    laws: of the sequence level, as fitted by least squares to the measured variances, rows as weights:
      "linear" {"delta", "r2", "predicted"}: sigma_k = delta k, Proposition 1; "constant" {"sigma", "r2", "predicted"}:
      sigma_k = sigma, so that the variance is linear in the remaining length.
    exponent: p of sigma_k = a k^p, or None, see `exponent`.

  Raises:
    ValueError: fewer than two rows have so many tokens.
  """
  rows, width = survivors(measured, tokens), tokens or measured.mask.shape[1]
  mask = measured.mask[rows, :width]
  mask = mask[:, mask.sum(axis=0) > 1]
  if not mask.size:
    raise ValueError(f"a variance needs two rows or more, and {int(rows.sum())} have {tokens} tokens")
  count, T = mask.sum(axis=0), mask.shape[1]
  r = np.where(mask, measured.log_ratio[rows, :T], 0.0)
  own = variance(r, mask)
  levels = {"token": 0.0, "discounted": discount, "sequence": 1.0}
  by_level = {name: variance(to_go(r, gamma), mask) for name, gamma in levels.items()}
  position, total = np.arange(1, T + 1), by_level["sequence"]
  return {
    "position": position.tolist(),
    "count": count.tolist(),
    "sigma": np.sqrt(own).tolist(),
    "levels": {
      name: {
        "discount": gamma,
        "measured": by_level[name].tolist(),
        "independent": independent(own, count, gamma).tolist(),
      }
      for name, gamma in levels.items()
    },
    "laws": {
      "linear": _fitted("delta", proposition_1(T, 1.0), total, count),
      "constant": _fitted("sigma", (T - position + 1).astype(np.float64), total, count),
    },
    "exponent": exponent(np.sqrt(own), count),
  }


def proposition_1(T: int, delta: float) -> Float[np.ndarray, " T"]:
  """The variance of the sequence-level advantage at n = 1 ... T where sigma_k = delta k.

  delta^2 [T (T + 1) (2 T + 1) - (n - 1) n (2 n - 1)] / 6, of order delta^2 T^3 at n = 1.
  """
  n = np.arange(1, T + 1, dtype=np.float64)
  return delta**2 * (T * (T + 1) * (2 * T + 1) - (n - 1) * n * (2 * n - 1)) / 6


def variance(a: Float[np.ndarray, "N H"], mask: Bool[np.ndarray, "N H"]) -> Float[np.ndarray, " H"]:
  """The unbiased variance at every position, over the rows that have it."""
  a, count = a.astype(np.float64), mask.sum(axis=0)
  mean = np.sum(a, axis=0, where=mask) / count
  return np.sum((a - mean) ** 2, axis=0, where=mask) / (count - 1)


def independent(own: Float[np.ndarray, " H"], count: Int[np.ndarray, " H"], discount: float) -> Float[np.ndarray, " H"]:
  """The variance of advantages if the r_k were independent, from the variances `own` of the r_k.

  sum_{k >= n} discount^(2 (k - n)) own_k, each term by the share of the rows at n that have position k too.

  Where all rows are as long, every share is 1. Elsewhere it is the mean over rows: the part of the variance that is not
  the rows' different lengths.
  """
  return to_go(own * count, discount**2) / count


def to_go(a: Float[np.ndarray, "*b H"], discount: float) -> Float[np.ndarray, "*b H"]:
  """Sum up what is to come, sum_{k >= n} discount^(k - n) a_k: `kl_estimators.cost_to_go` on the host, in float64."""
  out = a.astype(np.float64)
  for n in reversed(range(out.shape[-1] - 1)):
    out[..., n] += discount * out[..., n + 1]
  return out


def exponent(sigma: Float[np.ndarray, " H"], count: Int[np.ndarray, " H"]) -> float | None:
  """Fit p of sigma_k = a k^p by a straight line through the logarithms; None where fewer than two positions have noise.

  A position weighs as much as the rows and the variance it has: at separators sigma is nearly 0, and what is left of it
  says nothing about its growth.
  """
  there = sigma > 0
  if there.sum() < 2:
    return None
  x, y = np.log(np.arange(1, len(sigma) + 1)[there]), np.log(sigma[there])
  w = (count * sigma**2)[there] / (count * sigma**2)[there].sum()
  x -= (w * x).sum()
  return float((w * x * y).sum() / (w * x * x).sum())


def _fitted(
  name: str, shape: Float[np.ndarray, " H"], measured: Float[np.ndarray, " H"], count: Int[np.ndarray, " H"]
) -> dict[str, Any]:
  """Fit the law measured = scale^2 shape, and the share of the variance over positions that it explains."""
  square = (count * shape * measured).sum() / (count * shape**2).sum()
  predicted = square * shape
  mean = (count * measured).sum() / count.sum()
  spread = (count * (measured - mean) ** 2).sum()
  r2 = float(1 - (count * (measured - predicted) ** 2).sum() / spread) if spread > 0 else None
  return {name: float(np.sqrt(square)), "r2": r2, "predicted": predicted.tolist()}
