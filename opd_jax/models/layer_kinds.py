"""What the layers of one model may differ in: how far a token sees, and how positions are encoded.

Layers are scanned with their weights, so what differs between them is an array with one entry per layer, scanned beside
the weights; what all have in common stays static, and a model of like layers is the program that it was without kinds.

Dimensions: L layers, B rows, T positions, h head width.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class LayerKind:
  """The mixer of one layer, as far as it may differ from that of its neighbours."""

  window: int | None = None  # tokens that a token sees, itself included; None: all
  rotary: bool = True  # False: no rotary positions (NoPE)
  theta: float | None = None  # base of its rotary angles, which are not scaled then; None: the model's
  mixer: str = "attention"  # or "delta", the gated delta rule, which knows neither windows nor positions


def shortest_period(kinds: Sequence[LayerKind]) -> tuple[LayerKind, ...]:
  """The shortest sequence that gives these kinds where it is repeated; () where all are plain."""
  n = len(kinds)
  period = next(p for p in range(1, n + 1) if all(kinds[i] == kinds[i % p] for i in range(n)))
  return () if kinds[0] == LayerKind() and period == 1 else tuple(kinds[:period])


def repeated(period: Sequence[LayerKind], layers: int) -> list[LayerKind]:
  """The kind of every layer."""
  return [period[i % len(period)] for i in range(layers)] if period else [LayerKind()] * layers


def binding_window(kind: LayerKind, longest: int) -> int | None:
  """The window of a layer in sequences of so many positions; None where it hides nothing."""
  return kind.window if kind.window is not None and kind.window < longest else None


def scanned(
  kinds: Sequence[LayerKind], ropes: Sequence[tuple[Array, Array]], rope_of: Sequence[int], longest: int
) -> tuple[dict[str, Array], Callable[[dict[str, Array]], tuple[tuple[Array, Array], dict[str, Any]]]]:
  """Sort what layers have in common from what differs.

  Args:
    ropes: the different tables of rotary angles, and `rope_of` each layer's index in them.
    longest: positions of a sequence.

  Returns:
    arrays with an entry per layer, to be scanned with the weights, and a function from a layer's entries to its tables
    and its keyword arguments of the attention.
  """
  windows = [binding_window(kind, longest) for kind in kinds]
  differ = {}
  if len(set(windows)) > 1:
    differ["window"] = jnp.array([longest if w is None else w for w in windows], jnp.int32)
  stacked = None
  if len(ropes) > 1:
    differ["rope"] = jnp.array(rope_of, jnp.int32)
    stacked = jax.tree.map(lambda *tables: jnp.stack(tables), *ropes)

  def of_layer(own: dict[str, Array]) -> tuple[tuple[Array, Array], dict[str, Any]]:
    rope = ropes[0] if stacked is None else jax.tree.map(lambda tables: tables[own["rope"]], stacked)
    window = own.get("window", windows[0])
    return rope, {} if window is None else {"window": window}

  return differ, of_layer
