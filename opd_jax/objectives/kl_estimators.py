"""Estimators of a divergence from the drawn token alone, and importance weights.

With y drawn by the student (for nll by another model or from data, see config.rollout.by), r = log s(y) - log t(y), and
the derivative always taken by log s(y):

    estimator   value                 coefficient of grad log s(y)           expected gradient
    k1          r                     sg(r), or with a discount sg(r_n + discount r_n+1 + ...)
                                                                             reverse KL
    k2          r^2 / 2               r                                      reverse KL
    k3          exp(-r) - 1 + r       1 - exp(-r)                            forward KL
    nll         -log s(y)             -1                                     forward KL to whoever drew y
    suppress    -A log s(y), A < 0    -A                                     none: no teacher is asked

k1 is a policy gradient whose advantage is -r; differentiating its value itself would give grad log s(y), whose
expectation is zero whatever the teacher says, and is refused. k2 and k3 are differentiated directly (their gradient at
a drawn token; that of k2 is k1's without a discount). The expectations are those at a given prefix. With discount 1 the
gradient of k1 is that of the reverse KL between whole sequences, with 0 that of the sum over positions for prefixes
that stay as they are (arXiv:2605.31490, section 3).

TOP-D's proximal teacher p = beta t + (1 - beta) s (arXiv:2607.04751) is k1 with r = log s(y) - log p(y), which is never above
-log(1 - beta). "suppress" is the control of arXiv:2608.31046: tokens that the student itself finds unlikely (weights.kind=rare)
get a fixed negative advantage, and what OPD gains beyond that is what the teacher has taught.

Dimensions: B rows, H response positions.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

SUPPRESS = "suppress"  # the objective without a teacher, and its estimator
ESTIMATORS = {  # by what their expected gradient belongs to
  "reverse_kl": ("k1", "k2"),
  "forward_kl": ("k3", "nll"),
  "proximal": ("k1",),
  SUPPRESS: (SUPPRESS,),
}
FUTURES = ("discounted", "mean")
IMPORTANCE = ("auto", "none", "truncated", "masked")
LEVELS = ("token", "prefix", "sequence")


def value(estimator: str, r: Float[Array, "B H"]) -> Float[Array, "B H"]:
  """Estimate the divergence from each drawn token, in nats.

  Args:
    estimator: "k1", "k2" or "k3"; nll estimates no divergence from a teacher.
    r: log s(y) - log t(y).
  """
  match estimator:
    case "k1":
      return r
    case "k2":
      return r * r / 2
    case "k3":
      return jnp.expm1(-r) + r
  raise ValueError(f"estimator {estimator!r} has no value of its own; k1, k2 and k3 have")


def coefficient(
  estimator: str, r: Float[Array, "B H"], mask: Bool[Array, "B H"], discount: float = 0.0
) -> Float[Array, "B H"]:
  """Compute the coefficient of grad log s(y), 0 outside the mask.

  Args:
    estimator: one of ESTIMATORS.
    r: log s(y) - log t(y); clipped, if the loss clips it.
    discount: used by k1 and k2.

  Raises:
    ValueError: when there is no such estimator.
  """
  r = jnp.where(mask, r, 0.0)
  match estimator:
    case "k1" | "k2":
      return jnp.where(mask, cost_to_go(r, discount), 0.0)
    case "k3":
      return jnp.where(mask, -jnp.expm1(-r), 0.0)
    case "nll":
      return jnp.where(mask, -1.0, 0.0)
  raise ValueError(f"estimator {estimator!r} is not one of {', '.join(e for of in ESTIMATORS.values() for e in of)}")


def proximal_log_ratio(r: Float[Array, "B H"], beta: float) -> Float[Array, "B H"]:
  """Compute log s(y) - log p(y) for p = beta t + (1 - beta) s, from r = log s(y) - log t(y)."""
  if beta in (0, 1):
    return beta * r
  return -jnp.logaddexp(jnp.log(beta) - r, jnp.log1p(-beta))


def suppressing_advantage(
  entropy: Float[Array, "B H"], mask: Bool[Array, "B H"], constant: float, by_entropy: float
) -> Float[Array, "B H"]:
  """Compute constant + by_entropy (entropy - least) / (most - least), over a row's chosen tokens (arXiv:2608.31046).

  With by_entropy 0 it is the null, with -0.5 the paper's OPSA. Where all entropies are equal the second part is 0.
  """
  most = jnp.max(jnp.where(mask, entropy, -jnp.inf), axis=1, keepdims=True)
  least = jnp.min(jnp.where(mask, entropy, jnp.inf), axis=1, keepdims=True)
  span = most - least
  share = jnp.where(mask & (span > 0), (entropy - least) / jnp.where(span > 0, span, 1.0), 0.0)
  return jnp.where(mask, constant + by_entropy * share, 0.0)


def mean_to_go(cost: Float[Array, "B H"], mask: Bool[Array, "B H"]) -> Float[Array, "B H"]:
  """Compute each token's cost plus the mean of the costs after it, which is 0 behind the last (arXiv:2607.04751)."""
  cost = jnp.where(mask, cost, 0.0)
  after = cost_to_go(cost, 1.0) - cost
  left = cost_to_go(mask.astype(jnp.float32), 1.0) - mask
  return jnp.where(mask, cost + after / jnp.maximum(left, 1.0), 0.0)


