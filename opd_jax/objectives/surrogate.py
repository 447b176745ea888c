"""What can be learned from the drawn token alone: estimators of a divergence, and importance weights.

With y drawn by the student (of nll by somebody else, see config.rollout.by), r = log s(y) - log t(y), and the derivative always taken by log s(y):

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
  """What the estimator says about the divergence; nll, which knows no teacher, says nothing."""
  return {"k1": lambda: r, "k2": lambda: r * r / 2, "k3": lambda: jnp.expm1(-r) + r}[estimator]()


def coefficient(
  estimator: str, r: Float[Array, "B H"], mask: Bool[Array, "B H"], discount: float = 0.0
) -> Float[Array, "B H"]:
  """By what grad log s(y) is multiplied; 0 outside the mask."""
  r = jnp.where(mask, r, 0.0)
  if estimator == "nll":
    return jnp.where(mask, -1.0, 0.0)
  return jnp.where(mask, -jnp.expm1(-r) if estimator == "k3" else cost_to_go(r, discount), 0.0)


def cost_to_go(cost: Float[Array, "B H"], discount: float) -> Float[Array, "B H"]:
  """sum_{k >= n} discount^(k - n) cost_k: what saying token n costs now and later."""
  if discount == 0:
    return cost
  later = lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1])  # of two stretches, the right one spoken first
  return lax.associative_scan(later, (jnp.full_like(cost, discount), cost), reverse=True, axis=1)[1]


def importance(
  log_ratio: Float[Array, "B H"], mask: Bool[Array, "B H"], kind: str, level: str, cap: float
) -> Float[Array, "B H"]:
  """How much more likely the student is now to say this than it was when it did.

  Args:
    log_ratio: log s(y) now minus the behaviour log-probability, both at the sampling temperature.
    kind: "truncated" cuts the weight at `cap`; "masked" drops tokens whose weight is above `cap` or below 1 / `cap`.
    level: whose ratio: of the "token", of the "prefix" up to and including it, of the whole "sequence". With no cap the
      prefix is exact for what depends on a token and those before it, and the sequence for what depends on later ones
      too: a discount, a reward. The variance grows in that order.
  """
  log_ratio = jnp.where(mask, log_ratio, 0.0)
  if level == "prefix":
    log_ratio = jnp.cumsum(log_ratio, axis=1)
  elif level == "sequence":
    log_ratio = jnp.broadcast_to(jnp.sum(log_ratio, axis=1, keepdims=True), log_ratio.shape)
  bound = jnp.log(jnp.float32(cap))
  if kind == "masked":
    w = jnp.where(jnp.abs(log_ratio) <= bound, jnp.exp(jnp.minimum(log_ratio, bound)), 0.0)
  else:
    w = jnp.minimum(jnp.exp(jnp.minimum(log_ratio, bound)), cap)
  return jnp.where(mask, w, 0.0)
