"""What a rollout and an update cannot do without, counted: FLOPs and bytes, and the least seconds they take.

Counted are the matrix products (a product [m, k] x [k, n] is 2 m k n FLOPs) and the arrays that do not stay in a
cache by themselves: weights, key/value caches, optimiser state. Norms, rotary angles, softmax, sampling, the gather
from the embedding, activations and what devices send each other are left out, as are windows (every token is counted as seeing all
before it, which is what is computed here), and so is work that a program does
beyond need: masked halves of causal scores, cache slots beyond the filled ones, forward passes made twice. A vision tower counts where it is
one of the parameters (`cfg.tower`); one that stays encodes each image once, outside of these programs.

Dimensions: p prompts, n rollouts of each, B = p n rows, P prompt width, H horizon, R = H - 1 tokens of a response that
are read, L layers, D model width, N query heads, K key/value heads, h head width, F feed-forward width, E experts of
which a token goes through k, M features of a prompt's images, V shared vocabulary, i bytes of a number in the compute type.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from opd_jax.models import decoder, delta_net
from opd_jax.models.decoder_config import DecoderConfig
from opd_jax.models.vision import VisionConfig

FP32 = 4  # bytes


class Cost(NamedTuple):
  """The least that something has to compute and to move.

  Attributes:
    flops: of matrix products.
    weight_bytes: bytes of weights; every device that has rows of its own reads them.
    sharded_bytes: bytes of what is split over all devices: caches, optimiser state.
  """

  flops: float
  weight_bytes: float = 0
  sharded_bytes: float = 0

  @property
  def bytes(self) -> float:
    return self.weight_bytes + self.sharded_bytes


@runtime_checkable
class Rates(Protocol):
  """The rates of a device: measured (runtime/machine.py) or published (planning/chips.py)."""

  @property
  def matrix(self) -> Any: ...  # .best: FLOPs per second

  def bandwidth(self, size: float) -> float: ...  # bytes per second of an array of `size` bytes


def seconds(cost: Cost | Iterable[Cost], rates: Rates, devices: int = 1, tensor: int = 1) -> float:
  """The roofline: max(FLOPs / matrix rate, bytes / bandwidth), summed over costs that wait for each other.

  Args:
    devices: how many share the rows.
    tensor: how many of them share one copy of the weights.
  """
  if not isinstance(cost, Cost):
    return sum(seconds(part, rates, devices, tensor) for part in cost)
  size = cost.weight_bytes / tensor + cost.sharded_bytes / devices
  return max(cost.flops / devices / rates.matrix.best, size / rates.bandwidth(size))


def parameter_count(cfg: DecoderConfig) -> int:
  """The number of parameters of the model."""
  shapes = jax.tree.leaves(decoder.shapes(cfg), is_leaf=lambda x: isinstance(x, tuple))
  return sum(map(math.prod, shapes))


def layer_parameters(cfg: DecoderConfig, *, every_expert: bool = True) -> int:
  """The number of parameters in the matrices of all layers: L (D h (N + 2 K) + N h D + 3 D F).

  With a mixture of experts the last term is D E + E 3 D F; gated attention has 2 N h D of queries, and layers of the gated delta rule
  have their own matrices in the place of attention's.

  Args:
    every_expert: False counts what one token goes through, k experts in the place of E.
  """
  D, N, K, h, moe, A = cfg.d_model, cfg.heads, cfg.kv_heads, cfg.head_width, cfg.moe, len(cfg.holders("q"))
  feed_forward = 3 * D * cfg.ff_width
  if moe is not None:
    feed_forward = D * moe.experts + feed_forward * (moe.experts if every_expert else moe.per_token)
  queries = 2 * N if cfg.gated_attention else N
  mixers = A * (D * h * (queries + 2 * K) + N * h * D)
  if cfg.delta is not None:
    of_one = cfg.delta.shapes(D)
    mixers += (cfg.layers - A) * sum(math.prod(of_one[name]) for name in delta_net.MATRICES)
  return mixers + cfg.layers * feed_forward


def layer_flops(cfg: DecoderConfig, tokens: int, pairs: float) -> float:
  """Count the FLOPs of all layers forward: 2 layer_parameters per token, 4 L N h per pair of a token and one it sees.

  The 4 are two products, scores and weighted values, of 2 FLOPs each. Of a mixture the weights of the chosen experts.
  """
  A = len(cfg.holders("q"))
  flops = 2 * layer_parameters(cfg, every_expert=False) * tokens + 4 * A * cfg.heads * cfg.head_width * pairs
  return flops + (cfg.layers - A) * rule_flops(cfg) * tokens


def rule_flops(cfg: DecoderConfig) -> int:
  """Count the FLOPs of the gated delta rule of a layer for a token, as the recurrence has them; 0 without it.

  Of each of H states [k, v]: decay, what k reads, the correction and what q reads, 7 k v. Chunks of 64 do about 64 (3 k + 2 v) / 2 more for
  each head, and in products, which is what makes them fast.
  """
  net = cfg.delta
  return 0 if net is None else 7 * net.value_heads * net.key_width * net.value_width


def causal_pairs(T: int) -> int:
  """The number of pairs of a token and one that it sees, itself included: T (T + 1) / 2."""
  return T * (T + 1) // 2


def tower_flops(tower: VisionConfig, images: int, features: int) -> float:
  """Count the FLOPs of a vision tower forward, over images of so many features each.

  2 parameters per patch in its layers, 4 L E per pair of an image's patches, in windows too, and per feature the merger and the taps'.
  """
  E, F, m = tower.width, tower.ff_width, tower.merged
  patches, wide = features * m, m * E
  layers = tower.layers * (4 * E * E + (3 if tower.gated else 2) * E * F)
  mergers = (1 + len(tower.taps)) * (wide * wide + wide * tower.out_width)
  products = patches * (tower.pixels * E + layers) + features * mergers
  return images * (2 * products + 4 * tower.layers * E * patches**2)


def _seen_flops(cfg: DecoderConfig, prompts: int, features: int) -> float:
  return tower_flops(cfg.tower, prompts, features) if cfg.tower is not None else 0.0


def head_flops(cfg: DecoderConfig, tokens: int, V: int) -> int:
  """Count the FLOPs of logits over V ids: 2 V D per token."""
  return 2 * V * cfg.d_model * tokens


def cache_bytes(cfg: DecoderConfig, rows: int, prefix: float, itemsize: int) -> float:
  """Count the bytes of keys and values of `prefix` filled slots in every row: 2 L K h i per slot.

  Of layers of the gated delta rule the state, H k v numbers of fp32, and the tail of the convolution, whatever the prefix.
  """
  A = len(cfg.holders("q"))
  slots = rows * prefix * 2 * A * cfg.kv_heads * cfg.head_width * itemsize
  if (net := cfg.delta) is None:
    return slots
  state = (
    FP32 * net.value_heads * net.key_width * net.value_width + (net.conv - 1) * net.key_heads * net.channels * itemsize
  )
  return slots + rows * (cfg.layers - A) * state


def weight_bytes(cfg: DecoderConfig, V: int, itemsize: int) -> int:
  """Count the bytes of weights that all rows read together: (layer_parameters + V D) i.

  The embedding is not counted, since only B rows of it are read.
  """
  return (layer_parameters(cfg) + V * cfg.d_model) * itemsize


def prefill(cfg: DecoderConfig, prompts: int, n: int, P: int, *, vocab: int, itemsize: int, features: int = 0) -> Cost:
  """The cost of p prompts of P tokens, read once for their n rollouts, and of the logits of the first token.

  FLOPs: layers of p P tokens with causal attention, the head once per row, and where the tower is a part of the model an image of
  `features` features for each prompt. Bytes: the weights once, and the caches written, one for each prompt.
  """
  flops = (
    _seen_flops(cfg, prompts, features)
    + layer_flops(cfg, prompts * P, prompts * causal_pairs(P))
    + head_flops(cfg, prompts * n, vocab)
  )
  return Cost(flops, weight_bytes(cfg, vocab, itemsize), cache_bytes(cfg, prompts, P, itemsize))


def decode_step(cfg: DecoderConfig, prompts: int, n: int, P: int, t: int, *, vocab: int, itemsize: int) -> Cost:
  """The cost of one more token of every row, which is its t-th and sees the prompt's P.

  FLOPs: B (2 layer_parameters + 4 L N h (P + t) + 2 V D). Bytes: the weights once for all rows, and the filled keys and
  values, a prompt's once for its n rows: (layer_parameters + V D) i + (p P + B t) 2 L K h i.
  """
  rows = prompts * n
  flops = layer_flops(cfg, rows, rows * (P + t)) + head_flops(cfg, rows, vocab)
  cached = cache_bytes(cfg, prompts, P, itemsize) + cache_bytes(cfg, rows, t, itemsize)
  return Cost(flops, weight_bytes(cfg, vocab, itemsize), cached)


def rollout(
  cfg: DecoderConfig, prompts: int, n: int, P: int, H: int, *, vocab: int, itemsize: int, features: int = 0
) -> list[Cost]:
  """The costs of a rollout in which no row ends early, one after the other.

  First the prompt with the first token, then H - 1 tokens at P + 1 ... P + H - 1. `features` as of `prefill`.
  """
  sizes = {"vocab": vocab, "itemsize": itemsize}
  first = prefill(cfg, prompts, n, P, features=features, **sizes)
  return [first, *(decode_step(cfg, prompts, n, P, t, **sizes) for t in range(1, H))]


def reading(cfg: DecoderConfig, rows: int, T: int, *, itemsize: int) -> Cost:
  """The cost of texts of T tokens that are read for their hidden states, without logits.

  FLOPs: layers of B T tokens with causal attention. Bytes: the layers' weights once.
  """
  return Cost(layer_flops(cfg, rows * T, rows * causal_pairs(T)), weight_bytes(cfg, 0, itemsize))


def canvases(cfg: DecoderConfig, rows: int, tokens: int, positions: int, *, vocab: int, itemsize: int) -> Cost:
  """The cost of one forward pass of a masked diffusion model, whose tokens all see each other.

  FLOPs: layers of `rows` sequences of `tokens` tokens, tokens^2 pairs each, and the head at `positions` of each. Bytes: the weights once.
  """
  flops = layer_flops(cfg, rows * tokens, rows * tokens**2) + head_flops(cfg, rows * positions, vocab)
  return Cost(flops, weight_bytes(cfg, vocab, itemsize))


def update(
  student: DecoderConfig,
  frozen: tuple[DecoderConfig, ...],
  prompts: int,
  n: int,
  P: int,
  H: int,
  *,
  vocab: int,
  itemsize: int,
  remat: str = "none",
  features: int = 0,
) -> Cost:
  """The cost of a forward pass of every model over p prompts and n responses to each, and of one AdamW update.

  A prompt is read once for its responses. The last token of a response predicts nothing and is not read, so R = H - 1 of it
  are; logits are of the H response tokens.

  FLOPs: of each frozen model layers and head, forward, and the tower where it is a part of the model, for an image of `features` features
  to a prompt; of the student three times that, since the backward pass has
  two products for each one forward (by the input and by the weight); and what `remat` (decoder.REMAT) asks to be done
  again, the forward pass of the layers ("layer"), the tower's too, or of their attention ("dots").

  Bytes: each frozen model once and the student twice (forward and backward), in the compute type, also where a teacher
  is kept in int8; in fp32 the gradient written and read, and parameters and both moments read and written: 8 numbers
  per parameter of the student.
  """
  rows, R = prompts * n, H - 1
  tokens = prompts * P + rows * R
  pairs = prompts * causal_pairs(P) + rows * (R * P + causal_pairs(R))

  def forward(cfg: DecoderConfig) -> float:
    seen = _seen_flops(cfg, prompts, features)
    return seen + layer_flops(cfg, tokens, pairs) + head_flops(cfg, rows * H, vocab)

  layers = layer_flops(student, tokens, pairs) + _seen_flops(student, prompts, features)
  again = {"none": 0, "dots": layer_flops(student, 0, pairs), "layer": layers}
  flops = sum(map(forward, frozen)) + 3 * forward(student) + again[remat]
  frozen_bytes = sum(weight_bytes(cfg, vocab, itemsize) for cfg in frozen)
  student_bytes = weight_bytes(student, vocab, itemsize)
  return Cost(flops, frozen_bytes + 2 * student_bytes, 8 * FP32 * parameter_count(student))
