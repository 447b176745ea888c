"""The objectives of divergence.py from hidden states, in chunks: [B, H, V] never exists.

Each chunk of positions gets its logits, its per-token values and statistics, and is recomputed in the backward pass,
so temporary memory is O(B chunk V). Chunks run along the response axis, which no device mesh splits, so that every
device works on its own rows.

Dimensions: B rows, H response positions, D and E widths of student and teacher, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from opd_jax.objectives import divergence
from opd_jax.objectives.divergence import Objective

LOGITS_PER_CHUNK = 4 * 2**20  # per device and side; 16 MiB in fp32
LEAST_ROWS = 128  # of a chunk's matrix product, however large the vocabulary


def per_token(
  objective: Objective,
  student: Float[Array, "B H D"],
  student_head: Float[Array, "V D"],
  teacher: Float[Array, "B H E"],
  teacher_head: Float[Array, "V E"],
  token: Int[Array, "B H"],
  mask: Bool[Array, "B H"],
  *,
  vocab: int,
  overlap_k: int = 0,
  row_shards: int = 1,
) -> tuple[Float[Array, "B H"], dict[str, Float[Array, "B H"]]]:
  """The objective at every response position, 0 outside the mask, and what is worth knowing there.

  Args:
    vocab: both softmaxes are over the first `vocab` ids; the rest is padding that one side does not know.
    overlap_k: 0 leaves the top-k overlap out.
    row_shards: devices that share the B rows; chunks are sized for what one of them holds.

  Returns:
    Per-token values, and statistics without gradient: kl (full reverse KL whatever the objective),
    student_entropy, teacher_entropy, overlap.
  """
  B, H = token.shape
  rows = -(-B // row_shards)
  chunk = min(H, objective.chunk or max(LOGITS_PER_CHUNK // (rows * vocab), -(-LEAST_ROWS // rows)))
  student_head, teacher_head = student_head[:vocab], teacher_head[:vocab]

  @functools.partial(jax.checkpoint, prevent_cse=False)
  def one(student, teacher, token):
    s, t = _logits(student, student_head), lax.stop_gradient(_logits(teacher, teacher_head))
    s_log, t_log = jax.nn.log_softmax(s, axis=-1), jax.nn.log_softmax(t, axis=-1)
    if objective.support == "full":
      value = reverse_kl(s, s_log, t_log)
    else:
      value = divergence.per_token(objective, s_log, t_log, token)
    s_log = lax.stop_gradient(s_log)
    stats = {
      "kl": divergence.reverse_kl(s_log, t_log),
      "student_entropy": divergence.entropy(s_log),
      "teacher_entropy": divergence.entropy(t_log),
    }
    if overlap_k:
      stats["overlap"] = divergence.overlap(s_log, t_log, overlap_k)
    return value, stats

  if chunk == H:
    value, stats = one(student, teacher, token)
  else:
    parts = (_split(student, chunk), _split(teacher, chunk), _split(token, chunk))
    _, (value, stats) = lax.scan(lambda c, x: (c, one(*x)), None, parts)
    value, stats = jax.tree.map(lambda a: _join(a, H), (value, stats))
  return jax.tree.map(lambda a: jnp.where(mask, a, 0.0), (value, stats))


@jax.custom_vjp
def reverse_kl(
  logits: Float[Array, "*b V"], student: Float[Array, "*b V"], teacher: Float[Array, "*b V"]
) -> Float[Array, "*b"]:
  """divergence.reverse_kl with its derivative by the student's logits written out.

  d/dlogits = s (log s - log t - KL): exactly zero where the two agree, which autodiff through log_softmax reaches
  only up to rounding. `student` and `teacher` are log-probabilities and get no gradient of their own.
  """
  return divergence.reverse_kl(student, teacher)


def _reverse_kl_forward(logits, student, teacher):
  kl = divergence.reverse_kl(student, teacher)
  return kl, (student, teacher, kl)


def _reverse_kl_backward(saved, g):
  student, teacher, kl = saved
  return g[..., None] * jnp.exp(student) * (student - teacher - kl[..., None]), None, None


reverse_kl.defvjp(_reverse_kl_forward, _reverse_kl_backward)


def _logits(x: Float[Array, "B C D"], head: Float[Array, "V D"]) -> Float[Array, "B C V"]:
  return jnp.einsum("bcd,vd->bcv", x, head.astype(x.dtype), preferred_element_type=jnp.float32)


def _split(x: Array, chunk: int) -> Array:
  """[B, H, ...] -> [chunks, B, chunk, ...], padded with zeros at the end."""
  B, H = x.shape[:2]
  x = jnp.pad(x, ((0, 0), (0, -H % chunk), *((0, 0),) * (x.ndim - 2)))
  return jnp.moveaxis(x.reshape(B, -1, chunk, *x.shape[2:]), 1, 0)


def _join(x: Array, H: int) -> Array:
  """[chunks, B, chunk] -> [B, H]."""
  return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)[:, :H]
