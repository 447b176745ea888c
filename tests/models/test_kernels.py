"""Fused attention is `attend_causal`, in value and gradient, as far as a machine without a GPU or TPU can tell.

Splash attention runs in Pallas' interpreter. cuDNN's kernel cannot: what stands around it runs with plain matrix
products in its place, and the program with the kernel is lowered for CUDA.
"""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from opd_jax.errors import InputError
from opd_jax.models import kernels
from opd_jax.models.attention import attend_causal
from opd_jax.runtime import mesh as meshes
from tests.helpers.eight_devices import json_from_eight_devices

N, K, h = 4, 2, 8
PADDED = {"left": (7, 0), "right": (0, 6), "both": (4, 3), "none": (0, 0), "one token": (9, 10), "all": (20, 0)}
RUNS = {
  "cudnn": functools.partial(kernels.cudnn, implementation="xla"),
  "splash": functools.partial(kernels.splash, interpret=True),
}


def arrays(T: int, padded, dtype=jnp.float32, heads: int = N):
  """q, k, v, a mask with so much padding on the left and on the right of each row, and a cotangent."""
  rng = np.random.default_rng(T)
  B = len(padded)
  q, k, v, cotangent = (
    jnp.asarray(2 * rng.standard_normal((B, T, n, h)), d)
    for n, d in ((heads, dtype), (K, dtype), (K, dtype), (heads, jnp.float32))
  )
  at = np.arange(T)
  mask = np.stack([(at >= left) & (at < T - right) for left, right in padded])
  return q, k, v, jnp.asarray(mask), cotangent


def graded(run):
  """Output and gradients, where only real tokens count."""

  def value_and_gradients(q, k, v, mask, cotangent):
    out, back = jax.vjp(lambda *x: run(*x, mask), q, k, v)
    return out, *back(jnp.where(mask[..., None, None], cotangent, 0).astype(out.dtype))

  return jax.jit(value_and_gradients)


def error(found, expected, mask) -> float:
  """The largest difference of an output at real tokens or of a gradient, relative to the largest number above one.

  Infinite where anything is not finite, at padding too.
  """
  found, expected = ([np.asarray(x, np.float32) for x in xs] for xs in (found, expected))
  if not all(np.isfinite(x).all() for x in found):
    return float("inf")
  found[0], expected[0] = (np.where(np.asarray(mask)[..., None, None], x[0], 0) for x in (found, expected))
  return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1)) for a, b in zip(found, expected, strict=True))


@pytest.mark.long
@pytest.mark.parametrize("kind", RUNS)
def test_every_padding_gives_what_xla_gives(kind):
  q, k, v, mask, cotangent = arrays(20, [*PADDED.values(), (0, 0)])
  mask = mask.at[-1].set(jnp.arange(20) % 3 != 1)  # padding between tokens too
  assert (
    error(graded(RUNS[kind])(q, k, v, mask, cotangent), graded(attend_causal)(q, k, v, mask, cotangent), mask) < 5e-6
  )


def test_what_cudnn_may_leave_at_padding_reaches_nothing(monkeypatch):
  """Numbers beyond a row's length are promised nowhere, in outputs or gradients, nor anything for an empty row."""
  plain = jax.nn.dot_product_attention

  def careless(q, k, v, *, query_seq_lengths, **options):
    beyond = (jnp.arange(q.shape[1]) >= query_seq_lengths[:, None])[..., None, None] | (query_seq_lengths == 0).any()
    careless_of = jax.custom_vjp(lambda x: x)
    careless_of.defvjp(lambda x: (x, None), lambda _, g: (jnp.where(beyond, jnp.nan, g),))
    out = plain(*map(careless_of, (q, k, v)), query_seq_lengths=query_seq_lengths, **options)
    return jnp.where(beyond, jnp.nan, out)

  monkeypatch.setattr(jax.nn, "dot_product_attention", careless)
  inputs = arrays(20, PADDED.values())
  assert error(graded(RUNS["cudnn"])(*inputs), graded(attend_causal)(*inputs), inputs[3]) < 5e-6


