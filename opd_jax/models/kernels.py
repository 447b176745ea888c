"""Causal attention over whole sequences by what a platform is fast at: cuDNN on GPUs, splash on TPUs, blocks on CPUs.

Prefill, the teacher's scoring and the student's update use it. Every kernel takes what `attention.attend_causal` takes
and gives what it gives at real tokens, wherever the padding stands. Outputs at padding are finite and mean nothing. Scores
stay on the chip, so memory grows with T and not with T^2, and blocks above the diagonal are skipped.

Dimensions: B rows, T positions, N query heads, K key/value heads, h head width.
"""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from opd_jax.errors import InputError
from opd_jax.models import blockwise
from opd_jax.models.attention import PromptGroup, Window, attend_causal
from opd_jax.runtime.mesh import ROWS

KINDS = ("auto", "xla", "blocks", "cudnn", "splash")
HEADS = "tensor"  # mesh axis
LANES = 128  # of a TPU's vector registers; splash attention's blocks are multiples
BLOCKS = (512, 384, 256, 128)  # positions of a block of splash attention; larger is faster


def choose(kind: str, platform: str, dtype: DTypeLike, head_width: int) -> str:
  """Choose the attention to run: "xla", "blocks", "cudnn" or "splash".

  Args:
    kind: `config.attention`; "auto" is the platform's fused kernel where it takes the type and the head width.
    platform: of the devices, as JAX names it ("cpu", "gpu", "tpu"); a GPU is taken to be NVIDIA's.
    dtype: compute type.

  Raises:
    InputError: `kind` is unknown, or names a kernel that cannot run here.
  """
  if kind not in KINDS:
    raise InputError(f"config.attention is {kind!r}; it is one of {', '.join(KINDS)}.")
  gpu, tpu = platform in ("gpu", "cuda"), platform == "tpu"
  if kind == "auto":
    if gpu and supports_cudnn(dtype, head_width):
      return "cudnn"
    if tpu and supports_splash(dtype):
      return "splash"
    return "blocks" if platform == "cpu" else "xla"
  if (kind == "cudnn" and not gpu) or (kind == "splash" and not tpu):
    raise InputError(
      f"config.attention is {kind!r}, which runs on {'NVIDIA GPUs' if kind == 'cudnn' else 'TPUs'} and not on "
      f"{platform}; 'auto' chooses what the devices can run."
    )
  if (kind == "cudnn" and not supports_cudnn(dtype)) or (kind == "splash" and not supports_splash(dtype)):
    raise InputError(
      f"config.attention is {kind!r}, which does not compute in {jnp.dtype(dtype).name}; "
      "config.precision 'bfloat16' would do, or config.attention 'xla'."
    )
  if kind == "cudnn" and not supports_cudnn(dtype, head_width):
    raise InputError(
      f"config.attention is 'cudnn', which takes head widths up to 128 that are multiples of 8, and the model's is "
      f"{head_width}; config.attention 'xla' takes any."
    )
  return kind


def supports_cudnn(dtype: DTypeLike, head_width: int = LANES) -> bool:
  """Tell whether cuDNN's flash attention takes the type and the head width, on any GPU since Ampere.

  Hopper and later go up to a head width of 256, Gemma-3's; that is not made use of.
  """
  return jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16) and head_width <= 128 and head_width % 8 == 0


def supports_splash(dtype: DTypeLike) -> bool:
  """Tell whether splash attention takes the type. It takes every head width and every length."""
  return jnp.dtype(dtype) in (jnp.bfloat16, jnp.float32)


