"""What is compared at each position: the dense reference that people read.

s = student, t = teacher, at one position:

    reverse KL        sum_v s_v (log s_v - log t_v)
    sampled token     stop_gradient(log s_y - log t_y) log s_y, y drawn by the student
    student top-k     sum_{j in top-k of s} stop_gradient(w_j (log s_j - log t_j)) s_j / stop_gradient(s_j),
                      w = softmax over the k of log s_j

All three take normalised log-probabilities over the same V ids and give one number per position, in nats. Gradients
flow through the student only. In expectation over y, the gradient of the sampled-token estimator is that of the
reverse KL; the student top-k gradient equals it where k = V and is biased below, because the log-probabilities are
not renormalised while the weights are (arXiv:2605.31490, section 4 of whose table names it; form of the released code
that its pairs come from).

Dimensions: B rows, H response positions, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Objective:
  """`config.objective`: which of the three, and the student's k."""

  support: str = "full"  # full, student_topk, sampled
  k: int = 16
  chunk: int = 0  # positions per chunk in objectives/fused.py; 0: chosen there


def reverse_kl(student: Float[Array, "*b V"], teacher: Float[Array, "*b V"]) -> Float[Array, "*b"]:
  """KL(student || teacher) per position."""
  teacher = lax.stop_gradient(teacher)
  return jnp.sum(jnp.exp(student) * (student - teacher), axis=-1)


def sampled_token(
  student: Float[Array, "*b V"], teacher: Float[Array, "*b V"], token: Int[Array, "*b"]
) -> Float[Array, "*b"]:
  """Policy-gradient estimator of the reverse KL from the drawn token.

  Its value, log s - log t, is an unbiased estimate of the divergence (k1). Differentiating that value itself would
  give a gradient without the teacher in it, so the value is carried by a stop-gradient and the derivative by log s.
  """
  s = jnp.take_along_axis(student, token[..., None], axis=-1)[..., 0]
  t = jnp.take_along_axis(teacher, token[..., None], axis=-1)[..., 0]
  cost = lax.stop_gradient(s - t)
  return cost + cost * (s - lax.stop_gradient(s))


def student_topk(student: Float[Array, "*b V"], teacher: Float[Array, "*b V"], k: int) -> Float[Array, "*b"]:
  """The paper runs' estimator over the student's own k most likely tokens."""
  k = min(k, student.shape[-1])
  s, ids = lax.top_k(student, k)
  t = jnp.take_along_axis(teacher, ids, axis=-1)
  cost = lax.stop_gradient(jax.nn.softmax(s, axis=-1) * (s - t))
  return jnp.sum(cost * jnp.exp(s - lax.stop_gradient(s)), axis=-1)


def per_token(
  objective: Objective, student: Float[Array, "*b V"], teacher: Float[Array, "*b V"], token: Int[Array, "*b"]
) -> Float[Array, "*b"]:
  """The configured objective at every position."""
  match objective.support:
    case "full":
      return reverse_kl(student, teacher)
    case "student_topk":
      return student_topk(student, teacher, objective.k)
    case "sampled":
      return sampled_token(student, teacher, token)
  raise ValueError(f"objective support {objective.support!r} is not one of full, student_topk, sampled")


def entropy(logprob: Float[Array, "*b V"]) -> Float[Array, "*b"]:
  return -jnp.sum(jnp.exp(logprob) * logprob, axis=-1)


def overlap(student: Float[Array, "*b V"], teacher: Float[Array, "*b V"], k: int) -> Float[Array, "*b"]:
  """|top-k of the student and top-k of the teacher| / k."""
  k = min(k, student.shape[-1])
  ids = lambda x: lax.top_k(x, k)[1]
  return jnp.mean(jnp.any(ids(student)[..., :, None] == ids(teacher)[..., None, :], axis=-1), axis=-1)