@pytest.mark.long
@pytest.mark.parametrize("block", [128, 512])
def test_splash_in_one_block_and_in_several(block, monkeypatch):
  """A length that no block divides, and padding that is longer than a block."""
  monkeypatch.setattr(kernels, "BLOCKS", (block,))
  inputs = arrays(300, [(140, 20), (3, 150)], heads=2)
  assert kernels.block_and_length(300) == (min(block, 384), 384)
  assert error(graded(RUNS["splash"])(*inputs), graded(attend_causal)(*inputs), inputs[3]) < 5e-6


@pytest.mark.long
@pytest.mark.parametrize("kind", RUNS)
def test_half_precision(kind):
  """bfloat16 in, bfloat16 out, and no further from exact attention than three times what XLA is."""
  inputs = arrays(20, [(4, 3)], jnp.bfloat16)
  *exact, mask, cotangent = jax.tree.map(lambda x: x if x.dtype == bool else x.astype(jnp.float32), inputs)
  exact = graded(attend_causal)(*exact, mask, cotangent)
  found, plain = graded(RUNS[kind])(*inputs), graded(attend_causal)(*inputs)
  assert {x.dtype for x in found} == {jnp.dtype("bfloat16")}
  assert error(found, exact, mask) < 3 * error(plain, exact, mask)


def test_blocks_hold_every_length():
  for T in range(1, 3000, 7):
    block, length = kernels.block_and_length(T)
    assert block in kernels.BLOCKS
    assert length % block == 0
    assert 0 <= length - T < 128 + T // 8
  assert kernels.block_and_length(1) == (128, 128)
  assert kernels.block_and_length(512 + 1023) == (512, 1536)
  assert kernels.block_and_length(600) == (128, 640)  # every larger block would pad by more than an eighth


def lowered(run, platform: str, *inputs) -> str:
  """The program of output and gradients for a platform that need not be here."""
  return graded(run).trace(*inputs).lower(lowering_platforms=(platform,)).as_text()


def cudnn_calls(program: str) -> list[tuple[str, list[int]]]:
  """Mask and dimensions (rows, heads, queries, keys) of every call of cuDNN's kernels."""
  program = program.replace("\\22", '"')
  masks = re.findall(r'"mask_type": "(\w+)"', program)
  dimensions = re.findall(r'"intermediate_tensor_shape": {[^}]*?"dimensions": \[([^]]*)\]', program)
  return [(m, json.loads(f"[{d}]".replace('"', ""))) for m, d in zip(masks, dimensions, strict=True)]


def pretend_cudnn(patch: pytest.MonkeyPatch) -> None:
  """JAX asks for the version of a cuDNN that is not here before it lowers."""
  patch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91100)


def test_cudnn_lowers_without_scores(monkeypatch):
  """Forward and backward are kernels, causal and with lengths, and nothing [T, T] is left in the program."""
  pretend_cudnn(monkeypatch)
  inputs = arrays(46, [(4, 3), (0, 0)], jnp.bfloat16)
  program = lowered(kernels.cudnn, "cuda", *inputs)
  assert cudnn_calls(program) == [("PADDING_CAUSAL", [2, N, 46, 46])] * 2
  assert "46x46" not in program
  assert "46x46" in lowered(attend_causal, "cuda", *inputs)


def test_splash_lowers_for_tpus():
  """Forward and two backward kernels pass Mosaic's lowering, at an odd length and head width."""
  program = lowered(kernels.splash, "tpu", *arrays(150, [(4, 3), (0, 0)], jnp.bfloat16))
  assert program.count("tpu_custom_call") == 3
  assert not re.search("150x150|256x256", program)


@pytest.mark.parametrize(
  ("kind", "platform", "dtype", "head_width", "expected"),
  [
    ("auto", "cpu", "float32", 128, "blocks"),
    ("auto", "cpu", "bfloat16", 20, "blocks"),
    ("auto", "gpu", "bfloat16", 128, "cudnn"),
    ("auto", "gpu", "float16", 64, "cudnn"),
    ("auto", "gpu", "float32", 128, "xla"),
    ("auto", "gpu", "bfloat16", 256, "xla"),
    ("auto", "gpu", "bfloat16", 20, "xla"),
    ("auto", "tpu", "bfloat16", 128, "splash"),
    ("auto", "tpu", "float32", 20, "splash"),
    ("auto", "tpu", "float16", 128, "xla"),
    ("xla", "gpu", "bfloat16", 128, "xla"),
    ("xla", "tpu", "bfloat16", 128, "xla"),
    ("cudnn", "gpu", "bfloat16", 128, "cudnn"),
    ("splash", "tpu", "float32", 64, "splash"),
  ],
)
def test_choose(kind, platform, dtype, head_width, expected):
  assert kernels.choose(kind, platform, jnp.dtype(dtype), head_width) == expected


