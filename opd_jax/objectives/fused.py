"""The statistics of divergence.py and their weighted sum from hidden states, in chunks: [B, H, V] never exists.

A loss is a sum of statistics with coefficients that carry no gradient, so the gradient of a chunk of tokens can be
computed while its logits exist: one pass, nothing stored and nothing recomputed (in blocks of the vocabulary: three
passes). Temporary memory is O(chunk V) beside the gradients themselves; sums and accumulators are fp32.

On a mesh the rows lie over data, fsdp and expert, the vocabulary over tensor. Every device works on its own rows and
ids (chunk.py says how the ids come together), and the head's gradient is summed over devices once, after the last
chunk, each device of fsdp getting the part of it that it holds.

Dimensions: B rows, H response positions, D width of a model, V vocabulary, v of its ids on this device, K teachers.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from opd_jax.objectives.chunk import Chunk, Heads, Tokens, split
from opd_jax.objectives.divergence import Coefficients, FrozenInputs, HiddenAndHead, Objective, TokenStats
from opd_jax.runtime.mesh import ROWS, RULES

LOGITS_PER_CHUNK = {"cpu": 3 * 2**20}  # per device and model; at V 32768 96 tokens, near the fastest there
LOGITS_ON_ACCELERATORS = 64 * 2**20  # 256 MiB in fp32: large enough for the matrix units, not measured yet
LEAST_TOKENS = 64  # of a chunk's matrix product, however large the vocabulary
VOCAB = "tensor"  # mesh axis


def weighted_sum(
  objective: Objective,
  student: HiddenAndHead,
  inputs: FrozenInputs,
  coefficients: Coefficients,
  *,
  mesh: Mesh | None = None,
  with_stats: bool = True,
) -> tuple[Float[Array, ""], TokenStats]:
  """Sum coefficients times statistics over the tokens, as `divergence.weighted_sum` does.

  Gradients flow through `student` only.

  Args:
    mesh: the devices that share the work; None: one device.
    with_stats: False returns no statistics and leaves out what the sum does not need, teachers among it.
  """
  return _weighted_sum(FusedPass(objective, mesh, with_stats), student, inputs, coefficients)


def token_stats(
  objective: Objective, student: HiddenAndHead, inputs: FrozenInputs, *, mesh: Mesh | None = None
) -> TokenStats:
  """Compute the statistics of every token, as `divergence.token_stats` does; without gradient."""
  return FusedPass(objective, mesh).run(lax.stop_gradient(student), inputs, Coefficients())[1]


@dataclasses.dataclass(frozen=True)
class FusedPass:
  """The static settings of one pass over all tokens."""

  objective: Objective
  mesh: Mesh | None = None
  with_stats: bool = True
  with_gradient: bool = False

  def run(
    self, student: HiddenAndHead, inputs: FrozenInputs, coefficients: Coefficients
  ) -> tuple[Float[Array, ""], TokenStats, HiddenAndHead | None]:
    """Compute the weighted sum, the statistics, and, where it is wanted, the gradient of the sum by the student."""
    shards = 1 if self.mesh is None else self.mesh.shape[VOCAB]
    o = self.objective
    block = o.vocab_chunk if 0 < o.vocab_chunk * shards < o.vocab else 1
    prepare = lambda model: model._replace(head=_prepare_head(model, o.vocab, shards * block))
    inputs = inputs._replace(
      teachers=tuple(map(prepare, inputs.teachers)), reference=inputs.reference and prepare(inputs.reference)
    )
    if self.mesh is None or self.mesh.size == 1:
      total, stats, gradient = self.on_device(None, None, (), prepare(student), inputs, coefficients)
    else:
      vocab_axis = VOCAB if shards > 1 else None
      rows, model = P(ROWS), HiddenAndHead(P(ROWS), P(vocab_axis))  # pyright: ignore[reportArgumentType]
      input_specs = jax.tree.map(lambda _: rows, inputs)._replace(
        teachers=(model,) * len(inputs.teachers), reference=inputs.reference and model
      )
      d_model_axes = self.d_model_axes(student.head.shape[1])
      gradient_specs = HiddenAndHead(rows, P(vocab_axis, d_model_axes or None))  # pyright: ignore[reportArgumentType]
      total, stats, gradient = jax.shard_map(
        functools.partial(self.on_device, ROWS, vocab_axis, d_model_axes),
        mesh=self.mesh,
        in_specs=(model, input_specs, jax.tree.map(lambda _: rows, coefficients)),
        out_specs=(P(), rows, gradient_specs if self.with_gradient else None),
        check_vma=False,
      )(prepare(student), inputs, coefficients)
    if gradient is not None:
      V = student.head.shape[0]
      head = gradient.head[: min(o.vocab, V)]
      head = jnp.pad(head, ((0, V - head.shape[0]), (0, 0))).astype(student.head.dtype)
      gradient = HiddenAndHead(gradient.hidden.astype(student.hidden.dtype), head)
    return total, stats, gradient

  def d_model_axes(self, D: int) -> tuple[str, ...]:
    """Find the mesh axes over which the head's gradient stays split along D, as the head is in the train layout."""
    assert self.mesh is not None
    axes = tuple(axis for axis in RULES["train"]["width"] if self.mesh.shape[axis] > 1)
    return axes if D % math.prod(self.mesh.shape[axis] for axis in axes) == 0 else ()

  def on_device(
    self,
    row_axes: tuple[str, ...] | None,
    vocab_axis: str | None,
    d_model_axes: tuple[str, ...],
    student: HiddenAndHead,
    inputs: FrozenInputs,
    coefficients: Coefficients,
  ):
    """Run the pass on the rows and ids of one device, chunk by chunk.

    Args:
      row_axes, vocab_axis: the mesh axes over which rows and ids lie; None without a mesh.
      d_model_axes: the ones of `row_axes` over which the head's gradient is scattered.

    Returns:
      The sum over all devices; the statistics of this device's rows; the gradient by its hidden states and by its part
      of the head, or None.
    """
    (B, H), (v, D) = inputs.token.shape, student.head.shape
    o = self.objective
    first_id = jnp.int32(0) if vocab_axis is None else lax.axis_index(vocab_axis) * v
    reference_head = None if inputs.reference is None else inputs.reference.head
    heads = Heads(student.head, tuple(teacher.head for teacher in inputs.teachers), reference_head, first_id)
    tokens = _flatten(student, inputs, coefficients)
    chunk_len = o.chunk or chunk_size(min(v, o.vocab_chunk or v), self.mesh)
    chunk = Chunk(o, vocab_axis, self.with_stats, self.with_gradient)

    def add_chunk(carry, part: Tokens):
      total, d_head = carry
      value, stats, d_hidden, d_head_part = chunk(part, heads)
      return (total + value, d_head + d_head_part if self.with_gradient else None), (stats, d_hidden)

    zero = (jnp.zeros((), jnp.float32), jnp.zeros((v, D), jnp.float32) if self.with_gradient else None)
    if chunk_len >= B * H:
      (total, d_head), (stats, d_hidden) = add_chunk(zero, tokens)
    else:
      chunks = jax.tree.map(lambda a: split(a, chunk_len), tokens)
      (total, d_head), per_chunk = lax.scan(add_chunk, zero, chunks)
      stats, d_hidden = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[: B * H], per_chunk)
    total = total if row_axes is None else lax.psum(total, row_axes)
    stats = {name: jnp.where(inputs.mask, stat.reshape(B, H), 0.0) for name, stat in stats.items()}
    if d_head is None:
      return total, stats, None
    d_hidden = d_hidden if vocab_axis is None else lax.psum(d_hidden, vocab_axis)
    if d_model_axes:
      d_head = lax.psum_scatter(d_head, d_model_axes, scatter_dimension=1, tiled=True)
    if row_axes is not None:
      d_head = lax.psum(d_head, tuple(axis for axis in row_axes if axis not in d_model_axes))
    return total, stats, HiddenAndHead(d_hidden.reshape(B, H, D), d_head)


