"""What a rollout and an update cannot do without, counted: FLOPs and bytes, and the least seconds they take.

Counted are the matrix products (a product [m, k] x [k, n] is 2 m k n FLOPs) and the arrays that do not stay in a
cache by themselves: weights, key/value caches, optimiser state. Norms, rotary angles, softmax, sampling, the gather
from the embedding, activations and what devices send each other are left out, and so is work that a program does
beyond need: masked halves of causal scores, cache slots beyond the filled ones, readings made twice.

Dimensions: p prompts, n rollouts of each, B = p n rows, P prompt width, H horizon, T = P + H - 1 tokens of a row that
are read, L layers, D model width, N query heads, K key/value heads, h head width, F feed-forward width, E experts of
which a token goes through k, V shared vocabulary, i bytes of a number in the compute type.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import jax

from opd_jax.models import decoder
from opd_jax.models.decoder import DecoderConfig

FP32 = 4  # bytes


class Work(NamedTuple):
  flops: float
  weights: float = 0  # bytes of weights; every device that has rows of its own reads them
  parts: float = 0  # bytes of what lies in parts on all devices: caches, optimiser state

  @property
  def bytes(self) -> float:
    return self.weights + self.parts


class Rates(Protocol):
  """What a device can do: measured (machine.py) or published (planning/chips.py)."""

  @property
  def matrix(self) -> Any: ...  # .best: FLOPs per second

  def bandwidth(self, size: float) -> float: ...  # bytes per second of an array of `size` bytes


def seconds(work: Work | Iterable[Work], machine: Rates, devices: int = 1, tensor: int = 1) -> float:
  """The roofline: max(FLOPs / matrix rate, bytes / bandwidth), summed over works that wait for each other.

  Args:
    devices: which share the rows.
    tensor: how many of them share one copy of the weights.
  """
  if not isinstance(work, Work):
    return sum(seconds(w, machine, devices, tensor) for w in work)
  size = work.weights / tensor + work.parts / devices
  return max(work.flops / devices / machine.matrix.best, size / machine.bandwidth(size))


def parameters(cfg: DecoderConfig) -> int:
  """Numbers in the whole model."""
  return sum(map(math.prod, jax.tree.leaves(decoder.shapes(cfg), is_leaf=lambda x: isinstance(x, tuple))))


def layer_weights(cfg: DecoderConfig, *, every_expert: bool = True) -> int:
  """Numbers in the matrices of all layers: L (D h (N + 2 K) + N h D + 3 D F).

  Of a mixture of experts the last is D E + E 3 D F, and with k in the place of the second E what one token goes through.
  """
  D, N, K, h, moe = cfg.width, cfg.heads, cfg.kv_heads, cfg.head_width, cfg.moe
  feed_forward = 3 * D * cfg.ff_width
  if moe is not None:
    feed_forward = D * moe.experts + feed_forward * (moe.experts if every_expert else moe.per_token)
  return cfg.layers * (D * h * (N + 2 * K) + N * h * D + feed_forward)


def layers(cfg: DecoderConfig, tokens: int, pairs: float) -> float:
  """FLOPs of all layers forward: 2 layer_weights per token, and 4 L N h per pair of a token and one that it sees.

  The 4 are two products, scores and weighted values, of 2 FLOPs each. Of a mixture the weights of the chosen experts.
  """
  return 2 * layer_weights(cfg, every_expert=False) * tokens + 4 * cfg.layers * cfg.heads * cfg.head_width * pairs


def causal(T: int) -> int:
  """Pairs of a token and one that it sees, itself included: T (T + 1) / 2."""
  return T * (T + 1) // 2


def head(cfg: DecoderConfig, tokens: int, V: int) -> int:
  """FLOPs of logits over V ids: 2 V D per token."""
  return 2 * V * cfg.width * tokens


def cache_bytes(cfg: DecoderConfig, rows: int, prefix: float, itemsize: int) -> float:
  """Keys and values of `prefix` filled slots in every row: 2 L K h i per slot."""
  return rows * prefix * 2 * cfg.layers * cfg.kv_heads * cfg.head_width * itemsize


def decoding_weights(cfg: DecoderConfig, V: int, itemsize: int) -> int:
  """Bytes of weights that the rows read together: (layer_weights + V D) i; of the embedding only B rows, so not counted."""
  return (layer_weights(cfg) + V * cfg.width) * itemsize


def prefill(cfg: DecoderConfig, prompts: int, n: int, P: int, *, vocab: int, itemsize: int) -> Work:
  """Reading p prompts of P tokens once for their n rollouts, and the logits of the first token.

  FLOPs: layers of p P tokens with causal attention, and the head once per row. Bytes: the weights once, and the
  caches written, for all B rows.
  """
  flops = layers(cfg, prompts * P, prompts * causal(P)) + head(cfg, prompts * n, vocab)
  return Work(flops, decoding_weights(cfg, vocab, itemsize), cache_bytes(cfg, prompts * n, P, itemsize))


def token(cfg: DecoderConfig, rows: int, prefix: float, *, vocab: int, itemsize: int) -> Work:
  """One more token of every row, with `prefix` slots filled, its own included.

  FLOPs: B (2 layer_weights + 4 L N h prefix + 2 V D). Bytes: the weights once for all rows, and the filled keys and
  values of each: (layer_weights + V D) i + B prefix 2 L K h i.
  """
  flops = layers(cfg, rows, rows * prefix) + head(cfg, rows, vocab)
  return Work(flops, decoding_weights(cfg, vocab, itemsize), cache_bytes(cfg, rows, prefix, itemsize))


def rollout(cfg: DecoderConfig, prompts: int, n: int, P: int, H: int, *, vocab: int, itemsize: int) -> list[Work]:
  """A rollout in which no row ends early: the prompt with the first token, then H - 1 tokens at P + 1 ... P + H - 1."""
  how = {"vocab": vocab, "itemsize": itemsize}
  first = prefill(cfg, prompts, n, P, **how)
  return [first, *(token(cfg, prompts * n, P + t, **how) for t in range(1, H))]


def update(
  student: DecoderConfig,
  frozen: tuple[DecoderConfig, ...],
  rows: int,
  P: int,
  H: int,
  *,
  vocab: int,
  itemsize: int,
  remat: str = "none",
) -> Work:
  """Reading B rows of P + H tokens with every model, and one AdamW update of the student.

  The last token of a row predicts nothing and is not read, so T = P + H - 1; logits are of the H response tokens.

  FLOPs: of each frozen model layers and head, forward; of the student three times that, since the backward pass has
  two products for each one forward (by the input and by the weight); and what `remat` (decoder.REMAT) asks to be done
  again, the forward pass of the layers ("layer") or of their attention ("dots").

  Bytes: each frozen model once and the student twice (forward and backward), in the compute type, also where a teacher
  is kept in int8; in fp32 the gradient written and read, and parameters and both moments read and written: 8 numbers
  per parameter of the student.
  """
  T = P + H - 1
  forward = lambda cfg: layers(cfg, rows * T, rows * causal(T))
  logits = lambda cfg: head(cfg, rows * H, vocab)
  flops = sum(forward(cfg) + logits(cfg) for cfg in frozen)
  flops += 3 * (forward(student) + logits(student))
  flops += {"none": 0, "dots": layers(student, 0, rows * causal(T)), "layer": forward(student)}[remat]
  read = lambda cfg: decoding_weights(cfg, vocab, itemsize)
  return Work(flops, sum(map(read, frozen)) + 2 * read(student), 8 * FP32 * parameters(student))
