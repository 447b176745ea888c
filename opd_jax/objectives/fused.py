"""The readings of divergence.py and their weighted sum from hidden states, in chunks: [B, H, V] never exists.

A loss is a sum of readings with coefficients that carry no gradient, so the gradient of a chunk of tokens can be made
while its logits are there: one pass, nothing kept and nothing recomputed (in blocks of the vocabulary: three passes).
Temporary memory is O(chunk V) beside the gradients themselves; sums and accumulators are fp32.

On a mesh the rows lie over data, fsdp and expert, the vocabulary over tensor. Every device works on its own rows and ids
(chunk.py says how the ids come together), and the head's gradient is summed over devices once, after the last chunk,
each device of fsdp getting the part of it that it keeps.

Dimensions: B rows, H response positions, D width of a model, V vocabulary, v of its ids on this device, K teachers.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from opd_jax.mesh import ROWS, RULES
from opd_jax.objectives.chunk import Chunk, Heads, Tokens, split
from opd_jax.objectives.divergence import Coefficients, Objective, Readings, Readout

LOGITS_PER_CHUNK = {"cpu": 3 * 2**20}  # per device and model; at V 32768 96 tokens, near the fastest there
LOGITS_ON_ACCELERATORS = 64 * 2**20  # 256 MiB in fp32: large enough for the matrix units, not measured yet
LEAST_TOKENS = 64  # of a chunk's matrix product, however large the vocabulary
VOCAB = "tensor"  # mesh axis


def weighted(
  objective: Objective,
  student: Readout,
  teachers: tuple[Readout, ...],
  token: Int[Array, "B H"],
  mask: Bool[Array, "B H"],
  coefficients: Coefficients,
  *,
  teacher_weight: Float[Array, "B K"] | None = None,
  initial: Readout | None = None,
  mesh: Mesh | None = None,
  readings: bool = True,
) -> tuple[Float[Array, ""], Readings]:
  """See `divergence.weighted`. Gradients flow through `student` only.

  Args:
    mesh: whose devices share the work; None: one device.
    readings: False leaves out what the sum does not need; a teacher that it does not need is not read.
  """
  given = Given(teachers, initial, token, mask, coefficients, teacher_weight)
  return _weighted(Work(objective, mesh, readings), student, given)


def read(
  objective: Objective,
  student: Readout,
  teachers: tuple[Readout, ...],
  token: Int[Array, "B H"],
  mask: Bool[Array, "B H"],
  *,
  teacher_weight: Float[Array, "B K"] | None = None,
  initial: Readout | None = None,
  mesh: Mesh | None = None,
) -> Readings:
  """See `divergence.read`; without gradient."""
  given = Given(teachers, initial, token, mask, Coefficients(), teacher_weight)
  return Work(objective, mesh).run(lax.stop_gradient(student), given)[1]


class Given(NamedTuple):
  """Everything that gets no gradient."""

  teachers: tuple[Readout, ...]
  initial: Readout | None
  token: Int[Array, "B H"]
  mask: Bool[Array, "B H"]
  coefficients: Coefficients
  teacher_weight: Float[Array, "B K"] | None


@dataclasses.dataclass(frozen=True)
class Work:
  """One pass over all tokens: what is static in it."""

  objective: Objective
  mesh: Mesh | None = None
  readings: bool = True
  gradient: bool = False

  def run(self, student: Readout, given: Given) -> tuple[Float[Array, ""], Readings, Readout | None]:
    """The weighted sum, the readings, and the gradient of the sum where it is wanted."""
    shards = 1 if self.mesh is None else self.mesh.shape[VOCAB]
    o = self.objective
    block = o.vocab_chunk if 0 < o.vocab_chunk * shards < o.vocab else 1
    lay_out = lambda r: r._replace(head=_head(r, o.vocab, shards * block))
    given = given._replace(
      teachers=tuple(map(lay_out, given.teachers)), initial=given.initial and lay_out(given.initial)
    )
    if self.mesh is None or self.mesh.size == 1:
      total, found, gradient = self.on_device(None, None, (), lay_out(student), given)
    else:
      axis = VOCAB if shards > 1 else None
      rows, readout = P(ROWS), Readout(P(ROWS), P(axis))  # pyright: ignore[reportArgumentType]
      specs = jax.tree.map(lambda _: rows, given)._replace(
        teachers=(readout,) * len(given.teachers), initial=given.initial and readout
      )
      width = self.split_width(student.head.shape[1])
      gradients = Readout(rows, P(axis, width or None))  # pyright: ignore[reportArgumentType]
      total, found, gradient = jax.shard_map(
        functools.partial(self.on_device, ROWS, axis, width),
        mesh=self.mesh,
        in_specs=(readout, specs),
        out_specs=(P(), rows, gradients if self.gradient else None),
        check_vma=False,
      )(lay_out(student), given)
    if gradient is not None:
      V = student.head.shape[0]
      head = gradient.head[: min(o.vocab, V)]
      head = jnp.pad(head, ((0, V - head.shape[0]), (0, 0))).astype(student.head.dtype)
      gradient = Readout(gradient.hidden.astype(student.hidden.dtype), head)
    return total, found, gradient

  def split_width(self, D: int) -> tuple[str, ...]:
    """The mesh axes over which the head's gradient is left split: those of its place in the train layout."""
    assert self.mesh is not None
    axes = tuple(a for a in RULES["train"]["width"] if self.mesh.shape[a] > 1)
    return axes if D % math.prod(self.mesh.shape[a] for a in axes) == 0 else ()

  def on_device(
    self, rows: tuple[str, ...] | None, axis: str | None, width: tuple[str, ...], student: Readout, given: Given
  ):
    """The same for the rows and ids of one device, chunk by chunk.

    Args:
      rows, axis: the mesh axes over which rows and ids lie.
      width: those of `rows` that get a part each of the head's gradient.
    """
    (B, H), (v, D) = given.token.shape, student.head.shape
    o = self.objective
    first = jnp.int32(0) if axis is None else lax.axis_index(axis) * v
    initial = None if given.initial is None else given.initial.head
    heads = Heads(student.head, tuple(t.head for t in given.teachers), initial, first)
    of_tokens = lambda a: a.reshape(B * H, *a.shape[2:])
    real = lambda a: of_tokens(jnp.where(given.mask[..., None] if a.ndim == 3 else given.mask, a, 0))
    each = lambda a: of_tokens(jnp.broadcast_to(a[:, None], (B, H, a.shape[1])))
    tokens = Tokens(
      student=real(student.hidden),
      teachers=tuple(real(t.hidden) for t in given.teachers),
      initial=None if given.initial is None else real(given.initial.hidden),
      token=of_tokens(given.token),
      coefficients=jax.tree.map(real, given.coefficients),
      teacher_weight=None if given.teacher_weight is None else each(given.teacher_weight),
    )
    size = o.chunk or chunk_size(min(v, o.vocab_chunk or v), self.mesh)
    chunk = Chunk(o, axis, self.readings, self.gradient)

    def one(carry, part: Tokens):
      total, d_head = carry
      value, found, d_hidden, more = chunk(part, heads)
      return (total + value, d_head + more if self.gradient else None), (found, d_hidden)

    nothing = (jnp.zeros((), jnp.float32), jnp.zeros((v, D), jnp.float32) if self.gradient else None)
    if size >= B * H:
      (total, d_head), (found, d_hidden) = one(nothing, tokens)
    else:
      parts = jax.tree.map(lambda a: split(a, size), tokens)
      (total, d_head), (found, d_hidden) = lax.scan(one, nothing, parts)
      found, d_hidden = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[: B * H], (found, d_hidden))
    total = total if rows is None else lax.psum(total, rows)
    found = {name: jnp.where(given.mask, a.reshape(B, H), 0.0) for name, a in found.items()}
    if d_head is None:
      return total, found, None
    d_hidden = d_hidden if axis is None else lax.psum(d_hidden, axis)
    if width:
      d_head = lax.psum_scatter(d_head, width, scatter_dimension=1, tiled=True)
    if rows is not None:
      d_head = lax.psum(d_head, tuple(a for a in rows if a not in width))
    return total, found, Readout(d_hidden.reshape(B, H, D), d_head)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted(work: Work, student: Readout, given: Given) -> tuple[Float[Array, ""], Readings]:
  return work.run(student, given)[:2]


def _forward(work: Work, student: Readout, given: Given):
  total, found, gradient = dataclasses.replace(work, gradient=True).run(student, given)
  return (total, found), gradient


def _backward(work: Work, gradient: Readout, cotangents):
  return jax.tree.map(lambda g: (g * cotangents[0]).astype(g.dtype), gradient), None


_weighted.defvjp(_forward, _backward)


def chunk_size(ids: int, mesh: Mesh | None = None) -> int:
  """Tokens of a chunk that makes logits over `ids` at a time."""
  platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
  return max(LOGITS_PER_CHUNK.get(platform, LOGITS_ON_ACCELERATORS) // ids, LEAST_TOKENS)


def _head(r: Readout, vocab: int, multiple: int) -> Float[Array, "V D"]:
  """In the hidden states' type, over the shared ids, and padded so that every device and block has equally many."""
  head = r.head[:vocab].astype(r.hidden.dtype)
  return jnp.pad(head, ((0, -vocab % multiple), (0, 0)))