@pytest.mark.parametrize(
  ("kind", "platform", "dtype", "head_width", "why"),
  [
    ("flash", "gpu", "bfloat16", 128, "one of auto, xla, .*splash"),
    ("cudnn", "cpu", "float32", 128, "on NVIDIA GPUs and not on cpu; 'auto'"),
    ("cudnn", "tpu", "bfloat16", 128, "on NVIDIA GPUs and not on tpu; 'auto'"),
    ("splash", "gpu", "bfloat16", 128, "on TPUs and not on gpu; 'auto'"),
    ("cudnn", "gpu", "float32", 128, "not compute in float32; config.precision 'bfloat16'"),
    ("splash", "tpu", "float16", 128, "not compute in float16; config.precision 'bfloat16'"),
    ("cudnn", "gpu", "bfloat16", 256, "the model's is 256; config.attention 'xla'"),
    ("cudnn", "gpu", "bfloat16", 20, "the model's is 20; config.attention 'xla'"),
  ],
)
def test_choice_that_cannot_run(kind, platform, dtype, head_width, why):
  with pytest.raises(InputError, match=f"^config.attention is '{kind}'.*{why}.*[.]$"):
    kernels.choose(kind, platform, jnp.dtype(dtype), head_width)


@pytest.fixture(scope="module")
def sharded():
  """What `eight_devices` finds, in a process that has them."""
  return json_from_eight_devices("tests.models.test_kernels")


# Mesh sizes and rows; how many rows and heads a device computes, of N 4 and K 2; the kernels that run.
SHARDED = [
  ((2, 2, 2), 8, (2, 2), ("cudnn", "splash")),
  ((1, 2, 4), 8, (4, 1), ("cudnn",)),  # fewer key/value heads than devices: every device gets a copy of one
  ((1, 1, 8), 2, (2, 4), ("cudnn",)),  # fewer query heads than devices: all devices do all heads
  ((2, 2, 2), 3, (3, 2), ("cudnn", "splash")),  # rows that data and fsdp do not divide
]


def eight_devices() -> dict:
  errors, shares = {}, {}
  inputs = arrays(20, [*PADDED.values(), (2, 2), (0, 1)])
  expected = graded(attend_causal)(*inputs)
  for sizes, B, _, kinds in SHARDED:
    mesh = meshes.make(*sizes)
    local, local_expected = ([np.asarray(x)[-B:] for x in xs] for xs in (inputs, expected))
    local = jax.device_put(local, NamedSharding(mesh, P(meshes.ROWS if B == 8 else None)))
    for kind in kinds:
      with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "cudnn", RUNS["cudnn"])
        run = functools.partial(kernels.attend, kind, mesh, interpret=True)
        errors[f"{kind} {sizes} {B}"] = error(graded(run)(*local), local_expected, local[3])
    with pytest.MonkeyPatch.context() as patch:
      pretend_cudnn(patch)
      local = arrays(20, [(4, 3)] * B, jnp.bfloat16)
      program = lowered(functools.partial(kernels.attend, "cudnn", mesh), "cuda", *local)
      shares[f"{sizes} {B}"] = cudnn_calls(program)
  return {"errors": errors, "shares": shares}


def test_eight_devices_give_what_one_gives(sharded):
  assert len(sharded["errors"]) == 6
  assert max(sharded["errors"].values()) < 5e-6, sharded["errors"]


def test_every_device_does_its_own_rows_and_heads(sharded):
  for sizes, B, share, _ in SHARDED:
    assert sharded["shares"][f"{sizes} {B}"] == [["PADDING_CAUSAL", [*share, 20, 20]]] * 2


if __name__ == "__main__":
  print(json.dumps(eight_devices()))
