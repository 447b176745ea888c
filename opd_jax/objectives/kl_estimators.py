"""Estimators of a divergence from the drawn token alone, and importance weights.

With y drawn by the student (for nll by another model or from data, see config.rollout.by), r = log s(y) - log t(y), and
the derivative always taken by log s(y):

    estimator   value                 coefficient of grad log s(y)           expected gradient
    k1          r                     sg(r), or with a discount sg(r_n + discount r_n+1 + ...)
                                                                             reverse KL
    k2          r^2 / 2               r                                      reverse KL
    k3          exp(-r) - 1 + r       1 - exp(-r)                            forward KL
    nll         -log s(y)             -1                                     forward KL to whoever drew y

k1 is a policy gradient whose advantage is -r; differentiating its value itself would give grad log s(y), whose
expectation is zero whatever the teacher says, and is refused. k2 and k3 are differentiated directly (their gradient at
a drawn token; that of k2 is k1's without a discount). The expectations are those at a given prefix. With discount 1 the
gradient of k1 is that of the reverse KL between whole sequences, with 0 that of the sum over positions for prefixes
that stay as they are (arXiv:2605.31490, section 3).

Dimensions: B rows, H response positions.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

ESTIMATORS = {"reverse_kl": ("k1", "k2"), "forward_kl": ("k3", "nll")}  # by what their expected gradient belongs to
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