def _flatten(student: HiddenAndHead, inputs: FrozenInputs, coefficients: Coefficients) -> Tokens:
  """Lay the tokens of all rows in a line, B H of them, with hidden states and coefficients 0 outside the mask."""
  B, H = inputs.token.shape
  flat = lambda a: a.reshape(B * H, *a.shape[2:])

  def flat_masked(a):
    return flat(jnp.where(inputs.mask[..., None] if a.ndim == 3 else inputs.mask, a, 0))

  teacher_weight = inputs.teacher_weight
  if teacher_weight is not None:
    teacher_weight = flat(jnp.broadcast_to(teacher_weight[:, None], (B, H, teacher_weight.shape[1])))
  return Tokens(
    student=flat_masked(student.hidden),
    teachers=tuple(flat_masked(teacher.hidden) for teacher in inputs.teachers),
    reference=None if inputs.reference is None else flat_masked(inputs.reference.hidden),
    token=flat(inputs.token),
    coefficients=jax.tree.map(flat_masked, coefficients),
    teacher_weight=teacher_weight,
    recorded=jax.tree.map(flat, inputs.recorded),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted_sum(
  fused_pass: FusedPass, student: HiddenAndHead, inputs: FrozenInputs, coefficients: Coefficients
) -> tuple[Float[Array, ""], TokenStats]:
  return fused_pass.run(student, inputs, coefficients)[:2]


def _forward(fused_pass: FusedPass, student: HiddenAndHead, inputs: FrozenInputs, coefficients: Coefficients):
  with_gradient = dataclasses.replace(fused_pass, with_gradient=True)
  total, stats, gradient = with_gradient.run(student, inputs, coefficients)
  return (total, stats), gradient


def _backward(fused_pass: FusedPass, gradient: HiddenAndHead, cotangents):
  return jax.tree.map(lambda g: (g * cotangents[0]).astype(g.dtype), gradient), None, None


_weighted_sum.defvjp(_forward, _backward)


def chunk_size(ids: int, mesh: Mesh | None = None) -> int:
  """Choose the tokens of a chunk whose logits are over `ids` ids at a time."""
  platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
  return max(LOGITS_PER_CHUNK.get(platform, LOGITS_ON_ACCELERATORS) // ids, LEAST_TOKENS)


def _prepare_head(model: HiddenAndHead, vocab: int, multiple: int) -> Float[Array, "V D"]:
  """Cut the head to the shared ids, in the hidden states' type, and pad it to equal parts for devices and blocks."""
  head = model.head[:vocab].astype(model.hidden.dtype)
  return jnp.pad(head, ((0, -vocab % multiple), (0, 0)))