def attend(
  kind: str,
  mesh: Mesh | None,
  q: Float[Array, "B T N h"],
  k: Float[Array, "B T K h"],
  v: Float[Array, "B T K h"],
  mask: Bool[Array, "B T"],
  *,
  group: PromptGroup | None = None,
  window: Window = None,
  interpret: bool = False,
) -> Float[Array, "B T N h"]:
  """Run the attention of one `kind` (not "auto": see `choose`) on a mesh, each device on its own rows and heads.

  The compiler cannot split a kernel, so the split is written out: rows over data, fsdp and expert, heads over tensor.
  What an axis does not divide stays whole, and is computed by each of its devices.

  Args:
    mesh: None: one device.
    group: how the sequences are laid out, where they are prompts with several responses each.
    window: the real tokens that a token sees, itself included; None: all. cuDNN and splash are not given it: such a
      layer runs as "xla" there, whose scores are [B, N, 1024, T] at a time.
    interpret: run splash attention without a TPU, slowly.
  """
  longest = q.shape[1] if group is None else group.prompt + group.response
  dense = kind == "xla" or (kind == "blocks" and longest <= blockwise.WORTHWHILE)
  if dense or (window is not None and kind != "blocks"):
    return attend_causal(q, k, v, mask, group=group, window=window)
  kernels = {"blocks": blockwise.attend, "cudnn": cudnn, "splash": functools.partial(splash, interpret=interpret)}
  kernel = functools.partial(kernels[kind], group=group)
  # An argument, since a window that differs between layers is traced.
  windows = () if window is None else (jnp.asarray(window, jnp.int32),)
  run = lambda q, k, v, mask, *windows: kernel(q, k, v, mask, **({"window": windows[0]} if windows else {}))
  if mesh is None or mesh.size == 1:
    return run(q, k, v, mask, *windows)
  B, _, N, _ = q.shape
  K, tensor = k.shape[2], mesh.shape[HEADS]
  shared = math.lcm(K, tensor)
  if N % shared == 0:
    # Fewer key/value heads than devices: a device gets a copy of the one that its query heads read.
    k, v = (jnp.repeat(x, shared // K, axis=2) for x in (k, v))
  rows = ROWS if B % math.prod(mesh.shape[axis] for axis in ROWS) == 0 else None
  split = P(rows, None, HEADS if N % shared == 0 else None)
  specs = (split, split, split, P(rows), *(P() for _ in windows))
  return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)(q, k, v, mask, *windows)


def cudnn(
  q: Float[Array, "B T N h"],
  k: Float[Array, "B T K h"],
  v: Float[Array, "B T K h"],
  mask: Bool[Array, "B T"],
  *,
  group: PromptGroup | None = None,
  implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "B T N h"]:
  """Run cuDNN's flash attention: bfloat16 or float16, head widths up to 128 that are multiples of 8, any T.

  cuDNN knows padding on the right only, as one length per row. A mask would have to be a bias [B, 1, T, T], with a
  gradient of its own. So each row's real tokens are moved to its front, and the outputs back: a few passes over
  q, k, v and the outputs, which is nothing beside the attention.

  It knows no mask of a prompt with several responses either, so inside the attention, and only there, each response stands
  behind a copy of its prompt's queries, keys and values; the backward pass makes the copies again.

  Args:
    group: how the sequences are laid out, where they are prompts with several responses each.
    implementation: "xla" does the same with plain matrix products, for tests without a GPU.
  """
  if group is not None:
    in_rows = lambda *arrays: cudnn(*map(group.as_rows, arrays), implementation=implementation)
    return group.from_rows(jax.checkpoint(in_rows)(q, k, v, mask))
  T = q.shape[1]
  row = jnp.arange(q.shape[0])[:, None]
  order, inverse = _real_first(mask)
  length = mask.sum(axis=1, dtype=jnp.int32)
  real = (jnp.arange(T) < length[:, None])[..., None, None]
  take = lambda x, at: x.at[row, at].get(unique_indices=True, mode="promise_in_bounds")
  # Zeros in place of padding, here and in the output, also stop whatever cuDNN leaves in gradients beyond the length.
  q, k, v = (jnp.where(real, take(x, order), 0) for x in (q, k, v))
  length = jnp.maximum(length, 1)  # a row of padding reads its one zero, since a softmax over nothing is undefined
  out = jax.nn.dot_product_attention(
    q, k, v, is_causal=True, query_seq_lengths=length, key_value_seq_lengths=length, implementation=implementation
  )
  return take(jnp.where(real, out, 0), inverse)


def _real_first(mask: Bool[Array, "B T"]) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
  """Order the positions of each row so that real tokens come first; also the inverse: where each position goes."""
  padding = jnp.cumsum(~mask, axis=1, dtype=jnp.int32) + mask.sum(axis=1, keepdims=True, dtype=jnp.int32)
  inverse = jnp.where(mask, jnp.cumsum(mask, axis=1, dtype=jnp.int32), padding) - 1
  position = jnp.broadcast_to(jnp.arange(mask.shape[1], dtype=jnp.int32), mask.shape)
  order = jnp.zeros_like(inverse)
  rows = jnp.arange(mask.shape[0])[:, None]
  return order.at[rows, inverse].set(position, unique_indices=True), inverse


def splash(
  q: Float[Array, "B T N h"],
  k: Float[Array, "B T K h"],
  v: Float[Array, "B T K h"],
  mask: Bool[Array, "B T"],
  *,
  group: PromptGroup | None = None,
  interpret: bool = False,
) -> Float[Array, "B T N h"]:
  """Run JAX's splash attention for TPUs: bfloat16 or float32, any head width and T.

  Real tokens are one segment and padding is another, so neither sees the other on whichever side it stands, and a row
  of padding has a softmax over something.

  Args:
    group: how the sequences are laid out, where they are prompts with several responses each. Blocks in which no token sees
      another, as those between two responses, are skipped.
    interpret: run without a TPU, slowly.
  """
  # A third of a second to import, which only those who use it pay.
  from jax.experimental.pallas.ops.tpu import splash_attention as sa

  (_, T, N, h), dtype = q.shape, q.dtype
  block, length = block_and_length(T)

  def heads_first(x: Float[Array, "B T n h"]) -> Float[Array, "B n t h"]:
    return jnp.pad(x, ((0, 0), (0, length - T), (0, 0), (0, 0))).transpose(0, 2, 1, 3)

  q = (q.astype(jnp.float32) / math.sqrt(h)).astype(dtype)  # the kernel does not scale
  segment = jnp.pad(mask.astype(jnp.int32), ((0, 0), (0, length - T)))
  kernel = sa.make_splash_mha_single_device(
    sa.MultiHeadMask([splash_mask(length, group)] * N),
    block_sizes=sa.BlockSizes(
      block_q=block,
      block_kv=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_q_dq=block,
      block_kv_dq=block,
    ),
    interpret=interpret,
  )
  out = jax.vmap(kernel)(heads_first(q), heads_first(k), heads_first(v), sa.SegmentIds(segment, segment))
  return out.transpose(0, 2, 1, 3)[:, :T]  # pyright: ignore[reportAttributeAccessIssue]


@functools.lru_cache(maxsize=64)
def splash_mask(length: int, group: PromptGroup | None):
  """The mask of sequences of this length, without padding."""
  from jax.experimental.pallas.ops.tpu import splash_attention as sa

  if group is None:
    return sa.CausalMask((length, length))

  class GroupMask(sa.Mask):
    """Which tokens of a prompt and its responses see which; computed block by block."""

    @property
    def shape(self):
      return length, length

    def __getitem__(self, index):
      queries, keys = (np.arange(length)[i] for i in index)
      of_prompt, behind = keys[-1] < group.prompt, min(queries[0], keys[0]) >= group.prompt
      response_of = lambda at: (at - group.prompt) // group.response
      # Most blocks are all of one value, and a long group has ten thousands of them.
      if keys[0] > queries[-1] or (behind and response_of(keys[-1]) < response_of(queries[0])):
        return np.zeros((len(queries), len(keys)), bool)
      if of_prompt and keys[-1] <= queries[0]:
        return np.ones((len(queries), len(keys)), bool)
      return group.sees(queries[:, None], keys[None])

  return GroupMask()


def block_and_length(T: int) -> tuple[int, int]:
  """The positions of a block and the length that T is padded to, by no more than an eighth where a block allows it."""
  least = -(-T // LANES) * LANES
  if least <= BLOCKS[0]:
    return least, least
  block = next(b for b in BLOCKS if -T % b <= T // 8 or b == LANES)
  return block, -(-T // block) * block
