"""The divergences of a student from a teacher, as entries per id and the entries' slopes.

s = log-probabilities of the student, t = of the teacher. What each divergence is stands in divergence.py, which sums the
entries over a support; here is what one id adds to it, and how that changes with log s.

Dimensions: n entries.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

TINY = 1e-38


@runtime_checkable
class Parameters(Protocol):
  """The fields of divergence.Objective that some divergences depend on."""

  @property
  def beta(self) -> float: ...

  @property
  def normalised(self) -> bool: ...


def reverse_kl(s: Float[Array, "*b n"], t: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
  """Compute the entries of KL(student || teacher)."""
  return expectation(s, s, t)


def forward_kl(s: Float[Array, "*b n"], t: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
  """Compute the entries of KL(teacher || student)."""
  return expectation(t, t, s)


def jsd(s: Float[Array, "*b n"], t: Float[Array, "*b n"], beta: float, normalised: bool) -> Float[Array, "*b n"]:
  """Compute the entries of beta KL(t || m) + (1 - beta) KL(s || m), m = beta t + (1 - beta) s (arXiv:2306.13649).

  As published it is 0 for everything at beta 0 and 1, and at most log 2. Normalised it meets the two KLs there.
  """
  if normalised and beta in (0, 1):
    return forward_kl(s, t) if beta == 0 else reverse_kl(s, t)
  to_student, to_teacher = log_ratios_to_mean(s, t, beta)
  zero = jnp.zeros_like(s)
  total = beta * expectation(t, to_teacher, zero) + (1 - beta) * expectation(s, to_student, zero)
  return total / (beta * (1 - beta)) if normalised else total


def jsd_slopes(o: Parameters, s: Float[Array, "*b n"], t: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
  """Compute the slopes of `jsd`, which are those of the two KLs where it is one of them."""
  if o.normalised and o.beta in (0, 1):
    return _forward_slopes(o, s, t) if o.beta == 0 else reverse_kl(s, t)
  slope = (1 - o.beta) * jnp.exp(s) * log_ratios_to_mean(s, t, o.beta)[0]
  return slope / (o.beta * (1 - o.beta)) if o.normalised else slope


def proximal(s: Float[Array, "*b n"], t: Float[Array, "*b n"], beta: float) -> Float[Array, "*b n"]:
  """Compute the entries of KL(student || p) for the proximal teacher p = beta t + (1 - beta) sg(s) (TOP-D, arXiv:2607.04751).

  sg stops the gradient: p moves with the student, and is a constant of every update. No id costs more than
  -log(1 - beta) nats, however little the teacher thinks of it. At beta 1 it is the reverse KL, at beta 0 it is 0.
  """
  p = lax.stop_gradient(s - log_ratios_to_mean(s, t, beta)[0])
  return expectation(s, s, p)


def _jsd_multiple(o: Parameters) -> float:
  if o.normalised and o.beta in (0, 1):
    return 1.0 if o.beta == 0 else -1.0
  return 0.0


def _forward_slopes(o: Parameters, s: Float[Array, "*b n"], t: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
  return jnp.exp(s) - jnp.exp(t)


def log_ratios_to_mean(
  s: Float[Array, "*b n"], t: Float[Array, "*b n"], beta: float
) -> tuple[Float[Array, "*b n"], Float[Array, "*b n"]]:
  """Compute log s - log m and log t - log m for m = beta t + (1 - beta) s.

  The side that m is nearer to goes through `log_ratio_to_mean`, which is exact there; the other follows from it.
  """
  if beta <= 0.5:
    near = log_ratio_to_mean(s, t, beta)
    return near, jnp.where(s > -jnp.inf, near + (t - s), -math.log(max(beta, TINY)))
  near = log_ratio_to_mean(t, s, 1 - beta)
  return jnp.where(t > -jnp.inf, near + (s - t), -math.log(max(1 - beta, TINY))), near


def log_ratio_to_mean(a: Float[Array, "*b n"], b: Float[Array, "*b n"], weight: float) -> Float[Array, "*b n"]:
  """Compute a - log(weight exp(b) + (1 - weight) exp(a)): exactly 0 where a = b, and precise for small weights too.

  Where exp(a) is 0 the result is finite and has no meaning.
  """
  gap = jnp.where(a > -jnp.inf, b - jnp.where(a > -jnp.inf, a, 0.0), 0.0)
  far = gap > 30  # computed from the larger one there, since the exponential of the gap could overflow
  near = jnp.log1p(weight * jnp.expm1(jnp.where(far, 0.0, gap)))
  beyond = gap + jnp.log1p((1 - weight) * jnp.expm1(jnp.where(far, -gap, 0.0)))
  return -jnp.where(far, beyond, near)


def expectation(p: Float[Array, "*b n"], a: Float[Array, "*b n"], b: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
  """Compute exp(p) (a - b), with value and gradient 0 where the probability is 0."""
  possible = p > -jnp.inf
  safe = lambda x: jnp.where(possible, x, 0.0)
  return safe(jnp.exp(safe(p)) * (safe(a) - safe(b)))


@dataclasses.dataclass(frozen=True)
class Divergence:
  """What a divergence is, for the dense and the fused code alike: a sum of one entry per id, and the entries' slopes.

  An entry is a function of log s and log t of its own id, with value and gradient 0 where neither is possible.

  Attributes:
    entries: (objective, log s, log t) -> the entries, see `reverse_kl`.
    slopes: (objective, log s, log t) -> d entry / d log s + `multiple` times s. Any multiple of s gives the same gradient,
      and the one that makes the slope 0 wherever s = t makes the gradient there 0 exactly. None: the entries are
      differentiated, which is right up to rounding.
    multiple: of `slopes`.
    parameters: the fields of `Objective` that it depends on, of "beta" and "normalised".
  """

  entries: Callable[[Parameters, Array, Array], Array]
  slopes: Callable[[Parameters, Array, Array], Array] | None = None
  multiple: Callable[[Parameters], float] = lambda o: 0.0
  parameters: tuple[str, ...] = ()


DIVERGENCES = {
  "reverse_kl": Divergence(
    entries=lambda o, s, t: reverse_kl(s, t), slopes=lambda o, s, t: reverse_kl(s, t), multiple=lambda o: -1.0
  ),
  "forward_kl": Divergence(entries=lambda o, s, t: forward_kl(s, t), slopes=_forward_slopes, multiple=lambda o: 1.0),
  "jsd": Divergence(
    entries=lambda o, s, t: jsd(s, t, o.beta, o.normalised),
    slopes=jsd_slopes,
    multiple=_jsd_multiple,
    parameters=("beta", "normalised"),
  ),
  "proximal": Divergence(
    entries=lambda o, s, t: proximal(s, t, o.beta),
    slopes=lambda o, s, t: proximal(s, t, o.beta),
    multiple=lambda o: -1.0,
    parameters=("beta",),
  ),
  "mixture": Divergence(
    entries=lambda o, s, t: o.beta * reverse_kl(s, t) + (1 - o.beta) * forward_kl(s, t),
    slopes=lambda o, s, t: o.beta * reverse_kl(s, t) + (1 - o.beta) * _forward_slopes(o, s, t),
    multiple=lambda o: 1 - 2 * o.beta,
    parameters=("beta",),
  ),
}