def standard_scores(value: Float[Array, "B H"], mask: Bool[Array, "B H"], n: int) -> Float[Array, "B H"]:
  """Compute (value - mean) / standard deviation over all tokens of a prompt's n rows, which are neighbours.

  The deviation is that of a sample, at least 1e-6. Values that hardly differ are blown up to unit size: where student and
  teacher agree that is noise.
  """
  v, m = (a.reshape(-1, n * a.shape[1]) for a in (value, mask))
  tokens = jnp.sum(m, axis=1, keepdims=True, dtype=jnp.float32)
  mean = jnp.sum(jnp.where(m, v, 0.0), axis=1, keepdims=True) / jnp.maximum(tokens, 1.0)
  variance = jnp.sum(jnp.where(m, (v - mean) ** 2, 0.0), axis=1, keepdims=True) / jnp.maximum(tokens - 1, 1.0)
  return jnp.where(m, (v - mean) / jnp.maximum(jnp.sqrt(variance), 1e-6), 0.0).reshape(value.shape)


def cost_to_go(cost: Float[Array, "B H"], discount: float) -> Float[Array, "B H"]:
  """Compute sum_{k >= n} discount^(k - n) cost_k, the cost of token n and the discounted costs of those after it."""
  if discount == 0:
    return cost
  # With reverse=True the scan combines from the right: `a` is the later stretch of the row, `b` the earlier one.
  combine = lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1])
  return lax.associative_scan(combine, (jnp.full_like(cost, discount), cost), reverse=True, axis=1)[1]


def importance(
  log_ratio: Float[Array, "B H"], mask: Bool[Array, "B H"], kind: str, level: str, cap: float
) -> Float[Array, "B H"]:
  """Compute importance weights, s(y) now over s(y) when y was drawn; 0 outside the mask.

  Args:
    log_ratio: log s(y) now minus the behaviour log-probability, both at the sampling temperature.
    kind: "truncated" cuts the weight at `cap`; "masked" drops tokens whose weight is above `cap` or below 1 / `cap`.
    level: the ratio of the "token", of the "prefix" up to and including it, or of the whole "sequence". With no cap the
      prefix is exact for what depends on a token and those before it, and the sequence for what depends on later ones
      too: a discount, a reward. The variance grows in that order.

  Raises:
    ValueError: when there is no such kind or level.
  """
  log_ratio = jnp.where(mask, log_ratio, 0.0)
  match level:
    case "token":
      pass
    case "prefix":
      log_ratio = jnp.cumsum(log_ratio, axis=1)
    case "sequence":
      log_ratio = jnp.broadcast_to(jnp.sum(log_ratio, axis=1, keepdims=True), log_ratio.shape)
    case _:
      raise ValueError(f"importance level {level!r} is not one of {', '.join(LEVELS)}")
  bound = jnp.log(jnp.float32(cap))
  match kind:
    case "truncated":
      w = jnp.minimum(jnp.exp(jnp.minimum(log_ratio, bound)), cap)
    case "masked":
      w = jnp.where(jnp.abs(log_ratio) <= bound, jnp.exp(jnp.minimum(log_ratio, bound)), 0.0)
    case _:
      raise ValueError(f"importance weights of kind {kind!r} are neither truncated nor masked")
  return jnp.where(mask, w, 0.0)
